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
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from PIL import Image
from torch.utils.data import DataLoader

from conrec_monai.data import FitImage, ImageStream, fundus_phantom, read_image
from conrec_monai.engines import PrepareUnitBatch
from conrec_monai.evaluation import graded
from conrec_monai.handlers import PredictionWriter
from conrec_monai.networks.nets import ConRecEncoder, GradingNet
from conrec_monai.networks.nets.grading_net import TASKS

CLASSES = ["none", "mild", "moderate"]
GOOD = [0.7, 0.2, 0.1]


def entry(name: str = "a.png", probabilities: Sequence[float] = GOOD, **more: Any) -> dict[str, Any]:
    """An image of a batch, with what the network says of it."""
    return {"name": name, "frame": None, "status": "ok", "reason": "", "warnings": [], "pred": probabilities, **more}


def failed(name: str, reason: str = "damaged", **more: Any) -> dict[str, Any]:
    return entry(name, status="error", reason=reason, **more)


def batch_of(*entries: dict[str, Any]) -> dict[str, Any]:
    batch = {key: [entry[key] for entry in entries] for key in entries[0]}
    return {**batch, "file": ["abc".find(name[:1]) for name in batch["name"]]}  # a.png is the first of three


def say(engine: Engine, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    if isinstance(batch, BaseException):
        raise batch
    return {"pred": torch.tensor(batch["pred"], dtype=torch.float32)}


def write(folder: Path, *batches: Any, task: str = "ordinal", classes: Sequence[str] = CLASSES, **options: Any) -> None:
    engine = Engine(say)
    PredictionWriter(folder, task, classes, **options).attach(engine)
    engine.run(batches)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def document(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "predictions.json").read_text(encoding="ascii"))
    return content


def test_table_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "conrec_monai"):
        write(
            tmp_path,
            batch_of(entry("a.png"), entry("b.tif", [0.25, 0.3, 0.45], frame=0, warnings=["too dark", "no color"])),
            batch_of(failed("b.tif", "broken, it is", frame=1), entry("b.tif", [0, 1 / 3, 2 / 3], frame=2)),
            batch_of(failed("c.png")),
        )
    assert (tmp_path / "predictions.csv").read_bytes().decode() == (
        "image,frame,status,reason,grade,p_0,p_1,p_2,referable,confidence,warnings\r\n"
        "a.png,,ok,,0,0.7000,0.2000,0.1000,0.1000,0.7000,\r\n"
        # The median is grade 1, though 2 is the most probable one.
        "b.tif,0,ok,,1,0.2500,0.3000,0.4500,0.4500,0.3000,too dark; no color\r\n"
        'b.tif,1,error,"broken, it is",,,,,,,\r\n'
        "b.tif,2,ok,,2,0.0000,0.3333,0.6667,0.6667,0.6667,\r\n"
        "c.png,,error,damaged,,,,,,,\r\n"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["predictions.csv", "predictions.json"]
    assert "3 of 5 images (3 files) graded in " in caplog.text
    assert " images/s, 1 with warnings, 2 could not be read; written to " in caplog.text


def test_document_by_hand(tmp_path: Path) -> None:
    write(
        tmp_path,
        batch_of(entry("a.png", warnings=["too dark", "no color"]), failed("b.tif", frame=7)),
        model={"checkpoint": "ä.pt", "preprocessing": {"image_size": 32, "field_of_view": None}},
    )
    assert document(tmp_path) == {
        "schema": 1,
        "classes": CLASSES,
        "model": {"checkpoint": "ä.pt", "preprocessing": {"image_size": 32, "field_of_view": None}},
        "predictions": [
            {
                "image": "a.png",
                "frame": None,
                "status": "ok",
                "reason": None,
                "grade": 0,
                "probabilities": [0.7, 0.2, 0.1],
                "referable": 0.1,
                "confidence": 0.7,
                "warnings": ["too dark", "no color"],
            },
            {
                "image": "b.tif",
                "frame": 7,
                "status": "error",
                "reason": "damaged",
                "grade": None,
                "probabilities": None,
                "referable": None,
                "confidence": None,
                "warnings": [],
            },
        ],
    }


@pytest.mark.parametrize(
    ("classes", "probabilities", "options", "referable"),
    [
        (["no", "yes"], [0.4, 0.6], {}, ""),  # no grade 2
        (["cat", "dog", "cow"], [0.4, 0.25, 0.35], {"ordinal": False, "task": "categorical"}, ""),
        (["a", "b", "c", "d"], [0.1, 0.2, 0.3, 0.4], {}, "0.7000"),
        (["a", "b", "c", "d"], [0.1, 0.2, 0.3, 0.4], {"task": "regression"}, "0.7000"),
    ],
)
def test_referable(
    classes: list[str], probabilities: list[float], options: dict, referable: str, tmp_path: Path
) -> None:
    write(tmp_path, batch_of(entry(probabilities=probabilities)), classes=classes, **options)
    (row,) = table(tmp_path)
    assert row["referable"] == referable
    assert document(tmp_path)["predictions"][0]["referable"] == (float(referable) if referable else None)


def test_classes_are_those_of_the_highest_probability(tmp_path: Path) -> None:
    write(tmp_path, batch_of(entry(probabilities=[0.3, 0.25, 0.45])), task="categorical", ordinal=False)
    (row,) = table(tmp_path)
    assert (row["grade"], row["confidence"]) == ("2", "0.4500")


def _value(text: str) -> float | None:
    return float(text) if text else None


@settings(deadline=None, max_examples=20)
@given(
    entries=st.lists(
        st.tuples(
            st.text(
                st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from(",\n\r\"'; \udcff"),
                min_size=1,
                max_size=8,
            ),
            st.booleans(),
            st.none() | st.integers(0, 20),
            st.lists(st.sampled_from(["too dark", "no color", "small: the field of view has 9 pixels"]), unique=True),
        ),
        min_size=1,
        max_size=8,
    ),
    seed=st.integers(0, 99),
)
def test_nothing_is_lost_and_both_files_are_equal(
    entries: list[tuple[str, bool, int | None, list[str]]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("predictions")
    probabilities = np.random.RandomState(seed).dirichlet([1, 1, 1], len(entries))
    made = [
        entry(name, p.tolist(), frame=frame, warnings=warnings)
        if ok
        else failed(name, f"cannot read image {name}", frame=frame)
        for (name, ok, frame, warnings), p in zip(entries, probabilities, strict=True)
    ]
    readable = any(ok for _, ok, *_ in entries)
    with nullcontext() if readable else pytest.raises(SystemExit, match="none of the . images could be read"):
        write(folder, *(batch_of(*made[i : i + 3]) for i in range(0, len(made), 3)))
    rows, predictions = table(folder), document(folder)["predictions"]
    assert len(rows) == len(predictions) == len(made)
    for given_entry, p, row, prediction in zip(made, probabilities, rows, predictions, strict=True):
        ok = given_entry["status"] == "ok"
        assert row["image"] == prediction["image"] == given_entry["name"]
        assert row["reason"] == (prediction["reason"] or "") == given_entry["reason"]
        assert row["status"] == prediction["status"] == given_entry["status"]
        assert prediction["frame"] == given_entry["frame"] and row["frame"] == str(
            "" if given_entry["frame"] is None else given_entry["frame"]
        )
        assert prediction["warnings"] == given_entry["warnings"]
        assert row["warnings"] == "; ".join(given_entry["warnings"])
        assert [prediction[name] for name in ("grade", "referable", "confidence")] == [
            _value(row[name]) for name in ("grade", "referable", "confidence")
        ]
        assert (prediction["probabilities"] or [None] * 3) == [_value(row[f"p_{i}"]) for i in range(3)]
        if ok:
            np.testing.assert_allclose(prediction["probabilities"], p, atol=6e-5)
        assert (prediction["grade"] is not None) is ok


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xe4, \n.png")
    write(tmp_path, batch_of(entry(name)))
    assert b'"\xe4, \n.png"' in (tmp_path / "predictions.csv").read_bytes()  # the bytes of the file's name
    assert os.fsencode(table(tmp_path)[0]["image"]) == b"\xe4, \n.png"
    assert os.fsencode(document(tmp_path)["predictions"][0]["image"]) == b"\xe4, \n.png"


def test_interrupted_run_keeps_its_rows(tmp_path: Path) -> None:
    (tmp_path / "predictions.json").write_text("of an earlier run")
    batches = [batch_of(entry("a.png"), entry("b.png")), KeyboardInterrupt(), batch_of(entry("c.png"))]
    with pytest.raises(SystemExit, match=r"Interrupted\. .*predictions\.csv holds the 2 images that were done"):
        write(tmp_path, *batches)
    assert [row["image"] for row in table(tmp_path)] == ["a.png", "b.png"]
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.csv"]  # the old one would not fit
    write(tmp_path, *batches[::2])  # anew
    assert [row["image"] for row in table(tmp_path)] == ["a.png", "b.png", "c.png"]
    assert len(document(tmp_path)["predictions"]) == 3


def test_failed_run_keeps_its_rows(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        write(tmp_path, batch_of(entry("a.png")), RuntimeError("out of memory"))
    assert [row["image"] for row in table(tmp_path)] == ["a.png"]
    assert not (tmp_path / "predictions.json").exists()


def test_rows_are_written_batch_by_batch(tmp_path: Path) -> None:
    found = []

    def look(engine: Engine, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        found.append([row["image"] for row in table(tmp_path)])
        return say(engine, batch)

    engine = Engine(look)
    PredictionWriter(tmp_path, "ordinal", CLASSES).attach(engine)
    engine.run([batch_of(entry("a.png"), entry("b.png")), batch_of(entry("c.png")), batch_of(entry("d.png"))])
    assert found == [[], ["a.png", "b.png"], ["a.png", "b.png", "c.png"]]


def test_probabilities_that_are_not_finite(tmp_path: Path) -> None:
    write(tmp_path, batch_of(entry("a.png"), failed("b.png", pred=[math.nan] * 3)))  # of a black image: not used
    assert table(tmp_path)[1]["grade"] == ""
    with pytest.raises(ValueError, match="probabilities are not finite: the weights of the network are damaged"):
        write(tmp_path, batch_of(entry("a.png")), batch_of(entry("b.png", [math.nan] * 3)))
    assert [row["image"] for row in table(tmp_path)] == ["a.png"]


@pytest.mark.parametrize("task", TASKS)
def test_evaluator_on_a_stream(task: str, tmp_path: Path) -> None:
    images, output = tmp_path / "images", tmp_path / "output"
    images.mkdir()
    output.mkdir()
    pictures = [Image.fromarray(fundus_phantom(g, 48).transpose(1, 2, 0).copy()) for g in range(4)]
    pictures[0].save(images / "a.png")
    (images / "b.png").write_text("no image")
    pictures[1].save(images / "c.tif", save_all=True, append_images=pictures[2:])
    files = [(name, images / name) for name in ("a.png", "b.png", "c.tif")]
    torch.manual_seed(0)
    network = GradingNet(ConRecEncoder(features=(4, 8)), 5, task)
    network.head.weight.data *= 100
    SupervisedEvaluator(
        "cpu",
        DataLoader(ImageStream(files, FitImage(32), batch_size=2), batch_size=None),
        network,
        prepare_batch=PrepareUnitBatch(),
        decollate=False,
        val_handlers=[PredictionWriter(output, task, "01234", total=3)],
    ).run()
    rows = table(output)
    assert [(row["image"], row["frame"], row["status"]) for row in rows] == [
        ("a.png", "", "ok"),
        ("b.png", "", "error"),
        ("c.tif", "0", "ok"),
        ("c.tif", "1", "ok"),
        ("c.tif", "2", "ok"),
    ]
    arrays = [read_image(images / "a.png"), *(read_image(images / "c.tif", frame=frame) for frame in range(3))]
    with torch.no_grad():
        expected = network.eval()(torch.stack([FitImage(32)(array) for array in arrays])).numpy()
    said = graded(np.arange(4), expected, task)
    for i, row in enumerate(row for row in rows if row["status"] == "ok"):
        assert int(row["grade"]) == said.predicted[i]
        np.testing.assert_allclose([float(row[f"p_{k}"]) for k in range(5)], expected[i], atol=1e-4)
    assert document(output)["classes"] == list("01234")
    assert str(tmp_path) not in (output / "predictions.csv").read_text()


def test_images_that_all_fail(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^Error: none of the 2 images could be read; .*predictions\.csv says why\.$"):
        write(tmp_path, batch_of(failed("a.png")), batch_of(failed("b.png")), model={})
    assert [p["status"] for p in document(tmp_path)["predictions"]] == ["error"] * 2
    assert document(tmp_path)["model"] == {} and [row["reason"] for row in table(tmp_path)] == ["damaged"] * 2


def test_a_command_that_can_read_nothing(tmp_path: Path) -> None:
    """It ends in one line and an error; the files say why."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("no image")
    bundle = Path(__file__).resolve().parents[2] / "bundles" / "fundus_dr_grading"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"{bundle}/configs/inference.json"]
    command += ["--bundle_root", str(bundle), "--dataset_dir", f"{tmp_path}/images", "--output_dir", f"{tmp_path}/out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    folder = tmp_path / "out" / "inference"
    assert done.returncode == 1, done.stderr
    assert f"none of the 1 images could be read; {folder}/predictions.csv says why." in done.stderr.splitlines()[-1]
    assert (
        [row["status"] for row in table(folder)] == [p["status"] for p in document(folder)["predictions"]] == ["error"]
    )
