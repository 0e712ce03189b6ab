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

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sklearn
import torch
from torch import nn
from tqdm import tqdm

from .embedding import embed
from .folds import complete_groups, make_folds, official_folds
from .linear import Protocol, linear_evaluation
from .shortcut import shortcut_features

__all__ = ["evaluate", "format_table", "untrained_encoders"]

SHORTCUT = "shortcut baseline"
UNTRAINED = "untrained"
COLUMNS = ("published", "standardized")
WIDTH = 100


def untrained_encoders(make_encoder: Callable[[], nn.Module], seeds: Sequence[int] = (0, 1, 2)) -> dict[str, nn.Module]:
    """Encoders with random weights: what a representation is worth without any training.

    Args:
        make_encoder: builds an encoder with its initial weights.
        seeds: one encoder per seed. The global random generators are left as they were.

    Returns:
        Encoders by name, "untrained, seed 0" and so on, for :func:`evaluate`.
    """
    encoders = {}
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoders[f"{UNTRAINED}, seed {seed}"] = make_encoder()
    return encoders


def evaluate(
    encoders: dict[str, nn.Module],
    images: torch.Tensor,
    labels: Sequence[int] | np.ndarray,
    *,
    ordinal: bool,
    class_names: Sequence[str] | None = None,
    groups: Sequence | np.ndarray | None = None,
    splits: Sequence[str] | None = None,
    n_folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Linear evaluation of frozen encoders, beside the shortcut baseline, all on the same folds.

    Args:
        encoders: modules by name, each from BCHW in [0, 1] to B[F]. Add those of :func:`untrained_encoders`: what an
            untrained encoder reaches is no merit of a pretraining.
        images: uint8 NCHW.
        labels: [N] classes 0 .. K - 1; negative for an unlabeled image, which is left out.
        ordinal: True for grades ("diabetic" protocol), False for classes without order ("categorical").
        class_names: names of the K classes; their numbers when None.
        groups: [N] group of each image (a patient, a set of duplicates), never split by a fold; None for an image
            that has none.
        splits: [N] name of each image's split. When "train" (or "training") and "test" are among them, the model is
            fitted on the first and scored on the second, in place of folds; other images are unused. Else the names
            are ignored.
        n_folds: cross-validation folds.
        repeats: repetitions of the cross-validation.
        seed: seed of the folds.
        batch_size: images per forward pass.
        device: where the encoders run.
        progress: show a progress bar.

    Returns:
        A dictionary that JSON can hold::

            {"schema": 1,
             "protocol": "diabetic" or "categorical",
             "folds": {"n", "repeats", "seed", "kind": "stratified", "grouped" or "official"},
             "images": {"labelled", "unlabelled", "size": [C, H, W]},
             "classes": [{"name", "count"}, ...],
             "rows": [{"name", "features": F, "published": {...}, "standardized": {...}}, ...],
             "versions": {"python", "torch", "scikit-learn", "numpy"}}

        The last row is the shortcut baseline. "published" and "standardized" are results of :func:`linear_evaluation`.

    Raises:
        ValueError: for inputs of different lengths, a label out of range, a name that is taken, and whatever
            :func:`make_folds`, :func:`embed` and :func:`linear_evaluation` raise.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"expected labels [N] of integers, got shape {list(labels.shape)} of {labels.dtype}")
    for name, values in (("labels", labels), ("groups", groups), ("splits", splits)):
        if values is not None and len(values) != len(images):
            raise ValueError(f"expected one of {name} per image, got {len(values)} for {len(images)} images")
    if SHORTCUT in encoders:
        raise ValueError(f"an encoder is named {SHORTCUT!r}, the name of the baseline; rename it")
    labelled = np.flatnonzero(labels >= 0)
    if not len(labelled):
        raise ValueError(f"none of the {len(labels)} images has a label")
    num_classes = len(class_names) if class_names is not None else int(labels.max()) + 1
    if labels.max() >= num_classes:
        i = int(np.argmax(labels >= num_classes))
        raise ValueError(f"label of image {i} is {labels[i]}, expected 0..{num_classes - 1} for {num_classes} classes")

    n_images, size = len(images), list(images.shape[1:])
    images, labels = images[torch.from_numpy(labelled)], labels[labelled]
    known = complete_groups(groups)
    known = None if known is None else known[labelled]
    splits = None if splits is None else np.asarray(splits)[labelled].tolist()
    if splits is not None and "test" in splits and {"train", "training"} & set(splits):
        folds, kind = official_folds(splits, known), "official"
        n_folds, repeats = 1, 1
    else:
        folds, kind = make_folds(labels, known, n_folds, repeats, seed), "stratified" if known is None else "grouped"

    protocol: Protocol = "diabetic" if ordinal else "categorical"
    rows = []
    for name in tqdm([*encoders, SHORTCUT], desc="linear evaluation", disable=None if progress else True):
        if name == SHORTCUT:
            features = shortcut_features(images)
        else:
            features = embed(encoders[name], images, batch_size, device, progress)
        published, standardized = (
            linear_evaluation(features, labels, folds, protocol, standardize, num_classes, known, seed)
            for standardize in (False, True)
        )
        rows.append({"name": name, "features": features.shape[1], "published": published, "standardized": standardized})

    counts = np.bincount(labels, minlength=num_classes).tolist()
    names = [str(i) for i in range(num_classes)] if class_names is None else list(class_names)
    return {
        "schema": 1,
        "protocol": protocol,
        "folds": {"n": n_folds, "repeats": repeats, "seed": seed, "kind": kind},
        "images": {
            "labelled": len(labelled),
            "unlabelled": n_images - len(labelled),
            "size": size,
        },
        "classes": [{"name": name, "count": count} for name, count in zip(names, counts, strict=True)],
        "rows": rows,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "scikit-learn": sklearn.__version__,
            "numpy": np.__version__,
        },
    }


def format_table(result: dict[str, Any]) -> str:
    """The result of :func:`evaluate` as text of at most 100 columns.

    "±" is the standard deviation over folds (in the mean of the untrained encoders: over their means). Below the table
    stands, for each trained encoder, how its standardized score differs, fold by fold, from the untrained ones and from
    the shortcut baseline. It is called better or worse when the mean difference exceeds twice its spread, the
    standard deviation over folds and other encoders; a single split allows no such judgment.
    """
    rows, folds, images = result["rows"], result["folds"], result["images"]
    metrics = [name for name in rows[0]["published"] if name != "C"]
    untrained = [row for row in rows if row["name"].startswith(UNTRAINED)]
    baseline = [row for row in rows if row["name"] == SHORTCUT]
    trained = [row for row in rows if row not in untrained and row not in baseline]

    shown = trained + untrained + ([_mean_row(untrained, metrics)] if len(untrained) > 1 else []) + baseline

    # A spread for the first metric only: with one for each of top-1 to top-10 the table would be too wide.
    several = len(rows[0]["published"][metrics[0]]["folds"]) > 1
    widths = [12 if i == 0 else max(5, len(m)) for i, m in enumerate(metrics)]
    block = sum(widths) + 2 * (len(widths) - 1)
    name_width = min(max(len(row["name"]) for row in shown), WIDTH - 2 * block - 11)
    heads = "  ".join(f"{m:>{w}}" for m, w in zip(metrics, widths, strict=True))
    plan = f"{folds['n']} {folds['kind']} folds x {folds['repeats']}, seed {folds['seed']}"
    text = [
        f"Linear evaluation, {result['protocol']} protocol, {len(result['classes'])} classes, "
        + ("official split" if folds["kind"] == "official" else plan),
        f"{images['labelled']} labelled images; {images['unlabelled']} unlabelled left out",
        "",
        f"{'':{name_width}}  {'':>5}  {'published':^{block}}  {'standardized':^{block}}".rstrip(),
        f"{'encoder':{name_width}}  {'dim':>5}  {heads}  {heads}",
    ]
    for row in shown:
        cells = [
            f"{row[column][m]['mean']:.3f}" + (f"±{row[column][m]['std']:.3f}" if i == 0 and several else "")
            for column in COLUMNS
            for i, m in enumerate(metrics)
        ]
        cells = [f"{cell:>{w}}" for cell, w in zip(cells, widths * len(COLUMNS), strict=True)]
        text.append("  ".join([f"{row['name'][:name_width]:{name_width}}", f"{row['features']:>5}", *cells]))
    for row in trained:
        text += ["", f"{row['name']}, standardized {metrics[0]} on the same folds:"]
        for others, name in ((untrained, "the untrained encoders"), (baseline, "the shortcut baseline")):
            text += [f"  {_comparison(row, others, metrics[0], name)}"] if others else []
    return "\n".join(text)


def _mean_row(rows: list[dict[str, Any]], metrics: list[str]) -> dict[str, Any]:
    """The mean of rows, with the standard deviation over the rows."""
    mean: dict[str, Any] = {"name": f"{UNTRAINED}, mean of {len(rows)}", "features": rows[0]["features"]}
    for column in COLUMNS:
        values = {metric: [row[column][metric]["mean"] for row in rows] for metric in metrics}
        mean[column] = {metric: {"mean": np.mean(v), "std": np.std(v)} for metric, v in values.items()}
    return mean


def _comparison(row: dict[str, Any], others: list[dict[str, Any]], metric: str, name: str) -> str:
    """How the standardized scores of a row differ from those of other rows, fold by fold."""
    scores = np.array(row["standardized"][metric]["folds"])
    differences = np.concatenate([scores - other["standardized"][metric]["folds"] for other in others])
    mean, spread = differences.mean(), differences.std()
    if len(scores) == 1:
        return f"{mean:+.3f} against {name} (one split: no spread over folds to judge it by)"
    verdict = "no clear difference from" if abs(mean) <= 2 * spread else "better than" if mean > 0 else "worse than"
    ahead = f"ahead in {(differences > 0).sum()} of {len(differences)}"
    return f"{mean:+.3f} (spread {spread:.3f}, {ahead}): {verdict} {name}"
