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

from conrec_monai.evaluation import cumulative_labels
from conrec_monai.losses import CumulativeBCELoss
from conrec_monai.losses.cumulative import weighted_mean


def test_by_hand():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
    # Grade 1 is [1, 1, 0], grade 0 is [1, 0, 0].
    first = math.log1p(math.exp(-2)) + math.log1p(math.exp(1)) + math.log1p(math.exp(0.5))
    expected = (first + 3 * math.log(2)) / 6
    assert CumulativeBCELoss()(logits, torch.tensor([1, 0])).item() == pytest.approx(expected, rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), n=st.integers(1, 9), k=st.integers(1, 6))
def test_labels_are_those_of_the_linear_protocol(seed, n, k):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator, requires_grad=True)
    grades = torch.randint(k, (n,), generator=generator)
    loss = CumulativeBCELoss()(logits, grades)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = (torch.sigmoid(logits.detach()) - torch.from_numpy(cumulative_labels(grades.numpy(), k))) / (n * k)
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-5, atol=1e-7)


def test_extreme_logits_are_finite_and_exact():
    logits = torch.tensor([[1e4, 1e4, -1e4]])
    assert CumulativeBCELoss()(logits, torch.tensor([1])).item() == 0
    assert CumulativeBCELoss()(logits, torch.tensor([2])).item() == pytest.approx(1e4 / 3)


def test_float32_under_autocast():
    logits, grades = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = CumulativeBCELoss()(logits, grades)
        half = CumulativeBCELoss()(logits.bfloat16(), grades)
    assert loss.dtype == half.dtype == torch.float32 and loss == CumulativeBCELoss()(logits, grades)
    assert half.item() == pytest.approx(loss.item(), rel=0.01)


@pytest.mark.parametrize(
    ("logits", "grades", "message"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), r"logits B\[K\] and grades B, got shapes \[3\] and \[3\]"),
        (torch.zeros(3, 5), torch.zeros(2, dtype=torch.int64), r"got shapes \[3, 5\] and \[2\]"),
        (torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), r"got shapes \[0, 5\] and \[0\]"),
        (torch.zeros(3, 5), torch.zeros(3), "grades must be integers, got torch.float32"),
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.bool), "grades must be integers, got torch.bool"),
        (torch.zeros(2, 5), torch.tensor([0, 5]), r"grades must be in 0\.\.4, found 0 to 5"),
        (torch.zeros(2, 5), torch.tensor([-1, 2]), r"grades must be in 0\.\.4, found -1 to 2"),
    ],
)
def test_errors(logits, grades, message):
    with pytest.raises(ValueError, match=message):
        CumulativeBCELoss()(logits, grades)


def test_uint8_grades():
    grades = torch.from_numpy(np.array([0, 4], dtype=np.uint8))
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    assert CumulativeBCELoss()(logits, grades) == CumulativeBCELoss()(logits, grades.long())


def test_weights_by_hand():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
    first = (math.log1p(math.exp(-2)) + math.log1p(math.exp(1)) + math.log1p(math.exp(0.5))) / 3
    expected = (2 * first + 5 * math.log(2)) / 7  # an image of grade 1 and one of grade 0; grade 2 has none
    loss = CumulativeBCELoss(torch.tensor([5, 2, 100]))
    assert loss(logits, torch.tensor([1, 0])).item() == pytest.approx(expected, rel=1e-6)
    assert not loss.state_dict()  # they come from the data of a run, not from a checkpoint


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), weights=st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_weight_counts_as_so_many_copies_of_an_image(seed, weights):
    generator = torch.Generator().manual_seed(seed)
    grades = torch.randint(len(weights), (7,), generator=generator)
    logits = torch.randn(7, len(weights), generator=generator)
    weight = torch.tensor(weights)
    copies = weight[grades]
    expected = CumulativeBCELoss()(logits.repeat_interleave(copies, 0), grades.repeat_interleave(copies))
    for factor in (1, 0.01):  # their ratios alone count
        found = CumulativeBCELoss(factor * weight)(logits, grades)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_weights_under_autocast():
    logits, grades = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5
    weighted = CumulativeBCELoss(torch.tensor([1.0, 2.0, 3.0, 4.0, 0.001], dtype=torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = weighted(logits, grades)
    assert loss.dtype == torch.float32 and loss == weighted(logits, grades)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_weights_of_short_integers(dtype):
    losses, weight, grades = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2.0, 5.0, 3.0]), torch.tensor([0, 2, 2])
    assert weighted_mean(losses, weight, grades.to(dtype)).item() == (2 * 1 + 3 * 2 + 3 * 4) / 8  # exact in float32


def test_too_high_a_grade_has_the_weight_of_the_highest():
    # Elsewhere than on the CPU grades are not checked: this must not read beyond the weights.
    found = weighted_mean(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), torch.tensor([0, 9]))
    assert found.item() == (1 * 1 + 2 * 3) / 4


@pytest.mark.parametrize(
    "weight",
    [
        [1.0, 2.0],
        torch.ones(2, 2),
        torch.tensor([1.0, 0.0]),
        torch.tensor([1.0, -1.0]),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1.0, float("inf")]),
    ],
)
def test_weights_that_are_none(weight):
    with pytest.raises(ValueError, match="weight must be a tensor of a positive number for each grade, got"):
        CumulativeBCELoss(weight)


def test_other_number_of_weights():
    with pytest.raises(ValueError, match="expected a weight for each of 3 grades, got 2"):
        CumulativeBCELoss(torch.ones(2))(torch.zeros(1, 3), torch.tensor([0]))
