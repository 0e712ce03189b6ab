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
from monai.optimizers import WarmupCosineSchedule
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from conrec_monai.optimizers.lars import LARS, lars_param_groups

__all__ = ["OPTIMIZERS", "SCHEDULES", "build_optimizer", "build_schedule", "default_learning_rate"]

OPTIMIZERS = ("lars", "sgd", "adam", "adamw")
SCHEDULES = ("constant", "warmup_cosine")


def default_learning_rate(name: str, batch_size: int) -> float:
    """0.075 * sqrt(batch size) for LARS and SGD, as published (arXiv 2104.04323); 0.001 for Adam and AdamW."""
    return 0.075 * math.sqrt(batch_size) if name in ("lars", "sgd") else 1e-3


def build_optimizer(
    name: str, network: nn.Module, learning_rate: float, weight_decay: float = 1e-4
) -> torch.optim.Optimizer:
    """The optimizer of a name.

    Args:
        name: "lars" (momentum 0.9, without decay and adaptation of biases and norms), "sgd" (Nesterov momentum 0.9),
            "adam" or "adamw".
        network: whose parameters are trained.
        learning_rate: not negative.
        weight_decay: not negative.

    Raises:
        ValueError: when the name is unknown or a value out of its range.
    """
    if name == "lars":
        return LARS(lars_param_groups(network, weight_decay), lr=learning_rate, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(
            network.parameters(), lr=learning_rate, momentum=0.9, weight_decay=weight_decay, nesterov=True
        )
    if name == "adam":
        return torch.optim.Adam(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}.")


def build_schedule(name: str, optimizer: torch.optim.Optimizer, epoch_length: int, max_epochs: int) -> LambdaLR:
    """The learning rate schedule of a name, to be stepped after every iteration.

    Args:
        name: "constant", or "warmup_cosine" (:class:`monai.optimizers.WarmupCosineSchedule`: linear from 0 over the
            first 10 epochs, or the first tenth of a shorter run, then half a cosine to 0).
        optimizer: whose learning rate is scheduled.
        epoch_length: iterations of an epoch.
        max_epochs: epochs of the whole run.

    Raises:
        ValueError: when the name is unknown.
    """
    if name == "constant":
        return LambdaLR(optimizer, lambda step: 1.0)
    if name == "warmup_cosine":
        total = epoch_length * max_epochs
        return WarmupCosineSchedule(optimizer, warmup_steps=min(10 * epoch_length, total // 10), t_total=total)
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}.")
