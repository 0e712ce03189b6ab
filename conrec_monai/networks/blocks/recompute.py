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

from contextlib import nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["recompute"]


class _StatisticsKept:
    """While it is entered, batch norm follows the batches in copies of its running statistics.

    Not by ``track_running_stats``: batch norm saves the running statistics for its backward pass, and a computation
    that is repeated has to save as many tensors as the first time. A graph that is kept enters it several times.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]

    def __enter__(self) -> None:
        self.buffers = [dict(norm._buffers) for norm in self.norms]
        for norm, buffers in zip(self.norms, self.buffers, strict=True):
            norm._buffers.update({name: None if x is None else x.clone() for name, x in buffers.items()})

    def __exit__(self, *error: object) -> None:
        for norm, buffers in zip(self.norms, self.buffers, strict=True):
            norm._buffers.update(buffers)


def recompute(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` that keeps its input alone for the backward pass and computes the rest of it once more there.

    Gradients and running statistics are those of ``module(x)``: batch norm counts the batch once. The module draws
    nothing at random. See :func:`torch.utils.checkpoint.checkpoint`.
    """
    output: Tensor = checkpoint(
        module,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _StatisticsKept(module)),
    )
    return output
