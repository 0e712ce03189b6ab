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

"""The bundle fundus_dr_grading: training, evaluation, inference, exports, and what MONAI asks of a bundle."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export, onnx_export, verify_metadata, verify_net_in_out
from PIL import Image

from conrec_monai import load_encoder, load_model, load_preprocessing
from conrec_monai.bundle.evaluation import duplicates_size
from conrec_monai.bundle.grading import image_groups
from conrec_monai.data import CachedImages, load_datalist
from conrec_monai.evaluation import graded
from conrec_monai.networks.nets import ConRecEncoder, ConRecUNet, GradingNet
from conrec_monai.networks.utils import read_checkpoint, save_checkpoint

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "fundus_dr_grading"
CONFIGS = BUNDLE / "configs"
TRAINING: dict[str, Any] = {
    "dataset_dir": "phantom:n=60,size=32,seed=1",
    "output_dir": "out",
    "encoder": "random",
    "features": [4, 8],
    "image_size": 32,
    "field_of_view": "normalize",
    "batch_size": 8,
    "max_epochs": 3,
    "n_folds": 3,
    "early_stop_patience": 0,
    "amp": False,
}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that is not the bundle's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def workflow(config: str, kind: str | None = None, **override: Any) -> ConfigWorkflow:
    path = str(CONFIGS / f"{config}.json")
    return ConfigWorkflow(path, logging_file=False, workflow_type=kind, bundle_root=str(BUNDLE), **override)


def run(config: str, **override: Any) -> None:
    """What ``python -m monai.bundle run`` does, but for the logging."""
    started = workflow(config, **override)
    started.initialize()
    started.run()
    started.finalize()


def mistake(config: str = "train", **override: Any) -> str:
    """The message of a mistake: one line, for a run that wrote nothing."""
    before = {path for path in Path.cwd().rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        run(config, **override)
    assert before == {path for path in Path.cwd().rglob("*") if path.is_file()}
    message = stop.value.code
    assert isinstance(message, str) and message.startswith("Error: ") and "\n" not in message
    return message.removeprefix("Error: ")


def rows(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def drawn(folder: Path, count: int = 6) -> Path:
    """Files of drawn fundus pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, item in enumerate(load_datalist(f"phantom:n={count},size=64,seed=5")):
        Image.fromarray(np.asarray(item["image"]).transpose(1, 2, 0)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is over."""
    folder = tmp_path_factory.mktemp("trained")
    run("train", **{**TRAINING, "output_dir": str(folder)})
    return folder


# --- training ---------------------------------------------------------------------------------------------------------


def test_parts_best_epoch_and_calibration(trained: Path) -> None:
    parts = [row["part"] for row in rows(trained / "split.csv")]
    assert (parts.count("test"), parts.count("validation"), parts.count("train")) == (20, 14, 26)
    scores = [(float(row["val_qwk"]), -float(row["val_nll"])) for row in rows(trained / "metrics.csv")]
    grading = read_checkpoint(trained / "model.pt")["grading"]
    assert len(scores) == 3 and grading["epoch"] == 1 + scores.index(max(scores))
    assert grading["classes"][0] == "No DR" and grading["ordinal"] and len(grading["image_hashes"]) == 40
    assert grading["validation"]["qwk"] == pytest.approx(max(scores)[0])
    model, best = load_model(trained / "model.pt"), load_model(trained / "best.pt")
    assert isinstance(model, GradingNet) and model.scale != 1 and best.scale == 1
    assert torch.equal(model.head.weight, best.head.weight)


@pytest.mark.parametrize("values", [{"task": "regression"}, {"task": "categorical", "class_balance": 1.0}])
def test_other_tasks(values: dict[str, Any], outside: Path) -> None:
    run("train", **{**TRAINING, "max_epochs": 1, **values})
    model = load_model("out/model.pt")
    assert model.task == values["task"] and model.head.out_features == (1 if model.task == "regression" else 5)
    assert model(torch.rand(2, 3, 32, 32)).sum(dim=1).tolist() == pytest.approx([1, 1])


def test_encoder_of_a_pretraining_frozen(outside: Path) -> None:
    torch.manual_seed(1)
    pretrained = ConRecUNet(features=(4, 8))
    save_checkpoint("checkpoint.pt", pretrained, {"image_size": 32, "resize": "squash", "field_of_view": None})
    values = {**TRAINING, "encoder": "checkpoint.pt", "image_size": "auto", "field_of_view": "auto", "freeze": True}
    run("train", **values)
    content = read_checkpoint("out/model.pt")
    assert content["preprocessing"] == {"image_size": 32, "resize": "squash", "field_of_view": None}
    encoder = load_encoder("out/model.pt").state_dict()
    assert all(torch.equal(value, encoder[name]) for name, value in pretrained.encoder.state_dict().items())


def test_other_encoder_and_no_test_part(outside: Path) -> None:
    small = {"dataset_dir": "phantom:n=24,size=32", "max_epochs": 1, "encoder": "densenet121", "features": "auto"}
    run("train", **{**TRAINING, **small, "fold": "$None"})
    assert type(load_encoder("out/model.pt")).__name__ == "DenseNetEncoder"
    assert {row["part"] for row in rows("out/split.csv")} == {"train", "validation"}


def test_run_goes_on_bit_by_bit(trained: Path, outside: Path) -> None:
    run("train", **{**TRAINING, "schedule": "constant", "output_dir": "whole"})
    run("train", **{**TRAINING, "schedule": "constant", "max_epochs": 1})
    run("train", **{**TRAINING, "schedule": "constant", "resume": True})
    whole, resumed = (read_checkpoint(f"{name}/model.pt") for name in ("whole", "out"))
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert whole["grading"]["validation"] == resumed["grading"]["validation"]
    assert [row["val_qwk"] for row in rows("whole/metrics.csv")] == [row["val_qwk"] for row in rows("out/metrics.csv")]


def test_early_stop(outside: Path) -> None:
    run(
        "train",
        **{**TRAINING, "learning_rate": 0.0, "head_learning_rate": 0.0, "max_epochs": 9}
        | {"early_stop_patience": 2, "freeze": True},
    )
    assert len(rows("out/metrics.csv")) == 3 and read_checkpoint("out/model.pt")["grading"]["epoch"] == 1


def test_official_split_and_patients(outside: Path) -> None:
    """Patients never cross, and an official test split is the test part."""
    pictures = drawn(outside / "photographs", 24)
    lines = ["image,grade,patient,split"]
    lines += [f"{i}.png,{i % 3},p{i // 2},{'test' if i >= 18 else 'train'}" for i in range(24)]
    (pictures / "table.csv").write_text("\n".join(lines) + "\n")
    keys = {"dataset_dir": "photographs", "label_key": "grade", "group_key": "patient", "split_key": "split"}
    run("train", **{**TRAINING, **keys, "max_epochs": 1, "batch_size": 4, "group_duplicates": False})
    parts = {row["id"]: row["part"] for row in rows("out/split.csv")}
    of_patient: dict[int, set[str]] = {}
    for name, part in parts.items():
        of_patient.setdefault(int(Path(name).stem) // 2, set()).add(part)
    assert all(len(found) == 1 for found in of_patient.values())
    assert {int(Path(name).stem) for name, part in parts.items() if part == "test"} == set(range(18, 24))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder": None}, "encoder must be the path of a checkpoint .*, random or densenet121, got None"),
        ({"encoder": "randm"}, "no checkpoint at randm: no such file .encoder must be a path, random or densenet121."),
        ({"task": "ranking"}, "task must be one of ordinal, regression, categorical, got 'ranking'"),
        ({"validate_every": 4}, "validate_every must be at most max_epochs, 3, or no epoch could be chosen; got 4"),
        ({"class_balance": 2}, "class_balance must be a number from 0 to 1, got 2"),
        ({"max_minutes": 0}, "max_minutes must be a positive number, or null, got 0"),
        ({"cache_dir": 5}, "cache_dir must be a path, or null, got 5"),
        ({"batch_size": 40}, "batch_size 40 is larger than the training part, 2[0-9] of 60 images"),
        ({"pooling": "flatten"}, "pooling must be auto, attention or average, got 'flatten'"),
        ({"fold": 3}, "fold must be one of 0 to 2, got 3"),
        ({"fold": -1}, "fold must be a whole number, or null for no test part, got -1"),
        ({"image_size": 31}, "image_size must be auto or a multiple of 2, got 31"),
        (
            {"field_of_view": "contrast"},
            "field_of_view must be auto, normalize, local_contrast or null, got 'contrast'",
        ),
        ({"features": 64}, "features must be auto or a list of whole numbers"),
        ({"learning_rate": "high"}, "learning_rate must be a number that is not negative, got 'high'"),
        ({"batch_size": 1}, "batch_size must be a whole number of at least 2, got 1"),
        ({"augmentation": "blur"}, "augmentation must be one of zoom_flip, None, got 'blur'"),
        ({"freeze": "yes"}, "freeze must be True or False, got 'yes'"),
        ({"dataset_dir": "nowhere"}, "data not found: nowhere"),
        ({"dataset_dir": "circle-square"}, "task ordinal needs ordered grades, circle-square has the classes"),
        ({"device": "gpu"}, "device 'gpu' is not available"),
        ({"encoder": "densenet121"}, "features is of a ConRecEncoder, the encoder is densenet121"),
        ({"densenet_weights": "imagenet"}, "densenet_weights is for encoder densenet121 alone, the encoder is random"),
    ],
)
def test_mistakes(values: dict[str, Any], message: str, outside: Path) -> None:
    assert re.search(message, mistake(**{**TRAINING, **values}))


def test_mistakes_about_files(trained: Path, outside: Path) -> None:
    message = mistake(**{**TRAINING, "output_dir": str(trained)})
    assert message.startswith(f"{trained / 'checkpoint.pt'} exists; it is not overwritten")
    message = mistake(**{**TRAINING, "output_dir": str(trained), "resume": True, "batch_size": 4})
    assert "batch_size 8 then, 4 now" in message
    Path("evil.pt").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echoq\x00\x85q\x01Rq\x02.")
    assert "objects other than tensors and plain values, which are never unpickled" in mistake(
        **{**TRAINING, "encoder": "evil.pt"}
    )
    (outside / "cut.pt").write_bytes((trained / "model.pt").read_bytes()[:9000])
    assert "truncated or damaged" in mistake(**{**TRAINING, "encoder": "cut.pt"})
    assert "truncated or damaged" in mistake("inference", dataset_dir=".", checkpoint="cut.pt")
    save_checkpoint("encoder.pt", ConRecEncoder(features=(4, 8)), {"image_size": 32})
    assert mistake(**{**TRAINING, "encoder": "encoder.pt", "features": [8, 8]}) == (
        "features must be auto or as in encoder.pt, [4, 8], got [8, 8]; encoder random takes any."
    )
    assert mistake(**{**TRAINING, "encoder": "encoder.pt", "pooling": "average"}) == (
        "pooling must be auto or as in encoder.pt, attention, got average; encoder random takes any."
    )
    drawn(outside / "photographs", 1)
    message = mistake("inference", dataset_dir="photographs", checkpoint="encoder.pt")
    assert message.startswith("encoder.pt holds a ConRecEncoder, expected the model.pt of a fine-tuning")
    Path("plain.pt").write_bytes(b"")
    torch.save(load_model(trained / "model.pt").state_dict(), "plain.pt")
    message = mistake("inference", dataset_dir="photographs", checkpoint="plain.pt")
    assert message.startswith("plain.pt does not fit GradingNet: weights ")
    assert mistake("inference", dataset_dir="none", checkpoint=str(trained / "model.pt")) == (
        "no images at none: no such file or folder."
    )


# --- evaluation and inference -----------------------------------------------------------------------------------------


def test_evaluation_leaves_out_what_was_trained_on(trained: Path, outside: Path) -> None:
    checkpoint = str(trained / "model.pt")
    run("evaluate", dataset_dir=TRAINING["dataset_dir"], checkpoint=checkpoint, output_dir="out", replicates=50)
    result = json.loads(Path("out/evaluation/metrics.json").read_text())
    tested = [row["id"] for row in rows(trained / "split.csv") if row["part"] == "test"]
    table = rows("out/evaluation/predictions.csv")
    assert [row["image"] for row in table] == tested
    assert result["images"] == 20 and result["left_out"] == {"learned_from": 40, "related": 0, "unreadable": 0}
    right = np.mean([row["label"] == row["grade"] for row in table])
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(right)
    assert np.trace(result["confusion"]) == round(20 * right) and np.sum(result["confusion"]) == 20
    only = {"dataset_dir": "phantom:n=60,size=32,seed=1", "checkpoint": checkpoint, "output_dir": "other"}
    content = read_checkpoint(checkpoint)
    everything = {**content["grading"], "image_hashes": None}
    save_checkpoint("unknown.pt", load_model(checkpoint), content["preprocessing"], grading=everything)
    run("evaluate", **{**only, "checkpoint": "unknown.pt"}, replicates=50)
    statements = json.loads(Path("other/evaluation/metrics.json").read_text())["statements"]
    assert statements == [
        "60 images were scored.",
        "All images were given the grade Moderate: it tells none apart.",  # after three epochs
        "Which images the network has learned from is not known: they may be among those scored.",
    ]


def graded_table(folder: Path, count: int, row: Any) -> dict[str, Any]:
    """Drawn photographs with a table of their grades, patients and splits."""
    drawn(folder, count)
    lines = ["image,grade,patient,split", *(f"{i}.png,{','.join(map(str, row(i)))}" for i in range(count))]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return {"dataset_dir": str(folder), "label_key": "grade", "group_key": "patient", "split_key": "split"}


def scores(output: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((Path(output) / "evaluation" / "metrics.json").read_text())
    return result


def test_what_an_encoder_has_learned_before_is_not_scored(trained: Path, outside: Path) -> None:
    """A network that starts from one of another fold knows the labels of both."""
    run("train", **{**TRAINING, "max_epochs": 1, "fold": 1, "encoder": str(trained / "model.pt")})
    with pytest.raises(SystemExit, match="the network has learned from all 60 images"):
        run("evaluate", dataset_dir=TRAINING["dataset_dir"], checkpoint="out/model.pt", output_dir="out")


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.pt"])
def test_what_was_learned_goes_from_run_to_run(name: str, trained: Path, outside: Path) -> None:
    run("train", **{**TRAINING, "max_epochs": 1, "fold": 1, "encoder": str(trained / name), "output_dir": "a"})
    run("train", **{**TRAINING, "max_epochs": 1, "fold": 1, "encoder": f"a/{name}", "output_dir": "b"})
    hashes = read_checkpoint("b/model.pt")["grading"]["image_hashes"]
    assert len(hashes) == 60 and torch.equal(hashes, read_checkpoint(f"a/{name}")["grading"]["image_hashes"])


def test_small_pictures_are_duplicates_where_they_are_equal_alone() -> None:
    """Enlarged they would seem to show more than they do."""
    data = load_datalist("phantom:n=40,size=32,seed=2")
    assert duplicates_size(data) == 32 and duplicates_size([{"image": "a.png"}]) == 64
    assert image_groups(CachedImages(data, 64), True) == (None, [])
    twice = [*data, {**data[3], "id": "again"}]
    groups, found = image_groups(CachedImages(twice, 64), True)
    assert found == [[3, 40]] and groups is not None and groups[3] == groups[40]


def test_pretraining_on_what_is_scored_is_said(outside: Path) -> None:
    torch.manual_seed(1)
    images = CachedImages(load_datalist(TRAINING["dataset_dir"]), 32)
    pretraining = {"settings": {}, "epoch": 1, "image_hashes": images.hashes.sort().values}
    save_checkpoint("encoder.pt", ConRecEncoder(features=(4, 8)), {"image_size": 32}, pretraining=pretraining)
    run("train", **{**TRAINING, "max_epochs": 1, "encoder": "encoder.pt"})
    run("evaluate", dataset_dir=TRAINING["dataset_dir"], checkpoint="out/model.pt", output_dir="out", replicates=50)
    assert scores("out")["statements"] == [
        "20 images were scored.",
        "Left out: 40 images that the network has learned from, with their labels.",
        "All images were given the grade Moderate: it tells none apart.",  # after one epoch
        "Transductive: the encoder was pretrained on 20 of them, without labels.",
    ]


def test_patients_of_what_was_learned_from_are_not_scored(outside: Path) -> None:
    """Two pictures of each patient; the second one of the validation patients is in the official training split."""
    splits = ["train"] * 14 + ["val"] * 4 + ["test"] * 6
    keys = graded_table(
        outside / "photographs", 24, lambda i: (i % 3, f"p{(i - 14 if i < 18 else i) if i > 13 else i}", splits[i])
    )
    run("train", **{**TRAINING, **keys, "max_epochs": 1, "batch_size": 4, "group_duplicates": False})
    parts = {row["id"]: row["part"] for row in rows("out/split.csv")}
    assert [parts[name] for name in parts if name.startswith(("0.", "1.", "2.", "3."))] == ["", "", "", ""]
    values = {"output_dir": "out", "checkpoint": "out/model.pt", "replicates": 50, "group_duplicates": False}
    run("evaluate", **keys, **values)
    assert (scores("out")["images"], scores("out")["left_out"]["learned_from"]) == (6, 0)  # the official test part
    # Of the official training part nothing is left: 0 to 3 are of the validation part's patients, in another section.
    message = mistake("evaluate", **{**keys, "section": "train"}, **values)
    place = f"section train of {keys['dataset_dir']}"
    assert message == f"the network has learned from all 14 images of {place}, or their patients."
    message = mistake("evaluate", **{**keys, "section": "tset"}, **values)
    assert message.endswith("photographs has no section 'tset', available: train, val, test")


def test_faults_of_another_section_do_not_matter(outside: Path) -> None:
    """A damaged file, and a grade that the network does not know, among photographs that are not to be scored."""
    keys = graded_table(outside / "photographs", 30, lambda i: (i % 3, f"p{i}", "train" if i < 20 else "test"))
    run("train", **{**TRAINING, **keys, "max_epochs": 1, "batch_size": 4, "group_duplicates": False})
    table = outside / "photographs" / "table.csv"
    table.write_text(table.read_text().replace("3.png,0", "3.png,4"))
    (outside / "photographs" / "5.png").write_bytes(b"damaged")
    values = {**keys, "output_dir": "out", "checkpoint": "out/model.pt", "replicates": 50}
    run("evaluate", **values, section="test")
    assert (scores("out")["images"], scores("out")["left_out"]["unreadable"]) == (10, 0)
    assert {row["image"] for row in rows("out/evaluation/predictions.csv")} == {f"{i}.png" for i in range(20, 30)}
    (outside / "photographs" / "25.png").write_bytes(b"damaged")
    with pytest.raises(SystemExit, match="1 of 10 images cannot be loaded, the first: "):
        run("evaluate", **values, section="test")
    run("evaluate", **values, section="test", on_error="skip")
    assert (scores("out")["images"], scores("out")["left_out"]["unreadable"]) == (9, 1)


def test_results_do_not_lie_among_the_photographs(trained: Path, outside: Path) -> None:
    photographs = drawn(outside / "photographs", 1)
    values = {"dataset_dir": str(photographs), "checkpoint": str(trained / "model.pt")}
    message = mistake("inference", **values, output_dir="photographs/results")
    assert message.startswith("inference_dir photographs/results/inference lies in dataset_dir ")


def test_grades_are_compared_by_name(trained: Path, outside: Path) -> None:
    """Folders of two grades: labels 0 and 1 there, 0 and 3 of the network."""
    for name, seed in (("No DR", 11), ("severe", 12)):
        for i, item in enumerate(load_datalist(f"phantom:n=4,size=32,seed={seed}")):
            path = outside / "photographs" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(item["image"]).transpose(1, 2, 0)).save(path)
    values = {"dataset_dir": "photographs", "checkpoint": str(trained / "model.pt"), "output_dir": "out"}
    run("evaluate", **values, replicates=50)
    assert [row["label"] for row in rows("out/evaluation/predictions.csv")] == ["0"] * 4 + ["3"] * 4
    assert "qwk" in scores("out")["metrics"]
    (outside / "photographs" / "severe").rename(outside / "photographs" / "bad")
    message = mistake("evaluate", **values)
    assert message.startswith("photographs has the grades bad, which the network does not know; it knows 0 (No DR), 1")


@pytest.mark.parametrize("names", [("1", "2", "3", "4"), ("0", "2", "1"), ("none", "1")])
def test_numbers_that_are_names_are_no_places(names: tuple[str, ...], outside: Path) -> None:
    """Folders of grades 1 to 4, learned from and scored: each label is its own."""
    for i, item in enumerate(load_datalist("phantom:n=36,size=32,seed=11")):
        path = outside / "photographs" / names[i % len(names)] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(item["image"]).transpose(1, 2, 0)).save(path)
    changes = {"dataset_dir": "photographs", "max_epochs": 1, "batch_size": 4, "task": "categorical"}
    run("train", **{**TRAINING, **changes})
    run("evaluate", dataset_dir="photographs", checkpoint="out/model.pt", output_dir="out", replicates=50)
    found = {(row["image"].split("/")[-2], int(row["label"])) for row in rows("out/evaluation/predictions.csv")}
    assert found == {(name, place) for place, name in enumerate(sorted(names))}


def test_run_with_other_labels_does_not_go_on(outside: Path) -> None:
    keys = graded_table(outside / "photographs", 24, lambda i: (i % 3, f"p{i}", "train"))
    values = {**TRAINING, **keys, "max_epochs": 1, "batch_size": 4, "schedule": "constant", "group_duplicates": False}
    run("train", **values)
    split, table = Path("out/split.csv").read_text(), (outside / "photographs" / "table.csv")
    table.write_text(table.read_text().replace("5.png,2", "5.png,1"))
    message = mistake(**{**values, "max_epochs": 2, "resume": True})
    assert "its images were others" in message and Path("out/split.csv").read_text() == split
    table.write_text(table.read_text().replace("5.png,1", "5.png,2"))
    photograph = outside / "photographs" / "5.png"
    content = photograph.read_bytes()
    Image.open(photograph).rotate(90).save(photograph)  # the same name and label, another picture
    assert "its images were others" in mistake(**{**values, "max_epochs": 2, "resume": True})
    photograph.write_bytes(content)
    Path("out/checkpoint.pt").unlink()
    assert "holds the model.pt of another run" in mistake(**{**values, "resume": True})
    Path("out/model.pt").unlink()
    assert "holds the best.pt of another run" in mistake(**values)
    run("train", **{**values, "resume": True})  # as after a kill between best.pt and the first checkpoint.pt
    assert Path("out/model.pt").is_file()


def test_odd_and_repeated_files(trained: Path, outside: Path) -> None:
    photographs = drawn(outside / "photographs", 1)
    Image.new("RGB", (3000, 1)).save(photographs / "strip.png")
    Path("list.txt").write_text("photographs/0.png\nphotographs/strip.png\nphotographs/0.png\n")
    run("inference", dataset_dir="list.txt", output_dir="out", checkpoint=str(trained / "model.pt"))
    table = rows("out/inference/predictions.csv")
    assert [row["status"] for row in table] == ["ok"] * 3 and table[0] == table[2]
    assert table[1]["warnings"].startswith("no field of view found: nearly all of it is dark; small: the field of view")
    assert len(list(Path("out/inference/attention_maps").rglob("*.png"))) == 3


def test_inference(trained: Path, outside: Path) -> None:
    photographs = drawn(outside / "photographs")
    (photographs / "2.png").write_bytes(b"no picture")
    frames = [Image.open(photographs / f"{i}.png") for i in (0, 1)]
    frames[0].save(photographs / "pages.tif", save_all=True, append_images=frames[1:])
    checkpoint = trained / "model.pt"
    run("inference", dataset_dir="photographs", output_dir="out", checkpoint=str(checkpoint), batch_size=3)
    table = rows("out/inference/predictions.csv")
    assert [(row["image"], row["frame"]) for row in table] == [
        *[(f"{i}.png", "") for i in range(6)],
        ("pages.tif", "0"),
        ("pages.tif", "1"),
    ]
    assert [row["status"] for row in table] == ["ok", "ok", "error", "ok", "ok", "ok", "ok", "ok"]
    assert table[2]["reason"].startswith("cannot read image 2.png: not a PNG") and table[2]["grade"] == ""
    for i in (0, 1):
        assert [table[i][key] for key in table[0] if key not in ("image", "frame")] == [
            table[6 + i][key] for key in table[0] if key not in ("image", "frame")
        ]
    network, prepare = load_model(checkpoint), load_preprocessing(checkpoint)
    with torch.inference_mode():
        p = network(prepare(photographs / "3.png")[None])
    assert [float(table[3][f"p_{i}"]) for i in range(5)] == pytest.approx(p[0].tolist(), abs=1e-4)
    assert int(table[3]["grade"]) == graded(np.zeros(1), p.numpy(), "ordinal").predicted[0]
    assert float(table[3]["referable"]) == pytest.approx(p[0, 2:].sum().item(), abs=1e-4)
    entries = json.loads(Path("out/inference/predictions.json").read_text())
    assert entries["classes"][4] == "Proliferative DR" and len(entries["predictions"]) == 8
    assert entries["predictions"][2]["grade"] is None and entries["predictions"][7]["frame"] == 1
    pictures = sorted(path.name for path in Path("out/inference/attention_maps").iterdir())
    assert pictures == [
        "0.png.png",
        "1.png.png",
        "3.png.png",
        "4.png.png",
        "5.png.png",
        "pages.tif#0.png",
        "pages.tif#1.png",
    ]


def test_all_files_unreadable(trained: Path, outside: Path) -> None:
    Path("photographs").mkdir()
    Path("photographs/a.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"none of the 1 images could be read; out/inference/predictions\.csv"):
        run("inference", dataset_dir="photographs", output_dir="out", checkpoint=str(trained / "model.pt"))
    (row,) = rows("out/inference/predictions.csv")
    assert (row["status"], row["reason"]) == ("error", "cannot read image a.png: the file is empty")


def test_last_line_of_a_command(trained: Path, tmp_path: Path) -> None:
    drawn(tmp_path / "photographs", 2)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(CONFIGS / "inference.json")]
    command += ["--bundle_root", str(BUNDLE), "--output_dir", "out", "--dataset_dir"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for source, status, last in (
        ("photographs", 0, ""),
        ("nowhere", 1, "Error: no images at nowhere: no such file or folder."),
    ):
        arguments = [*command, source, "--checkpoint", str(trained / "model.pt")]
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == status and "Traceback" not in done.stderr
        assert not last or done.stderr.splitlines()[-1] == last
    assert len(rows(tmp_path / "out" / "inference" / "predictions.csv")) == 2


# --- exports, and what MONAI asks of a bundle -------------------------------------------------------------------------


@pytest.fixture
def plain(trained: Path, outside: Path) -> dict[str, Any]:
    """Arguments of MONAI's exports, for the weights of a run as a plain state dictionary."""
    model = load_model(trained / "model.pt")
    torch.save(model.state_dict(), "plain.pt")
    architecture = {name: value for name, value in model.config.items() if name != "freeze"}
    return {
        "net_id": "network_def",
        "ckpt_file": "plain.pt",
        "meta_file": str(CONFIGS / "metadata.json"),
        "config_file": str(CONFIGS / "inference.json"),
        "bundle_root": str(BUNDLE),
        "checkpoint": "plain.pt",
        "architecture": architecture,
    }


def test_torchscript_export(plain: dict[str, Any], trained: Path) -> None:
    ckpt_export(filepath="model.ts", input_shape=[1, 3, 32, 32], **plain)
    extra = {"metadata.json": ""}
    scripted = torch.jit.load("model.ts", _extra_files=extra)
    images = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(scripted(images), load_model(trained / "model.pt")(images), rtol=0, atol=1e-6)
    assert json.loads(extra["metadata.json"])["preprocessing"]["field_of_view"] == "local_contrast"


def test_onnx_export(plain: dict[str, Any], trained: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    names = {"input_names": ["image"], "output_names": ["probabilities"]}
    dynamic = {"dynamic_axes": {"image": {0: "batch"}, "probabilities": {0: "batch"}}}
    onnx_export(filepath="model.onnx", input_shape=[2, 3, 32, 32], converter_kwargs={**names, **dynamic}, **plain)
    assert [path.name for path in Path.cwd().glob("model.onnx*")] == ["model.onnx"]  # no external data
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    model = load_model(trained / "model.pt")
    for batch in (1, 5):
        images = torch.rand(batch, 3, 32, 32)
        (found,) = session.run(None, {"image": images.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(found, model(images).numpy(), rtol=0, atol=1e-5)


def test_properties(trained: Path, outside: Path) -> None:
    drawn(outside / "photographs", 1)
    values = {"dataset_dir": "photographs", "output_dir": "out", "checkpoint": str(trained / "model.pt")}
    inference = workflow("inference", "infer", **values)
    inference.initialize()
    assert inference.check_properties() == []
    training = workflow("train", "train", **TRAINING)
    training.initialize()
    assert training.check_properties() == []


def test_metadata_fits_the_schema() -> None:
    schema = Path(__file__).parent / "metadata_schema.json"
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema))


def test_network_takes_and_gives_what_the_metadata_says(outside: Path) -> None:
    torch.manual_seed(0)
    config = json.loads((CONFIGS / "inference.json").read_text())
    encoder = ConRecEncoder(**config["architecture"]["encoder"]["config"])
    torch.save(GradingNet(encoder, 5).state_dict(), "plain.pt")
    values = {"net_id": "network_def", "meta_file": str(CONFIGS / "metadata.json"), "device": "cpu", "n": 8}
    verify_net_in_out(**values, config_file=str(CONFIGS / "inference.json"), checkpoint="plain.pt")


def test_two_processes(tmp_path: Path) -> None:
    """What both processes see of the validation is one number, and the run ends with one model."""
    configs = str([str(CONFIGS / "train.json"), str(CONFIGS / "multi_gpu_train.json")])
    values = {**TRAINING, "features": "[4,8]", "bundle_root": BUNDLE, "pooling": "average", "max_epochs": 2}
    arguments = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "monai.bundle", "run", "--config_file", configs, *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    text = done.stdout + done.stderr
    scores = re.findall(r"validation: qwk (-?[0-9.]+)", text)
    assert len(scores) == 4 and scores[0::2] == scores[1::2], text
    assert read_checkpoint(tmp_path / "out" / "model.pt")["grading"]["epoch"] in (1, 2)
