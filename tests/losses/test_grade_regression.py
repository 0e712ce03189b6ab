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
from hypothesis import given, settings
from hypothesis import strategies as st

from conrec_monai.losses import GradeRegressionLoss


def test_by_hand():
    outputs, grades = torch.tensor([[1.5], [-1.0], [3.0]]), torch.tensor([1, 0, 2])
    assert GradeRegressionLoss(3)(outputs, grades).item() == (0.25 + 1 + 1) / 3
    weighted = GradeRegressionLoss(3, torch.tensor([2.0, 8.0, 6.0]))
    assert weighted(outputs, grades).item() == (8 * 0.25 + 2 * 1 + 6 * 1) / 16
    assert not weighted.state_dict()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), n=st.integers(1, 9), k=st.integers(2, 6))
def test_gradient(seed, n, k):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, 1, generator=generator, requires_grad=True)
    grades = torch.randint(k, (n,), generator=generator)
    weight = torch.rand(k, generator=generator) + 0.1
    for loss, weights in ((GradeRegressionLoss(k), torch.ones(n)), (GradeRegressionLoss(k, weight), weight[grades])):
        (gradient,) = torch.autograd.grad(loss(outputs, grades), outputs)
        expected = 2 * weights * (outputs.detach()[:, 0] - grades) / weights.sum()
        torch.testing.assert_close(gradient, expected[:, None], rtol=1e-5, atol=1e-6)


def test_float32_under_autocast():
    outputs, grades = torch.randn(8, 1, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = GradeRegressionLoss(5)(outputs, grades)
        half = GradeRegressionLoss(5)(outputs.bfloat16(), grades)
    assert loss.dtype == half.dtype == torch.float32 and loss == GradeRegressionLoss(5)(outputs, grades)
    assert half.item() == pytest.approx(loss.item(), rel=0.02)


def test_uint8_grades():
    outputs = torch.tensor([[-2.0], [1.0]])  # a difference below 0, that an unsigned number cannot hold
    assert GradeRegressionLoss(5)(outputs, torch.tensor([0, 4], dtype=torch.uint8)).item() == (4 + 9) / 2


@pytest.mark.parametrize(
    ("outputs", "grades", "message"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), r"outputs B1 and grades B, got shapes \[3\] and \[3\]"),
        (torch.zeros(3, 1), torch.zeros(2, dtype=torch.int64), r"got shapes \[3, 1\] and \[2\]"),
        (torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64), r"got shapes \[0, 1\] and \[0\]"),
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), r"expected outputs B1, got shape \[3, 5\]"),
        (torch.zeros(3, 1), torch.zeros(3), "grades must be integers, got torch.float32"),
        (torch.zeros(2, 1), torch.tensor([0, 5]), r"grades must be in 0\.\.4, found 0 to 5"),
        (torch.zeros(2, 1), torch.tensor([-1, 2]), r"grades must be in 0\.\.4, found -1 to 2"),
    ],
)
def test_errors(outputs, grades, message):
    with pytest.raises(ValueError, match=message):
        GradeRegressionLoss(5)(outputs, grades)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, 2.0], "weight must be a tensor of a positive number for each grade, got"),
        (torch.tensor([1.0, 0.0]), "weight must be a tensor of a positive number for each grade, got"),
        (torch.ones(3), "expected a weight for each of 2 grades, got 3"),
    ],
)
def test_weights_that_are_none(weight, message):
    with pytest.raises(ValueError, match=message):
        GradeRegressionLoss(2, weight)
