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
import pytest
import torch
from torch import nn

from conrec_monai.evaluation import central_part, embed, embed_levels
from conrec_monai.networks.nets import ConRecEncoder, DenseNetEncoder


class ChannelMean(nn.Module):
    """B[C]: mean of each channel; notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        assert not torch.is_grad_enabled()
        return self.dropout(self.norm(x)).mean(dim=(2, 3))


def images(n: int = 5, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_values_batches_and_order() -> None:
    encoder, x = ChannelMean(), images()
    h = embed(encoder, x, batch_size=2)
    assert [len(batch) for batch in encoder.seen] == [2, 2, 1]
    assert h.dtype == np.float32
    # Fresh batch norm in evaluation mode divides by sqrt(1 + eps); dropout is off.
    np.testing.assert_allclose(h, x.float().mean(dim=(2, 3)) / 255 / np.sqrt(1 + 1e-5), rtol=1e-5)
    assert encoder.norm.num_batches_tracked == 0


def test_mode_of_each_module_is_restored_even_after_an_error() -> None:
    encoder = ChannelMean()
    encoder.norm.eval()
    for x in (images(), images()[:, :2]):  # two channels: the batch norm raises
        try:
            embed(encoder, x)
        except RuntimeError:
            pass
        assert encoder.training and encoder.dropout.training and not encoder.norm.training


def test_central_part() -> None:
    x = torch.arange(64).reshape(1, 1, 8, 8)
    np.testing.assert_array_equal(central_part(x, 2)[0, 0], [[27, 28], [35, 36]])
    assert central_part(x, 8).shape == x.shape
    assert central_part(torch.zeros(1, 1, 224, 112), 98).shape == (1, 1, 98, 98)
    for size in (0, 9):
        with pytest.raises(ValueError, match=f"1 to 8 pixels, got {size}"):
            central_part(x, size)


class Broken(torch.nn.Module):
    """Returns a feature map, or a representation of which one value is not a number."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fault == "map":
            return x
        h = x.mean(dim=(2, 3))
        h[3, 0] = float("nan")
        return h


def test_mistakes_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"expected uint8 images NCHW with N >= 1, got torch.float32 of shape \[5, 3, 16"
    ):
        embed(ChannelMean(), images().float())
    with pytest.raises(ValueError, match=r"of shape \[0, 3"):
        embed(ChannelMean(), images(0))
    with pytest.raises(ValueError, match=r"expected an encoder that returns \[5, F\], got shape \[5, 3, 16, 16\]"):
        embed(Broken("map"), images())
    with pytest.raises(ValueError, match="representation of 1 of 5 images is not finite, first: 3"):
        embed(Broken("nan"), images())


def test_levels_by_hand() -> None:
    encoder = ConRecEncoder(3, (4, 8), "average").eval()
    x = images(5)
    maps = encoder.features(x.float() / 255)
    expected = [m.mean(dim=(2, 3)) for m in maps] + [m.flatten(2).max(dim=2).values for m in maps]
    result = embed_levels(encoder, x, batch_size=2)
    assert result.dtype == np.float32 and result.shape == (5, 24)
    np.testing.assert_allclose(result, torch.cat(expected, dim=1).detach().numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="a DenseNetEncoder gives no feature maps of levels"):
        embed_levels(DenseNetEncoder(), x)
