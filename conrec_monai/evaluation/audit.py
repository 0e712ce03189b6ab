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
"""What is wrong with a data set, before any score: copies, leaks, damage, and what tells the label without a retina."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from conrec_monai.data import Datalist, read_image
from conrec_monai.data.image_reader import to_channels
from conrec_monai.data.layouts import Item, shown
from conrec_monai.utils import progress_bar

from .duplicates import content_hash, field_patch, linked, near_pairs

__all__ = ["audit", "audit_page", "format_audit"]

SCHEMA = 1
THRESHOLD = 8  # of 255: brighter in any channel is inside the field of view
REDUCED = 256  # pixels of the shorter side at which the field of view is looked at
BLACK = 0.001  # share of pixels above the threshold below which an image is all black
UNIFORM = 2.0  # gray levels: standard deviation of the image at 64 x 64 pixels below which it is blank
CUT = 0.25  # share of an edge of the image that the field of view covers where it is cut off
FULL = 0.97  # share of the image that the field of view covers where there is no dark border
FIT = 0.9  # overlap (intersection over union) of field of view and ellipse that makes a disc
SHAPES = (
    "full disc",
    "cut at top or bottom",
    "cut at left or right",
    "cut both ways",
    "no dark border",
    "no disc",
)
NO_LABEL = "none"
SHOWN = 8  # sizes in a table


class _Field(NamedTuple):
    """The shape of a field of view and, for a disc, its horizontal and vertical half-axis in shares of the image."""

    shape: str
    half_axes: tuple[float, float] | None


class _Look(NamedTuple):
    """What is kept of an image: `reason` only if it cannot be read, all else only if it can."""

    reason: str = ""
    key: str = ""
    size: tuple[int, int] = (0, 0)  # width, height
    blank: str = ""
    field: _Field = _Field("", None)
    patch: torch.Tensor | None = None


def audit(datalist: Datalist, num_workers: int = 2, progress: bool = True) -> dict[str, Any]:
    """Look at every image of a data set and tell what would make a score worthless.

    Args:
        datalist: of :func:`conrec_monai.data.load_datalist`; with its ``on_error="skip"``, what the data names and the
            folder lacks is told as well.
        num_workers: threads that decode. Each image is decoded once, in full, and not kept.
        progress: show progress bars, on a terminal only.

    Returns:
        A dictionary that JSON can hold; docs/audit.md explains its keys. An image is named by its path as `datalist`
        has it (`path#frame` in a file of several pictures), one in memory by its id. All lists follow the order of
        `datalist`.

    Raises:
        ValueError: when there are no images, or `num_workers` is below 1.
    """
    if len(datalist) == 0:
        raise ValueError("the data holds no images to audit")
    if type(num_workers) is not int or num_workers < 1:
        raise ValueError(f"num_workers must be a whole number of at least 1, got {num_workers!r}")
    looks = _look_at_all(datalist, num_workers, progress)
    names = [_name(item) for item in datalist]
    good = [i for i, look in enumerate(looks) if not look.reason]

    equal = _by(good, lambda i: looks[i].key)
    same = [group for group in equal if len(group) > 1]
    first = [group[0] for group in equal]
    pairs = near_pairs([looks[i].patch for i in first], progress)
    near_links = [(first[a], first[b]) for a, b in pairs]
    groups = linked(len(datalist), [*same, *near_links])
    near_images = {i for link in near_links for i in link}
    near = [group for group in groups if near_images & set(group)]

    def named(positions: Iterable[int]) -> list[str]:
        return [names[i] for i in positions]

    own = [
        group
        for group in _by(range(len(datalist)), lambda i: datalist[i].get("group"))
        if datalist[group[0]].get("group") is not None
    ]
    crossed = []
    for kind, candidates in (("duplicates", groups), ("group", own)):
        for group in candidates:
            splits = list(dict.fromkeys(s for i in group if (s := datalist[i]["split"]) is not None))
            if len(splits) > 1:
                name = datalist[group[0]]["group"] if kind == "group" else None
                crossed.append({"kind": kind, "group": name, "splits": splits, "images": named(group)})
    conflicts = []
    for group in groups:
        labels = [datalist[i]["label"] for i in group]
        if len({label for label in labels if label is not None}) > 1:
            conflicts.append({"images": named(group), "labels": labels})
    missing = [entry for entry in datalist.skipped if not os.path.exists(entry["image"])]
    damaged = [entry for entry in datalist.skipped if os.path.exists(entry["image"])]
    info = datalist.info
    return {
        "schema": SCHEMA,
        "dataset": {"path": info.path, "layout": info.name, "ordinal": info.ordinal, "class_names": info.class_names},
        "images": len(datalist),
        "classes": _classes(datalist),
        "exact": [named(group) for group in same],
        "near": [named(group) for group in near],
        "groups": [named(group) for group in groups],
        "own_groups": {"groups": len(own), "images": sum(map(len, own))},
        "conflicting_labels": conflicts,
        "splits_crossed": crossed,
        "unreadable": [{"image": entry["image"], "reason": entry["reason"]} for entry in damaged]
        + [{"image": names[i], "reason": look.reason} for i, look in enumerate(looks) if look.reason],
        "missing": [{"image": entry["image"], "reason": entry["reason"]} for entry in missing],
        "blank": named(i for i in good if looks[i].blank),
        "black": named(i for i in good if looks[i].blank == "black"),
        "field_of_view": _fields(datalist, looks, good),
        "sizes": {
            label: _counts(f"{looks[i].size[0]}x{looks[i].size[1]}" for i in positions)
            for label, positions in _by_label(datalist, good)
        },
        "shortcut": _shortcut(datalist, looks, good),
    }


# --- looking at images ------------------------------------------------------------------------------------------------


def _look_at_all(datalist: Datalist, num_workers: int, progress: bool) -> list[_Look]:
    pool = ThreadPoolExecutor(num_workers)
    try:
        done = pool.map(_look, datalist)
        return list(progress_bar(done, progress, desc="Reading images", total=len(datalist), unit="image"))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the images that are left


def _look(item: Item) -> _Look:
    image = item["image"]
    try:
        if isinstance(image, np.ndarray):
            to_channels(image, 3)  # for its checks
            array = image
        else:
            array = read_image(image, frame=item.get("frame"))
    except (ValueError, OSError) as error:
        return _Look(reason=" ".join(str(error).split()))
    height, width = array.shape[1:]
    pixels = _to_uint8(array)
    shorter = min(height, width)
    if shorter > REDUCED:
        size = [max(1, round(side * REDUCED / shorter)) for side in (height, width)]
        pixels = F.interpolate(pixels[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    mask = pixels.amax(dim=0).numpy() > THRESHOLD
    blank = "black" if mask.mean() < BLACK else "uniform" if _deviation(pixels) < UNIFORM else ""
    return _Look(
        key=content_hash(array),
        size=(width, height),
        blank=blank,
        field=_field_of_view(mask),
        patch=None if blank else field_patch(pixels),
    )


def _to_uint8(array: np.ndarray) -> torch.Tensor:
    if array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    elif array.dtype != np.uint8:
        array = np.rint(array * 255).astype(np.uint8)
    if not array.flags.writeable or min(array.strides) < 0:
        array = array.copy()  # torch takes neither
    return torch.from_numpy(array)


def _deviation(pixels: torch.Tensor) -> float:
    """Return the standard deviation of the image at 64 x 64 pixels, the highest of all channels: noise averages out."""
    small = F.adaptive_avg_pool2d(pixels.float(), (min(64, pixels.shape[1]), min(64, pixels.shape[2])))
    return float(small.flatten(1).std(dim=1, correction=0).max())


def _field_of_view(mask: np.ndarray) -> _Field:
    """Tell the shape of a mask HW."""
    mask = F.avg_pool2d(torch.from_numpy(mask)[None].float(), 5, 1, 2, count_include_pad=False)[0].numpy() > 0.5
    if mask.mean() > FULL:
        return _Field("no dark border", None)
    axes = _ellipse(mask)
    if axes is None:
        return _Field("no disc", None)
    top, bottom, left, right = (edge.mean() > CUT for edge in (mask[:2], mask[-2:], mask[:, :2], mask[:, -2:]))
    return _Field(SHAPES[(top or bottom) + 2 * (left or right)], axes)


def _ellipse(mask: np.ndarray) -> tuple[float, float] | None:
    """Fit an ellipse with upright axes to the border of a mask HW; None where the mask is no disc.

    Returns:
        The horizontal half-axis in widths and the vertical one in heights of the image.
    """
    height, width = mask.shape
    points = []
    for axis, lines in ((0, mask), (1, mask.T)):
        filled = np.flatnonzero(lines.any(axis=1))
        length = lines.shape[1]
        for end in (lines[filled].argmax(axis=1), length - 1 - lines[filled, ::-1].argmax(axis=1)):
            inner = (end > 1) & (end < length - 2)  # where the disc is cut off, its border is not its own
            pair = (end[inner], filled[inner]) if axis == 0 else (filled[inner], end[inner])
            points.append(np.stack(pair, axis=1))
    # From -1 to 1; the center of a pixel is at its coordinate + 0.5.
    border = (np.concatenate(points) + 0.5) / [width / 2, height / 2] - 1
    kept = border
    for _ in range(4):  # what is not on it (the notch, text) is left out step by step
        if len(kept) < 16:
            return None
        terms = np.column_stack([kept**2, kept])
        a, b, c, d = np.linalg.lstsq(terms, np.ones(len(kept)), rcond=None)[0]
        error = np.abs(np.column_stack([border**2, border]) @ [a, b, c, d] - 1)
        kept = border[error <= max(3 * float(np.median(error)), 1e-3)]
    if a <= 0 or b <= 0:
        return None
    x0, y0 = -c / (2 * a), -d / (2 * b)
    scale = 1 + a * x0**2 + b * y0**2
    x = (np.arange(width) + 0.5) / (width / 2) - 1
    y = (np.arange(height) + 0.5) / (height / 2) - 1
    disc = a * (x - x0) ** 2 + b * (y[:, None] - y0) ** 2 <= scale
    if (disc & mask).sum() < FIT * (disc | mask).sum():
        return None
    return float(np.sqrt(scale / a) / 2), float(np.sqrt(scale / b) / 2)


# --- counting ---------------------------------------------------------------------------------------------------------


def _name(item: Item) -> str:
    if isinstance(item["image"], np.ndarray):
        return str(item["id"])
    path = os.fspath(item["image"])
    return f"{path}#{item['frame']}" if "frame" in item else path


def _by(positions: Iterable[int], key: Any) -> list[list[int]]:
    """Group positions by a key, in the order of their first one."""
    result: dict[Any, list[int]] = {}
    for i in positions:
        result.setdefault(key(i), []).append(i)
    return list(result.values())


def _counts(values: Iterable[str]) -> dict[str, int]:
    """Count, the most frequent first, equal counts by name."""
    return dict(sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0])))


def _label_text(label: int | None) -> str:
    return NO_LABEL if label is None else str(label)


def _by_label(datalist: Datalist, positions: Sequence[int]) -> list[tuple[str, list[int]]]:
    groups = _by(positions, lambda i: datalist[i]["label"])
    groups.sort(key=lambda group: (datalist[group[0]]["label"] is None, datalist[group[0]]["label"]))
    return [(_label_text(datalist[group[0]]["label"]), group) for group in groups]


def _classes(datalist: Datalist) -> list[dict[str, Any]]:
    """Return the images of each class, in all and by split; those of no split are counted in "all" alone."""
    names = datalist.info.class_names
    labels = {item["label"] for item in datalist}
    splits = list(dict.fromkeys(item["split"] for item in datalist if item["split"] is not None))
    known = range(len(names)) if names else sorted(label for label in labels if label is not None)
    counts = Counter((item["label"], item["split"]) for item in datalist)
    rows = []
    for label in [*known, *([None] if None in labels else [])]:
        count = sum(n for (value, _), n in counts.items() if value == label)
        name = names[label] if names and label is not None else None
        by_split = {split: counts[label, split] for split in splits}
        rows.append({"label": label, "name": name, "images": count, "splits": by_split})
    return rows


def _fields(datalist: Datalist, looks: Sequence[_Look], good: Sequence[int]) -> dict[str, Any]:
    result = {}
    for label, positions in _by_label(datalist, good):
        axes = [(looks[i].field.half_axes, looks[i].size) for i in positions]
        shares = np.array([half for half, _ in axes if half is not None]).reshape(-1, 2)
        pixels = shares * np.array([size for half, size in axes if half is not None]).reshape(-1, 2)
        counts = Counter(looks[i].field.shape for i in positions)
        result[label] = {
            "images": len(positions),
            "shapes": {shape: counts[shape] for shape in SHAPES if counts[shape]},
            "discs": len(shares),
            "half_axes": [round(v, 4) for v in shares.mean(axis=0).tolist()] if len(shares) else None,
            "half_axes_pixels": [round(v, 1) for v in pixels.mean(axis=0).tolist()] if len(shares) else None,
        }
    return result


def _shortcut(datalist: Datalist, looks: Sequence[_Look], good: Sequence[int]) -> dict[str, float] | None:
    """Return how often a label is guessed right, knowing nothing, the shape of the field of view, or the size.

    The guess is the most common label among all *other* images of that shape or size.
    """
    labelled = [i for i in good if datalist[i]["label"] is not None]
    if len({datalist[i]["label"] for i in labelled}) < 2:
        return None
    total = Counter(datalist[i]["label"] for i in labelled)

    def right(values: dict[int, Any]) -> float:
        counts: dict[Any, Counter[int]] = {}
        for i in labelled:
            counts.setdefault(values[i], Counter())[datalist[i]["label"]] += 1

        def hits(i: int) -> bool:
            label = datalist[i]["label"]
            others = counts[values[i]] if counts[values[i]].total() > 1 else total
            return max(sorted(others), key=lambda k: others[k] - (k == label)) == label

        return round(sum(map(hits, labelled)) / len(labelled), 4)

    return {
        "most_common_label": right(dict.fromkeys(labelled, 0)),
        "field_of_view": right({i: looks[i].field.shape for i in labelled}),
        "size": right({i: looks[i].size for i in labelled}),
    }


# --- telling ----------------------------------------------------------------------------------------------------------


def _verdict(manifest: dict[str, Any]) -> str:
    crossed = manifest["splits_crossed"]
    if not crossed:
        splits = {split for row in manifest["classes"] for split in row["splits"]}
        text = "No leak across splits was found." if len(splits) > 1 else "There are no splits that could leak."
        if (count := len(manifest["conflicting_labels"])) > 0:
            text += (
                f" But {_counted(count, 'group')} of duplicates {'has' if count == 1 else 'have'} conflicting labels."
            )
        elif (count := len(manifest["groups"])) > 0:
            text += f" There {'is' if count == 1 else 'are'} {_counted(count, 'group')} of duplicates."
        return text
    kinds = Counter(entry["kind"] for entry in crossed)
    parts = [
        f"{_counted(kinds[kind], 'group')} {text}"
        for kind, text in (("duplicates", "of duplicates"), ("group", "of the data set"))
        if kinds[kind]
    ]
    images = len({name for entry in crossed for name in entry["images"]})
    return f"Leak: {' and '.join(parts)} ({images} images) lie on both sides of a split."


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _findings(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    def groups(key: str) -> str:
        lists = manifest[key]
        return f"{_counted(len(lists), 'group')}, {sum(map(len, lists))} images" if lists else "none"

    own = manifest["own_groups"]
    black = len(manifest["black"])
    return [
        ("images", str(manifest["images"])),
        (
            "groups of the data set",
            f"{_counted(own['groups'], 'group')}, {own['images']} images" if own["groups"] else "none",
        ),
        ("exact duplicates", groups("exact")),
        ("near duplicates", groups("near")),
        ("both together", groups("groups")),
        (
            "conflicting labels",
            _counted(len(manifest["conflicting_labels"]), "group") if manifest["conflicting_labels"] else "none",
        ),
        ("groups across splits", str(len(manifest["splits_crossed"]) or "none")),
        ("unreadable or truncated", str(len(manifest["unreadable"]) or "none")),
        ("named but missing", str(len(manifest["missing"]) or "none")),
        ("blank", f"{len(manifest['blank'])}, of which {black} all black" if manifest["blank"] else "none"),
    ]


def _class_title(manifest: dict[str, Any], label: str) -> str:
    names = manifest["dataset"]["class_names"]
    if label == NO_LABEL:
        return "no label"
    return shown(f"{label} {names[int(label)]}") if names else label


def _class_table(manifest: dict[str, Any]) -> list[list[str]]:
    rows = manifest["classes"]
    splits = list(rows[0]["splits"])
    table = [["class", *map(shown, splits), "all"]]
    for row in rows:
        title = _class_title(manifest, _label_text(row["label"]))
        table.append([title, *(str(row["splits"][split]) for split in splits), str(row["images"])])
    return table


def _field_table(manifest: dict[str, Any]) -> list[list[str]]:
    fields = manifest["field_of_view"]
    shapes = [shape for shape in SHAPES if any(shape in row["shapes"] for row in fields.values())]
    table = [["class", *shapes, "mean half-axes"]]
    for label, row in fields.items():
        axes = row["half_axes_pixels"]
        cells = [str(row["shapes"].get(shape, 0)) for shape in shapes]
        table.append([_class_title(manifest, label), *cells, f"{axes[0]:.0f} x {axes[1]:.0f} px" if axes else "-"])
    return table


def _size_table(manifest: dict[str, Any]) -> list[list[str]]:
    total: Counter[str] = Counter()
    for counts in manifest["sizes"].values():
        total.update(counts)
    sizes = list(_counts(total.elements()))
    others = len(sizes) - SHOWN
    table = [["class", *sizes[:SHOWN], *([f"{others} others"] if others > 0 else [])]]
    for label, counts in manifest["sizes"].items():
        rest = sum(counts.values()) - sum(counts.get(size, 0) for size in sizes[:SHOWN])
        cells = [str(counts.get(size, 0)) for size in sizes[:SHOWN]]
        table.append([_class_title(manifest, label), *cells, *([str(rest)] if others > 0 else [])])
    return table


def _shortcut_text(manifest: dict[str, Any]) -> str:
    shortcut = manifest["shortcut"]
    if shortcut is None:
        return ""
    return (
        f"The most common label is right for {shortcut['most_common_label']:.1%} of the images; the most common one of"
        f" the same field of view for {shortcut['field_of_view']:.1%}, of the same size for {shortcut['size']:.1%}."
    )


def audit_tables(manifest: dict[str, Any]) -> list[tuple[str, str, list[list[str]]]]:
    """The manifest of :func:`audit` as tables for people.

    Returns:
        Title, an explanation ("" for none) and rows of texts, the first of which holds the heads, of each table.
    """
    shape = (
        "Where the shape differs between classes, the label can be told without looking at the retina. Cut both ways:"
        f" at top or bottom and at left or right. {_shortcut_text(manifest)}"
    ).strip()
    return [
        ("What was found", _verdict(manifest), [["", "found"], *map(list, _findings(manifest))]),
        ("Images by class and split", "", _class_table(manifest)),
        ("Field of view by class", shape, _field_table(manifest)),
        ("Image size by class", "", _size_table(manifest)),
    ]


def format_audit(manifest: dict[str, Any]) -> str:
    """The manifest of :func:`audit` as a short text: what was found, the classes, the field of view by class."""
    lines = [f"{shown(manifest['dataset']['path'])}: {manifest['dataset']['layout']}"]
    lines += [f"  {name + ':':<25} {text}" for name, text in _findings(manifest)]
    for title, table in (("Images", _class_table(manifest)), ("Field of view", _field_table(manifest))):
        lines += ["", title, *_aligned(table)]
    if text := _shortcut_text(manifest):
        lines += ["", text]
    for entry in manifest["unreadable"][:5]:
        lines.append(shown(f"unreadable: {entry['reason']}"))
    lines += ["", _verdict(manifest)]
    return "\n".join(lines)


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --bad: #b3261e; --good: #1b7f3b; --warn: #b97f00; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --good: #7bd88f; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.verdict { border-left: .3rem solid var(--good); background: var(--soft); padding: .6rem 1rem; margin: 1rem 0; }
.verdict.leak { border-color: var(--bad); font-weight: 600; }
.verdict.warn { border-color: var(--warn); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { font-weight: 600; }
details { margin: .5rem 0; }
summary { cursor: pointer; }
li { overflow-wrap: anywhere; font-size: .875rem; margin: .25rem 0; }
.quiet { opacity: .7; font-size: .875rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  .wide { overflow: visible; }
  tr { break-inside: avoid; }
}
"""


def audit_page(manifest: dict[str, Any]) -> str:
    """The manifest of :func:`audit` as one self-contained HTML page without pictures."""
    path = _html(manifest["dataset"]["path"])
    kind = " leak" if manifest["splits_crossed"] else " warn" if manifest["conflicting_labels"] else ""
    (_, verdict, found), *tables = audit_tables(manifest)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Audit of {path}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Audit of {path}</h1><p class=quiet>{_html(manifest['dataset']['layout'])}</p>",
        f'<p class="verdict{kind}">{_html(verdict)}</p>',
        _html_table(found),
        *(
            f"<h2>{title}</h2>{f'<p>{_html(text)}</p>' if text else ''}{_html_table(rows)}"
            for title, text, rows in tables
        ),
        "<h2>Lists</h2>",
        _html_list(
            "Across splits",
            (
                f"{'patient or group ' + shown(e['group']) if e['kind'] == 'group' else 'duplicates'} in"
                f" {', '.join(map(shown, e['splits']))}: {_images(e['images'])}"
                for e in manifest["splits_crossed"]
            ),
        ),
        _html_list(
            "Conflicting labels",
            (
                ", ".join(
                    f"{shown(image)} ({_label_text(label)})"
                    for image, label in zip(e["images"], e["labels"], strict=True)
                )
                for e in manifest["conflicting_labels"]
            ),
        ),
        _html_list("Exact duplicates", map(_images, manifest["exact"])),
        _html_list("Near duplicates", map(_images, manifest["near"])),
        _html_list("Unreadable or truncated", (e["reason"] for e in manifest["unreadable"])),
        _html_list("Named but missing", (e["reason"] for e in manifest["missing"])),
        _html_list("Blank", manifest["blank"]),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _images(names: Iterable[str]) -> str:
    return ", ".join(map(shown, names))


def _html(text: str) -> str:
    return escape(shown(text))


def _html_table(table: Sequence[Sequence[str]]) -> str:
    head, *rows = (
        "".join(f"<{tag}>{_html(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th", *["td"] * len(table)], table, strict=False)
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _html_list(title: str, entries: Iterable[str]) -> str:
    items = [f"<li>{_html(entry)}</li>" for entry in entries]
    if not items:
        return f"<p>{title}: none</p>"
    return f"<details><summary>{title}: {len(items)}</summary><ul>{''.join(items)}</ul></details>"
