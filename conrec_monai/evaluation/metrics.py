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

from collections.abc import Callable
from functools import wraps
from typing import Protocol, overload

import numpy as np

__all__ = [
    "CATEGORICAL_METRICS",
    "METRICS",
    "ORDINAL_METRICS",
    "Metric",
    "accuracy",
    "auroc",
    "balanced_accuracy",
    "brier",
    "ece",
    "higher_is_better",
    "metric_names",
    "qwk",
    "referable_sensitivity",
    "top1",
    "top3",
    "top5",
    "top10",
]

# Diabetic retinopathy is referable from moderate (grade 2) on.
REFERABLE_GRADE = 2
ECE_BINS = 15


class Metric(Protocol):
    """A metric of one test set, under unit weights or under B weightings at once.

    Args:
        labels: [n] integers in 0 .. K - 1.
        predicted: [n] predicted class, integers in 0 .. K - 1.
        probabilities: [n, K] class probabilities.
        weights: [B, n] non-negative weights. An integer weight w counts an image w times, as in a bootstrap.

    Returns:
        The value, or [B] values where weights are given. NaN where it is undefined.

    Raises:
        ValueError: for no image, shapes that do not match, classes out of range, values that are not finite, negative
            weights.
    """

    __name__: str

    @overload
    def __call__(
        self, labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, weights: None = None
    ) -> float: ...
    @overload
    def __call__(
        self, labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
    ) -> np.ndarray: ...


Weighted = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _metric(function: Weighted) -> Metric:
    """A :class:`Metric` from a function that may trust its arguments and always gets weights [B, n]."""

    @wraps(function)
    def metric(
        labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
    ) -> float | np.ndarray:
        labels, predicted = np.asarray(labels), np.asarray(predicted)
        probabilities = np.asarray(probabilities, dtype=np.float64)
        n = len(labels)
        if not n:
            raise ValueError(f"{function.__name__}: expected at least one image, got none")
        if probabilities.ndim != 2 or len(probabilities) != n or not np.isfinite(probabilities).all():
            raise ValueError(
                f"{function.__name__}: expected finite probabilities [{n}, K], got shape {list(probabilities.shape)}"
                + ("" if np.isfinite(probabilities).all() else " with values that are not finite")
            )
        for name, classes in (("labels", labels), ("predicted", predicted)):
            if classes.shape != (n,) or classes.dtype.kind not in "iu":
                found = f"shape {list(classes.shape)} of {classes.dtype}"
                raise ValueError(f"{function.__name__}: expected {name} [{n}] of integers, got {found}")
            wrong = classes[(classes < 0) | (classes >= probabilities.shape[1])]
            if len(wrong):
                expected = f"0..{probabilities.shape[1] - 1}"
                raise ValueError(f"{function.__name__}: {name} holds {wrong[0]}, expected {expected}")
        # Grades are squared and subtracted: not in an unsigned or a short type.
        labels, predicted = labels.astype(np.int64), predicted.astype(np.int64)
        if weights is None:
            return float(function(labels, predicted, probabilities, np.ones((1, n)))[0])
        weights = np.asarray(weights, dtype=np.float64)
        if weights.ndim != 2 or weights.shape[1] != n:
            raise ValueError(f"{function.__name__}: expected weights [B, {n}], got shape {list(weights.shape)}")
        if weights.size and not (weights.min() >= 0 and weights.max() < np.inf):
            raise ValueError(f"{function.__name__}: expected finite weights of at least 0")
        return function(labels, predicted, probabilities, weights)

    return metric  # type: ignore[return-value]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, NaN where the denominator is 0."""
    return numerator / np.where(denominator == 0, np.nan, denominator)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values that are not NaN; NaN where all are."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1))


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of values [n] over the images."""
    return _ratio(weights @ values, weights.sum(axis=1))


@_metric
def qwk(labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Quadratic weighted kappa; 0 where it is undefined (labels and predictions are all one and the same class)."""
    columns = np.stack([np.ones(len(labels)), (labels - predicted) ** 2, labels, labels**2, predicted, predicted**2], 1)
    total, squares, y, yy, p, pp = (weights @ columns).T
    # Squared difference of a label and a prediction drawn independently, times total ** 2.
    chance = total * yy - 2 * y * p + total * pp
    defined = chance > 1e-12 * total**2
    return np.where(total == 0, np.nan, np.where(defined, 1 - total * squares / np.where(defined, chance, 1), 0.0))


@_metric
def accuracy(labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of images whose predicted class is theirs."""
    return _mean((labels == predicted).astype(np.float64), weights)


@_metric
def balanced_accuracy(
    labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Mean recall over the classes that are present."""
    present = np.eye(probabilities.shape[1])[labels]
    return _mean_of_defined(_ratio(weights @ (present * (labels == predicted)[:, None]), weights @ present))


@_metric
def auroc(labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, one class against the rest, mean over the classes that have images on both sides.

    An image of the class and one of the rest with equal probabilities count one half.
    """
    areas = []
    for label in np.unique(labels):
        positive = np.flatnonzero(labels == label)
        score = probabilities[:, label]
        order = np.argsort(score)
        below = np.zeros((len(weights), len(score) + 1))
        np.cumsum(weights[:, order], axis=1, out=below[:, 1:])
        first, end = (np.searchsorted(score[order], score[positive], side) for side in ("left", "right"))
        # Mann and Whitney: the sum of the mid-ranks of the positives, less the part that they have among themselves.
        w = weights[:, positive]
        w_positive, w_negative = w.sum(axis=1), weights @ (labels != label)
        rank_sum = (w * (below[:, first] + below[:, end])).sum(axis=1) / 2
        areas.append(_ratio(rank_sum - w_positive**2 / 2, w_positive * w_negative))
    return _mean_of_defined(np.stack(areas, axis=1))


@_metric
def referable_sensitivity(
    labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Sensitivity at 90 % specificity for referable disease (grade >= 2).

    The score of an image is the probability of grade >= 2. An image is called referable when its score is at least a
    threshold, which is the lowest of the scores (or infinity) that leaves at least 90 % of these images without
    referable disease below it. Images with equal scores are on the same side. NaN where either kind is missing.
    """
    # Rounded, so that sums that are equal but for the order of their terms tie.
    score, place = np.unique(probabilities[:, REFERABLE_GRADE:].sum(axis=1).round(12), return_inverse=True)
    positive = labels >= REFERABLE_GRADE

    def below(side: np.ndarray) -> np.ndarray:
        """Weight of one kind of images [B, scores + 1] below each score, and below infinity."""
        images = np.flatnonzero(side)[np.argsort(place[side], kind="stable")]
        sums = np.zeros((len(weights), len(images) + 1))
        np.cumsum(weights[:, images], axis=1, out=sums[:, 1:])
        return sums[:, np.searchsorted(place[images], np.arange(len(score) + 1))]

    missed, cleared = below(positive), below(~positive)
    # In tenths, so that whole weights compare exactly.
    threshold = np.argmax(10 * cleared >= 9 * cleared[:, -1:], axis=1)
    sensitivity = 1 - _ratio(np.take_along_axis(missed, threshold[:, None], axis=1)[:, 0], missed[:, -1])
    return np.where(cleared[:, -1] == 0, np.nan, sensitivity)


@_metric
def ece(labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error of the probability of the predicted class, in 15 bins of equal width.

    A bin holds its upper edge. Few images per bin raise the value: chance alone takes a perfectly calibrated model
    away from 0.
    """
    confidence = probabilities[np.arange(len(labels)), predicted]
    bins = np.clip(np.ceil(confidence.round(12) * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    gaps = np.eye(ECE_BINS)[bins] * ((labels == predicted) - confidence)[:, None]
    return _ratio(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))


@_metric
def brier(labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Brier score: the squared differences of probabilities and labels, summed over the classes; 0 (best) to 2."""
    return _mean(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1), weights)


def _top(k: int) -> Metric:
    def top(labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
        return _mean((best == labels[:, None]).any(axis=1).astype(np.float64), weights)

    top.__name__ = f"top{k}"
    top.__doc__ = f"Share of images whose class is among the {k} most probable; of equal ones the first classes count."
    return _metric(top)


top1, top3, top5, top10 = (_top(k) for k in (1, 3, 5, 10))

METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (
        *(qwk, accuracy, balanced_accuracy, auroc, referable_sensitivity, ece, brier),
        *(top1, top3, top5, top10),
    )
}
# The first one is the headline, and chooses settings inside the training folds.
ORDINAL_METRICS = ("qwk", "accuracy", "balanced_accuracy", "auroc", "referable_sensitivity", "ece", "brier")
CATEGORICAL_METRICS = ("top1", "top3", "top5", "top10", "balanced_accuracy", "auroc", "ece", "brier")


def metric_names(ordinal: bool, num_classes: int) -> tuple[str, ...]:
    """Names of the metrics that say something about a data set, the headline first.

    Args:
        ordinal: True for grades, False for categories.
        num_classes: number of classes K.

    Returns:
        Keys of ``METRICS``: of ``ORDINAL_METRICS`` without the referable disease where no grade is referable, or of
        ``CATEGORICAL_METRICS`` with those of top1, top3, top5, top10 that leave a class out.
    """
    if ordinal:
        return tuple(n for n in ORDINAL_METRICS if n != "referable_sensitivity" or num_classes > REFERABLE_GRADE)
    return tuple(n for n in CATEGORICAL_METRICS if not n.startswith("top") or int(n[3:]) < num_classes)


def higher_is_better(metric: str) -> bool:
    """False for the metrics that are errors, expected calibration error and Brier score."""
    return metric not in ("ece", "brier")
