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
from typing import Any, Literal

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from .folds import Folds, make_folds
from .metrics import METRICS, metric_names
from .predictions import FoldPrediction, Predictions, grades_from_probabilities

__all__ = ["cumulative_labels", "linear_evaluation", "linear_predictions"]

Protocol = Literal["diabetic", "categorical"]

C_GRID = tuple(10.0**exponent for exponent in range(-4, 2))
INNER_FOLDS = 3


def cumulative_labels(grades: np.ndarray, num_classes: int) -> np.ndarray:
    """Ordinal grades as cumulative labels [g >= 0, g >= 1, ..., g >= num_classes - 1].

    Args:
        grades: [N] integers in 0 .. num_classes - 1.
        num_classes: number of grades K.

    Returns:
        [N, K] array of 0 and 1; the first column is all ones.

    Raises:
        ValueError: for a grade outside the range.
    """
    grades = _checked_labels(grades, num_classes)
    return (grades[:, None] >= np.arange(num_classes)).astype(np.int64)


def linear_predictions(
    features: np.ndarray,
    labels: np.ndarray,
    folds: Folds,
    protocol: Protocol,
    standardized: bool,
    num_classes: int,
    groups: Sequence | np.ndarray | None = None,
    seed: int = 0,
) -> Predictions:
    """Predict classes from frozen representations by logistic regression (arXiv 2104.04323, section Experiments).

    ``diabetic`` fits one binary regression per cumulative label, ``categorical`` one multinomial regression.

    Args:
        features: [N, F] representations, finite.
        labels: [N] integers in 0 .. num_classes - 1.
        folds: pairs of (training indices, test indices).
        protocol: "diabetic" for ordinal grades, "categorical" otherwise.
        standardized: False is the published protocol, raw features and C = 1, in which features of a small scale are
            penalized out of the model. True standardizes the features on the training part and chooses C inside it,
            by cross-validation with quadratic weighted kappa or accuracy (the smallest C among equals; C stays 1 where
            no class, or not a second group, allows two inner folds), then fits the whole training part.
        num_classes: number of classes K.
        groups: [N] group of each image, kept together in the inner folds.
        seed: seed of the inner folds.

    Returns:
        The predictions of each fold; their ``settings`` hold the "C" of each.

    Raises:
        ValueError: for shapes that do not match, non-finite features, labels out of range, a fold whose sides are
            empty or overlap, or whose training part has a single class or lacks one that its test part has.
    """
    features, labels = check_features(features, labels, folds, protocol, num_classes)
    if groups is not None and len(groups) != len(labels):
        raise ValueError(f"expected one group per image, got {len(groups)} groups for {len(labels)} images")
    predictions: list[FoldPrediction] = []
    chosen: list[float] = []
    make = FoldPrediction.of_cumulative if protocol == "diabetic" else FoldPrediction.of_classes
    # One BLAS thread: a fit is many small products, and waking up threads for each makes it ten times slower.
    with threadpool_limits(1, user_api="blas"):
        for train, test in folds:
            x_train, x_test, c = features[train], features[test], 1.0
            if standardized:
                train_groups = None if groups is None else np.asarray(groups)[train]
                c = _choose_c(x_train, labels[train], train_groups, protocol, num_classes, seed)
                scaler = StandardScaler().fit(x_train)
                x_train, x_test = scaler.transform(x_train), scaler.transform(x_test)
            # On standardized features Newton's method reaches the same optimum far faster. The published protocol keeps
            # L-BFGS: where features are tiny the result depends on where the solver stops.
            solver = "newton-cg" if standardized else "lbfgs"
            probabilities = _probabilities(x_train, labels[train], x_test, protocol, num_classes, (c,), solver)[0]
            predictions.append(make(np.asarray(test), probabilities))
            chosen.append(c)
    return Predictions(predictions, {"C": chosen})


def linear_evaluation(
    features: np.ndarray,
    labels: np.ndarray,
    folds: Folds,
    protocol: Protocol,
    standardized: bool,
    num_classes: int,
    groups: Sequence | np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The scores of :func:`linear_predictions` that the publication gives.

    Returns:
        ``{metric: {"mean", "std", "folds": [one value per fold]}, ..., "C": [one per fold]}``: quadratic weighted
        kappa ("qwk", 0 where it is undefined: all labels and predictions equal) and "accuracy" for grades; "top1" and
        those of "top3", "top5", "top10" with k below the number of classes for others. "std" is the population
        standard deviation over the folds.

    Raises:
        ValueError: see :func:`linear_predictions`.
    """
    predictions = linear_predictions(features, labels, folds, protocol, standardized, num_classes, groups, seed)
    return summary(np.asarray(labels), predictions, protocol)


def summary(labels: np.ndarray, predictions: Predictions, protocol: Protocol) -> dict[str, Any]:
    """Mean, standard deviation and values over folds of the published metrics; then the settings of the folds."""
    scores = [_score(labels[fold.test], fold.predicted, fold.probabilities, protocol) for fold in predictions.folds]
    result: dict[str, Any] = {}
    for metric in scores[0]:
        values = [score[metric] for score in scores]
        result[metric] = {"mean": float(np.mean(values)), "std": float(np.std(values)), "folds": values}
    return {**result, **predictions.settings}


def check_features(
    features: np.ndarray, labels: np.ndarray, folds: Folds, protocol: str, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Checks what a probe needs; the features as float64, the labels as int64."""
    if protocol not in ("diabetic", "categorical"):
        raise ValueError(f'expected protocol "diabetic" or "categorical", got {protocol!r}')
    features = np.asarray(features, dtype=np.float64)
    labels = _checked_labels(labels, num_classes)
    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(f"expected features [{len(labels)}, F], one row per label, got shape {list(features.shape)}")
    if not np.isfinite(features).all():
        raise ValueError(f"features: row {np.flatnonzero(~np.isfinite(features).all(axis=1))[0]} is not finite")
    check_folds(labels, folds)
    return features, labels


def check_folds(labels: np.ndarray, folds: Folds) -> None:
    """Checks that a classifier can be fitted and scored on each fold.

    Args:
        labels: [N] classes.
        folds: pairs of (training indices, test indices).

    Raises:
        ValueError: naming the fold, when its sides are empty or overlap, or its training part has a single class or
            lacks one that its test part has.
    """
    if not folds:
        raise ValueError("expected at least one fold, got none")
    for number, (train, test) in enumerate(folds, 1):
        _check_fold(f"fold {number} of {len(folds)}", labels, train, test)


def _checked_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"expected labels [N] of integers, got shape {list(labels.shape)} of {labels.dtype}")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise ValueError(f"label of image {wrong[0]} is {labels[wrong[0]]}, expected 0..{num_classes - 1}")
    return labels.astype(np.int64)


def _check_fold(name: str, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> None:
    if not len(train) or not len(test):
        raise ValueError(f"{name} has {len(train)} training and {len(test)} test images, expected at least 1 of each")
    shared = np.intersect1d(train, test)
    if len(shared):
        raise ValueError(f"{name} has {len(shared)} images both in training and in test, the first is {shared[0]}")
    present = np.unique(labels[train])
    missing = np.setdiff1d(labels[test], present)
    if len(missing):
        raise ValueError(
            f"{name} holds no training image of class {missing[0]}, which its test part has; "
            "use fewer folds or leave the class out"
        )
    if len(present) < 2:
        raise ValueError(f"{name} has training images of class {present[0]} alone, expected at least 2 classes")


def _probabilities(
    x_train: np.ndarray,
    labels: np.ndarray,
    x_test: np.ndarray,
    protocol: Protocol,
    num_classes: int,
    cs: Sequence[float],
    solver: str,
    tol: float = 1e-4,
) -> np.ndarray:
    """Probabilities [len(cs), N_test, K] of the cumulative labels or classes, a fit per C, each started from the last.

    A constant target (the first cumulative label, or a class that nobody has) is predicted as that constant.
    """
    result = np.zeros((len(cs), len(x_test), num_classes))
    targets: list[tuple[Any, np.ndarray]]
    if protocol == "diabetic":
        targets = [(slice(k, k + 1), target) for k, target in enumerate(cumulative_labels(labels, num_classes).T)]
    else:
        targets = [(np.unique(labels), labels)]
    for columns, target in targets:
        if (target == target[0]).all():
            result[:, :, columns] = target[0] if protocol == "diabetic" else 1
            continue
        model = LogisticRegression(solver=solver, tol=tol, max_iter=10_000, warm_start=True)
        for i, c in enumerate(cs):
            with warnings.catch_warnings():
                # Newton's method says this where a step no longer improves anything: it has arrived.
                warnings.filterwarnings("ignore", message=".*[Ll]ine [Ss]earch")
                probabilities = model.set_params(C=c).fit(x_train, target).predict_proba(x_test)
            result[i][:, columns] = probabilities[:, 1:] if protocol == "diabetic" else probabilities
    return result


def _choose_c(
    x: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, protocol: Protocol, num_classes: int, seed: int
) -> float:
    """The C of the grid with the best score of the out-of-fold predictions of all inner folds together."""
    n_folds = min(INNER_FOLDS, np.bincount(labels).max(), len(labels) if groups is None else len(np.unique(groups)))
    if n_folds < 2:
        return 1.0
    probabilities = np.zeros((len(C_GRID), len(x), num_classes))
    for train, test in make_folds(labels, groups, n_folds, seed=seed):
        scaler = StandardScaler().fit(x[train])
        # Choosing among decades needs no more than single precision, which halves the time.
        x_train, x_test = (scaler.transform(x[part]).astype(np.float32) for part in (train, test))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            probabilities[:, test] = _probabilities(
                x_train, labels[train], x_test, protocol, num_classes, C_GRID, "newton-cg", tol=1e-3
            )
    scores = []
    for p in probabilities:
        predicted = grades_from_probabilities(p) if protocol == "diabetic" else p.argmax(axis=1)
        scores.append(next(iter(_score(labels, predicted, p, protocol).values())))
    return C_GRID[int(np.argmax(scores))]


def _score(
    labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, protocol: Protocol
) -> dict[str, float]:
    """The published metrics of the protocol; the first one is the one that chooses C."""
    names = ["qwk", "accuracy"]
    if protocol == "categorical":
        names = [name for name in metric_names(False, probabilities.shape[1]) if name.startswith("top")]
    return {name: METRICS[name](labels, predicted, probabilities) for name in names}
