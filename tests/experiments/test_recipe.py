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

import importlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent
EXPERIMENTS = FOLDER.parents[1] / "experiments"
NAMES = ("report", "other", "transfer", "fractions", "fine_tuned")
VARIANTS = {"fundus": {}, "simclr": {"decoder": False, "masked_views": 0}, "untrained": {"untrained": True}}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


with pytest.MonkeyPatch.context() as path:  # scripts, no package
    path.syspath_prepend(str(EXPERIMENTS))
    path.syspath_prepend(str(FOLDER))
    common, recipe, sweep = (importlib.import_module(name) for name in ("common", "recipe", "sweep"))
    in_process, never = (getattr(importlib.import_module("test_table1"), name) for name in ("in_process", "never"))
    sweep_tests = importlib.import_module("test_sweep")


def start(data: Path, results: Path, run_child: Callable, other: str = "others") -> int:
    """The command line, with evaluations that are made in seconds."""
    config = sweep_tests.config(variants=VARIANTS)
    results.mkdir(exist_ok=True)
    (results / "final.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        for module in (common, sweep):
            patch.setattr(module, "run_child", run_child)
        patch.setattr(recipe, "FRACTIONS", (0.5, 1.0))
        patch.setattr(recipe, "FEW", (0.5,))
        patch.setattr(recipe, "FINE_TUNING", {"learning_rate": 0.001, "epochs": 1})
        arguments = [results / "final.json", "--data", data, "--other", other, "--results", results]
        return recipe.main([*map(str, arguments)])


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    assert start(data, results, in_process) == 0
    return results


def summary(results: Path) -> dict[str, Any]:
    return json.loads((results / "recipe/recipe.json").read_text())


def metrics(results: Path, name: str) -> dict[str, Any]:
    return json.loads((results / f"evaluations/final/{name}/metrics.json").read_text())


def tables(text: str) -> list[dict[str, list[str]]]:
    """Cells by the first one of their row, table by table."""
    found: list[dict[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("|---"):
            found.append({})
        elif line.startswith("| ") and not line.startswith("| method |"):
            name, *cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
            found[-1][name] = cells
    return found


def test_numbers_are_those_of_the_evaluations(data: Path, finished: Path) -> None:
    found = summary(finished)
    assert found["recipe"] == "fundus" and found["sweep"]["variants"] == VARIANTS
    assert [(line["variant"], line["seed"]) for line in found["trainings"]] == [
        (v, s) for s in (0, 1) for v in VARIANTS
    ]
    assert tuple(found["evaluations"]) == NAMES
    for name, evaluation in found["evaluations"].items():
        written = metrics(finished, name)
        assert evaluation["folds"] == written["folds"]
        told = [line.replace(str(data), "DATA").replace(str(finished), "RESULTS") for line in written["statements"]]
        assert evaluation["statements"] == told and told
        own = [entry for entry in written["methods"] if entry["method"] == "fundus"]
        assert evaluation["differences"] == own and len(own) >= (1 if name == "fine_tuned" else 2)
        other = "untrained" if name == "fine_tuned" else "simclr"
        assert {(entry["runs"], entry["other_runs"]) for entry in own if entry["other"] == other} == {(2, 2)}
        method = {model["name"]: model["method"] for model in written["models"]}
        assert sum(len(entry["runs"]) for entry in evaluation["scores"]) == len(written["results"])
        for entry in evaluation["scores"]:
            block = [
                result
                for result in written["results"]
                if method[result["model"]] == entry["method"]
                and all(result[key] == entry[key] for key in ("protocol", "variant", "fraction"))
            ]
            assert entry["runs"] == [result["metrics"]["qwk"]["mean"] for result in block]
            assert entry["intervals"] == [result["metrics"]["qwk"]["interval"] for result in block]
            assert {result["train_images"] for result in block} == {entry["train_images"]}
        assert evaluation["command"].startswith("python -W ignore -m conrec_monai evaluate fundus@0=RESULTS/runs/")
        assert evaluation["seconds"] > 0 and evaluation["machine"]["threads"] > 0


def test_what_is_evaluated(finished: Path) -> None:
    evaluations = summary(finished)["evaluations"]
    for name, evaluation in evaluations.items():
        scores = evaluation["scores"]
        # Fine-tuned are the recipe and random weights alone; elsewhere the evaluation draws its own random weights.
        methods = {"fundus", "untrained"} if name == "fine_tuned" else {"fundus", "simclr"}
        assert {entry["method"] for entry in scores if entry["kind"] == "checkpoint"} == methods
        assert all(len(entry["runs"]) == 2 for entry in scores if entry["method"] in methods)
        assert any(entry["kind"] == "untrained" for entry in scores) == (name != "fine_tuned")
        protocols = {"fractions": {"linear"}, "transfer": {"linear"}, "fine_tuned": {"fine_tune"}}
        found = {entry["protocol"] for entry in scores if entry["method"] == "fundus"}
        assert found == protocols.get(name, {"linear", "levels", "knn"})
        shares = {"fractions": {0.5, 1.0}, "fine_tuned": {0.5}}
        assert {entry["fraction"] for entry in scores} == shares.get(name, {1.0})
    # The parts: no grade of the development part is seen.
    report = len(json.loads((finished / "parts_eyes.json").read_text())["report"])
    for name, count in (("report", report), ("fractions", report), ("fine_tuned", report), ("other", 40)):
        folds = evaluations[name]["folds"]
        assert (folds["n"], sum(folds["test"])) == (5, count)
        assert metrics(finished, name)["dataset"]["section"] == (None if name == "other" else "report")
    assert (evaluations["transfer"]["folds"]["train"], evaluations["transfer"]["folds"]["test"]) == ([61], [40])
    # All labels are worth the same, with fewer beside them or alone.
    linear = {
        name: [e for e in evaluations[name]["scores"] if (e["protocol"], e["fraction"]) == ("linear", 1.0)]
        for name in ("report", "fractions")
    }
    assert [e["runs"] for e in linear["report"]] == [e["runs"] for e in linear["fractions"]]


def test_frozen_against_training_from_scratch(finished: Path) -> None:
    """Means over the runs, of the same share of the labels."""
    found = summary(finished)
    assert [entry["fraction"] for entry in found["against_scratch"]] == [0.5]
    (entry,) = found["against_scratch"]
    for side, name, method, variant in (
        ("a", "fractions", "fundus", "standardized"),
        ("b", "fine_tuned", "untrained", None),
    ):
        (score,) = [
            e
            for e in found["evaluations"][name]["scores"]
            if (e["method"], e["variant"], e["fraction"]) == (method, variant, 0.5)
        ]
        assert entry[side] == pytest.approx(np.mean(score["runs"]))
    assert entry["difference"] == pytest.approx(entry["a"] - entry["b"])
    assert entry["interval"][0] <= entry["difference"] <= entry["interval"][1]


def test_the_page(finished: Path) -> None:
    found, text = summary(finished), (finished / "recipe/README.md").read_text()
    head, trainings, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    assert head.startswith("# What the recipe is worth: eyes\n\nA sentence.\n\n```bash\npython experiments/recipe.py")
    assert "0.01 minutes of training for each of 2 methods, 2 seeds (the epochs that fit into them on: " in head
    ((training),) = tables(trainings)
    assert [*training] == ["fundus", "simclr"]
    for variant, cells in training.items():
        own = [line for line in found["trainings"] if line["variant"] == variant]
        assert cells[1] == str(own[0]["epochs"]) and cells[0].startswith("`recipe fundus`, `image_size 32`")
        for place, name, digits in (
            (2, "minutes", 1),
            (3, "images_per_second", 0),
            (4, "contrastive_loss", 4),
            (5, "reconstruction_loss", 4),
        ):
            assert cells[place] == f"{(own[0][name] + own[1][name]) / 2:.{digits}f}"

    assert len(sections) == len(NAMES)
    for (name, evaluation), section in zip(found["evaluations"].items(), sections, strict=True):
        title = evaluation["title"]
        assert section.startswith(f"{title[0].upper()}{title[1:]}\n")
        assert ("![kappa over the share of the training labels](labels.png)" in section) == (name == "fractions")
        assert f"`{evaluation['command']}`" in section and all(s in section for s in evaluation["statements"])
        blocks = list(dict.fromkeys((e["protocol"], e["variant"]) for e in evaluation["scores"]))
        if name == "fractions":
            blocks = [("linear", "standardized")]
        drawn = tables(section)
        assert len(drawn) == len(blocks)
        for block, table in zip(blocks, drawn, strict=True):
            scores = [e for e in evaluation["scores"] if (e["protocol"], e["variant"]) == block]
            shares = sorted({e["fraction"] for e in scores})
            assert [*table] == list(dict.fromkeys(e["method"] for e in scores))
            for entry in scores:
                runs = [f"{100 * value:.1f}" for value in entry["runs"]]
                mean = f"{100 * sum(entry['runs']) / len(runs):.1f}"
                place = 2 * shares.index(entry["fraction"])
                cells = table[entry["method"]]
                assert len(cells) == 2 * len(shares)
                assert cells[place] == (f"{mean} ({', '.join(runs)})" if len(runs) > 1 else mean)
                difference = [
                    other["metrics"]["qwk"]
                    for other in evaluation["differences"]
                    if (other["protocol"], other["variant"], other["fraction"], other["other"])
                    == (*block, entry["fraction"], entry["method"])
                ]
                assert len(difference) == (entry["method"] != "fundus")
                if not difference:
                    assert cells[place + 1] == ""
                    continue
                low, high = (100 * bound for bound in difference[0]["interval"])
                expected = f"{100 * difference[0]['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
                assert cells[place + 1] == (expected if low <= 0 <= high else f"**{expected}**")


def test_nothing_of_this_machine_is_written_down(data: Path, finished: Path) -> None:
    for path in (finished / "recipe").iterdir():
        if path.suffix != ".png":
            text = path.read_text()
            for folder in (finished, data, EXPERIMENTS.parent, Path.home()):
                assert f"{folder}/" not in text, path
            assert not re.search(r"[\"'= ]/\w", text), path
    assert "--data DATA --other others --results RESULTS" in summary(finished)["command"]


def test_curves(finished: Path) -> None:
    found = summary(finished)
    curves = {curve.name: curve for curve in recipe.curves(found)}
    assert [*curves][:2] == ["fundus", "simclr"] and {"fundus, fine-tuned", "untrained, fine-tuned"} < {*curves}
    for curve in curves.values():
        method, tuned = curve.name.removesuffix(", fine-tuned"), curve.name.endswith(", fine-tuned")
        scores = [
            entry
            for entry in found["evaluations"]["fine_tuned" if tuned else "fractions"]["scores"]
            if entry["method"] == method and (tuned or entry["variant"] == "standardized")
        ]
        assert curve.x == ([0.5] if tuned else [0.5, 1.0]) and curve.kind == scores[0]["kind"]
        assert curve.mean == pytest.approx([sum(entry["runs"]) / len(entry["runs"]) for entry in scores])
        for low, high, entry in zip(curve.low, curve.high, scores, strict=True):
            bounds = [bound for pair in entry["intervals"] for bound in pair if bound is not None]
            assert math.isnan(low) or (low, high) == (min(bounds), max(bounds))
    assert (finished / "recipe/labels.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_finished_is_not_repeated(data: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def times() -> dict[Path, int]:
        redone = ("final.json", "labels.png")
        return {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name not in redone}

    before = times()
    assert start(data, finished, never) == 0
    assert times() == before
    assert capsys.readouterr().out == f"written to {finished / 'recipe'}\n"


def test_another_data_set_that_is_missing(data: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = summary(finished)
    assert start(data, finished, never, other="nowhere") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Error: data not found: {data / 'nowhere'}") and error.count("\n") == 1
    assert summary(finished) == before


def test_a_configuration_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "final.json"
    assert recipe.main([str(path), "--results", str(tmp_path / "results")]) == 1
    assert capsys.readouterr().err == f"Error: there is no configuration {path}.\n"
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("variants", [{"plain": {}}, {"random": {"untrained": True}, "plain": {}}])
def test_a_configuration_without_recipe_or_random_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], variants: dict[str, Any]
) -> None:
    path = tmp_path / "final.json"
    path.write_text(json.dumps(sweep_tests.config(variants=variants)))
    assert recipe.main([str(path), "--results", str(tmp_path / "results")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: final: expected a first variant that is trained, the recipe, and one with random")
    assert error.count("\n") == 1 and not (tmp_path / "results").exists()


def test_differences_in_bold_leave_zero_out() -> None:
    def shown(difference: float, low: float, high: float) -> str:
        return recipe._difference({"difference": difference, "interval": [low, high]})

    assert shown(0.0325, -0.001, 0.066) == "+3.2 [-0.1, +6.6]"
    assert shown(0.05, 0.01, 0.09) == "**+5.0 [+1.0, +9.0]**"
    assert shown(-0.05, -0.09, -0.01) == "**-5.0 [-9.0, -1.0]**"
    assert shown(0.0, 0.0, 0.0) == "+0.0 [+0.0, +0.0]"
