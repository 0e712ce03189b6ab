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

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conrec_monai.evaluation import (
    Candidate,
    FineTuneSettings,
    FoldPlan,
    PredictionStore,
    compare_runs,
    embed,
    embed_levels,
    evaluate,
    format_table,
    linear_predictions,
    plan_folds,
    predict_fine_tuned,
    score,
    subsample,
    untrained_encoders,
)
from conrec_monai.evaluation import evaluate as evaluate_function
from conrec_monai.evaluation.store import read_predictions
from conrec_monai.networks.nets import ConRecEncoder

QUICK = FineTuneSettings("adam", 0.001, 16, 1, None)


def brightness_data(n: int = 60, classes: int = 3) -> tuple[torch.Tensor, np.ndarray]:
    """Noise images whose mean tells the class."""
    labels = np.arange(n) % classes
    noise = torch.randint(0, 60, (n, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return noise + torch.from_numpy(labels * (180 // classes)).to(torch.uint8)[:, None, None, None], labels


def encoder(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ConRecEncoder(1, (4, 8), "average").eval()


def run(**kwargs: Any) -> dict[str, Any]:
    images, labels = brightness_data()
    groups = kwargs.get("groups")
    arguments: dict[str, Any] = {
        "candidates": [Candidate("mine", "checkpoint", encoder(), images, {"sha256": "0"})],
        "labels": labels,
        "plan": kwargs.get("plan") or plan_folds(labels, groups, None, 3),
        "ordinal": True,
        "num_classes": 3,
        "replicates": 100,
    }
    return evaluate(**(arguments | {"progress": False} | kwargs))


def found(result: dict[str, Any], model: str, protocol: str, variant: str | None = None, fraction: float = 1) -> Any:
    wanted = (model, protocol, variant, fraction)
    (entry,) = [e for e in result["results"] if (e["model"], e["protocol"], e["variant"], e["fraction"]) == wanted]
    return entry


def test_result_holds_what_the_documentation_says() -> None:
    result = run()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert [(m["name"], m["kind"]) for m in result["models"]] == [
        ("mine", "checkpoint"),
        ("shortcut baseline", "baseline"),
        ("color baseline", "baseline"),
    ]
    assert result["models"][0]["sha256"] == "0"
    cells = [(e["model"], e["protocol"], e["variant"], e["features"]) for e in result["results"]]
    assert cells == [
        ("mine", "linear", "published", 8),
        ("mine", "linear", "standardized", 8),
        ("shortcut baseline", "linear", "published", 258),
        ("shortcut baseline", "linear", "standardized", 258),
        ("color baseline", "linear", "published", 2),
        ("color baseline", "linear", "standardized", 2),
        ("mine", "levels", None, 24),
        ("mine", "knn", None, 8),
        ("shortcut baseline", "knn", None, 258),
        ("color baseline", "knn", None, 2),
    ]
    for entry in result["results"]:
        assert list(entry["metrics"]) == result["metrics"]
        for value in entry["metrics"].values():
            assert len(value["folds"]) == 3 and value["interval"][0] <= value["mean"] <= value["interval"][1]
    # The class is the brightness: color alone finds it.
    assert found(result, "color baseline", "linear", "standardized")["metrics"]["qwk"]["mean"] > 0.9


def test_entries_are_the_predictions_of_the_same_folds() -> None:
    images, labels = brightness_data()
    groups = np.arange(60) // 2
    plan = plan_folds(labels, groups, None, 3, seed=2)
    result = run(plan=plan, groups=groups, seed=4)
    h, levels = embed(encoder(), images), embed_levels(encoder(), images)
    for features, protocol, variant, standardized in (
        (h, "linear", "published", False),
        (h, "linear", "standardized", True),
        (levels, "levels", None, True),
    ):
        expected = linear_predictions(features, labels, plan.folds, "diabetic", standardized, 3, groups, 4)
        entry = found(result, "mine", protocol, variant)
        assert entry["settings"] == expected.settings
        for name, value in score(labels, expected, True, 3).items():
            assert entry["metrics"][name]["folds"] == value["folds"], name


def test_fractions_are_nested_draws_of_the_training_labels() -> None:
    images, labels = brightness_data()
    plan = plan_folds(labels, None, None, 3)
    result = run(fractions=(1.0, 0.25), fraction_repeats=2, protocols=("linear",), seed=3)
    folds = subsample(labels, plan.folds, 0.25, 2, 3)
    expected = linear_predictions(embed(encoder(), images), labels, folds, "diabetic", True, 3, None, 3)
    entry = found(result, "mine", "linear", "standardized", 0.25)
    assert len(entry["metrics"]["qwk"]["folds"]) == 6
    assert entry["metrics"]["qwk"]["folds"] == score(labels, expected, True, 3)["qwk"]["folds"]
    assert len(found(result, "mine", "linear", "standardized", 1)["metrics"]["qwk"]["folds"]) == 3


def test_trained_protocols() -> None:
    images, labels = brightness_data()
    candidates = [
        Candidate("mine", "checkpoint", encoder(), images),
        Candidate("frozen", "untrained", encoder(1), images),
        Candidate("scratch", "random", encoder(2), images),
    ]
    settings = {
        "frozen_head": dataclasses.replace(QUICK, freeze=True),
        "fine_tune": QUICK,
        "supervised": dataclasses.replace(QUICK, init="scratch"),
    }
    before = {name: value.clone() for name, value in candidates[0].encoder.state_dict().items()}
    result = run(candidates=candidates, protocols=list(settings), fine_tuning=settings, seed=1)
    assert [(e["model"], e["protocol"], e["features"]) for e in result["results"]] == [
        ("mine", "frozen_head", None),
        ("mine", "fine_tune", None),
        ("scratch", "supervised", None),
    ]
    assert all(torch.equal(before[n], v) for n, v in candidates[0].encoder.state_dict().items())
    plan = plan_folds(labels, None, None, 3)
    expected = predict_fine_tuned(
        lambda: candidates[0].encoder, images, labels, plan.folds, True, 3, QUICK, 1, progress=False
    )
    assert result["results"][1]["metrics"]["brier"]["folds"] == score(labels, expected, True, 3)["brier"]["folds"]
    compared = [(c["model"], c["protocol"], c["other"], c["other_protocol"]) for c in result["comparisons"]]
    assert compared == [
        ("mine", "frozen_head", "scratch", "supervised"),
        ("mine", "fine_tune", "scratch", "supervised"),
    ]


def test_comparisons_are_differences_on_the_same_folds() -> None:
    images, _ = brightness_data()
    candidates = [
        Candidate("a", "checkpoint", encoder(), images),
        Candidate("b", "checkpoint", encoder(1), images),
        Candidate("c", "untrained", encoder(2), images),
    ]
    result = run(candidates=candidates, protocols=("knn",))
    pairs = [(c["model"], c["other"], c["other_kind"]) for c in result["comparisons"]]
    assert pairs == [
        ("a", "b", "checkpoint"),
        ("a", "c", "untrained"),
        ("a", "shortcut baseline", "baseline"),
        ("a", "color baseline", "baseline"),
        ("b", "c", "untrained"),
        ("b", "shortcut baseline", "baseline"),
        ("b", "color baseline", "baseline"),
    ]
    first = result["comparisons"][0]["metrics"]["accuracy"]
    means = [found(result, name, "knn")["metrics"]["accuracy"]["mean"] for name in "ab"]
    assert first["difference"] == pytest.approx(means[0] - means[1])
    same = run(candidates=[candidates[0], Candidate("twin", "checkpoint", encoder(), images)], protocols=("knn",))
    assert same["comparisons"][0]["metrics"]["qwk"] == {"difference": 0, "interval": [0, 0], "p": 1}


def test_methods_are_means_over_their_runs(tmp_path: Path) -> None:
    images, labels = brightness_data()
    candidates = [
        Candidate("a@0", "checkpoint", encoder(0), images, method="a"),
        Candidate("a@1", "checkpoint", encoder(1), images, method="a"),
        Candidate("b", "imagenet", encoder(2), images),
        Candidate("untrained, seed 3", "untrained", encoder(3), images, method="untrained"),
        Candidate("untrained, seed 4", "untrained", encoder(4), images, method="untrained"),
    ]
    store = PredictionStore(tmp_path / "kept")
    result = run(candidates=candidates, protocols=("knn",), fractions=(0.5, 1.0), store=store, seed=3)
    baselines = ["shortcut baseline", "color baseline"]
    assert [m["method"] for m in result["models"]] == ["a", "a", "b", "untrained", "untrained", *baselines]
    blocks = [("knn", None, 0.5), ("knn", None, 1)]
    pairs = [("a", "b", "imagenet", 2, 1), ("a", "untrained", "untrained", 2, 2)]
    pairs += [("a", name, "baseline", 2, 1) for name in baselines]
    pairs += [("b", "untrained", "untrained", 1, 2), *(("b", name, "baseline", 1, 1) for name in baselines)]
    keys = ("method", "other", "other_kind", "runs", "other_runs")
    places = ("protocol", "variant", "fraction")
    assert {tuple(e[key] for key in places) for e in result["methods"]} == set(blocks)
    runs_of: dict[str, list[str]] = {}
    for model in result["models"]:
        runs_of.setdefault(model["method"], []).append(model["name"])
    for block in blocks:
        chosen = [e for e in result["methods"] if tuple(e[key] for key in places) == block]
        assert [tuple(e[key] for key in keys) for e in chosen] == pairs
        for e in chosen[:3]:
            a, b = (
                [read_predictions(tmp_path / found(result, run, *block)["predictions"]) for run in runs_of[e[name]]]
                for name in ("method", "other")
            )
            expected = compare_runs(labels, a, b, None, True, 3, 100, 3)
            assert list(e["metrics"]) == result["metrics"] == list(expected)
            for metric, values in expected.items():
                for key, value in values.items():
                    assert e["metrics"][metric][key] == pytest.approx(value, abs=1e-12), (metric, key)
    means = [found(result, name, "knn")["metrics"]["qwk"]["mean"] for name in ("a@0", "a@1", "b")]
    (first,) = [
        e for e in result["methods"] if (e["method"], e["other"], e["protocol"], e["fraction"]) == ("a", "b", "knn", 1)
    ]
    assert first["metrics"]["qwk"]["difference"] == pytest.approx(sum(means[:2]) / 2 - means[2])


def test_methods_of_other_views_are_compared_too() -> None:
    images, _ = brightness_data()
    candidates = [
        Candidate("a", "checkpoint", encoder(), images, view="x"),
        Candidate("b", "checkpoint", encoder(1), images, view="y"),
        Candidate("untrained, y, seed 0", "untrained", encoder(2), images, view="y", method="untrained, y"),
    ]
    result = run(candidates=candidates, protocols=("knn",))
    baselines = [f"{name} baseline, {view}" for view in "xy" for name in ("shortcut", "color")]
    expected = [("a", "b"), *(("a", other) for other in ("untrained, y", *baselines))]
    expected += [("b", other) for other in ("untrained, y", *baselines)]
    assert [(e["method"], e["other"]) for e in result["methods"]] == expected
    assert {(e["model"], e["other"]) for e in result["comparisons"] if e["model"] == "a"} == {
        ("a", "b"),
        ("a", "shortcut baseline, x"),
        ("a", "color baseline, x"),
    }


@pytest.mark.parametrize("method", ["untrained", "color baseline"])
def test_a_checkpoint_is_no_run_of_something_else(method: str) -> None:
    images, _ = brightness_data()
    candidates = [
        Candidate(f"{method}@0", "checkpoint", encoder(), images, method=method),
        Candidate("untrained, seed 0", "untrained", encoder(2), images, method="untrained"),
    ]
    with pytest.raises(ValueError, match=f"^{method}@0 cannot be a run of '{method}', which is something else here$"):
        run(candidates=candidates, protocols=("knn",))


def test_what_is_stored_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = brightness_data()
    candidates = [
        Candidate("mine", "checkpoint", encoder(), images),
        Candidate("scratch", "random", encoder(2), images),
    ]
    arguments: dict[str, Any] = {
        "candidates": candidates,
        "protocols": ("linear", "supervised"),
        "fine_tuning": {"supervised": dataclasses.replace(QUICK, init="scratch")},
        "fractions": (0.5, 1.0),
        "store": PredictionStore(tmp_path / "kept"),
    }
    whole = run(**arguments)
    assert all((tmp_path / entry["predictions"]).is_file() for entry in whole["results"])
    module = __import__("sys").modules[evaluate_function.__module__]

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        for name in ("linear_predictions", "embed"):
            patch.setattr(module, name, never)
        assert run(**arguments) == whole
        with pytest.raises(AssertionError, match="computed again"):
            run(**arguments, seed=1)
    # A file that is damaged or gone is made again, and one of other weights is another one.
    file = tmp_path / whole["results"][0]["predictions"]
    file.write_bytes(b"damaged")
    assert run(**arguments) == whole
    others = run(**{**arguments, "candidates": [Candidate("mine", "checkpoint", encoder(5), images)]})
    assert others["results"][0]["predictions"] != whole["results"][0]["predictions"]


def test_stored_folds_of_a_training_that_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = brightness_data()
    arguments: dict[str, Any] = {
        "candidates": [Candidate("scratch", "random", encoder(2), images)],
        "protocols": ("supervised",),
        "fine_tuning": {"supervised": dataclasses.replace(QUICK, init="scratch")},
    }
    whole = run(**arguments)
    store = PredictionStore(tmp_path / "kept")
    put, count = store.put, [0]

    def interrupted(key: Any, predictions: Any) -> None:
        put(key, predictions)
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(**arguments, store=store)
    assert len(list((tmp_path / "kept").iterdir())) == 2
    again = run(**arguments, store=store)
    for entry in (*whole["results"], *again["results"]):
        entry["predictions"] = None
    assert again == whole and count[0] == 4  # the last fold, and all of them together


def test_one_class_is_told() -> None:
    """Images that are all alike are all of the most common class to every model; brightness tells the classes."""
    images, labels = torch.full((60, 1, 16, 16), 9, dtype=torch.uint8), np.array([0] * 40 + [1] * 20)
    candidates = [Candidate("mine", "checkpoint", encoder(), images, {})]
    alike = run(candidates=candidates, labels=labels, plan=plan_folds(labels, None, None, 3), num_classes=2)
    assert all(entry["one_class"] and entry["metrics"]["qwk"]["mean"] == 0 for entry in alike["results"])
    assert not found(run(), "color baseline", "linear", "standardized")["one_class"]
    # Each fold tests one class, another in each, and all are right.
    images, labels = brightness_data()
    folds = [
        (np.setdiff1d(np.arange(60), np.flatnonzero(labels == c)[:5]), np.flatnonzero(labels == c)[:5])
        for c in range(3)
    ]
    result = run(plan=FoldPlan(folds, "stratified", 3, 1, 0))
    assert not found(result, "color baseline", "linear", "standardized")["one_class"]


def test_logs_say_how_far_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without a terminal: a line for each job, were there no least time between them."""
    monkeypatch.setattr(sys.modules["conrec_monai.evaluation.evaluate"], "SECONDS_BETWEEN_LINES", 0)
    with caplog.at_level("INFO", logger="conrec_monai"):
        run(progress=True, protocols=["knn"])
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "evaluation 0/3: mine, knn"
    assert re.fullmatch(r"evaluation 2/3: color baseline, knn, \d+ min \d\d s left", lines[2])


def test_untrained_encoders_leave_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    encoders = untrained_encoders(lambda: ConRecEncoder(1, (4, 8)))
    assert torch.equal(torch.rand(3), expected)
    assert list(encoders) == [0, 1, 2]
    weights = [next(iter(network.parameters())) for network in encoders.values()]
    again = untrained_encoders(lambda: ConRecEncoder(1, (4, 8)), seeds=(1,))[1]
    assert torch.equal(next(iter(again.parameters())), weights[1]) and not torch.equal(weights[0], weights[1])


def test_mistakes_are_named() -> None:
    images, labels = brightness_data()
    mine = Candidate("mine", "checkpoint", encoder(), images)
    with pytest.raises(ValueError, match="at least one model to evaluate, got none"):
        run(candidates=[])
    with pytest.raises(ValueError, match="two models are named 'mine'"):
        run(candidates=[mine, mine])
    with pytest.raises(ValueError, match="two models are named 'color baseline'"):
        run(candidates=[dataclasses.replace(mine, name="color baseline")])
    with pytest.raises(ValueError, match="mine is 'other'"):
        run(candidates=[dataclasses.replace(mine, kind="other")])
    with pytest.raises(ValueError, match="got 60 for 59 images of mine"):
        run(candidates=[dataclasses.replace(mine, images=images[1:])])
    with pytest.raises(ValueError, match="protocols must be some of linear, .* got 'magic'"):
        run(protocols=("magic",))
    with pytest.raises(ValueError, match="at least one protocol and one fraction"):
        run(fractions=())
    with pytest.raises(ValueError, match="fraction must be in"):
        run(fractions=(0.0,))
    with pytest.raises(ValueError, match="all 60 test images are of one group; intervals need at least 2 groups"):
        run(plan=plan_folds(labels, None, None, 3), groups=np.zeros(60, int))
    with pytest.raises(ValueError, match="the protocol fine_tune needs its settings"):
        run(protocols=("fine_tune",))


def entry(model: str, variant: str, value: float, fraction: float = 1.0) -> dict[str, Any]:
    metric = {"mean": value, "std": 0.0, "folds": [value], "interval": [value - 0.05, value + 0.05]}
    undefined = {"mean": None, "std": None, "folds": [None], "interval": [None, None]}
    return {
        "model": model,
        "protocol": "linear",
        "variant": variant,
        "fraction": fraction,
        "metrics": {"qwk": metric, "referable_sensitivity": undefined},
    }


def difference(other: str, value: float, half: float) -> dict[str, Any]:
    return {
        "model": "mine",
        "other": other,
        "protocol": "linear",
        "variant": "standardized",
        "fraction": 1.0,
        "metrics": {"qwk": {"difference": value, "interval": [value - half, value + half], "p": 0.5}},
    }


def test_table_by_hand() -> None:
    result = {
        "dataset": {"path": "data", "labelled": 10, "unlabelled": 3, "test_path": None},
        "classes": [{"name": "0", "count": 5}, {"name": "1", "count": 5}],
        "folds": {"n": 2, "repeats": 1, "seed": 0, "kind": "grouped"},
        "metrics": ["qwk", "referable_sensitivity"],
        "statements": ["Patients are not known."],
        "results": [
            entry("mine", "published", 0.5),
            entry("mine", "standardized", 0.6),
            entry("mine", "standardized", 0.4, 0.1),
            entry("untrained", "standardized", 0.55),
            entry("untrained", "standardized", 0.35, 0.1),
        ],
        "comparisons": [difference("untrained", 0.05, 0.06), difference("b", 0.1, 0.05), difference("c", -0.2, 0.1)],
    }
    assert format_table(result).splitlines() == [
        "data: 10 labelled images, 2 classes, 2 grouped folds x 1, seed 0; 3 unlabelled left out",
        "qwk with its 95 % interval; the others without",
        "",
        "Linear, as published (raw representation, C = 1)",
        "                            qwk   sens@90",
        "mine       0.500 [0.450, 0.550]         -",
        "",
        "Linear, standardized (C chosen inside the training folds)",
        "                            qwk   sens@90",
        "mine       0.600 [0.550, 0.650]         -",
        "untrained  0.550 [0.500, 0.600]         -",
        "",
        "  qwk by share of the training labels",
        "               10 %     100 %",
        "mine          0.400     0.600",
        "untrained     0.350     0.550",
        "",
        "Differences in qwk on the same folds, with 95 % intervals: "
        "Linear, standardized (C chosen inside the training folds)",
        "  mine against",
        "    untrained  +0.050 [-0.010, +0.110]  no clear difference",
        "    b          +0.100 [+0.050, +0.150]  better",
        "    c          -0.200 [-0.300, -0.100]  worse",
        "",
        "To keep in mind:",
        "  - Patients are not known.",
    ]


def test_table_of_methods_by_hand() -> None:
    """Where one has several runs their means are compared; the models otherwise."""

    def method(name: str, other: str, runs: int, value: float, variant: str = "standardized") -> dict[str, Any]:
        compared = {"method": name, "runs": runs, "other_runs": 3, "variant": variant}
        return {key: v for key, v in difference(other, value, 0.06).items() if key != "model"} | compared

    result: dict[str, Any] = {
        "dataset": {"path": "data", "labelled": 10, "unlabelled": 0, "test_path": None},
        "classes": [{"name": "0", "count": 5}, {"name": "1", "count": 5}],
        "folds": {"n": 2, "repeats": 1, "seed": 0, "kind": "stratified"},
        "metrics": ["qwk", "referable_sensitivity"],
        "statements": [],
        "results": [entry("a@0", "standardized", 0.6), entry("a@1", "standardized", 0.5)],
        "comparisons": [difference("untrained, seed 0", 0.125, 0.05)],
        "methods": [method("a", "b", 2, 0.1), method("a", "b", 2, 0.2, "published"), method("b", "untrained", 1, 0.05)],
    }
    title = "Differences in qwk on the same folds, with 95 % intervals: "
    title += "Linear, standardized (C chosen inside the training folds)"
    text = format_table(result).splitlines()
    assert text[text.index(title) :] == [
        title,
        "Means over the runs of each method",
        "  a against",
        "    b          +0.100 [+0.040, +0.160]  better",
        "  b against",
        "    untrained  +0.050 [-0.010, +0.110]  no clear difference",
    ]
    models = [title, "  mine against", "    untrained, seed 0  +0.125 [+0.075, +0.175]  better"]
    for single in ([{**e, "runs": 1} for e in result["methods"]], []):
        text = format_table({**result, "methods": single}).splitlines()
        assert text[text.index(title) :] == models
