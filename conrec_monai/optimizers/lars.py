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

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["LARS", "lars_param_groups"]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling, with the learning rate *inside* the momentum buffer, as ConRec trains.

    For a weight w with gradient g: ``g += weight_decay * w``; ``ratio = trust_coefficient * |w| / |g|`` (1 where either
    norm is 0); ``v = momentum * v + lr * ratio * g``; ``w -= v`` (Nesterov: ``w -= momentum * v + lr * ratio * g``).
    All parameters of a group are updated by multi-tensor operations, without host-device synchronization. (The scaled
    addition, whose factor differs from layer to layer, is one kernel for each parameter on CUDA.)

    Source: You et al., "Large Batch Training of Convolutional Networks", arXiv 1708.03888; constants of arXiv
    2104.04323.

    Args:
        params: parameters or parameter groups. A group with ``trust_coefficient=None`` is not layer-adapted (ratio 1):
            see :func:`lars_param_groups`.
        lr: learning rate, not negative.
        momentum: decay of the momentum buffer, in [0, 1).
        weight_decay: L2 penalty, not negative.
        trust_coefficient: scale of the layer-wise ratio (eta), positive, or None.
        nesterov: look-ahead momentum.

    Raises:
        ValueError: when a value is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        trust_coefficient: float | None = 0.001,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "trust_coefficient": trust_coefficient,
                "nesterov": nesterov,
            },
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with settings of their own; the constructor comes through here too."""
        group = {**self.defaults, **param_group}
        for name in ("lr", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name} must not be negative, got {group[name]}.")
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum must be in [0, 1), got {group['momentum']}.")
        if group["trust_coefficient"] is not None and not group["trust_coefficient"] > 0:
            raise ValueError(f"trust_coefficient must be positive or None, got {group['trust_coefficient']}.")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates the parameters once.

        Args:
            closure: reevaluates the model and returns the loss; optional.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            pairs = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if pairs:
                self._update([p for p, _ in pairs], [g for _, g in pairs], group)
        return loss

    def _update(self, params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        buffers = []
        for p in params:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(state["momentum_buffer"])
        # A new list in every case: the gradients themselves stay as they are.
        updates = torch._foreach_add(gradients, params, alpha=group["weight_decay"])
        torch._foreach_mul_(buffers, group["momentum"])
        rates: list[Tensor] | None = None
        if group["trust_coefficient"] is not None:
            weight_norms = torch.stack(torch._foreach_norm(params))
            update_norms = torch.stack(torch._foreach_norm(updates))
            ratios = group["trust_coefficient"] * weight_norms / update_norms
            ratios = torch.where((weight_norms > 0) & (update_norms > 0), ratios, torch.ones_like(ratios))
            rates = list((group["lr"] * ratios).unbind())

        def add(tensors: list[Tensor], sign: int) -> None:
            if rates is None:
                torch._foreach_add_(tensors, updates, alpha=sign * group["lr"])
            else:
                torch._foreach_addcmul_(tensors, updates, rates, value=sign)

        add(buffers, 1)
        if group["nesterov"]:
            torch._foreach_sub_(params, buffers, alpha=group["momentum"])
            add(params, -1)
        else:
            torch._foreach_sub_(params, buffers)


def lars_param_groups(module: nn.Module, weight_decay: float = 1e-4, head: str | None = None) -> list[dict[str, Any]]:
    """Parameter groups for :class:`LARS`: biases, norm layers and heads get neither weight decay nor layer adaptation.

    Args:
        module: the network.
        weight_decay: of the other parameters.
        head: name prefix of a supervised classification head, excluded as well; None for a network without one.

    Returns:
        Two groups, the adapted parameters and the excluded ones (all of at most one dimension, and the head).

    Raises:
        ValueError: when no parameter is named after ``head``.
    """
    adapted: list[nn.Parameter] = []
    excluded: list[nn.Parameter] = []
    in_head = 0
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        is_head = head is not None and (name == head or name.startswith(f"{head}."))
        in_head += is_head
        # Convolution and linear weights have at least 2 dimensions; biases and norm parameters have 1.
        (excluded if is_head or parameter.ndim <= 1 else adapted).append(parameter)
    if head is not None and not in_head:
        raise ValueError(f"no parameter of {type(module).__name__} is named {head!r} or {head + '.*'!r}.")
    return [
        {"params": adapted, "weight_decay": weight_decay},
        {"params": excluded, "weight_decay": 0.0, "trust_coefficient": None},
    ]
