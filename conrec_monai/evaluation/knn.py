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

from typing import Any

import numpy as np

from .folds import Folds
from .linear import Protocol, _check_fold, _checked_labels, _quadratic_weighted_kappa, _score

__all__ = ["knn_evaluation"]

BLOCK = 1024  # test images whose similarities are held at a time


def knn_evaluation(
    features: np.ndarray,
    labels: np.ndarray,
    folds: Folds,
    protocol: Protocol,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> dict[str, Any]:
    """Score frozen representations by the vote of the nearest neighbors: nothing is fitted, nothing is chosen.

    Each of the k training images with the largest cosine similarity s votes for its class with weight
    exp(s / temperature); those that tie with the k-th vote too, so the order of the images does not matter. The class
    with most votes is predicted, the smallest among equals, for grades too. Source: arXiv 1805.01978 (section 3.4,
    temperature 0.07; it has k = 200 for the many images of ImageNet).

    Args:
        features: [N, F] representations, finite. A row of zeros is as similar to all.
        labels: [N] integers in 0 .. num_classes - 1.
        folds: pairs of (training indices, test indices).
        protocol: "diabetic" scores "qwk" and "accuracy", "categorical" the "top1" to "top10" that are a choice; see
            :func:`linear_evaluation`.
        num_classes: number of classes K.
        k: neighbors that vote; all of the training part where it has fewer.
        temperature: the smaller, the more the nearest ones decide.

    Returns:
        ``{metric: {"mean", "std", "folds": [one value per fold]}, ..., "k": [one per fold]}``, as
        :func:`linear_evaluation`.

    Raises:
        ValueError: for a ``k`` or ``temperature`` that is not positive, and as :func:`linear_evaluation`.
    """
    if protocol not in ("diabetic", "categorical"):
        raise ValueError(f'expected protocol "diabetic" or "categorical", got {protocol!r}')
    if k < 1 or not temperature > 0:
        raise ValueError(f"k and temperature must be positive, got {k} and {temperature}")
    features = np.asarray(features, dtype=np.float64)
    labels = _checked_labels(labels, num_classes)
    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(f"expected features [{len(labels)}, F], one row per label, got shape {list(features.shape)}")
    if not np.isfinite(features).all():
        raise ValueError(f"features: row {np.flatnonzero(~np.isfinite(features).all(axis=1))[0]} is not finite")
    if not folds:
        raise ValueError("expected at least one fold, got none")
    for number, (train, test) in enumerate(folds, 1):
        _check_fold(f"fold {number} of {len(folds)}", labels, train, test)

    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = np.divide(features, norms, out=np.zeros_like(features), where=norms > 0)
    scores: list[dict[str, float]] = []
    for train, test in folds:
        one_hot = np.eye(num_classes)[labels[train]]
        blocks = np.split(test, range(BLOCK, len(test), BLOCK))
        votes = np.concatenate([_votes(unit[block] @ unit[train].T, one_hot, k, temperature) for block in blocks])
        if protocol == "diabetic":
            grades = votes.argmax(axis=1)
            accuracy = float((grades == labels[test]).mean())
            scores.append({"qwk": _quadratic_weighted_kappa(labels[test], grades), "accuracy": accuracy})
        else:
            scores.append(_score(labels[test], votes, protocol))

    result: dict[str, Any] = {}
    for metric in scores[0]:
        values = [score[metric] for score in scores]
        result[metric] = {"mean": float(np.mean(values)), "std": float(np.std(values)), "folds": values}
    return {**result, "k": [min(k, len(train)) for train, _ in folds]}


def _votes(similarities: np.ndarray, one_hot: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """Votes [N_test, K] for similarities [N_test, N_train] and classes [N_train, K]; the nearest one has weight 1."""
    k = min(k, similarities.shape[1])
    kth = -np.partition(-similarities, k - 1, axis=1)[:, k - 1 : k]
    weights = np.exp((similarities - similarities.max(axis=1, keepdims=True)) / temperature)
    # Similarities of equal images differ in the last bits of their products.
    return np.where(similarities >= kth - 1e-12, weights, 0) @ one_hot
