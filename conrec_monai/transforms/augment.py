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

"""The augmentations of the publication's supervised trainings (arXiv 2104.04323)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from conrec_monai.transforms.base import BatchRandTransform, Params
from conrec_monai.transforms.spatial import RandHorizontalFlip, RandResizedCrop, RandVerticalFlip, RandZoom

__all__ = ["RandCropFlip", "RandZoomFlip"]


class _Steps(BatchRandTransform):
    """Transforms one after the other with one random state."""

    def __init__(self, **steps: BatchRandTransform) -> None:
        self.steps = steps
        self.set_random_state(state=self.R)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> _Steps:
        super().set_random_state(seed, state)
        for step in self.steps.values():
            step.set_random_state(state=self.R)
        return self

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws the parameters of n images by the name of their step."""
        return {name: step.randomize(n, shape) for name, step in self.steps.items()}

    def apply(self, batch: Tensor, params: Params) -> Tensor:
        for name, step in self.steps.items():
            batch = step.apply(batch, params[name])
        return batch


class RandZoomFlip(_Steps):
    """Zoom of 0.85 to 1.15 per axis on black, horizontal and vertical flip: for fundus photographs (APTOS)."""

    def __init__(self) -> None:
        super().__init__(zoom=RandZoom(), horizontal=RandHorizontalFlip(), vertical=RandVerticalFlip())


class RandCropFlip(_Steps):
    """Random resized crop and horizontal flip: for Oxford Flowers and Stanford Dogs.

    Args:
        size: side of the result in pixels.

    Raises:
        ValueError: when ``size`` is not positive.
    """

    def __init__(self, size: int) -> None:
        super().__init__(crop=RandResizedCrop(size), flip=RandHorizontalFlip())
