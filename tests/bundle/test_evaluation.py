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
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conrec_monai.bundle import evaluate_checkpoint, evaluation
from conrec_monai.data import CachedImages, load_datalist
from conrec_monai.data.datalist import DR_GRADES
from conrec_monai.evaluation import central_part, evaluate, untrained_encoders
from conrec_monai.networks.nets import ConRecEncoder, ConRecUNet
from conrec_monai.networks.utils import load_encoder, save_checkpoint

PREPROCESSING = {"image_size": 32, "resize": "squash"}
PHANTOM = "phantom:n=40,size=32"


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    torch.manual_seed(7)
    save_checkpoint(tmp_path / "encoder.pt", ConRecUNet(features=(4, 8)).encoder, PREPROCESSING)
    return tmp_path / "encoder.pt"


def class_folder(path: Path, classes: int = 3, count: int = 6) -> Path:
    """Images of any size whose color tells the class."""
    random = np.random.RandomState(0)
    for label in range(classes):
        folder = path / f"class {label}"
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = random.randint(0, 60, (40, 50, 3)) + 60 * np.eye(3, dtype=int)[label % 3]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return path


def test_grades(
    encoder_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def spy(*args: Any, **kwargs: Any) -> dict[str, Any]:
        calls.append((args, kwargs))
        return evaluate(*args, **{**kwargs, "repeats": 1})

    monkeypatch.setattr(evaluation, "evaluate", spy)
    output_dir = tmp_path / "a" / "b"
    result = evaluate_checkpoint(
        encoder_file, PHANTOM, output_dir, n_folds=2, repeats=3, seed=4, untrained_seeds=(5,), batch_size=7
    )
    assert json.loads((output_dir / "metrics.json").read_text()) == result
    assert {name: result[name] for name in ("checkpoint", "dataset", "section", "center_crop", "protocol")} == {
        "checkpoint": str(encoder_file),
        "dataset": PHANTOM,
        "section": None,
        "center_crop": 1.0,
        "protocol": "diabetic",
    }
    assert [row["name"] for row in result["rows"]] == ["pretrained", "untrained, seed 5", "shortcut baseline"]
    printed = capsys.readouterr().out
    assert "pretrained" in printed and printed.endswith(f"\n\nWritten to {output_dir / 'metrics.json'}\n")

    ((encoders, images, labels), options) = calls[0]
    data = load_datalist(PHANTOM)
    assert torch.equal(images, CachedImages(data, 32, progress=False).images)
    assert labels == [item["label"] for item in data]
    assert options == {
        "ordinal": True,
        "class_names": list(DR_GRADES),
        "groups": [None] * len(data),
        "splits": None,
        "n_folds": 2,
        "repeats": 3,
        "seed": 4,
        "batch_size": 7,
        "device": torch.device("cpu"),
    }
    expected = {
        "pretrained": load_encoder(encoder_file),
        **untrained_encoders(lambda: ConRecEncoder(features=(4, 8)), (5,)),
    }
    assert list(encoders) == list(expected)
    for name, encoder in expected.items():
        weights = encoders[name].state_dict()
        assert all(torch.equal(weights[key], value) for key, value in encoder.state_dict().items())


def test_dogs_see_the_central_part(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ConRecUNet(in_channels=1, features=(4, 8))
    save_checkpoint(tmp_path / "checkpoint.pt", network, {"image_size": 28, "resize": "crop"})
    path, lists = tmp_path / "data", {"train": range(4), "test": range(4, 6)}
    class_folder(path / "Images")
    for label in range(3):
        (path / "Images" / f"class {label}").rename(path / "Images" / f"n0000000{label}-breed_{label}")
    for split, numbers in lists.items():
        rows = [f"n0000000{label}-breed_{label}/{i}.png\n" for label in range(3) for i in numbers]
        (path / f"{split}_list.txt").write_text("".join(rows))
    result = evaluate_checkpoint(str(tmp_path / "checkpoint.pt"), str(path), str(tmp_path), untrained_seeds=[])
    assert result["protocol"] == "categorical" and result["center_crop"] == 0.875
    assert result["folds"]["kind"] == "official"
    assert result["images"] == {"labelled": 18, "unlabelled": 0, "size": [1, 28, 28]}
    assert [row["name"] for row in result["rows"]] == ["pretrained", "shortcut baseline"]
    data = load_datalist(path)
    images = central_part(CachedImages(data, 32, "crop", 1, progress=False).images, 28)  # 28 / 0.875
    expected = evaluate(
        {"pretrained": network.encoder},
        images,
        [item["label"] for item in data],
        ordinal=False,
        class_names=data.info.class_names,
        splits=[item["split"] for item in data],
        progress=False,
    )
    assert result["rows"] == expected["rows"]


def test_other_categories_see_all(tmp_path: Path, encoder_file: Path) -> None:
    path = class_folder(tmp_path / "data")
    result = evaluate_checkpoint(encoder_file, path, tmp_path, n_folds=2, untrained_seeds=[])
    assert result["protocol"] == "categorical" and result["center_crop"] == 1.0


def test_unreadable_images_are_left_out_when_asked(tmp_path: Path, encoder_file: Path) -> None:
    path = class_folder(tmp_path / "data")
    (path / "class 1" / "2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="1 of 18 images cannot be loaded"):
        evaluate_checkpoint(encoder_file, path, tmp_path, n_folds=2, untrained_seeds=[])
    result = evaluate_checkpoint(encoder_file, path, tmp_path, n_folds=2, untrained_seeds=[], on_error="skip")
    assert [entry["count"] for entry in result["classes"]] == [6, 5, 6]
    assert (tmp_path / "skipped.csv").read_text().splitlines()[1].startswith("class 1/2.png,")


def test_columns_are_named(tmp_path: Path, encoder_file: Path) -> None:
    class_folder(tmp_path / "data")
    rows = [f"class {label}/{i},{i % 2},{label}\n" for label in range(3) for i in range(6)]
    (tmp_path / "data" / "grades.csv").write_text("file,level,eye\n" + "".join(rows))
    keys = {"image_key": "file", "label_key": "level", "group_key": "eye"}
    result = evaluate_checkpoint(
        encoder_file, tmp_path / "data" / "grades.csv", tmp_path, n_folds=3, untrained_seeds=[], **keys
    )
    assert result["protocol"] == "diabetic" and result["folds"]["kind"] == "grouped"


def test_whole_image_when_asked(encoder_file: Path, tmp_path: Path) -> None:
    path = class_folder(tmp_path / "data")
    result = evaluate_checkpoint(encoder_file, path, tmp_path, n_folds=2, untrained_seeds=[], center_crop=1)
    assert result["center_crop"] == 1 and result["images"]["size"] == [3, 32, 32]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_folds": 1}, "n_folds must be a whole number of at least 2, got 1."),
        ({"n_folds": "five"}, "n_folds must be a whole number of at least 2, got 'five'."),
        ({"repeats": 0}, "repeats must be a whole number of at least 1, got 0."),
        ({"seed": 2**32}, "seed must be below 4294967296, got 4294967296."),
        ({"untrained_seeds": [True]}, "untrained_seeds must be a list of whole numbers from 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1."),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0."),
        ({"batch_size": 2.5}, "batch_size must be a whole number of at least 1, got 2.5."),
        ({"num_workers": True}, "num_workers must be a whole number of at least 1, got True."),
        ({"untrained_seeds": 3}, "untrained_seeds must be a list of whole numbers from 0 to 2**32 - 1, got 3."),
        ({"untrained_seeds": ["a"]}, "untrained_seeds must be a list of whole numbers from 0 to 2**32 - 1, got ['a']."),
        ({"center_crop": 0}, "center_crop must be in (0, 1], got 0."),
        ({"center_crop": 1.5}, "center_crop must be in (0, 1], got 1.5."),
        ({"center_crop": "half"}, "center_crop must be in (0, 1], got 'half'."),
        ({"section": "test"}, f"{PHANTOM} has no section 'test'"),
        ({"n_folds": 41}, "41 folds need at least 41 labelled images, got 40"),
    ],
)
def test_mistake(values: dict[str, Any], message: str, encoder_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        evaluate_checkpoint(encoder_file, PHANTOM, tmp_path / "result", **values)
    assert str(error.value).startswith(message)
    assert not (tmp_path / "result" / "metrics.json").exists()


def test_files_that_are_no_encoder(encoder_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.pt: no such file"):
        evaluate_checkpoint(tmp_path / "none.pt", PHANTOM, tmp_path / "result")
    content = torch.load(encoder_file, weights_only=True)
    content["config"]["features"] = [4, 16]
    torch.save(content, encoder_file)
    with pytest.raises(ValueError, match=r"encoder\.pt does not fit ConRecEncoder: weights .* of another shape"):
        evaluate_checkpoint(encoder_file, PHANTOM, tmp_path / "result")
    encoder_file.write_text("text")
    with pytest.raises(ValueError, match=r"encoder\.pt (is not a ConRec checkpoint|cannot be read as a checkpoint)"):
        evaluate_checkpoint(encoder_file, PHANTOM, tmp_path / "result")
    assert not (tmp_path / "result").exists()


def test_data_that_cannot_be_scored(encoder_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data not found: .*none"):
        evaluate_checkpoint(encoder_file, tmp_path / "none", tmp_path / "result")
    (tmp_path / "flat").mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "flat" / f"{name}.png")
    with pytest.raises(ValueError, match="flat holds 2 images without labels; an evaluation needs labels"):
        evaluate_checkpoint(encoder_file, tmp_path / "flat", tmp_path / "result")
    path = class_folder(tmp_path / "data")
    (path / "class 1" / "3.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"1 of 18 images cannot be loaded: .*class 1/3\.png"):
        evaluate_checkpoint(encoder_file, path, tmp_path / "result", n_folds=2)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="output_dir .*file cannot be written to"):
        evaluate_checkpoint(encoder_file, PHANTOM, tmp_path / "file")
