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

import pytest
import torch
from torch import nn

from conrec_monai.networks.blocks import ProjectionHead


def test_layers():
    torch.manual_seed(0)
    head = ProjectionHead(6, 8, 4, num_layers=2)
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {
        "linear_0.weight": (8, 6),
        "norm_0.weight": (8,),
        "norm_0.bias": (8,),
        "linear_1.weight": (4, 8),
        "norm_1.weight": (4,),  # without a shift
    }
    x = torch.rand(5, 6)
    hidden = nn.functional.batch_norm(x @ head.linear_0.weight.T, None, None, training=True).relu()
    expected = nn.functional.batch_norm(hidden @ head.linear_1.weight.T, None, None, training=True)
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(torch.jit.script(head.eval())(x), head(x))


def test_initial_weights():
    torch.manual_seed(0)
    head = ProjectionHead(64, 64, 64)
    for i in range(3):
        weight = head.get_submodule(f"linear_{i}").weight
        assert weight.std().item() == pytest.approx(0.01, rel=0.05) and abs(weight.mean().item()) < 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 8, 0, 3), "projection_dim and projection_layers must be positive, got 0 and 3"),
        ((8, 8, 4, 0), "projection_dim and projection_layers must be positive, got 4 and 0"),
        ((0, 8, 4, 3), "positive widths, got 0 and 8"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProjectionHead(*arguments)
