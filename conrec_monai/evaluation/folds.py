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

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

__all__ = ["complete_groups", "make_folds", "official_folds"]

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
        raise ValueError(f"{n_folds} folds need at least {n_folds} labelled images, got {len(labels)}")
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            f"a linear evaluation needs at least 2 classes, all {len(labels)} images have label {classes[0]}"
        )
    if counts.max() < n_folds:
        raise ValueError(f"{n_folds} folds: no class has {n_folds} images (most: {counts.max()}); use fewer folds")
    if groups is not None:
        groups = np.asarray(groups)
        if len(groups) != len(labels):
            raise ValueError(f"expected one group per image, got {len(groups)} groups for {len(labels)} images")
        n_groups = len(np.unique(groups))
        if n_groups < n_folds:
            raise ValueError(f"{n_folds} folds need at least {n_folds} groups, got {n_groups}; use fewer folds")

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
