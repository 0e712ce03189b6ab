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

"""Figure 3 of arXiv 2104.04323, scores over the share of labels: ``make figure3``; see experiments/README.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import COLUMNS, PRETRAINED, Column, Job, Lab, Row, command_line, read_json, write_json, write_text

from conrec_monai.evaluation.figures import MODEL_COLORS, check_matplotlib, to_png, to_svg

__all__ = ["main", "markdown", "run", "summarize"]

SCHEMA = 1
FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
REPEATS = 3
# The sets of the publication's figure, and APTOS without the shape of its photographs.
SHOWN = tuple(column for column in COLUMNS if column.key != "retinamnist")
UNTRAINED, SHORTCUT, COLOR = "untrained encoders", "shortcut baseline", "color baseline"
SCORES = {"qwk": "quadratic weighted kappa", "top1": "top-1 accuracy"}
# Colors that the color-blind can tell apart, and markers and dashes for those who print in gray.
GRAY, DARK = "#8b95a0", "#3b444d"
STYLES: dict[str, dict[str, Any]] = {
    "ConRec U-net": {"color": MODEL_COLORS[0], "marker": "o", "linewidth": 2.0, "zorder": 5},
    "SimCLR Attention U-net": {"color": MODEL_COLORS[1], "marker": "^", "linewidth": 1.6, "zorder": 4},
    "SimCLR U-net": {"color": MODEL_COLORS[2], "marker": "s", "linewidth": 1.6, "zorder": 4},
    UNTRAINED: {"color": GRAY, "marker": "D", "linewidth": 1.4, "linestyle": "--", "zorder": 3},
    SHORTCUT: {"color": DARK, "marker": "v", "linewidth": 1.2, "linestyle": ":", "zorder": 3},
    COLOR: {"color": "#b0548c", "marker": "P", "linewidth": 1.2, "linestyle": "-.", "zorder": 3},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see :func:`common.command_line`."""
    text = "Scores the pretrained encoders of Table 1 over the share of labels, and draws Figure 3."
    return command_line(run, "figure3", SHOWN, PRETRAINED, text, arguments)


def run(lab: Lab, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Runs what is not done yet; writes ``figure3.json``, ``figure3.png``, ``figure3.svg`` and ``figure3.md``.

    Raises:
        ValueError, OSError: when a job fails, or matplotlib is missing.
    """
    check_matplotlib()
    lab.run(list(_jobs(lab, columns, rows)))
    for column in columns:
        if lab.dataset(column) is None:
            lab.progress(f"{column.key}: absent, {lab.absence(column)}")
    summary = summarize(lab)
    write_json(lab.results / "figure3.json", summary)
    write_text(lab.results / "figure3.md", markdown(summary))
    figure = draw(summary)
    (lab.results / "figure3.png").write_bytes(to_png(figure))
    write_text(lab.results / "figure3.svg", to_svg(figure))


def _jobs(lab: Lab, columns: Sequence[Column], rows: Sequence[Row]) -> Iterator[Job]:
    planned = set()
    for column in columns:
        if lab.dataset(column) is None:
            continue
        for row in rows:
            if (column.source, row.key) not in planned:
                planned.add((column.source, row.key))
                yield lab.pretraining_job(column, row)
        yield _curve_job(lab, column)


def _curve_job(lab: Lab, column: Column) -> Job:
    folder = _folder(lab, column)
    arguments = lab.arguments(column, protocols=["linear"], fractions=FRACTIONS, fraction_repeats=REPEATS)

    def done() -> bool:
        return lab.evaluated(folder, lab.encoders(column), arguments)

    def work() -> None:
        lab.evaluate(folder, lab.encoders(column), arguments)

    return Job(f"{column.key}: scores over the share of labels", done, work)


def _folder(lab: Lab, column: Column) -> Path:
    return lab.evaluation(column, "fractions")


def summarize(lab: Lab) -> dict[str, Any]:
    """The figure as plain values, from the evaluations in the folder of results: the content of ``figure3.json``."""
    panels = []
    for column in SHOWN:
        folder = _folder(lab, column)
        metrics, job = read_json(folder / "metrics.json"), read_json(folder / "job.json")
        panel: dict[str, Any] = {"column": column.key, "title": column.title, "status": "done"}
        if metrics is None or job is None or not job["done"]:
            absent = lab.dataset(column) is None
            panel |= {"status": "absent", "reason": lab.absence(column)} if absent else {"status": None}
        else:
            evaluation = lab.describe_evaluation(folder)
            models = {model["name"]: model for model in metrics["models"]}
            pretraining = [
                {"model": row.title, "sha256": models[row.title]["sha256"], **lab.describe_pretraining(column, row)}
                for row in PRETRAINED
                if row.title in models and lab.dataset(column) is not None
            ]
            panel |= {
                "metric": metrics["metrics"][0],
                "dataset": metrics["dataset"],
                "folds": metrics["folds"],
                "curves": _curves(metrics),
                "train_images": _train_images(metrics),
                "statements": metrics["statements"],
                "jobs": [*pretraining, evaluation],
            }
        panels.append(lab.portable(panel))
    return {
        "schema": SCHEMA,
        "preset": lab.preset.name,
        "command": lab.portable(lab.command),
        "fractions": list(FRACTIONS),
        "repeats": REPEATS,
        "panels": panels,
    }


def _curves(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A curve per model, standardized linear model; the untrained encoders with attention pooling make one."""
    metric = metrics["metrics"][0]
    entries = [e for e in metrics["results"] if (e["protocol"], e["variant"]) == ("linear", "standardized")]
    members = {row.title: [row.title] for row in PRETRAINED}
    untrained = [m for m in metrics["models"] if m["kind"] == "untrained"]
    attention = [m for m in untrained if m["architecture"].endswith("attention pooling")]
    members[UNTRAINED] = [model["name"] for model in attention or untrained]
    members |= {SHORTCUT: [SHORTCUT], COLOR: [COLOR]}
    curves = []
    for name, models in members.items():
        points = []
        for fraction in sorted({entry["fraction"] for entry in entries}):
            scores = [e["metrics"][metric] for e in entries if e["model"] in models and e["fraction"] == fraction]
            known = [score["mean"] for score in scores if score["mean"] is not None]
            if not known:
                continue
            # Of several encoders: from the lowest of their intervals to the highest.
            bounds = [bound for score in scores for bound in score["interval"] or [] if bound is not None]
            points.append(
                {
                    "fraction": fraction,
                    "value": sum(known) / len(known),
                    "interval": [min(bounds), max(bounds)] if bounds else None,
                    "values": known,
                }
            )
        if points:
            curves.append({"name": name, "models": models, "points": points})
    return curves


def _train_images(metrics: Mapping[str, Any]) -> list[dict[str, float]]:
    """The mean number of training images of each share; empty for an evaluation that did not record it."""
    found = {e["fraction"]: e["train_images"] for e in metrics["results"] if e.get("train_images") is not None}
    return [{"fraction": fraction, "mean": found[fraction]} for fraction in sorted(found)]


def draw(summary: Mapping[str, Any]) -> Any:
    """The figure: a panel per data set, a curve per model, a band per interval."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        **matplotlib.rcParamsDefault,
        "backend": "agg",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.edgecolor": GRAY,
        "grid.color": "#e3e7eb",
        "grid.linewidth": 0.6,
        "svg.fonttype": "none",
        "svg.hashsalt": "conrec",
    }
    with matplotlib.rc_context(style):
        figure = Figure((10, 6.6), layout="constrained")
        axes = figure.subplots(2, 3)
        handles: dict[str, Any] = {}
        for axis, panel in zip(axes.flat, summary["panels"], strict=True):
            handles |= _draw_panel(axis, panel, summary["fractions"])
        for axis in axes[1]:
            axis.set_xlabel("share of the training labels, %")
        names = [name for name in STYLES if name in handles]
        if names:
            figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=3, frameon=False)
        return figure


def _draw_panel(axis: Any, panel: Mapping[str, Any], fractions: Sequence[float]) -> dict[str, Any]:
    axis.set_title(panel["title"], loc="left", fontweight="bold", fontsize=10)
    axis.set_xscale("log")
    axis.set_xlim(0.8 * min(fractions), 1.25 * max(fractions))
    axis.set_xticks(fractions, [f"{100 * fraction:g}" for fraction in fractions])
    axis.set_xticks([], minor=True)
    if panel["status"] != "done":
        text = "absent" if panel["status"] == "absent" else "not run"
        axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color=GRAY)
        axis.set_yticks([])
        return {}
    axis.grid(axis="y")
    axis.set_ylabel(SCORES.get(panel["metric"], panel["metric"]))
    handles = {}
    for curve in panel["curves"]:
        style, points = STYLES[curve["name"]], curve["points"]
        x = [point["fraction"] for point in points]
        known = [point for point in points if point["interval"]]
        axis.fill_between(
            [point["fraction"] for point in known],
            [point["interval"][0] for point in known],
            [point["interval"][1] for point in known],
            color=style["color"],
            alpha=0.13,
            linewidth=0,
        )
        (handles[curve["name"]],) = axis.plot(x, [point["value"] for point in points], markersize=4, **style)
    return handles


def markdown(summary: Mapping[str, Any]) -> str:
    """The figure's page, from the content of ``figure3.json``."""
    shares = [f"{100 * fraction:g} %" for fraction in summary["fractions"]]
    lines = [
        f"# Figure 3, preset {summary['preset']}",
        "",
        "How many labels does a frozen encoder need? The figure of the publication"
        " ([arXiv 2104.04323](https://arxiv.org/abs/2104.04323)) with the encoders of table 1; its settings differ"
        " (224 px, channels 64-128-256-512, 500 to 2700 epochs, all classes), so compare the order of the curves.",
        "",
        "```bash",
        f"{summary['command']}    # make figure3; goes on where it was stopped",
        "```",
        "",
        "![scores over the share of the training labels](figure3.png)",
        "",
        "*Standardized linear model on the frozen representation, fitted on a share of the training labels (stratified,"
        f" {summary['repeats']} draws of each share per fold, one image per class at least, so that in small sets the"
        " smallest shares can be the same images), scored on all test images. Bands: 95 % intervals, from a bootstrap"
        " over groups of test images; they do not cover the draw of the labels, as the draws of a fold are averaged,"
        " nor another pretraining. Untrained encoders: mean of the seeds of ConRec's architecture"
        " with random weights, the band from the lowest to the highest of their intervals.*",
        "",
        "APTOS, normalized: the same encoders, pretrained on the raw photographs, on images whose field of view is"
        " normalized. The shortcut baseline knows the shape of the field of view, and mean and deviation of each color"
        " channel, the color baseline only the latter; neither sees any content.",
        "",
    ]
    for panel in summary["panels"]:
        lines += [f"## {panel['title']}", ""]
        if panel["status"] != "done":
            lines += [f"Absent: {panel['reason']}." if panel["status"] == "absent" else "Not run.", ""]
            continue
        lines += [f"{SCORES.get(panel['metric'], panel['metric']).capitalize()} x 100.", ""]
        lines += [f"| model | {' | '.join(shares)} |", "|---" * (len(shares) + 1) + "|"]
        if panel.get("train_images"):
            numbers = {number["fraction"]: f"*{number['mean']:.0f}*" for number in panel["train_images"]}
            fractions = summary["fractions"]
            lines.append(f"| *training images, mean* | {' | '.join(numbers.get(f, '') for f in fractions)} |")
        for curve in panel["curves"]:
            cells = {point["fraction"]: _point(point) for point in curve["points"]}
            lines.append(f"| {curve['name']} | {' | '.join(cells.get(f, '') for f in summary['fractions'])} |")
        minutes = panel["jobs"][-1]["seconds"] / 60
        lines += ["", *(f"- {statement}" for statement in panel["statements"])]
        lines += [f"- Scoring took {minutes:.1f} minutes: `{panel['jobs'][-1]['command']}`", ""]
    return "\n".join(lines).rstrip() + "\n"


def _point(point: Mapping[str, Any]) -> str:
    text = f"{100 * point['value']:.1f}"
    if point["interval"]:
        text += f" [{', '.join(f'{100 * bound:.1f}' for bound in point['interval'])}]"
    return text


if __name__ == "__main__":
    sys.exit(main())
