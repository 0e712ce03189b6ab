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
from torch.nn.modules.loss import _Loss

from .cumulative import check_grades, checked_weight, weighted_mean

__all__ = ["GradeRegressionLoss"]


class GradeRegressionLoss(_Loss):
    """Squared error of a single output and the grade, in float32 whatever the autocast dtype.

    Args:
        num_classes: K; grades are 0 .. K - 1.
        weight: see :class:`CumulativeBCELoss`.

    Raises:
        ValueError: when the weights are not K positive numbers.
    """

    weight: Tensor | None

    def __init__(self, num_classes: int, weight: Tensor | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("weight", checked_weight(weight), persistent=False)
        if self.weight is not None and len(self.weight) != num_classes:
            raise ValueError(f"expected a weight for each of {num_classes} grades, got {len(self.weight)}.")

    def forward(self, outputs: Tensor, grades: Tensor) -> Tensor:
        """
        Args:
            outputs: B1.
            grades: B integers in 0 .. K - 1.

        Returns:
            A scalar in float32.

        Raises:
            ValueError: as :class:`CumulativeBCELoss`.
        """
        check_grades("outputs B1", outputs, grades, self.num_classes)
        if outputs.shape[1] != 1:
            raise ValueError(f"expected outputs B1, got shape {list(outputs.shape)}.")
        with torch.autocast(outputs.device.type, enabled=False):
            losses = (outputs[:, 0].float() - grades) ** 2
            return losses.mean() if self.weight is None else weighted_mean(losses, self.weight, grades)
