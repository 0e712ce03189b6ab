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

from conrec_monai.engines import ConRecTrainer
from conrec_monai.losses import ConRecLoss
from conrec_monai.networks.nets import ConRecEncoder, ConRecOutput, ConRecUNet, DenseNetEncoder, SimCLRNet
from conrec_monai.transforms import TwoViews


def test_is_conrec_without_decoder():
    torch.manual_seed(0)
    reference = ConRecUNet(features=(8, 16), decoder=False)
    net = SimCLRNet(ConRecEncoder(features=(8, 16)))
    net.load_state_dict(reference.state_dict())
    x = torch.rand(2, 3, 16, 16)
    output, expected = net.eval()(x), reference.eval()(x)
    assert isinstance(output, ConRecOutput) and output.reconstruction is None
    assert torch.equal(output.projection, expected.projection)
    assert torch.equal(output.representation, expected.representation)


def test_widths():
    net = SimCLRNet(ConRecEncoder(features=(8, 16), pooling="flatten", image_size=8), 12, projection_layers=2)
    assert net.projection.linear_0.weight.shape == (256, 256) and net.projection.linear_1.weight.shape == (12, 256)


def test_scriptable():
    net = SimCLRNet(ConRecEncoder(features=(8, 16))).eval()
    x = torch.rand(2, 3, 16, 16)
    output = torch.jit.script(net)(x)
    assert output.reconstruction is None
    torch.testing.assert_close(output.projection, net(x).projection)


@pytest.mark.parametrize("scripted", [False, True])
def test_nothing_is_reconstructed_wherever_it_would_begin(scripted):
    net = SimCLRNet(ConRecEncoder(features=(8, 16))).eval()
    x = torch.rand(4, 3, 16, 16)
    output, whole = (torch.jit.script(net) if scripted else net)(x, 2), net(x)
    assert output.reconstruction is None and output.projection.shape == (4, 128)
    torch.testing.assert_close(output.projection, whole.projection, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.representation, whole.representation, rtol=0, atol=1e-6)


def test_pretraining_of_a_densenet():
    torch.manual_seed(0)
    net = SimCLRNet(DenseNetEncoder())
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    images = [{"image": torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)} for _ in range(2)]
    trainer = ConRecTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=images,
        network=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        loss_function=ConRecLoss(),
        views=TwoViews(32, masked_views=0),
        amp=False,
    )
    trainer.run()
    assert trainer.state.iteration == 2
    assert 0 < trainer.state.metrics["contrastive_loss"] < 10 and trainer.state.metrics["reconstruction_loss"] == 0
    assert [name for name, p in net.named_parameters() if torch.equal(p, before[name])] == []
    assert net.encoder.features.norm0.num_batches_tracked == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.Flatten(),), "encoder must have num_features, .*; Flatten has None"),
        ((None,), "encoder must be a torch module, got None"),
        ((ConRecEncoder(features=(8,)), 0), "projection_dim and projection_layers must be positive, got 0 and 3"),
        ((ConRecEncoder(features=(8,)), 8, 0), "projection_dim and projection_layers must be positive, got 8 and 0"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimCLRNet(*arguments)
