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


def test_classification_with_monai(photographs: Path, encoder: str) -> None:
    accuracy = example("classify_with_monai").main(encoder, str(photographs), 2)
    assert 0 <= accuracy <= 1
    assert accuracy == example("classify_with_monai").main(encoder, str(photographs), 2)


def test_embedding_with_sklearn(photographs: Path, encoder: str) -> None:
    module = example("embed_with_sklearn")
    assert 0 < module.main(encoder, str(photographs)) < 1
    paths = [item["image"] for item in load_datalist(photographs)][:5]
    assert module.Embedding(encoder, 2).fit_transform(paths).shape == (5, 8)


def test_operator_reads_dicom(photographs: Path, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset

    torch.manual_seed(0)
    model = tmp_path / "model.pt"
    grading = {"classes": list("abcde"), "validation": {"qwk": 0.5}}
    save_checkpoint(model, GradingNet(ConRecEncoder(3, (4, 8)), 5), PREPROCESSING, grading=grading)
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

    png, dicom = example("deploy_operator").main(str(model), str(tmp_path / "a.png"), str(tmp_path / "a.dcm"))
    assert png == dicom
    assert png["name"] == "abcde"[png["grade"]] and sum(png["probabilities"]) == pytest.approx(1, abs=1e-3)
