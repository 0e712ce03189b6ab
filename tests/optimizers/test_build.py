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
from torch import nn

from conrec_monai.optimizers import (
    LARS,
    OPTIMIZERS,
    SCHEDULES,
    build_optimizer,
    build_schedule,
    default_learning_rate,
)


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def rates(name: str, epoch_length: int, max_epochs: int) -> list[float]:
    """The learning rate of each iteration, for a base rate of 0.5."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = build_schedule(name, optimizer, epoch_length, max_epochs)
    found = []
    for _ in range(epoch_length * max_epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("name", "batch_size", "expected"),
    [("lars", 16, 0.3), ("sgd", 64, 0.6), ("lars", 2, 0.075 * math.sqrt(2)), ("adam", 16, 1e-3), ("adamw", 64, 1e-3)],
)
def test_default_learning_rate(name: str, batch_size: int, expected: float) -> None:
    assert default_learning_rate(name, batch_size) == pytest.approx(expected, rel=1e-12)


def test_lars(network: nn.Module) -> None:
    optimizer = build_optimizer("lars", network, 0.3)
    assert type(optimizer) is LARS
    adapted, excluded = optimizer.param_groups
    assert [p.shape for p in adapted["params"]] == [(3, 2)]
    assert [p.shape for p in excluded["params"]] == [(3,)] * 3  # bias, and the two of the norm
    assert (adapted["lr"], adapted["momentum"], adapted["weight_decay"]) == (0.3, 0.9, 1e-4)
    assert (excluded["lr"], excluded["momentum"], excluded["weight_decay"]) == (0.3, 0.9, 0.0)
    assert (adapted["trust_coefficient"], excluded["trust_coefficient"]) == (0.001, None)
    assert not adapted["nesterov"]


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999)}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999)}),
    ],
)
def test_others(name: str, kind: type, more: dict[str, object], network: nn.Module) -> None:
    optimizer = build_optimizer(name, network, 0.02)
    assert type(optimizer) is kind and len(optimizer.param_groups) == 1
    group = optimizer.param_groups[0]
    assert group["params"] == list(network.parameters())
    assert {key: group[key] for key in ("lr", "weight_decay", *more)} == {"lr": 0.02, "weight_decay": 1e-4, **more}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves_every_parameter(name: str, network: nn.Module) -> None:
    optimizer = build_optimizer(name, network, 0.1, weight_decay=0.05)
    assert optimizer.param_groups[0]["weight_decay"] == 0.05
    before = [p.detach().clone() for p in network.parameters()]
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all((p < b).all() for p, b in zip(network.parameters(), before, strict=True))


def test_constant() -> None:
    assert rates("constant", 3, 4) == [0.5] * 12


def test_warmup_cosine_of_a_short_run() -> None:
    found = rates("warmup_cosine", 4, 5)  # 20 iterations, the first tenth is 2
    expected = [0.0, 0.25] + [0.25 * (1 + math.cos(math.pi * i / 18)) for i in range(18)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_warmup_cosine_of_a_long_run() -> None:
    found = rates("warmup_cosine", 2, 200)  # the warm-up takes 10 epochs, not 20
    assert found[:21] == pytest.approx([0.5 * i / 20 for i in range(21)], abs=1e-12)
    assert max(found) == found[20] == 0.5 and 0 < found[-1] < 1e-5


def test_warmup_cosine_of_a_tiny_run() -> None:
    assert rates("warmup_cosine", 1, 3) == pytest.approx([0.5, 0.375, 0.125])  # less than ten iterations: no warm-up


@pytest.mark.parametrize("name", ["LARS", "rmsprop", "", None])
def test_unknown_optimizer(name: str, network: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"optimizer must be one of lars, sgd, adam, adamw, got {name!r}\."):
        build_optimizer(name, network, 0.1)


def test_unknown_schedule(network: nn.Module) -> None:
    assert SCHEDULES == ("constant", "warmup_cosine")
    with pytest.raises(ValueError, match=r"schedule must be one of constant, warmup_cosine, got 'step'\."):
        build_schedule("step", build_optimizer("sgd", network, 0.1), 1, 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_values_out_of_range(name: str, network: nn.Module) -> None:
    with pytest.raises(ValueError, match="-0.1"):
        build_optimizer(name, network, -0.1)
    with pytest.raises(ValueError, match="-1"):
        build_optimizer(name, network, 0.1, weight_decay=-1)


def classifier(freeze: bool = False) -> nn.ModuleDict:
    parts = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "head": nn.Linear(3, 4)})
    parts["encoder"].requires_grad_(not freeze)
    return parts


def shapes(group: dict) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in group["params"]]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_head_has_no_decay_and_a_rate_of_its_own(name: str) -> None:
    *others, head = build_optimizer(
        name, classifier(), 0.1, weight_decay=0.05, head="head", head_learning_rate=0.4
    ).param_groups
    assert shapes(head) == [(4, 3), (4,)] and (head["lr"], head["weight_decay"]) == (0.4, 0.0)
    assert [group["lr"] for group in others] == [0.1] * len(others) and others[0]["weight_decay"] == 0.05
    if name == "lars":
        assert [shapes(group) for group in others] == [[(3, 2)], [(3,)] * 3]
        assert head["trust_coefficient"] is None and others[1]["trust_coefficient"] is None
    else:
        assert [shapes(group) for group in others] == [[(3, 2), (3,), (3,), (3,)]]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_head_of_a_frozen_encoder_is_all(name: str) -> None:
    (group,) = build_optimizer(name, classifier(freeze=True), 0.1, head="head").param_groups
    assert shapes(group) == [(4, 3), (4,)] and (group["lr"], group["weight_decay"]) == (0.1, 0.0)


def test_schedule_keeps_the_ratio_of_the_rates() -> None:
    optimizer = build_optimizer("adam", classifier(), 0.1, head="head", head_learning_rate=0.4)
    schedule = build_schedule("warmup_cosine", optimizer, 4, 5)
    for _ in range(6):
        optimizer.step()
        schedule.step()
    encoder, head = (group["lr"] for group in optimizer.param_groups)
    assert 0 < encoder < 0.1 and head == pytest.approx(4 * encoder)


@pytest.mark.parametrize("name", ["lars", "adam"])
def test_head_errors(name: str) -> None:
    with pytest.raises(ValueError, match="no parameter of ModuleDict is named 'tail' or 'tail\\.\\*'"):
        build_optimizer(name, classifier(), 0.1, head="tail")
    with pytest.raises(ValueError, match="head_learning_rate 0.2 needs head"):
        build_optimizer(name, classifier(), 0.1, head_learning_rate=0.2)
    with pytest.raises(ValueError, match="ModuleDict has no parameter that needs a gradient"):
        build_optimizer(name, classifier().requires_grad_(False), 0.1)
