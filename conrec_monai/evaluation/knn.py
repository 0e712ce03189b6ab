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
from .linear import Protocol, check_features, summary
from .predictions import FoldPrediction, Predictions

__all__ = ["knn_evaluation", "knn_predictions"]

BLOCK = 1024  # test images whose similarities are held at a time


def knn_predictions(
    features: np.ndarray,
    labels: np.ndarray,
    folds: Folds,
    protocol: Protocol,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Predictions:
    """Predict classes from frozen representations by the vote of nearest neighbors: nothing is fitted or chosen.

    Each of the k training images with the largest cosine similarity s votes for its class with weight
    exp(s / temperature); those that tie with the k-th vote too, so the order of the images does not matter. The class
    with most votes is predicted, the smallest among equals, for grades too. Source: arXiv 1805.01978 (section 3.4,
    temperature 0.07; it has k = 200 for the many images of ImageNet).

    Args:
        features: [N, F] representations, finite. A row of zeros is as similar to all.
        labels: [N] integers in 0 .. num_classes - 1.
        folds: pairs of (training indices, test indices).
        protocol: "diabetic" for ordinal grades, "categorical" otherwise; the prediction is the same.
        num_classes: number of classes K.
        k: neighbors that vote; all of the training part where it has fewer.
        temperature: the smaller, the more the nearest ones decide.

    Returns:
        The predictions of each fold, the shares of the votes as probabilities; their ``settings`` hold the "k" of each.

    Raises:
        ValueError: for a ``k`` or ``temperature`` that is not positive, and as :func:`linear_predictions`.
    """
    if k < 1 or not temperature > 0:
        raise ValueError(f"k and temperature must be positive, got {k} and {temperature}")
    features, labels = check_features(features, labels, folds, protocol, num_classes)

    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = np.divide(features, norms, out=np.zeros_like(features), where=norms > 0)
    predictions = []
    for train, test in folds:
        one_hot = np.eye(num_classes)[labels[train]]
        blocks = np.split(test, range(BLOCK, len(test), BLOCK))
        votes = np.concatenate([_votes(unit[block] @ unit[train].T, one_hot, k, temperature) for block in blocks])
        shares = votes / votes.sum(axis=1, keepdims=True)
        predictions.append(FoldPrediction(np.asarray(test), shares, votes.argmax(axis=1)))
    return Predictions(predictions, {"k": [min(k, len(train)) for train, _ in folds]})


def knn_evaluation(
    features: np.ndarray,
    labels: np.ndarray,
    folds: Folds,
    protocol: Protocol,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> dict[str, Any]:
    """The scores of :func:`knn_predictions`.

    Returns:
        ``{metric: {"mean", "std", "folds": [one value per fold]}, ..., "k": [one per fold]}``, the metrics as
        :func:`linear_evaluation`.

    Raises:
        ValueError: see :func:`knn_predictions`.
    """
    predictions = knn_predictions(features, labels, folds, protocol, num_classes, k, temperature)
    return summary(np.asarray(labels), predictions, protocol)


def _votes(similarities: np.ndarray, one_hot: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """Votes [N_test, K] for similarities [N_test, N_train] and classes [N_train, K]; the nearest one has weight 1."""
    k = min(k, similarities.shape[1])
    kth = -np.partition(-similarities, k - 1, axis=1)[:, k - 1 : k]
    weights = np.exp((similarities - similarities.max(axis=1, keepdims=True)) / temperature)
    # Similarities of equal images differ in the last bits of their products.
    return np.where(similarities >= kth - 1e-12, weights, 0) @ one_hot
