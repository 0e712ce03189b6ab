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

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from conrec_monai.utils import world_size

__all__ = ["SyncBatchNorm", "synchronize_batch_norm"]

_Module = TypeVar("_Module", bound=nn.Module)


class _Sum(torch.autograd.Function):
    """The sum of the tensors of all processes, with gradient to every one of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, for devices that :class:`torch.nn.SyncBatchNorm` does not take.

    B[C] or BC[H][W] to the same shape. In evaluation mode, and in a single process, it is plain batch norm.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected an input of shape B[C] or BC[H][W], got {tuple(input.shape)}.")

    def forward(self, input: Tensor) -> Tensor:
        if world_size() == 1 or not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        sums = _Sum.apply(torch.cat([x.sum(dims), x.new_full((1,), x.numel() // x.shape[1])]))
        mean, count = sums[:-1] / sums[-1].detach(), sums[-1].detach()
        centered = x - mean.view(shape)
        variance = _Sum.apply((centered * centered).sum(dims)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        y = centered * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        return y.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), momentum or 0.0)
        self.running_var.lerp_(variance.to(self.running_var), momentum or 0.0)


def synchronize_batch_norm(network: _Module, device: torch.device | str) -> _Module:
    """Replaces every batch norm inside a network, in place, by one over the batches of all processes.

    On CUDA by :class:`torch.nn.SyncBatchNorm` (whose forward pass waits for the device), elsewhere by
    :class:`SyncBatchNorm`; parameters, and their names in a checkpoint, stay as they are. To be called before the
    network becomes a DistributedDataParallel.

    Args:
        network: is no batch norm itself.
        device: where the network is to run.

    Returns:
        The network.
    """
    if torch.device(device).type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for name, child in network.named_children():
        if not isinstance(child, _BatchNorm):
            synchronize_batch_norm(child, device)
            continue
        norm = SyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
        norm.weight, norm.bias = child.weight, child.bias
        norm.running_mean, norm.running_var = child.running_mean, child.running_var
        norm.num_batches_tracked = child.num_batches_tracked
        setattr(network, name, norm.train(child.training))
    return network
