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

from conrec_monai.transforms.base import BatchRandTransform, BatchRandTransformd, Params, _unit_sample
from conrec_monai.transforms.intensity import RandColorJitter, RandGaussianBlur, RandGrayscale
from conrec_monai.transforms.masking import RandMasking, check_masking_size
from conrec_monai.transforms.spatial import RandHorizontalFlip, RandResizedCrop

__all__ = ["TwoViews", "TwoViewsd", "Views"]


class Views(NamedTuple):
    """``input``, what the network sees, and ``target``, what it reconstructs: 2BCHW, the B first views, then the B
    second ones, float32 in [0, 1]."""

    input: Tensor
    target: Tensor


class TwoViews(BatchRandTransform):
    """Two random views of each image, and their masked versions: the input of ConRec.

    Crop, flip, color jitter, grayscale and blur make the target (one channel: crop, flip and jitter), one of the
    maskings makes the input from it. Without masking the input is the target: SimCLR. Source: arXiv 2104.04323 (views).

    Args:
        image_size: side of the views in pixels; at least 25 with masking.
        masking: whether the input is masked.

    Raises:
        ValueError: when ``image_size`` is too small.
    """

    def __init__(self, image_size: int, masking: bool = True) -> None:
        self.crop, self.flip, self.jitter = RandResizedCrop(image_size), RandHorizontalFlip(), RandColorJitter()
        self.gray, self.blur, self.mask = RandGrayscale(), RandGaussianBlur(), RandMasking()
        self.masking = masking
        self.image_size = image_size
        if masking:
            check_masking_size((image_size, image_size))
        self.set_random_state(state=self.R)

    def _steps(self, channels: int) -> dict[str, BatchRandTransform]:
        steps: dict[str, BatchRandTransform] = {"crop": self.crop, "flip": self.flip, "jitter": self.jitter}
        return steps if channels == 1 else {**steps, "gray": self.gray, "blur": self.blur}

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> TwoViews:
        super().set_random_state(seed, state)
        for transform in (self.crop, self.flip, self.jitter, self.gray, self.blur, self.mask):
            transform.set_random_state(state=self.R)
        return self

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws the parameters of 2n views by the name of their step; image i's views are i and n + i."""
        view = (shape[0], self.image_size, self.image_size)
        params: Params = {
            name: step.randomize(2 * n, shape if name == "crop" else view)
            for name, step in self._steps(shape[0]).items()
        }
        if self.masking:
            params["mask"] = self.mask.randomize(2 * n, view)
        return params

    def apply(self, batch: Tensor, params: Params) -> Views:
        """Images BCHW, float32 in [0, 1], of any size, with parameters of 2B views -> :class:`Views`."""
        target = torch.cat([batch, batch])
        for name, step in self._steps(batch.shape[1]).items():
            target = step.apply(target, params[name])
        return Views(self.mask.apply(target, params["mask"]) if self.masking else target, target)

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
        masking: see :class:`TwoViews`.
        allow_missing_keys: whether a missing key is passed over.
    """

    def __init__(
        self, keys: KeysCollection, image_size: int, masking: bool = True, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, TwoViews(image_size, masking), allow_missing_keys)

    def _store(self, result: dict[Hashable, NdarrayOrTensor], key: Hashable, output: Any) -> None:
        image = result[key]
        for name, value in ((key, output.input), (f"{key}_target", output.target)):
            result[name] = convert_to_dst_type(value, image, dtype=torch.float32)[0]
