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

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

from conrec_monai.utils import rank, world_size

__all__ = ["NTXentLoss", "nt_xent_logits"]


class _Gather(torch.autograd.Function):
    """The tensors of all processes, concatenated in the order of their ranks, with gradient to every one of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def nt_xent_logits(input: Tensor, target: Tensor, temperature: float, gather: bool = False) -> Tensor:
    """Cosine similarities over temperature between all 2B embeddings, in float32; a row's similarity to itself is -inf.

    Args:
        input: embeddings of the first view, shape B[F].
        target: embeddings of the second view, shape B[F].
        temperature: divisor of the similarities.
        gather: let the columns be the embeddings of all processes of the default process group, each of which has
            as many; rank r's begin at column 2Br.

    Returns:
        Logits of shape 2B[2B]; row i < B has its positive in column B + i, row B + i in column i.

    Raises:
        ValueError: when the shapes differ or are not B[F].
    """
    if input.ndim != 2 or input.shape != target.shape:
        raise ValueError(
            f"input and target must both be of shape B[F], got {tuple(input.shape)} and {tuple(target.shape)}."
        )
    with torch.autocast(input.device.type, enabled=False):
        embeddings = F.normalize(torch.cat([input, target]).float(), dim=1)
        gather = gather and world_size() > 1
        logits = embeddings @ (_Gather.apply(embeddings) if gather else embeddings).T / temperature
        logits.diagonal(len(embeddings) * rank() if gather else 0).fill_(float("-inf"))
    return logits


class NTXentLoss(_Loss):
    """Normalized temperature-scaled cross entropy: each embedding must find the other view of its own image.

    For embeddings z of 2B views, L2-normalized, with row i's positive p(i), the loss is the mean over the 2B rows of
    ``-log(exp(z_i . z_p(i) / T) / sum_{k != i} exp(z_i . z_k / T))``; the other 2B - 2 views of the batch are the
    negatives. Computed as log-sum-exp in float32 whatever the autocast dtype, so that small temperatures are safe
    (:class:`monai.losses.ContrastiveLoss` gives NaN at 0.01), with memory of order (2B)^2.

    Under `torch.distributed` the negatives are the views of all processes, gathered with gradient: the mean of the
    processes' losses, and what DistributedDataParallel makes of their gradients, are those of one process with the
    whole batch. Every process must have the same B.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709,
    Eq. 1. The ConRec publication (arXiv 2104.04323) sums the two directions, which is twice this mean.

    Args:
        temperature: T, positive. Defaults to 0.5.
        gather: whether the negatives come from all processes, where there are several; False where each process sees
            the same images, or one process is alone in computing the loss.

    Raises:
        ValueError: when ``temperature`` is not positive.
    """

    def __init__(self, temperature: float = 0.5, gather: bool = True) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}.")
        self.temperature = float(temperature)
        self.gather = gather

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """
        Args:
            input: embeddings of the first view, shape B[F].
            target: embeddings of the second view of the same images in the same order, shape B[F].

        Returns:
            Scalar float32 loss.

        Raises:
            ValueError: when the shapes differ, are not B[F], or B is less than 2 (no negatives).
        """
        logits = nt_xent_logits(input, target, self.temperature, self.gather)
        batch = len(input)
        if batch < 2:
            raise ValueError(f"the loss needs at least 2 images in a batch (negatives), got {batch}.")
        positives = torch.arange(2 * batch, device=logits.device).roll(batch)
        if self.gather and world_size() > 1:
            positives += 2 * batch * rank()
        return F.cross_entropy(logits, positives)
