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

from conrec_monai.evaluation import (
    FoldPlan,
    complete_groups,
    make_folds,
    official_folds,
    plan_folds,
    split_parts,
    subsample,
)

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
        ([0, 1, 0], {}, "5 folds need at least 5 labelled images, got 3; use a smaller n_folds"),
        ([1] * 10, {}, "at least 2 classes, all 10 images have label 1"),
        ([0, 1, 2, 3, 0, 1], {}, r"no class has 5 images \(most: 2\); use a smaller n_folds"),
        ([0, 1] * 10, {"groups": [0, 1, 2, 3] * 5}, "5 folds need at least 5 groups, got 4; use a smaller n_folds"),
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


# --- split_parts ------------------------------------------------------------------------------------------------------


def test_parts_of_an_official_split_with_validation() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    for val, train in (("val", "train"), ("validation", "training")):
        splits = [train, train, val, "test", "test", "extra", None, train]
        parts = split_parts(labels, None, splits)
        assert parts.tolist() == ["train", "train", "validation", "test", "test", "", "", "train"]
    # Whose patient is tested on, or chooses among the epochs, is not trained on.
    grouped = split_parts(labels, np.array([0, 1, 1, 0, 2, 3, 4, 5]), splits)
    assert grouped.tolist() == ["", "", "validation", "test", "test", "", "", "train"]


def test_parts_of_an_official_split_without_validation() -> None:
    labels = np.array([0] * 8 + [1] * 4 + [0, 1, 1])
    splits = ["train"] * 12 + ["test", "test", "other"]
    parts = split_parts(labels, None, splits, n_folds=4)
    assert parts[12:].tolist() == ["test", "test", ""]
    for part, counts in (("train", [6, 3]), ("validation", [2, 1])):
        np.testing.assert_array_equal(np.bincount(labels[parts == part]), counts)
    groups = np.array([*range(11), 77, 77, 78, 79])  # the last training image is of a patient who is tested on
    parts = split_parts(labels, groups, splits, n_folds=3)
    assert parts[11:].tolist() == ["", "test", "test", ""] and set(parts[:11]) == {"train", "validation"}


def test_declared_validation_without_test_part() -> None:
    labels = np.arange(30) % 2
    splits = ["train"] * 24 + ["val"] * 6
    parts = split_parts(labels, None, splits, n_folds=3)
    folds = make_folds(labels, None, 3)
    np.testing.assert_array_equal(np.flatnonzero(parts == "test"), folds[0][1])
    left = parts != "test"
    assert set(parts[:24][left[:24]]) == {"train"} and set(parts[24:][left[24:]]) <= {"validation"}
    # "val" alone declares nothing: what else there is would have no name
    others = split_parts(labels, None, [None] * 24 + ["val"] * 6, fold=None, n_folds=3)
    np.testing.assert_array_equal(others, split_parts(labels, None, None, fold=None, n_folds=3))


def test_no_test_part_at_all() -> None:
    labels = np.arange(20) % 2
    for splits in (None, ["train"] * 10 + ["test"] * 10):
        parts = split_parts(labels, None, splits, fold=None)
        assert set(parts) == {"train", "validation"} and (parts == "validation").sum() == 4
    parts = split_parts(labels, None, ["train"] * 8 + ["val"] * 4 + ["test"] * 8, fold=None)
    assert parts.tolist() == ["train"] * 8 + ["validation"] * 4 + ["train"] * 8


@settings(deadline=None, max_examples=20)
@given(
    labels=st.lists(st.integers(0, 2), min_size=20, max_size=60),
    seed=st.integers(0, 5),
    fold=st.sampled_from([None, 0, 1, 2]),
    grouped=st.booleans(),
)
def test_groups_are_in_one_part(labels: list[int], seed: int, fold: int | None, grouped: bool) -> None:
    y = np.array([0] * 10 + [1] + labels)
    groups = np.arange(len(y)) // 2 if grouped else None
    parts = split_parts(y, groups, None, fold, 3, seed)
    assert set(parts) == {"train", "validation"} | (set() if fold is None else {"test"})
    if fold is not None:  # the test part is that of the cross-validation
        np.testing.assert_array_equal(np.flatnonzero(parts == "test"), make_folds(y, groups, 3, 1, seed)[fold][1])
    if groups is not None:
        assert all(len(set(parts[groups == group])) == 1 for group in groups)
    np.testing.assert_array_equal(parts, split_parts(y, groups, [None] * len(y), fold, 3, seed))


def _crossing(parts: np.ndarray, groups: np.ndarray) -> bool:
    """Whether a group is in two parts; images of no part do not count."""
    return any(len(set(parts[(groups == group) & (parts != "")])) > 1 for group in groups)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), fold=st.sampled_from([None, 0]))
def test_groups_are_in_one_part_of_an_official_split(seed: int, fold: int | None) -> None:
    generator = np.random.RandomState(seed)
    labels, groups = np.arange(60) % 2, generator.randint(50, size=60)
    splits = generator.choice(["train", "train", "test", "other"], 60).tolist()
    assert not _crossing(split_parts(labels, groups, splits, fold, 3, seed), groups)


def test_nobody_is_in_both_validation_and_test_part() -> None:
    groups = np.array([0, 1, 2, 3, 3, 4])
    parts = split_parts(np.arange(6) % 2, groups, ["train", "train", "val", "val", "test", "test"])
    assert parts.tolist() == ["train", "train", "validation", "", "test", "test"]


def test_folds_and_seeds_of_the_parts() -> None:
    labels = np.arange(40) % 2
    parts = {(fold, seed): split_parts(labels, None, None, fold, 4, seed) for fold in range(4) for seed in (0, 1)}
    for seed in (0, 1):  # every image is tested on once
        tested = np.concatenate([np.flatnonzero(parts[fold, seed] == "test") for fold in range(4)])
        assert sorted(tested) == list(range(40))
    np.testing.assert_array_equal(parts[2, 1], split_parts(labels, None, None, 2, 4, 1))
    assert (parts[0, 0] != parts[0, 1]).any() and (parts[0, 0] != parts[1, 0]).any()


@pytest.mark.parametrize(
    ("splits", "groups", "kwargs", "message"),
    [
        (None, None, {"fold": 5}, "fold must be one of 0 to 4, got 5"),
        (None, None, {"fold": -1}, "fold must be one of 0 to 4, got -1"),
        (["train"] * 10 + ["test"] * 10, None, {"fold": 1}, "fold is 1, but the data set has an official split"),
        (None, None, {"n_folds": 11}, "no class has 11 images"),
        (None, None, {"n_folds": 1}, "n_folds >= 2"),
        (None, [0, 1] * 10, {}, "5 folds need at least 5 groups, got 2"),
        (["train"] * 4 + ["test"] * 16, None, {}, "5 folds need at least 5 labelled images, got 4"),
        (["train"] * 10 + ["test"] * 10, [0] * 20, {}, "all 10 training images share their group with a test image"),
        (
            ["train"] * 10 + ["val"] * 5 + ["test"] * 5,
            [0] * 15 + [1] * 5,
            {},
            "no image is left to train on beside those of the validation split",
        ),
    ],
)
def test_mistakes_of_parts_are_named(
    splits: list[str] | None, groups: list[int] | None, kwargs: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        split_parts(np.arange(20) % 2, None if groups is None else np.array(groups), splits, **kwargs)
