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

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

__all__ = ["CumulativeBCELoss"]


class CumulativeBCELoss(_Loss):
    """Binary cross-entropy of ordinal grades as cumulative labels: a grade g becomes [g >= 0, g >= 1, ..., g >= K - 1].

    The mean over images and labels, computed in float32 whatever the autocast dtype. The first label is always 1; it is
    part of the mean, as published. Source: arXiv 2104.04323 (fine-tuning on graded photographs).
    """

    def forward(self, logits: Tensor, grades: Tensor) -> Tensor:
        """
        Args:
            logits: B[K], of grade >= 0, ..., grade >= K - 1.
            grades: B integers in 0 .. K - 1.

        Returns:
            A scalar in float32.

        Raises:
            ValueError: for shapes that do not match, grades that are no integers or, on the CPU, out of range.
                Elsewhere that check would wait for the device; too high a grade counts as the highest there.
        """
        if logits.ndim != 2 or grades.shape != logits.shape[:1] or not len(grades):
            raise ValueError(
                f"expected logits B[K] and grades B, got shapes {list(logits.shape)} and {list(grades.shape)}."
            )
        if grades.is_floating_point() or grades.is_complex() or grades.dtype == torch.bool:
            raise ValueError(f"grades must be integers, got {grades.dtype}.")
        if grades.device.type == "cpu":
            low, high = (int(value) for value in torch.stack(grades.aminmax()).tolist())
            if low < 0 or high >= logits.shape[1]:
                raise ValueError(f"grades must be in 0..{logits.shape[1] - 1}, found {low} to {high}.")
        labels = grades[:, None] >= torch.arange(logits.shape[1], device=grades.device)
        with torch.autocast(logits.device.type, enabled=False):
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
