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

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, t

from .folds import complete_groups
from .metrics import METRICS, metric_names
from .predictions import Predictions

__all__ = ["bootstrap", "compare", "compare_runs", "interval", "paired_differences", "run_differences", "score"]

REPLICATES = 1000
LEVEL = 0.95
# Smallest and largest value; 0 to 1 for the others.
RANGES = {"qwk": (-1.0, 1.0), "brier": (0.0, 2.0)}


def score(
    labels: np.ndarray, predictions: Predictions, ordinal: bool, num_classes: int
) -> dict[str, dict[str, float | list[float]]]:
    """Metrics of a model on the test part of each fold.

    Args:
        labels: [N] integers in 0 .. num_classes - 1, of all images.
        predictions: the predictions of the model; their ``test`` are positions in ``labels``.
        ordinal: True for grades, False for categories (see :func:`metric_names`).
        num_classes: number of classes K.

    Returns:
        ``{metric: {"mean", "std", "folds"}}``: "folds" holds a value per fold, NaN where the metric is undefined there
        (a fold without referable disease, say), "mean" (the number to report) and "std" (population standard
        deviation) are those of the defined ones, NaN where there are none.

    Raises:
        ValueError: for no fold, test positions that are not positions of labels or repeat, and what the metrics raise.
    """
    labels = _checked(labels, predictions, num_classes)
    result: dict[str, dict[str, float | list[float]]] = {}
    for name in metric_names(ordinal, num_classes):
        values = [METRICS[name](labels[f.test], f.predicted, f.probabilities) for f in predictions.folds]
        defined = [value for value in values if not np.isnan(value)] or [np.nan]
        result[name] = {"mean": float(np.mean(defined)), "std": float(np.std(defined)), "folds": values}
    return result


def bootstrap(
    labels: np.ndarray,
    predictions: Predictions,
    groups: Sequence | np.ndarray | None,
    ordinal: bool,
    num_classes: int,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """What :func:`score` could have been on other test images, by a bootstrap over groups.

    A replicate draws as many groups as there are among the tested images, with replacement. An image counts as often
    as its group was drawn, in each fold that tests it (once in each repetition of the folds), and the replicate is the
    mean over the folds of the metric with these weights. The models stay as they are.

    Args:
        labels, predictions, ordinal, num_classes: as in :func:`score`.
        groups: [N] group of each image (a patient, a set of duplicates), None for an image alone; None for no groups.
        replicates: number of replicates B.
        seed: the same seed draws the same groups wherever the same images are tested, so that replicates of two
            models, or of two protocols, are paired.

    Returns:
        ``{metric: [B]}``, NaN where a replicate left the metric undefined in every fold.

    Raises:
        ValueError: for fewer than 2 groups or replicates, another number of groups than labels, and as :func:`score`.
    """
    labels = _checked(labels, predictions, num_classes)
    if replicates < 2:
        raise ValueError(f"expected at least 2 replicates, got {replicates}")
    if groups is not None and len(groups) != len(labels):
        raise ValueError(f"expected one group per image, got {len(groups)} groups for {len(labels)} images")
    complete = complete_groups(groups)
    tested = np.unique(np.concatenate([fold.test for fold in predictions.folds]))
    _, group = np.unique(tested if complete is None else complete[tested], return_inverse=True)
    count = group.max() + 1
    if count < 2:
        raise ValueError(f"all {len(tested)} tested images are of one group, a bootstrap needs at least 2 groups")
    weights = np.zeros((replicates, len(labels)))
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=replicates)
    weights[:, tested] = draws[:, group]

    names = metric_names(ordinal, num_classes)
    values = np.empty((len(names), len(predictions.folds), replicates))
    for j, fold in enumerate(predictions.folds):
        fold_weights = weights[:, fold.test]
        for i, name in enumerate(names):
            values[i, j] = METRICS[name](labels[fold.test], fold.predicted, fold.probabilities, fold_weights)
    # A replicate can leave a metric undefined in one fold: the mean is over the others, as in score().
    defined = ~np.isnan(values)
    totals, counts = np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1)
    return dict(zip(names, np.where(counts, totals / np.maximum(counts, 1), np.nan), strict=True))


def interval(metric: str, estimate: float, replicates: np.ndarray) -> list[float]:
    """95 % interval of a score: the score -/+ 1.96 standard deviations of its replicates, cut at the metric's range.

    Quantiles of the replicates would be off: in small folds a replicate, which holds some images twice and lacks
    others, has a lower kappa and a far higher calibration error than the data it is drawn from. Their spread is
    right, or a little large.

    Args:
        metric: name of the metric.
        estimate: the "mean" of :func:`score`.
        replicates: [B] from :func:`bootstrap`; undefined ones (NaN) are left out.

    Returns:
        [low, high]; NaN where the score is undefined or fewer than 2 replicates are defined.
    """
    low, high = RANGES.get(metric, (0.0, 1.0))
    half = norm.ppf((1 + LEVEL) / 2) * _deviation(replicates)
    return [float(np.clip(estimate + side * half, low, high)) for side in (-1, 1)]


def compare(
    labels: np.ndarray,
    a: Predictions,
    b: Predictions,
    groups: Sequence | np.ndarray | None,
    ordinal: bool,
    num_classes: int,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, dict[str, float | list[float]]]:
    """Paired differences of two models on the same folds.

    Args:
        labels, groups, ordinal, num_classes, replicates, seed: as in :func:`bootstrap`.
        a, b: predictions of the two models, on the same test images in the same folds.

    Returns:
        ``{metric: {"difference", "interval", "p"}}``: score of a less score of b, its 95 % interval [low, high] (the
        difference -/+ 1.96 standard deviations of the differences of the replicates), and the two-sided p value of no
        difference from the same deviation: p < 0.05 just where the interval leaves out 0. Where no replicate differs
        from the others (two equal models, say) the interval is the difference alone, and p is 1 where it is 0 and 0
        where it is not.

    Raises:
        ValueError: for folds that differ, and as :func:`bootstrap`.
    """
    _check_same_folds(a, b)
    scores_a, scores_b = (score(labels, predictions, ordinal, num_classes) for predictions in (a, b))
    drawn_a, drawn_b = (
        bootstrap(labels, predictions, groups, ordinal, num_classes, replicates, seed) for predictions in (a, b)
    )
    return paired_differences(scores_a, drawn_a, scores_b, drawn_b)


def compare_runs(
    labels: np.ndarray,
    a: Sequence[Predictions],
    b: Sequence[Predictions],
    groups: Sequence | np.ndarray | None,
    ordinal: bool,
    num_classes: int,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, dict[str, float | list[float]]]:
    """Paired difference of two methods, each of which was run with several seeds.

    Args:
        labels, groups, ordinal, num_classes, replicates, seed: as in :func:`bootstrap`.
        a, b: predictions of the runs of each method, all on the same test images in the same folds; the two methods may
            have different numbers of runs.

    Returns:
        ``{metric: {"a", "b", "difference", "interval", "p", "deviation_groups", "deviation_runs"}}``: means over the
        runs, their difference, its 95 % interval and p value. Their deviation has the square of two: the variance over
        the replicates of the mean difference (other test images), and for each method the variance between its runs
        over their number (other seeds; 0 for a single run, of which that is not known). As few runs tell little of it,
        the quantile is that of Student's t with the degrees of freedom of Welch and Satterthwaite.

    Raises:
        ValueError: for no run, folds that differ, and as :func:`bootstrap`.
    """
    if not a or not b:
        raise ValueError(f"a comparison needs at least one run of each method, got {len(a)} and {len(b)}")
    for predictions in (*a, *b):
        _check_same_folds(a[0], predictions)
    scores = [[score(labels, p, ordinal, num_classes) for p in runs] for runs in (a, b)]
    drawn = [[bootstrap(labels, p, groups, ordinal, num_classes, replicates, seed) for p in runs] for runs in (a, b)]
    return run_differences(scores[0], drawn[0], scores[1], drawn[1])


def run_differences(
    scores_a: Sequence[dict[str, dict[str, float | list[float]]]],
    drawn_a: Sequence[dict[str, np.ndarray]],
    scores_b: Sequence[dict[str, dict[str, float | list[float]]]],
    drawn_b: Sequence[dict[str, np.ndarray]],
) -> dict[str, dict[str, float | list[float]]]:
    """The result of :func:`compare_runs` from what :func:`score` and :func:`bootstrap` gave for each run.

    Args:
        scores_a, scores_b: scores of the runs of each method on the same folds.
        drawn_a, drawn_b: their replicates, of the same seed.
    """
    scores, drawn = (scores_a, scores_b), (drawn_a, drawn_b)
    result: dict[str, dict[str, float | list[float]]] = {}
    for name in scores_a[0]:
        values = [np.array([float(entry[name]["mean"]) for entry in runs]) for runs in scores]  # type: ignore[arg-type]
        means = [np.mean([entry[name] for entry in runs], axis=0) for runs in drawn]
        of_groups = _deviation(means[0] - means[1])
        variances = [v.var(ddof=1) / len(v) for v in values if len(v) > 1]
        of_runs = _no_rounding(float(np.sqrt(sum(variances))))
        difference, deviation = (
            _no_rounding(float(values[0].mean() - values[1].mean())),
            float(np.hypot(of_groups, of_runs)),
        )
        known_by = [
            v**2 / (len(runs) - 1) for v, runs in zip(variances, (r for r in values if len(r) > 1), strict=True)
        ]
        freedom = deviation**4 / sum(known_by) if of_runs else np.inf  # Welch, Satterthwaite
        half = float(t.ppf((1 + LEVEL) / 2, freedom)) * deviation
        result[name] = {
            "a": float(values[0].mean()),
            "b": float(values[1].mean()),
            "difference": difference,
            "interval": [difference - half, difference + half],
            "p": _p_value(difference, deviation, freedom),
            "deviation_groups": of_groups,
            "deviation_runs": of_runs,
        }
    return result


def paired_differences(
    scores_a: dict[str, dict[str, float | list[float]]],
    drawn_a: dict[str, np.ndarray],
    scores_b: dict[str, dict[str, float | list[float]]],
    drawn_b: dict[str, np.ndarray],
) -> dict[str, dict[str, float | list[float]]]:
    """The result of :func:`compare` from what :func:`score` and :func:`bootstrap` gave for each of the two models.

    Args:
        scores_a, scores_b: scores on the same folds.
        drawn_a, drawn_b: replicates of the same seed.
    """
    result: dict[str, dict[str, float | list[float]]] = {}
    for name in scores_a:
        difference = float(scores_a[name]["mean"]) - float(scores_b[name]["mean"])  # type: ignore[arg-type]
        deviation = _deviation(drawn_a[name] - drawn_b[name])
        half = norm.ppf((1 + LEVEL) / 2) * deviation
        result[name] = {
            "difference": difference,
            "interval": [difference - half, difference + half],
            "p": _p_value(difference, deviation),
        }
    return result


def _p_value(difference: float, deviation: float, freedom: float = np.inf) -> float:
    """Two-sided, of no difference; 1 or 0 where nothing deviates."""
    if deviation > 0 or np.isnan(deviation + difference):
        return float(2 * t.sf(abs(difference) / deviation, freedom))
    return float(difference == 0)


def _check_same_folds(a: Predictions, b: Predictions) -> None:
    if len(a.folds) != len(b.folds):
        raise ValueError(f"a paired comparison needs the same folds, got {len(a.folds)} and {len(b.folds)} of them")
    for number, (fold_a, fold_b) in enumerate(zip(a.folds, b.folds, strict=True), 1):
        if not np.array_equal(fold_a.test, fold_b.test):
            raise ValueError(
                f"a paired comparison needs the same folds, but fold {number} of {len(a.folds)} tests other images, "
                "or in another order"
            )


def _deviation(replicates: np.ndarray) -> float:
    """Standard deviation of the defined replicates; 0 where they differ by rounding alone."""
    defined = replicates[~np.isnan(replicates)]
    if len(defined) < 2:
        return float("nan")
    return _no_rounding(float(np.std(defined, ddof=1)))


def _no_rounding(value: float) -> float:
    """The value; 0 where it is one of rounding alone."""
    return 0.0 if abs(value) <= 1e-12 else float(value)


def _checked(labels: np.ndarray, predictions: Predictions, num_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"expected labels [N] of integers, got shape {list(labels.shape)} of {labels.dtype}")
    if not predictions.folds:
        raise ValueError("expected predictions of at least one fold, got none")
    for number, fold in enumerate(predictions.folds, 1):
        name = f"fold {number} of {len(predictions.folds)}"
        test = np.asarray(fold.test)
        if test.ndim != 1 or test.dtype.kind not in "iu" or not len(test):
            raise ValueError(f"{name}: expected test positions [n], got shape {list(test.shape)} of {test.dtype}")
        if test.min() < 0 or test.max() >= len(labels):
            raise ValueError(f"{name} tests image {test.max()} (first {test.min()}), expected 0..{len(labels) - 1}")
        if len(np.unique(test)) < len(test):
            raise ValueError(f"{name} tests an image twice")
        if np.shape(fold.probabilities) != (len(test), num_classes):
            found = list(np.shape(fold.probabilities))
            raise ValueError(f"{name}: expected probabilities {[len(test), num_classes]}, got shape {found}")
    return labels
