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

import contextlib
import importlib
import json
import logging
import os
import shutil
import signal
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


with pytest.MonkeyPatch.context() as path:  # scripts, no package
    path.syspath_prepend(str(EXPERIMENTS))
    common, table1, figure3 = (importlib.import_module(name) for name in ("common", "table1", "figure3"))


def tiny(**changes: Any) -> Any:
    """Settings that run in seconds."""
    sources = common.SOURCES
    settings = {
        "name": "test",
        "features": (4, 8),
        "image_size": dict.fromkeys(sources, 32),
        "epochs": dict.fromkeys(sources, 1),
        "training": {"batch_size": 8, "probe_every": 0, "pictures_every": 0},
        "supervised": {row: dict.fromkeys(sources, {"epochs": 1}) for row in common.CPU_SUPERVISED},
        "evaluation": {"replicates": 100, "untrained_seeds": [0, 1], "workers": 1},
        "datasets": {"circle-square": "circle-square:train=24,test=12"},
    }
    return common.Preset(**{**settings, **changes})


def in_process(command: Sequence[str], log: TextIO) -> int:
    """Runs the command line of a job here, which spares it seconds of imports."""
    import fire
    import monai.bundle

    from conrec_monai import cli

    assert command[:4] == [sys.executable, "-W", "ignore", "-m"]
    loggers = [logging.getLogger(name) for name in (None, "conrec_monai", "ignite")]
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            if command[4] == "monai.bundle":
                fire.Fire({"run": monai.bundle.run}, command=list(command[5:]))
                return 0
            return cli.main(command[5:])
    finally:  # a bundle sets up logging for its process, here on files that are closed soon
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def never(command: Sequence[str], log: TextIO) -> int:
    raise AssertionError(f"ran again: {command}")


def columns(*keys: str) -> list[Any]:
    return common.chosen("columns", keys, common.COLUMNS)


def rows(*keys: str) -> list[Any]:
    return common.chosen("rows", keys, common.ROWS)


# --- the whole way, on drawn pictures ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder of results with the two models of a drawn set, and the lines that were printed."""
    results, lines = tmp_path_factory.mktemp("results"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "run_child", in_process)
        lab = common.Lab(tiny(), "nowhere", results, command="python table1.py", progress=lines.append)
        lab.densenet = None  # whatever this machine's cache holds
        table1.run(lab, columns("circle-square", "dogs"), rows("conrec", "densenet-imagenet", "unet-supervised"))
    return results, lines


def test_the_whole_table(finished: tuple[Path, list[str]]) -> None:
    results, lines = finished
    started = [line for line in lines if line.endswith("...")]
    assert started == [
        "[1/3] circle-square, ConRec U-net: pretraining ...",
        "[2/3] circle-square: evaluation of the frozen encoders ...",
        "[3/3] circle-square, U-net (random, supervised): supervised training ...",
    ]
    assert lines[-1] == "dogs: absent, stanford_dogs is not in the data folder"

    cell = json.loads((results / "cells/circle-square/conrec.json").read_text())
    assert [job["job"] for job in cell["jobs"]] == ["pretraining", "evaluation"]
    assert cell["jobs"][0]["epochs"] == 1 and cell["jobs"][0]["images"] == 24
    assert cell["jobs"][0]["settings"]["features"] == [4, 8] and cell["jobs"][0]["seconds"] > 0
    assert {job["machine"]["threads"] for job in cell["jobs"]} and len(cell["models"][0]["sha256"]) == 64
    run = {(entry["model"], entry["protocol"], entry["variant"]) for entry in cell["results"]}
    protocols = [("linear", "published"), ("linear", "standardized"), ("levels", None), ("knn", None)]
    assert run == {("ConRec U-net", *protocol) for protocol in protocols}
    assert {"mean", "folds", "interval"} <= cell["results"][0]["metrics"]["top1"].keys()
    others = {c["other"] for c in cell["comparisons"]}
    assert others == {"untrained, seed 0", "untrained, seed 1", "shortcut baseline", "color baseline"}
    # The pretraining leaves the test pictures out, and nothing of this machine is written down.
    assert not any("transductive" in statement for statement in cell["statements"])
    for path in results.glob("cells/*/*.json"):
        assert str(results) not in path.read_text() and str(Path.home()) + "/" not in path.read_text()

    seeds = json.loads((results / "cells/circle-square/untrained-attention.json").read_text())
    assert {entry["model"] for entry in seeds["results"]} == {"untrained, seed 0", "untrained, seed 1"}
    supervised = json.loads((results / "cells/circle-square/unet-supervised.json").read_text())
    assert [entry["protocol"] for entry in supervised["results"]] == ["supervised"]
    assert supervised["jobs"][0]["settings"]["fine_tuning"]["supervised"]["epochs"] == 1
    assert "average pooling" in supervised["models"][0]["architecture"]
    assert not any("does not say" in statement for statement in supervised["statements"])
    for path, reason in (("dogs/conrec", "data folder"), ("circle-square/densenet-imagenet", "weights")):
        absent = json.loads((results / f"cells/{path}.json").read_text())
        assert absent["status"] == "absent" and reason in absent["reason"]

    text = (results / "table1.md").read_text()
    assert "| Dogs | absent: stanford_dogs is not in the data folder | | | | |" in text
    assert "24 (official split) | 12 |" in text and "nothing is downloaded" in text


def test_what_is_finished_is_not_repeated(finished: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    results, _ = finished
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    monkeypatch.setattr(common, "run_child", never)
    lines: list[str] = []
    lab = common.Lab(tiny(), "nowhere", results, command="python table1.py", progress=lines.append)
    lab.densenet = None
    table1.run(lab, columns("circle-square", "dogs"), rows("conrec", "densenet-imagenet", "unet-supervised"))
    assert [line.rpartition(": ")[2] for line in lines[:3]] == ["done before"] * 3
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()} == before


def test_another_setting_runs_again(finished: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    results, _ = finished
    monkeypatch.setattr(common, "run_child", never)
    lab = common.Lab(tiny(), "nowhere", results, progress=lambda line: None, supervised_epochs=2)
    column, row = columns("circle-square")[0], rows("unet-supervised")[0]
    assert lab.fine_tuning(column, row) == {"epochs": 2}
    assert not table1._supervised_job(lab, column, row).done()


def test_time_is_that_of_the_very_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted job adds its parts up; one of other settings does not count what was done before."""
    monkeypatch.setattr(common, "run_child", lambda command, log: 0)
    lab = common.Lab(tiny(), "nowhere", tmp_path)
    (column,) = columns("circle-square")
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(common.time, "monotonic", lambda: next(clock))
    seconds = []
    for seed in (0, 0, 1):
        lab.evaluate(tmp_path / "e", {}, lab.arguments(column, seed=seed))
        seconds.append(json.loads((tmp_path / "e" / "job.json").read_text())["seconds"])
    assert seconds == [10, 20, 10]


def test_supervised_rows_have_the_folds_of_the_frozen_ones(
    finished: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results"
    shutil.copytree(finished[0], folder)
    evaluations = folder / "evaluations/circle-square"
    job = json.loads((evaluations / "unet-supervised/job.json").read_text())
    assert "--folds RESULTS/evaluations/circle-square/frozen/folds.json" in job["command"]
    assert "folds" not in job["key"]  # their path says nothing
    lab = common.Lab(tiny(), "nowhere", folder, progress=lambda line: None)
    supervised = table1._supervised_job(lab, columns("circle-square")[0], rows("unet-supervised")[0])
    assert supervised.done()
    plan = json.loads((evaluations / "frozen/folds.json").read_text())
    plan["folds"][0]["test"].reverse()
    (evaluations / "frozen/folds.json").write_text(json.dumps(plan))
    assert not supervised.done()
    # Not scored before: folds of its own.
    shutil.rmtree(evaluations / "frozen")
    assert supervised.done()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"batch_size": 4}}, "batch_size 8 then, 4 now"),
        ({"image_size": dict.fromkeys(("circle-square",), 64)}, "image_size 32 then, 64 now"),
        ({"datasets": {"circle-square": "circle-square:train=25,test=12"}}, "other images"),
    ],
)
def test_a_pretraining_that_differs_is_an_error(
    finished: tuple[Path, list[str]], changes: dict[str, Any], message: str
) -> None:
    lab = common.Lab(tiny(**changes), "nowhere", finished[0])
    with pytest.raises(ValueError, match=message):
        lab.is_pretrained(columns("circle-square")[0], rows("conrec")[0])


def test_a_failed_job_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: Sequence[str], log: TextIO) -> int:
        print("first\nError: no such thing", file=log)
        return 1

    monkeypatch.setattr(common, "run_child", fails)
    lab = common.Lab(tiny(), "nowhere", tmp_path, progress=lambda line: None)
    with pytest.raises(ValueError, match=r"conrec failed, train\.log ends with: Error: no such thing"):
        table1.run(lab, columns("circle-square"), rows("conrec"))


def test_figure(finished: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    results, _ = finished
    monkeypatch.setattr(common, "run_child", in_process)
    monkeypatch.setattr(figure3, "FRACTIONS", (0.5, 1.0))
    monkeypatch.setattr(figure3, "REPEATS", 2)
    lab = common.Lab(tiny(), "nowhere", results, command="python figure3.py", progress=lambda line: None)
    figure3.run(lab, columns("circle-square", "dogs"), rows("conrec"))
    summary = json.loads((results / "figure3.json").read_text())
    panels = {panel["column"]: panel for panel in summary["panels"]}
    assert panels["dogs"]["status"] == "absent" and panels["rectangle-triangle"]["status"] is None
    curves = {curve["name"]: curve["points"] for curve in panels["circle-square"]["curves"]}
    assert list(curves) == ["ConRec U-net", "untrained encoders", "shortcut baseline", "color baseline"]
    assert [point["fraction"] for point in curves["ConRec U-net"]] == [0.5, 1.0]
    # All labels: the score of the table.
    cell = json.loads((results / "cells/circle-square/conrec.json").read_text())
    (entry,) = [e for e in cell["results"] if e["variant"] == "standardized"]
    assert curves["ConRec U-net"][1]["value"] == pytest.approx(entry["metrics"]["top1"]["mean"])
    untrained = curves["untrained encoders"][1]
    assert len(untrained["values"]) == 2 and untrained["value"] == pytest.approx(sum(untrained["values"]) / 2)
    assert [job["job"] for job in panels["circle-square"]["jobs"]] == ["pretraining", "evaluation"]
    assert str(results) not in (results / "figure3.json").read_text()
    assert (results / "figure3.png").read_bytes().startswith(b"\x89PNG")
    labels = "".join(ElementTree.parse(results / "figure3.svg").getroot().itertext())
    assert "share of the training labels" in labels and "ConRec U-net" in labels and "absent" in labels
    assert panels["circle-square"]["train_images"] == [{"fraction": 0.5, "mean": 12}, {"fraction": 1.0, "mean": 24}]
    text = (results / "figure3.md").read_text()
    assert "| model | 50 % | 100 % |" in text and "| *training images, mean* | *12* | *24* |" in text
    assert "do not cover the draw of the labels" in text and figure3._train_images({"results": [{}]}) == []


# --- the table, from cells by hand ------------------------------------------------------------------------------------


def scores(model: str, **by_protocol: Any) -> list[dict[str, Any]]:
    """Results with one value, or mean and interval, by protocol."""
    entries = []
    for name, (mean, interval) in by_protocol.items():
        protocol, _, variant = name.partition("_")
        metrics = {"qwk": {"mean": mean, "std": 0.0, "folds": [mean], "interval": interval}}
        entries.append({"model": model, "protocol": protocol, "variant": variant or None, "metrics": metrics})
    return entries


def cell(key: str, results: list[dict[str, Any]], **others: Any) -> dict[str, Any]:
    title = {row.key: row.title for row in common.ROWS}.get(key) or dict(table1.REFERENCES)[key]
    job = {
        "job": "evaluation",
        "command": "evaluate frozen",
        "settings": {},
        "seconds": 90.0,
        "machine": {"processor": "abacus", "threads": 2},
        "versions": {"torch": "1"},
    }
    folds = {"kind": "grouped", "n": 5, "repeats": 1, "left_out": 0, "train": [80, 81], "test": [20, 19]}
    return {
        "preset": "test",
        "status": "done",
        "model": title,
        "metric": "qwk",
        "jobs": [job],
        "dataset": {"labelled": 100},
        "classes": [{"name": "0", "count": 60}, {"name": "1", "count": 40}, {"name": "2", "count": 0}],
        "folds": folds,
        "results": results,
        "comparisons": [],
        "statements": ["Patients are not known."],
        **others,
    }


def test_markdown_of_given_cells(tmp_path: Path) -> None:
    def difference(model: str, other: str, value: float, interval: list[float] | None) -> dict[str, Any]:
        metrics = {"qwk": {"difference": value, "interval": interval, "p": 0.5}}
        return {"model": model, "other": other, "protocol": "linear", "variant": "standardized", "metrics": metrics}

    conrec = "ConRec U-net"
    values = {"linear_published": (0.0, [0.0, 0.1]), "linear_standardized": (0.7, [0.6, 0.8]), "levels": (0.65, None)}
    seeds = [scores(f"untrained, seed {i}", linear_standardized=(0.66 + 0.02 * i, [0.5, 0.9]))[0] for i in range(3)]
    cells = {
        "conrec": cell(
            "conrec",
            scores(conrec, **values),
            comparisons=[
                difference(conrec, "shortcut baseline", -0.05, [-0.08, -0.02]),
                difference("SimCLR U-net", conrec, -0.03, [-0.05, -0.01]),  # the other way round
                difference(conrec, "untrained, seed 0", 0.01, [-0.02, 0.04]),
                difference(conrec, "untrained, seed 1", 0.03, [0.01, 0.05]),
                difference(conrec, "untrained, seed 2", -0.01, [-0.02, 0.04]),
                difference(conrec, "color baseline", 0.01, None),
            ],
            statements=["Patients are not known.", "ConRec U-net: transductive."],
        ),
        "untrained-attention": cell("untrained-attention", seeds),
        "unet-supervised": cell("unet-supervised", scores("random", supervised=(None, [None, None]))),
        "densenet-imagenet": {"preset": "test", "status": "absent", "reason": "no weights"},
    }
    for key, content in cells.items():
        common.write_json(tmp_path / "cells/aptos" / f"{key}.json", content)
    lab = common.Lab(tiny(), "nowhere", tmp_path, command="python table1.py")
    summary = json.loads(json.dumps(table1.summarize(lab)))
    assert summary["cells"]["aptos"]["untrained-attention"]["values"] == [
        {
            "protocol": "linear",
            "variant": "standardized",
            "value": pytest.approx(0.68),
            "range": [pytest.approx(0.66), pytest.approx(0.70)],
            "seeds": 3,
        }
    ]
    text = table1.markdown(summary)
    tables = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    standardized = tables["Linear model, standardized: the claims rest on this"]
    assert "| ConRec U-net | yes | *89.44* | 70.0 [60.0, 80.0] |  | *90.29* |" in standardized
    assert "| untrained, attention pooling | yes |  | 68.0 (66.0 to 70.0) |" in standardized
    assert "| DenseNet121 (ImageNet) | yes | *86.70* | absent |  | *(92.97)* |" in standardized
    assert "| U-net (random, supervised) | no | *82.11* | undefined [undefined, undefined] |" in standardized
    assert "*its settings differ*" in text
    published = tables["Linear model, as published (raw representation, C = 1)"]
    assert "| ConRec U-net | yes | *89.44* | 0.0 [0.0, 10.0] |" in published
    assert "| ConRec U-net | yes | 65.0 |" in tables["Linear model on all levels of the encoder"]
    assert "20 nearest neighbors" not in tables  # nobody was scored by them
    less = tables["ConRec less the others"]
    assert "| shortcut baseline | -5.0 [-8.0, -2.0] |" in less
    assert "| SimCLR U-net | +3.0 [+1.0, +5.0] |" in less
    assert (
        "- APTOS: ConRec is ahead of SimCLR U-net. It is behind shortcut baseline. It is not told apart from color"
        " baseline. It is ahead of 1 and not told apart from 2 of 3 untrained encoders with attention pooling." in less
    )
    assert "do not cover another seed" in less and "not corrected for the number of comparisons" in less
    kappa = "quadratic weighted kappa x 100"
    assert f"| APTOS | {kappa} | 100 | 2 of the paper's 5 | 80 to 81 in each of 5 grouped folds | 19 to 20 |" in text
    assert "- DenseNet121 (ImageNet): absent, no weights." in text and "| Flowers | not run | | | | |" in text
    assert text.count("APTOS: Patients are not known.") == 1 and "- APTOS: ConRec U-net: transductive." in text
    assert "| APTOS | evaluation of the frozen models | 1.5 |\n| APTOS | all | 1.5 |" in text  # shared: counted once
    assert "On abacus, 2 threads; torch 1." in text


def test_settings_are_those_of_the_cells(tmp_path: Path) -> None:
    """Whatever the command at hand would do; models that were trained differently are pointed out."""

    def trained(key: str, epochs: int) -> dict[str, Any]:
        content = cell(key, scores(key, knn=(0.5, None)))
        given = {"image_size": 48, "features": [3, 5], "optimizer": "lars", "workers": 9}
        content["jobs"] = [{**content["jobs"][0], "job": "pretraining", "epochs": epochs, "settings": given}]
        return content

    supervised = cell("unet-supervised", scores("random", supervised=(0.5, None)))
    chosen = {"epochs": 7, "optimizer": "sgd", "freeze": False}
    supervised["jobs"] = [{**supervised["jobs"][0], "settings": {"fine_tuning": {"supervised": chosen}}}]
    cells = {"conrec": trained("conrec", 11), "simclr": trained("simclr", 12), "unet-supervised": supervised}
    for key, content in cells.items():
        common.write_json(tmp_path / "cells/dogs" / f"{key}.json", content)
    lab = common.Lab(tiny(), "nowhere", tmp_path, epochs=99, supervised_epochs=98)
    text = table1.markdown(json.loads(json.dumps(table1.summarize(lab))))
    assert "library at 48 px, channels 3-5." in text
    assert "| Dogs | 48 | 3-5 | 12 or 11 | optimizer lars | optimizer sgd, epochs 7 |  |" in text
    assert "- Dogs: **the models differ in epochs** (12: SimCLR U-net; 11: ConRec U-net)." in text
    assert "differ in image_size" not in text and "| Flowers | 32" not in text


def test_cells_of_another_preset_are_an_error(tmp_path: Path) -> None:
    common.write_json(tmp_path / "cells/aptos/conrec.json", {"preset": "cpu", "status": "done"})
    with pytest.raises(ValueError, match="results of the preset cpu"):
        table1.summarize(common.Lab(tiny(), "nowhere", tmp_path))


def test_a_cell_that_was_computed_stays_when_its_data_goes(tmp_path: Path) -> None:
    path = tmp_path / "cells/dogs/conrec.json"
    common.write_json(path, cell("conrec", []))
    lab = common.Lab(tiny(), "nowhere", tmp_path, progress=lambda line: None)
    table1.run(lab, columns("dogs"), rows("conrec", "simclr"))
    assert json.loads(path.read_text())["status"] == "done"
    assert json.loads((path.parent / "simclr.json").read_text())["status"] == "absent"


# --- parts ------------------------------------------------------------------------------------------------------------


def test_commands_of_the_cpu_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/aptos2019").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    lab = common.Lab(common.PRESETS["cpu"], "data", "out")
    column, normalized = columns("aptos", "aptos-normalized")
    command = lab.pretraining_command(column, rows("simclr")[0])
    given = "--image_size 64 --features [16,32,64,128] --max_epochs 16 --batch_size 32 --optimizer adamw"
    given += " --schedule warmup_cosine --probe_every 0 --pictures_every 0 --seed 0 --resume True"
    given += " --decoder False --masked_views 0 --pooling average"
    assert command[command.index("--image_size") :] == given.split()
    assert command[command.index("--output_dir") + 1] == "out/pretrained/aptos/simclr"
    # The same encoders, other images.
    assert lab.pretraining_command(normalized, rows("simclr")[0]) == command
    arguments = lab.arguments(
        normalized, protocols=["linear"], untrained_seeds=[], fine_tuning={"epochs": 3}, folds=None
    )
    assert lab.evaluation_command(Path("out/e"), {"A b": Path("x.pt")}, arguments) == (
        "-W ignore -m conrec_monai evaluate|A b=x.pt|--dataset|data/aptos2019|--field-of-view|normalize|--seed|0"
        "|--protocols|linear|--untrained-seeds|--fine-tuning|epochs=3|--output|out/e"
    ).replace("-W ignore -m conrec_monai evaluate", "-W|ignore|-m|conrec_monai|evaluate").split("|")
    assert common.Lab(common.PRESETS["gpu"], "data", "out", epochs=7).max_epochs(column) == 7


def test_every_preset_has_all_columns_and_rows() -> None:
    for preset in common.PRESETS.values():
        for column in common.COLUMNS:
            assert preset.image_size[column.source] > 0 and preset.epochs[column.source] > 0
            for row in common.ROWS:
                assert row.kind != "supervised" or column.source in preset.supervised[row.key]
    assert [row.key for row in common.PRETRAINED] == ["conrec", "simclr", "simclr-attention"]


def test_paths_of_this_machine_are_not_written(tmp_path: Path) -> None:
    lab = common.Lab(tiny(), tmp_path / "data", tmp_path / "out")
    lab.densenet = tmp_path / "weights" / "w.pth"
    text = f"{tmp_path}/out/a {tmp_path}/data/b {tmp_path}/weights/w.pth {common.ROOT}/bundles"
    assert lab.portable({"a": [text, 1]}) == {"a": ["RESULTS/a DATA/b w.pth bundles", 1]}
    inside = common.Lab(tiny(), "data", tmp_path / "out")
    inside.results = common.ROOT / "output" / "x"
    assert inside.portable(f"{common.ROOT}/output/x/y data/z") == "output/x/y data/z"


def test_an_interruption_is_handed_on_and_waited_for(tmp_path: Path) -> None:
    # The child interrupts its parent as Ctrl-C would, and ends when it is interrupted itself. A shell that starts the
    # tests in the background lets them ignore that.
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n    os.kill(os.getppid(), signal.SIGINT)\n    while True: signal.pause()\n"
        "except KeyboardInterrupt:\n    print('saved', flush=True)\n"
    )
    log = tmp_path / "log"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with log.open("w") as file, pytest.raises(KeyboardInterrupt):
            common.run_child([sys.executable, "-c", code], file)
    finally:
        signal.signal(signal.SIGINT, before)
    assert log.read_text() == "saved\n"


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common_options = ["--results", str(tmp_path), "--data", str(tmp_path)]
    for options, message in (
        (["--columns", "aptso"], "columns must be some of aptos, aptos-normalized, flowers, dogs,"),
        (["--rows", "x"], "rows must be some of simclr,"),
        (["--epochs", "0"], "epochs must be at least 1, got 0."),
        (["--supervised-epochs", "-1"], "supervised_epochs must be at least 1, got -1."),
        (["--densenet", "none.pth"], "no ImageNet weights at none.pth"),
    ):
        assert table1.main([*common_options, *options]) == 1
        error = capsys.readouterr().err
        assert error.startswith("Error: ") and message in error and error.count("\n") == 1
    (tmp_path / "cells" / "aptos").mkdir(parents=True)
    (tmp_path / "cells" / "aptos" / "conrec.json").write_text("{")
    assert table1.main([*common_options, "--columns", "aptos"]) == 1
    assert "conrec.json is damaged" in capsys.readouterr().err


def test_a_file_with_the_same_text_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    common.write_text(path, "x")
    os.utime(path, ns=(1, 1))
    common.write_text(path, "x")
    assert path.stat().st_mtime_ns == 1
    common.write_text(path, "y")
    assert path.read_text() == "y" and [p.name for p in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("sees", [True, False])
def test_an_encoder_that_does_not_say_what_it_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sees: bool) -> None:
    title, other = "ConRec U-net", "SimCLR U-net"
    silent = "the checkpoint does not say which images it was pretrained on."
    metrics = {
        "models": [{"name": name, "kind": "checkpoint", "transductive": None} for name in (title, other)],
        "metrics": ["qwk"],
        "settings": {"seed": 0},
        "dataset": {},
        "classes": [],
        "folds": {},
        "results": scores(title, knn=(0.5, None)) + scores(other, knn=(0.4, None)),
        "comparisons": [{"model": title, "other": other}, {"model": other, "other": "color baseline"}],
        "statements": ["Duplicates.", f"{title}: {silent}", f"{other}: {silent}"],
    }
    common.write_json(tmp_path / "e" / "metrics.json", metrics)
    lab = common.Lab(tiny(), "nowhere", tmp_path)
    monkeypatch.setattr(lab, "describe_evaluation", lambda folder: {"job": "evaluation"})
    monkeypatch.setattr(
        lab, "describe_pretraining", lambda column, row: {"job": "pretraining", "sees_test_images": sees}
    )
    table1._write_cell(lab, columns("aptos")[0], "conrec", title, tmp_path / "e", [title], rows("conrec")[0])
    content = json.loads((tmp_path / "cells/aptos/conrec.json").read_text())
    told = [f"{title}: transductive, it was pretrained on the test images too, without labels."]
    assert content["statements"] == ["Duplicates.", *(told if sees else [])]
    assert [entry["model"] for entry in content["results"]] == [title]
    assert content["comparisons"] == [{"model": title, "other": other}]
