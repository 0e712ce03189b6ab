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

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conrec_monai.evaluation import complete_groups, make_folds, official_folds

pytestmark = pytest.mark.filterwarnings("error")


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 3), min_size=12, max_size=80),
    st.integers(2, 4),
    st.integers(1, 3),
    st.integers(0, 5),
    st.booleans(),
)
def test_folds_partition_and_groups_stay_whole(
    labels: list[int], n_folds: int, repeats: int, seed: int, grouped: bool
) -> None:
    labels = [0, 0, 0, 0, 1, *labels]
    groups = [f"patient {i // 3}" for i in range(len(labels))] if grouped else None
    folds = make_folds(np.array(labels), groups, n_folds, repeats, seed)
    assert len(folds) == n_folds * repeats
    for r in range(repeats):
        repetition = folds[r * n_folds : (r + 1) * n_folds]
        np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in repetition])), np.arange(len(labels)))
    for train, test in folds:
        assert len(train) and len(test)
        np.testing.assert_array_equal(np.union1d(train, test), np.arange(len(labels)))
        assert not set(train) & set(test)
        if groups is not None:
            assert not {groups[i] for i in train} & {groups[i] for i in test}


def test_folds_are_stratified() -> None:
    labels = np.repeat([0, 1, 2], [50, 25, 10])
    for groups in (None, np.arange(85)):
        for _, test in make_folds(labels, groups, 5):
            np.testing.assert_array_equal(np.bincount(labels[test]), [10, 5, 2])


def test_seed_and_repetitions() -> None:
    labels = np.repeat([0, 1], 20)

    def tests(repeats: int = 1, seed: int = 0) -> list[list[int]]:
        return [test.tolist() for _, test in make_folds(labels, repeats=repeats, seed=seed)]

    assert tests(repeats=2, seed=3) == tests(repeats=2, seed=3)
    assert tests(seed=3) != tests(seed=4)
    assert tests(repeats=2)[:5] == tests()  # more repetitions leave the first one as it was
    assert tests(repeats=2)[:5] != tests(repeats=2)[5:]


@pytest.mark.parametrize(
    ("labels", "kwargs", "message"),
    [
        ([0, 1, 0], {}, "5 folds need at least 5 labelled images, got 3"),
        ([1] * 10, {}, "at least 2 classes, all 10 images have label 1"),
        ([0, 1, 2, 3, 0, 1], {}, r"no class has 5 images \(most: 2\); use fewer folds"),
        ([0, 1] * 10, {"groups": [0, 1, 2, 3] * 5}, "5 folds need at least 5 groups, got 4"),
        ([0, 1] * 10, {"groups": [0, 1]}, "got 2 groups for 20 images"),
        ([0, 1] * 10, {"n_folds": 1}, "n_folds >= 2"),
        ([0, 1] * 10, {"repeats": 0}, "repeats >= 1"),
    ],
)
def test_mistakes_are_named(labels: list[int], kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_folds(np.array(labels), **kwargs)


def test_official_folds() -> None:
    splits = ["test", "train", "validation", "train", "test"]
    ((train, test),) = official_folds(splits)
    assert train.tolist() == [1, 3] and test.tolist() == [0, 4]
    ((train, test),) = official_folds(splits, train=("train", "validation"))
    assert train.tolist() == [1, 2, 3] and test.tolist() == [0, 4]
    with pytest.raises(
        ValueError, match=r"no image has a split of \['valid'\], found \['test', 'train', 'validation'\]"
    ):
        official_folds(splits, test=("valid",))
    with pytest.raises(ValueError, match=r"both training and testing: \['test'\]"):
        official_folds(splits, train=("train", "test"))


def test_an_image_without_group_is_alone() -> None:
    assert complete_groups(None) is None and complete_groups([None, None]) is None
    groups = complete_groups(["a", None, "b", "a", None])
    assert groups is not None
    assert groups[0] == groups[3] and len(set(groups)) == 4


def test_group_on_both_sides_of_an_official_split() -> None:
    assert len(official_folds(["training", "test"], [0, 1])) == 1
    with pytest.raises(ValueError, match="1 groups have images both in"):
        official_folds(["train", "train", "test"], ["x", "y", "x"])
