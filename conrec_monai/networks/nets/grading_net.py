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

import math

import torch
from torch import Tensor, nn

from conrec_monai.networks.nets.encoder_classifier import EncoderClassifier

__all__ = ["TASKS", "GradingNet"]

TASKS = ("ordinal", "regression", "categorical")


class GradingNet(EncoderClassifier):
    """Grades photographs: images BCHW -> calibrated probabilities of the grades B[K].

    An encoder with a linear head. In training mode the result is what the loss takes: logits of the cumulative labels
    grade >= 0, ..., grade >= K - 1 ("ordinal", :class:`conrec_monai.losses.CumulativeBCELoss`), the grade as a number
    ("regression", :class:`conrec_monai.losses.GradeRegressionLoss`) or logits of the classes ("categorical",
    :class:`torch.nn.CrossEntropyLoss`). In evaluation mode it is probabilities, each row of which sums to 1:

    - ordinal: sigmoids of the logits over ``scale``, each lowered to the smallest before it, and their differences;
    - regression: what a normal distribution around the output, with the standard deviation ``scale``, has between
      g - 1/2 and g + 1/2, the first and the last grade to infinity;
    - categorical: softmax of the logits over ``scale``.

    ``scale`` is 1 until :func:`conrec_monai.evaluation.calibrate` has fitted it. Scriptable when the encoder is.

    Args:
        encoder: from images BCHW to B[F], with an attribute ``num_features``, F.
        num_classes: K, at least 2.
        task: "ordinal", "regression" or "categorical".
        freeze: see :class:`EncoderClassifier`.

    Raises:
        ValueError: when an argument is out of its range.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, task: str = "ordinal", freeze: bool = False) -> None:
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
        if type(num_classes) is not int or num_classes < 2:
            raise ValueError(f"num_classes must be a whole number of at least 2, got {num_classes!r}.")
        super().__init__(encoder, 1 if task == "regression" else num_classes, freeze)
        self.config = {**self.config, "num_classes": num_classes, "task": task}
        self.num_classes = num_classes
        self.task = task
        self.scale = nn.Buffer(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Images BCHW with values in [0, 1] -> outputs of the head in training mode, else probabilities B[K]."""
        outputs = self.outputs(x)
        if self.training:
            return outputs
        return self.probabilities(outputs)

    @torch.jit.export
    def outputs(self, x: Tensor) -> Tensor:
        """Images BCHW with values in [0, 1] -> outputs of the head, B[K], or B1 of a regression."""
        outputs: Tensor = self.head(self.encoder(x))
        return outputs

    @torch.jit.export
    def probabilities(self, outputs: Tensor) -> Tensor:
        """Probabilities of the grades B[K], float32, from outputs of the head."""
        outputs = outputs.float()
        if self.task == "categorical":
            return torch.softmax(outputs / self.scale, dim=1)
        if self.task == "regression":
            edges = torch.arange(1, self.num_classes, device=outputs.device) - 0.5
            below = 0.5 * (1 + torch.erf((edges - outputs) / (self.scale * math.sqrt(2))))
            at_least = torch.cat([torch.ones_like(outputs), 1 - below], dim=1)
        else:
            columns = [torch.ones_like(outputs[:, 0])]
            for column in torch.sigmoid(outputs / self.scale).unbind(1)[1:]:  # cummin is not in ONNX
                columns.append(torch.minimum(columns[-1], column))
            at_least = torch.stack(columns, dim=1)
        return at_least - torch.nn.functional.pad(at_least[:, 1:], (0, 1))
