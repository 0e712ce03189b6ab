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

import gzip
import io
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from conrec_monai.data import read_image
from conrec_monai.data.image_reader import count_frames

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.pixels.processing import convert_color_space  # noqa: E402

PATIENT = "Doe^Jane"


def picture() -> np.ndarray:
    """An F, red at the top left, green at the top right, on blue: HWC, 24 x 32, with blocks of 8 (as JPEG has)."""
    image = np.zeros((24, 32, 3), dtype=np.uint8)
    image[:] = (20, 30, 120)
    image[:, 8:16] = (240, 200, 160)
    image[:8, 8:24] = (240, 200, 160)
    image[:8, :8] = (255, 0, 0)
    image[:8, 24:] = (0, 255, 0)
    return image


RGB = picture()
CHW = RGB.transpose(2, 0, 1)
GRAY = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)  # no symmetry


def write_dicom(
    path: Path, pixels: np.ndarray | list[bytes], syntax: str = uid.ExplicitVRLittleEndian, **elements: Any
) -> Path:
    """Write a DICOM file of HW, HWC or (with NumberOfFrames) more pixels, or of compressed frames."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = uid.OphthalmicPhotography8BitImageStorage
    dataset.SOPInstanceUID = uid.generate_uid(entropy_srcs=["test"])
    dataset.PatientName = PATIENT
    dataset.PatientID = "secret-4711"
    dataset.Rows, dataset.Columns = 24, 32
    is_color = elements.get("SamplesPerPixel", 1) == 3
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "RGB" if is_color else "MONOCHROME2"
    if is_color:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 if isinstance(pixels, list) else 8 * pixels.dtype.itemsize
    dataset.PixelRepresentation = 0
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.BitsStored = elements.get("BitsStored", dataset.BitsAllocated)
    dataset.HighBit = dataset.BitsStored - 1
    if isinstance(pixels, list):
        dataset.PixelData = encapsulate(pixels)
        dataset["PixelData"].VR = "OB"
    else:
        order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
        if syntax == uid.ExplicitVRBigEndian and dataset.BitsAllocated == 8:
            dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
    return path


def color(path: Path, pixels: np.ndarray | list[bytes], **elements: Any) -> Path:
    return write_dicom(path, pixels, SamplesPerPixel=3, **elements)


def item(**elements: Any) -> list[Dataset]:
    """A sequence of one item."""
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return [dataset]


def _jpeg(image: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, **{"format": "JPEG", "quality": 95, "subsampling": 0, **options})
    data = stream.getvalue()
    return data + b"\0" * (len(data) % 2)


def make_all(folder: Path) -> dict[str, tuple[Path, np.ndarray, float]]:
    """Write the picture in every way: name -> file, what is expected (CHW), mean error that is allowed."""
    made: dict[str, tuple[Path, np.ndarray, float]] = {}
    full = convert_color_space(RGB, "RGB", "YBR_FULL")
    half = full.reshape(24, 16, 6)[..., [0, 3, 1, 2]]  # Y Y Cb Cr: both pixels of a pair have the same color
    gray16 = GRAY * 80

    def add(name: str, path: Path, expected: np.ndarray = CHW, error: float = 0) -> None:
        made[name] = path, expected, error

    add("RGB", color(folder / "rgb.dcm", RGB))
    add("implicit", color(folder / "implicit.dcm", RGB, syntax=uid.ImplicitVRLittleEndian))
    add("big endian", color(folder / "big.dcm", RGB, syntax=uid.ExplicitVRBigEndian))
    add("planes", color(folder / "planes.dcm", np.ascontiguousarray(CHW), PlanarConfiguration=1))
    add("RGB 16", color(folder / "rgb16.dcm", RGB.astype(np.uint16) * 257), CHW.astype(np.uint16) * 257)
    add("YBR_FULL", color(folder / "ybr.dcm", full, PhotometricInterpretation="YBR_FULL"), error=1)
    add("YBR_422", color(folder / "ybr422.dcm", half, PhotometricInterpretation="YBR_FULL_422"), error=1)
    baseline: dict[str, Any] = {"syntax": uid.JPEGBaseline8Bit}
    add(
        "JPEG",
        color(folder / "jpeg.dcm", [_jpeg(RGB, subsampling=2)], PhotometricInterpretation="YBR_FULL_422", **baseline),
        error=6,
    )
    plain = [_jpeg(RGB, keep_rgb=True)]
    add("JPEG RGB", color(folder / "jpegrgb.dcm", plain, PhotometricInterpretation="RGB", **baseline), error=3)
    if features.check_codec("jpg_2000"):
        lossless = [_jpeg(RGB, format="JPEG2000", no_jp2=True, mct=1, quality=None)]
        rct = {"PhotometricInterpretation": "YBR_RCT", "syntax": uid.JPEG2000Lossless}
        add("JPEG 2000 RCT", color(folder / "rct.dcm", lossless, **rct))
        lossy = [_jpeg(RGB, format="JPEG2000", no_jp2=True, mct=1, irreversible=True, quality=None)]
        ict = {"PhotometricInterpretation": "YBR_ICT", "syntax": uid.JPEG2000}
        add("JPEG 2000 ICT", color(folder / "ict.dcm", lossy, **ict), error=1)
    run_length = pydicom.dcmread(folder / "rgb.dcm")
    run_length.compress(uid.RLELossless)
    run_length.save_as(folder / "rle.dcm")
    add("run length", folder / "rle.dcm")
    add("gray 8", write_dicom(folder / "gray8.dcm", (GRAY // 3).astype(np.uint8)), (GRAY // 3)[None].astype(np.uint8))
    add("gray 16", write_dicom(folder / "gray16.dcm", gray16), gray16[None])
    big = write_dicom(folder / "gray16big.dcm", gray16, syntax=uid.ExplicitVRBigEndian)
    add("gray 16 big endian", big, gray16[None])
    inverted = write_dicom(folder / "inverted.dcm", 65535 - gray16, PhotometricInterpretation="MONOCHROME1")
    add("MONOCHROME1", inverted, gray16[None])
    # 12 bits are stretched to 16; what the upper 4 bits hold is no part of the picture
    twelve = np.rint(GRAY / 4095 * 65535).astype(np.uint16)[None]
    add("gray 12", write_dicom(folder / "gray12.dcm", GRAY | 0xA000, BitsStored=12), twelve)
    signed = (gray16.astype(np.int32) - 32768).astype(np.int16)
    add("signed", write_dicom(folder / "signed.dcm", signed, PixelRepresentation=1), gray16[None])

    image = nibabel.Nifti1Image
    columns = np.ascontiguousarray(RGB.transpose(1, 0, 2))  # x, y, channel
    packed = columns.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    for name, data in (("xy3", columns), ("xyz3", columns[:, :, None]), ("vector", columns[:, :, None, None])):
        nibabel.save(image(data, np.eye(4)), folder / f"{name}.nii")
        add(f"NIfTI {name}", folder / f"{name}.nii")
    nibabel.save(image(packed, np.diag([-1, -1, 1, 1])), folder / "rgb24.nii.gz")
    add("NIfTI RGB24", folder / "rgb24.nii.gz")
    nibabel.save(nibabel.Nifti2Image(packed[..., None], np.eye(4)), folder / "second.nii.gz")
    add("NIfTI-2", folder / "second.nii.gz")
    for dtype in ("u1", ">u2", "i4", "f4"):
        data = (GRAY % 251).T.astype(dtype)
        nibabel.save(image(data, np.eye(4), dtype=data.dtype), folder / f"{dtype}.nii")
        expected = (GRAY % 251)[None] * (257 if dtype == "f4" else 1)
        native = {"u1": np.uint8, "i4": np.uint8}.get(dtype, np.uint16)
        add(f"NIfTI {dtype}", folder / f"{dtype}.nii", expected.astype(native))
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray, float]]:
    return make_all(tmp_path_factory.mktemp("made"))


def test_every_kind_shows_the_picture(made: dict[str, tuple[Path, np.ndarray, float]]) -> None:
    for name, (path, expected, error) in made.items():
        found = read_image(path, expected.shape[0])
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype) and found.flags.writeable, name
        difference = np.abs(found.astype(int) - expected)
        assert difference.mean() <= error, (name, difference.mean())
        if error == 0:
            np.testing.assert_array_equal(found, expected, err_msg=name)
        assert count_frames(path) == 1


def test_kind_is_told_by_content(made: dict[str, tuple[Path, np.ndarray, float]], tmp_path: Path) -> None:
    for name in ("RGB", "NIfTI RGB24", "NIfTI xy3"):
        (tmp_path / "IM000001").write_bytes(made[name][0].read_bytes())
        np.testing.assert_array_equal(read_image(tmp_path / "IM000001"), CHW)


def test_jpeg_that_contradicts_its_header(tmp_path: Path) -> None:
    # A frequent fault of cameras: RGB in the header, a JFIF file (which is YCbCr) in the pixels.
    file = color(tmp_path / "a.dcm", [_jpeg(RGB)], syntax=uid.JPEGBaseline8Bit)
    with pytest.warns(UserWarning, match="JFIF"):
        assert np.abs(read_image(file).astype(int) - CHW).mean() < 3


def test_frames(tmp_path: Path) -> None:
    stack = np.stack([GRAY, GRAY + 1000, GRAY + 2000])
    file = write_dicom(tmp_path / "a.dcm", stack, NumberOfFrames=3)
    assert count_frames(file) == 3
    for frame in range(3):
        np.testing.assert_array_equal(read_image(file, 1, frame=frame), stack[frame : frame + 1])
    with pytest.raises(ValueError, match=r"a\.dcm: it holds 3 frames: choose one, 0 to 2$"):
        read_image(file)
    for frame in (3, -1):
        with pytest.raises(ValueError, match=rf"a\.dcm: there is no frame {frame}: it holds 3, counted from 0$"):
            read_image(file, frame=frame)
    frames = [_jpeg(RGB), _jpeg(RGB[::-1])]
    ybr = {"PhotometricInterpretation": "YBR_FULL_422", "syntax": uid.JPEGBaseline8Bit}
    file = color(tmp_path / "b.dcm", frames, NumberOfFrames=2, **ybr)
    assert count_frames(file) == 2
    assert np.abs(read_image(file, frame=1).astype(int) - CHW[:, ::-1]).mean() < 3

    data = stack.transpose(2, 1, 0)  # x, y, slice; three slices would be taken for channels
    file = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.concatenate([data, data[..., :1]], axis=2), np.eye(4)), file)
    assert count_frames(file) == 4
    for frame in (2, 0, 3):
        np.testing.assert_array_equal(read_image(file, 1, frame=frame)[0], stack[frame % 3])
    with pytest.raises(ValueError, match="4 frames"):
        read_image(file)
    colors = np.stack([RGB, RGB[::-1]]).transpose(2, 1, 0, 3)
    nibabel.save(nibabel.Nifti1Image(colors, np.eye(4)), tmp_path / "c.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "c.nii", frame=1), CHW[:, ::-1])


def _levels(tmp_path: Path, stored: list[int], dtype: Any = np.uint8, **elements: Any) -> list[int]:
    pixels = np.array([stored], dtype=dtype)
    return (
        read_image(write_dicom(tmp_path / "a.dcm", pixels, Rows=1, Columns=len(stored), **elements), 1).ravel().tolist()
    )


def test_window(tmp_path: Path) -> None:
    # PS3.3, C.11.2.1.2.1: below 50 black, above 149 white, between (x - 99.5) / 100 + 0.5
    window: dict[str, Any] = {"WindowCenter": 100, "WindowWidth": 101}
    assert _levels(tmp_path, [0, 49, 99, 100, 150, 255], **window) == [0, 0, 126, 129, 255, 255]
    assert _levels(tmp_path, [49, 99, 150], PhotometricInterpretation="MONOCHROME1", **window) == [255, 129, 0]
    # C.11.2.1.3.2: (x - 100) / 100 + 0.5, and C.11.2.1.3.1: 1 / (1 + exp(-4 (x - 100) / 100))
    exact: dict[str, Any] = {"WindowCenter": [100, 7], "WindowWidth": [100, 7], "VOILUTFunction": "LINEAR_EXACT"}
    assert _levels(tmp_path, [50, 75, 100, 150], **exact) == [0, 64, 128, 255]
    assert _levels(tmp_path, [0, 75, 100], **{**exact, "VOILUTFunction": "SIGMOID"}) == [5, 69, 128]
    assert _levels(tmp_path, [99, 100], WindowCenter=100, WindowWidth=1) == [0, 255]
    # The window comes after the modality LUT: 2 x - 100 = 0 ... 100
    rescaled: dict[str, Any] = {"RescaleSlope": 2, "RescaleIntercept": -100}
    assert _levels(tmp_path, [50, 75, 100], WindowCenter=50.5, WindowWidth=101, **rescaled) == [0, 128, 255]
    # Without a window the full range is that of the stored bits, whatever the scale
    assert _levels(tmp_path, [0, 51, 255], **rescaled) == [0, 51, 255]
    assert _levels(tmp_path, [0, 51, 255], RescaleSlope=-2, RescaleIntercept=0) == [255, 204, 0]
    assert _levels(tmp_path, [0, 15], BitsStored=4) == [0, 255]
    for name, value, reason in (
        ("WindowWidth", 0, "WindowCenter 100 and WindowWidth 0"),
        ("VOILUTFunction", "CUBIC", "VOILUTFunction is none of LINEAR, LINEAR_EXACT, SIGMOID"),
        ("RescaleSlope", 0, "RescaleSlope 0 and RescaleIntercept 0"),
    ):
        with pytest.raises(ValueError, match=rf"cannot read image .*a\.dcm: {reason}$"):
            _levels(tmp_path, [0, 1], **{**window, name: value})


def test_window_of_each_frame(tmp_path: Path) -> None:
    windows = [item(FrameVOILUTSequence=item(WindowCenter=c, WindowWidth=101))[0] for c in (50.5, 100.5)]
    scale = item(PixelValueTransformationSequence=item(RescaleSlope=2, RescaleIntercept=0))
    pixels = np.array([[[0, 25, 75]], [[0, 25, 75]]], dtype=np.uint8)
    groups: dict[str, Any] = {"PerFrameFunctionalGroupsSequence": windows, "SharedFunctionalGroupsSequence": scale}
    file = write_dicom(tmp_path / "a.dcm", pixels, Rows=1, Columns=3, NumberOfFrames=2, **groups)
    assert read_image(file, 1, frame=0).ravel().tolist() == [0, 128, 255]  # 0, 50, 150 of 0 ... 100
    assert read_image(file, 1, frame=1).ravel().tolist() == [0, 0, 255]  # of 50 ... 150


def test_lookup_tables(tmp_path: Path) -> None:
    # 3 entries from 10 on, 12 bits; what lies beyond the ends takes the first or the last
    table = item(LUTDescriptor=[3, 10, 12], LUTData=struct.pack("<3H", 0, 819, 4095))
    expected = [0, 0, 51, 255, 255]
    assert _levels(tmp_path, [0, 10, 11, 12, 200], ModalityLUTSequence=table) == expected
    assert _levels(tmp_path, [0, 10, 11, 12, 200], VOILUTSequence=table) == expected
    # A VOI LUT that begins below 0 is written as an unsigned number
    table = item(LUTDescriptor=[3, 65535, 8], LUTData=struct.pack("<3H", 0, 51, 255))
    shift: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": -100}
    assert _levels(tmp_path, [50, 99, 100, 101], VOILUTSequence=table, **shift) == [0, 0, 51, 255]


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("bits", [8, 16])
def test_palette(tmp_path: Path, bits: int, syntax: str) -> None:
    colors, indices = np.unique(RGB.reshape(-1, 3), axis=0, return_inverse=True)
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR", "syntax": syntax}
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    for channel, name in enumerate(("Red", "Green", "Blue")):
        entries = colors[:, channel]
        assert len(entries) == 4
        data = entries if bits == 8 else entries.astype(f"{order}u2") * np.uint16(257)
        if bits == 8 and order == ">":
            data = data.reshape(-1, 2)[:, ::-1]
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [4, 5, bits]
        elements[f"{name}PaletteColorLookupTableData"] = data.astype(data.dtype).tobytes()
    # Words of pixels with entries of bytes: index 5 is the first entry
    file = write_dicom(tmp_path / "a.dcm", (indices.reshape(24, 32) + 5).astype(np.uint16), **elements)
    expected = CHW if bits == 8 else CHW.astype(np.uint16) * 257
    found = read_image(file)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_dicom_that_holds_no_picture_of_a_known_kind(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, "PhotometricInterpretation YBR_PARTIAL_420 is not read"),
        ({"PhotometricInterpretation": "DOE"}, "PhotometricInterpretation of an unknown kind is not read"),
        ({"PhotometricInterpretation": "MONOCHROME2"}, "PhotometricInterpretation MONOCHROME2 with SamplesPerPixel 3"),
        ({"PhotometricInterpretation": "YBR_ICT"}, r"YBR_ICT in transfer syntax 1\.2\.840\.10008\.1\.2\.1 .*JPEG 2000"),
        ({"Rows": 0}, "the DICOM file holds no picture: no Rows and Columns"),
        ({"NumberOfFrames": -1}, "there are no pixels: 32 x 24, -1 frames"),
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels are more than the limit"),
        ({"NumberOfFrames": 2_000_000_000}, "2000000000 frames of 32 x 24 pixels are more than the limit"),
        ({"Rows": 25}, "damaged or truncated DICOM file"),
        ({"BitsStored": 12}, "BitsStored 12 and BitsAllocated 8"),
    ]
    for elements, reason in cases:
        file = color(tmp_path / "a.dcm", RGB, **elements)
        with pytest.raises(ValueError, match=rf"^cannot read image .*a\.dcm: .*{reason}.*$"):
            read_image(file, frame=0)
    assert count_frames(color(tmp_path / "a.dcm", RGB, NumberOfFrames=2)) == 2
    # MPEG-4 is a film; deflated files could be bombs; an unknown syntax is not quoted
    for syntax, reason in (
        ("1.2.840.10008.1.2.4.102", r"transfer syntax 1\.2\.840\.10008\.1\.2\.4\.102 \(MPEG-4 .*\) is not read"),
        ("1.2.3.4", "an unknown transfer syntax is not read"),
        ("1.2.840.10008.1.2.1.99", r"\(deflated\) is not read"),
    ):
        content = (tmp_path / "a.dcm").read_bytes()
        old = b"1.2.840.10008.1.2.1\0"
        assert content.count(old) == 1
        at = content.index(old)
        new = syntax.encode() + b"\0" * (len(syntax) % 2)
        group = struct.unpack_from("<I", content, 140)[0] + len(new) - len(old)
        head = content[:140] + struct.pack("<I", group) + content[144 : at - 2]
        (tmp_path / "b.dcm").write_bytes(head + struct.pack("<H", len(new)) + new + content[at + len(old) :])
        with pytest.raises(ValueError, match=rf"b\.dcm: .*{reason}"):
            read_image(tmp_path / "b.dcm", frame=0)


def test_compressed_picture_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    ybr: dict[str, Any] = {"PhotometricInterpretation": "YBR_FULL_422", "syntax": uid.JPEGBaseline8Bit}
    data = bytearray(_jpeg(RGB))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 60000, 50000)
    file = color(tmp_path / "a.dcm", [bytes(data)], **ybr)
    with pytest.raises(ValueError, match="Columns and Rows 32 x 24, but the compressed picture has 50000 x 60000"):
        read_image(file)
    if features.check_codec("jpg_2000"):
        data = bytearray(_jpeg(RGB, format="JPEG2000", no_jp2=True, quality=None))
        at = data.index(b"\xff\x51")
        data[at + 6 : at + 14] = struct.pack(">II", 50000, 60000)
        rct = {"PhotometricInterpretation": "YBR_RCT", "syntax": uid.JPEG2000Lossless}
        with pytest.raises(ValueError, match="has 50000 x 60000"):
            read_image(color(tmp_path / "b.dcm", [bytes(data)], **rct))


def test_missing_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom = color(tmp_path / "a.dcm", RGB)
    nifti = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(GRAY.T, np.eye(4)), nifti)
    lossless = color(tmp_path / "b.dcm", [b"\xff\xd8"], syntax=uid.JPEGLosslessSV1)
    decoder = pydicom.pixels.get_decoder(uid.JPEGLosslessSV1)
    monkeypatch.setattr(type(decoder), "is_available", property(lambda self: False))
    with pytest.raises(
        ValueError,
        match=r"b\.dcm: transfer syntax 1\.2\.840\.10008\.1\.2\.4\.70 \(JPEG Lossless.*\) needs a decoder: "
        r'pip install "conrec-monai\[medical\]"$',
    ):
        read_image(lossless)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    monkeypatch.setitem(sys.modules, "nibabel.nifti1", None)
    for file, name in ((dicom, "pydicom"), (nifti, "nibabel")):
        with pytest.raises(ValueError, match=rf'needs {name}: pip install "conrec-monai\[medical\]"$'):
            count_frames(file)


def _affine(*signs: float, shift: float = 0) -> np.ndarray:
    affine = np.diag([*signs, 1, 1]).astype(float)
    affine[:2, 3] = shift
    return affine


@pytest.mark.parametrize(
    ("affine", "stored"),
    [
        (np.eye(4), CHW),
        (_affine(-1, -1), CHW),  # what ITK writes
        (_affine(-0.3, -0.3, shift=50), CHW),
        (_affine(1, 1, shift=-23), CHW[:, ::-1, ::-1]),  # to the right and to anterior, as in nibabel's canonical order
        (_affine(-1, 1, shift=-23), CHW[:, ::-1]),  # to the left and to anterior: what converters of DICOM write
        (_affine(1, -1, shift=-23), CHW[:, :, ::-1]),
        (_affine(8.4, 8.4, shift=3.7), CHW),  # coordinates that count pixels, after the picture was made smaller
    ],
)
def test_nifti_axes(tmp_path: Path, affine: np.ndarray, stored: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(stored.transpose(2, 1, 0)), affine), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii"), CHW)


def test_nifti_axes_that_are_swapped_or_unknown(tmp_path: Path) -> None:
    swap = np.eye(4)[[1, 0, 2, 3]]
    swap[:2] *= -1
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(RGB), swap), tmp_path / "a.nii")  # y, x, channel
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii"), CHW)
    image = nibabel.Nifti1Image(np.ascontiguousarray(CHW.transpose(2, 1, 0)), None)  # no codes
    image.header["pixdim"][1:3] = 0.5
    nibabel.save(image, tmp_path / "b.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "b.nii"), CHW)
    # A file and its canonical form show the same
    for signs in ((-1, -1), (-1, 1)):
        image = nibabel.Nifti1Image(GRAY.T[..., None], _affine(*signs, shift=10))
        nibabel.save(image, tmp_path / "c.nii")
        nibabel.save(nibabel.as_closest_canonical(image), tmp_path / "d.nii")
        np.testing.assert_array_equal(read_image(tmp_path / "c.nii"), read_image(tmp_path / "d.nii"))


@pytest.mark.filterwarnings("ignore")  # MONAI's own
def test_nifti_written_by_monai(tmp_path: Path) -> None:
    from monai.data import MetaTensor, NibabelWriter, PILReader
    from monai.transforms import LoadImage, Resize, SaveImage

    Image.fromarray(RGB).save(tmp_path / "a.png")
    loaded = LoadImage(reader=PILReader, ensure_channel_first=True, image_only=True)(tmp_path / "a.png")
    assert isinstance(loaded, MetaTensor) and loaded.shape == (3, 32, 24)  # MONAI: channel, x, y
    writer = NibabelWriter(output_dtype=np.uint8)
    writer.set_data_array(loaded, channel_dim=0)
    writer.set_metadata(loaded.meta)
    writer.write(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz"), CHW)
    # As real numbers, which SaveImage takes by default; then as numbers in [0, 1]
    save: dict[str, Any] = {"output_dir": tmp_path, "separate_folder": False, "print_log": False}
    SaveImage(**save)(loaded)
    np.testing.assert_array_equal(read_image(tmp_path / "a_trans.nii.gz"), CHW.astype(np.uint16) * 257)
    SaveImage(output_postfix="unit", **save)(loaded / 255)
    np.testing.assert_array_equal(read_image(tmp_path / "a_unit.nii.gz"), CHW.astype(np.uint16) * 257)
    small = Resize((16, 12), mode="nearest")(loaded)
    SaveImage(output_postfix="small", resample=False, output_dtype=np.uint8, **save)(small)
    np.testing.assert_array_equal(read_image(tmp_path / "a_small.nii.gz"), CHW[:, ::2, ::2])


def test_nifti_written_by_itk(tmp_path: Path) -> None:
    itk = pytest.importorskip("itk")
    itk.imwrite(itk.image_from_array(RGB, is_vector=True), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz"), CHW)


def _nifti(tmp_path: Path, values: Any, dtype: Any, slope: float = 1, intercept: float = 0, **header: Any) -> list[int]:
    """Write numbers as they are to a NIfTI file, and read them back. A second axis of length 1 is added."""
    data = np.asarray(values, dtype=dtype)
    head = nibabel.Nifti1Header()
    head.set_data_dtype(data.dtype)
    head.set_data_shape((len(data), 1))
    head["vox_offset"] = 352
    head["magic"] = b"n+1"
    head["scl_slope"], head["scl_inter"] = slope, intercept
    for name, value in header.items():
        head[name] = value
    (tmp_path / "a.nii").write_bytes(head.binaryblock + b"\0" * 4 + data.tobytes())
    return read_image(tmp_path / "a.nii", 1)[0, 0].tolist()


def test_nifti_numbers(tmp_path: Path) -> None:
    assert _nifti(tmp_path, [0, 7, 65535], np.uint16) == [0, 7, 65535]
    assert _nifti(tmp_path, [0, 7, 255], np.int16) == [0, 7, 255]  # uint8
    assert _nifti(tmp_path, [0, 7, 256], np.int32) == [0, 7, 256]  # uint16
    assert _nifti(tmp_path, [0, 0.5, 1], np.float32) == [0, 32768, 65535]
    assert _nifti(tmp_path, [0, 0.5, 2], np.float64) == [0, 128, 514]  # of 255
    assert _nifti(tmp_path, [0, 0.5, 1.00005], np.float64) == [0, 32768, 65535]  # rounding
    assert _nifti(tmp_path, [0, 300, 65535], np.float32) == [0, 300, 65535]
    # (x + 100) / 200 are numbers in [0, 1], though they are stored as integers
    assert _nifti(tmp_path, [-100, 0, 100], np.int16, 1 / 200, 0.5) == [0, 32768, 65535]
    # cal_min and cal_max: black and white of numbers that have no range of their own
    window: dict[str, Any] = {"cal_min": -1000, "cal_max": 1000}
    assert _nifti(tmp_path, [-2000, 0, 3000], np.int16, **window) == [0, 32768, 65535]
    assert _nifti(tmp_path, [1, 2], np.uint8, **window) == [1, 2]
    for values, dtype, reason in (
        ([-1, 7], np.int16, r"values from -1 to 7, expected \[0, 255\] or \[0, 65535\]"),
        ([0, 65536], np.int32, "values from 0 to 65536"),
        ([-0.5, 0.5], np.float32, r"values from -0.5 to 0.5, expected \[0, 1\], \[0, 255\] or \[0, 65535\]"),
        ([0, np.nan], np.float32, "values from nan to nan"),
        ([0, np.inf], np.float32, "values from 0 to inf"),
        ([0, 1j], np.complex64, "numbers of type complex64, expected integers or real numbers"),
    ):
        with pytest.raises(ValueError, match=rf"^cannot read image .*a\.nii: {reason}"):
            _nifti(tmp_path, values, dtype)
    with pytest.raises(ValueError, match="some of the numbers are NaN or infinite"):
        _nifti(tmp_path, [0, np.nan], np.float32, **window)


def test_slices_of_a_volume_share_one_range(tmp_path: Path) -> None:
    volume = np.zeros((2, 1, 4), dtype=np.float32)
    volume[0, 0] = [1, 0, 255, 0]
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    assert [read_image(tmp_path / "a.nii.gz", 1, frame=k)[0, 0, 0] for k in range(4)] == [257, 0, 65535, 0]


def test_nifti_rgba_is_composited_over_black(tmp_path: Path) -> None:
    data = np.array([[(200, 100, 50, 51)], [(200, 100, 50, 255)]], dtype=[(name, "u1") for name in "RGBA"])
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii"), [[[40, 200]], [[20, 100]], [[10, 50]]])


def test_nifti_that_holds_no_picture_of_a_known_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(content: bytes, reason: str) -> None:
        for name, data in (("a.nii", content), ("a.nii.gz", gzip.compress(content))):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(ValueError, match=rf"^cannot read image .*{name}: .*{reason}"):
                read_image(tmp_path / name, frame=0)

    def made(*shape: int) -> bytearray:
        return bytearray(nibabel.Nifti1Image(np.zeros(shape, dtype=np.uint8), np.eye(4)).to_bytes())

    refused(bytes(made(4, 4, 2, 5)), r"shape \(4, 4, 2, 5\), expected \(x, y\), \(x, y, slices\)")
    refused(bytes(made(4)), r"shape \(4,\)")
    refused(bytes(made(4, 5))[:-1], "truncated")
    # Headers of bombs: the sizes are 16-bit numbers from byte 40 on
    content = made(4, 5)
    struct.pack_into("<8h", content, 40, 2, 30000, 30000, 1, 1, 1, 1, 1)
    refused(bytes(content), "30000 x 30000 pixels are more than the limit")
    struct.pack_into("<8h", content, 40, 3, 10000, 10000, 1000, 1, 1, 1, 1)
    refused(bytes(content), "1000 frames of 10000 x 10000 pixels are more than the limit")
    struct.pack_into("<8h", content, 40, 2, -4, 5, 1, 1, 1, 1, 1)
    refused(bytes(content), "there are no pixels: -4 x 5")
    for offset in (100, 1e10):
        content = made(4, 5)
        struct.pack_into("<f", content, 108, offset)
        refused(bytes(content), f"the header says that the pixels begin at byte {offset:.0f}")
    content = made(4, 5)
    content[344:348] = b"ni1\0"
    refused(bytes(content), r"pair of files \(.hdr and .img\): convert it to one .nii file")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"hello " * 100))
    with pytest.raises(ValueError, match=r"b\.gz: compressed with gzip, but what is inside is no NIfTI file"):
        read_image(tmp_path / "b.gz")
    (tmp_path / "b.gz").write_bytes(b"\x1f\x8bgarbage")
    with pytest.raises(ValueError, match=r"b\.gz: damaged gzip data"):
        read_image(tmp_path / "b.gz")


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_one_line(made: dict[str, tuple[Path, np.ndarray, float]], tmp_path: Path) -> None:
    """Whatever is done to a file: it is read, or refused in one line that names it and no patient."""
    names = sorted(made)
    contents = [made[name][0].read_bytes() for name in names]
    file = tmp_path / "damaged"

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(
        st.integers(0, len(names) - 1),
        st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
        st.floats(0, 1),
    )
    def damage(kind: int, bytes_: list[tuple[float, int]], end: float) -> None:
        content = bytearray(contents[kind])
        for where, value in bytes_:
            content[int(where**2 * (len(content) - 1))] = value  # the header more often
        if not bytes_:
            content = content[: int(end * (len(content) - 1))]
        file.write_bytes(content)
        try:
            count_frames(file)
            read_image(file, frame=0)
        except ValueError as error:
            told = "".join(traceback.format_exception(error))
            assert str(error).startswith(f"cannot read image {file}: ") and "\n" not in str(error)
            assert "Doe" not in told and "secret" not in told
        else:
            assert bytes_ or names[kind] == "JPEG", "a truncated file was read"

    damage()
