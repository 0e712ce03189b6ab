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
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Compose, Transform
from torch import Tensor

from conrec_monai.transforms.field_of_view import FIELDS_OF_VIEW, FieldOfView, NormalizeFieldOfView
from conrec_monai.transforms.local_contrast import LocalContrast

from .image_reader import read_image, to_channels

__all__ = ["RESIZES", "FitImage", "FittedImage", "ReadImage", "image_preprocessing", "load_preprocessing"]

RESIZES = ("squash", "pad", "crop")


class ReadImage(Transform):
    """Reads an image file: a path -> CHW array, uint8 or uint16; see :func:`conrec_monai.data.read_image`.

    Args:
        channels: 3 (RGB) or 1 (gray).
        min_side: see :func:`conrec_monai.data.read_image`.
    """

    def __init__(self, channels: int = 3, min_side: int | None = None) -> None:
        self.channels, self.min_side = channels, min_side

    def __call__(self, path: str | os.PathLike) -> np.ndarray:
        """Reads a file that holds one picture.

        Raises:
            FileNotFoundError, ValueError: see :func:`conrec_monai.data.read_image`.
        """
        return read_image(path, self.channels, min_side=self.min_side)


class FittedImage(NamedTuple):
    """An image as an encoder takes it.

    Attributes:
        image: uint8, C x size x size.
        found: the retina's field of view; None where none was looked for.
    """

    image: Tensor
    found: FieldOfView | None

    @property
    def unsure(self) -> str:
        """Why no retina was found in it; "" where one was or none was looked for."""
        return "" if self.found is None else self.found.reason


class FitImage(Transform):
    """Brings an image to the square that an encoder takes, with values in [0, 1].

    Images of another size are resampled bicubically with antialiasing and clipped; images of the right size pass
    through bit by bit. 16-bit images are resampled at full depth, then scaled by 255 / 65535 and rounded; floating
    point images by 255.

    Args:
        size: side of the square in pixels.
        resize: "squash" (the whole image, its aspect ratio ignored), "pad" (the whole image, centered on black) or
            "crop" (the largest central square).
        field_of_view: "normalize": :class:`conrec_monai.transforms.NormalizeFieldOfView` brings the retina to the
            square, and ``resize`` has no effect; "local_contrast": and then
            :class:`conrec_monai.transforms.LocalContrast`; None for the image as it is.

    Raises:
        ValueError: when an argument is out of its range.
    """

    def __init__(self, size: int, resize: str = "squash", field_of_view: str | None = None) -> None:
        if type(size) is not int or size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size!r}")
        if resize not in RESIZES:
            raise ValueError(f"resize must be one of {', '.join(RESIZES)}, got {resize!r}")
        if field_of_view not in FIELDS_OF_VIEW:
            raise ValueError(f"field_of_view must be None, 'normalize' or 'local_contrast', got {field_of_view!r}")
        self.size, self.resize, self.field_of_view = size, resize, field_of_view

    def fit(self, array: np.ndarray) -> FittedImage:
        """Fits a CHW array: uint8, uint16, or floating point in [0, 1].

        Raises:
            ValueError: when the shape, the type or the values are others.
        """
        if self.field_of_view is None:
            return FittedImage(_fit(array, self.size, self.resize), None)
        if self.field_of_view == "local_contrast" and array.dtype.kind == "u":
            array = array / np.float32(np.iinfo(array.dtype).max)  # enlarged differences are not to be rounded before
        array, found = NormalizeFieldOfView(self.size).normalize(array)
        if self.field_of_view == "local_contrast":
            array = LocalContrast()(array)
        return FittedImage(_fit(array, self.size, self.resize), found)

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        """An image CHW -> float32 C x size x size with values in [0, 1], of 256 levels as in the training."""
        if isinstance(img, Tensor):
            img = (img.as_tensor() if isinstance(img, MetaTensor) else img).numpy()
        return self.fit(to_channels(np.asarray(img), len(img))).image.float() / 255


def image_preprocessing(
    size: int, resize: str = "squash", field_of_view: str | None = None, channels: int = 3
) -> Compose:
    """From the path of an image file to what an encoder takes, bit by bit as :class:`CachedImages` does it.

    Args:
        size, resize, field_of_view: see :class:`FitImage`.
        channels: 3 (RGB) or 1 (gray).

    Returns:
        A :class:`monai.transforms.Compose` of :class:`ReadImage` and :class:`FitImage`: path -> float32 CHW in [0, 1].
    """
    return Compose([ReadImage(channels, size), FitImage(size, resize, field_of_view)])


def load_preprocessing(path: str | os.PathLike) -> Compose:
    """What brings an image file to the encoder of a checkpoint, as in its training; see :func:`image_preprocessing`.

    Args:
        path: of any checkpoint of this project; see :func:`conrec_monai.load_encoder`.

    Raises:
        FileNotFoundError, ValueError: see :func:`conrec_monai.networks.utils.read_checkpoint`.
    """
    from conrec_monai.networks.utils import read_checkpoint  # here: networks take long to import, and data needs none

    content = read_checkpoint(path)
    config = content["config"]
    entry = config.get("encoder")
    if isinstance(entry, dict):
        config = entry.get("config") or {}
    settings = content["preprocessing"]
    return image_preprocessing(
        settings["image_size"], settings["resize"], settings["field_of_view"], config.get("in_channels", 3)
    )


def _fit(array: np.ndarray, size: int, resize: str) -> Tensor:
    """Bring a CHW array (uint8, uint16, or floating point in [0, 1]) to uint8 C x size x size."""
    height, width = array.shape[1:]
    if resize == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        array = array[:, top : top + side, left : left + side]
    target = (size, size)
    if resize == "pad":
        scale = size / max(height, width)
        target = (max(1, round(height * scale)), max(1, round(width * scale)))
    if array.dtype == np.uint16:
        array = array.astype(np.float32) / 257  # 65535 / 255
    elif array.dtype != np.uint8:
        array = array.astype(np.float32) * 255
    if not array.flags.writeable or min(array.strides) < 0:
        array = array.copy()  # torch takes neither
    image = torch.from_numpy(array)
    if image.shape[1:] != target:
        image = F.interpolate(image[None], target, mode="bicubic", antialias=True, align_corners=False)[0]
    if image.dtype != torch.uint8:
        image = image.clamp(0, 255).round().to(torch.uint8)
    if target == (size, size):
        return image
    canvas = torch.zeros(len(image), size, size, dtype=torch.uint8)
    top, left = (size - target[0]) // 2, (size - target[1]) // 2
    canvas[:, top : top + target[0], left : left + target[1]] = image
    return canvas
