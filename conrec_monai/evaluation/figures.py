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

"""The figures of the report, drawn by matplotlib (extra ``plots``); each function returns a matplotlib figure."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .metrics import ECE_BINS

__all__ = [
    "ACCENT",
    "MODEL_COLORS",
    "Curve",
    "Interval",
    "calibration",
    "check_matplotlib",
    "confusion_chart",
    "inline_svg",
    "interval_chart",
    "label_curves",
    "line_chart",
    "map_chart",
    "photographs",
    "plain_text",
    "reliability_chart",
    "to_png",
    "to_svg",
]

ACCENT, INK, SOFT, RULE = "#00629b", "#1b2733", "#5b6875", "#d9dfe5"
# Told apart by the color-blind too: after Okabe and Ito, "Color universal design", 2008, without yellow and black.
MODEL_COLORS = (ACCENT, "#d55e00", "#009e73", "#b0548c", "#b97f00", "#3f9fd6")
UNTRAINED, BASELINE = "#98a3ae", "#4a5560"
# The palette "colorblind" of seaborn, which is made of Okabe's and Ito's too.
CLASS_COLORS = (
    *("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"),
    *("#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"),
)
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDTH = 4.4  # inches: two stand beside each other on a page, and one fits a phone
NAMED_CLASSES = 10  # of more, the confusion matrix has no text
FONTS = "'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.edgecolor": "#98a3ae",
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold dollars
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: crisp, searchable, in the font of the page
    "svg.hashsalt": "conrec",
    "axes.unicode_minus": True,
}


class Interval(NamedTuple):
    """A value of a model with its interval; what is unknown is None."""

    name: str
    kind: str
    mean: float | None
    low: float | None
    high: float | None


class Curve(NamedTuple):
    """Values of a model over something, and the interval of each; NaN where it is unknown."""

    name: str
    kind: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def check_matplotlib() -> None:
    """Raises a ValueError that says how to install matplotlib when it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError('a report needs matplotlib: pip install "conrec-monai[plots]"') from None


def plain_text(text: Any) -> str:
    """A name as it can stand in SVG and HTML: what no such file may hold is replaced."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", str(text))


def _short(text: str, length: int = 24) -> str:
    """A name that fits a chart: what stands at its end, such as a seed, often tells it from others."""
    text, head = plain_text(text), length // 3
    return text if len(text) <= length else f"{text[:head]}…{text[head + 1 - length :]}"


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    # Whatever the user's own matplotlibrc says.
    parameters: Any = {**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}
    with matplotlib.rc_context(parameters):
        yield


def _figure(height: float, width: float = WIDTH) -> Any:
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def _settle(figure: Any) -> None:
    """Lays the figure out once and for all: each further layout would move it a little."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


@contextmanager
def _saving(figure: Any) -> Iterator[None]:
    with _style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in other scripts
        _settle(figure)
        yield


def to_png(figure: Any, dpi: int = 200) -> bytes:
    """The figure as PNG: the same bytes for the same figure."""
    file = io.BytesIO()
    with _saving(figure):
        figure.savefig(file, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def to_svg(figure: Any, dpi: int = 200) -> str:
    """The figure as an SVG file, photographs in it with this resolution: the same text for the same figure."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with _saving(figure):
        figure.savefig(file, format="svg", dpi=dpi, facecolor="white", metadata=nothing)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", file.getvalue(), flags=re.DOTALL)
    return text.replace("'DejaVu Sans', sans-serif", FONTS)


def inline_svg(svg: str, prefix: str) -> str:
    """An SVG file of :func:`to_svg` as a part of HTML: without prolog and namespaces, in the font of the page.

    Args:
        svg: the file.
        prefix: all ids begin with it, so that they are unique in a page.
    """
    text = svg[svg.index("<svg") :].replace(FONTS, "inherit")
    # Older versions write the shorthand "font", of which "inherit" can be no part.
    text = re.sub(r"font: (?:(\d+|bold) )?([\d.]+px) inherit", _font, text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)  # would hold for the page
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'href="#([^"]*)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", text)
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0]
    opening = f'<svg viewBox="0 0 {width} {height}" width="{float(width) * 4 / 3:.0f}" aria-hidden="true"'
    opening += ' style="stroke-linejoin: round; stroke-linecap: butt">'
    return re.sub(r"<svg[^>]*>", opening, text, count=1).strip()


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}"


def interval_chart(values: Sequence[Interval], metric: str) -> Any:
    """Dots with intervals, a row for each model; a line marks the best baseline."""
    with _style():
        figure = _figure(0.75 + 0.25 * len(values))
        axes = figure.subplots()
        baselines = [v.mean for v in values if v.kind == "baseline" and v.mean is not None]
        if baselines:
            axes.axvline(max(baselines), color=BASELINE, linewidth=0.8, linestyle=(0, (4, 3)))
        colors = _colors([(v.name, v.kind) for v in values])
        for row, value in enumerate(values):
            color = colors[value.name]
            if value.mean is None:
                continue
            if value.low is not None and value.high is not None:
                axes.plot([value.low, value.high], [row, row], color=color, linewidth=2.2, solid_capstyle="round")
            filled = value.kind not in ("untrained", "baseline")
            marker = {"untrained": "o", "baseline": "s", "random": "^", "imagenet": "D"}.get(value.kind, "o")
            axes.plot(
                [value.mean], [row], marker, markersize=6, color=color, markerfacecolor=color if filled else "white"
            )
        axes.set_yticks(range(len(values)), [_short(v.name, 36) for v in values], color=INK)
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlabel(f"{metric}, mean with 95 % interval", loc="right")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        return figure


def _colors(models: Sequence[tuple[str, str]]) -> dict[str, str]:
    """A color for each model: those that were trained have one of their own."""
    trained = [name for name, kind in dict(models).items() if kind not in ("untrained", "baseline")]
    own = {name: MODEL_COLORS[i % len(MODEL_COLORS)] for i, name in enumerate(trained)}
    rest = {"untrained": UNTRAINED, "baseline": BASELINE}
    return {name: own.get(name) or rest[kind] for name, kind in models}


def label_curves(curves: Sequence[Curve], metric: str) -> Any:
    """A metric over the share of the training labels, the intervals as bands."""
    with _style():
        figure = _figure(3.5)
        axes = figure.subplots()
        colors = _colors([(c.name, c.kind) for c in curves])
        trained = [c.name for c in curves if c.kind not in ("untrained", "baseline")]
        dashes = iter(("--", ":", "-."))
        labelled: set[str] = set()
        for curve in curves:
            color = colors[curve.name]
            if curve.kind == "untrained":
                style: dict[str, Any] = {"linewidth": 1, "label": "untrained encoders"}
            elif curve.kind == "baseline":
                style = {"linewidth": 1.4, "linestyle": next(dashes, "--"), "label": _short(curve.name)}
            else:
                marker = MARKERS[trained.index(curve.name) % len(MARKERS)]
                style = {"linewidth": 1.8, "marker": marker, "markersize": 4.5, "label": _short(curve.name)}
                axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.16, linewidth=0)
            if style["label"] in labelled:
                style["label"] = None
            labelled.add(style["label"])
            axes.plot(curve.x, curve.mean, color=color, **style)
        shares = sorted({x for c in curves for x in c.x})
        axes.set_xscale("log")
        axes.set_xticks(shares, [f"{100 * share:g}" for share in shares])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("share of the training labels, %")
        axes.set_ylabel(metric)
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
        return figure


def confusion_chart(counts: np.ndarray, classes: Sequence[str]) -> Any:
    """A confusion matrix [K, K], rows the labels: counts, and the shares of each row as color."""
    from matplotlib.colors import LinearSegmentedColormap

    with _style():
        size = len(counts)
        figure = _figure(3.7)
        axes = figure.subplots()
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        colors = LinearSegmentedColormap.from_list("accent", ["#ffffff", "#b9d6e8", ACCENT, "#003a5e"])
        edges = np.arange(size + 1) - 0.5
        axes.pcolormesh(edges, edges, shares, cmap=colors, vmin=0, vmax=1, linewidth=0)  # stays a drawing in SVG
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        if size <= NAMED_CLASSES:
            names = [_short(_numbered(i, name), 20) for i, name in enumerate(classes)]
            axes.set_yticks(range(size), names)
            axes.set_xticks(range(size), [str(i) for i in range(size)])
            font = 9 if size <= 5 else 7
            for i, j in np.ndindex(size, size):
                color = "white" if shares[i, j] > 0.45 else INK
                axes.text(
                    j,
                    i,
                    f"{counts[i, j]}\n{100 * shares[i, j]:.0f} %",
                    ha="center",
                    va="center",
                    fontsize=font,
                    color=color,
                )
            axes.set_xticks(np.arange(1, size) - 0.5, minor=True)
            axes.set_yticks(np.arange(1, size) - 0.5, minor=True)
            axes.grid(which="minor", color="white", linewidth=1.5)
            axes.tick_params(which="minor", length=0)
        else:
            for axis in (axes.xaxis, axes.yaxis):
                axis.get_major_locator().set_params(integer=True)
        return figure


def _numbered(number: int, name: str) -> str:
    return name if name == str(number) else f"{number} {name}"


def calibration(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bins of a reliability diagram, as :func:`conrec_monai.evaluation.metrics.ece` has them.

    Args:
        confidence: [n] probability of the predicted class.
        correct: [n] whether it is right.

    Returns:
        Of each of 15 bins the number of images, their mean confidence and the share that is right (NaN where empty).
    """
    bins = np.clip(np.ceil(confidence.round(12) * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    counts = np.bincount(bins, minlength=ECE_BINS)
    filled = np.where(counts, counts, np.nan)
    sums = (np.bincount(bins, weights, ECE_BINS) for weights in (confidence, correct.astype(np.float64)))
    mean, share = (values / filled for values in sums)
    return counts, mean, share


def reliability_chart(confidence: np.ndarray, correct: np.ndarray) -> Any:
    """A reliability diagram above the numbers of images."""
    counts, mean, share = calibration(confidence, correct)
    with _style():
        figure = _figure(3.7)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
        left, width = np.arange(ECE_BINS) / ECE_BINS, 1 / ECE_BINS
        above.bar(left, share, width, align="edge", color="#6fa8cb", edgecolor="white", label="share right")
        low, high = np.fmin(share, mean), np.fmax(share, mean)
        above.bar(
            left,
            high - low,
            width,
            low,
            align="edge",
            color="none",
            edgecolor=MODEL_COLORS[1],
            hatch="////",
            linewidth=0.8,
            label="gap to the stated confidence",
        )
        above.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        above.set_ylim(0, 1)
        above.set_xlim(0, 1)
        above.set_ylabel("share right")
        above.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
        below.bar(left, counts, width, align="edge", color=UNTRAINED, edgecolor="white")
        below.set_xlabel("confidence: probability of the predicted class")
        below.set_ylabel("images")
        return figure


def map_chart(points: np.ndarray, labels: np.ndarray, classes: Sequence[str], ordinal: bool) -> Any:
    """A map [n, 2] of images, colored by their class: grades in steps from dark to light, at most 10 classes."""
    import matplotlib

    with _style():
        figure = _figure(4.2)
        axes = figure.subplots()
        counts = np.bincount(labels, minlength=len(classes))
        shown = sorted(np.argsort(-counts, kind="stable")[:NAMED_CLASSES].tolist())
        if ordinal:
            steps = list(matplotlib.colormaps["viridis"](np.linspace(0, 0.93, len(shown))))
        else:
            steps = list(CLASS_COLORS[: len(shown)])
        others = ~np.isin(labels, shown)
        style: dict[str, Any] = {"s": 11, "linewidths": 0.25, "edgecolors": "white"}
        if others.any():
            axes.scatter(*points[others].T, color=RULE, label="other classes", **style)
        for label, color in zip(shown, steps, strict=True):
            if (labels == label).any():
                name = _short(_numbered(label, classes[label]), 22)
                axes.scatter(*points[labels == label].T, color=[color], label=name, **style)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color(RULE)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8.5, markerscale=1.8, handletextpad=0.1)
        return figure


def line_chart(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str) -> Any:
    """A line for each model over the epochs."""
    from matplotlib.ticker import MaxNLocator

    with _style():
        figure = _figure(2.7)
        axes = figure.subplots()
        for i, (name, (x, y)) in enumerate(lines.items()):
            if not len(x):  # a model keeps its color in all charts
                continue
            color, marker = MODEL_COLORS[i % len(MODEL_COLORS)], MARKERS[i % len(MARKERS)]
            axes.plot(
                x, y, color=color, linewidth=1.7, marker=marker if len(x) <= 40 else None, markersize=4,
                label=_short(name, 30),
            )  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_title(title, loc="left", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.grid(axis="y")
        if len(lines) > 1:
            figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
        return figure


def photographs(columns: Sequence[tuple[str, Tensor]], rows: Sequence[str] = ()) -> Any:
    """A grid of photographs.

    Args:
        columns: title and images BCHW of each column, 1 or 3 channels, values in [0, 1].
        rows: [B] titles of the rows; none by default.
    """
    with _style():
        count = len(columns[0][1])
        left = 0.0 if not rows else 0.42 + 0.062 * max(len(_short(row, 20)) for row in rows)
        side = (WIDTH - left) / len(columns)
        figure = _figure(side * count + 0.3)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, hspace=0.0, wspace=0.0)
        grid = figure.subplots(count, len(columns), squeeze=False)
        for column, (title, images) in enumerate(columns):
            for row, image in enumerate(images.detach().float().cpu().clamp(0, 1).numpy()):
                axes = grid[row, column]
                pixels = np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))
                # Small images keep their pixels, large ones are brought to the size of the print.
                axes.imshow(pixels, interpolation="none" if image.shape[-1] <= 128 else "antialiased")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
                if row == 0:
                    axes.set_title(title, color=SOFT, fontsize=9, pad=3)
                if column == 0 and rows:
                    axes.set_ylabel(_short(rows[row], 20), rotation=0, ha="right", va="center", color=INK)
        return figure
