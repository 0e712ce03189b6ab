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

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import EmbeddingCollapseMetric

from conrec_monai.metrics import attention_entropy, effective_rank, embedding_std


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- embedding_std ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("embeddings", "expected"),
    [
        ([[2.0, 0.0], [-3.0, 0.0]], 1.0),  # no common direction
        ([[5.0, 0.0], [0.0, 0.1]], math.sqrt(1 / 2)),  # mean (1/2, 1/2) after normalization
        ([[1.0, 1.0], [3.0, 3.0], [7.0, 7.0]], 0.0),  # one direction, whatever the length
        ([[0.0, 0.0], [0.0, 4.0]], 1 / 2),  # zeros stay: variance 1/4 in one coordinate
        ([[0.0, 0.0], [0.0, 0.0]], 0.0),
    ],
)
def test_std_by_hand(embeddings: list, expected: float) -> None:
    assert embedding_std(torch.tensor(embeddings)) == pytest.approx(expected, abs=1e-7)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 20), st.integers(1, 10), st.integers(0, 99))
def test_std_and_mean_cosine_similarity(n: int, width: int, seed: int) -> None:
    x = normal(n, width, seed=seed) + 1
    cosines = torch.nn.functional.cosine_similarity(x[:, None].double(), x[None].double(), dim=2)
    assert embedding_std(x) ** 2 == pytest.approx(1 - float(cosines.mean()), abs=1e-6)


@pytest.mark.parametrize("width", [8, 512])
def test_std_of_a_uniform_spread_is_1_at_any_width(width: int) -> None:
    assert embedding_std(normal(2000, width)) == pytest.approx(1, abs=0.01)


# --- effective_rank ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b", "expected"), [(1, 1, 2.0), (3, 1, 1.7547653506), (5, 0, 1.0)])
def test_rank_by_hand(a: float, b: float, expected: float) -> None:
    # Singular values a and b, times sqrt(2); the second: exp(-(3/4 log 3/4 + 1/4 log 1/4)).
    x = torch.tensor([[a, 0, 0], [-a, 0, 0], [0, b, 0], [0, -b, 0]], dtype=torch.float32)
    assert effective_rank(x) == pytest.approx(expected, rel=1e-6)
    assert effective_rank(100 * x + 7) == pytest.approx(expected, rel=1e-4)


def test_rank_is_that_of_monai() -> None:
    for shape in ((40, 8), (10, 30)):
        x = normal(*shape) * torch.linspace(0.1, 2, shape[1]) + 3
        score = EmbeddingCollapseMetric()(x)["effective_rank_score"]
        assert effective_rank(x) == pytest.approx((1 - float(score)) * min(shape[0] - 1, shape[1]), rel=1e-4)


def test_rounding_noise_has_no_rank() -> None:
    x = (normal(1, 16) + 5).expand(64, 16) * (1 + 1e-7 * normal(64, 16, seed=1))
    assert not torch.equal(x[0], x[1])
    assert effective_rank(x) == 0 and embedding_std(x) < 1e-5
    assert EmbeddingCollapseMetric()(x)["effective_rank_score"] < 0.2  # all is well, says MONAI's
    assert effective_rank(torch.zeros(3, 4)) == 0


# --- attention_entropy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ([[0.3, 0.3], [0.3, 0.3]], 1.0),
        ([[0.0, 0.9], [0.0, 0.0]], 0.0),
        ([[0.2, 0.2], [0.0, 0.0]], 0.5),  # log 2 / log 4
        ([[0.0, 0.0], [0.0, 0.0]], 1.0),
    ],
)
def test_entropy_by_hand(maps: list, expected: float) -> None:
    assert attention_entropy(torch.tensor(maps)[None, None]) == pytest.approx(expected, abs=1e-7)


def test_entropy_is_the_mean_over_maps() -> None:
    maps = torch.zeros(2, 1, 1, 4)
    maps[0] = 0.5
    maps[1, 0, 0, 2] = 0.01
    assert attention_entropy(maps) == pytest.approx(0.5)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [embedding_std, effective_rank])
def test_embeddings_that_are_none(metric: object) -> None:
    for shape in ((4,), (1, 4), (3, 0), (2, 3, 4)):
        with pytest.raises(ValueError, match=r"expected embeddings \[N, F\] with N >= 2"):
            metric(torch.zeros(*shape))  # type: ignore[operator]
    x = normal(5, 3)
    x[1, 2], x[4, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="2 of 5 embeddings are not finite"):
        metric(x)  # type: ignore[operator]


def test_maps_that_are_none() -> None:
    for shape in ((2, 4, 4), (2, 3, 4, 4), (0, 1, 4, 4), (2, 1, 1, 1)):
        with pytest.raises(ValueError, match="expected attention maps B1HW"):
            attention_entropy(torch.zeros(*shape))
    for value in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="not negative"):
            attention_entropy(torch.full((1, 1, 2, 2), value))
