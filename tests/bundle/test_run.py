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
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image

from conrec_monai import load_encoder, load_model
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.networks.utils import read_checkpoint, save_checkpoint

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "conrec_pretraining"
TRAINING = {
    "recipe": "paper",
    "dataset_dir": "phantom:n=40,size=32",
    "output_dir": "out",
    "image_size": 32,
    "features": [4, 8],
    "batch_size": 8,
    "max_epochs": 2,
    "probe_every": 0,
}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def photographs(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    for i in range(count):
        Image.fromarray(random.randint(0, 256, (40, 50, 3)).astype(np.uint8)).save(folder / f"{i}.jpg")
    return folder


# --- the configuration, in this process -------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that is not the bundle's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(config: str, **override: Any) -> None:
    """What ``python -m monai.bundle run`` does, but for the logging."""
    path = str(BUNDLE / "configs" / f"{config}.json")
    workflow = ConfigWorkflow(path, logging_file=False, bundle_root=str(BUNDLE), **override)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def mistake(config: str = "train", **override: Any) -> str:
    """The message of a mistake: one line, for a run that wrote nothing."""
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        run(config, **override)
    assert before == {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*") if path.is_file()}
    message = stop.value.code
    assert isinstance(message, str) and message.startswith("Error: ") and "\n" not in message
    return message.removeprefix("Error: ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 31}, r"image_size must be a multiple of 2 for 2 levels of features \(for example 30 or 32\)"),
        ({"image_size": 24}, "views of image_size 24: maskings need images of at least 25 px"),
        ({"image_size": "32px"}, "image_size must be a whole number, got '32px'"),
        ({"cache_size": "large"}, "cache_size must be a whole number"),
        ({"features": 64}, "features must be a list of whole numbers"),
        ({"features": [4, 12]}, "attention pooling needs a positive multiple of 8 channels, got 12"),
        ({"pooling": "max"}, "pooling must be one of .*got 'max'"),
        ({"optimizer": "rmsprop"}, "optimizer must be one of lars, sgd, adam, adamw, got 'rmsprop'"),
        ({"schedule": "step"}, "schedule must be one of constant, warmup_cosine, got 'step'"),
        ({"resize": "stretch"}, "resize must be one of squash, pad, crop, got 'stretch'"),
        ({"batch_size": 64}, "batch_size 64 is larger than the data set: 40 images in phantom:n=40,size=32"),
        ({"batch_size": 0}, "batch_size must be at least 2, got 0"),
        ({"recipe": "papers"}, "recipe must be one of paper, fundus, got 'papers'."),
        ({"rotate": "no"}, "rotate must be True or False, got 'no'"),
        ({"learning_rate": -0.1}, "learning_rate must be positive, got -0.1"),
        ({"seed": 2**32}, "seed must be below"),
        ({"max_epochs": 2.5}, "max_epochs must be a whole number, got 2.5"),
        ({"dataset_dir": "nowhere"}, "data not found: nowhere"),
        ({"dataset_dir": "phantom:count=9"}, "unknown key 'count', the keys are n, size, seed"),
        ({"dataset_dir": 2019}, "dataset_dir must be a path, got 2019"),
        ({"output_dir": 5}, "output_dir must be a path, got 5"),
        ({"section": 3}, "section must be the name of one split, got 3"),
        ({"dataset_dir": ""}, "dataset_dir must be a path, got ''"),
        ({"device": "gpu"}, "device 'gpu' is not available: "),
        ({"section": "validation"}, "has no section 'validation', available: none"),
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
    ],
)
def test_mistake_in_a_setting(values: dict[str, Any], message: str, outside: Path) -> None:
    assert re.search(message, mistake(**{**TRAINING, **values}))


def test_mistake_in_the_data(outside: Path) -> None:
    Path("empty").mkdir()
    assert "empty is no data set that can be read." in mistake(**{**TRAINING, "dataset_dir": "empty"})

    photographs(outside / "photos", 9)
    (outside / "photos" / "4.jpg").write_bytes((outside / "photos" / "4.jpg").read_bytes()[:300])
    (outside / "photos" / "7.jpg").write_bytes(b"not a picture")
    message = mistake(**{**TRAINING, "dataset_dir": "photos"})
    assert message.startswith("2 of 9 images cannot be loaded: ") and "4.jpg" in message and "7.jpg" in message

    photographs(outside / "aptos" / "train_images", 9)
    rows = [f"{i},{5 if i == 6 else 0}\n" for i in range(9)]
    (outside / "aptos" / "train.csv").write_text("id_code,diagnosis\n" + "".join(rows))
    message = mistake(**{**TRAINING, "dataset_dir": "aptos"})
    assert message == f"{Path('aptos/train.csv')}, line 8: diagnosis must be an integer from 0 to 4, got '5'"


def put(path: str, content: bytes | str = "") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def test_mistake_in_each_layout(outside: Path) -> None:
    """One line that names the file and what is wrong with it; nothing is written (`mistake` sees to that)."""
    picture = photographs(outside / "one", 1) / "0.jpg"

    def message_of(dataset_dir: str, **values: Any) -> str:
        return mistake(**{**TRAINING, "dataset_dir": dataset_dir, **values})

    put("idrid/1. Original Images/a. Training Set/IDRiD_001.jpg", picture.read_bytes())
    assert "2. Groundtruths must hold one table 'a. IDRiD_Disease Grading" in message_of("idrid")
    truth = "idrid/2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv"
    put(truth, "Image name,Retinopathy grade,Risk of macular edema ,,\nIDRiD_001,9,0,,\n")
    assert message_of("idrid").endswith("line 2: Retinopathy grade must be an integer from 0 to 4, got '9'")
    assert "must have the column stage, found Image name, Retinopathy" in message_of("idrid", label_key="stage")

    put("flowers/jpg/image_00001.jpg", picture.read_bytes())
    put("flowers/imagelabels.mat", b"MATLAB 5.0 MAT-file")
    assert message_of("flowers") == "flowers holds no setid.mat, which belongs to the images in jpg"
    put("flowers/setid.mat", b"MATLAB 5.0 MAT-file")
    assert message_of("flowers").startswith("flowers/imagelabels.mat ")

    put("dogs/Images/n02085620-Chihuahua/1.jpg", picture.read_bytes())
    assert "dogs holds the folder Images but no train_list.mat or train_list.txt" in message_of("dogs")
    put("dogs/train_list.txt", "1.jpg\n")
    assert message_of("dogs").startswith("dogs/train_list.txt, line 1: expected an image as <wnid>-<breed>/<file>")

    put("eyepacs/train/1.jpeg", picture.read_bytes())
    put("eyepacs/trainLabels.csv", "image,level\n1,0\n")
    assert message_of("eyepacs").endswith("line 2: the image must be <patient>_left or <patient>_right, got 1")

    put("messidor/a.jpg", picture.read_bytes())
    put("messidor/messidor_data.csv", "image_id,adjudicated_dr_grade\na.jpg,5\n")
    assert message_of("messidor").endswith("adjudicated_dr_grade must be an integer from 0 to 4 or blank, got '5'")

    put("clinic/list.csv", "file,dr_grade\nb.png,1\n")
    assert message_of("clinic/list.csv").endswith(
        "must have the column image, found file, dr_grade (image_key names another)"
    )
    assert "clinic/list.csv, line 2: no image clinic/b.png" in message_of("clinic/list.csv", image_key="file")
    assert "circle-square:train=x: train must be a whole number, got 'x'" in message_of("circle-square:train=x")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.dcm", "a.nii", "a.nii.gz"])
def test_mistake_in_each_format(name: str, outside: Path) -> None:
    for content in (b"", b"rubbish", b"\0" * 200 + b"rubbish"):
        photographs(outside / "photos", 9)
        put(f"photos/{name}", content)
        assert f"photos/{name}: " in mistake(**{**TRAINING, "dataset_dir": "photos"})


def test_mistake_in_the_output(outside: Path) -> None:
    Path("file").touch()
    assert mistake(**{**TRAINING, "output_dir": "file/run"}).startswith("output_dir file/run cannot be written to: ")


def test_recipe_gives_what_is_not_given(outside: Path) -> None:
    recipes = json.loads((BUNDLE / "configs" / "train.json").read_text())["recipes"]
    given = {"image_size": 32, "cache_size": 40, "features": [4, 8], "batch_size": 8, "max_epochs": 1, "jitter": 0.25}
    run("train", dataset_dir="phantom:n=40,size=32", output_dir="out", probe_every=0, **given)
    settings = json.loads(Path("out/metrics.json").read_text())["settings"]
    assert settings["recipe"] == "fundus"
    expected = {**recipes["fundus"], **given}
    del expected["learning_rate"]  # null there
    assert {name: settings[name] for name in expected} == expected


def test_mistake_about_an_earlier_run(outside: Path) -> None:
    run("train", **TRAINING)
    assert mistake(**TRAINING).startswith("out/checkpoint.pt exists; it is not overwritten: go on with that run")
    resumed = {**TRAINING, "resume": True}
    assert mistake(**{**resumed, "features": [8, 8]}).endswith("other settings: features [4, 8] then, [8, 8] now.")
    assert mistake(**{**resumed, "max_epochs": 1}).startswith("out/checkpoint.pt is already after epoch 2, max_epochs")
    more = {**resumed, "dataset_dir": "phantom:n=50,size=32"}
    assert "out/checkpoint.pt: its images were others than the 50 of this run: ids or" in mistake(**more)

    network, old = ConRecUNet(features=(4, 16)), read_checkpoint("out/checkpoint.pt")
    save_checkpoint("out/checkpoint.pt", network, old["preprocessing"], training=old["training"])
    assert "out/checkpoint.pt does not fit ConRecUNet: weights" in mistake(**resumed)
    Path("out/checkpoint.pt").write_bytes(b"PK\x03\x04")
    assert "out/checkpoint.pt cannot be read as a checkpoint" in mistake(**resumed)


def test_mistake_in_an_evaluation(outside: Path) -> None:
    data = {"dataset_dir": "phantom:n=40,size=32", "output_dir": "out"}
    assert mistake("evaluate", **data) == "no checkpoint at out/encoder.pt: no such file."
    Path("out").mkdir()
    save_checkpoint("out/encoder.pt", ConRecUNet(features=(4, 8)).encoder, {"image_size": 32, "resize": "squash"})
    assert mistake("evaluate", **data, n_folds="five").startswith("n_folds must be a whole number")
    assert mistake("evaluate", **{**data, "dataset_dir": "nowhere"}).startswith("data not found: nowhere")
    photographs(outside / "photos", 3)
    assert "holds 3 images without labels" in mistake("evaluate", **{**data, "dataset_dir": "photos"})
    content = torch.load("out/encoder.pt", weights_only=True)
    content["config"]["features"] = [8, 8]
    torch.save(content, "out/encoder.pt")
    assert "out/encoder.pt does not fit ConRecEncoder" in mistake("evaluate", **data)


def test_simclr_on_unlabeled_photographs(outside: Path) -> None:
    photographs(outside / "photos", 9)
    changes = {"dataset_dir": "photos", "decoder": False, "masked_views": 0, "pooling": "average", "resize": "pad"}
    more = {"optimizer": "adam", "schedule": "warmup_cosine", "max_epochs": 1, "cache_size": 48, "probe_every": 1}
    run("train", **{**TRAINING, **changes, **more})
    assert load_model("out/checkpoint.pt").config["decoder"] is False
    assert load_encoder("out/encoder.pt").config == {"in_channels": 3, "features": [4, 8], "pooling": "average"}
    assert read_checkpoint("out/encoder.pt")["preprocessing"] == {
        "image_size": 48,  # the encoder takes images as large as those that views were cut out of
        "resize": "pad",
        "field_of_view": None,
    }
    metrics = json.loads(Path("out/metrics.json").read_text())["metrics"]
    assert metrics["reconstruction_loss"] == 0 and "probe_accuracy" not in metrics
    assert Image.open("out/pictures/epoch_0001.png").size == (2 * 132, 20 + 6 * 132)


def test_validation_probe_and_kept_checkpoints(outside: Path) -> None:
    changes = {"dataset_dir": "circle-square:train=24,test=16", "validation_section": "test", "validate_every": 2}
    more = {"probe_dir": "circle-square:train=12,test=0,seed=5", "probe_every": 3, "checkpoint_every": 2}
    run("train", **{**TRAINING, **changes, **more, "max_epochs": 3, "resize": "pad", "health_every": 2})
    rows = table(Path("out"))
    assert [bool(row["val_loss"]) for row in rows] == [False, True, False]
    assert [bool(row["effective_rank"]) for row in rows] == [False, True, False]
    assert [bool(row["probe_knn_accuracy"]) for row in rows] == [False, False, True]
    assert {file.name for file in Path("out").glob("*.pt")} == {
        *("checkpoint.pt", "checkpoint_epoch_0002.pt", "encoder.pt"),
    }
    assert load_model("out/checkpoint_epoch_0002.pt").config["in_channels"] == 1  # the drawings are gray
    settings = json.loads(Path("out/metrics.json").read_text())["settings"]
    assert settings["in_channels"] == 1 and settings["validation_section"] == "test"


def test_run_that_stops_early(outside: Path) -> None:
    """A learning rate so small that the loss hardly changes: noise decides, and 2 epochs of it are soon at hand."""
    run("train", **{**TRAINING, "learning_rate": 1e-12, "early_stop_patience": 2, "max_epochs": 40})
    epochs = len(table(Path("out")))
    assert 3 <= epochs < 40
    assert Path("out/encoder.pt").is_file()
    run("train", **{**TRAINING, "learning_rate": 1e-12, "early_stop_patience": 2, "max_epochs": 40, "resume": True})
    assert len(table(Path("out"))) == epochs


def test_unreadable_photographs_are_left_out_when_asked(outside: Path) -> None:
    photographs(outside / "photos", 18)
    (outside / "photos" / "7.jpg").write_bytes(b"no picture")
    changes = {"dataset_dir": "photos", "max_epochs": 1, "on_error": "skip"}
    run("train", **{**TRAINING, **changes})
    assert Path("out/skipped.csv").read_text().splitlines()[1].startswith("7.jpg,")
    run("train", **{**TRAINING, **changes, "max_epochs": 2, "resume": True})  # the same 17 images
    photographs(outside / "photos", 18)
    message = mistake(**{**TRAINING, **changes, "max_epochs": 3, "resume": True})
    assert "its images were others than the 18 of this run: ids or" in message
    for i in range(11):
        (outside / "photos" / f"{i}.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match="Error: batch_size 8 is larger than the 7 images that could be read."):
        run("train", **{**TRAINING, **changes, "output_dir": "other"})
    assert len(Path("other/skipped.csv").read_text().splitlines()) == 12  # which ones, and why


def test_another_encoder(outside: Path) -> None:
    network = {"_target_": "conrec_monai.networks.nets.SimCLRNet"}
    network |= {"encoder": {"_target_": "conrec_monai.networks.nets.DenseNetEncoder"}}  # type: ignore[dict-item]
    changes = {"decoder": False, "masked_views": 0, "max_epochs": 1, "optimizer": "adamw", "batch_size": 20}
    run("train", **{**TRAINING, **changes, "network_def": network})
    encoder = load_encoder("out/encoder.pt")
    assert type(encoder).__name__ == "DenseNetEncoder" and encoder.num_features == 1024
    run(
        "evaluate",
        dataset_dir="phantom:n=40,size=32",
        output_dir="out",
        n_folds=2,
        untrained_seeds=[0],
        protocols=["knn"],
    )
    result = json.loads(Path("out/evaluation/metrics.json").read_text())
    assert [entry["features"] for entry in result["results"][:2]] == [1024, 1024]
    assert result["models"][1]["architecture"] == "DenseNet121"
    message = mistake(**{**TRAINING, "output_dir": "other", "network_def": {"_target_": "torch.nn.Flatten"}})
    assert message == "network_def must be a ConRecUNet or a SimCLRNet, got a Flatten."


# --- the command line -------------------------------------------------------------------------------------------------


class Command:
    """``python -m monai.bundle run`` in another working directory; its output comes line by line."""

    def __init__(self, folder: Path, config: str, **override: Any) -> None:
        arguments = [str(BUNDLE / "configs" / f"{config}.json"), "--bundle_root", str(BUNDLE)]
        for name, value in override.items():
            arguments += [f"--{name}", str(value)]
        self.errors = (folder / f"stderr_{len(list(folder.iterdir()))}.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "monai.bundle", "run", "--config_file", *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        assert self.process.stdout is not None
        self.lines: list[str] = []
        self.timer = threading.Timer(200, self.process.kill)
        self.timer.daemon = True
        self.timer.start()

    def until(self, text: str) -> Command:
        """Reads the output up to a line that holds the text."""
        for line in self.process.stdout:  # type: ignore[union-attr]
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return self
        raise AssertionError(f"{text!r} is not in the output: {self.lines}, {self.end()}")

    def end(self) -> tuple[int, list[str]]:
        """Exit status and the lines of stderr."""
        with self.process:
            self.lines += self.process.stdout.read().splitlines()  # type: ignore[union-attr]
        self.timer.cancel()
        with self.errors:
            self.errors.seek(0)
            return self.process.returncode, self.errors.read().splitlines()


EPOCHS = 20
LONG = {**TRAINING, "max_epochs": EPOCHS, "schedule": "warmup_cosine"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Folder and output of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    command = Command(folder, "train", **LONG)
    status, errors = command.end()
    assert status == 0, errors
    return folder / "out", command.lines


def table(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second", "data_wait")} for row in rows]


def test_training(whole: tuple[Path, list[str]]) -> None:
    path, lines = whole
    files = {str(file.relative_to(path)) for file in path.rglob("*") if "tfevents" not in file.name}
    assert files - {"tensorboard"} == {
        *("checkpoint.pt", "encoder.pt", "metrics.csv", "metrics.json"),
        *("pictures", "pictures/epoch_0001.png", "pictures/epoch_0020.png"),
    }
    content = json.loads((path / "metrics.json").read_text())
    assert content["epoch"] == EPOCHS and content["metrics"]["epoch"] == EPOCHS
    assert set(LONG) < set(content["settings"]) and content["settings"]["features"] == [4, 8]
    assert content["settings"]["learning_rate"] == pytest.approx(0.075 * 8**0.5)
    rows = table(path)
    assert [row["epoch"] for row in rows] == [str(i) for i in range(1, EPOCHS + 1)]
    assert float(rows[-1]["loss"]) == content["metrics"]["loss"] < float(rows[0]["loss"])
    assert any("40 images (phantom) at 32 px, batch_size 8, max_epochs 20, lars with" in line for line in lines)
    assert sum(re.search(r"epoch \d+/20: loss .* images/s, .* left$", line) is not None for line in lines) == EPOCHS
    encoder = load_encoder(path / "encoder.pt")
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 8)


def test_evaluation(whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, _ = whole
    command = Command(
        tmp_path,
        "evaluate",
        dataset_dir="phantom:n=40,size=32,seed=1",
        output_dir=path,
        evaluation_dir="scores",
        n_folds=2,
        untrained_seeds=[0],
        replicates=100,
    )
    status, errors = command.end()
    assert status == 0, errors
    result = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert result["dataset"]["path"] == "phantom:n=40,size=32,seed=1" and result["folds"]["n"] == 2
    assert result["command"].startswith("python -m monai.bundle run --config_file")
    pretrained, untrained, *baselines = result["models"]
    assert pretrained["checkpoint"] == f"{path}/encoder.pt" and untrained["name"] == "untrained, seed 0"
    # Other pictures than those of the pretraining, which the checkpoint knows.
    assert pretrained["transductive"] is False and pretrained["pretraining"]["epoch"] == EPOCHS
    assert [model["name"] for model in baselines] == ["shortcut baseline", "color baseline"]
    assert all(-1 <= entry["metrics"]["qwk"]["mean"] <= 1 for entry in result["results"])
    assert any(line.startswith("pretrained") for line in command.lines)
    assert command.lines[-1] == f"Written to {Path('scores/metrics.json')}"


def test_last_line_of_a_mistake(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 9)
    (tmp_path / "photos" / "4.jpg").write_bytes(b"not a picture")
    (tmp_path / "notes.pt").write_text("no checkpoint")
    commands = {
        "Error: image_size must be a multiple of 2 ": Command(tmp_path, "train", **{**TRAINING, "image_size": 31}),
        "Error: 1 of 9 images cannot be loaded: cannot read image photos/4.jpg": Command(
            tmp_path, "train", **{**TRAINING, "dataset_dir": "photos"}
        ),
        "Error: notes.pt ": Command(tmp_path, "evaluate", dataset_dir="phantom", checkpoint="notes.pt"),
    }
    for message, command in commands.items():
        status, errors = command.end()
        assert status != 0
        assert errors[-1].startswith(message)
        assert not any("Traceback" in line for line in errors)


def test_killed_and_interrupted_run_is_the_whole_run(whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    killed = Command(tmp_path, "train", **LONG).until("epoch 2/20")
    killed.process.kill()
    assert killed.end()[0] == -signal.SIGKILL
    path = tmp_path / "out"
    assert read_checkpoint(path / "checkpoint.pt")["training"]["iteration"] >= 5
    assert not (path / "encoder.pt").exists()

    resumed = {**LONG, "resume": True, "pictures_every": 5}
    interrupted = Command(tmp_path, "train", **resumed).until("/20: loss")
    interrupted.process.terminate()
    status, errors = interrupted.end()
    assert status == 1
    assert re.fullmatch(
        r"Interrupted after \d of 5 iterations of epoch \d+\. Saved to out/checkpoint\.pt;"
        r" the same command with --resume True goes on from there\.",
        errors[-1],
    )
    assert not any("Traceback" in line for line in errors)
    assert not (path / "encoder.pt").exists()

    last = Command(tmp_path, "train", **resumed)
    status, errors = last.end()
    assert status == 0, errors
    assert any("going on after epoch" in line for line in last.lines)
    for name in ("encoder.pt", "checkpoint.pt"):
        weights, expected = (read_checkpoint(folder / name)["state_dict"] for folder in (path, whole[0]))
        assert list(weights) == list(expected)
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert table(path) == table(whole[0])
