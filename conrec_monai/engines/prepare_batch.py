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

from typing import Any

import torch
from monai.engines.utils import PrepareBatch
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor

__all__ = ["PrepareUnitBatch"]


_FULL = {torch.uint8: 255, torch.uint16: 65535}


class PrepareUnitBatch(PrepareBatch):
    """Moves a batch of decoded images to the device and scales them to what an encoder expects: [0, 1], float32.

    For :class:`monai.engines.SupervisedTrainer` and :class:`monai.engines.SupervisedEvaluator` on batches of
    :class:`conrec_monai.data.CachedImages`: ``"image"`` BCHW, uint8, uint16 or floating point in [0, 1], and
    ``"label"`` B (None where the batch has none).

    Raises:
        ValueError: for images of another type.
    """

    def __call__(
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        image = batchdata[Keys.IMAGE].to(device=device, non_blocking=non_blocking)
        if not image.is_floating_point() and image.dtype not in _FULL:
            raise ValueError(f"images must be uint8, uint16 or floating point in [0, 1], got {image.dtype}")
        image = image.float() / _FULL.get(image.dtype, 1)
        label = batchdata.get(Keys.LABEL)
        return image, None if label is None else label.to(device=device, non_blocking=non_blocking)
