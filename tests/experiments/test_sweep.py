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

import csv
import importlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
import torch

from conrec_monai.data import load_datalist
from conrec_monai.evaluation.store import digest, read_predictions
from conrec_monai.networks.nets import ConRecEncoder
from conrec_monai.networks.utils import read_checkpoint, save_checkpoint

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
SETTINGS = {"recipe": "fundus", "image_size": 32, "cache_size": 32, "features": [4, 8], "batch_size": 8}
SETTINGS |= {"field_of_view": None}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


with pytest.MonkeyPatch.context() as path:  # scripts, no package
    path.syspath_prepend(str(EXPERIMENTS))
    path.syspath_prepend(str(Path(__file__).parent))
    sweep, table1_tests = importlib.import_module("sweep"), importlib.import_module("test_table1")
    table1_in_process, never = table1_tests.in_process, table1_tests.never


def config(**changes: Any) -> dict[str, Any]:
    variants = {"plain": {}, "other": {"alpha": 5.0}, "random": {"untrained": True}}
    values = {"about": "A sentence.", "dataset": "eyes", "minutes": 0.01, "seeds": [0, 1], "settings": SETTINGS}
    return {**values, "variants": variants, **changes}


def in_process(command: Sequence[str], log: TextIO) -> int:
    """That of the other experiments; a mistake ends the command, not the test."""
    try:
        return table1_in_process(command, log)
    except SystemExit as stop:
        print(stop.code, file=log)
        return 1


MACHINE = {"device": "a processor", "threads": 2, "bfloat16": True}


class Bundle:
    """Stands for trainings, of which it keeps the settings; their encoders are drawn.

    Args:
        rates: images per second, epoch by epoch.
        interrupt: number of the training that is interrupted.
    """

    def __init__(self, rates: Sequence[float] = (50, 100, 75), interrupt: int | None = None) -> None:
        self.rates, self.interrupt = rates, interrupt
        self.measured: list[dict[str, str]] = []
        self.trained: list[dict[str, str]] = []

    def __call__(self, command: Sequence[str], log: TextIO) -> int:
        names, values = command[6::2], command[7::2]
        options = {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}
        measures = options["dataset_dir"].startswith("phantom:")
        (self.measured if measures else self.trained).append(options)
        if not measures and len(self.trained) == self.interrupt:
            raise KeyboardInterrupt
        output = Path(options["output_dir"])
        output.mkdir(parents=True, exist_ok=True)
        with (output / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["seconds", "images_per_second", "contrastive_loss", "reconstruction_loss"])
            writer.writerows([3, rate, 1 + number / 2, 0.25] for number, rate in enumerate(self.rates))
        record = {"epoch": int(options["max_epochs"]), "versions": {"torch": "1"}, "machine": MACHINE}
        (output / "metrics.json").write_text(json.dumps(record))
        torch.manual_seed(100 * int(options["seed"]) + int(float(options.get("alpha", 0))))
        encoder = ConRecEncoder(3, tuple(json.loads(options["features"])))
        save_checkpoint(output / "encoder.pt", encoder, {"image_size": 32, "resize": "squash"})
        return 0


def start(data: Path, results: Path, run_child: Callable, name: str = "views", **changes: Any) -> int:
    """The command line of a sweep."""
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.config.json").write_text(json.dumps(config(**changes)))
    path = (results / f"{name}.config.json").rename(results / f"{name}.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "run_child", run_child)
        return sweep.main([str(path), "--data", str(data), "--results", str(results)])


def rate_folder(results: Path, settings: dict[str, Any]) -> Path:
    timed = {name: value for name, value in sweep._values(settings).items() if name not in sweep.TIMELESS}
    return results / "rates" / digest(timed)


def lines(results: Path, name: str = "views") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (results / f"{name}.jsonl").read_text().splitlines()]


def rows(results: Path, name: str = "views") -> list[list[str]]:
    text = (results / f"{name}.md").read_text().partition("|---|---|---|---|---|---|---|\n")[2]
    return [line.strip("| ").split(" | ") if "|" in line else [] for line in text.splitlines()]


# --- the whole way, on drawn photographs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    assert start(data, results, in_process) == 0
    return results


def test_a_whole_sweep(finished: Path) -> None:
    found = lines(finished)
    order = [(variant, seed) for seed in (0, 1) for variant in ("plain", "other", "random")]
    assert [(line["variant"], line["seed"]) for line in found] == order
    assert len({line["key"] for line in found}) == 6 and found[1]["settings"] == {**SETTINGS, "alpha": 5.0}
    for line in found:
        assert -1 <= line["h"] <= 1 and -1 <= line["levels"] <= 1
        if line["variant"] == "random":
            assert (line["epochs"], line["minutes"]) == (0, 0.0) and "contrastive_loss" not in line
            continue
        assert line["contrastive_loss"] > 0 and line["reconstruction_loss"] > 0 and line["images_per_second"] > 0
        assert "torch" in line["versions"] and line["machine"]["threads"] > 0
        rate = json.loads((rate_folder(finished, line["settings"]) / "rate.json").read_text())
        assert line["epochs"] == max(1, round(rate["images_per_second"] * 60 * 0.01 / 61))
        (log,) = (finished / "runs" / line["key"]).glob("train.log")
        assert "epoch" in log.read_text()
    assert len({line["h"] for line in found}) > 1
    assert len(list((finished / "rates").iterdir())) == 1  # seeds share it, and a setting that takes no time
    assert len(list((finished / "runs").glob("*/train.log"))) == 4

    table = rows(finished)
    assert [row[0] for row in table] == ["plain", "other: `alpha 5.0`", "random"]
    means = {}
    for row, variant in zip(table, ("plain", "other", "random"), strict=True):
        own = [line for line in found if line["variant"] == variant]
        for place, name in ((3, "h"), (5, "levels")):
            values = [100 * line[name] for line in own]
            means[variant, name] = sum(values) / 2
            assert row[place] == f"{means[variant, name]:.1f} ({values[0]:.1f}, {values[1]:.1f})"
        losses = [line["contrastive_loss"] for line in own if "contrastive_loss" in line]
        assert row[2] == (f"{np.mean(losses):.2f}" if losses else "")
    for row, variant in zip(table[1:], ("other", "random"), strict=True):
        for place, name in ((4, "h"), (6, "levels")):
            difference, _, span = row[place].partition(" ")
            assert float(difference) == pytest.approx(means[variant, name] - means["plain", name], abs=0.051)
            low, high = map(float, span.strip("[]").split(", "))
            assert low <= float(difference) <= high
    assert table[0][4] == "" and len(table[0]) == 6  # nothing to compare with
    text = (finished / "views.md").read_text()
    assert text.startswith(
        "# views\n\nA sentence.\n\nCommon settings: `recipe fundus`, `image_size 32`, `cache_size 32`, `features [4,8]`"
    )
    assert "0.01 minutes of training each, seeds 0, 1." in text


def test_what_is_finished_is_not_repeated(data: Path, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.suffix != ".json"}
    assert start(data, finished, never) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.suffix != ".json"} == before
    # What is trained is used again by a sweep of another name, too, for its own lines.
    variants = {"random": {"untrained": True}, "5": {"alpha": 5.0}}
    assert start(data, finished, never, "again", variants=variants, seeds=[1]) == 0
    kept = [line for line in lines(finished) if line["seed"] == 1]
    for line, old in zip(lines(finished, "again"), (kept[2], kept[1]), strict=True):
        assert {**line, "variant": old["variant"]} == old
    assert [row[0] for row in rows(finished, "again")] == ["random", "5: `alpha 5.0`"]


def test_a_setting_that_the_bundle_refuses(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variants = {"plain": {"temperature": 0}}
    assert start(data, tmp_path, in_process, variants=variants) == 1
    log = rate_folder(tmp_path, SETTINGS) / "rate.log"
    error = capsys.readouterr().err
    assert error.startswith(f"Error: a training failed, {log} ends with: Error: temperature must be positive")
    assert error.count("\n") == 1


# --- the parts --------------------------------------------------------------------------------------------------------


def test_parts(data: Path, tmp_path: Path) -> None:
    sweep.write_parts(str(data / "eyes"), tmp_path / "a.json")
    sweep.write_parts(str(data / "eyes"), tmp_path / "b.json")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    parts = {part: load_datalist(tmp_path / "a.json", part) for part in sweep.PARTS}
    names = {part: {Path(item["image"]).stem for item in items} for part, items in parts.items()}
    assert not names["development"] & names["report"]
    assert names["development"] | names["report"] == {*(f"eye{i}" for i in range(60)), "copy"}
    assert abs(len(parts["development"]) - 24.4) <= 2
    assert sum({"eye0", "copy"} <= part for part in names.values()) == 1
    for part, items in parts.items():
        assert items.info.ordinal and items.info.class_names == load_datalist(data / "eyes").info.class_names
        counts = np.bincount([item["label"] for item in items])
        assert counts.max() - counts.min() <= 2, part
        groups = {Path(item["image"]).stem: item["group"] for item in items}
        assert groups.get("eye0") == groups.get("copy") and len(set(groups.values())) == len(items) - ("copy" in groups)


def test_data_that_cannot_be_split(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(data / "eyes/train_images", bare / "flat")
    shutil.copytree(data / "eyes/train_images", bare / "kinds/a")
    shutil.copytree(data / "eyes/train_images", bare / "kinds/b")
    for dataset in ("flat", "kinds"):
        assert start(bare, tmp_path / "results", never, dataset=dataset) == 1
        told = f"Error: {bare / dataset} holds images without grades; a sweep needs the grade of each.\n"
        assert capsys.readouterr().err == told
    assert start(bare, tmp_path / "results", never) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Error: data not found: {bare / 'eyes'}") and error.count("\n") == 1
    assert not (tmp_path / "results/parts.json").exists()


# --- trainings, which are not made here -------------------------------------------------------------------------------


@pytest.mark.parametrize(("minutes", "expected"), [(1, 98), (0.5, 49), (1e-6, 1)])
def test_epochs_are_those_of_the_measured_rate(data: Path, tmp_path: Path, minutes: float, expected: int) -> None:
    bundle = Bundle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "run_child", bundle)
        changes = {"minutes": minutes, "variants": {"plain": {}}}
        todo = sweep.Sweep(config(**changes), "views", data, tmp_path, lambda line: None)
        for run in todo.runs():
            todo._train(run)
    (measured,) = bundle.measured  # the rate is one of all seeds
    assert (measured["dataset_dir"], measured["max_epochs"]) == ("phantom:n=64,size=32", "3")
    rate = rate_folder(tmp_path, SETTINGS)
    record = json.loads((rate / "rate.json").read_text())
    assert record == {"images_per_second": 100, "machine": MACHINE}  # the best epoch
    assert todo.rated_on() == ["a processor, 2 threads, bfloat16"]
    assert not (rate / "run").exists()
    assert [options["max_epochs"] for options in bundle.trained] == [str(expected)] * 2  # 100 * 60 * minutes / 61
    assert [options["seed"] for options in bundle.trained] == ["0", "1"]
    assert bundle.trained[0]["dataset_dir"] == str(data / "eyes") and bundle.trained[0]["resume"] == "True"
    assert bundle.trained[0]["features"] == "[4,8]" and bundle.trained[0]["field_of_view"] == "$None"


def test_drawn_images_are_as_large_as_those_of_the_cache(data: Path, tmp_path: Path) -> None:
    bundle = Bundle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "run_child", bundle)
        settings = {"recipe": "paper", "cache_size": 40}
        todo = sweep.Sweep(config(settings={**settings, "features": [4, 8]}), "views", data, tmp_path)
        todo._epochs(todo.runs()[0])
    assert bundle.measured[0]["dataset_dir"] == "phantom:n=128,size=40"  # 8 batches of the recipe


def test_an_interrupted_sweep_goes_on(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, variants = Bundle(interrupt=2), {"plain": {}, "other": {"alpha": 5.0}}
    assert start(data, tmp_path, first, variants=variants) == 130
    assert capsys.readouterr().err == "Interrupted; the same command goes on from here.\n"
    (kept,) = lines(tmp_path)
    assert (kept["variant"], kept["seed"], kept["epochs"]) == ("plain", 0, 1)
    assert (kept["minutes"], kept["images_per_second"], kept["contrastive_loss"]) == (0.15, 75, 2)
    assert (tmp_path / "views.md").exists()  # of what is finished

    second = Bundle(rates=[1000])
    assert start(data, tmp_path, second, variants=variants) == 0
    assert second.measured == []
    assert [(options.get("alpha"), options["seed"]) for options in second.trained] == [
        ("5.0", "0"),
        (None, "1"),
        ("5.0", "1"),
    ]
    assert second.trained[0] == first.trained[1]  # with --resume
    assert len(lines(tmp_path)) == 4 and lines(tmp_path)[0] == kept and len(rows(tmp_path)) == 2


def test_a_changed_setting_is_a_new_run(data: Path, tmp_path: Path) -> None:
    variants: dict[str, dict[str, Any]] = {"plain": {}, "other": {"alpha": 5.0}}
    assert start(data, tmp_path, Bundle(), seeds=[0], variants=variants) == 0
    old, changed = lines(tmp_path), Bundle()
    variants["other"]["alpha"] = 7.0
    assert start(data, tmp_path, changed, seeds=[0], variants=variants) == 0
    assert [options["alpha"] for options in changed.trained] == ["7.0"]
    new = lines(tmp_path)
    assert [line["variant"] for line in new] == ["plain", "other"]
    assert {line["key"] for line in old} - {line["key"] for line in new} == {old[1]["key"]}
    assert [row[0] for row in rows(tmp_path)] == ["plain", "other: `alpha 7.0`"]
    assert f"{100 * new[-1]['h']:.1f}" == rows(tmp_path)[1][3]  # one seed: no values in parentheses
    # Other minutes are other runs.
    longer = Bundle()
    assert start(data, tmp_path, longer, seeds=[0], variants={"plain": {}}, minutes=0.1) == 0
    assert [options["max_epochs"] for options in longer.trained] == ["10"] and longer.measured == []


def test_random_weights_are_those_of_the_first_variant(data: Path, tmp_path: Path) -> None:
    def random(**changes: Any) -> dict[str, Any]:
        variants = {"plain": changes, "random": {"untrained": True}}
        assert start(data, tmp_path, Bundle(), seeds=[0], variants=variants) == 0
        (line,) = (line for line in lines(tmp_path) if line["variant"] == "random")
        return line

    def features(line: dict[str, Any]) -> list[int]:
        return list(read_checkpoint(tmp_path / "runs" / line["key"] / "encoder.pt")["config"]["features"])

    small, large = random(features=[4, 8]), random(features=[4, 16])
    assert (features(small), features(large)) == ([4, 8], [4, 16])
    assert small["key"] != large["key"] and rows(tmp_path)[1][0] == "random"
    assert rows(tmp_path)[1][3] == f"{100 * large['h']:.1f}"
    # What it would be trained with does not matter.
    assert random(features=[4, 16], alpha=5.0)["key"] == large["key"]
    assert len({line["key"] for line in lines(tmp_path)}) == 2


def test_a_folder_whose_name_has_a_space(data: Path, tmp_path: Path) -> None:
    commands: list[Sequence[str]] = []

    def keeps(command: Sequence[str], log: TextIO) -> int:
        commands.append(command)
        return in_process(command, log)

    shutil.copytree(data / "eyes", tmp_path / "my data/both eyes")
    changes: dict[str, Any] = {"dataset": "both eyes", "seeds": [0], "variants": {"plain": {}}, "minutes": 1e-6}
    assert start(tmp_path / "my data", tmp_path / "my results", keeps, **changes) == 0
    _, training = commands
    assert training[training.index("--dataset_dir") + 1] == str(tmp_path / "my data/both eyes")
    (line,) = lines(tmp_path / "my results")
    assert training[training.index("--output_dir") + 1] == str(tmp_path / "my results/runs" / line["key"])
    assert (tmp_path / "my results/parts_both eyes.json").is_file() and line["epochs"] == 1


def test_damaged_predictions_are_made_again(data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"seeds": [0], "variants": {"plain": {}, "other": {"alpha": 5.0}}}
    assert start(data, tmp_path, Bundle(), **changes) == 0
    table, before = rows(tmp_path), {line["key"]: line for line in lines(tmp_path)}
    files = sorted((tmp_path / "predictions").iterdir())
    assert len(files) == 4  # two representations of each run
    for damage in (b"", b"no archive", files[0].read_bytes()[:-40]):
        files[0].write_bytes(damage)
        assert start(data, tmp_path, never, **changes) == 0  # no training
        assert len(read_predictions(files[0]).folds) == 5
        assert {line["key"]: line for line in lines(tmp_path)} == before and rows(tmp_path) == table
    shutil.rmtree(tmp_path / "predictions")  # of both runs
    assert start(data, tmp_path, never, **changes) == 0
    assert {line["key"]: line for line in lines(tmp_path)} == before and rows(tmp_path) == table


def test_another_data_set_has_parts_of_its_own(data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"seeds": [0], "variants": {"plain": {}, "random": {"untrained": True}}}
    assert start(data, tmp_path, Bundle(), **changes) == 0
    first = (tmp_path / "parts_eyes.json").read_text()
    other = Bundle()
    assert start(data, tmp_path, other, "second", dataset="others", **changes) == 0
    assert other.measured == [] and [o["dataset_dir"] for o in other.trained] == [str(data / "others")]
    assert (tmp_path / "parts_eyes.json").read_text() == first
    found = {name: load_datalist(tmp_path / f"parts_{name}.json", "development") for name in ("eyes", "others")}
    for name, items in found.items():
        assert all(Path(item["image"]).is_relative_to((data / name).resolve()) for item in items)
    for name, items in (("views", found["eyes"]), ("second", found["others"])):
        assert f"({len(items)} images)" in (tmp_path / f"{name}.md").read_text()
    assert not {line["key"] for line in lines(tmp_path)} & {line["key"] for line in lines(tmp_path, "second")}
    assert start(data, tmp_path, never, **changes) == 0  # the first one's are still there


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "x"},
            "views: expected the keys about, dataset, minutes, seeds, settings, variants, got about, datas",
        ),
        ({"minutes": 0}, "views: minutes must be a positive number, got 0."),
        ({"minutes": "2"}, "views: minutes must be a positive number, got '2'."),
        ({"seeds": 3}, "views: seeds must be a list of whole numbers, got 3."),
        ({"seeds": [0, True]}, "views: seeds must be a list of whole numbers, got [0, True]."),
        ({"minutes": float("inf")}, "views: minutes must be a positive number, got inf."),
        ({"seeds": []}, "views: seeds must be a list of whole numbers, got []."),
        ({"seeds": [1, 1]}, "views: seeds must differ, got [1, 1]."),
        ({"dataset": 3}, "views: dataset must be a path below that of the data sets, got 3."),
        ({"settings": []}, "views: settings and variants must be objects, got [] and {"),
        ({"variants": {}}, "views: settings and variants must be objects, got {"),
        ({"variants": [{}]}, "views: settings and variants must be objects, got {"),
        ({"variants": {"a": 3}}, "views: the variant 'a' must be an object of settings, got 3."),
        ({"variants": {"a": {}, "b": {}}}, "views: the variants 'a' and 'b' have the same settings."),
        (
            {"variants": {"a": {}, "b=2": {"alpha": 2}}},
            "views: the name of a variant must be free of =, @ and |, got 'b=2'.",
        ),
        ({"variants": {" ": {}}}, "views: the name of a variant must be free of =, @ and |, got ' '."),
        (
            {"variants": {"a": {}, "b": {"untrained": True, "alpha": 2}}},
            "views: random weights are {\"untrained\": true} alone, the variant 'b' is {'untrained': True, 'alpha'",
        ),
        (
            {"variants": {"a": {}, "b": {"untrained": False}}},
            'views: random weights are {"untrained": true} alone, the',
        ),
        ({"settings": {"untrained": True}}, "views: untrained is for a variant, not for the settings of all."),
        ({"variants": {"a": {"untrained": True}}}, "views: expected at least one variant that is trained."),
        ({"variants": {"a": {"recipe": "papers"}}}, "recipe must be one of paper, fundus, got 'papers'."),
    ],
)
def test_mistake_in_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "views.json").write_text(json.dumps(config(**changes)))
    assert sweep.main([str(tmp_path / "views.json"), "--results", str(tmp_path / "results")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {message}") and error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_files_that_are_none(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "views.json"
    assert sweep.main([str(path)]) == 1
    assert capsys.readouterr().err == f"Error: there is no configuration {path}.\n"
    path.write_text("{")
    assert sweep.main([str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {path} is damaged (Expecting property name") and error.count("\n") == 1

    sweep.write_parts(str(data / "eyes"), tmp_path / "parts.json")
    for text in ("{", "[]\n", "{}\n"):
        (tmp_path / "views.jsonl").write_text(text)
        assert start(data, tmp_path, never) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"Error: {tmp_path / 'views.jsonl'} is damaged (") and error.count("\n") == 1
        assert error.endswith("); remove it: what was trained is used again.\n")


def test_a_training_without_an_encoder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ends(command: Sequence[str], log: TextIO) -> int:
        return 0 if "phantom" not in command[command.index("--dataset_dir") + 1] else Bundle()(command, log)

    assert start(data, tmp_path, ends, variants={"plain": {}}, seeds=[0]) == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert capsys.readouterr().err == f"Error: the training in {folder} ended without an encoder.pt, see train.log\n"


def test_runs_are_found_by_the_values_of_their_recipe() -> None:
    values = sweep._values({"recipe": "paper", "alpha": 1.0})
    assert (values["image_size"], values["optimizer"], values["alpha"]) == (224, "lars", 1.0)
    assert sweep._values({})["optimizer"] == "adamw"  # of the recipe that is the default
