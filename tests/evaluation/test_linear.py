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
from hypothesis.extra import numpy as hnp

from conrec_monai.evaluation import (
    cumulative_labels,
    grades_from_probabilities,
    linear_evaluation,
    make_folds,
    official_folds,
)
from conrec_monai.evaluation.linear import C_GRID

pytestmark = pytest.mark.filterwarnings("error")


def blobs(counts: list[int], features: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Classes along a line in the first feature, the other features noise."""
    labels = np.repeat(np.arange(len(counts)), counts)
    x = np.random.default_rng(seed).normal(size=(len(labels), features))
    x[:, 0] = x[:, 0] * 0.3 + labels * 2
    return x, labels


def test_cumulative_labels_by_hand() -> None:
    expected = [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    np.testing.assert_array_equal(cumulative_labels(np.array([0, 3, 1]), 4), expected)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 8).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.integers(0, k - 1), min_size=1))))
def test_cumulative_labels_round_trip(case: tuple[int, list[int]]) -> None:
    num_classes, grades = case
    labels = cumulative_labels(np.array(grades), num_classes)
    assert labels.shape == (len(grades), num_classes)
    np.testing.assert_array_equal(grades_from_probabilities(labels), grades)


def test_grades_from_probabilities_by_hand() -> None:
    # Exactly 0.5 does not count, a gap is counted over, and nothing above 0.5 is grade 0 rather than -1.
    p = [[0.9, 0.5, 0.1], [0.9, 0.2, 0.8], [0.1, 0.2, 0.3], [1.0, 0.9, 0.51]]
    np.testing.assert_array_equal(grades_from_probabilities(np.array(p)), [0, 1, 0, 2])


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(float, st.tuples(st.integers(1, 20), st.integers(1, 6)), elements=st.floats(0, 1)))
def test_grades_are_in_range(probabilities: np.ndarray) -> None:
    grades = grades_from_probabilities(probabilities)
    assert grades.min() >= 0 and grades.max() < probabilities.shape[1]


def test_grading_metrics_match_the_published_implementation(oracles: Path) -> None:
    from conrec_monai.evaluation.linear import _score

    arrays = np.load(oracles / "grading_metrics.npz")
    for i in range(int(arrays["cases"])):
        grades = arrays[f"grade_{i}"]
        np.testing.assert_array_equal(cumulative_labels(grades, 5), arrays[f"labels_{i}"])
        probabilities = arrays[f"probabilities_{i}"]
        scores = _score(grades, grades_from_probabilities(probabilities), probabilities, "diabetic")
        assert scores["qwk"] == pytest.approx(float(arrays[f"kappa_{i}"]), abs=1e-6)
        assert scores["accuracy"] == pytest.approx(float(arrays[f"accuracy_{i}"]), abs=1e-6)


def test_linear_evaluation_matches_the_published_implementation(oracles: Path) -> None:
    arrays = np.load(oracles / "linear_evaluation.npz")
    x, grades, n = arrays["embeddings"], arrays["grades"], int(arrays["n_train"])
    fold = [(np.arange(n), np.arange(n, len(x)))]
    diabetic = linear_evaluation(x, grades, fold, "diabetic", False, 5)
    categorical = linear_evaluation(x, grades, fold, "categorical", False, 5)
    assert diabetic["qwk"]["mean"] == pytest.approx(float(arrays["diabetic_kappa"]), abs=1e-3)
    assert diabetic["accuracy"]["mean"] == pytest.approx(float(arrays["diabetic_accuracy"]), abs=1e-3)
    assert categorical["top1"]["mean"] == pytest.approx(float(arrays["categorical_accuracy"]), abs=1e-3)
    assert categorical["top3"]["mean"] == pytest.approx(float(arrays["top3"]), abs=1e-3)
    assert list(categorical) == ["top1", "top3", "C"]  # 5 of 5 classes and more are no choice


def test_top_k_by_hand() -> None:
    from conrec_monai.evaluation.linear import _score

    probabilities = np.array([[0.4, 0.3, 0.2, 0.1]] * 4)
    scores = _score(np.arange(4), np.zeros(4, int), probabilities, "categorical")
    assert scores == {"top1": 0.25, "top3": 0.75}
    assert list(_score(np.arange(4), np.arange(4), np.eye(12)[:4], "categorical")) == ["top1", "top3", "top5", "top10"]


@pytest.mark.parametrize("protocol", ["diabetic", "categorical"])
@pytest.mark.parametrize("standardized", [False, True])
def test_separable_classes_are_found_on_every_fold(protocol: str, standardized: bool) -> None:
    x, labels = blobs([30, 20, 25])
    x[:, 0] = x[:, 0] * 10
    result = linear_evaluation(x, labels, make_folds(labels, n_folds=3), protocol, standardized, 3)  # type: ignore[arg-type]
    for metric in set(result) - {"C"}:
        assert len(result[metric]["folds"]) == 3
        assert result[metric]["mean"] == pytest.approx(np.mean(result[metric]["folds"]))
        assert result[metric]["std"] == pytest.approx(np.std(result[metric]["folds"]))
        assert result[metric]["mean"] > 0.95
    assert set(result["C"]) <= set(C_GRID) if standardized else result["C"] == [1.0] * 3


def test_tiny_features_score_only_when_standardized() -> None:
    x, labels = blobs([60, 60, 60])
    folds = make_folds(labels)
    raw, standardized, unscaled = (
        linear_evaluation(f, labels, folds, "diabetic", s, 3)["qwk"]["mean"]
        for f, s in ((x * 1e-4, False), (x * 1e-4, True), (x, True))
    )
    assert raw < 0.3
    assert standardized > 0.9
    assert standardized == pytest.approx(unscaled, abs=1e-6)


def test_c_is_chosen_inside_the_training_part() -> None:
    # Many noise features and few images: the penalty has to be strong. The test part must not matter to the choice.
    x, labels = blobs([40, 40], features=120)
    x[:, 0] = x[:, 0] * 0.3
    folds = make_folds(labels, n_folds=2)
    chosen = linear_evaluation(x, labels, folds, "categorical", True, 2)["C"]
    assert max(chosen) < C_GRID[-1]
    changed, test = labels.copy(), folds[0][1]
    changed[test] = 1 - changed[test]
    x_changed = x.copy()
    x_changed[test] = 1000 + x[test]
    assert linear_evaluation(x_changed, changed, folds[:1], "categorical", True, 2)["C"] == chosen[:1]


def test_groups_stay_together_in_the_inner_folds() -> None:
    # Ten copies of each image, all noise: an inner split that tears the copies apart sees them again and finds a weak
    # penalty best; with groups there is nothing to learn.
    rng = np.random.default_rng(1)
    x = np.repeat(rng.normal(size=(40, 60)), 10, axis=0)
    labels, groups = np.repeat(np.arange(40) % 2, 10), np.repeat(np.arange(40), 10)
    fold = [(np.arange(300), np.arange(300, 400))]
    torn = linear_evaluation(x, labels, fold, "categorical", True, 2)["C"][0]
    kept = linear_evaluation(x, labels, fold, "categorical", True, 2, groups=groups)["C"][0]
    assert kept < torn


def test_constant_and_dead_features_do_no_harm() -> None:
    x, labels = blobs([20, 20])
    x = np.hstack([x, np.zeros((40, 1)), np.full((40, 1), 7.0)])
    assert linear_evaluation(x, labels, make_folds(labels), "diabetic", True, 2)["accuracy"]["mean"] > 0.9


@pytest.mark.parametrize("protocol", ["diabetic", "categorical"])
def test_class_that_no_image_has(protocol: str) -> None:
    x, labels = blobs([20, 20, 20])
    labels[labels == 2] = 3  # grade 2 of 5 and grade 4 are nobody's
    result = linear_evaluation(x, labels, make_folds(labels), protocol, True, 5)  # type: ignore[arg-type]
    assert next(iter(result.values()))["mean"] > 0.9


@pytest.mark.parametrize("protocol", ["diabetic", "categorical"])
def test_one_image_per_class_keeps_c_1(protocol: str) -> None:
    x, labels = blobs([5, 5, 5])
    train = np.array([0, 5, 10])
    fold = [(train, np.setdiff1d(np.arange(15), train))]
    assert linear_evaluation(x, labels, fold, protocol, True, 3)["C"] == [1.0]  # type: ignore[arg-type]


def test_class_that_is_rare_in_the_training_part() -> None:
    x, labels = blobs([20, 20, 2])
    fold = [(np.arange(41), np.array([41]))]  # one training image of class 2: missing in some of the inner folds
    result = linear_evaluation(x, labels, fold, "categorical", True, 3)
    assert result["C"][0] in C_GRID


def test_undefined_kappa_is_zero() -> None:
    x, labels = blobs([20, 20])
    fold = [(np.arange(5, 40), np.arange(5))]  # the test part has grade 0 alone and it is predicted without error
    result = linear_evaluation(x, labels, fold, "diabetic", True, 2)
    assert result["accuracy"]["mean"] == 1
    assert result["qwk"]["mean"] == 0


def test_same_seed_same_result() -> None:
    x, labels = blobs([30, 30, 30], seed=3)
    x[:, 0] /= 5
    folds = make_folds(labels, seed=4)
    first, second = (linear_evaluation(x, labels, folds, "diabetic", True, 3, seed=1) for _ in range(2))
    assert first == second


X, LABELS = blobs([4, 4])
FOLD = [(np.array([0, 1, 4, 5]), np.array([2, 3, 6, 7]))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": X[:, 0]}, r"expected features \[8, F\], one row per label, got shape \[8\]"),
        ({"features": X[:5]}, r"got shape \[5, 4\]"),
        ({"features": np.where(np.arange(8)[:, None] == 3, np.nan, X)}, "features: row 3 is not finite"),
        ({"labels": np.array([0, 0, 0, 0, 1, 1, 5, 1])}, r"label of image 6 is 5, expected 0..1"),
        ({"labels": LABELS - 1}, r"label of image 0 is -1, expected 0..1"),
        ({"labels": LABELS / 2}, "of integers"),
        ({"protocol": "ordinal"}, 'expected protocol "diabetic" or "categorical"'),
        ({"groups": np.arange(3)}, "got 3 groups for 8 images"),
        ({"folds": []}, "at least one fold"),
        ({"folds": [*FOLD, (np.arange(8), np.array([], int))]}, "fold 2 of 2 has 8 training and 0 test images"),
        ({"folds": [(np.arange(6), np.arange(5, 8))]}, "fold 1 of 1 has 1 images both in training and in test"),
        ({"folds": [*FOLD, (np.arange(4), np.arange(4, 8))]}, "fold 2 of 2 holds no training image of class 1"),
        ({"folds": [(np.arange(3), np.array([3]))]}, "training images of class 0 alone"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = {"features": X, "labels": LABELS, "folds": FOLD, "protocol": "diabetic"}
    with pytest.raises(ValueError, match=message):
        linear_evaluation(**(arguments | change), standardized=False, num_classes=2)


def test_official_split_in_a_linear_evaluation() -> None:
    x, labels = blobs([10, 10])
    folds = official_folds(["train", "test"] * 10)
    assert len(linear_evaluation(x, labels, folds, "categorical", True, 2)["top1"]["folds"]) == 1
