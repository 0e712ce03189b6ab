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

"""What the recipe is worth: trains it and its rivals for equal minutes, and scores them on what chose nothing.

The trainings are those of a sweep (sweep.py), whose configuration is given. They are scored once, on the report part of
its data set and on a second one that no choice has seen. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import PRESETS, Lab, interruptible, read_json, write_json, write_text
from sweep import PARTS, UNTRAINED, Sweep, shown_machine, shown_settings

from conrec_monai.data import load_datalist
from conrec_monai.evaluation import Predictions, compare_runs
from conrec_monai.evaluation.figures import Curve, check_matplotlib, label_curves, to_png
from conrec_monai.evaluation.folds import complete_groups
from conrec_monai.evaluation.store import read_predictions
from conrec_monai.evaluation.table import TITLES

__all__ = ["main", "markdown", "summarize"]

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
FEW = (0.01, 0.05, 0.1)
FROZEN = ("linear", "levels", "knn")
# Of both, the pretrained and the random network; chosen on the development part, see docs/results/grading.md. The
# published rate of 5e-5 moves a random network nowhere in so few steps.
FINE_TUNING = {"learning_rate": 0.001, "schedule": "warmup_cosine", "epochs": 100}


class Report:
    """The evaluations of a sweep's encoders.

    Args:
        sweep: whose encoders; the first variant is the one that all others are compared with.
        other: path of the second data set.
        lab: runs the evaluations.
    """

    def __init__(self, sweep: Sweep, other: Path, lab: Lab) -> None:
        self.sweep, self.lab = sweep, lab
        parts = {"dataset": str(sweep.parts), "section": PARTS[1], "seed": 0}
        own, both = {"dataset": str(other), "seed": 0}, {"dataset": sweep.dataset, "test": str(other), "seed": 0}
        name, second = Path(sweep.dataset).name, other.name
        tuned = {"protocols": ["fine_tune"], "fractions": FEW, "fine_tuning": FINE_TUNING, "untrained_seeds": []}
        variants = sweep.config["variants"]
        trained = [variant for variant in variants if not variants[variant].get(UNTRAINED)]
        # Fine-tuning is dear: of the recipe and of random weights alone, which is training from scratch.
        few = [trained[0], *(variant for variant in variants if variant not in trained)]
        # By name: title, options of the evaluation, variants whose encoders it scores.
        self.evaluations: dict[str, tuple[str, dict[str, Any], list[str]]] = {
            "report": (f"{name}, report part, frozen", {**parts, "protocols": FROZEN}, trained),
            "other": (f"{second}, its own folds, frozen", {**own, "protocols": FROZEN}, trained),
            "transfer": (f"fitted on {name}, scored on {second}, frozen", {**both, "protocols": ["linear"]}, trained),
            "fractions": (
                f"{name}, report part, frozen, over the share of labels",
                {**parts, "protocols": ["linear"], "fractions": FRACTIONS, "fraction_repeats": 1},
                trained,
            ),
            "fine_tuned": (
                f"{name}, report part, fine-tuned with few labels",
                {**parts, **tuned, "fraction_repeats": 1},
                few,
            ),
        }

    def checkpoints(self, variants: Sequence[str]) -> dict[str, Path]:
        """Encoders as ``variant@seed``, trained where they are not there yet."""
        chosen = [run for run in self.sweep.runs() if run.variant in variants]
        return {f"{run.variant}@{run.seed}": self.sweep.encoder(run) for run in chosen}

    def run(self) -> None:
        """Makes the evaluations that are not there yet."""
        for name, (title, options, variants) in self.evaluations.items():
            folder, checkpoints = self.folder(name), self.checkpoints(variants)
            if not self.lab.evaluated(folder, checkpoints, options):
                self.lab.progress(f"evaluation: {title}")
                self.lab.evaluate(folder, checkpoints, options)

    def folder(self, name: str) -> Path:
        """Of an evaluation."""
        return self.sweep.results / "evaluations" / self.sweep.name / name


def against_scratch(report: Report) -> list[dict[str, Any]]:
    """The frozen recipe against training from random weights, with each share of the labels: ``fraction``, and what
    :func:`conrec_monai.evaluation.compare_runs` says of kappa. Both evaluations have the same folds and labels."""
    sweep, found = report.sweep, dict[tuple[str, str, float], list[Predictions]]()
    if len({(report.folder(name) / "folds.json").read_bytes() for name in ("fractions", "fine_tuned")}) > 1:
        raise ValueError("the folds of the evaluations differ.")
    for name, variant in (("fractions", "standardized"), ("fine_tuned", None)):
        metrics = read_json(report.folder(name) / "metrics.json")
        assert metrics is not None
        methods = {model["name"]: model["method"] for model in metrics["models"]}
        for entry in metrics["results"]:
            if entry["variant"] == variant:
                predictions = read_predictions(report.folder(name) / entry["predictions"])
                found.setdefault((name, methods[entry["model"]], entry["fraction"]), []).append(predictions)
    data = load_datalist(sweep.parts, PARTS[1])
    labels, groups = np.array([item["label"] for item in data]), complete_groups([item["group"] for item in data])
    first = next(iter(sweep.config["variants"]))
    scratch = next(name for name, changes in sweep.config["variants"].items() if changes.get(UNTRAINED))
    return [
        {"fraction": fraction, **compare_runs(labels, a, b, groups, True, a[0].folds[0].probabilities.shape[1])["qwk"]}
        for (name, method, fraction), a in found.items()
        if (name, method) == ("fractions", first) and (b := found.get(("fine_tuned", scratch, fraction)))
    ]


def summarize(report: Report) -> dict[str, Any]:
    """All numbers as plain values: the content of ``recipe.json``."""
    first = next(iter(report.sweep.config["variants"]))
    evaluations = {}
    for name, (title, _, _) in report.evaluations.items():
        metrics = read_json(report.folder(name) / "metrics.json")
        assert metrics is not None
        evaluations[name] = {
            "title": title,
            **report.lab.describe_evaluation(report.folder(name)),
            "folds": metrics["folds"],
            "statements": metrics["statements"],
            "scores": _scores(metrics),
            "differences": [entry for entry in metrics["methods"] if entry["method"] == first],
        }
    return report.lab.portable(
        {
            "schema": 1,
            "command": report.lab.command,
            "sweep": dict(report.sweep.config),
            "recipe": first,
            "trainings": report.sweep.lines(),
            "rated_on": report.sweep.rated_on(),
            "evaluations": evaluations,
            "against_scratch": against_scratch(report),
        }
    )


def _scores(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each method under each protocol, with each share of the labels: the score of each run."""
    methods = {model["name"]: (model["method"], model["kind"]) for model in metrics["models"]}
    found: dict[tuple, dict[str, Any]] = {}
    for entry in metrics["results"]:
        method, kind = methods[entry["model"]]
        key = (method, entry["protocol"], entry["variant"], entry["fraction"])
        names = ("method", "protocol", "variant", "fraction")
        score = found.setdefault(key, {**dict(zip(names, key, strict=True)), "kind": kind, "runs": [], "intervals": []})
        score["runs"].append(entry["metrics"]["qwk"]["mean"])
        score["intervals"].append(entry["metrics"]["qwk"]["interval"])
        score["train_images"] = entry["train_images"]
    return list(found.values())


def curves(summary: Mapping[str, Any]) -> list[Curve]:
    """Label-efficiency curves, means over the runs; the bands hold the intervals of all of them."""
    evaluations = summary["evaluations"]
    entries = [e for e in evaluations["fractions"]["scores"] if e["variant"] == "standardized"]
    entries += [{**e, "method": f"{e['method']}, fine-tuned"} for e in evaluations["fine_tuned"]["scores"]]
    result = []
    for method in dict.fromkeys(entry["method"] for entry in entries):
        own = [entry for entry in entries if entry["method"] == method]
        bounds = [[b for pair in e["intervals"] for b in pair if b is not None] or [math.nan] for e in own]
        mean = [sum(entry["runs"]) / len(entry["runs"]) for entry in own]
        shares = [entry["fraction"] for entry in own]
        result.append(Curve(method, own[0]["kind"], shares, mean, [*map(min, bounds)], [*map(max, bounds)]))
    return result


def markdown(summary: Mapping[str, Any]) -> str:
    """The page, from the content of ``recipe.json``."""
    config, first = summary["sweep"], summary["recipe"]
    trained = {variant for variant, changes in config["variants"].items() if not changes.get(UNTRAINED)}
    lines = [
        f"# What the recipe is worth: {summary['evaluations']['report']['title'].split(',')[0]}",
        "",
        config["about"],
        "",
        "```bash",
        f"{summary['command']}    # make recipe; goes on where it was stopped",
        "```",
        "",
        f"{config['minutes']:g} minutes of training for each of {len(trained)} methods, {len(config['seeds'])} seeds"
        f" (the epochs that fit into them on: {'; '.join(summary['rated_on']) or 'an unknown machine'});"
        " quadratic weighted kappa x 100, mean over the seeds and (in parentheses) each. Differences are those of"
        f" {first} to the other method, with 95 % intervals over test images (groups) and seeds"
        " ([how](../../statistics.md#several-runs-of-a-method)); **bold** where they leave 0 out. They are not"
        " corrected for the number of comparisons.",
        "",
        "## Trainings",
        "",
        "| method | settings | epochs | minutes | images/s | contrastive loss | reconstruction loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in config["variants"]:
        own = [line for line in summary["trainings"] if line["variant"] == variant and line["epochs"]]
        if own:
            cells = [variant, shown_settings(own[0]["settings"]), str(own[0]["epochs"])]
            for name, digits in (("minutes", 1), ("images_per_second", 0)):
                cells.append(f"{_mean([line[name] for line in own]):.{digits}f}")
            cells += [
                f"{_mean([line[name] for line in own]):.4f}" for name in ("contrastive_loss", "reconstruction_loss")
            ]
            lines.append(f"| {' | '.join(cells)} |")
    machines = sorted({shown_machine(line["machine"]) for line in summary["trainings"] if "machine" in line})
    lines += ["", f"Trained on: {'; '.join(machines)}.", ""]
    for name, evaluation in summary["evaluations"].items():
        lines += [f"## {evaluation['title'][0].upper()}{evaluation['title'][1:]}", ""]
        if name == "fractions":
            lines += ["![kappa over the share of the training labels](labels.png)", ""]
        blocks = dict.fromkeys((e["protocol"], e["variant"]) for e in evaluation["scores"])
        for block in blocks:
            if block == ("linear", "published") and name == "fractions":
                continue  # whose tables would only repeat what the first evaluation says of this protocol
            lines += _table(evaluation, block, first)
        if name == "fine_tuned":
            lines += [f"{first}, frozen (standardized linear model), less random weights, trained as a whole:", ""]
            lines += [f"- {100 * e['fraction']:g} %: {_difference(e)}" for e in summary["against_scratch"]] + [""]
        lines += [*(f"- {statement}" for statement in evaluation["statements"]), ""]
        machine = evaluation["machine"]
        where = (
            f"{machine['processor']}, {machine['threads']} threads" if machine["device"] == "cpu" else machine["device"]
        )
        lines += [f"`{evaluation['command']}` ({evaluation['seconds'] / 60:.0f} minutes; {where})", ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(evaluation: Mapping[str, Any], block: tuple[str, str | None], first: str) -> list[str]:
    """A row for each method, two columns for each share of the labels."""
    scores = [e for e in evaluation["scores"] if (e["protocol"], e["variant"]) == block]
    shares = sorted({entry["fraction"] for entry in scores})
    counts = {entry["fraction"]: entry["train_images"] for entry in scores}
    heads = [f"{100 * share:g} % ({counts[share]:.0f} images)" if len(shares) > 1 else "kappa" for share in shares]
    lines = [f"{TITLES[block]}:", "", f"| method | {' | difference | '.join(heads)} | difference |"]
    lines.append("|---" * (1 + 2 * len(shares)) + "|")
    for method in dict.fromkeys(entry["method"] for entry in scores):
        cells = [method]
        for share in shares:
            runs: list[float] = next((e["runs"] for e in scores if (e["method"], e["fraction"]) == (method, share)), [])
            each = f" ({', '.join(f'{100 * value:.1f}' for value in runs)})" if len(runs) > 1 else ""
            cells.append(f"{100 * _mean(runs):.1f}{each}" if runs else "")
            found = [
                e["metrics"]["qwk"]
                for e in evaluation["differences"]
                if (e["protocol"], e["variant"], e["fraction"], e["other"]) == (*block, share, method)
            ]
            cells.append(_difference(found[0]) if found else "")
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _difference(value: Mapping[str, Any]) -> str:
    if None in value["interval"]:
        return "undefined"
    low, high = (100 * bound for bound in value["interval"])
    text = f"{100 * value['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
    return text if low <= 0 <= high else f"**{text}**"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        Exit code, see :func:`common.interruptible`.
    """
    parser = argparse.ArgumentParser(prog="experiments/recipe.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="of a sweep, such as experiments/sweeps/final.json")
    parser.add_argument("--data", metavar="DIR", type=Path, default="../data", help="of data sets (default: ../data)")
    parser.add_argument("--other", metavar="NAME", default="idrid", help="second data set below it (default: idrid)")
    parser.add_argument("--results", metavar="DIR", type=Path, default="output/sweep", help="(default: output/sweep)")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)

    def work() -> None:
        check_matplotlib()
        config = read_json(options.config)
        if config is None:
            raise FileNotFoundError(f"there is no configuration {options.config}.")

        def progress(line: str) -> None:
            print(line, flush=True)

        sweep = Sweep(config, options.config.stem, options.data, options.results, progress)
        kinds = [bool(changes.get(UNTRAINED)) for changes in config["variants"].values()]
        if kinds[0] or not any(kinds):
            raise ValueError(
                f"{options.config.stem}: expected a first variant that is trained, the recipe, and one with random"
                f" weights; got {', '.join(config['variants'])}."
            )
        command = shlex.join(["python", "experiments/recipe.py", *given])
        load_datalist(options.data / options.other)  # a mistake is known before the trainings
        lab = Lab(PRESETS["cpu"], options.data, options.results, command=command, progress=progress)
        sweep.run()
        report = Report(sweep, options.data / options.other, lab)
        report.run()
        summary = summarize(report)
        folder = options.results / "recipe"
        folder.mkdir(exist_ok=True)
        write_json(folder / "recipe.json", summary)
        (folder / "labels.png").write_bytes(to_png(label_curves(curves(summary), "quadratic weighted kappa")))
        write_text(folder / "README.md", markdown(summary))
        progress(f"written to {folder}")

    return interruptible(work)


if __name__ == "__main__":
    sys.exit(main())
