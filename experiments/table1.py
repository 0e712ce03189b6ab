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

"""Table 1 of arXiv 2104.04323 at a size of choice: ``make table1``; see experiments/README.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import (
    COLUMNS,
    ROWS,
    Column,
    Job,
    Lab,
    Row,
    command_line,
    read_json,
    write_json,
    write_text,
)

__all__ = ["REFERENCES", "main", "markdown", "run", "summarize"]

SCHEMA = 1
PROTOCOLS = ("linear", "levels", "knn")
# What every column is read against: key and title.
REFERENCES = (
    ("untrained-attention", "untrained, attention pooling"),
    ("untrained-average", "untrained, average pooling"),
    ("shortcut", "shortcut baseline"),
    ("color", "color baseline"),
)
# The tables, in their order: title, protocol, variant.
BLOCKS = (
    ("Linear model, standardized: the claims rest on this", "linear", "standardized"),
    ("Linear model, as published (raw representation, C = 1)", "linear", "published"),
    ("Linear model on all levels of the encoder", "levels", None),
    ("20 nearest neighbors", "knn", None),
)
# What is shown of a pretraining, beside its epochs, and of a supervised training.
PRETRAINING = ("image_size", "features", "batch_size", "optimizer", "learning_rate", "schedule", "alpha", "seed")
SUPERVISED = ("optimizer", "learning_rate", "batch_size", "epochs")
METRICS = {"qwk": "quadratic weighted kappa x 100", "top1": "top-1 accuracy in %"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see :func:`common.command_line`."""
    return command_line(run, "table1", COLUMNS, ROWS, "Trains and scores the models of Table 1.", arguments)


def run(lab: Lab, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Runs what is not done yet of these columns and rows; writes the cells, ``table1.json`` and ``table1.md``.

    Raises:
        ValueError, OSError: when a job fails.
    """
    lab.run(list(_jobs(lab, columns, rows)))
    for column in columns:
        _mark_absent(lab, column, rows)
    _write_table(lab)


def _jobs(lab: Lab, columns: Sequence[Column], rows: Sequence[Row]) -> Iterator[Job]:
    planned = set()
    for column in columns:
        if lab.dataset(column) is None:
            continue
        for row in rows:
            if row.kind == "pretrained" and (column.source, row.key) not in planned:
                planned.add((column.source, row.key))
                yield lab.pretraining_job(column, row)
        if any(row.kind != "supervised" for row in rows):
            yield _frozen_job(lab, column)
        for row in rows:
            if row.kind == "supervised":
                yield _supervised_job(lab, column, row)


def _frozen_job(lab: Lab, column: Column) -> Job:
    """All frozen encoders of a column at once, so that they are compared on the same folds, in pairs."""
    folder = lab.evaluation(column, "frozen")
    arguments = lab.arguments(column, protocols=PROTOCOLS, densenet=lab.densenet)

    def done() -> bool:
        encoders = lab.encoders(column)
        complete = bool(encoders) and lab.evaluated(folder, encoders, arguments)
        if complete:
            write(encoders)
        return complete

    def work() -> None:
        encoders = lab.encoders(column)
        if not encoders:
            raise ValueError(f"no encoder is pretrained on {column.source}; rows must name one, such as conrec.")
        lab.evaluate(folder, encoders, arguments)
        write(encoders)

    def write(encoders: Mapping[str, Path]) -> None:
        for row in ROWS:
            if row.title in encoders:
                _write_cell(lab, column, row.key, row.title, folder, [row.title], row)
            elif row.kind == "imagenet" and lab.densenet is not None:
                _write_cell(lab, column, row.key, row.title, folder, _names(folder, "imagenet"), row)
        for key, title in REFERENCES:
            names = [title]
            if key.startswith("untrained"):
                names = _names(folder, "untrained", title.rpartition(", ")[2])
            if names:
                _write_cell(lab, column, key, title, folder, names)
        _write_table(lab)

    return Job(f"{column.key}: evaluation of the frozen encoders", done, work)


def _names(folder: Path, kind: str, architecture: str = "") -> list[str]:
    """Names of the models of one kind in an evaluation, and of an architecture whose name ends like this."""
    metrics = read_json(folder / "metrics.json") or {"models": []}
    return [
        model["name"]
        for model in metrics["models"]
        if model["kind"] == kind and model.get("architecture", "").endswith(architecture)
    ]


def _supervised_job(lab: Lab, column: Column, row: Row) -> Job:
    folder, frozen = lab.evaluation(column, row.key), lab.evaluation(column, "frozen")

    def arguments() -> dict[str, Any]:
        # Known once the frozen encoders are scored: then both have the same folds by construction.
        ready = (read_json(frozen / "job.json") or {}).get("done") and (frozen / "folds.json").is_file()
        return lab.arguments(
            column,
            protocols=["supervised"],
            fine_tuning=lab.fine_tuning(column, row) or None,
            untrained_seeds=[],
            folds=str(frozen / "folds.json") if ready else None,
        )

    def checkpoints() -> dict[str, Path]:
        return {row.title: lab.architecture(column, row)}

    def done() -> bool:
        complete = lab.evaluated(folder, checkpoints(), arguments())
        if complete:
            write()
        return complete

    def work() -> None:
        lab.evaluate(folder, checkpoints(), arguments())
        write()

    def write() -> None:
        _write_cell(lab, column, row.key, row.title, folder, _names(folder, "random"), row)
        _write_table(lab)

    return Job(f"{column.key}, {row.title}: supervised training", done, work)


# --- cells ------------------------------------------------------------------------------------------------------------


def _cell_path(lab: Lab, column: Column, key: str) -> Path:
    return lab.results / "cells" / column.key / f"{key}.json"


def _write_cell(
    lab: Lab, column: Column, key: str, title: str, folder: Path, names: Sequence[str], row: Row | None = None
) -> None:
    """Writes what an evaluation says of one model (of one architecture's seeds), and how it came about."""
    metrics = read_json(folder / "metrics.json")
    assert metrics is not None
    models = [model for model in metrics["models"] if model["name"] in names]
    others = [model["name"] for model in metrics["models"] if model["name"] not in names]
    jobs = [lab.describe_evaluation(folder)]
    statements = [s for s in metrics["statements"] if not s.startswith(tuple(f"{name}:" for name in others))]
    if row is not None and row.kind == "pretrained":
        jobs.insert(0, lab.describe_pretraining(column, row))
        if models[0].get("transductive") is None:
            # An encoder of an earlier release does not say so itself; its run does.
            statements = [s for s in statements if not s.startswith(f"{title}: the checkpoint does not say")]
            if jobs[0]["sees_test_images"]:
                statements.append(f"{title}: transductive, it was pretrained on the test images too, without labels.")
    known = ("name", "kind", "architecture", "parameters", "sha256", "seed", "transductive", "test_images_seen")
    cell = {
        "schema": SCHEMA,
        "preset": lab.preset.name,
        "column": column.key,
        "row": key,
        "model": title,
        "status": "done",
        "metric": metrics["metrics"][0],
        "seed": metrics["settings"]["seed"],
        "jobs": jobs,
        "models": [{name: model[name] for name in known if name in model} for model in models],
        "dataset": metrics["dataset"],
        "classes": metrics["classes"],
        "folds": metrics["folds"],
        "results": [
            {name: value for name, value in entry.items() if name != "predictions"}
            for entry in metrics["results"]
            if entry["model"] in names
        ],
        "comparisons": [c for c in metrics["comparisons"] if c["model"] in names or c["other"] in names],
        "statements": statements,
    }
    write_json(_cell_path(lab, column, key), lab.portable(cell))


def _mark_absent(lab: Lab, column: Column, rows: Sequence[Row]) -> None:
    """Says of a cell that it cannot be, and why; what was computed before stays."""
    missing = lab.dataset(column) is None
    for row in rows:
        if missing:
            reason = lab.absence(column)
        elif row.kind == "imagenet" and lab.densenet is None:
            reason = "its ImageNet weights are not at hand (DENSENET names their file); nothing is downloaded"
        else:
            continue
        if _read_cell(lab, column, row.key) is None:
            cell = {"column": column.key, "row": row.key, "model": row.title, "status": "absent", "reason": reason}
            write_json(_cell_path(lab, column, row.key), {"schema": SCHEMA, "preset": lab.preset.name, **cell})
    if missing:
        lab.progress(f"{column.key}: absent, {lab.absence(column)}")


def _read_cell(lab: Lab, column: Column, key: str, status: str = "done") -> dict[str, Any] | None:
    cell = read_json(_cell_path(lab, column, key))
    if cell is None or cell["status"] != status:
        return None
    if cell["preset"] != lab.preset.name:
        raise ValueError(f"{lab.results} holds results of the preset {cell['preset']}; choose another folder.")
    return cell


# --- the table --------------------------------------------------------------------------------------------------------


def _write_table(lab: Lab) -> None:
    """``table1.json`` and ``table1.md``, from the cells alone."""
    summary = summarize(lab)
    write_json(lab.results / "table1.json", summary)
    write_text(lab.results / "table1.md", markdown(summary))


def summarize(lab: Lab) -> dict[str, Any]:
    """The table as plain values, from the cells in the folder of results: the content of ``table1.json``."""
    cells: dict[str, dict[str, Any]] = {}
    about: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    statements: dict[str, list[str]] = {}
    jobs: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    for column in COLUMNS:
        cells[column.key] = {}
        untrained: dict[str, str] = {}
        said: dict[str, None] = {}
        for key, title in [*((row.key, row.title) for row in ROWS), *REFERENCES]:
            cell = _read_cell(lab, column, key)
            if cell is None:
                absent = _read_cell(lab, column, key, "absent")
                cells[column.key][key] = absent and {"status": "absent", "reason": absent["reason"]} or {"status": None}
                continue
            cells[column.key][key] = {"status": "done", "values": list(_values(cell))}
            about.setdefault(column.key, _about(cell, column))
            said.update(dict.fromkeys(cell["statements"]))
            if recorded := _recorded(cell):
                settings.setdefault(column.key, {})[key] = recorded
            if key.startswith("untrained"):
                untrained.update((entry["model"], title) for entry in cell["results"])
            for job in cell["jobs"]:
                # An evaluation is shared by the frozen models, a pretraining by two views of the same images.
                entry = {"column": column.key, "model": title, **{n: job[n] for n in ("job", "command", "seconds")}}
                entry["machine"] = job["machine"].get("processor") or job["machine"].get("device")
                entry["threads"] = job["machine"].get("threads")
                entry["versions"] = job["versions"]
                if job["command"] not in [other["command"] for other in jobs]:
                    jobs.append(entry)
            if key == "conrec":
                differences[column.key] = list(_differences(cell))
        for entry in differences.get(column.key, []):
            if entry["other"] in untrained:
                entry["seed_of"] = untrained[entry["other"]]
        statements[column.key] = list(said)
    rows: list[dict[str, Any]] = [
        {"key": r.key, "title": r.title, "kind": r.kind, "parameters": r.parameters, "published": dict(r.published)}
        for r in ROWS
    ]
    rows += [{"key": key, "title": title, "kind": "reference"} for key, title in REFERENCES]
    return {
        "schema": SCHEMA,
        "preset": lab.preset.name,
        "command": lab.portable(lab.command),
        "settings": settings,
        "columns": [
            {"key": c.key, "title": c.title, "source": c.source, "published_classes": c.published_classes}
            for c in COLUMNS
        ],
        "rows": rows,
        "cells": cells,
        "about": about,
        "differences": differences,
        "statements": statements,
        "jobs": jobs,
    }


def _recorded(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the training of a cell's model recorded; empty where nothing was trained."""
    for job in cell["jobs"]:
        given = job.get("settings", {})
        if job["job"] == "pretraining":
            return {"epochs": job["epochs"], **{name: given[name] for name in PRETRAINING if name in given}}
        if "supervised" in given.get("fine_tuning", {}):
            return dict(given["fine_tuning"]["supervised"])
    return {}


def _values(cell: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The score that the claims rest on, protocol by protocol; of several seeds their mean and range."""
    found: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for entry in cell["results"]:
        found.setdefault((entry["protocol"], entry["variant"]), []).append(entry["metrics"][cell["metric"]])
    for (protocol, variant), scores in found.items():
        means = [score["mean"] for score in scores if score["mean"] is not None]
        value: dict[str, Any] = {"protocol": protocol, "variant": variant}
        value["value"] = sum(means) / len(means) if means else None
        if len(scores) == 1:
            value["interval"] = scores[0]["interval"]
        else:
            value["range"] = [min(means), max(means)] if means else None
            value["seeds"] = len(scores)
        yield value


def _about(cell: Mapping[str, Any], column: Column) -> dict[str, Any]:
    """What was evaluated, and how it differs from the publication's data."""
    folds = cell["folds"]
    return {
        "metric": cell["metric"],
        "images": cell["dataset"]["labelled"],
        "classes": sum(entry["count"] > 0 for entry in cell["classes"]),
        "published_classes": column.published_classes,
        "folds": {name: folds[name] for name in ("kind", "n", "repeats", "left_out", "train", "test")},
    }


def _differences(cell: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """ConRec less each other model, standardized linear model."""
    for entry in cell["comparisons"]:
        if (entry["protocol"], entry["variant"]) != ("linear", "standardized"):
            continue
        values = entry["metrics"][cell["metric"]]
        difference, interval = values["difference"], values["interval"]
        other = entry["other"]
        if other == cell["model"]:  # told the other way round
            other, difference = entry["model"], None if difference is None else -difference
            interval = None if interval is None else [-bound for bound in reversed(interval)]
        yield {"other": other, "difference": difference, "interval": interval, "p": values["p"]}


def markdown(summary: Mapping[str, Any]) -> str:
    """The table as Markdown, from the content of ``table1.json``."""
    columns = summary["columns"]
    pretrained = [s for by_row in summary["settings"].values() for s in by_row.values() if "image_size" in s]
    sizes = sorted({entry["image_size"] for entry in pretrained})
    features = list(dict.fromkeys("-".join(map(str, entry["features"])) for entry in pretrained))
    described = f" at {' and '.join(map(str, sizes))} px, channels {' and '.join(features)}" if pretrained else ""
    lines = [
        f"# Table 1, preset {summary['preset']}",
        "",
        "The table of the publication ([arXiv 2104.04323](https://arxiv.org/abs/2104.04323)) with the models of this"
        f" library{described}."
        " This page is written by",
        "",
        "```bash",
        f"{summary['command']}    # make table1; goes on where it was stopped",
        "```",
        "",
        "and everything on it comes from one JSON file per cell, which holds commands, seed, settings, versions,"
        " machine, time, the scores of each fold and all other metrics.",
        "",
        "**How to read it.** Graded sets (APTOS, RetinaMNIST): quadratic weighted kappa x 100; the others: top-1"
        " accuracy in %. [In brackets] the 95 % interval from a bootstrap over groups of images; (in parentheses)"
        " lowest and highest of the seeds of untrained encoders, beside their mean. *paper* is the number in the"
        " publication, in italics: **its settings differ** (224 px, channels 64-128-256-512, 500 to 2700 epochs, all"
        " classes, other folds, no grouping of duplicates), so it stands there to compare orders, not numbers. The"
        " column *normalized* shows the same encoders, pretrained on the raw photographs, fitted and scored on images"
        " whose field of view is normalized, where its shape tells nothing; supervised models are trained on these too."
        " The shortcut baseline knows the shape of the field of view, and mean and deviation of each color channel, the"
        " color baseline only the latter; neither sees any content. A score that does not beat them and the untrained"
        " encoders says nothing for a representation.",
        "",
    ]
    for title, protocol, variant in BLOCKS:
        supervised = protocol == "linear"
        table = _table(summary, protocol, variant, supervised)
        if table:
            lines += [f"## {title}", "", *table, ""]
            if supervised:
                lines += [
                    "Models that are not frozen are trained end to end on the labels; linear models on no part.",
                    "",
                ]
    lines += _difference_section(summary)
    lines += ["## What was evaluated", ""]
    lines += ["| column | score | images | classes | fitted on | scored on |", "|---|---|---|---|---|---|"]
    for column in columns:
        about = summary["about"].get(column["key"])
        if about is None:
            lines.append(f"| {column['title']} | {_missing(summary, column['key'])} | | | | |")
            continue
        lines.append(f"| {column['title']} | {METRICS.get(about['metric'], about['metric'])} | {about['images']}"
                     f" | {_classes(about)} | {_folds(about['folds'])} |")  # fmt: skip
    absent = {
        entry["reason"]: f"{row['title']}: absent, {entry['reason']}."
        for row in summary["rows"]
        for cells in summary["cells"].values()
        if (entry := cells[row["key"]])["status"] == "absent" and row["kind"] == "imagenet"
    }
    lines += ["", *(f"- {text}" for text in absent.values() if "data folder" not in text)]
    lines += ["", "## What a reader must know", ""]
    for column in columns:
        for statement in summary["statements"].get(column["key"], []):
            lines.append(f"- {column['title']}: {statement}")
    lines += ["", "## Settings", "", *_settings(summary), "", "## Time", "", *_times(summary)]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip() + "\n"


def _table(summary: Mapping[str, Any], protocol: str, variant: str | None, supervised: bool) -> list[str]:
    """The lines of a table of one protocol; none where nothing was evaluated by it."""
    heads, published = ["model", "frozen"], []
    for column in summary["columns"]:
        if supervised and any(column["key"] in row.get("published", {}) for row in summary["rows"]):
            published.append(column["key"])
            heads.append(f"*{column['title']}, paper*")
        heads.append(column["title"])
    lines, found = [], False
    for row in summary["rows"]:
        if row["kind"] == "supervised" and not supervised:
            continue
        frozen = {"supervised": "no", "reference": "yes" if row["key"].startswith("untrained") else ""}
        cells = [row["title"], frozen.get(row["kind"], "yes")]
        for column in summary["columns"]:
            if column["key"] in published:
                number = row.get("published", {}).get(column["key"])
                cells.append("" if number is None else f"*{number}*")
            entry = summary["cells"][column["key"]][row["key"]]
            wanted = ("supervised", None) if row["kind"] == "supervised" else (protocol, variant)
            values = [v for v in entry.get("values", []) if (v["protocol"], v["variant"]) == wanted]
            found = found or bool(values) and row["kind"] != "supervised"
            cells.append(_score(values[0]) if values else "absent" if entry["status"] == "absent" else "")
        lines.append(f"| {' | '.join(cells)} |")
    if not found and not (supervised and variant == "standardized"):
        return []
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines]


def _score(value: Mapping[str, Any]) -> str:
    text = _percent(value["value"])
    if value.get("interval"):
        text += f" [{', '.join(map(_percent, value['interval']))}]"
    if value.get("range"):
        text += f" ({' to '.join(map(_percent, value['range']))})"
    return text


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f}"


def _signed(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:+.1f}"


def _difference_section(summary: Mapping[str, Any]) -> list[str]:
    differences, columns = summary["differences"], summary["columns"]
    shown = [column for column in columns if differences.get(column["key"])]
    if not shown:
        return []
    others = list(dict.fromkeys(entry["other"] for column in shown for entry in differences[column["key"]]))
    lines = [
        "## ConRec less the others",
        "",
        "Differences under the standardized linear model, on the same folds and the same bootstrap draws; in brackets"
        " the paired 95 % interval. Each row is one pretraining with one seed: the intervals are about the test images"
        " only and do not cover another seed or another training; they are not corrected for the number of comparisons."
        " Supervised rows have no paired difference.",
        "",
        f"| ConRec less | {' | '.join(column['title'] for column in shown)} |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for other in others:
        cells = [other]
        for column in shown:
            entry = next((e for e in differences[column["key"]] if e["other"] == other), None)
            cells.append("" if entry is None else _difference(entry))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "In words:", ""]
    for column in shown:
        groups: dict[str, list[str]] = {"ahead of": [], "behind": [], "not told apart from": []}
        seeds: dict[str, list[str]] = {}
        for entry in differences[column["key"]]:
            if "seed_of" in entry:
                seeds.setdefault(entry["seed_of"], []).append(_verdict(entry))
            else:
                groups[_verdict(entry)].append(entry["other"])
        said = [f"{verdict} {'; '.join(names)}" for verdict, names in groups.items() if names]
        for title, verdicts in seeds.items():
            counts = [f"{verdict} {verdicts.count(verdict)}" for verdict in groups if verdicts.count(verdict)]
            encoders = title.replace("untrained,", "untrained encoders with")
            said.append(f"{' and '.join(counts)} of {len(verdicts)} {encoders}")
        lines.append(f"- {column['title']}: ConRec is {'. It is '.join(said)}.")
    return [*lines, ""]


def _difference(entry: Mapping[str, Any]) -> str:
    interval = entry["interval"]
    return _signed(entry["difference"]) + (f" [{', '.join(map(_signed, interval))}]" if interval else "")


def _verdict(entry: Mapping[str, Any]) -> str:
    low, high = entry["interval"] or (None, None)
    if low is None or high is None or low <= 0 <= high:
        return "not told apart from"
    return "ahead of" if low > 0 else "behind"


def _missing(summary: Mapping[str, Any], column: str) -> str:
    reasons = [entry["reason"] for entry in summary["cells"][column].values() if entry["status"] == "absent"]
    return f"absent: {reasons[0]}" if reasons else "not run"


def _classes(about: Mapping[str, Any]) -> str:
    published = about["published_classes"]
    if published in (None, about["classes"]):
        return str(about["classes"])
    return f"{about['classes']} of the paper's {published}"


def _folds(folds: Mapping[str, Any]) -> str:
    """Cells "fitted on" and "scored on"."""

    def span(counts: Sequence[int]) -> str:
        return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"

    train, test = span(folds["train"]), span(folds["test"])
    if folds["kind"] == "official":
        out = f", {folds['left_out']} left out" if folds["left_out"] else ""
        return f"{train} (official split{out}) | {test}"
    repeats = f" x {folds['repeats']}" if folds["repeats"] > 1 else ""
    return f"{train} in each of {folds['n']}{repeats} {folds['kind']} folds | {test}"


def _settings(summary: Mapping[str, Any]) -> list[str]:
    """What the cells recorded of their trainings; where those of a column differ, a note says so."""
    pretrained = [row["key"] for row in summary["rows"] if row["kind"] == "pretrained"]
    supervised = [row for row in summary["rows"] if row["kind"] == "supervised"]
    titles = {row["key"]: row["title"] for row in summary["rows"]}
    heads = ["column", "pixels", "channels", "epochs", "other settings of the pretraining"]
    heads += [row["title"] for row in supervised]
    lines = [
        "As recorded by the trainings. ConRec is pretrained with reconstruction and maskings, SimCLR without."
        " Supervised training: from random weights, the last epoch counts.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    notes = []
    for column in summary["columns"]:
        recorded = summary["settings"].get(column["key"])
        if not recorded:
            continue
        found: dict[str, dict[str, list[str]]] = {}
        for key in pretrained:
            for name, value in recorded.get(key, {}).items():
                text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
                found.setdefault(name, {}).setdefault(text, []).append(titles[key])
        told = {name: " or ".join(values) for name, values in found.items()}
        others = ", ".join(f"{name} {told[name]}" for name in PRETRAINING[2:] if name in told)
        cells = [*(told.get(name, "") for name in ("image_size", "features", "epochs")), others]
        for row in supervised:
            given = recorded.get(row["key"], {})
            cells.append(", ".join(f"{name} {given[name]}" for name in SUPERVISED if name in given))
        lines.append(f"| {column['title']} | {' | '.join(cells)} |")
        for name, values in found.items():
            if len(values) > 1:
                which = "; ".join(f"{text}: {', '.join(models)}" for text, models in values.items())
                notes.append(f"- {column['title']}: **the models differ in {name}** ({which}).")
    return [*lines, "", *notes]


def _times(summary: Mapping[str, Any]) -> list[str]:
    jobs = summary["jobs"]
    if not jobs:
        return ["Nothing was run yet."]
    machines = sorted({f"{job['machine']}, {job['threads']} threads" for job in jobs})
    versions = {f"{name} {version}" for job in jobs for name, version in job["versions"].items()}
    lines = [
        f"On {'; '.join(machines)}; {', '.join(sorted(versions))}. An evaluation scores all frozen models of its column"
        " at once.",
        "",
        "| column | job | minutes |",
        "|---|---|---|",
    ]
    totals: dict[str, float] = {}
    titles = {column["key"]: column["title"] for column in summary["columns"]}
    frozen = {row["title"] for row in summary["rows"] if row["kind"] != "supervised"}
    for job in jobs:
        what = job["job"]
        if what == "pretraining":
            what = f"pretraining, {job['model']}"
        elif job["model"] in frozen:
            what = "evaluation of the frozen models"
        else:
            what = f"training and evaluation, {job['model']}"
        lines.append(f"| {titles[job['column']]} | {what} | {job['seconds'] / 60:.1f} |")
        totals[job["column"]] = totals.get(job["column"], 0) + job["seconds"]
    lines += [f"| {titles[column]} | all | {seconds / 60:.1f} |" for column, seconds in totals.items()]
    return lines


if __name__ == "__main__":
    sys.exit(main())
