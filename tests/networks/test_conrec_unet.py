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

import json

import numpy as np
import pytest
import torch
from torch import nn

from conrec_monai.networks.blocks import AttentionPool
from conrec_monai.networks.nets import ConRecEncoder, ConRecOutput, ConRecUNet

SMALL = (8, 16, 32, 64)


def _published_count(module: nn.Module) -> int:
    """The paper counts weights and batch-norm running statistics."""
    buffers = sum(b.numel() for name, b in module.named_buffers() if not name.endswith("num_batches_tracked"))
    return sum(p.numel() for p in module.parameters()) + buffers


@pytest.mark.parametrize(("pooling", "count"), [("average", 4_693_056), ("attention", 4_867_905 - 512)])
def test_parameter_counts_of_table_1(pooling, count):
    # The published 4,867,905 hold 512 constant ones that need not exist.
    assert _published_count(ConRecEncoder(pooling=pooling)) == count
    assert _published_count(ConRecUNet(pooling=pooling).encoder) == count


class _KerasWeights:
    """Fills a network with arrays that are listed layer by layer (kernels HWIO and IO)."""

    def __init__(self, layers):
        self.layers = iter(layers)

    def fill(self, module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                arrays = next(self.layers)
                kernel = torch.tensor(arrays["kernel"])
                part.weight.data.copy_(kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T)
                if part.bias is not None:
                    part.bias.data.copy_(torch.tensor(arrays["bias"]))
            elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                arrays = next(self.layers)
                part.weight.data.copy_(torch.tensor(arrays["gamma"]))
                if part.bias is not None:
                    part.bias.data.copy_(torch.tensor(arrays["beta"]))
                else:
                    assert "beta" not in arrays
                part.running_mean.copy_(torch.tensor(arrays["moving_mean"]))
                part.running_var.copy_(torch.tensor(arrays["moving_variance"]))


def _close(actual: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=1e-4)


def test_published_network_in_inference_and_training_mode(oracles):
    z = np.load(oracles / "model_pooling_rgb.npz")
    layers: dict[str, dict[str, np.ndarray]] = {}
    for key in z:
        if key.startswith("weights/"):
            _, layer, part = key.split("|", 1)[0], *key.split("|")[2:]
            layers.setdefault(layer, {})[part] = z[key]
    net = ConRecUNet(features=SMALL, pooling="average", projection_dim=32)

    def suffix(name: str) -> int:
        return int(name.rsplit("_", 1)[1]) if name[-1].isdigit() and "_" in name else 0

    convs = [layers[n] for n in sorted((n for n in layers if n.startswith("conv2d")), key=suffix)]
    norms = [layers[n] for n in sorted((n for n in layers if n.startswith("batch_norm")), key=suffix)]
    dense = [layers[n] for n in sorted((n for n in layers if n.startswith("dense")), key=suffix)]
    # Numbered as built: per level two convolutions, then its skip; the projection's norms (11-13) before the decoder's.
    encoder = [i for level in ((0, 1), (3, 4), (6, 7), (9, 10)) for i in level]
    _KerasWeights([x for i in encoder for x in (convs[i], norms[i])]).fill(net.encoder)
    _KerasWeights([x for i in range(3) for x in (dense[i], norms[11 + i])]).fill(net.projection)
    for j, (skip, pair) in enumerate(((8, (11, 12)), (5, (13, 14)), (2, (15, 16)))):
        _KerasWeights([convs[skip], norms[skip]]).fill(net.decoder.skips[j])
        _KerasWeights([x for i in pair for x in (convs[i], norms[i + 3])]).fill(net.decoder.levels[j])
    _KerasWeights([layers["reconst_output"]]).fill(net.decoder.output)

    x = torch.tensor(z["x"]).permute(0, 3, 1, 2)
    saved = {name: value.clone() for name, value in net.state_dict().items()}
    norms = {name: m for name, m in net.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}
    for norm in norms.values():
        norm.momentum = 1.0  # the running statistics become those of the batch
    # In float64 but for the pooling, which is always float32: statistics over 4 rows magnify the rounding of a
    # particular order of summation beyond the tolerance.
    net.double().train()
    features = net.encoder.features(x.double())
    _close(net.decoder(features).permute(0, 2, 3, 1), z["reconstruction_train"])
    _close(net.projection(net.encoder.pool(features[-1]).double()), z["projection_train"])

    # The weights were saved after the training-mode call: its update of the running averages, with decay 0.9, is taken
    # back for the inference-mode outputs. (The published dense norms update with the biased variance.)
    for name, norm in norms.items():
        variance = norm.running_var * ((len(x) - 1) / len(x) if isinstance(norm, nn.BatchNorm1d) else 1)
        norm.running_var = (saved[f"{name}.running_var"] - 0.1 * variance) / 0.9
        norm.running_mean = (saved[f"{name}.running_mean"] - 0.1 * norm.running_mean) / 0.9
    output = net.float().eval()(x)
    assert isinstance(output, ConRecOutput)
    _close(output.reconstruction.permute(0, 2, 3, 1), z["reconstruction"])
    _close(output.projection, z["projection"])
    _close(output.representation, z["representation"])


def test_attention_pool_of_the_published_implementation(oracles):
    z = np.load(oracles / "augmentation_exact.npz")
    layers: dict[str, dict[str, np.ndarray]] = {}
    for key in z:
        if key.startswith("attention_weights/"):
            name, _, part = key.removeprefix("attention_weights/").split("|")
            layers.setdefault(name, {})[part] = z[key]
    features = torch.tensor(z["attention_features"])
    pool = AttentionPool(z["attention_pooled_inference"].shape[1], dropout=0.0)
    if features.shape[1] != pool.branch.conv_0.conv.in_channels:
        features = features.permute(0, 3, 1, 2)
    _KerasWeights([layers[name] for name in sorted(layers)]).fill(pool)
    _close(pool.eval()(features), z["attention_pooled_inference"])
    _close(pool.train()(features), z["attention_pooled_training"])


def test_attention_is_a_weighted_average():
    pool = AttentionPool(8).eval()
    x = torch.rand(2, 8, 4, 6)
    attention = pool.attention_map(x)
    assert attention.shape == (2, 1, 4, 6)
    weights = attention / attention.sum(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(pool(x), torch.einsum("bchw,bxhw->bc", x, weights))
    constant = torch.ones(1, 8, 4, 4) * torch.arange(8).view(1, 8, 1, 1)
    torch.testing.assert_close(pool(constant), torch.arange(8.0)[None])


def test_only_the_attention_branch_is_dropped():
    torch.manual_seed(0)
    pool = AttentionPool(16)
    nn.init.zeros_(pool.branch.conv_3.weight)  # a uniform map whatever is dropped
    x = torch.rand(4, 16, 8, 8)
    torch.testing.assert_close(pool.train()(x), x.mean(dim=(2, 3)))


def test_encoder_outputs():
    encoder = ConRecEncoder(in_channels=1, features=(8, 16, 32)).eval()
    x = torch.rand(2, 1, 16, 24)
    assert [tuple(f.shape) for f in encoder.features(x)] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6)]
    assert encoder.attention_map(x).shape == (2, 1, 4, 6)
    assert encoder(x).shape == (2, encoder.num_features) == (2, 32)


def test_flatten_is_in_order_height_width_channels():
    encoder = ConRecEncoder(features=(8, 16), pooling="flatten", image_size=8).eval()
    x = torch.rand(2, 3, 8, 8)
    last = encoder.features(x)[-1]
    assert encoder.num_features == 16 * 4 * 4
    assert torch.equal(encoder(x).view(2, 4, 4, 16), last.permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"decoder": False, "pooling": "average"},
        {"upsample": "deconv", "skip_levels": 1, "skip_strength": 0.5},
        {"pooling": "flatten", "image_size": 32, "projection_layers": 1, "skip_levels": 0},
    ],
)
def test_scriptable_and_rebuilt_from_its_config(config):
    net = ConRecUNet(features=SMALL, **config).eval()
    x = torch.rand(2, 3, 32, 32)
    expected = net(x)
    twin = ConRecUNet(**net.config).eval()
    twin.load_state_dict(net.state_dict())
    for other in (torch.jit.script(net)(x), twin(x)):
        assert (other.reconstruction is None) == (not config.get("decoder", True))
        for a, b in zip(other, expected, strict=True):
            if b is not None:
                torch.testing.assert_close(a, b)
    assert json.loads(json.dumps(net.config)) == net.config


@pytest.mark.parametrize("config", [{}, {"upsample": "deconv", "skip_levels": 1}, {"decoder": False}])
@pytest.mark.parametrize("scripted", [False, True])
def test_only_the_images_from_first_on_are_reconstructed(config, scripted):
    torch.manual_seed(0)
    net = ConRecUNet(features=SMALL, **config).eval()
    network = torch.jit.script(net) if scripted else net
    x = torch.rand(4, 3, 32, 32)
    whole = net(x)
    for first in (0, 2, 3):
        part = network(x, first)
        torch.testing.assert_close(part.projection, whole.projection, rtol=0, atol=1e-6)
        torch.testing.assert_close(part.representation, whole.representation, rtol=0, atol=1e-6)
        if net.decoder is None:
            assert part.reconstruction is None
        else:
            assert part.reconstruction.shape == (4 - first, 3, 32, 32)
            torch.testing.assert_close(part.reconstruction, whole.reconstruction[first:], rtol=0, atol=1e-6)


def test_every_parameter_learns_from_a_part():
    net = ConRecUNet(features=SMALL)
    output = net(torch.rand(4, 3, 32, 32), 2)
    (output.reconstruction.square().mean() + output.projection.square().sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_initialization():
    torch.manual_seed(0)
    net = ConRecUNet(features=SMALL)
    conv = net.encoder.levels[2].conv_1.conv
    assert conv.weight.abs().max() <= (6 / (9 * 32 + 9 * 32)) ** 0.5 and conv.bias.eq(0).all()
    assert net.projection.linear_0.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert net.projection.norm_2.bias is None and net.projection.norm_1.bias is not None
    assert (net.encoder.levels[0].conv_0.adn.N.eps, net.encoder.levels[0].conv_0.adn.N.momentum) == (1e-5, 0.1)
    assert (net.encoder.pool.branch.conv_0.adn.N.eps, net.encoder.pool.branch.conv_0.adn.N.momentum) == (1e-3, 0.01)


def test_every_parameter_learns():
    net = ConRecUNet(features=SMALL)
    output = net(torch.rand(4, 3, 32, 32))
    (output.reconstruction.square().mean() + output.projection.square().sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "max"}, "pooling must be one of .*'max'"),
        ({"pooling": "flatten"}, "needs image_size, a multiple of 8"),
        ({"pooling": "flatten", "image_size": 30}, "multiple of 8 for 4 levels, got 30"),
        ({"features": ()}, "features must be"),
        ({"features": (4, 12)}, "multiple of 8 channels, got 12"),
        ({"in_channels": 0}, "in_channels"),
        ({"skip_levels": 4}, "skip_levels must be from 0 to 3"),
        ({"skip_strength": 0}, "skip_strength"),
        ({"upsample": "bilinear"}, "upsample must be one of"),
        ({"projection_layers": 0}, "projection_layers"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConRecUNet(**arguments)


def test_scripted_attention_map():
    encoder = ConRecEncoder(features=SMALL).eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(torch.jit.script(encoder).attention_map(x), encoder.attention_map(x))
    scripted = torch.jit.script(ConRecEncoder(features=SMALL, pooling="average"))
    with pytest.raises(torch.jit.Error, match="no attention map"):
        scripted.attention_map(x)


def test_seeded_weights_stay_the_same():
    """Results are reported with their seed: the order in which weights are drawn is part of them."""
    torch.manual_seed(3)
    net = ConRecUNet(features=(8, 16), projection_dim=16)
    names = ("encoder.levels.0.conv_0.conv.weight", "projection.linear_2.weight", "decoder.output.weight")
    assert [round(net.get_parameter(name).flatten()[0].item(), 5) for name in names] == [
        -0.20224,
        0.00851,
        -0.59124,
    ]


def test_image_size_error():
    with pytest.raises(ValueError, match="multiples of 8, got 32 x 30"):
        ConRecEncoder(features=SMALL)(torch.rand(1, 3, 32, 30))
    with pytest.raises(ValueError, match="no attention map"):
        ConRecEncoder(features=SMALL, pooling="average").attention_map(torch.rand(1, 3, 32, 32))
