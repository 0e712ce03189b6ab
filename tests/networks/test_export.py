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

import conrec_monai.data
from conrec_monai import load_encoder, load_model, load_preprocessing
from conrec_monai.evaluation import graded
from conrec_monai.networks import export
from conrec_monai.networks.export import DESCRIPTION, export_network
from conrec_monai.networks.nets import ConRecEncoder, ConRecUNet, EncoderClassifier, GradingNet
from conrec_monai.networks.utils import save_checkpoint

PREPROCESSING = {"image_size": 16, "resize": "pad", "field_of_view": None}


@pytest.fixture(params=["grading", "regression", "classifier", "unet"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(4)
    encoder = ConRecEncoder(1, (4, 8))
    network: Any = {
        "grading": lambda: GradingNet(encoder, 3),
        "regression": lambda: GradingNet(encoder, 3, "regression"),
        "classifier": lambda: EncoderClassifier(encoder, 4),
        "unet": lambda: ConRecUNet(1, (4, 8)),
    }[request.param]()
    more = {"grading": {"classes": ["a", "b", "c"]}} if isinstance(network, GradingNet) else {}
    save_checkpoint(tmp_path / "model.pt", network, PREPROCESSING, **more)
    return tmp_path / "model.pt"


def expected(checkpoint: Path, images: torch.Tensor) -> torch.Tensor:
    network: Any = load_model(checkpoint)
    with torch.inference_mode():
        result: torch.Tensor = (load_encoder(checkpoint) if isinstance(network, ConRecUNet) else network)(images)
    return result


def test_torchscript(checkpoint: Path) -> None:
    target = checkpoint.with_suffix(".ts")
    description = export_network(checkpoint, target)
    extra = {DESCRIPTION: ""}
    loaded = torch.jit.load(target, _extra_files=extra)
    assert json.loads(extra[DESCRIPTION]) == description
    for shape in ((1, 1, 16, 16), (5, 1, 16, 24)):
        images = torch.rand(shape)
        torch.testing.assert_close(loaded(images), expected(checkpoint, images), rtol=0, atol=1e-6)


def test_onnx(checkpoint: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    target = checkpoint.with_suffix(".onnx")
    description = export_network(checkpoint, target)
    assert [path.name for path in target.parent.iterdir() if "onnx" in path.name] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map[DESCRIPTION]) == description
    for batch in (1, 4):
        images = torch.rand(batch, 1, 16, 16)
        (found,) = session.run(["output"], {"image": images.numpy()})
        np.testing.assert_allclose(found, expected(checkpoint, images).numpy(), rtol=0, atol=1e-5)


def test_description(tmp_path: Path) -> None:
    grading = {"classes": ["a", "b", "c"], "validation": {"qwk": 0.5}}
    save_checkpoint(tmp_path / "m.pt", GradingNet(ConRecEncoder(3, (4, 8)), 3), PREPROCESSING, grading=grading)
    description = export_network(tmp_path / "m.pt", tmp_path / "m.ts")
    assert description["input"] == {
        "name": "image",
        "layout": "BCHW",
        "channels": "RGB",
        "value_range": [0, 1],
        "levels": 256,
        **PREPROCESSING,
        "made_by": "conrec_monai.data.image_preprocessing(16, 'pad', None, 3)",
    }
    assert description["output"] == {
        "name": "output",
        "meaning": "calibrated probabilities of the classes",
        "size": 3,
        "task": "ordinal",
        "ordered": True,
        "decision": "median",
    }
    assert description["classes"] == ["a", "b", "c"]


def test_preprocessing_can_be_called_as_it_is_described(checkpoint: Path, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    made_by = export_network(checkpoint, checkpoint.with_suffix(".ts"))["input"]["made_by"]
    found = eval(made_by, {"conrec_monai": conrec_monai})(tmp_path / "a.png")
    assert torch.equal(found, load_preprocessing(checkpoint)(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("task", "ordinal", "ordered"),
    [("ordinal", True, True), ("regression", True, True), ("categorical", True, True), ("categorical", False, False)],
)
def test_decision_is_the_one_of_the_evaluation(task: str, ordinal: bool, ordered: bool, tmp_path: Path) -> None:
    grading = {"classes": ["a", "b", "c"], "ordinal": ordinal, "validation": None}
    save_checkpoint(tmp_path / "m.pt", GradingNet(ConRecEncoder(1, (4, 8)), 3, task), PREPROCESSING, grading=grading)
    output = export_network(tmp_path / "m.pt", tmp_path / "m.ts")["output"]
    assert output["meaning"] == "probabilities of the classes"  # of a best.pt, which is not calibrated
    assert (output["task"], output["ordered"]) == (task, ordered)
    probabilities = np.array([[0.4, 0.3, 0.3], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7]])
    expected = {"median": [1, 1, 2], "argmax": [0, 2, 2]}[output["decision"]]
    assert graded(np.arange(3), probabilities, task).predicted.tolist() == expected


def test_result_that_differs_is_not_written(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_torchscript", lambda network, *_: (b"", lambda images: network(images) + 2e-4))
    with pytest.raises(ValueError, match=r"^the result differs from PyTorch's by 0\.0002; nothing is written\.$"):
        export_network(checkpoint, checkpoint.with_suffix(".ts"))
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model.pt"]


def test_mistakes(checkpoint: Path) -> None:
    for target, message in (
        ("model.pth", "must end in .ts"),
        ("model.pt", "must end in .ts"),
        ("none/model.ts", "cannot be written: there is no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            export_network(checkpoint, checkpoint.parent / target)
    checkpoint.with_suffix(".ts").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.ts exists; it is not overwritten\.$"):
        export_network(checkpoint, checkpoint.with_suffix(".ts"))
