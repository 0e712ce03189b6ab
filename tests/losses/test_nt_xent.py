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
from monai.losses import ContrastiveLoss
from torch.utils._python_dispatch import TorchDispatchMode

from conrec_monai.losses import NTXentLoss
from conrec_monai.metrics import contrastive_accuracy_entropy


@pytest.mark.parametrize("case", range(6))
def test_published_loss_gradient_and_metrics(oracles, case):
    z = np.load(oracles / "nt_xent.npz")
    hidden = torch.tensor(z[f"hidden_{case}"], requires_grad=True)
    temperature = float(z[f"temperature_{case}"])
    first, second = hidden.chunk(2)
    loss = 2 * NTXentLoss(temperature)(first, second)  # the published loss is the sum of the two directions
    np.testing.assert_allclose(loss.item(), z[f"loss_{case}"], rtol=1e-5)
    loss.backward()
    expected = z[f"grad_{case}"]
    np.testing.assert_allclose(hidden.grad.numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    accuracy, entropy = contrastive_accuracy_entropy(first, second, temperature)
    np.testing.assert_allclose(accuracy.item(), z[f"contrastive_accuracy_{case}"], rtol=1e-5)
    np.testing.assert_allclose(entropy.item(), z[f"contrastive_entropy_{case}"], rtol=1e-5, atol=1e-6)


def test_hand_computed():
    # z = e1, e2 | e1, e2: the positive has similarity 1, both negatives 0, at temperature 1.
    eye = torch.eye(2)
    assert NTXentLoss(1.0)(eye, 3 * eye).item() == pytest.approx(math.log(1 + 2 / math.e), rel=1e-6)


def test_small_temperature_is_finite_and_right():
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    y = torch.randn(8, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    embeddings = torch.nn.functional.normalize(torch.cat([x, y]).double())
    logits = (embeddings @ embeddings.T / 0.01).fill_diagonal_(-math.inf)
    expected = -logits.log_softmax(1)[range(16), [*range(8, 16), *range(8)]].mean()
    assert NTXentLoss(0.01)(x, y).item() == pytest.approx(expected.item(), rel=1e-4)


def test_equals_monai_where_monai_is_right():
    x, y = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(NTXentLoss(0.5)(x, y), ContrastiveLoss(temperature=0.5)(x, y))


class _LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_memory_is_quadratic_in_the_batch():
    x, y = torch.randn(2, 64, 100, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind()
    with _LargestTensor() as largest:
        NTXentLoss()(x, y).backward()
    assert largest.numel == 128 * 128  # and not 128 * 128 * 100


def test_float32_under_autocast():
    x, y = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = NTXentLoss()(x.bfloat16(), y.bfloat16())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, NTXentLoss()(x.bfloat16().float(), y.bfloat16().float()))


@settings(deadline=None, max_examples=25)
@given(batch=st.integers(2, 9), features=st.integers(1, 9), seed=st.integers(0, 99), scale=st.floats(0.01, 100))
def test_symmetric_scale_free_permutation_invariant(batch, features, seed, scale):
    x, y = torch.randn(2, batch, features, generator=torch.Generator().manual_seed(seed))
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    loss = NTXentLoss(0.3)(x, y)
    for other in (NTXentLoss(0.3)(y, x), NTXentLoss(0.3)(scale * x, y), NTXentLoss(0.3)(x[order], y[order])):
        torch.testing.assert_close(other, loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        NTXentLoss(temperature)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [((4, 3), (5, 3), "B\\[F\\]"), ((4,), (4,), "B\\[F\\]"), ((1, 3), (1, 3), "at least 2")],
)
def test_bad_shapes(first, second, message):
    with pytest.raises(ValueError, match=message):
        NTXentLoss()(torch.ones(first), torch.ones(second))
