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

from .augment import RandCropFlip, RandZoomFlip
from .base import BatchRandTransform, BatchRandTransformd, unit_float
from .dictionary import (
    RandColorJitterd,
    RandCropFlipd,
    RandGaussianBlurd,
    RandGrayscaled,
    RandHorizontalFlipd,
    RandInPaintd,
    RandIntensityCurved,
    RandLocalPixelShuffled,
    RandMaskingd,
    RandOutPaintd,
    RandResizedCropd,
    RandRotatedCropd,
    RandVerticalFlipd,
    RandZoomd,
    RandZoomFlipd,
)
from .field_of_view import (
    FieldOfView,
    NormalizeFieldOfView,
    NormalizeFieldOfViewd,
    field_of_view_mask,
    find_field_of_view,
)
from .intensity import (
    RandColorJitter,
    RandGaussianBlur,
    RandGrayscale,
    RandIntensityCurve,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    grayscale,
    intensity_curve,
)
from .local_contrast import LocalContrast, LocalContrastd
from .masking import MIN_MASKING_SIZE, RandInPaint, RandLocalPixelShuffle, RandMasking, RandOutPaint
from .quality import quality_warnings
from .spatial import RandHorizontalFlip, RandResizedCrop, RandRotatedCrop, RandVerticalFlip, RandZoom
from .views import TwoViews, TwoViewsd, Views

__all__ = [
    "MIN_MASKING_SIZE",
    "BatchRandTransform",
    "BatchRandTransformd",
    "FieldOfView",
    "LocalContrast",
    "LocalContrastd",
    "NormalizeFieldOfView",
    "NormalizeFieldOfViewd",
    "RandColorJitter",
    "RandColorJitterd",
    "RandCropFlip",
    "RandCropFlipd",
    "RandGaussianBlur",
    "RandGaussianBlurd",
    "RandGrayscale",
    "RandGrayscaled",
    "RandHorizontalFlip",
    "RandHorizontalFlipd",
    "RandInPaint",
    "RandInPaintd",
    "RandIntensityCurve",
    "RandIntensityCurved",
    "RandLocalPixelShuffle",
    "RandLocalPixelShuffled",
    "RandMasking",
    "RandMaskingd",
    "RandOutPaint",
    "RandOutPaintd",
    "RandResizedCrop",
    "RandResizedCropd",
    "RandRotatedCrop",
    "RandRotatedCropd",
    "RandVerticalFlip",
    "RandVerticalFlipd",
    "RandZoom",
    "RandZoomFlip",
    "RandZoomFlipd",
    "RandZoomd",
    "TwoViews",
    "TwoViewsd",
    "Views",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "field_of_view_mask",
    "find_field_of_view",
    "gaussian_blur",
    "grayscale",
    "intensity_curve",
    "quality_warnings",
    "unit_float",
]
