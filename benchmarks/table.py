# Copyright (c) The ConRec for MONAI contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.


"""The results of all throughput benchmarks as one page of tables.

    python benchmarks/table.py docs/results/throughput

Reads the JSON files of the folder and writes tables.md there. What is missing is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = ("step", "options", "views", "nt_xent", "lars", "embedding", "grading", "data", "growth")
Results = Mapping[str, Mapping[str, Any]]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def times(found: Mapping[str, float] | None, digits: int = 2) -> str:
    """A ratio with its least and greatest value over the rounds."""
    if found is None:
        return "-"
    return f"{found['median']:.{digits}f} ({found['low']:.{digits}f}-{found['high']:.{digits}f})"


def targets(results: Results) -> list[list[str]]:
    """What was to be reached, and what was."""
    rows: list[list[str]] = []

    def add(what: str, target: str, text: str, reached: bool) -> None:
        rows.append([what, target, text, "yes" if reached else "**no**"])

    for case in results.get("step", {}).get("results", []):
        limit = {16: 1.25, 64: 1.10}.get(case["features"])
        place = f"{case['size']} px, features {case['features']}, batch {case['batch']}"
        if case["size"] == 64 and limit:
            found = case["conrec_monai_over_bare"]
            what = f"step with views over the bare step, {place}"
            add(what, f"at most {limit:.2f}", times(found), found["median"] <= limit)
        if case["size"] == 64 and case["features"] == 64 and case["plain_over_conrec_monai"]:
            found = case["plain_over_conrec_monai"]
            add(f"against the plain way, {place}", "at least 3", times(found), found["median"] >= 3)
    for case in results.get("views", {}).get("results", []):
        found = case["monai_over_conrec_monai"]
        if case["masking"] and found:
            what = f"views against MONAI's transforms, {case['size']} px, one core"
            add(what, "at least 5", times(found, 1), found["median"] >= 5)
    for case in results.get("nt_xent", {}).get("results", []):
        if case["views"] == 2048 and case["monai_over_conrec_monai"]:
            times_as_much = case["monai_over_conrec_monai"]["bytes"]
            what = "peak memory of NT-Xent over MONAI's, 2B = 2048"
            add(what, "under 1/20", f"1/{times_as_much:.0f}", times_as_much > 20)
    for case in results.get("data", {}).get("results", []):
        if case["section"] == "wait":
            wait = max(case["found"][name]["data_wait"] for name in ("memory", "cache"))
            what = f"time waited for data, second epoch, {case['size']} px, features {case['features']}"
            add(what, "under 2 %", f"{wait:.2%}", wait < 0.02)
    return rows


def step_table(results: Sequence[Mapping[str, Any]]) -> str:
    names = ("plain", "plain_amp", "conrec_monai", "bare", "convolutions")
    header = (
        "",
        *(f"{name}, images/s" for name in names),
        "ours over bare",
        "bare over convolutions",
        "plain over ours",
        "plain_amp over ours",
    )
    rows = []
    for case in results:
        kind = "bfloat16" if case["bfloat16"] else "float32"
        rates = [f"{case[name]['images_per_second']:.2f}" if case[name] else "-" for name in names]
        ratios = (
            "conrec_monai_over_bare",
            "bare_over_convolutions",
            "plain_over_conrec_monai",
            "plain_amp_over_conrec_monai",
        )
        place = f"{case['size']} px, features {case['features']}, {kind}"
        rows.append([place, *rates, *(times(case[name]) for name in ratios)])
    return table(header, rows)


def options_table(results: Mapping[str, Any]) -> str:
    over = {name: times(results[f"{name}_over_eager"]) for name in ("compiled", "recomputed")}
    kept = results["kept_bytes"]
    rows = [
        [
            name,
            f"{1e3 * seconds['median']:.1f}",
            over.get(name, "1"),
            f"{kept[name] / 2**20:.1f}" if name in kept else "-",
        ]
        for name, seconds in results["seconds"].items()
    ]
    found = f"\nThe first compiled step takes {results['first_compiled_step']:.0f} s.\n"
    return table(("", "bare step, ms", "over eager", "kept for the backward pass, MiB"), rows) + found


def views_table(results: Sequence[Mapping[str, Any]]) -> str:
    names = ("conrec_monai", "monai", "monai_untracked", "kornia")
    rows = [
        [
            f"{case['size']} px, {'masked' if case['masking'] else 'not masked'}",
            *(f"{case[n]['milliseconds_per_view']['median']:.3f}" if case[n] else "-" for n in names),
            *(times(case[f"{n}_over_conrec_monai"], 1) for n in names[1:]),
        ]
        for case in results
    ]
    found = table(("", *(f"{n}, ms a view" for n in names), *(f"{n} over ours" for n in names[1:])), rows)
    masked = [case for case in results if "milliseconds_of_steps" in case]
    if not masked:
        return found
    steps = list(masked[0]["milliseconds_of_steps"])
    rows = [[f"{c['size']} px", *(f"{c['milliseconds_of_steps'][step]:.3f}" for step in steps)] for c in masked]
    return f"{found}\nOurs, one view at a time:\n\n" + table(("", *(f"{step}, ms" for step in steps)), rows)


def nt_xent_table(results: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for case in results:
        seconds, size, over = case["seconds"], case["bytes"], case["monai_over_conrec_monai"]
        theirs = seconds.get("monai")
        rows.append(
            [
                str(case["views"]),
                f"{1e3 * seconds['conrec_monai']['median']:.1f}",
                f"{1e3 * theirs['median']:.0f}" if theirs else case["monai_left_out"] or "-",
                times(over["seconds"], 0) if over else "-",
                f"{size['conrec_monai'] / 2**20:.1f}",
                f"{size['monai'] / 2**20:.0f}" if size.get("monai") else "-",
                f"{over['bytes']:.0f}" if over else "-",
            ]
        )
    return table(("2B", "ours, ms", "MONAI, ms", "ratio", "ours, MiB", "MONAI, MiB", "ratio"), rows)


def lars_table(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"features {case['features']}",
            *(f"{1e3 * case['seconds'][n]['median']:.2f}" for n in ("lars", "plain", "sgd")),
            times(case["plain_over_lars"]),
            times(case["lars_over_sgd"]),
        ]
        for case in results
    ]
    return table(("", "LARS, ms", "for-loop, ms", "SGD, ms", "for-loop over LARS", "LARS over SGD"), rows)


def embedding_table(results: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{rate:.0f}", f"{results['share'][name]:.0%}" if name in results["share"] else "-"]
        for name, rate in results["images_per_second"].items()
    ]
    found = f"\nImage by image the embedding takes {times(results['one_by_one_over_embed'])} times as long.\n"
    return table(("", "images/s", "share of the total"), rows) + found


def grading_table(results: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{value:.2f}", f"{results['share'][name]['median']:.0%}"]
        for name, value in results["milliseconds_per_image"].items()
    ]
    rate, peak = results["images_per_second"], results["peak_mebibytes"]
    found = (
        f"\n{results['files']} JPEG files of {results['kilobytes_per_file']:.0f} kB on average. End to end:"
        f" {rate['median']:.1f} images/s ({rate['low']:.1f}-{rate['high']:.1f}). Peak memory of the process:"
        f" {peak['once']:.0f} MiB, with four times as many files {peak['four times as many']:.0f} MiB.\n"
    )
    return table(("in one thread", "ms an image", "share"), rows) + found


def data_table(results: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for case in results:
        if case["section"] == "wait":
            for name, found in case["found"].items():
                share = f"{found['data_wait']:.2%} of the second epoch waiting"
                rows.append([f"training from {name}", share, f"{found['images_per_second']:.2f} images/s"])
        else:
            what = "decode" if case["section"] == "decode" else "{} x {} pixels".format(*case["pixels"])
            for name, rate in case["images_per_second"].items():
                rows.append(
                    [f"{what}: {name}", f"{rate['median']:.1f} images/s", f"{rate['low']:.1f}-{rate['high']:.1f}"]
                )
    return table(("", "", ""), rows)


def growth_table(results: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            case["curve"],
            ", ".join(f"{size}: {found['median']:.4g}" for size, found in case["seconds"].items()),
            f"{case['exponent']:.2f}",
            f"{case['largest_residual']:.0%}",
        ]
        for case in results
    ]
    return table(("", "seconds", "exponent", "largest residual"), rows)


SECTIONS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "step": ("Training step", step_table),
    "options": ("Compilation and gradient checkpointing", options_table),
    "views": ("Views", views_table),
    "nt_xent": ("NT-Xent loss", nt_xent_table),
    "lars": ("LARS step", lars_table),
    "embedding": ("Embedding and linear probe", embedding_table),
    "grading": ("Grading of files", grading_table),
    "data": ("Data", data_table),
    "growth": ("Growth", growth_table),
}


def page(results: Results) -> str:
    parts = ["<!-- written by benchmarks/table.py -->\n"]
    rows = targets(results)
    if rows:
        header = ("what", "target", "found: median (range over the rounds)", "reached")
        parts.append("## Targets\n\n" + table(header, rows))
    for name, (title, make) in SECTIONS.items():
        if name in results:
            machine = results[name]["machine"]
            versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
            cores = f"{machine['logical_cores']} logical cores, threads: {machine['threads']}"
            about = f"`{results[name]['command']}`\\\n{machine['processor']}, {cores}; {versions}"
            parts.append(f"## {title}\n\n{about}\n\n" + make(results[name]["results"]))
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("folder", type=Path)
    folder = options.parse_args(arguments).folder
    results = {}
    for path in (folder / f"{name}.json" for name in NAMES):
        if path.is_file():
            try:
                results[path.stem] = json.loads(path.read_text())
            except ValueError as error:
                options.error(f"{path} is no JSON file: {error}")
    if not results:
        options.error(f"{folder} holds none of {', '.join(f'{name}.json' for name in NAMES)}")
    (folder / "tables.md").write_text(page(results))


if __name__ == "__main__":
    main()
