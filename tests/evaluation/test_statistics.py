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

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from conrec_monai.evaluation.metrics import auroc, metric_names, qwk
from conrec_monai.evaluation.predictions import FoldPrediction, Predictions
from conrec_monai.evaluation.statistics import bootstrap, compare, compare_runs, interval, score

pytestmark = pytest.mark.filterwarnings("error")


def predictions(tests: list[np.ndarray], n: int, k: int = 4, seed: int = 0) -> Predictions:
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(k), size=n)
    return Predictions([FoldPrediction.of_classes(test, probabilities[test]) for test in tests])


def case(n: int = 60, k: int = 4) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels and the test parts of two repetitions of three folds."""
    rng = np.random.default_rng(5)
    labels = rng.integers(k, size=n)
    return labels, [part for _ in range(2) for part in np.array_split(rng.permutation(n), 3)]


def test_score_is_the_mean_over_the_folds() -> None:
    labels, tests = case()
    model = predictions(tests, 60)
    result = score(labels, model, True, 4)
    assert tuple(result) == metric_names(True, 4)
    values = [qwk(labels[f.test], f.predicted, f.probabilities) for f in model.folds]
    assert result["qwk"]["folds"] == values
    assert result["qwk"]["mean"] == pytest.approx(sum(values) / 6)
    assert result["qwk"]["std"] == pytest.approx(np.std(values))


def test_a_fold_in_which_a_metric_is_undefined_is_left_out_of_its_mean() -> None:
    labels = np.array([0, 0, 1, 2, 3])
    model = predictions([np.array([0, 1]), np.array([2, 3, 4])], 5)
    result = score(labels, model, True, 4)
    assert np.isnan(result["auroc"]["folds"][0])  # type: ignore[index]
    assert result["auroc"]["mean"] == result["auroc"]["folds"][1]  # type: ignore[index]
    alone = score(labels, Predictions(model.folds[:1]), True, 4)
    assert np.isnan(alone["auroc"]["mean"]) and np.isnan(alone["referable_sensitivity"]["mean"])
    assert np.isfinite(alone["accuracy"]["mean"])


def test_replicates_are_scores_of_the_drawn_groups() -> None:
    labels, tests = case()
    groups = [None if i % 5 == 0 else f"patient {i // 3}" for i in range(60)]
    model = predictions(tests, 60)
    drawn = bootstrap(labels, model, groups, True, 4, replicates=20, seed=3)
    # The same draw by hand: count of each group, then images repeated so many times.
    names = [g or f"image {i}" for i, g in enumerate(groups)]
    firsts = sorted(set(names), key=lambda name: (name.startswith("image"), names.index(name)))
    counts = np.random.default_rng(3).multinomial(len(firsts), np.full(len(firsts), 1 / len(firsts)), size=20)
    for replicate in (0, 19):
        times = np.array([counts[replicate][firsts.index(name)] for name in names])
        values = {"qwk": [], "auroc": []}
        for fold in model.folds:
            rows = np.repeat(np.arange(len(fold.test)), times[fold.test])
            for metric in (qwk, auroc):
                arguments = labels[fold.test][rows], fold.predicted[rows], fold.probabilities[rows]
                values[metric.__name__].append(metric(*arguments))
        for name, per_fold in values.items():
            assert drawn[name][replicate] == pytest.approx(np.nanmean(per_fold))


def test_the_seed_pairs_models_and_protocols() -> None:
    labels, tests = case()
    a, b = predictions(tests, 60, seed=1), predictions(tests[:3], 60, seed=1)
    first, again, other = (bootstrap(labels, a, None, True, 4, 50, seed)["accuracy"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    # Other folds of the same images get the same draws: the share of an image that all folds hold is the same.
    one = Predictions([FoldPrediction.of_classes(np.arange(60), np.eye(4)[labels])])
    shuffled = np.random.default_rng(0).permutation(60)
    two = Predictions([FoldPrediction.of_classes(shuffled, np.eye(4)[labels[shuffled]])])
    wrong = np.where(np.arange(60) < 30, labels, (labels + 1) % 4)
    values = [bootstrap(wrong, p, None, False, 4, 50)["top1"] for p in (one, two)]
    np.testing.assert_allclose(*values)
    assert values[0].std() > 0
    assert bootstrap(labels, b, None, True, 4, 50)["accuracy"].shape == (50,)


def test_only_tested_images_are_drawn() -> None:
    # An official split: what the training part holds does not matter.
    labels, tests = case()
    model = predictions([np.arange(20)], 60)
    values = [bootstrap(y, model, None, True, 4, 10)["brier"] for y in (labels, np.append(labels, [0, 1]))]
    np.testing.assert_array_equal(*values)


def test_groups_widen_the_interval() -> None:
    # Copies of an image tell nothing new: 30 images three times are as uncertain as 30 images.
    rng = np.random.default_rng(2)
    labels, p = rng.integers(3, size=30), rng.dirichlet(np.ones(3), size=30)
    three = Predictions([FoldPrediction.of_classes(np.arange(90), np.tile(p, (3, 1)))])
    one = Predictions([FoldPrediction.of_classes(np.arange(30), p)])
    tiled = np.tile(labels, 3)
    grouped, ungrouped = (
        bootstrap(tiled, three, groups, True, 3)["accuracy"].std() for groups in (np.tile(np.arange(30), 3), None)
    )
    assert grouped == pytest.approx(bootstrap(labels, one, None, True, 3)["accuracy"].std())
    assert ungrouped == pytest.approx(grouped / np.sqrt(3), rel=0.1)


def test_undefined_replicates_are_left_out() -> None:
    # One image of the second class: a third of the replicates lack it.
    labels = np.array([0] * 9 + [1])
    model = predictions([np.arange(10)], 10, k=2)
    drawn = bootstrap(labels, model, None, True, 2)["auroc"]
    assert 0.25 < np.isnan(drawn).mean() < 0.45
    low, high = interval("auroc", 0.5, drawn)
    deviation = np.nanstd(drawn, ddof=1)
    assert (low, high) == pytest.approx((max(0, 0.5 - 1.96 * deviation), min(1, 0.5 + 1.96 * deviation)), abs=1e-4)


def test_interval_by_hand() -> None:
    replicates = np.array([0.4, 0.5, 0.6, np.nan])
    assert interval("accuracy", 0.3, replicates) == pytest.approx([0.3 - 0.196, 0.3 + 0.196], abs=1e-4)
    assert interval("accuracy", 0.1, replicates) == pytest.approx([0, 0.296], abs=1e-4)
    assert interval("qwk", 0.95, replicates)[1] == 1
    assert interval("qwk", 0.1, replicates)[0] == pytest.approx(-0.096, abs=1e-4)
    assert interval("brier", 1.0, replicates)[1] == pytest.approx(1.196, abs=1e-4)
    assert np.isnan(interval("auroc", np.nan, replicates)).all()
    assert np.isnan(interval("auroc", 0.5, replicates[2:])).all()


def test_compare_by_hand() -> None:
    labels, tests = case()
    a, b = predictions(tests, 60, seed=1), predictions(tests, 60, seed=2)
    groups = np.arange(60) // 2
    result = compare(labels, a, b, groups, True, 4, replicates=200, seed=4)
    drawn_a, drawn_b = (bootstrap(labels, p, groups, True, 4, 200, 4)["brier"] for p in (a, b))
    difference = score(labels, a, True, 4)["brier"]["mean"] - score(labels, b, True, 4)["brier"]["mean"]  # type: ignore[operator]
    deviation = np.std(drawn_a - drawn_b, ddof=1)
    assert result["brier"]["difference"] == pytest.approx(difference)
    expected = [difference - 1.96 * deviation, difference + 1.96 * deviation]
    assert result["brier"]["interval"] == pytest.approx(expected, abs=1e-4)
    for metric, found in compare(labels, b, a, groups, True, 4, replicates=200, seed=4).items():
        low, high = found["interval"]  # type: ignore[misc]
        assert (found["p"] < 0.05) == (low > 0 or high < 0)
        assert found["difference"] == -result[metric]["difference"]  # type: ignore[operator]
        assert found["p"] == result[metric]["p"]


def test_compare_equal_and_opposite_models() -> None:
    labels, tests = case()
    a = predictions(tests, 60)
    for found in compare(labels, a, a, None, True, 4, replicates=20).values():
        assert found == {"difference": 0, "interval": [0, 0], "p": 1}
    right, wrong = (
        Predictions([FoldPrediction.of_classes(t, np.eye(4)[(labels[t] + shift) % 4]) for t in tests])
        for shift in (0, 1)
    )
    accuracy = compare(labels, right, wrong, None, True, 4, replicates=20)["accuracy"]
    assert accuracy == {"difference": 1, "interval": [1, 1], "p": 0}


def test_compare_where_a_metric_is_undefined() -> None:
    labels = np.zeros(6, dtype=int)
    a, b = (predictions([np.arange(6)], 6, seed=seed) for seed in (0, 1))
    found = compare(labels, a, b, None, True, 4, replicates=20)["auroc"]
    assert np.isnan([found["difference"], *found["interval"], found["p"]]).all()  # type: ignore[misc]


LABELS, TESTS = case()
MODEL = predictions(TESTS, 60)


def changed(**change: np.ndarray) -> Predictions:
    fold = MODEL.folds[1]
    values = {"test": fold.test, "probabilities": fold.probabilities, "predicted": fold.predicted} | change
    return Predictions([MODEL.folds[0], FoldPrediction(**values)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": Predictions([])}, "predictions of at least one fold, got none"),
        ({"labels": LABELS / 1}, r"labels \[N\] of integers, got shape \[60\] of float64"),
        ({"predictions": changed(test=MODEL.folds[1].test + 41)}, r"fold 2 of 2 tests image \d+ .*expected 0..59"),
        ({"predictions": changed(test=np.zeros(20, int))}, "fold 2 of 2 tests an image twice"),
        (
            {"predictions": changed(test=np.zeros(0, int))},
            r"fold 2 of 2: expected test positions \[n\], got shape \[0\]",
        ),
        ({"predictions": changed(probabilities=np.zeros((20, 3)))}, r"expected probabilities \[20, 4\], .* \[20, 3\]"),
        ({"predictions": changed(predicted=np.zeros(3, int))}, r"expected predicted \[20\] of integers"),
        ({"groups": np.arange(3)}, "got 3 groups for 60 images"),
        ({"groups": ["a"] * 60}, "all 60 tested images are of one group"),
        ({"replicates": 1}, "at least 2 replicates, got 1"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = {"labels": LABELS, "predictions": MODEL, "groups": None, "replicates": 3}
    with pytest.raises(ValueError, match=message):
        bootstrap(**(arguments | change), ordinal=True, num_classes=4)


def test_compare_refuses_other_folds() -> None:
    with pytest.raises(ValueError, match="got 6 and 3 of them"):
        compare(LABELS, MODEL, Predictions(MODEL.folds[:3]), None, True, 4)
    other = Predictions([*MODEL.folds[:2], MODEL.folds[0], *MODEL.folds[3:]])
    with pytest.raises(ValueError, match="fold 3 of 6 tests other images"):
        compare(LABELS, MODEL, other, None, True, 4)


def shares(*wrong: int) -> list[Predictions]:
    """Runs on the images of TESTS, each with so many of the 60 wrong."""
    runs = []
    for number in wrong:
        predicted = np.where(np.arange(60) < number, (LABELS + 1) % 4, LABELS)
        runs.append(Predictions([FoldPrediction.of_classes(test, np.eye(4)[predicted[test]]) for test in TESTS]))
    return runs


def test_compare_runs_of_one_run_each_is_compare() -> None:
    a, b = predictions(TESTS, 60, seed=1), predictions(TESTS, 60, seed=2)
    groups = np.arange(60) // 2
    result = compare_runs(LABELS, [a], [b], groups, True, 4, replicates=100, seed=4)
    expected = compare(LABELS, a, b, groups, True, 4, replicates=100, seed=4)
    assert list(result) == list(expected) == list(metric_names(True, 4))
    scores = [score(LABELS, p, True, 4) for p in (a, b)]
    for metric, found in result.items():
        for name, value in expected[metric].items():
            assert found[name] == pytest.approx(value, abs=1e-12), (metric, name)
        assert [found["a"], found["b"]] == [entry[metric]["mean"] for entry in scores]
        assert found["deviation_runs"] == 0
        low, high = found["interval"]  # type: ignore[misc]
        assert high - low == pytest.approx(2 * 1.96 * found["deviation_groups"], abs=1e-4)  # type: ignore[operator]


def test_compare_runs_by_hand() -> None:
    # Accuracies 1, 0.8 and 0.6 against 0.5 and 0.3: variances between the runs 0.04 and 0.02.
    a, b = shares(0, 12, 24), shares(30, 42)
    found = compare_runs(LABELS, a, b, None, True, 4, replicates=200, seed=4)["accuracy"]
    assert [found["a"], found["b"], found["difference"]] == pytest.approx([0.8, 0.4, 0.4])
    of_runs = (0.04 / 3 + 0.02 / 2) ** 0.5
    assert found["deviation_runs"] == pytest.approx(of_runs)
    # The replicates of the mean difference: an image that n of the runs have right is worth n / 3 less n / 2.
    means = [sum(bootstrap(LABELS, p, None, True, 4, 200, 4)["accuracy"] for p in runs) / len(runs) for runs in (a, b)]
    of_groups = np.std(means[0] - means[1], ddof=1)
    assert found["deviation_groups"] == pytest.approx(of_groups)
    # Welch and Satterthwaite: the variance of groups is known, those of the runs by 2 and by 1 degree of freedom.
    deviation = (of_runs**2 + of_groups**2) ** 0.5
    freedom = deviation**4 / ((0.04 / 3) ** 2 / 2 + (0.02 / 2) ** 2 / 1)
    half = stats.t.ppf(0.975, freedom) * deviation
    assert 2 < freedom < 4
    assert found["interval"] == pytest.approx([0.4 - half, 0.4 + half])
    assert found["p"] == pytest.approx(2 * stats.t.sf(0.4 / deviation, freedom))
    back = compare_runs(LABELS, b[::-1], a[::-1], None, True, 4, replicates=200, seed=4)["accuracy"]
    assert [-back["difference"], back["p"]] == pytest.approx([found["difference"], found["p"]])  # type: ignore[operator]


def test_compare_runs_needs_more_than_lucky_seeds() -> None:
    """Runs that differ widely: what one pair of them shows with certainty, all together do not."""
    assert compare_runs(LABELS, shares(0), shares(42), None, True, 4, 50)["accuracy"]["p"] < 1e-6  # type: ignore[operator]
    found = compare_runs(LABELS, shares(0, 48), shares(42, 20), None, True, 4, 50)["accuracy"]
    assert found["p"] > 0.5  # type: ignore[operator]


@pytest.mark.parametrize(
    "runs",
    [(2, 2), (1, 2), (3, 3), (5, 1), (3, 5)],
)
def test_compare_runs_of_equal_methods(runs: tuple[int, int]) -> None:
    a, b = ([MODEL] * number for number in runs)
    for metric, found in compare_runs(LABELS, a, b, None, True, 4, replicates=20).items():
        assert [found["difference"], *found["interval"]] == pytest.approx([0, 0, 0], abs=1e-12), metric  # type: ignore[misc]
        assert found["p"] == 1, metric


def test_compare_runs_where_a_metric_is_undefined() -> None:
    labels = np.zeros(6, dtype=int)
    a, b, c = (predictions([np.arange(6)], 6, seed=seed) for seed in (0, 1, 2))
    found = compare_runs(labels, [a, b], [c], None, True, 4, replicates=20)["auroc"]
    assert np.isnan([found[name] for name in ("a", "b", "difference", "p", "deviation_runs")]).all()
    assert np.isnan(found["interval"]).all()


def test_compare_runs_refuses_no_run_and_other_folds() -> None:
    with pytest.raises(ValueError, match="^a comparison needs at least one run of each method, got 0 and 1$"):
        compare_runs(LABELS, [], [MODEL], None, True, 4)
    with pytest.raises(ValueError, match="^a comparison needs at least one run of each method, got 2 and 0$"):
        compare_runs(LABELS, [MODEL, MODEL], [], None, True, 4)
    fewer = Predictions(MODEL.folds[:3])
    other = Predictions([*MODEL.folds[:2], MODEL.folds[0], *MODEL.folds[3:]])
    for run, message in ((fewer, "got 6 and 3 of them$"), (other, "but fold 3 of 6 tests other images, or in another")):
        for a, b in (([MODEL, run], [MODEL]), ([MODEL], [run]), ([MODEL], [MODEL, run])):
            with pytest.raises(ValueError, match=f"^a paired comparison needs the same folds, {message}"):
                compare_runs(LABELS, a, b, None, True, 4)


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "intervals.py"
    spec = importlib.util.spec_from_file_location("intervals", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["intervals"] = module
    spec.loader.exec_module(module)
    return module


def test_coverage_and_level(simulation: ModuleType) -> None:
    """The simulation of docs/statistics.md, smaller: the tolerance is that of 300 trials."""
    setting = simulation.Setting(images=400, folds=2, replicates=100)
    result = simulation.simulate(setting, trials=300, truths=500, seed=1)
    # 95 % and 5 % of 300, less and more three binomial standard deviations. The calibration error and the sensitivity
    # are known to be on the safe side; the others must not be.
    for metric, row in result.items():
        safe = metric in ("ece", "referable_sensitivity")
        assert 0.912 <= row["coverage"] <= (1 if safe else 0.988), (metric, row)
        assert (0 if safe else 0.012) <= row["rejected"] <= 0.088, (metric, row)
