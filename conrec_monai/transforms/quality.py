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

import numpy as np
from scipy import ndimage

from conrec_monai.transforms.field_of_view import FieldOfView, NormalizeFieldOfView, field_of_view_mask

__all__ = ["quality_warnings"]

SIDE = 128  # pixels at which a photograph is looked at
RIM = 6  # pixels of the border of the field of view that are not looked at
DARK_PIXEL, DARK_SHARE, DARK_MEAN = 0.12, 0.15, 0.13
BRIGHT_PIXEL, BRIGHT_SHARE = 0.95, 0.05
FLAT = 0.017
GRAY = 2 / 255


def quality_warnings(image: np.ndarray, size: int, field_of_view: FieldOfView | None = None) -> list[str]:
    """What may make the grade of a fundus photograph unreliable.

    The field of view is found and brought to a circle of 128 pixels (:class:`NormalizeFieldOfView`), in which colors
    are in [0, 1]. The limits leave some 2 of 100 photographs of APTOS 2019 and IDRiD outside, those that look so. They
    are no assessment of gradability.

    Args:
        image: CHW, uint8, uint16 or floating point in [0, 1].
        size: side in pixels of the square that the network takes.
        field_of_view: of the image, where it is known; None to look for it.

    Returns:
        Some of, in this order:

        - "no field of view found: <reason>";
        - "small: the field of view has <n> pixels": its diameter is below ``size``;
        - "no color": the channels are equal;
        - "too dark": the mean below 0.13, or above 15 % of the pixels below 0.12 in their brightest channel;
        - "too bright": above 5 % of the pixels above 0.95 in the mean of their channels;
        - "blurred or without contrast": the standard deviation of what is finer than a Gaussian of 1 pixel, in the
          green channel, is below 1.7 % of the channel's mean.

    Raises:
        ValueError: when the shape, the type or the values are others.
    """
    normal, found = NormalizeFieldOfView(SIDE).normalize(image, field_of_view)
    x = normal.astype(np.float32)
    if normal.dtype.kind == "u":
        x /= np.iinfo(normal.dtype).max
    mask = field_of_view_mask(SIDE)
    warnings = []
    if found.reason:
        warnings.append(f"no field of view found: {found.reason}")
    diameter = round(2 * min(found.radius_y, found.radius_x))
    if diameter < size:
        warnings.append(f"small: the field of view has {diameter} pixels")
    inside = x[:, mask]
    if len(x) == 1 or np.ptp(inside, axis=0).max() < GRAY:
        warnings.append("no color")
    if inside.mean() < DARK_MEAN or (inside.max(axis=0) < DARK_PIXEL).mean() > DARK_SHARE:
        warnings.append("too dark")
    if (inside.mean(axis=0) > BRIGHT_PIXEL).mean() > BRIGHT_SHARE:
        warnings.append("too bright")
    green = x[min(1, len(x) - 1)]
    core = ndimage.binary_erosion(mask, iterations=RIM)
    fine = (green - ndimage.gaussian_filter(green, 1.0))[core]
    if fine.std() < FLAT * max(float(green[core].mean()), 0.02):
        warnings.append("blurred or without contrast")
    return warnings
