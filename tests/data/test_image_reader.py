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

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conrec_monai.data import image_reader, read_image
from conrec_monai.data.image_reader import to_channels

RGB = np.array(
    [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]], [[200, 100, 50], [0, 0, 0]]], dtype=np.uint8
)  # HWC


def _png(path: Path, width: int, height: int, depth: int, color: int, *rows: bytes, extra: bytes = b"") -> Path:
    """Write a PNG by hand: PIL cannot write every kind that exists."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_rgb_png_is_chw_in_rgb_order(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.PNG")
    image = read_image(tmp_path / "a.PNG")
    assert image.shape == (3, 3, 2) and image.dtype == np.uint8 and image.flags.writeable
    np.testing.assert_array_equal(image, RGB.transpose(2, 0, 1))


def test_gray_and_luma(tmp_path: Path) -> None:
    gray = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png", 1), gray[None])
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png", 3), np.stack([gray] * 3))
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    # 0.299 R + 0.587 G + 0.114 B: 76.2, 149.7, 29.1, 18.2, 124.2, 0
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png", 1), [[[76, 150], [29, 18], [124, 0]]])


def test_one_bit_and_palette(tmp_path: Path) -> None:
    _png(tmp_path / "bit.png", 2, 1, 1, 0, b"\x80")
    np.testing.assert_array_equal(read_image(tmp_path / "bit.png", 1), [[[255, 0]]])
    Image.fromarray(RGB).quantize(6).save(tmp_path / "palette.png")
    assert Image.open(tmp_path / "palette.png").mode == "P"
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), RGB.transpose(2, 0, 1))


def test_alpha_is_composited_over_black(tmp_path: Path) -> None:
    rgba = np.array([[[200, 100, 50, 0], [200, 100, 50, 255], [200, 100, 50, 51]]], dtype=np.uint8)  # 51 / 255 = 0.2
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[0, 200, 40]], [[0, 100, 20]], [[0, 50, 10]]])
    la = _png(tmp_path / "la.png", 2, 1, 8, 4, bytes([200, 51, 200, 255]))
    np.testing.assert_array_equal(read_image(la, 1), [[[40, 200]]])
    palette = _chunk(b"PLTE", bytes([200, 100, 50, 7, 8, 9])) + _chunk(b"tRNS", bytes([0]))
    entry = _png(tmp_path / "p.png", 2, 1, 8, 3, bytes([0, 1]), extra=palette)
    np.testing.assert_array_equal(read_image(entry), [[[0, 7]], [[0, 8]], [[0, 9]]])
    key = _png(tmp_path / "key.png", 2, 1, 8, 0, bytes([16, 32]), extra=_chunk(b"tRNS", bytes([0, 16])))
    np.testing.assert_array_equal(read_image(key, 1), [[[0, 32]]])


def test_sixteen_bits(tmp_path: Path) -> None:
    row = struct.pack(">3H", 0x12FF, 0x8080, 0xFFFF)
    gray = _png(tmp_path / "gray.png", 3, 1, 16, 0, row)
    image = read_image(gray, 1)
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, [[[0x12FF, 0x8080, 0xFFFF]]])
    assert read_image(gray, 3).shape == (3, 1, 3) and read_image(gray, 3).dtype == np.uint16
    key = _png(tmp_path / "key.png", 3, 1, 16, 0, row, extra=_chunk(b"tRNS", b"\x80\x80"))
    np.testing.assert_array_equal(read_image(key, 1), [[[0x12FF, 0, 0xFFFF]]])
    # Documented: of 16-bit color only the high byte is left.
    color = read_image(_png(tmp_path / "rgb.png", 1, 1, 16, 2, row))
    assert color.dtype == np.uint8
    np.testing.assert_array_equal(color, [[[0x12]], [[0x80]], [[0xFF]]])


UPRIGHT = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)
STORED = {  # EXIF 2.3, tag 274: where row 0 and column 0 of the stored picture are
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT, 1),  # to be turned by 90 degrees clockwise for viewing
    7: np.rot90(UPRIGHT.T, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("depth", [8, 16])
def test_exif_orientation(tmp_path: Path, orientation: int, depth: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.ascontiguousarray(STORED[orientation]).astype(np.uint8 if depth == 8 else np.uint16)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 1), UPRIGHT[None])


def test_exif_orientation_of_jpeg(tmp_path: Path) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:, :16] = (255, 0, 0)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (3, 16, 32)
    assert image[0, :, :14].min() > 240 and image[1:, :, :14].max() < 10 and image[:, :, 18:].max() < 10


def test_broken_exif_is_ignored(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=b"Exif\0\0garbage!")
    with Image.open(tmp_path / "a.png") as image, pytest.raises(SyntaxError):
        image.getexif()
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB.transpose(2, 0, 1))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red = read_image(tmp_path / "a.jpg").astype(int).mean(axis=(1, 2))
    assert red[0] > 245 and red[1] < 10 and red[2] < 10


def test_kind_is_told_by_content(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "b.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "b.jpg"), RGB.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_truncated_anywhere(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"whole.{kind}"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (20, 20, 3), dtype=np.uint8)).save(file)
    content = file.read_bytes()
    cut = tmp_path / f"cut.{kind}"
    for size in range(0, len(content) - 24, 37):  # a PNG has all its pixels 24 bytes before the end
        cut.write_bytes(content[:size])
        with pytest.raises(ValueError, match=rf"^cannot read image .*cut\.{kind}: .+") as error:
            read_image(cut)
        assert "\n" not in str(error.value)


def test_undecodable_files(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    for content, reason in (
        (b"", "the file is empty"),
        (b"GIF89a....", "not a PNG or JPEG file"),
        (b"%!PS-Adobe", "not a PNG"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"cannot read image .*a\.png: {reason}"):
            read_image(file)
    with pytest.raises(ValueError, match="cannot read image"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^image file not found: .*none\.png$"):
        read_image(tmp_path / "none.png")


def test_large_photographs_pass_without_warning_and_bombs_do_not(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The header says 11648 x 8736 (102 megapixels, where PIL would warn); that the data is missing is found later.
        large = _png(tmp_path / "large.png", 11648, 8736, 1, 0)
        with pytest.raises(ValueError, match="truncated"):
            read_image(large)
        bomb = _png(tmp_path / "bomb.png", 50000, 50000, 1, 0)
        with pytest.raises(ValueError, match=r"bomb\.png: 50000 x 50000 pixels are more than the limit"):
            read_image(bomb)


def test_limit_is_inclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(image_reader, "MAX_PIXELS", 6)
    assert read_image(tmp_path / "a.png").shape == (3, 3, 2)
    monkeypatch.setattr(image_reader, "MAX_PIXELS", 5)
    with pytest.raises(ValueError, match="limit of 5"):
        read_image(tmp_path / "a.png")


def test_to_channels_agrees_with_pil() -> None:
    image = np.random.RandomState(0).randint(0, 256, (3, 40, 50), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).convert("L"))
    np.testing.assert_array_equal(to_channels(image, 1)[0], expected)


def test_to_channels_types() -> None:
    white = np.full((3, 1, 1), 65535, dtype=np.uint16)
    gray = to_channels(white, 1)
    assert gray.dtype == np.uint16 and gray.item() == 65535
    color = np.array([0.5, 0.25, 1.0], dtype=np.float32).reshape(3, 1, 1)
    luma = to_channels(color, 1)
    assert luma.dtype == np.float32 and luma.item() == pytest.approx(0.299 * 0.5 + 0.587 * 0.25 + 0.114, abs=1e-5)
    assert to_channels(np.ones((3, 1, 1), dtype=np.float64), 1).item() == 1
    assert to_channels(color, 3) is color
    np.testing.assert_array_equal(to_channels(color[1:2], 3), np.full((3, 1, 1), 0.25, dtype=np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), r"CHW with 1 or 3 channels, got shape \(8, 8, 3\)"),
        (np.zeros((8, 8), np.uint8), r"got shape \(8, 8\)"),
        (np.zeros((3, 0, 8), np.uint8), r"got shape \(3, 0, 8\)"),
        (np.zeros((1, 8, 8), np.int64), "uint8, uint16 or floating point, got int64"),
        (np.full((1, 8, 8), 255.0), r"in \[0, 1\], got \[255, 255\]"),
        (np.full((1, 8, 8), np.nan), r"in \[0, 1\], got \[nan, nan\]"),
        ([[1]], "numpy array, got list"),
    ],
)
def test_to_channels_rejects(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_channels(array, 3)


def test_channels_are_checked() -> None:
    with pytest.raises(ValueError, match="channels must be 1 .gray. or 3 .RGB., got 4"):
        read_image("any.png", 4)


def test_real_photograph(shared_data: Path) -> None:
    file = sorted((shared_data / "aptos2019" / "train_images").iterdir())[0]
    expected = np.asarray(Image.open(io.BytesIO(file.read_bytes())).convert("RGB"))
    image = read_image(file)
    np.testing.assert_array_equal(image.transpose(1, 2, 0), expected)
    red, green, blue = image.astype(float).mean(axis=(1, 2))
    assert red > green > blue  # a retina is orange
