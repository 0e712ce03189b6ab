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

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

__all__ = ["MAX_PIXELS", "read_image", "to_channels"]

# Larger pictures are taken for decompression bombs. Photographs reach 100 megapixels, where PIL already warns.
MAX_PIXELS = 2**27

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


def read_image(path: str | os.PathLike[str], channels: int = 3) -> np.ndarray:
    """Read a PNG or JPEG file as an RGB or gray array.

    Palettes are resolved, transparency is composited over black, the EXIF orientation is applied, CMYK becomes RGB.
    16-bit gray PNG stays uint16; of 16-bit PNG in color or with alpha the decoder keeps the high byte only (uint8).
    The kind of file is told by its first bytes, not by its name, and only the PNG and JPEG decoders ever see it.

    Args:
        path: the image file.
        channels: 3 (RGB; gray is repeated) or 1 (gray; color becomes ITU-R 601 luma).

    Returns:
        CHW array, uint8 or uint16, writable; its memory may be channels-last.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file cannot be decoded (the message names the file and the reason), is larger than
            `MAX_PIXELS`, or `channels` is neither 1 nor 3.
    """
    _check_channels(channels)
    try:
        array = _decode(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"image file not found: {os.fspath(path)}") from None
    except (
        Exception
    ) as error:  # a damaged file makes the decoders raise nearly anything: OSError, SyntaxError, struct.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read image {os.fspath(path)}: {reason}") from error
    return to_channels(array, channels)


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


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (gray) or 3 (RGB), got {channels!r}")


def _decode(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the upright picture as CHW with 1 or 3 channels, as the file has them."""
    with open(path, "rb") as file:
        head = file.read(8)
        file.seek(0)
        # The two decoders by name, not Image.open: it tries every format PIL knows (PostScript starts a program), and
        # its warning about large pictures can only be silenced for the whole process.
        image: Image.Image
        if head == b"\x89PNG\r\n\x1a\n":
            image = PngImageFile(file)
        elif head.startswith(b"\xff\xd8\xff"):
            image = JpegImageFile(file)
        else:
            raise ValueError("not a PNG or JPEG file" if head else "the file is empty")
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than the limit of {MAX_PIXELS}")
        image.load()
    orientation = _orientation(image)
    transparent = image.info.get("transparency")
    if image.mode in ("I;16", "I"):  # the second is what PIL before 11 makes of 16-bit gray
        image = _upright(image, orientation)
        gray = np.array(image, dtype=np.uint16)
        if transparent is not None:
            gray[gray == transparent] = 0
        return gray[None]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    array = np.array(_upright(image, orientation))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block is no reason to lose the photograph
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
