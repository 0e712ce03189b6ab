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
from monai.losses import SSIMLoss

from conrec_monai.losses import ConRecLoss, NTXentLoss


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(8, 5, generator=generator),
        torch.rand(8, 3, 16, 16, generator=generator),
        torch.rand(8, 3, 16, 16, generator=generator),
    )


def test_published_weights(tensors):
    projection, reconstruction, target = tensors
    output = ConRecLoss()(projection, reconstruction, target)
    contrastive = NTXentLoss(0.5)(projection[:4], projection[4:])
    squared_error = ((reconstruction - target) ** 2).mean()
    torch.testing.assert_close(output.contrastive, contrastive)
    torch.testing.assert_close(output.reconstruction, squared_error)
    torch.testing.assert_close(output.loss, 2 * contrastive + 100 * squared_error)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("ssim", lambda x, y: SSIMLoss(2)(x, y)),
        ("huber", lambda x, y: (0.5 * (x - y) ** 2).mean()),  # all differences are below 1
    ],
)
def test_reconstruction_losses(tensors, name, reference):
    projection, reconstruction, target = tensors
    output = ConRecLoss(alpha=3, contrastive_weight=0, reconstruction=name)(projection, reconstruction, target)
    torch.testing.assert_close(output.loss, 3 * reference(reconstruction, target))


def test_without_decoder(tensors):
    output = ConRecLoss()(tensors[0])
    assert output.reconstruction == 0
    torch.testing.assert_close(output.loss, 2 * output.contrastive)


def test_errors(tensors):
    projection, reconstruction, target = tensors
    with pytest.raises(ValueError, match="one of .*'l1'"):
        ConRecLoss(reconstruction="l1")
    with pytest.raises(ValueError, match="alpha must not be negative, got -1"):
        ConRecLoss(alpha=-1)
    with pytest.raises(ValueError, match="odd number of 7"):
        ConRecLoss()(projection[:7])
    with pytest.raises(ValueError, match="shape"):
        ConRecLoss()(projection, reconstruction, target[..., :8])
    with pytest.raises(ValueError, match="None"):
        ConRecLoss()(projection, reconstruction)
