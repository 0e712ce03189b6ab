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

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.utils import convert_to_dst_type
from torch import Tensor

from conrec_monai.transforms.base import (
    BatchRandTransform,
    BatchRandTransformd,
    Params,
    _unit_sample,
    take,
)
from conrec_monai.transforms.intensity import RandColorJitter, RandGaussianBlur, RandGrayscale
from conrec_monai.transforms.masking import FILLS, RandMasking, check_masking_size
from conrec_monai.transforms.spatial import RandHorizontalFlip, RandResizedCrop, RandRotatedCrop

__all__ = ["TwoViews", "TwoViewsd", "Views"]

CACHE_BYTES = 3 * 2**19  # of views that a core treats at once


class Views(NamedTuple):
    """``input``, what the network sees, and ``target``, what it reconstructs: 2BCHW, the B first views, then the B
    second ones, float32 in [0, 1]."""

    input: Tensor
    target: Tensor


class TwoViews(BatchRandTransform):
    """Two random views of each image, and their masked versions: the input of ConRec.

    Crop, flip, color jitter, grayscale and blur make the target (one channel: crop, flip and jitter), one of the
    maskings makes the input from it. Without masking the input is the target: SimCLR. The defaults are the published
    views. Source: arXiv 2104.04323 (views).

    Args:
        image_size: side of the views in pixels; at least 25 with masking.
        masked_views: how many of the two views of an image are masked: both (2), the second (1) or none (0: SimCLR).
        masking_fill: of the painted windows: "random" or "mean", see :class:`RandInPaint`.
        crop_scale: smallest and largest area of a crop over that of the image, see :class:`RandResizedCrop`.
        rotate: whether images are turned by any angle before they are cropped, see :class:`RandRotatedCrop`.
        jitter: strength of the color jitter, see :class:`RandColorJitter`.
        gray_prob: probability of grayscale.
        blur_prob: probability of a blur.

    Raises:
        ValueError: when an argument is out of its range, or ``image_size`` is too small.
    """

    OPTIONS = ("masked_views", "masking_fill", "crop_scale", "rotate", "jitter", "gray_prob", "blur_prob")

    def __init__(
        self,
        image_size: int,
        masked_views: int = 2,
        masking_fill: str = "random",
        crop_scale: Sequence[float] = (0.08, 1.0),
        rotate: bool = False,
        jitter: float = 1.0,
        gray_prob: float = 0.2,
        blur_prob: float = 0.5,
    ) -> None:
        if masked_views not in (0, 1, 2):
            raise ValueError(f"masked_views must be 0, 1 or 2, got {masked_views}.")
        for name, value in (("gray_prob", gray_prob), ("blur_prob", blur_prob)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}.")
        if masking_fill not in FILLS:
            raise ValueError(f"masking_fill must be one of {', '.join(FILLS)}, got {masking_fill!r}.")
        if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two increasing numbers in (0, 1], got {list(crop_scale)}.")
        if not jitter >= 0:
            raise ValueError(f"jitter must not be negative, got {jitter}.")
        crop = RandRotatedCrop if rotate else RandResizedCrop
        self.crop: BatchRandTransform = crop(image_size, (crop_scale[0], crop_scale[1]))
        self.flip, self.jitter = RandHorizontalFlip(), RandColorJitter(jitter)
        self.gray, self.blur = RandGrayscale(gray_prob), RandGaussianBlur(blur_prob)
        self.mask = RandMasking(masking_fill) if masked_views else None
        self.image_size, self.masked_views = image_size, masked_views
        if self.mask is not None:
            check_masking_size((image_size, image_size))
        self.set_random_state(state=self.R)

    def _steps(self, channels: int) -> dict[str, BatchRandTransform]:
        """What makes a target, in order, by the name of its parameters."""
        steps: dict[str, BatchRandTransform] = {"crop": self.crop, "flip": self.flip, "jitter": self.jitter}
        return steps if channels == 1 else {**steps, "gray": self.gray, "blur": self.blur}

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> TwoViews:
        super().set_random_state(seed, state)
        for transform in (self.crop, self.flip, self.jitter, self.gray, self.blur, self.mask):
            if transform is not None:
                transform.set_random_state(state=self.R)
        return self

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws the parameters of 2n views by the name of their step; image i's views are i and n + i."""
        view = (shape[0], self.image_size, self.image_size)
        params: Params = {
            name: step.randomize(2 * n, shape if name == "crop" else view)
            for name, step in self._steps(shape[0]).items()
        }
        if self.mask is not None:
            params["mask"] = self.mask.randomize(2 * n, view)
            params["mask"]["masking"][: (2 - self.masked_views) * n] = -1  # that is none of the maskings
        return params

    def first_restored(self, count: int) -> int:
        """From which of 2B views (``count``) on a network restores: the second ones if only they are masked, or all."""
        return count // 2 if self.masked_views == 1 else 0

    def _samples(self, n: int, rank: int, num_replicas: int) -> np.ndarray:
        first = super()._samples(n, rank, num_replicas)
        return np.concatenate([first, num_replicas * n + first])

    def apply(self, batch: Tensor, params: Params) -> Views:
        """Images BCHW, float32 in [0, 1], of any size, with parameters of 2B views -> :class:`Views`."""
        n, channels = len(batch), batch.shape[1]
        at_once = 2 * n
        if batch.device.type == "cpu":  # in parts that stay in the caches of its cores
            at_once = max(1, CACHE_BYTES * torch.get_num_threads() // (4 * channels * self.image_size**2))
        if at_once >= 2 * n:
            return self._apply(torch.cat([batch, batch]), params)
        target = batch.new_empty(2 * n, channels, self.image_size, self.image_size)
        views = Views(torch.empty_like(target) if self.mask is not None else target, target)
        for start in range(0, 2 * n, at_once):
            places = np.arange(start, min(start + at_once, 2 * n))
            part = self._apply(batch.index_select(0, torch.from_numpy(places % n)), take(params, places))
            for whole, own in zip(views, part, strict=True):
                whole[start : start + at_once] = own
        return views

    def _apply(self, images: Tensor, params: Params) -> Views:
        """One view of each image."""
        target = images
        for name, step in self._steps(images.shape[1]).items():
            target = step.apply(target, params[name])
        return Views(target if self.mask is None else self.mask.apply(target, params["mask"]), target)

    def __call__(self, img: NdarrayOrTensor) -> Views:
        """One image CHW -> its two views: :class:`Views` of shape 2CHW, of the image's array type."""
        x = _unit_sample(img)[None]
        views = self.apply(x, self.randomize(1, x.shape[1:]))
        return Views(*(convert_to_dst_type(v, img, dtype=torch.float32)[0] for v in views))


class TwoViewsd(BatchRandTransformd):
    """Dictionary twin of :class:`TwoViews`: the image under each key becomes its two inputs (2CHW); the targets go to
    ``<key>_target``.

    Args:
        keys: keys of the images, each CHW.
        image_size: see :class:`TwoViews`.
        allow_missing_keys: whether a missing key is passed over.
        **options: the other arguments of :class:`TwoViews`.
    """

    def __init__(self, keys: KeysCollection, image_size: int, allow_missing_keys: bool = False, **options: Any) -> None:
        super().__init__(keys, TwoViews(image_size, **options), allow_missing_keys)

    def _store(self, result: dict[Hashable, NdarrayOrTensor], key: Hashable, output: Any) -> None:
        image = result[key]
        for name, value in ((key, output.input), (f"{key}_target", output.target)):
            result[name] = convert_to_dst_type(value, image, dtype=torch.float32)[0]
