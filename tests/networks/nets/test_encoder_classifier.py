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

from conrec_monai.networks.nets import ConRecEncoder, EncoderClassifier


class MeanEncoder(nn.Module):
    """Any module with ``num_features`` will do."""

    num_features = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def encoder() -> ConRecEncoder:
    """With dropout and batch norm."""
    torch.manual_seed(0)
    return ConRecEncoder(features=(8, 16))


def test_linear_head():
    torch.manual_seed(0)
    net = EncoderClassifier(MeanEncoder(), 2)
    assert net.head.bias.eq(0).all()
    net.head.weight.data = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, -1.0]])
    net.head.bias.data = torch.tensor([0.5, 0.0])
    x = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(net(x), torch.tensor([[2.2, -0.3]] * 2))


def test_initial_weights():
    torch.manual_seed(0)
    weight = EncoderClassifier(ConRecEncoder(features=(8, 512)), 20).head.weight
    assert weight.shape == (20, 512) and weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_frozen_encoder_never_changes():
    net = EncoderClassifier(encoder(), 4, freeze=True)
    before = {name: value.clone() for name, value in net.encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    x = torch.rand(4, 3, 16, 16)
    expected = net.encoder(x)
    for train in (net.train, lambda: nn.Sequential(net).train(), lambda: net.train(True)):
        train()
        assert net.training and net.head.training and not any(m.training for m in net.encoder.modules())
        assert torch.equal(net.encoder(x), expected)  # no dropout, no statistics of the batch
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in net.encoder.state_dict().items())
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]
    assert not net.eval().training


def test_free_encoder_learns():
    net = EncoderClassifier(encoder().eval(), 4).train()
    assert all(m.training for m in net.modules())
    before = net.encoder.levels[0].conv_0.adn.N.running_mean.clone()
    net(torch.rand(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert not torch.equal(net.encoder.levels[0].conv_0.adn.N.running_mean, before)


@pytest.mark.parametrize("freeze", [False, True])
def test_scriptable(freeze):
    net = EncoderClassifier(encoder(), 5, freeze).eval()
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(torch.jit.script(net)(x), net(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.Flatten(), 2), "encoder must have num_features, .*; Flatten has None"),
        (("encoder.pt", 2), "encoder must be a torch module, got 'encoder.pt'"),
        ((MeanEncoder(), 0), "num_classes must be a positive whole number, got 0"),
        ((MeanEncoder(), 2.0), "num_classes must be a positive whole number, got 2.0"),
        ((MeanEncoder(), True), "num_classes must be a positive whole number, got True"),
        ((MeanEncoder(), 2, "yes"), "freeze must be True or False, got 'yes'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        EncoderClassifier(*arguments)
