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

"""Do 95 % intervals hold the truth in 95 % of trials, and does the paired test reject a true null in 5 %?

Each trial draws a new data set: groups (patients) of 1 to 3 images whose grades and whose errors are correlated, with
the grades as frequent as in a screening set, and two equally good models that err differently, overconfident, each a
little off in another direction in each fold. The truth is the mean of the score over many such data sets.

    python benchmarks/intervals.py --help
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from conrec_monai.evaluation.metrics import metric_names
from conrec_monai.evaluation.predictions import FoldPrediction, Predictions
from conrec_monai.evaluation.statistics import bootstrap, compare, interval, score

SHARES = np.array([0.49, 0.10, 0.27, 0.05, 0.09])
# A grade is the number of these cut points at or below a standard normal severity; the first is -infinity.
CUTS = ndtri(1 - np.cumsum(SHARES[::-1])[::-1])
GROUP_SIZES, GROUP_SHARES = [1, 2, 3], [0.4, 0.4, 0.2]
# Of severity, and of the errors of a model, within a group.
CORRELATION = 0.6
# A model believes that its errors are this much smaller than they are.
OVERCONFIDENCE = 0.7
OFFSETS = (0.1, -0.1, 0.05, -0.05, 0.0)
K = len(SHARES)


class Setting(NamedTuple):
    """What is simulated: number of images and folds, size of a model's errors (severity has 1), replicates."""

    images: int = 400
    folds: int = 5
    noise: float = 0.45
    replicates: int = 500


class Trial(NamedTuple):
    """What one data set gave, each [metrics]: score of model a, its intervals [metrics, 3, 2] (that of the library, the
    quantiles of the replicates, and these mirrored at the score), deviation of its replicates, p value of a against b.
    """

    scores: np.ndarray
    intervals: np.ndarray
    deviations: np.ndarray
    p: np.ndarray


def draw(setting: Setting, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[Predictions]]:
    """Labels [N], groups [N] and the predictions of two models."""
    n = setting.images
    groups = np.repeat(np.arange(n), rng.choice(GROUP_SIZES, n, p=GROUP_SHARES))[:n]

    def correlated() -> np.ndarray:
        within = rng.standard_normal(groups[-1] + 1)[groups]
        return np.sqrt(CORRELATION) * within + np.sqrt(1 - CORRELATION) * rng.standard_normal(n)

    severity = correlated()
    labels = (severity[:, None] >= CUTS[1:]).sum(axis=1)
    folds = _folds(labels, groups, setting.folds, rng)
    shared = correlated()  # what makes an image hard for both models
    models = []
    for _ in range(2):
        seen = severity + setting.noise * np.sqrt(0.5) * (shared + correlated())
        expected = seen / (1 + setting.noise**2)
        believed = OVERCONFIDENCE * setting.noise / np.sqrt(1 + setting.noise**2)
        folds_predicted = [
            FoldPrediction.of_cumulative(
                test, ndtr((expected[test, None] + OFFSETS[number % len(OFFSETS)] - CUTS) / believed)
            )
            for number, test in enumerate(folds)
        ]
        models.append(Predictions(folds_predicted))
    return labels, groups, models


def _folds(labels: np.ndarray, groups: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Groups, by their worst grade, dealt out to the folds: as stratified as ``make_folds``, and many times faster."""
    worst = np.zeros(groups[-1] + 1, dtype=int)
    np.maximum.at(worst, groups, labels)
    fold = np.empty(len(worst), dtype=int)
    fold[np.lexsort((rng.random(len(worst)), worst))] = (np.arange(len(worst)) + rng.integers(count)) % count
    return [np.flatnonzero(fold[groups] == k) for k in range(count)]


def true_score(seed: int, setting: Setting) -> np.ndarray:
    """Scores [metrics] of a model on one data set; their mean over many seeds is the truth."""
    labels, _, models = draw(setting, np.random.default_rng([1, seed]))
    return np.array([[s["mean"] for s in score(labels, m, True, K).values()] for m in models]).mean(axis=0)


def trial(seed: int, setting: Setting) -> Trial:
    """One data set, scored as a user would."""
    labels, groups, (a, b) = draw(setting, np.random.default_rng([2, seed]))
    scores = {name: float(s["mean"]) for name, s in score(labels, a, True, K).items()}  # type: ignore[arg-type]
    drawn = bootstrap(labels, a, groups, True, K, setting.replicates, seed)
    compared = compare(labels, a, b, groups, True, K, setting.replicates, seed)
    intervals = []
    for name, value in scores.items():
        quantiles = np.nanquantile(drawn[name], [0.025, 0.975])
        intervals.append([interval(name, value, drawn[name]), quantiles, 2 * value - quantiles[::-1]])
    return Trial(
        np.array(list(scores.values())),
        np.array(intervals),
        np.array([np.nanstd(drawn[name], ddof=1) for name in scores]),
        np.array([compared[name]["p"] for name in scores]),
    )


def simulate(
    setting: Setting, trials: int, truths: int, seed: int, run: Callable[..., Iterable[Any]] = map
) -> dict[str, dict[str, float]]:
    """Coverage and level of each metric.

    Args:
        setting: what is simulated.
        trials: data sets for coverage and level.
        truths: data sets whose mean score is the truth.
        seed: seed; other seeds give other data sets.
        run: ``map``, or that of a pool.

    Returns:
        ``{metric: {"truth", "deviation", "spread", "coverage", "below", "above", "rejected", "percentile",
        "basic"}}``: the true score, standard deviation of the score, the deviation of the replicates (root of the mean
        square) in units of it, share of intervals that hold the truth, of those wholly below and above it, of paired
        tests at 5 % that reject, and of the other two kinds of intervals that hold the truth.
    """
    start = seed * 10**6
    truth = np.mean(list(run(partial(true_score, setting=setting), range(start, start + truths))), axis=0)
    done = list(run(partial(trial, setting=setting), range(start, start + trials)))
    scores, intervals, deviations, p = (np.array(values) for values in zip(*done, strict=True))
    low, high = intervals[..., 0], intervals[..., 1]
    held = ((low <= truth[:, None]) & (truth[:, None] <= high)).mean(axis=0)
    columns = {
        "truth": truth,
        "deviation": scores.std(axis=0),
        "spread": np.sqrt((deviations**2).mean(axis=0)) / scores.std(axis=0),
        "coverage": held[:, 0],
        "below": (high[..., 0] < truth).mean(axis=0),
        "above": (low[..., 0] > truth).mean(axis=0),
        "rejected": (p < 0.05).mean(axis=0),
        "percentile": held[:, 1],
        "basic": held[:, 2],
    }
    return {name: {k: float(v[i]) for k, v in columns.items()} for i, name in enumerate(metric_names(True, K))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0].replace("%", "%%"))
    default = Setting()
    parser.add_argument("--images", type=int, default=default.images, help="images per data set (default %(default)s)")
    parser.add_argument("--folds", type=int, default=default.folds, help="1: one test split (default %(default)s)")
    parser.add_argument("--noise", type=float, default=default.noise, help="errors of the models (default %(default)s)")
    parser.add_argument("--trials", type=int, default=1000, help="(default %(default)s)")
    parser.add_argument("--truths", type=int, default=2000, help="data sets behind the truth (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    args = parser.parse_args()
    setting = default._replace(images=args.images, folds=args.folds, noise=args.noise)
    with get_context("spawn").Pool(os.cpu_count()) as pool:
        run = partial(pool.map, chunksize=10)
        result = simulate(setting, args.trials, args.truths, args.seed, run)
    heads = ["metric", "truth", "deviation", "spread", "coverage %", "below %", "above %", "null rejected %"]
    print(f"| {' | '.join([*heads, '*quantiles*', '*basic*'])} |")
    print("|---" * 10 + "|")
    for name, row in result.items():
        shares = " | ".join(f"{100 * row[k]:.1f}" for k in ("coverage", "below", "above", "rejected"))
        others = " | ".join(f"*{100 * row[k]:.1f}*" for k in ("percentile", "basic"))
        numbers = f"{row['truth']:.3f} | {row['deviation']:.3f} | {row['spread']:.2f}"
        print(f"| {name} | {numbers} | {shares} | {others} |")


if __name__ == "__main__":
    main()
