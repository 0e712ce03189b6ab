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
from torch import Tensor

__all__ = ["attention_entropy", "effective_rank", "embedding_std"]


@torch.no_grad()
def embedding_std(embeddings: Tensor) -> float:
    """How far embeddings spread over the sphere: the standard deviation of the L2-normalized ones, times sqrt(F).

    The deviation is the root mean square over the F coordinates. Times sqrt(F) it is in [0, 1] whatever F: 1 for
    embeddings without a common direction (1 / sqrt(F) in each coordinate), 0 for complete collapse, all the same. Its
    square is one less the mean cosine similarity of two embeddings (of all N * N pairs). Source: arXiv 2011.10566
    (SimSiam), Fig. 2.

    Args:
        embeddings: N[F], N >= 2. A row of zeros stays zeros.

    Raises:
        ValueError: for another shape, or values that are not finite.
    """
    unit = torch.nn.functional.normalize(_checked(embeddings), dim=1)
    return float(unit.var(dim=0, correction=0).sum().sqrt())


@torch.no_grad()
def effective_rank(embeddings: Tensor) -> float:
    """How many directions embeddings use: the exponential of the entropy of their normalized singular values.

    They are centered first, so it is in [1, min(N - 1, F)], and 0 where all embeddings are the same. Singular values
    that rounding alone explains (:func:`torch.linalg.matrix_rank`) count as 0. Source: Roy and Vetterli, "The effective
    rank: a measure of effective dimensionality", EUSIPCO 2007.

    Args:
        embeddings: N[F], N >= 2.

    Raises:
        ValueError: for another shape, or values that are not finite.
    """
    x = _checked(embeddings)
    # Rounding is relative to the embeddings as they came, whose mean may be far larger than their spread.
    noise = torch.linalg.norm(x) * max(x.shape) * torch.finfo(torch.float32).eps
    values = torch.linalg.svdvals(x - x.mean(dim=0))
    values = values[values > noise]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


@torch.no_grad()
def attention_entropy(maps: Tensor) -> float:
    """How evenly attention looks: the entropy of each map over space over the largest possible, its mean over maps.

    1 looks at all positions alike, 0 at a single one.

    Args:
        maps: B1HW, not negative, of at least 2 positions. A map of zeros counts as even.

    Raises:
        ValueError: for another shape, or values that are negative or not finite.
    """
    if maps.ndim != 4 or maps.shape[1] != 1 or not len(maps) or maps[0].numel() < 2:
        raise ValueError(f"expected attention maps B1HW of at least 2 positions, got shape {list(maps.shape)}")
    x = maps.detach().flatten(1).double()
    if not torch.isfinite(x).all() or x.min() < 0:
        raise ValueError("expected attention maps of finite values that are not negative")
    total = x.sum(dim=1, keepdim=True)
    shares = torch.where(total > 0, x / total, 1 / x.shape[1])
    return float(torch.special.entr(shares).sum(dim=1).mean() / math.log(x.shape[1]))


def _checked(embeddings: Tensor) -> Tensor:
    if embeddings.ndim != 2 or len(embeddings) < 2 or not embeddings.shape[1]:
        raise ValueError(f"expected embeddings [N, F] with N >= 2, got shape {list(embeddings.shape)}")
    x = embeddings.detach().double()
    if not torch.isfinite(x).all():
        raise ValueError(f"{(~torch.isfinite(x).all(dim=1)).sum()} of {len(x)} embeddings are not finite")
    return x
