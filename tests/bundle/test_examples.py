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

"""The files of examples/ run as they are."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from conrec_monai.data import load_datalist
from conrec_monai.networks.nets import ConRecEncoder, GradingNet
from conrec_monai.networks.utils import save_checkpoint

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PREPROCESSING = {"image_size": 32, "resize": "squash", "field_of_view": "local_contrast"}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn fundus pictures in folders 0 to 4."""
    folder = tmp_path_factory.mktemp("photographs")
    for i, item in enumerate(load_datalist("phantom:n=60,size=48,seed=3")):
        path = folder / str(item["label"]) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(item["image"]).transpose(1, 2, 0)).save(path)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "encoder.pt"
    save_checkpoint(path, ConRecEncoder(3, (4, 8)), PREPROCESSING)
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "model.pt"
    grading = {"classes": list("abcde"), "validation": {"qwk": 0.5}}
    save_checkpoint(path, GradingNet(ConRecEncoder(3, (4, 8)), 5), PREPROCESSING, grading=grading)
    return str(path)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> str | int | None:
    """What `python examples/NAME.py ARGUMENTS` ends with: an exit code, or the text that goes to stderr with code 1."""
    monkeypatch.setattr("sys.argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return end.value.code


def test_classification_with_monai(photographs: Path, encoder: str) -> None:
    accuracy = example("classify_with_monai").main(encoder, str(photographs), 2)
    assert 0 <= accuracy <= 1
    assert accuracy == example("classify_with_monai").main(encoder, str(photographs), 2)


def test_official_test_split_is_left_for_the_score(
    photographs: Path, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It holds the images of one table row in three; every seventh row has no label."""
    items = load_datalist(photographs)
    rows = [
        f"{item['image']},{'' if i % 7 == 0 else item['label'] % 2},{'test' if i % 3 == 0 else 'train'}"
        for i, item in enumerate(items)
    ]
    (tmp_path / "table.csv").write_text("\n".join(["image,label,split", *rows]), encoding="utf-8")
    labelled = [i for i in range(60) if i % 7]
    example("classify_with_monai").main(encoder, str(tmp_path / "table.csv"), 1)
    out = capsys.readouterr().out
    assert out.startswith("9 of 60 images have no label and are left out\n")
    assert f"accuracy on {sum(i % 3 == 0 for i in labelled)} test images: " in out
    example("embed_with_sklearn").main(encoder, str(tmp_path / "table.csv"))
    assert capsys.readouterr().out.startswith("9 of 60 images have no label and are left out\n")


@pytest.mark.parametrize("name", ["classify_with_monai", "embed_with_sklearn"])
def test_mistakes_end_in_one_line(
    name: str,
    photographs: Path,
    encoder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = next((photographs / "0").glob("*.png"))
    for label in "01":
        (tmp_path / "damaged" / label).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "damaged" / label / f"{i}.png").write_bytes(picture.read_bytes()[: -i * 100 or None])
    frames = [Image.open(picture)] * 12
    for label in "01":
        (tmp_path / "frames" / label).mkdir(parents=True)
        frames[0].save(tmp_path / "frames" / label / "a.tif", save_all=True, append_images=frames[1:])
    bundle = EXAMPLES.parent / "bundles" / "conrec_pretraining" / "models" / "model.pt"
    for checkpoint, dataset, message in (
        (encoder, tmp_path / "none", "data not found"),
        (encoder, photographs / "0", " have a label; 2 classes are needed."),
        (encoder, "phantom:n=20", "files of one picture each, no arrays and no frames"),
        (encoder, tmp_path / "frames", "files of one picture each, no arrays and no frames"),
        (encoder, tmp_path / "damaged", "cannot read image"),
        (str(tmp_path / "none.pt"), photographs, "no checkpoint at"),
        (str(picture), photographs, "is not a ConRec checkpoint"),
        (str(bundle), photographs, "holds plain weights without architecture and preprocessing"),
    ):
        text = run(monkeypatch, name, checkpoint, str(dataset))
        assert isinstance(text, str) and text.startswith("Error: ") and message in text and "\n" not in text
    assert run(monkeypatch, name, encoder) == 2
    assert "usage: " in capsys.readouterr().err


def test_embedding_with_sklearn(photographs: Path, encoder: str) -> None:
    module = example("embed_with_sklearn")
    assert 0 < module.main(encoder, str(photographs)) < 1
    paths = [item["image"] for item in load_datalist(photographs)][:5]
    assert module.Embedding(encoder, 2).fit_transform(paths).shape == (5, 8)


def test_operator_goes_on_after_a_bad_image(
    photographs: Path,
    encoder: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = next((photographs / "0").glob("*.png"))
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:300])
    assert run(monkeypatch, "deploy_operator", model, str(bad), str(tmp_path / "none.png"), str(good)) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{good} {{'grade': ") and out.count("\n") == 1
    assert err.splitlines() == [
        f"Error: cannot read image {bad}: image file is truncated",
        f"Error: image file not found: {tmp_path / 'none.png'}",
    ]
    assert run(monkeypatch, "deploy_operator", model, str(good)) == 0
    for wrong, message in ((encoder, "holds an encoder alone"), (str(good), "is not a ConRec checkpoint")):
        text = run(monkeypatch, "deploy_operator", wrong, str(good))
        assert isinstance(text, str) and text.startswith("Error: ") and message in text and "\n" not in text
    assert run(monkeypatch, "deploy_operator", model) == 2


def test_operator_reads_dicom(photographs: Path, model: str, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset

    picture = np.asarray(Image.open(next((photographs / "0").glob("*.png"))))
    Image.fromarray(picture).save(tmp_path / "a.png")
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = pydicom.uid.OphthalmicPhotography8BitImageStorage
    dataset.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["test"])
    dataset.Rows, dataset.Columns = picture.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = picture.tobytes()
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)

    png, dicom = example("deploy_operator").main(model, str(tmp_path / "a.png"), str(tmp_path / "a.dcm"))
    assert png == dicom
    assert png["name"] == "abcde"[png["grade"]] and sum(png["probabilities"]) == pytest.approx(1, abs=1e-3)
