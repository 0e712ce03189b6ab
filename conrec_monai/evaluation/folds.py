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

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

__all__ = ["FoldPlan", "complete_groups", "make_folds", "official_folds", "plan_folds", "split_parts", "subsample"]

Folds = list[tuple[np.ndarray, np.ndarray]]


def complete_groups(groups: Sequence | np.ndarray | None) -> np.ndarray | None:
    """Groups in which an image without one is alone in a group of its own; None where no image has a group."""
    if groups is None or all(group is None for group in groups):
        return None
    names = {group: number for number, group in enumerate(dict.fromkeys(g for g in groups if g is not None))}
    return np.array([len(names) + i if group is None else names[group] for i, group in enumerate(groups)])


def make_folds(
    labels: np.ndarray, groups: Sequence | np.ndarray | None = None, n_folds: int = 5, repeats: int = 1, seed: int = 0
) -> Folds:
    """Stratified, seeded cross-validation folds.

    Args:
        labels: [N] class of each image.
        groups: [N] group of each image (a patient, a set of duplicates). A group never lies on both sides of a fold.
        n_folds: folds per repetition.
        repeats: repetitions, each with its own shuffle.
        seed: the same seed gives the same folds.

    Returns:
        ``repeats * n_folds`` pairs of (training indices, test indices). The test parts of one repetition partition
        the images.

    Raises:
        ValueError: for fewer than two classes, fewer images or groups than folds, or no class with ``n_folds`` images.
    """
    labels = np.asarray(labels)
    if n_folds < 2 or repeats < 1:
        raise ValueError(f"expected n_folds >= 2 and repeats >= 1, got n_folds={n_folds}, repeats={repeats}")
    if len(labels) < n_folds:
        raise ValueError(
            f"{n_folds} folds need at least {n_folds} labelled images, got {len(labels)}; use a smaller n_folds"
        )
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            f"a linear evaluation needs at least 2 classes, all {len(labels)} images have label {classes[0]}"
        )
    if counts.max() < n_folds:
        raise ValueError(
            f"{n_folds} folds: no class has {n_folds} images (most: {counts.max()}); use a smaller n_folds"
        )
    if groups is not None:
        groups = np.asarray(groups)
        if len(groups) != len(labels):
            raise ValueError(f"expected one group per image, got {len(groups)} groups for {len(labels)} images")
        n_groups = len(np.unique(groups))
        if n_groups < n_folds:
            raise ValueError(f"{n_folds} folds need at least {n_folds} groups, got {n_groups}; use a smaller n_folds")

    # One generator for all repetitions: it moves on with each split.
    generator = np.random.RandomState(seed)
    splitter_class = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = splitter_class(n_folds, shuffle=True, random_state=generator)
    with warnings.catch_warnings():
        # A class with fewer images than folds is no mistake as long as each training part holds it, which the
        # evaluation checks.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return [fold for _ in range(repeats) for fold in splitter.split(np.zeros(len(labels)), labels, groups)]


def official_folds(
    splits: Sequence[str],
    groups: Sequence | np.ndarray | None = None,
    train: Sequence[str] = ("train", "training"),
    test: Sequence[str] = ("test",),
) -> Folds:
    """The official split of a data set as a single fold.

    Args:
        splits: [N] name of the split of each image.
        groups: [N] group of each image, which must not lie on both sides.
        train: names of the splits that the linear model is fitted on.
        test: names of the splits that it is scored on. Images of other splits are not used.

    Returns:
        One pair of (training indices, test indices).

    Raises:
        ValueError: when either side has no image, a split is named on both sides, or a group lies on both sides.
    """
    if set(train) & set(test):
        raise ValueError(f"splits named for both training and testing: {sorted(set(train) & set(test))}")
    indices = tuple(np.flatnonzero(np.isin(splits, list(names))) for names in (train, test))
    for names, found in zip((train, test), indices, strict=True):
        if not len(found):
            raise ValueError(f"no image has a split of {list(names)}, found {sorted(set(splits))}")
    if groups is not None:
        both = np.intersect1d(np.asarray(groups)[indices[0]], np.asarray(groups)[indices[1]])
        if len(both):
            raise ValueError(f"{len(both)} groups have images both in {list(train)} and in {list(test)}")
    return [(indices[0], indices[1])]


@dataclass(frozen=True)
class FoldPlan:
    """The folds of an evaluation, which can be written down and used again.

    Attributes:
        folds: pairs of (training indices, test indices).
        kind: "stratified", "grouped" (stratified, a group never crosses), or "official".
        n: folds per repetition.
        repeats: repetitions.
        seed: of the folds.
        left_out: training images of an official split that are left out, as their group is in the test part too.
    """

    folds: Folds
    kind: str
    n: int
    repeats: int
    seed: int
    left_out: int = 0

    def save(self, path: str | os.PathLike, ids: Sequence[str]) -> None:
        """Writes the plan as JSON: the ids of the images, and of each fold the positions among them.

        Args:
            path: of the file.
            ids: [N] identifier of each image.
        """
        content = {
            "schema": 1,
            "kind": self.kind,
            "n": self.n,
            "repeats": self.repeats,
            "seed": self.seed,
            "left_out": self.left_out,
            "ids": list(ids),
            "folds": [{"train": train.tolist(), "test": test.tolist()} for train, test in self.folds],
        }
        Path(path).write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike, ids: Sequence[str]) -> FoldPlan:
        """Reads a plan for these images, whatever their order.

        Args:
            path: of the file.
            ids: [N] identifier of each image.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when it is no such file, or names an image that is not among ``ids``.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no folds at {path}: {'a folder' if path.is_dir() else 'no such file'}.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names: list[str] = content["ids"]
            plan: dict[str, Any] = {name: content[name] for name in ("kind", "n", "repeats", "seed", "left_out")}
            pairs = [(list(map(int, fold["train"])), list(map(int, fold["test"]))) for fold in content["folds"]]
            used = sorted({i for pair in pairs for part in pair for i in part})
            wanted = {i: names[i] for i in used}
            if not pairs or used[0] < 0:
                raise IndexError
        except (ValueError, KeyError, TypeError, IndexError, UnicodeDecodeError):
            raise ValueError(f"{path} is no file of folds, such as the folds.json of an evaluation.") from None
        where = {name: i for i, name in enumerate(ids)}
        missing = [name for name in wanted.values() if name not in where]
        if missing:
            raise ValueError(
                f"{path} has folds of other images: {len(missing)} of its {len(wanted)} are not among the {len(ids)}"
                f" labelled images, such as {missing[0]!r}."
            )
        place = {i: where[name] for i, name in wanted.items()}
        folds = [tuple(np.array([place[i] for i in part], dtype=np.int64) for part in pair) for pair in pairs]
        return cls(folds, **plan)  # type: ignore[arg-type]


def plan_folds(
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    splits: Sequence[str | None] | None = None,
    n_folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
) -> FoldPlan:
    """The official split where there is one, else stratified folds that keep groups together.

    Training images of an official split whose group (a patient, a duplicate) is in the test part are left out.

    Args:
        labels: [N] class of each image.
        groups: [N] group of each image; None where each is alone.
        splits: [N] name of each image's split. When "train" (or "training") and "test" are among them, the first is
            fitted on and the second scored; images of other splits are unused. Else the names are ignored.
        n_folds: see :func:`make_folds`.
        repeats: see :func:`make_folds`.
        seed: see :func:`make_folds`.

    Raises:
        ValueError: see :func:`make_folds`; and when no training image of an official split is left.
    """
    if splits is None or "test" not in splits or not {"train", "training"} & set(splits):
        kind = "stratified" if groups is None else "grouped"
        return FoldPlan(make_folds(labels, groups, n_folds, repeats, seed), kind, n_folds, repeats, seed)
    ((train, test),) = official_folds(["" if split is None else split for split in splits])
    kept = train if groups is None else train[~np.isin(groups[train], groups[test])]
    if not len(kept):
        raise ValueError(f"all {len(train)} training images share their group with a test image; none can be used")
    return FoldPlan([(kept, test)], "official", 1, 1, seed, len(train) - len(kept))


def split_parts(
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    splits: Sequence[str | None] | None = None,
    fold: int | None = 0,
    n_folds: int = 5,
    seed: int = 0,
) -> np.ndarray:
    """Which images a network is trained on, which choose among its epochs, and which are left for its score.

    Args:
        labels: [N] class of each image.
        groups: [N] group of each image; a group is on one side. None where each is alone.
        splits: [N] name of each image's split. An official split (see :func:`plan_folds`) gives the test part, and with
            "val" or "validation" the validation part too.
        fold: which of the stratified folds is the test part, from 0, where there is no official split; None for no test
            part at all, an official one included.
        n_folds: the test part is one of so many folds, the validation part one of so many of the rest.
        seed: of the folds.

    Returns:
        [N] texts: "train", "validation", "test", or "" for images that are in no part: of another official split, or of
        a group that is in the test part, or in an official validation part and this is the training part.

    Raises:
        ValueError: see :func:`make_folds`; and for a fold that is not there, or when no training image is left.
    """
    labels = np.asarray(labels)
    parts = np.full(len(labels), "", dtype="U10")
    rest = np.arange(len(labels))
    names = np.array(["" if split is None else split for split in ([""] * len(labels) if splits is None else splits)])
    if fold is not None:
        plan = plan_folds(labels, groups, splits, n_folds, 1, seed)
        if plan.kind == "official" and fold:
            raise ValueError(f"fold is {fold}, but the data set has an official split: its test part is tested on")
        if not 0 <= fold < len(plan.folds):
            raise ValueError(f"fold must be one of 0 to {len(plan.folds) - 1}, got {fold}")
        rest, test = plan.folds[fold]
        parts[test] = "test"
    declared = np.flatnonzero(np.isin(names, ["val", "validation"]) & (parts == ""))
    if groups is not None:
        declared = declared[~np.isin(groups[declared], groups[parts == "test"])]
    if len(declared) and ("test" in names or "train" in names or "training" in names):
        train = np.setdiff1d(rest, declared)
        if groups is not None:
            train = train[~np.isin(groups[train], groups[declared])]
        if not len(train):
            raise ValueError("no image is left to train on beside those of the validation split")
        parts[train], parts[declared] = "train", "validation"
        return parts
    train, validation = make_folds(labels[rest], None if groups is None else groups[rest], n_folds, 1, seed)[0]
    parts[rest[train]], parts[rest[validation]] = "train", "validation"
    return parts


def subsample(labels: np.ndarray, folds: Folds, fraction: float, repeats: int, seed: int) -> Folds:
    """Folds with a share of the training labels, stratified: for label-efficiency curves.

    Of each class the given share is kept, rounded, and one image at least. The draws of one repetition are nested: what
    is among 5 % is among 10 %.

    Args:
        labels: [N] classes.
        folds: pairs of (training indices, test indices).
        fraction: share of the training images to keep, in (0, 1].
        repeats: draws per fold; of a share of 1 there is one.
        seed: of the draws.

    Returns:
        ``len(folds) * repeats`` pairs, all of the first repetition first.

    Raises:
        ValueError: for a fraction out of its range, or ``repeats`` below 1.
    """
    if not 0 < fraction <= 1 or repeats < 1:
        raise ValueError(f"fraction must be in (0, 1] and repeats at least 1, got {fraction} and {repeats}")
    if fraction == 1:
        return folds
    result = []
    for repeat in range(repeats):
        for number, (train, test) in enumerate(folds):
            order = np.random.RandomState([seed, repeat, number]).permutation(train)
            of_class = [order[labels[order] == label] for label in np.unique(labels[train])]
            kept = np.concatenate([part[: max(1, round(fraction * len(part)))] for part in of_class])
            result.append((np.sort(kept), test))
    return result
