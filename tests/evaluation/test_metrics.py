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

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from conrec_monai.evaluation.metrics import (
    CATEGORICAL_METRICS,
    METRICS,
    ORDINAL_METRICS,
    accuracy,
    auroc,
    balanced_accuracy,
    brier,
    ece,
    higher_is_better,
    metric_names,
    qwk,
    referable_sensitivity,
    top1,
    top3,
)
from conrec_monai.evaluation.predictions import grades_from_probabilities

pytestmark = pytest.mark.filterwarnings("error")

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


def make_case(n: int, k: int, seed: int, steps: int = 0) -> Case:
    """Labels, predictions and probabilities; these are multiples of 1 / steps, so that many tie, unless steps is 0."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    if steps:
        probabilities = rng.multinomial(steps, np.full(k, 1 / k), size=n) / steps
    else:
        probabilities = rng.dirichlet(np.ones(k), size=n)
    return labels, np.where(rng.random(n) < 0.3, labels, probabilities.argmax(axis=1)), probabilities


# What scikit-learn says, or a plain loop where it has no such metric; with sample weights.


def sk_qwk(labels: np.ndarray, predicted: np.ndarray, p: np.ndarray, w: np.ndarray) -> float:
    if len(np.unique(np.concatenate([labels, predicted]))) == 1:
        return 0.0
    # All grades are named: of missing ones scikit-learn closes the gap, as if grade 3 were next to grade 1.
    grades = np.arange(p.shape[1])
    return sk.cohen_kappa_score(labels, predicted, labels=grades, weights="quadratic", sample_weight=w)


def sk_balanced(labels: np.ndarray, predicted: np.ndarray, p: np.ndarray, w: np.ndarray) -> float:
    return sk.recall_score(
        labels, predicted, labels=np.unique(labels), average="macro", sample_weight=w, zero_division=0
    )


def sk_auroc(labels: np.ndarray, predicted: np.ndarray, p: np.ndarray, w: np.ndarray) -> float:
    present = np.unique(labels)
    if len(present) == 1:
        return np.nan
    return float(np.mean([sk.roc_auc_score(labels == c, p[:, c], sample_weight=w) for c in present]))


def sk_sensitivity(labels: np.ndarray, predicted: np.ndarray, p: np.ndarray, w: np.ndarray) -> float:
    if (labels >= 2).all() or (labels < 2).all():
        return np.nan
    score = p[:, 2:].sum(axis=1).round(12)
    fpr, tpr, _ = sk.roc_curve(labels >= 2, score, sample_weight=w, drop_intermediate=False)
    return float(tpr[1 - fpr >= 0.9 - 1e-9].max())


def loop_ece(labels: np.ndarray, predicted: np.ndarray, p: np.ndarray, w: np.ndarray) -> float:
    confidence = p[np.arange(len(labels)), predicted]
    total = 0.0
    for b in range(15):
        inside = (confidence > b / 15 + 1e-12) & (confidence <= (b + 1) / 15 + 1e-12) | (confidence == 0) & (b == 0)
        if w[inside].sum():
            share = np.average((labels == predicted)[inside], weights=w[inside])
            total += w[inside].sum() * abs(share - np.average(confidence[inside], weights=w[inside]))
    return total / w.sum()


def loop_brier(labels: np.ndarray, predicted: np.ndarray, p: np.ndarray, w: np.ndarray) -> float:
    per_image = [sum((p[i, c] - (c == label)) ** 2 for c in range(p.shape[1])) for i, label in enumerate(labels)]
    return float(np.average(per_image, weights=w))


def sk_top(k: int):  # noqa: ANN201
    def top(labels: np.ndarray, predicted: np.ndarray, p: np.ndarray, w: np.ndarray) -> float:
        # Ties go to the first classes: make them a little more probable.
        if k >= p.shape[1]:
            return 1.0
        p = p - 1e-9 * np.arange(p.shape[1])
        return sk.top_k_accuracy_score(labels, p, k=k, labels=np.arange(p.shape[1]), sample_weight=w)

    return top


REFERENCES = {
    "qwk": sk_qwk,
    "accuracy": lambda labels, predicted, p, w: sk.accuracy_score(labels, predicted, sample_weight=w),
    "balanced_accuracy": sk_balanced,
    "auroc": sk_auroc,
    "referable_sensitivity": sk_sensitivity,
    "ece": loop_ece,
    "brier": loop_brier,
    **{f"top{k}": sk_top(k) for k in (1, 3, 5, 10)},
}


@pytest.mark.parametrize("name", METRICS)
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 40), st.integers(3, 12), st.integers(0, 10**6), st.sampled_from([0, 3, 10]))
def test_metrics_match_their_references(name: str, n: int, k: int, seed: int, steps: int) -> None:
    labels, predicted, probabilities = make_case(n, k, seed, steps)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=2)
    fractions = rng.random((1, n))

    expected = REFERENCES[name](labels, predicted, probabilities, np.ones(n))
    assert METRICS[name](labels, predicted, probabilities) == pytest.approx(expected, abs=1e-9, nan_ok=True)
    weighted = METRICS[name](labels, predicted, probabilities, weights)
    assert weighted.shape == (2,)
    for value, w in zip(weighted, weights, strict=True):
        # A whole weight counts an image so many times.
        rows = np.repeat(np.arange(n), w)
        repeated = METRICS[name](labels[rows], predicted[rows], probabilities[rows])
        expected = REFERENCES[name](labels[rows], predicted[rows], probabilities[rows], np.ones(n))
        assert value == pytest.approx(repeated, abs=1e-12, nan_ok=True)
        assert value == pytest.approx(expected, abs=1e-9, nan_ok=True)
    for value, w in zip(METRICS[name](labels, predicted, probabilities, fractions), fractions, strict=True):
        expected = REFERENCES[name](labels, predicted, probabilities, w)
        assert value == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_grading_metrics_match_the_published_implementation(oracles: Path) -> None:
    arrays = np.load(oracles / "grading_metrics.npz")
    for i in range(int(arrays["cases"])):
        probabilities = arrays[f"probabilities_{i}"]
        case = arrays[f"grade_{i}"], grades_from_probabilities(probabilities), probabilities
        assert qwk(*case) == pytest.approx(float(arrays[f"kappa_{i}"]), abs=1e-6)
        assert accuracy(*case) == pytest.approx(float(arrays[f"accuracy_{i}"]), abs=1e-6)


UNIFORM = np.full((4, 4), 0.25)


def test_qwk_by_hand() -> None:
    labels, predicted = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 1])
    # Observed squares 4 / 4; by chance: sum over all 16 pairs, (0 + 1 + 4 + 9) + 2 (1 + 0 + 1 + 4) + (4 + 1 + 0 + 1).
    assert qwk(labels, predicted, UNIFORM) == pytest.approx(1 - (4 / 4) / (32 / 16))
    assert qwk(np.array([2, 2]), np.array([2, 2]), UNIFORM[:2]) == 0
    # A replicate that holds one class alone is undefined, too, also with a weight that is no binary fraction.
    np.testing.assert_array_equal(qwk(labels, predicted, UNIFORM, np.array([[0, 3, 0, 0], [0.1, 0, 0, 0]])), [0, 0])


def test_small_types_do_not_overflow() -> None:
    labels, predicted = np.array([0, 3, 2, 3], np.uint8), np.array([3, 1, 2, 3], np.int8)
    wide = qwk(labels.astype(int), predicted.astype(int), UNIFORM)
    assert qwk(labels, predicted, UNIFORM) == wide


def test_balanced_accuracy_by_hand() -> None:
    labels, predicted = np.array([0, 0, 0, 2]), np.array([0, 0, 1, 2])
    assert balanced_accuracy(labels, predicted, UNIFORM) == pytest.approx((2 / 3 + 1) / 2)


def test_auroc_by_hand() -> None:
    p = np.array([0.1, 0.4, 0.4, 0.9])
    labels = np.array([0, 1, 0, 1])
    # Of 4 pairs, 3 are in order and 1 is a tie.
    probabilities = np.stack([1 - p, p, 0 * p], axis=1)
    assert auroc(labels, labels, probabilities) == pytest.approx(3.5 / 4)
    # Without the second kind of images no class has two sides.
    assert np.isnan(auroc(labels, labels, probabilities, np.array([[1, 0, 1, 0]]))[0])


def test_referable_sensitivity_by_hand() -> None:
    # 10 negatives, of which the threshold may take 1 along: at 0.8 it takes one, at 0.5 two more that tie.
    negative = [0.1] * 7 + [0.5, 0.5, 0.8]
    positive = [0.9, 0.8, 0.5, 0.2]
    score = np.array(negative + positive)
    labels = np.repeat([1, 3], [10, 4])
    probabilities = np.stack([1 - score, 0 * score, score / 2, score / 2], axis=1)
    assert referable_sensitivity(labels, labels, probabilities) == pytest.approx(2 / 4)
    weights = np.ones((3, 14))
    weights[0, 9] = 0  # 9 negatives left, 10 % of which is no image: the threshold is above 0.5, that is 0.8.
    weights[1, 9] = 2  # 11 negatives, 2 of which are at 0.8: the threshold is 0.9.
    weights[2, 10:] = 0
    np.testing.assert_allclose(referable_sensitivity(labels, labels, probabilities, weights), [0.5, 0.25, np.nan])
    assert np.isnan(referable_sensitivity(labels[:10], labels[:10], probabilities[:10]))
    assert np.isnan(referable_sensitivity(labels[10:], labels[10:], probabilities[10:]))
    # When every score ties, the threshold is above all.
    assert referable_sensitivity(labels, labels, np.full((14, 4), 0.25)) == 0


def test_ece_and_brier_by_hand() -> None:
    # The confidence is that of the predicted class, which is not the most probable one in the last row.
    probabilities = np.array([[0.98, 0.02], [0.96, 0.04], [0.7, 0.3], [0.6, 0.4]])
    labels, predicted = np.array([0, 1, 0, 1]), np.array([0, 0, 0, 1])
    bins = (abs(1 + 0 - 0.98 - 0.96), abs(1 - 0.7), abs(1 - 0.4))
    assert ece(labels, predicted, probabilities) == pytest.approx(sum(bins) / 4)
    assert brier(labels, predicted, probabilities) == pytest.approx(2 * (0.02**2 + 0.96**2 + 0.3**2 + 0.6**2) / 4)


def test_ece_bins_hold_their_upper_edge() -> None:
    # 0.4 is the edge of bins 6 and 7: with 0.39 its errors cancel, with 0.41 they would not.
    labels, predicted = np.array([1, 0]), np.array([1, 1])
    assert ece(labels, predicted, np.array([[0.6, 0.4], [0.61, 0.39]])) == pytest.approx(abs(1 - 0.4 - 0.39) / 2)
    assert ece(labels, predicted, np.array([[0.6, 0.4], [0.59, 0.41]])) == pytest.approx((0.6 + 0.41) / 2)


def test_ties_of_top_k_go_to_the_first_classes() -> None:
    probabilities = np.full((12, 12), 1 / 12)
    values = [METRICS[f"top{k}"](np.arange(12), np.zeros(12, int), probabilities) for k in (1, 3, 5, 10)]
    np.testing.assert_allclose(values, [1 / 12, 3 / 12, 5 / 12, 10 / 12])


def test_top1_is_accuracy_of_the_most_probable_class() -> None:
    labels, _, probabilities = make_case(50, 6, 0, steps=4)
    predicted = probabilities.argmax(axis=1)
    assert top1(labels, predicted, probabilities) == accuracy(labels, predicted, probabilities)
    assert top3(labels, predicted, probabilities) > top1(labels, predicted, probabilities)


@pytest.mark.parametrize("name", METRICS)
def test_no_weight_is_undefined(name: str) -> None:
    assert np.isnan(METRICS[name](*make_case(5, 4, 0), np.zeros((1, 5)))[0])


def test_names() -> None:
    assert set(ORDINAL_METRICS) | set(CATEGORICAL_METRICS) == set(METRICS)
    assert metric_names(True, 5) == ORDINAL_METRICS and ORDINAL_METRICS[0] == "qwk"
    assert metric_names(True, 2) == ("qwk", "accuracy", "balanced_accuracy", "auroc", "ece", "brier")
    assert metric_names(False, 11) == CATEGORICAL_METRICS and CATEGORICAL_METRICS[0] == "top1"
    assert metric_names(False, 5) == ("top1", "top3", "balanced_accuracy", "auroc", "ece", "brier")


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_model_is_better(name: str) -> None:
    labels, predicted, probabilities = make_case(60, 12, 1)
    perfect = METRICS[name](labels, labels, np.eye(12)[labels])
    assert perfect == pytest.approx(1.0 if higher_is_better(name) else 0.0)
    poor = METRICS[name](labels, predicted, probabilities)
    assert (poor < perfect) == higher_is_better(name) and poor != perfect


LABELS, PREDICTED, PROBABILITIES = make_case(4, 3, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[:0]}, "accuracy: expected at least one image, got none"),
        ({"labels": LABELS[:3]}, r"expected finite probabilities \[3, K\], got shape \[4, 3\]"),
        ({"labels": LABELS / 1}, r"expected labels \[4\] of integers, got shape \[4\] of float64"),
        ({"labels": np.array([0, 1, 2, 3])}, "labels holds 3, expected 0..2"),
        ({"predicted": np.array([0, 1, 2, -1])}, "predicted holds -1, expected 0..2"),
        ({"predicted": PREDICTED[:3]}, r"expected predicted \[4\] of integers, got shape \[3\]"),
        ({"probabilities": PROBABILITIES * np.nan}, r"shape \[4, 3\] with values that are not finite"),
        ({"weights": np.ones(4)}, r"expected weights \[B, 4\], got shape \[4\]"),
        ({"weights": np.ones((2, 3))}, r"expected weights \[B, 4\], got shape \[2, 3\]"),
        ({"weights": -np.ones((2, 4))}, "finite weights of at least 0"),
        ({"weights": np.array([[1, 1, np.nan, 1]])}, "finite weights of at least 0"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = {"labels": LABELS, "predicted": PREDICTED, "probabilities": PROBABILITIES, "weights": None}
    with pytest.raises(ValueError, match=message):
        accuracy(**(arguments | change))
