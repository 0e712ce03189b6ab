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
from typing import Any

import numpy as np
import pytest
import tifffile  # scikit-image brings it
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conrec_monai.data import image_reader, read_image
from conrec_monai.data.image_reader import IMAGE_SUFFIXES, count_frames, fit_range, is_image_name, to_channels

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
        (b"GIF89a....", "not a PNG, JPEG, TIFF, BMP, DICOM or NIfTI file"),
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


def test_names() -> None:
    assert IMAGE_SUFFIXES == (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".nii", ".nii.gz")
    for name in ("a.png", "A.JPG", "x/y.Tiff", "scan.NII.GZ", "é.dcm", "a b.bmp", "a.nii"):
        assert is_image_name(name), name
    for name in ("a.gz", "png", "a.png.txt", "IM0001", "labels.csv", "a.svg", ""):
        assert not is_image_name(name), name


def picture() -> np.ndarray:
    """An F, red at the top left, green at the top right, on blue: HWC, 24 x 32, with blocks of 8 (as JPEG has)."""
    image = np.zeros((24, 32, 3), dtype=np.uint8)
    image[:] = (20, 30, 120)
    image[:, 8:16] = (240, 200, 160)
    image[:8, 8:24] = (240, 200, 160)
    image[:8, :8] = (255, 0, 0)
    image[:8, 24:] = (0, 255, 0)
    return image


PICTURE = picture()
NUMBERS = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80  # no symmetry


def make_all(folder: Path) -> dict[str, tuple[Path, np.ndarray, float]]:
    """Write the picture in every way: name -> file, what is expected (CHW), mean error that is allowed."""
    made: dict[str, tuple[Path, np.ndarray, float]] = {}
    rgb = PICTURE.transpose(2, 0, 1)
    image = Image.fromarray(PICTURE)

    def pil(
        name: str, kind: str, image: Image.Image = image, expected: np.ndarray = rgb, error: float = 0, **options: Any
    ) -> None:
        path = folder / f"{len(made)}.{kind}"
        image.save(path, **options)
        made[f"{kind} {name}"] = path, expected, error

    def tiff(name: str, data: np.ndarray, expected: np.ndarray, **options: Any) -> None:
        path = folder / f"{len(made)}.tif"
        tifffile.imwrite(path, data, **{"photometric": "rgb", "metadata": None, **options})
        made[f"tif {name}"] = path, expected, 0

    for kind in ("png", "bmp"):
        pil("RGB", kind)
        pil("RGBA", kind, image.convert("RGBA"))
        pil(
            "1 bit",
            kind,
            image.convert("L").point(lambda v: 255 * (v > 128), "1"),
            (np.array(image.convert("L")) > 128)[None] * np.uint8(255),
        )
        pil("palette", kind, image.quantize(4))
    pil("RGB", "jpg", error=3, quality=95, subsampling=0)
    pil("CMYK", "jpg", image.convert("CMYK"), error=3, quality=95)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        pil(compression, "tif", compression=compression)
    pil("JPEG", "tif", error=3, compression="jpeg", quality=95)
    pil("palette", "tif", image.quantize(4), compression="tiff_lzw")
    pil("CMYK", "tif", image.convert("CMYK"))
    pil(
        "fax",
        "tif",
        image.convert("L").point(lambda v: 255 * (v > 128), "1"),
        (np.array(image.convert("L")) > 128)[None] * np.uint8(255),
        compression="group4",
    )
    numbers, high = NUMBERS[None], (NUMBERS >> 8)[None].astype(np.uint8)
    pil("16 bits LZW", "tif", Image.fromarray(NUMBERS), numbers, compression="tiff_lzw")
    gray: dict[str, Any] = {"photometric": "minisblack"}
    for order in "<>":
        tiff(f"16 bits {order}", NUMBERS, numbers, byteorder=order, **gray)
        tiff(f"RGB 16 {order}", PICTURE * np.uint16(257), rgb, byteorder=order)  # the high bytes
        tiff(f"real {order}", (NUMBERS / 65535).astype(np.float32), numbers, byteorder=order, **gray)
    tiff("white is 0", 255 - high[0], high, photometric="miniswhite")
    tiff("white is 0, 16 bits", 65535 - NUMBERS, numbers, photometric="miniswhite")
    tiff("white is 0, real", (1 - NUMBERS / 65535).astype(np.float32), numbers, photometric="miniswhite")
    tiff("int16", high[0].astype(np.int16), high, **gray)
    tiff("planes", np.ascontiguousarray(rgb), rgb, planarconfig="separate")
    tiff("tiles", PICTURE, rgb, tile=(16, 16), compression="zlib", predictor=True)
    tiff("BigTIFF", PICTURE, rgb, bigtiff=True)
    alpha = np.dstack([PICTURE, np.full((24, 32), 51, np.uint8)])
    fifth = np.rint(rgb / 5).astype(np.uint8)
    tiff("alpha", alpha, fifth, extrasamples=["unassalpha"])
    alpha[..., :3] = fifth.transpose(1, 2, 0)
    tiff("alpha, multiplied", alpha, fifth, extrasamples=["assocalpha"])
    pair: dict[str, Any] = {"planarconfig": "contig", "extrasamples": ["assocalpha"], **gray}
    tiff("gray alpha, multiplied", np.dstack([high[0] // 5, np.full((24, 32), 51, np.uint8)]), high // 5, **pair)
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
        assert count_frames(path) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_orientation(tmp_path: Path, orientation: int, dtype: Any) -> None:
    stored = np.ascontiguousarray(STORED[orientation]).astype(dtype)
    tag = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", metadata=None, extratags=tag)
    expected = UPRIGHT[None].astype(int) * (257 if dtype == np.float32 else 1)  # 255 is white
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 1), expected)


def test_tiff_of_twelve_bits(tmp_path: Path) -> None:
    # One row of the pixels 0, 0x800, 0xFFF, 1, packed; then 8 tags of type SHORT or LONG.
    tags = ((256, 4, 4), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 14), (277, 3, 1), (279, 4, 6))
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)
    content = struct.pack("<4sI6x", b"II*\0", 20) + bytes.fromhex("000800fff001") + directory + struct.pack("<I", 0)
    (tmp_path / "a.tif").write_bytes(content)
    assert read_image(tmp_path / "a.tif", 1).ravel().tolist() == [0, 32776, 65535, 16]  # v * 65535 / 4095


def test_pages(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    with tifffile.TiffWriter(file) as writer:
        options: dict[str, Any] = {"photometric": "rgb", "metadata": None}
        writer.write(PICTURE, **options)
        writer.write(PICTURE[:8, :8], subfiletype=1, **options)  # a thumbnail
        writer.write(PICTURE[::-1, :16], compression="zlib", **options)
        writer.write(NUMBERS, photometric="minisblack", metadata=None)
    assert count_frames(file) == 3
    np.testing.assert_array_equal(read_image(file, frame=1), PICTURE[::-1, :16].transpose(2, 0, 1))
    np.testing.assert_array_equal(read_image(file, frame=0), PICTURE.transpose(2, 0, 1))
    np.testing.assert_array_equal(read_image(file, 1, frame=2), NUMBERS[None])
    with pytest.raises(ValueError, match=r"a\.tif: it holds 3 frames: choose one, 0 to 2$"):
        read_image(file)
    for frame in (3, -1):
        with pytest.raises(ValueError, match=rf"a\.tif: there is no frame {frame}: it holds 3, counted from 0$"):
            read_image(file, frame=frame)
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", frame=0), PICTURE.transpose(2, 0, 1))
    with pytest.raises(ValueError, match=r"a\.png: there is no frame 1: it holds 1"):
        read_image(tmp_path / "a.png", frame=1)


def test_tiff_that_pil_would_show_wrongly(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    planes = np.ascontiguousarray(PICTURE.transpose(2, 0, 1)) * np.uint16(257)
    for data, options, reason in (
        (planes, {"photometric": "rgb", "planarconfig": "separate"}, "an uncompressed TIFF of 16 bits with separate"),
        (NUMBERS.astype(np.int32), {"compression": "zlib", "byteorder": ">"}, "a compressed big-endian TIFF"),
        (np.zeros((8, 8), np.int8), {}, "a TIFF of signed 8-bit numbers"),
    ):
        tifffile.imwrite(file, data, metadata=None, **options)
        with pytest.raises(ValueError, match=rf"^cannot read image .*a\.tif: {reason}.* is not read$"):
            read_image(file)
    tifffile.imwrite(file, np.full((4, 4), np.nan, np.float32), photometric="minisblack", metadata=None)
    with pytest.raises(ValueError, match=r"a\.tif: values from nan to nan, expected \[0, 1\], \[0, 255\] or"):
        read_image(file)


def _smooth(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:178, 0:268]
    return Image.fromarray(np.dstack([x * 0.9, y * 1.4, (x + y) / 2]).astype(np.uint8)).resize((width, height))


def test_photograph_is_reduced(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # taken upright: the sides are swapped after decoding
    _smooth(4288, 2848).save(tmp_path / "a.jpg", exif=exif, quality=90)
    whole, half = read_image(tmp_path / "a.jpg"), read_image(tmp_path / "a.jpg", min_side=512)
    assert whole.shape == (3, 4288, 2848) and half.shape == (3, 2144, 1424)
    means = sum(whole[:, row::2, column::2].astype(np.uint16) for row in (0, 1) for column in (0, 1)) / 4
    difference = np.abs(means - half)
    assert difference.mean() < 0.5 and difference.max() < 8


def test_reduced_jpeg_is_large_enough(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    _smooth(268, 178).save(file)
    # Twice the side is left of the shorter one: 178 / 2 = 89, / 4 = 44.5, / 8 = 22.25
    for min_side, scale in ((90, 1), (89, 1), (45, 1), (44, 2), (23, 2), (22, 4), (12, 4), (11, 8), (1, 8)):
        image = read_image(file, min_side=min_side)
        assert image.shape[1:] == (-(-178 // scale), -(-268 // scale)), min_side
    _smooth(178, 268).save(file)
    assert read_image(file, min_side=44).shape == (3, 134, 89)
    with pytest.raises(ValueError, match="min_side must be 1 or more, got 0"):
        read_image(file, min_side=0)


def test_min_side_is_for_jpeg_only(tmp_path: Path) -> None:
    for kind in ("png", "tif", "bmp"):
        Image.fromarray(PICTURE).save(tmp_path / f"a.{kind}")
        np.testing.assert_array_equal(read_image(tmp_path / f"a.{kind}", min_side=1), PICTURE.transpose(2, 0, 1))


def test_limit_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for kind in ("png", "jpg", "tif", "bmp"):
        files.append(tmp_path / f"a.{kind}")
        Image.fromarray(PICTURE).save(files[-1])
    monkeypatch.setattr(image_reader, "MAX_PIXELS", 24 * 32 - 1)
    for file in files:
        with pytest.raises(ValueError, match=rf"a{file.suffix}: 32 x 24 pixels are more than the limit of 767"):
            read_image(file, min_side=1)


def test_odd_names(tmp_path: Path) -> None:
    for name in ("fundus œil 眼.png", "a%s{0}.png", "line\nbreak.png", "sur\udce9.png"):
        Image.fromarray(PICTURE).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / name)
        assert read_image(tmp_path / name).shape == (3, 24, 32) and count_frames(tmp_path / name) == 1
        (tmp_path / name).write_bytes(b"no image")
        with pytest.raises(ValueError) as error:
            count_frames(str(tmp_path / name))
        str(error.value).encode("utf-8")
        assert "\n" not in str(error.value) and name[:3] in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"^image file not found: .*none\.png$"):
        count_frames(tmp_path / "none.png")


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_one_line(made: dict[str, tuple[Path, np.ndarray, float]], tmp_path: Path) -> None:
    """Whatever is done to a file: it is read, or refused in one line that names it."""
    names = sorted(made)
    contents = [made[name][0].read_bytes() for name in names]
    file = tmp_path / "damaged"
    change = st.tuples(st.floats(0, 1), st.integers(0, 255))

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.integers(0, len(names) - 1), st.lists(change, max_size=4), st.floats(0, 1))
    def damage(kind: int, changes: list[tuple[float, int]], end: float) -> None:
        content = bytearray(contents[kind])
        for where, value in changes:
            content[int(where * (len(content) - 1))] = value
        if not changes:
            content = content[: int(end * (len(content) - 1))]
        file.write_bytes(content)
        try:
            count_frames(file)
            read_image(file, frame=0)
        except ValueError as error:
            assert str(error).startswith(f"cannot read image {file}: ") and "\n" not in str(error)

    damage()


def test_fit_range() -> None:
    numbers = np.array([0, 200], dtype=np.int64)
    assert fit_range(numbers, 0, 255).dtype == np.uint8 and fit_range(numbers, 0, 256).dtype == np.uint16
    assert fit_range(np.array([0.0, 0.2, 1.0]), 0, 1).tolist() == [0, 13107, 65535]
    assert fit_range(np.array([-1e-5, 1.0]), -1e-5, 1).tolist() == [0, 65535]
    for low, high in ((-0.5, 1.0), (0.0, 70000.0), (np.nan, np.nan)):
        with pytest.raises(ValueError, match="expected .0, 1., .0, 255. or .0, 65535."):
            fit_range(np.array([low, high]), low, high)


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
