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

from collections import OrderedDict

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

__all__ = ["AttentionPool"]


class AttentionPool(nn.Module):
    """Attention-weighted average over space: ``h = sum(A * f) / sum(A)``, computed in float32.

    The attention map A comes from the feature map through dropout, 1x1 convolutions to C/2, C/4 and C/8 channels, each
    with batch norm (eps 1e-3, momentum 0.01) and ReLU, then to one channel with a sigmoid; the map that is averaged is
    the undropped one. Source: arXiv 2104.04323 (attention-weighted pooling).

    Args:
        channels: C, a multiple of 8.
        dropout: probability with which the attention branch, in training, does not see a value of the feature map.

    Raises:
        ValueError: when ``channels`` is not a positive multiple of 8.
    """

    def __init__(self, channels: int, dropout: float = 0.5) -> None:
        super().__init__()
        if channels < 8 or channels % 8:
            raise ValueError(f"attention pooling needs a positive multiple of 8 channels, got {channels}.")
        widths = (channels, channels // 2, channels // 4, channels // 8)
        norm = ("batch", {"eps": 1e-3, "momentum": 0.01})
        layers: OrderedDict[str, nn.Module] = OrderedDict(dropout=nn.Dropout(dropout))
        for i in range(3):
            layers[f"conv_{i}"] = Convolution(2, widths[i], widths[i + 1], kernel_size=1, act="relu", norm=norm)
        layers["conv_3"] = nn.Conv2d(widths[3], 1, kernel_size=1)
        self.branch = nn.Sequential(layers)

    @torch.jit.export
    def attention_map(self, x: Tensor) -> Tensor:
        """The attention map A of a feature map: BCHW -> B1HW, float32 values in (0, 1)."""
        logits: Tensor = self.branch(x)
        return logits.float().sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Pools a feature map: BCHW -> B[C], float32."""
        attention = self.attention_map(x)
        # a sigmoid may underflow everywhere; the representation is then 0 rather than not a number
        total = attention.sum(dim=(2, 3)).clamp(min=1e-30)
        return (attention * x.float()).sum(dim=(2, 3)) / total
