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

    Args:
        weight: [K] weight of the images of each grade; the loss is then the weighted mean over the images, as that of
            :class:`torch.nn.CrossEntropyLoss`. None for equal ones.

    Raises:
        ValueError: when the weights are not positive numbers.
    """

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", checked_weight(weight), persistent=False)

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
        check_grades("logits B[K]", logits, grades, logits.shape[-1])
        if self.weight is not None and len(self.weight) != logits.shape[1]:
            raise ValueError(f"expected a weight for each of {logits.shape[1]} grades, got {len(self.weight)}.")
        labels = grades[:, None] >= torch.arange(logits.shape[1], device=grades.device)
        with torch.autocast(logits.device.type, enabled=False):
            if self.weight is None:
                return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
            losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").mean(dim=1)
            return weighted_mean(losses, self.weight, grades)


def check_grades(expected: str, outputs: Tensor, grades: Tensor, num_classes: int) -> None:
    """Raises a ValueError for outputs that are not B[...], or grades that are not B integers below num_classes."""
    if outputs.ndim != 2 or grades.shape != outputs.shape[:1] or not len(grades):
        found = f"{list(outputs.shape)} and {list(grades.shape)}"
        raise ValueError(f"expected {expected} and grades B, got shapes {found}.")
    if grades.is_floating_point() or grades.is_complex() or grades.dtype == torch.bool:
        raise ValueError(f"grades must be integers, got {grades.dtype}.")
    if grades.device.type == "cpu":
        low, high = (int(value) for value in torch.stack(grades.aminmax()).tolist())
        if low < 0 or high >= num_classes:
            raise ValueError(f"grades must be in 0..{num_classes - 1}, found {low} to {high}.")


def checked_weight(weight: Tensor | None) -> Tensor | None:
    """Weights of the grades in float32.

    Raises:
        ValueError: when they are not positive numbers [K].
    """
    if weight is None:
        return None
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not (weight.isfinite() & (weight > 0)).all():
        raise ValueError(f"weight must be a tensor of a positive number for each grade, got {weight!r}.")
    return weight.float()


def weighted_mean(losses: Tensor, weight: Tensor, grades: Tensor) -> Tensor:
    """Mean of the losses B of images, each with the weight of its grade."""
    weights = weight[grades.long().clamp(max=len(weight) - 1)]
    return (losses * weights).sum() / weights.sum()
