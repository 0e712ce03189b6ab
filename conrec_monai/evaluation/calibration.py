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
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from conrec_monai.networks.nets import GradingNet

from .predictions import FoldPrediction

__all__ = ["calibrate", "graded"]

LOW, HIGH = 0.05, 20.0  # of the scale
LEAST = 1e-7  # a probability that counts as 0


def calibrate(network: GradingNet, outputs: Tensor, labels: np.ndarray) -> float:
    """Fits the scale of a grading network, the temperature of its probabilities, to held-out images.

    The scale between 0.05 and 20 that makes the labels most likely (Guo et al., On calibration of modern neural
    networks, 2017); for a regression it is the standard deviation of its normal distribution. The predicted grades of
    :func:`graded` are the same before and after.

    Args:
        network: whose ``scale`` is set.
        outputs: of its head for the held-out images, [N, K] or [N, 1] ("regression").
        labels: [N] their grades.

    Returns:
        The scale.

    Raises:
        ValueError: for no images, or outputs that are not finite.
    """
    labels = np.asarray(labels)
    if not len(labels) or len(outputs) != len(labels):
        raise ValueError(
            f"a calibration needs outputs and labels of the same images, one at least, got {len(outputs)} and"
            f" {len(labels)}."
        )
    if labels.min() < 0 or labels.max() >= network.num_classes:
        raise ValueError(f"labels must be in 0..{network.num_classes - 1}, found {labels.min()} to {labels.max()}.")
    if not outputs.isfinite().all():
        raise ValueError("the outputs are not finite: the training has diverged.")
    outputs = outputs.detach().float().cpu()
    chosen = torch.from_numpy(labels)[:, None]
    scale = network.scale.clone()

    def surprise(logarithm: float) -> float:
        network.scale.fill_(float(np.exp(logarithm)))
        return -float(network.probabilities(outputs).gather(1, chosen).clamp(LEAST).log().mean())

    device = network.scale.device
    network.scale.data = scale.cpu()
    try:
        # several starts: far off, where every probability is 0 or 1, the likelihood is flat
        grid = np.linspace(np.log(LOW), np.log(HIGH), 25)
        found = np.array([surprise(x) for x in grid])
        best = int(np.flatnonzero(found <= found.min() + 1e-9)[-1])  # of equal ones the least confident
        bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
        scale.fill_(float(np.exp(minimize_scalar(surprise, bounds=bounds, method="bounded").x)))
    finally:
        network.scale.data = scale.to(device)
    return float(scale)


def graded(positions: np.ndarray, probabilities: np.ndarray, task: str) -> FoldPrediction:
    """What a grading network says of images.

    Args:
        positions: [n] of the images.
        probabilities: [n, K] of :class:`conrec_monai.networks.nets.GradingNet`.
        task: of the network. Ordered grades ("ordinal", "regression") are predicted by their median: the highest grade
            that is reached or exceeded with a probability above 0.5, as in
            :func:`conrec_monai.evaluation.predictions.grades_from_probabilities`; classes by the most probable one.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if task == "categorical":
        return FoldPrediction.of_classes(positions, probabilities)
    at_least = probabilities[:, ::-1].cumsum(axis=1)[:, ::-1]
    return FoldPrediction(positions, probabilities, (at_least[:, 1:] > 0.5).sum(axis=1))
