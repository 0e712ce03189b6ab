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
import pytest
from sklearn.metrics import cohen_kappa_score
from sklearn.neighbors import KNeighborsClassifier

from conrec_monai.evaluation import knn, knn_evaluation, make_folds

pytestmark = pytest.mark.filterwarnings("error")


def at_cosines(*cosines: float) -> np.ndarray:
    """Vectors of different lengths whose cosine similarity with (1, 0) is as given."""
    c = np.array(cosines)
    return np.stack([c, np.sqrt(1 - c**2)], axis=1) * (1 + np.arange(len(c)))[:, None]


def predicted(features: np.ndarray, labels: list[int], **arguments: Any) -> int:
    """The class that the last vector gets from the votes of the others."""
    n, k = len(labels), max(labels) + 1
    fold = [(np.arange(n), np.array([n]))]
    hits = [
        knn_evaluation(features, np.array([*labels, c]), fold, "categorical", k, **arguments)["top1"]["mean"]
        for c in range(k)
    ]
    assert sum(hits) == 1
    return int(np.argmax(hits))


def test_votes_by_hand() -> None:
    x, labels = at_cosines(0.95, 0.9, 0.8, 0.5, 1.0), [0, 1, 1, 2]
    assert predicted(x, labels, k=1) == 0
    # exp(0) against exp(-0.05 / t) + exp(-0.15 / t): 0.490 + 0.117 at t = 0.07, 0.951 + 0.861 at t = 1.
    assert predicted(x, labels, k=3) == 0
    assert predicted(x, labels, k=3, temperature=1.0) == 1
    votes = knn._votes(np.array([[0.95, 0.9, 0.8, 0.5]]), np.eye(3)[labels], 3, 0.07)
    np.testing.assert_allclose(votes, [[1, np.exp(-0.05 / 0.07) + np.exp(-0.15 / 0.07), 0]])


def test_equal_votes_go_to_the_smallest_class() -> None:
    x = at_cosines(0.9, 0.9, 0.1, 1.0)
    assert predicted(x, [2, 1, 0], k=2) == 1


def test_neighbors_that_tie_with_the_last_vote_too() -> None:
    x = at_cosines(0.9, 0.7, 0.7, 0.2, 1.0)
    # With k = 2 one of the two at 0.7 would be enough, and it would depend on their order which.
    for labels in ([0, 1, 1, 2], [1, 0, 0, 2]):
        for order in ([0, 1, 2, 3], [2, 0, 1, 3], [3, 2, 1, 0]):
            shuffled = x[[*order, 4]]
            assert predicted(shuffled, [labels[i] for i in order], k=2, temperature=10.0) == labels[1]


def test_few_neighbors_and_vectors_of_zeros() -> None:
    x = at_cosines(0.9, 0.2, 0.1, 1.0)
    assert predicted(x, [0, 1, 1], k=500, temperature=10.0) == 1
    x[3] = 0  # alike to all
    assert predicted(x, [0, 1, 1], k=1) == 1
    assert predicted(x * 1e-200, [0, 1, 1], k=1) == 1


def test_grades_by_hand() -> None:
    x = np.concatenate([at_cosines(1.0, 0.6, 0.0), at_cosines(0.99, 0.65, 0.05, 0.55)])
    labels = np.array([0, 2, 1, 0, 2, 2, 1])  # the votes of the first three: 0, 2, 1, 2
    result = knn_evaluation(x, labels, [(np.arange(3), np.arange(3, 7))], "diabetic", 3, k=1)
    assert result == {
        "qwk": {
            "mean": pytest.approx(cohen_kappa_score([0, 2, 2, 1], [0, 2, 1, 2], weights="quadratic")),
            "std": 0.0,
            "folds": [result["qwk"]["mean"]],
        },
        "accuracy": {"mean": 0.5, "std": 0.0, "folds": [0.5]},
        "k": [1],
    }


@pytest.mark.parametrize("k", [1, 7, 20])
def test_as_scikit_learn_votes(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 15)
    x = generator.normal(size=(60, 5)) + np.eye(5)[labels]
    folds = make_folds(labels, None, 3)
    result = knn_evaluation(x, labels, folds, "categorical", 4, k, 0.2)
    expected = []
    for train, test in folds:
        model = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.2), algorithm="brute")
        expected.append(float(model.fit(x[train], labels[train]).score(x[test], labels[test])))
    assert result["top1"]["folds"] == expected
    assert result["top1"]["mean"] == pytest.approx(np.mean(expected)) and 0.3 < result["top1"]["mean"] < 1
    assert result["top1"]["std"] == pytest.approx(np.std(expected))
    assert list(result) == ["top1", "top3", "k"] and result["k"] == [k] * 3
    monkeypatch.setattr(knn, "BLOCK", 7)
    assert knn_evaluation(x, labels, folds, "categorical", 4, k, 0.2) == result


X, LABELS = at_cosines(1.0, 0.9, 0.8, 0.7, 0.1, 0.2, 0.3, 0.4), np.repeat([0, 1], 4)
FOLD = [(np.array([0, 1, 4, 5]), np.array([2, 3, 6, 7]))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k and temperature must be positive, got 0 and 0.07"),
        ({"temperature": 0.0}, "k and temperature must be positive, got 20 and 0.0"),
        ({"temperature": float("nan")}, "must be positive, got 20 and nan"),
        ({"features": X[:, 0]}, r"expected features \[8, F\], one row per label, got shape \[8\]"),
        ({"features": X[:5]}, r"got shape \[5, 2\]"),
        ({"features": np.where(np.arange(8)[:, None] == 3, np.inf, X)}, "features: row 3 is not finite"),
        ({"labels": np.array([0, 0, 0, 0, 1, 1, 5, 1])}, r"label of image 6 is 5, expected 0..1"),
        ({"labels": LABELS / 2}, "of integers"),
        ({"protocol": "ordinal"}, 'expected protocol "diabetic" or "categorical"'),
        ({"folds": []}, "at least one fold"),
        ({"folds": [(np.arange(6), np.arange(5, 8))]}, "fold 1 of 1 has 1 images both in training and in test"),
        ({"folds": [*FOLD, (np.arange(4), np.arange(4, 8))]}, "fold 2 of 2 holds no training image of class 1"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = {"features": X, "labels": LABELS, "folds": FOLD, "protocol": "diabetic"}
    with pytest.raises(ValueError, match=message):
        knn_evaluation(**(arguments | change), num_classes=2)
