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
from typing import Any

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
    name: str,
    network: nn.Module,
    learning_rate: float,
    weight_decay: float = 1e-4,
    head: str | None = None,
    head_learning_rate: float | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of a name.

    Args:
        name: "lars" (momentum 0.9, without decay and adaptation of biases and norms), "sgd" (Nesterov momentum 0.9),
            "adam" or "adamw".
        network: whose parameters are trained; those that need no gradient are left out.
        learning_rate: not negative.
        weight_decay: not negative.
        head: name prefix of a supervised classification head, which gets no weight decay and, from LARS, no layer
            adaptation, in a parameter group of its own, the last one (arXiv 2104.04323); None for a network without.
        head_learning_rate: of the head; None for that of the others.

    Raises:
        ValueError: when the name is unknown, a value out of its range, no parameter is to be trained, or none is named
            after ``head``.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}.")
    if head_learning_rate is not None and head is None:
        raise ValueError(f"head_learning_rate {head_learning_rate} needs head, the name of the head.")
    groups = lars_param_groups(network, weight_decay, head)
    if name != "lars":
        groups = [{"params": [p for p in network.parameters() if p.requires_grad], "weight_decay": weight_decay}]
    if head is not None:
        groups = _split_head(groups, network, head, learning_rate if head_learning_rate is None else head_learning_rate)
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError(f"{type(network).__name__} has no parameter that needs a gradient.")
    if name == "lars":
        return LARS(groups, lr=learning_rate, weight_decay=weight_decay)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, weight_decay=weight_decay, nesterov=True)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(groups, lr=learning_rate, weight_decay=weight_decay)


def _split_head(
    groups: list[dict[str, Any]], network: nn.Module, head: str, learning_rate: float
) -> list[dict[str, Any]]:
    """The groups without the head, and the head as the last group."""
    in_head = {id(p): p for n, p in network.named_parameters() if n == head or n.startswith(f"{head}.")}
    others = [{**group, "params": [p for p in group["params"] if id(p) not in in_head]} for group in groups]
    params = [p for p in in_head.values() if p.requires_grad]
    return [*others, {**groups[-1], "params": params, "weight_decay": 0.0, "lr": learning_rate}]


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
