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

"""Dictionary twins: the images under all keys of a sample get the same random parameters."""

from __future__ import annotations

from typing import Any

from monai.config import KeysCollection

from conrec_monai.transforms.augment import RandCropFlip, RandZoomFlip
from conrec_monai.transforms.base import BatchRandTransform, BatchRandTransformd
from conrec_monai.transforms.intensity import RandColorJitter, RandGaussianBlur, RandGrayscale, RandIntensityCurve
from conrec_monai.transforms.masking import RandInPaint, RandLocalPixelShuffle, RandMasking, RandOutPaint
from conrec_monai.transforms.spatial import (
    RandHorizontalFlip,
    RandResizedCrop,
    RandRotatedCrop,
    RandVerticalFlip,
    RandZoom,
)

__all__ = [
    "RandColorJitterd",
    "RandCropFlipd",
    "RandGaussianBlurd",
    "RandGrayscaled",
    "RandHorizontalFlipd",
    "RandInPaintd",
    "RandIntensityCurved",
    "RandLocalPixelShuffled",
    "RandMaskingd",
    "RandOutPaintd",
    "RandResizedCropd",
    "RandRotatedCropd",
    "RandVerticalFlipd",
    "RandZoomFlipd",
    "RandZoomd",
]


class _Twin(BatchRandTransformd):
    array: type[BatchRandTransform]

    def __init__(self, keys: KeysCollection, *args: Any, allow_missing_keys: bool = False, **kwargs: Any) -> None:
        super().__init__(keys, self.array(*args, **kwargs), allow_missing_keys)


class RandResizedCropd(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandResizedCrop`, with its arguments after ``keys``."""

    array = RandResizedCrop


class RandHorizontalFlipd(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandHorizontalFlip`, with its arguments after ``keys``."""

    array = RandHorizontalFlip


class RandVerticalFlipd(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandVerticalFlip`, with its arguments after ``keys``."""

    array = RandVerticalFlip


class RandRotatedCropd(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandRotatedCrop`, with its arguments after ``keys``."""

    array = RandRotatedCrop


class RandZoomd(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandZoom`, with its arguments after ``keys``."""

    array = RandZoom


class RandColorJitterd(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandColorJitter`, with its arguments after ``keys``."""

    array = RandColorJitter


class RandGrayscaled(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandGrayscale`, with its arguments after ``keys``."""

    array = RandGrayscale


class RandGaussianBlurd(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandGaussianBlur`, with its arguments after ``keys``."""

    array = RandGaussianBlur


class RandIntensityCurved(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandIntensityCurve`."""

    array = RandIntensityCurve


class RandLocalPixelShuffled(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandLocalPixelShuffle`, with its arguments after ``keys``."""

    array = RandLocalPixelShuffle


class RandInPaintd(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandInPaint`, with its arguments after ``keys``."""

    array = RandInPaint


class RandOutPaintd(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandOutPaint`, with its arguments after ``keys``."""

    array = RandOutPaint


class RandMaskingd(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandMasking`, with its arguments after ``keys``."""

    array = RandMasking


class RandCropFlipd(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandCropFlip`, with its argument after ``keys``."""

    array = RandCropFlip


class RandZoomFlipd(_Twin):
    """Dictionary twin of :class:`conrec_monai.transforms.RandZoomFlip`."""

    array = RandZoomFlip
