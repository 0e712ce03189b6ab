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

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conrec_monai.evaluation import FoldPlan, complete_groups, make_folds, official_folds, plan_folds, subsample

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


def test_plan_takes_the_official_split_and_leaves_copies_of_test_images_out() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1, 0])
    splits = ["train", "train", "train", "val", "test", "test", "train"]
    plan = plan_folds(labels, None, splits)
    assert (plan.kind, plan.n, plan.repeats, plan.left_out) == ("official", 1, 1, 0)
    np.testing.assert_array_equal(plan.folds[0][0], [0, 1, 2, 6])
    np.testing.assert_array_equal(plan.folds[0][1], [4, 5])
    grouped = plan_folds(labels, np.array([7, 1, 2, 3, 7, 4, 5]), splits)
    np.testing.assert_array_equal(grouped.folds[0][0], [1, 2, 6])
    np.testing.assert_array_equal(grouped.folds[0][1], [4, 5])
    assert grouped.left_out == 1
    with pytest.raises(ValueError, match="all 4 training images share their group with a test image"):
        plan_folds(labels, np.zeros(7, int), splits)
    # Without both names it is cross-validated as make_folds says.
    for names in (None, ["train"] * 7, [None] * 7):
        crossed = plan_folds(labels, None, names, n_folds=3, repeats=2, seed=4)
        assert (crossed.kind, crossed.n, crossed.repeats, crossed.seed) == ("stratified", 3, 2, 4)
        for mine, expected in zip(crossed.folds, make_folds(labels, None, 3, 2, 4), strict=True):
            np.testing.assert_array_equal(mine[1], expected[1])


def test_plan_is_read_again_for_images_in_another_order(tmp_path: Path) -> None:
    labels = np.arange(12) % 2
    plan = plan_folds(labels, np.arange(12) // 2, None, n_folds=3, seed=1)
    ids = [f"ä{i}" for i in range(12)]
    plan.save(tmp_path / "folds.json", ids)
    order = np.random.RandomState(0).permutation(12)
    again = FoldPlan.load(tmp_path / "folds.json", [ids[i] for i in order] + ["more"])
    assert (again.kind, again.n, again.repeats, again.seed, again.left_out) == ("grouped", 3, 1, 1, 0)
    for mine, theirs in zip(plan.folds, again.folds, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(order[b], a)


@pytest.mark.parametrize(
    "change",
    [
        {"folds": []},
        {"folds": [{"train": [0], "test": [99]}]},
        {"folds": [{"train": [-1], "test": [0]}]},
        {"folds": [{"train": ["a"], "test": [0]}]},
        {"folds": [{"train": [0]}]},
        {"ids": None},
        {"kind": None, "n": None, "delete": "seed"},
    ],
)
def test_files_that_are_no_plan(change: dict, tmp_path: Path) -> None:
    path = tmp_path / "folds.json"
    plan_folds(np.arange(6) % 2, None, None, n_folds=2).save(path, list("abcdef"))
    content = {**json.loads(path.read_text()), **change}
    if "delete" in content:
        del content[content.pop("delete")]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"folds\.json is no file of folds, such as the folds\.json of an evaluation"):
        FoldPlan.load(path, list("abcdef"))
    with pytest.raises(FileNotFoundError, match=r"no folds at .*: a folder"):
        FoldPlan.load(tmp_path, list("abcdef"))


def test_shares_of_the_labels_are_stratified_and_nested() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 3])
    folds = make_folds(labels, None, 3)
    assert subsample(labels, folds, 1.0, 5, 0) is folds
    shares = {fraction: subsample(labels, folds, fraction, 2, 7) for fraction in (0.01, 0.1, 0.5)}
    for fraction, drawn in shares.items():
        assert len(drawn) == 6
        for i, (kept, test) in enumerate(drawn):
            train, expected = folds[i % 3]
            np.testing.assert_array_equal(test, expected)
            assert set(kept) <= set(train) and len(set(kept)) == len(kept)
            counts = np.bincount(labels[train], minlength=3)
            wanted = [max(1, round(fraction * count)) for count in counts]
            np.testing.assert_array_equal(np.bincount(labels[kept], minlength=3), wanted)
    for small, large in ((0.01, 0.1), (0.1, 0.5)):
        for a, b in zip(shares[small], shares[large], strict=True):
            assert set(a[0]) <= set(b[0])
    assert not np.array_equal(shares[0.1][0][0], shares[0.1][3][0])  # another repetition draws anew
    for fraction, repeats in ((0.0, 1), (1.5, 1), (0.5, 0)):
        with pytest.raises(ValueError, match="fraction must be in"):
            subsample(labels, folds, fraction, repeats, 0)
