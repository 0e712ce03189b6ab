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

"""Photographs wrapped as DICOM get the grade of their PNG, with the example weights of fundus_dr_grading."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image, features

from conrec_monai.data import load_datalist

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("pylibjpeg")

from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.pixels.processing import convert_color_space  # noqa: E402

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "fundus_dr_grading"
PATIENT, IDENTITY = "Doe^Jane", "secret-4711"
# How far probabilities may be off: 4 digits are written; lossy codecs change pixels by some levels of 256.
EXACT, LOSSY = 1e-4, 0.05

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def write(path: Path, shape: tuple[int, ...], frames: list[bytes] | bytes, syntax: str, **elements: Any) -> None:
    """An ophthalmic photograph of 8 bits; elements may differ from those of RGB."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = uid.OphthalmicPhotography8BitImageStorage
    dataset.SOPInstanceUID = uid.generate_uid(entropy_srcs=[path.name])
    dataset.PatientName, dataset.PatientID = PATIENT, IDENTITY
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.PixelData = encapsulate(frames) if isinstance(frames, list) else frames
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    data = stream.getvalue()
    return data + b"\0" * (len(data) % 2)


def subsampled(rgb: np.ndarray) -> bytes:
    """YBR_FULL_422 without compression: two luma samples, then the two chroma samples that they share."""
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL").astype(np.uint16)
    pairs = ybr.reshape(len(ybr), -1, 2, 3)
    chroma = (pairs[..., 1:].sum(axis=2) + 1) // 2
    return np.concatenate([pairs[..., 0], chroma], axis=-1).astype(np.uint8).tobytes()


def wrap(photograph: Image.Image, folder: Path) -> dict[str, tuple[str, float]]:
    """Writes the photograph in many ways: of each DICOM file the PNG that it should agree with, and how closely."""
    rgb = np.asarray(photograph)
    shape, little = rgb.shape, uid.ExplicitVRLittleEndian
    photograph.save(folder / "photograph.png")
    write(folder / "rgb.dcm", shape, rgb.tobytes(), little)
    write(folder / "planes.dcm", shape, rgb.transpose(2, 0, 1).tobytes(), little, PlanarConfiguration=1)
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    write(folder / "ybr.dcm", shape, ybr.tobytes(), little, PhotometricInterpretation="YBR_FULL")
    write(folder / "ybr_422.dcm", shape, subsampled(rgb), little, PhotometricInterpretation="YBR_FULL_422")
    jpeg = encoded(photograph, "JPEG", quality=95)
    (folder / "photograph.jpg").write_bytes(jpeg)
    write(folder / "jpeg.dcm", shape, [jpeg], uid.JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422")
    found = {
        "rgb.dcm": ("photograph.png", EXACT),
        "planes.dcm": ("photograph.png", EXACT),
        "ybr.dcm": ("photograph.png", LOSSY),
        "ybr_422.dcm": ("photograph.png", LOSSY),
        "jpeg.dcm": ("photograph.jpg", LOSSY),
    }
    if features.check("jpg_2000"):
        lossless = encoded(photograph, "JPEG2000", no_jp2=True, irreversible=False, mct=1)
        write(folder / "j2k.dcm", shape, [lossless], uid.JPEG2000Lossless, PhotometricInterpretation="YBR_RCT")
        lossy = {"quality_mode": "rates", "quality_layers": [15], "irreversible": True, "no_jp2": True, "mct": 1}
        small = encoded(photograph, "JPEG2000", **lossy)
        Image.open(io.BytesIO(small)).convert("RGB").save(folder / "j2k_lossy.png")  # by another decoder
        write(folder / "j2k_lossy.dcm", shape, [small], uid.JPEG2000, PhotometricInterpretation="YBR_ICT")
        found |= {"j2k.dcm": ("photograph.png", EXACT), "j2k_lossy.dcm": ("j2k_lossy.png", LOSSY)}
    dataset = pydicom.dcmread(folder / "rgb.dcm")
    dataset.compress(uid.RLELossless)
    dataset.save_as(folder / "rle.dcm")
    found["rle.dcm"] = ("photograph.png", EXACT)
    palette = photograph.quantize(256)
    palette.convert("RGB").save(folder / "palette.png")
    table = np.zeros((256, 3), dtype=np.uint8)
    colors = np.array(palette.getpalette(), dtype=np.uint8).reshape(-1, 3)
    table[: len(colors)] = colors
    tables = {}
    for number, name in enumerate(("Red", "Green", "Blue")):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{name}PaletteColorLookupTableData"] = (table[:, number].astype("<u2") * 257).tobytes()
    elements = {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "PALETTE COLOR",
        "PlanarConfiguration": None,
        **tables,
    }
    elements |= {"SamplesPerPixel": 1, "PlanarConfiguration": None}
    write(folder / "palette.dcm", shape, np.asarray(palette).tobytes(), little, **elements)
    found["palette.dcm"] = ("palette.png", EXACT)
    frames = [rgb.tobytes(), rgb[::-1].tobytes()]
    Image.fromarray(rgb[::-1]).save(folder / "upside_down.png")
    write(folder / "frames.dcm", shape, b"".join(frames), little, NumberOfFrames=2)
    return found | {"frames.dcm#0": ("photograph.png", EXACT), "frames.dcm#1": ("upside_down.png", EXACT)}


def predictions(folder: Path, output: Path) -> dict[str, dict[str, str]]:
    path = str(BUNDLE / "configs" / "inference.json")
    values = {"dataset_dir": str(folder), "output_dir": str(output), "attention_maps": False}
    inference = ConfigWorkflow(path, logging_file=False, bundle_root=str(BUNDLE), **values)
    inference.initialize()
    inference.run()
    with (output / "inference" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["image"] + (f"#{row['frame']}" if row["frame"] else ""): row for row in rows}


def check(photograph: Image.Image, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "files"
    folder.mkdir(parents=True)
    found = wrap(photograph, folder)
    rows = predictions(folder, tmp_path)
    names = [f"p_{i}" for i in range(5)]
    for name, (other, tolerance) in found.items():
        row, expected = rows[name], rows[other]
        assert row["status"] == "ok", row
        p, q = (np.array([float(r[n]) for n in names]) for r in (row, expected))
        assert np.abs(p - q).max() <= tolerance, (name, p, q)
        at_least = q[::-1].cumsum()[::-1][1:]
        if np.abs(at_least - 0.5).min() > 4 * tolerance:  # the median is not on the edge
            assert row["grade"] == expected["grade"], name
        if tolerance == EXACT:
            assert row["warnings"] == expected["warnings"]
    written = "".join(path.read_text() for path in (tmp_path / "inference").iterdir()) + caplog.text
    assert PATIENT not in written and IDENTITY not in written
    assert not any(PATIENT in path.name or IDENTITY in path.name for path in tmp_path.rglob("*"))


def test_drawn_photograph(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    item = load_datalist("phantom:n=1,size=160,seed=8")[0]
    check(Image.fromarray(np.asarray(item["image"]).transpose(1, 2, 0)), tmp_path, caplog)


def test_real_photographs(shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = load_datalist(shared_data / "idrid")
    for number in (0, 100, 200):
        photograph = Image.open(items[number]["image"]).convert("RGB")
        width, height = photograph.size
        photograph = photograph.crop((0, 0, width - width % 2, height))  # pairs of pixels share their color
        check(photograph, tmp_path / str(number), caplog)
