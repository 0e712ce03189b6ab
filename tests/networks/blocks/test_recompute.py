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

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from monai.networks.nets.basic_unet import TwoConv
from torch import Tensor, nn

from conrec_monai.networks.blocks import recompute
from conrec_monai.networks.nets import ConRecEncoder, ConRecUNet


def _level() -> nn.Module:
    torch.manual_seed(1)
    return TwoConv(2, 3, 5, act=("relu", {"inplace": True}), norm=("batch", {"momentum": 0.1}), bias=True)


def _input(seed: int = 0) -> Tensor:
    return torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def _saved_bytes(run: Callable[[], Any]) -> int:
    """What is kept for the backward pass, each memory once."""
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = run()
    assert output is not None  # alive: no memory is used twice
    return sum(kept.values())


# --- recompute --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("input_gradient", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_same_as_the_module(training: bool, input_gradient: bool) -> None:
    module = _level().double().train(training)
    other = copy.deepcopy(module)
    results = []
    for run in (module, lambda x: recompute(other, x)):
        for step in range(2):  # the second one starts with other statistics
            x = _input(step).requires_grad_(input_gradient)
            y = run(x)
            y.square().sum().backward()
        results.append((y.detach(), x.grad))
    _same(results[1][0], results[0][0])
    assert (results[0][1] is not None) == input_gradient
    if input_gradient:
        _same(results[1][1], results[0][1])
    _same(other.state_dict(), module.state_dict())
    for ours, theirs in zip(other.parameters(), module.parameters(), strict=True):
        _same(ours.grad, theirs.grad)
    counts = [m.num_batches_tracked.item() for m in other.modules() if isinstance(m, nn.BatchNorm2d)]
    assert counts == [2 * training] * 2
    assert all(m.track_running_stats for m in other.modules() if isinstance(m, nn.BatchNorm2d))


def test_cumulative_and_frozen_and_untracked_norms() -> None:
    module = nn.Sequential(
        nn.BatchNorm2d(3, momentum=None),  # an average over all batches, by their number
        nn.Conv2d(3, 3, 1),
        nn.BatchNorm2d(3).eval(),  # frozen
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.ReLU(),
    ).double()
    module[2].running_mean.fill_(0.25)
    other = copy.deepcopy(module)
    for step in range(3):
        expected = module(_input(step))
        expected.sum().backward()
        y = recompute(other, _input(step))
        y.sum().backward()
        _same(y, expected)
    _same(other.state_dict(), module.state_dict())
    _same([p.grad for p in other.parameters()], [p.grad for p in module.parameters()])
    assert other[0].num_batches_tracked == 3 and other[2].num_batches_tracked == 0
    assert not other[3].track_running_stats and not other[2].training


def test_two_backward_passes_and_two_uses_count_each_use_once() -> None:
    module = _level().double()
    other = copy.deepcopy(module)
    for norm in (module, lambda x: recompute(other, x)):
        y = norm(_input(0)).sum() + norm(_input(1)).square().sum()
        y.backward(retain_graph=True)
        y.backward()
    _same(other.state_dict(), module.state_dict())
    _same([p.grad for p in other.parameters()], [p.grad for p in module.parameters()])
    assert other.conv_0.adn.N.num_batches_tracked == 2


def test_statistics_are_tracked_after_a_failed_backward_pass() -> None:
    class Fails(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("out of memory")
            return x.sin()

    module = nn.Sequential(nn.BatchNorm2d(3), Fails()).double()
    y = recompute(module, _input())
    with pytest.raises(RuntimeError, match="out of memory"):
        y.sum().backward()
    assert module[0].track_running_stats and module[0].num_batches_tracked == 1


def test_no_gradients_nothing_kept() -> None:
    module = _level().double().eval()
    with torch.no_grad():
        y = recompute(module, _input())
    assert not y.requires_grad
    _same(y, module(_input()).detach())


def test_keeps_the_input_alone() -> None:
    module, x = _level().double(), _input()
    weights = sum(p.nbytes for p in module.parameters())
    assert _saved_bytes(lambda: recompute(module, x)) == x.nbytes
    assert _saved_bytes(lambda: module(x)) > x.nbytes + weights


# --- the networks -----------------------------------------------------------------------------------------------------


def _networks(**arguments: Any) -> tuple[ConRecUNet, ConRecUNet]:
    torch.manual_seed(2)
    plain = ConRecUNet(features=(4, 8, 8), projection_dim=6, **arguments)
    network = ConRecUNet(features=(4, 8, 8), projection_dim=6, gradient_checkpointing=True, **arguments)
    network.load_state_dict(plain.state_dict())
    return plain, network


def _train(network: ConRecUNet, bfloat16: bool) -> dict[str, Any]:
    """Two steps of gradient descent."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    outputs: dict[str, Any] = {}
    for step in range(2):
        x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        torch.manual_seed(step)  # for the dropout of the attention
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            output = network(x)
        loss = output.projection.square().sum() + output.representation.sin().sum()
        if output.reconstruction is not None:
            loss = loss + (output.reconstruction - x).abs().mean()
        loss.backward()
        optimizer.step()
        outputs |= {f"{name} {step}": value.detach() for name, value in output._asdict().items() if value is not None}
    return outputs | {f"gradient {name}": p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"skip_levels": 1, "upsample": "deconv", "skip_strength": 0.5},
        {"decoder": False, "pooling": "average"},
        {"pooling": "flatten", "image_size": 16},
    ],
)
@pytest.mark.parametrize("bfloat16", [False, True])
def test_training_is_that_of_the_plain_network(arguments: Any, bfloat16: bool) -> None:
    plain, network = _networks(**arguments)
    assert network.config == plain.config and "gradient_checkpointing" not in str(network.config)
    expected, actual = _train(plain, bfloat16), _train(network, bfloat16)
    assert actual.keys() == expected.keys() and len(expected) > 30
    _same(actual, expected)
    _same(network.state_dict(), plain.state_dict())
    counts = {int(b) for name, b in network.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {2}


def test_evaluation_and_script() -> None:
    plain, network = _networks()
    _train(plain, False)
    network.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 16, 16)
    scripted = torch.jit.script(network)
    with torch.no_grad():
        expected = plain.eval()(x)
        _same(list(network.eval()(x)), list(expected))
        torch.testing.assert_close(list(scripted.eval()(x)), list(expected))
        torch.testing.assert_close(scripted.encoder.attention_map(x), plain.encoder.attention_map(x))
    torch.manual_seed(0)
    y = scripted.train()(x)  # trains, without computing anything again
    y.projection.square().sum().backward()
    torch.manual_seed(0)
    torch.testing.assert_close(list(y), list(plain.train()(x)))
    # In evaluation mode nothing is computed twice: gradients for explanations.
    calls: list[int] = []
    network.eval().encoder.levels[0].register_forward_hook(lambda *_: calls.append(1))
    network(x).projection.sum().backward()
    assert len(calls) == 1


def test_fewer_bytes_are_kept() -> None:
    x = torch.rand(4, 3, 32, 32)
    plain, network = _networks()
    saved = [_saved_bytes(lambda net=net: net.train()(x)) for net in (plain, network)]
    assert saved[1] < 0.6 * saved[0]
    # Of the encoder: the levels' inputs, the last level's output (for the pooling), and what the pools keep.
    encoders = [
        ConRecEncoder(features=(4, 8), pooling="average", gradient_checkpointing=kept).train() for kept in (False, True)
    ]
    saved = [_saved_bytes(lambda net=net: net(x)) for net in encoders]
    level_0, level_1 = 4 * 4 * 32 * 32 * 4, 4 * 4 * 16 * 16 * 4  # bytes: output of the first level, and pooled
    assert saved[1] <= x.nbytes + level_0 + level_1 + 2 * level_1  # the pooling's places are int64
    assert saved[0] > 4 * level_0


def test_config_builds_the_same_network() -> None:
    for kind in (ConRecUNet, ConRecEncoder):
        network = kind(features=(4, 8), gradient_checkpointing=True)
        again = kind(**network.config)
        assert again.config == network.config
        modules = [m for m in again.modules() if hasattr(m, "gradient_checkpointing")]
        assert modules and not any(m.gradient_checkpointing for m in modules)
