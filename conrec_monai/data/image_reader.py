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

import os
from collections.abc import Callable
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_FILE_PIXELS",
    "MAX_PIXELS",
    "check_size",
    "count_frames",
    "fit_range",
    "is_image_name",
    "read_image",
    "to_channels",
]

# What image files are called. Only for finding them: what a file holds is told by its content.
IMAGE_SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".nii", ".nii.gz")

# Larger pictures are taken for decompression bombs. Photographs reach 100 megapixels, where PIL already warns.
MAX_PIXELS = 2**27
# The same for all frames of a DICOM or NIfTI file together: the longest angiographies and tomographies reach 2**29.
MAX_FILE_PIXELS = 16 * MAX_PIXELS

# EXIF tag 0x0112 -> what brings the picture upright. `ImageOps.exif_transpose` would also re-encode the whole EXIF
# block, which fails for cameras that write odd tags.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF

_Path = str | os.PathLike[str]
_Frames = tuple[int, Callable[[int], np.ndarray]]  # how many pictures a file holds, and what decodes one of them
_Result = TypeVar("_Result")


def is_image_name(name: str) -> bool:
    """Whether a file of this name (or path) is taken for an image: it ends in one of `IMAGE_SUFFIXES`, in any case.

    DICOM files often have no suffix; `read_image` reads them all the same.
    """
    return name.lower().endswith(IMAGE_SUFFIXES)


def count_frames(path: _Path) -> int:
    """Count the pictures in an image file; nothing is decoded.

    Args:
        path: the image file.

    Returns:
        Frames of a DICOM file, pages of a TIFF file, slices of a NIfTI volume; 1 for all others.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is none that `read_image` reads; the message names the file and the reason.
    """
    return _with_frames(path, None, lambda frames: frames[0])


def read_image(path: _Path, channels: int = 3, frame: int | None = None, min_side: int | None = None) -> np.ndarray:
    """Read a PNG, JPEG, TIFF, BMP, DICOM or NIfTI picture as an RGB or gray array.

    The kind of file is told by its first bytes, not by its name, and only the decoder of that kind ever sees it. The
    picture is upright (EXIF or TIFF orientation, NIfTI axes), palettes are resolved, transparency is composited over
    black, CMYK and YCbCr become RGB, black is 0. docs/formats.md says what is read of each format, and how.

    Args:
        path: the image file.
        channels: 3 (RGB; gray is repeated) or 1 (gray; color becomes ITU-R 601 luma).
        frame: which picture, from 0, of a file that holds several; None demands that there is one only.
        min_side: a picture whose shorter side has 2 * `min_side` pixels or more is large enough. A larger JPEG is
            then decoded at 1/2, 1/4 or 1/8 of its size, which is several times as fast; None or another format: in
            full size.

    Returns:
        CHW array, uint8 or uint16, writable; its memory may be channels-last.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file cannot be decoded (the message names the file and the reason), is larger than
            `MAX_PIXELS`, or holds several frames and none or a missing one is asked for; when `channels` is neither
            1 nor 3, or `min_side` below 1.
    """
    _check_channels(channels)
    if min_side is not None and min_side < 1:
        raise ValueError(f"min_side must be 1 or more, got {min_side!r}")

    def decode(frames: _Frames) -> np.ndarray:
        count, decode_frame = frames
        if frame is None and count > 1:
            raise ValueError(f"it holds {count} frames: choose one, 0 to {count - 1}")
        if not 0 <= (frame or 0) < count:
            raise ValueError(f"there is no frame {frame}: it holds {count}, counted from 0")
        return decode_frame(frame or 0)

    return to_channels(_with_frames(path, min_side, decode), channels)


def to_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Check an image array and bring it to 1 or 3 channels.

    Args:
        array: CHW with 1 or 3 channels; uint8, uint16, or floating point in [0, 1].
        channels: 3 (gray is repeated) or 1 (color becomes ITU-R 601 luma, in the rounding of PIL).

    Returns:
        CHW array of the same type; the given array itself where nothing is to be done.

    Raises:
        ValueError: when the shape, the type or the values are others.
    """
    _check_channels(channels)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"an image must be a numpy array, got {type(array).__name__}")
    if array.ndim != 3 or array.shape[0] not in (1, 3) or 0 in array.shape:
        raise ValueError(f"an image array must be CHW with 1 or 3 channels, got shape {array.shape}")
    is_float = np.issubdtype(array.dtype, np.floating)
    if not is_float and array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"an image array must be uint8, uint16 or floating point, got {array.dtype}")
    if is_float and not (array.min() >= 0 and array.max() <= 1):  # so put, NaN fails as well
        raise ValueError(f"a floating point image must lie in [0, 1], got [{array.min():g}, {array.max():g}]")
    if array.shape[0] == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=0)
    red, green, blue = array.astype(np.float32 if is_float else np.uint32)
    luma = 19595 * red + 38470 * green + 7471 * blue  # 0.299, 0.587, 0.114 in units of 1 / 65536
    gray = np.minimum(luma / 65536, 1) if is_float else (luma + 32768) >> 16
    return gray[None].astype(array.dtype)


def fit_range(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Bring numbers of no fixed range to the range of an unsigned type.

    The full range is taken to be the smallest that holds all numbers of the file: [0, 1] (floating point only),
    [0, 255] or [0, 65535].

    Args:
        values: integers or real numbers, any shape.
        low: the lowest number of the file (a little below 0 is taken for rounding, if real).
        high: the highest number of the file.

    Returns:
        Array of the same shape, scaled from the full range to uint16; integers up to 255 become uint8.

    Raises:
        ValueError: when the numbers lie in none of these ranges, or are no numbers (NaN).
    """
    real = np.issubdtype(values.dtype, np.floating)
    slack = 1e-4 if real else 0  # interpolation and scaled integers overshoot
    for top in (1, 255, 65535) if real else (255, 65535):
        if low >= -slack * high and high <= (1 + slack) * top:
            if not real:
                return values.astype(np.uint8 if top == 255 else np.uint16)
            return np.rint(np.clip(values / top, 0, 1) * 65535).astype(np.uint16)
    ranges = "[0, 1], [0, 255] or [0, 65535]" if real else "[0, 255] or [0, 65535]"
    raise ValueError(f"values from {low:g} to {high:g}, expected {ranges}")


def check_size(width: int, height: int, frames: int = 1) -> None:
    """Refuse empty pictures and those that are too large.

    Raises:
        ValueError: when a picture has no pixels or more than `MAX_PIXELS`, or all `frames` have more than
            `MAX_FILE_PIXELS`.
    """
    if min(width, height, frames) < 1:
        raise ValueError(f"there are no pixels: {width} x {height}, {frames} frames")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}")
    if width * height * frames > MAX_FILE_PIXELS:
        raise ValueError(f"{frames} frames of {width} x {height} pixels are more than the limit of {MAX_FILE_PIXELS}")


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (gray) or 3 (RGB), got {channels!r}")


def _with_frames(path: _Path, min_side: int | None, use: Callable[[_Frames], _Result]) -> _Result:
    """Open an image file, give what it holds to `use`, and name the file in whatever error comes of it."""
    text = os.fspath(path)
    name = text if text.isprintable() else ascii(text)  # one line, whatever files are called
    try:
        with open(path, "rb") as file:
            return use(_open(file, min_side))
    except FileNotFoundError:
        raise FileNotFoundError(f"image file not found: {name}") from None
    # A damaged file makes the decoders raise nearly anything: OSError, SyntaxError, struct.error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read image {name}: {reason}") from error


def _open(file: BinaryIO, min_side: int | None) -> _Frames:
    head = file.read(8)
    file.seek(128)
    is_dicom = file.read(4) == b"DICM"  # before TIFF: some DICOM files are both
    file.seek(0)
    # The decoders by name, not Image.open: it tries every format PIL knows (PostScript starts a program), and its
    # warning about large pictures can only be silenced for the whole process.
    if is_dicom:
        from .medical_reader import open_dicom

        return open_dicom(file)
    if head == b"\x89PNG\r\n\x1a\n":
        return _one(PngImageFile(file))
    if head.startswith(b"\xff\xd8\xff"):
        photograph = JpegImageFile(file)
        check_size(*photograph.size)
        if min_side is not None:  # in a square the sides can be those before or after the orientation is applied
            photograph.draft(None, (2 * min_side, 2 * min_side))
        return _one(photograph)
    if head.startswith(_TIFF_HEADS):
        return _open_tiff(TiffImageFile(file))
    if head.startswith(b"BM"):
        return _one(BmpImageFile(file))
    from .medical_reader import is_nifti, open_nifti

    if is_nifti(file):
        return open_nifti(file)
    raise ValueError("not a PNG, JPEG, TIFF, BMP, DICOM or NIfTI file" if head else "the file is empty")


def _one(image: Image.Image) -> _Frames:
    check_size(*image.size)
    return 1, lambda _: _decode(image)


def _open_tiff(image: TiffImageFile) -> _Frames:
    # Thumbnails and masks (NewSubfileType, tag 254, bits 0 and 2) are no pictures of their own.
    pages = []
    for index in range(image.n_frames):
        image.seek(index)
        if not image.tag_v2.get(254, 0) & 5:
            pages.append(index)
    pages = pages or [0]

    def decode(frame: int) -> np.ndarray:
        image.seek(pages[frame])
        check_size(*image.size)
        _check_layout(image)
        return _decode(image)

    return len(pages), decode


def _check_layout(page: TiffImageFile) -> None:
    """Refuse the rare pages that PIL (13.0) opens, and shows something else."""
    tags = page.tag_v2
    bits = max(tags.get(258, (1,)))  # BitsPerSample
    is_compressed = tags.get(259, 1) != 1
    if bits > 8 and tags.get(284, 1) == 2 and not is_compressed:  # PlanarConfiguration
        raise ValueError(f"an uncompressed TIFF of {bits} bits with separate planes is not read")
    if page.mode in ("I", "F") and tags.prefix == b"MM" and is_compressed:
        raise ValueError("a compressed big-endian TIFF of signed, 32-bit or real numbers is not read")
    if bits == 8 and 2 in tags.get(339, ()):  # SampleFormat
        raise ValueError("a TIFF of signed 8-bit numbers is not read")


def _decode(image: Image.Image) -> np.ndarray:
    """Return the upright picture as CHW with 1 or 3 channels, as the file has them."""
    image.load()
    orientation = _orientation(image)
    if isinstance(image, TiffImageFile) and image.mode in ("I;16", "I;16B", "I", "F"):
        return _tiff_numbers(image, orientation)[None]
    transparent = image.info.get("transparency")
    if image.mode in ("I;16", "I"):  # the second is what PIL before 11 makes of 16-bit gray
        image = _upright(image, orientation)
        gray = np.array(image, dtype=np.uint16)
        if transparent is not None:
            gray[gray == transparent] = 0
        return gray[None]
    if image.mode == "La":  # gray and alpha, already multiplied; it converts to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    array = np.array(_upright(image, orientation))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _tiff_numbers(image: TiffImageFile, orientation: int) -> np.ndarray:
    """Return the gray picture (HW, uint8 or uint16) of a TIFF page of 12, 16 or 32 bits per pixel."""
    values = np.array(_upright(image, orientation))
    if image.mode in ("I", "F"):
        values = fit_range(values, values.min(), values.max())
    else:
        values = values.astype(np.uint16)  # native bytes
        if image.tag_v2.get(258) == (12,):  # BitsPerSample
            values = ((values.astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16)
    is_inverted = image.tag_v2.get(262) == 0  # PhotometricInterpretation: white is 0; PIL sees to it up to 8 bits only
    return np.iinfo(values.dtype).max - values if is_inverted else values


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block is no reason to lose the photograph
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
