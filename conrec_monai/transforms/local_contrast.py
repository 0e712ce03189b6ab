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

from collections.abc import Hashable, Mapping

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from scipy import ndimage

from conrec_monai.transforms.field_of_view import DARK, _check, _like, _plain

__all__ = ["LocalContrast", "LocalContrastd"]

SIGMA, GAIN = 1 / 16, 3.0


class LocalContrast(Transform):
    """Takes from each pixel the mean color around it, and makes the rest larger: lesions and vessels on even gray.

    ``0.5 + gain * (x - mean)``, clipped to [0, 1]; the mean is that of a Gaussian over the pixels of the retina alone,
    so that its rim is no edge. Black around it (all channels below 9 of 255) becomes 0, and what is inside stays so:
    where all channels would be darker they are lifted to 9 of 255. What tells cameras apart,
    illumination and color, is gone, what is smaller than the Gaussian stays. For images with a normalized field of
    view, see :class:`NormalizeFieldOfView`. After the preprocessing of the winner of Kaggle's Diabetic Retinopathy
    Detection (B. Graham, 2015).

    Args:
        sigma: standard deviation of the Gaussian, in sides of the image.
        gain: of the difference.

    Raises:
        ValueError: when an argument is not positive.
    """

    def __init__(self, sigma: float = SIGMA, gain: float = GAIN) -> None:
        for name, value in (("sigma", sigma), ("gain", gain)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive, got {value!r}.")
        self.sigma, self.gain = sigma, gain

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Treats one image CHW: uint8, uint16 or floating point in [0, 1]; the result has the same type.

        Raises:
            ValueError: when the shape, the type or the values are others.
        """
        image = _plain(img)
        _check(image)
        high = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
        x = image.astype(np.float32) / high
        inside = x.max(axis=0) >= (DARK - 0.5) / 255
        sigma = (0, *(2 * [self.sigma * min(image.shape[1:])]))
        weight = ndimage.gaussian_filter(inside.astype(np.float32)[None], sigma, mode="constant")
        mean = ndimage.gaussian_filter(x * inside, sigma, mode="constant") / np.maximum(weight, 1e-6)
        x = np.clip(0.5 + self.gain * (x - mean), 0, 1)
        x = np.where(x.max(axis=0) < DARK / 255, np.maximum(x, DARK / 255), x)  # what is inside stays so
        x = np.where(inside, x, 0) * high
        return _like((x.round() if image.dtype.kind == "u" else x).astype(image.dtype), img)


class LocalContrastd(MapTransform):
    """Dictionary twin of :class:`LocalContrast`.

    Args:
        keys: of the images, each CHW.
        sigma: see :class:`LocalContrast`.
        gain: see :class:`LocalContrast`.
        allow_missing_keys: whether a missing key is passed over.
    """

    def __init__(
        self, keys: KeysCollection, sigma: float = SIGMA, gain: float = GAIN, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = LocalContrast(sigma, gain)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        result = dict(data)
        for key in self.key_iterator(data):
            result[key] = self.transform(data[key])
        return result
