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

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conrec_monai.evaluation import calibrate, class_probabilities, graded, grades_from_probabilities
from conrec_monai.networks.nets import GradingNet
from conrec_monai.networks.nets.grading_net import TASKS


class Encoder(nn.Module):
    num_features = 1


def make_net(task: str = "ordinal", num_classes: int = 4) -> GradingNet:
    return GradingNet(Encoder(), num_classes, task)


def drawn(net: GradingNet, outputs: torch.Tensor, scale: float, seed: int = 0) -> np.ndarray:
    """Labels that have the probabilities of a scale."""
    net.scale.fill_(scale)
    probabilities = net.probabilities(outputs)
    net.scale.fill_(1)
    return torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(seed))[:, 0].numpy()


def surprise(net: GradingNet, outputs: torch.Tensor, labels: np.ndarray) -> float:
    likely = net.probabilities(outputs)[torch.arange(len(labels)), torch.from_numpy(labels)]
    return -likely.clamp(1e-7).log().mean().item()


def outputs_of(task: str, n: int, num_classes: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if task == "regression":
        return (num_classes - 1) * torch.rand(n, 1, generator=generator)
    logits = spread * torch.randn(n, num_classes, generator=generator)
    # those of grades fall as a fitted model's do
    return logits if task == "categorical" else logits.sort(dim=1, descending=True).values


@pytest.mark.parametrize(
    ("task", "scale"), [(task, scale) for task in ("ordinal", "categorical") for scale in (0.4, 1, 2.5)]
)
def test_recovers_the_temperature(task: str, scale: float) -> None:
    net = make_net(task)
    outputs = outputs_of(task, 4000, 4)
    found = calibrate(net, outputs, drawn(net, outputs, scale))
    assert found == pytest.approx(scale, rel=0.1)
    assert net.scale.shape == () and net.scale.item() == pytest.approx(found, rel=1e-6)
    assert net.state_dict()["scale"] is not None and net.scale.dtype == torch.float32


@pytest.mark.parametrize("scale", [0.4, 1.5])
def test_recovers_the_deviation_of_a_regression(scale: float) -> None:
    net = make_net("regression", 5)
    outputs = outputs_of("regression", 4000, 5)
    assert calibrate(net, outputs, drawn(net, outputs, scale)) == pytest.approx(scale, rel=0.1)


def test_deviation_is_the_root_mean_square_error_of_a_regression() -> None:
    generator = np.random.RandomState(0)
    labels = generator.randint(10, 20, 2000)  # far from both ends, which take all that lies beyond them
    outputs = labels + generator.normal(0, 1.5, 2000)
    found = calibrate(make_net("regression", 30), torch.from_numpy(outputs)[:, None], labels)
    # Rounding to whole grades adds 1/12 to the variance.
    assert found == pytest.approx(math.sqrt(np.mean((labels - outputs) ** 2) - 1 / 12), rel=0.03)


@settings(deadline=None, max_examples=20)
@given(
    task=st.sampled_from(TASKS),
    seed=st.integers(0, 999),
    n=st.integers(1, 30),
    num_classes=st.integers(2, 5),
    spread=st.sampled_from([0.1, 3.0, 100.0]),
)
def test_labels_are_as_likely_as_before_at_least(task: str, seed: int, n: int, num_classes: int, spread: float) -> None:
    net = make_net(task, num_classes)
    outputs = outputs_of(task, n, num_classes, seed, spread)
    labels = np.random.RandomState(seed).randint(num_classes, size=n)  # as wrong as can be
    before, said = surprise(net, outputs, labels), net.probabilities(outputs).numpy()
    found = calibrate(net, outputs, labels)
    assert 0.05 <= found <= 20
    assert surprise(net, outputs, labels) <= before + 1e-4
    for scale in (0.06, 0.3, 1, 3, 15):
        other = make_net(task, num_classes)
        other.scale.fill_(scale)
        assert surprise(net, outputs, labels) <= surprise(other, outputs, labels) + 1e-4
    again = graded(np.arange(n), net.probabilities(outputs).numpy(), task)
    clear = np.ones(n, dtype=bool)  # of the borders between grades, where rounding decides
    if task == "regression":
        clear = np.abs(outputs[:, 0].numpy() % 1 - 0.5) > 1e-3
    elif task == "ordinal":
        clear = (outputs[:, 1:].abs() > 1e-3).all(dim=1).numpy()
    np.testing.assert_array_equal(graded(np.arange(n), said, task).predicted[clear], again.predicted[clear])


def test_scale_of_before_does_not_matter() -> None:
    outputs = outputs_of("ordinal", 200, 4)
    net = make_net()
    labels = drawn(net, outputs, 2)
    found = calibrate(net, outputs, labels)
    assert calibrate(net, outputs, labels) == pytest.approx(found, rel=1e-4)
    net.scale.fill_(20)
    assert calibrate(net, outputs.double().requires_grad_(), labels) == pytest.approx(found, rel=1e-4)
    assert not net.scale.requires_grad


def test_scale_stays_within_its_bounds() -> None:
    outputs = torch.tensor([[5.0, 5.0, -5.0], [5.0, -5.0, -5.0]])
    net = make_net("ordinal", 3)
    assert (
        calibrate(net, outputs, np.array([1, 0])) < 0.3
    )  # all right: as sure as can be, of equally sure ones the least
    assert calibrate(net, 5 * outputs, np.array([0, 2])) == pytest.approx(20, rel=0.1)  # all wrong


@pytest.mark.parametrize("task", ["ordinal", "regression"])
def test_grades_by_hand(task: str) -> None:
    probabilities = np.array([[0.2, 0.31, 0.49], [0.5, 0.5, 0], [0.49, 0.0, 0.51], [0.1, 0.8, 0.1], [0.51, 0, 0.49]])
    said = graded(np.array([7, 3, 5, 1, 0]), probabilities, task)
    assert said.predicted.tolist() == [1, 0, 2, 1, 0]  # the first one's most probable grade is 2
    assert said.test.tolist() == [7, 3, 5, 1, 0]
    np.testing.assert_array_equal(said.probabilities, probabilities)


def test_classes_by_hand() -> None:
    probabilities = np.array([[0.2, 0.31, 0.49], [0.5, 0.5, 0], [0.4, 0.2, 0.4]], dtype=np.float32)
    said = graded(np.arange(3), probabilities, "categorical")
    assert said.predicted.tolist() == [2, 0, 0]  # the first of equal ones
    assert said.probabilities.dtype == np.float64


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), num_classes=st.integers(2, 6))
def test_agrees_with_the_linear_protocol(seed: int, num_classes: int) -> None:
    generator = np.random.RandomState(seed)
    cumulative = -np.sort(-generator.uniform(0, 1, (20, num_classes)), axis=1)
    cumulative[:, 0] = 1
    cumulative[np.abs(cumulative - 0.5) < 1e-6] = 0.4
    for probabilities in (class_probabilities(cumulative), class_probabilities(cumulative).astype(np.float32)):
        said = graded(np.arange(20), probabilities, "ordinal")
        np.testing.assert_array_equal(said.predicted, grades_from_probabilities(cumulative))
    logits = torch.from_numpy(np.log(cumulative / (1 - cumulative).clip(1e-12)))
    found = make_net("ordinal", num_classes).probabilities(logits).numpy()
    np.testing.assert_allclose(found, class_probabilities(cumulative), atol=1e-5)


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (torch.zeros(0, 4), [], "a calibration needs outputs and labels of the same images, one at least, got 0 and 0"),
        (torch.zeros(3, 4), [0, 1], "needs outputs and labels of the same images, one at least, got 3 and 2"),
        (torch.zeros(2, 4), [0, 4], "labels must be in 0..3, found 0 to 4"),
        (torch.tensor([[0, 1, float("nan"), 0]]), [1], "the outputs are not finite: the training has diverged"),
        (torch.tensor([[0, 1, float("inf"), 0]]), [1], "the outputs are not finite: the training has diverged"),
    ],
)
def test_errors(outputs: torch.Tensor, labels: list[int], message: str) -> None:
    net = make_net()
    with pytest.raises(ValueError, match=message):
        calibrate(net, outputs, np.array(labels, dtype=np.int64))
    assert net.scale.item() == 1
