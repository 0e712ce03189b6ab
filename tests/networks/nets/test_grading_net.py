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
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conrec_monai.evaluation import calibrate, graded
from conrec_monai.networks.nets import ConRecEncoder, GradingNet
from conrec_monai.networks.nets.grading_net import TASKS
from conrec_monai.networks.utils import load_encoder, load_model, read_checkpoint, save_checkpoint

PREPROCESSING = {"image_size": 16, "resize": "squash", "field_of_view": None}


class MeanEncoder(nn.Module):
    """Any module with ``num_features`` will do."""

    num_features = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def make_net(task: str = "ordinal", num_classes: int = 4, freeze: bool = False) -> GradingNet:
    torch.manual_seed(0)
    return GradingNet(ConRecEncoder(features=(4, 8)), num_classes, task, freeze)


def scaled(task: str, num_classes: int, scale: float) -> GradingNet:
    net = GradingNet(MeanEncoder(), num_classes, task)
    net.scale.fill_(scale)
    return net


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _below(x: float) -> float:
    """Of the standard normal distribution."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def test_ordinal_probabilities_by_hand():
    # The first logit does not count: every grade is 0 at least. The fourth is lowered to the third.
    logits = torch.tensor([[-9.0, 2.0, -1.0, 0.5], [9.0, -1.0, 3.0, 3.0]])
    found = scaled("ordinal", 4, 2.0).probabilities(logits)
    a, b, c = _sigmoid(1), _sigmoid(-0.5), _sigmoid(-0.5)
    expected = torch.tensor([[1 - a, a - b, 0, b], [1 - c, 0, 0, c]])
    torch.testing.assert_close(found, expected)


def test_regression_probabilities_by_hand():
    found = scaled("regression", 4, 0.5).probabilities(torch.tensor([[1.2], [-3.0]]))
    first, second, third = _below((0.5 - 1.2) / 0.5), _below((1.5 - 1.2) / 0.5), _below((2.5 - 1.2) / 0.5)
    expected = torch.tensor([[first, second - first, third - second, 1 - third], [1, 0, 0, 0]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_categorical_probabilities_by_hand():
    found = scaled("categorical", 3, 0.5).probabilities(torch.tensor([[0.0, math.log(2), -math.log(3)]]))
    torch.testing.assert_close(found, torch.tensor([[1, 4, 1 / 9]]) / (46 / 9))  # exponents of twice the logits


@settings(deadline=None, max_examples=20)
@given(
    task=st.sampled_from(TASKS),
    seed=st.integers(0, 999),
    num_classes=st.integers(2, 6),
    scale=st.floats(0.05, 20),
    spread=st.sampled_from([1.0, 10.0, 1000.0]),
)
def test_rows_are_distributions(task: str, seed: int, num_classes: int, scale: float, spread: float):
    generator = torch.Generator().manual_seed(seed)
    columns = 1 if task == "regression" else num_classes
    outputs = spread * torch.randn(8, columns, generator=generator)
    for given_outputs in (outputs, outputs.bfloat16()):
        found = scaled(task, num_classes, scale).probabilities(given_outputs)
        assert found.shape == (8, num_classes) and found.dtype == torch.float32
        assert (found >= 0).all()
        torch.testing.assert_close(found.sum(dim=1), torch.ones(8))


@settings(deadline=None, max_examples=20)
@given(task=st.sampled_from(TASKS), seed=st.integers(0, 999), num_classes=st.integers(2, 6), scale=st.floats(0.05, 20))
def test_scale_changes_probabilities_but_not_the_grade(task: str, seed: int, num_classes: int, scale: float):
    generator = np.random.RandomState(seed)
    if task == "regression":  # clear of the borders between grades, where rounding decides
        drawn = generator.randint(num_classes, size=(8, 1)) + generator.uniform(-0.45, 0.45, (8, 1))
    else:
        drawn = generator.choice([-1, 1], (8, num_classes)) * generator.uniform(0.05, 3, (8, num_classes))
    outputs = torch.from_numpy(drawn).float()
    said = [
        graded(np.arange(8), scaled(task, num_classes, value).probabilities(outputs).numpy(), task)
        for value in (1.0, scale)
    ]
    np.testing.assert_array_equal(said[0].predicted, said[1].predicted)
    if abs(math.log(scale)) > 0.1:
        assert not np.allclose(said[0].probabilities, said[1].probabilities, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("task", "columns"), [("ordinal", 4), ("regression", 1), ("categorical", 4)])
def test_outputs_in_training_and_probabilities_in_evaluation(task: str, columns: int):
    net = GradingNet(MeanEncoder(), 4, task)
    net.scale.fill_(0.3)
    net.head.weight.data.copy_(torch.arange(columns * 3).view(columns, 3))
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = x.mean(dim=(2, 3)) @ net.head.weight.T
    torch.testing.assert_close(net.train()(x), expected)
    torch.testing.assert_close(net.outputs(x), expected)
    found = net.eval()(x)
    assert found.shape == (2, 4)
    torch.testing.assert_close(found, net.probabilities(expected))


def test_trained_by_its_outputs_alone():
    net = make_net().train()
    net(torch.rand(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert "scale" not in dict(net.named_parameters()) and "scale" in net.state_dict()


def test_frozen_encoder_never_changes():
    net = make_net(freeze=True)
    before = {name: value.clone() for name, value in net.encoder.state_dict().items()}
    net.train()
    assert net.training and not any(m.training for m in net.encoder.modules())
    net(torch.rand(4, 3, 16, 16)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]
    assert all(torch.equal(value, before[name]) for name, value in net.encoder.state_dict().items())


@pytest.mark.parametrize("task", TASKS)
def test_scriptable(task: str):
    net = make_net(task).eval()
    net.scale.fill_(0.7)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    scripted = torch.jit.script(net)
    torch.testing.assert_close(scripted(x), net(x))
    torch.testing.assert_close(scripted.outputs(x), net.outputs(x))


@pytest.mark.parametrize("task", TASKS)
def test_checkpoint_holds_task_and_scale(task: str, tmp_path: Path):
    net = make_net(task, 3).eval()
    calibrate(net, torch.randn(30, 1 if task == "regression" else 3), np.arange(30) % 3)
    assert net.scale.item() != 1
    save_checkpoint(tmp_path / "model.pt", net, PREPROCESSING)
    assert read_checkpoint(tmp_path / "model.pt")["config"]["task"] == task
    again = load_model(tmp_path / "model.pt")
    assert isinstance(again, GradingNet) and not again.training
    assert (again.task, again.num_classes, again.scale.item()) == (task, 3, net.scale.item())
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(x), net(x))
    encoder = load_encoder(tmp_path / "model.pt")
    assert isinstance(encoder, ConRecEncoder) and torch.equal(encoder(x), net.encoder(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MeanEncoder(), 4, "ranking"), "task must be one of ordinal, regression, categorical, got 'ranking'"),
        ((MeanEncoder(), 1), "num_classes must be a whole number of at least 2, got 1"),
        ((MeanEncoder(), 1, "regression"), "num_classes must be a whole number of at least 2, got 1"),
        ((MeanEncoder(), 2.0), "num_classes must be a whole number of at least 2, got 2.0"),
        ((MeanEncoder(), True), "num_classes must be a whole number of at least 2, got True"),
        ((nn.Flatten(), 2), "encoder must have num_features, .*; Flatten has None"),
        ((MeanEncoder(), 2, "ordinal", 1), "freeze must be True or False, got 1"),
    ],
)
def test_errors(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        GradingNet(*arguments)
