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

import numpy as np
import pytest
import torch
from torch import nn

from conrec_monai.optimizers import LARS, lars_param_groups

NAMES = (
    "conv/kernel",
    "conv/bias",
    "batch_normalization/gamma",
    "batch_normalization/beta",
    "dense/kernel",
    "zero/kernel",
)


@pytest.mark.parametrize("nesterov", [False, True])
def test_published_steps(oracles, nesterov):
    z = np.load(oracles / f"lars_{'nesterov' if nesterov else 'default'}.npz")
    params = {name: nn.Parameter(torch.tensor(z[f"init/{name}"])) for name in NAMES}
    optimizer = LARS(
        [
            {"params": [params[n] for n in NAMES if n.endswith("kernel")]},
            {
                "params": [params[n] for n in NAMES if not n.endswith("kernel")],
                "weight_decay": 0.0,
                "trust_coefficient": None,
            },
        ],
        lr=1.0,
        momentum=float(z["momentum"]),
        weight_decay=float(z["weight_decay"]),
        trust_coefficient=float(z["eta"]),
        nesterov=nesterov,
    )
    assert len(z["learning_rates"]) == 30
    for step, lr in enumerate(z["learning_rates"]):
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        for name in NAMES:
            params[name].grad = torch.tensor(z[f"grads/{name}"][step])
        optimizer.step()
        for name in NAMES:
            np.testing.assert_allclose(
                params[name].detach().numpy(), z[f"trace/{name}"][step], rtol=1e-5, atol=1e-6, err_msg=f"{name} {step}"
            )


def test_hand_computed():
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = LARS([w], lr=0.1, momentum=0.5, weight_decay=0.0, trust_coefficient=0.01)
    w.grad = torch.tensor([[0.0, 2.0]])
    optimizer.step()  # ratio = 0.01 * 5 / 2, update = 0.1 * 0.025 * 2 = 0.005
    torch.testing.assert_close(w.data, torch.tensor([[3.0, 3.995]]))
    torch.testing.assert_close(w.grad, torch.tensor([[0.0, 2.0]]))  # the gradient is not changed


def test_state_dict_round_trip_is_exact(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    twin = copy.deepcopy(net)
    optimizer = LARS(lars_param_groups(net), lr=0.3)
    x = torch.rand(5, 4, 3, 8, 8)

    def step(module, opt, batch):
        opt.zero_grad()
        module(batch).square().mean().backward()
        opt.step()

    for batch in x[:3]:
        step(net, optimizer, batch)
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    twin.load_state_dict(state["net"])
    resumed = LARS(lars_param_groups(twin), lr=0.1)
    resumed.load_state_dict(state["optimizer"])
    for batch in x[3:]:
        step(net, optimizer, batch)
        step(twin, resumed, batch)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_param_groups():
    net = nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "head": nn.Linear(4, 2)})
    adapted, excluded = lars_param_groups(net, weight_decay=5e-4, head="head")
    assert adapted["weight_decay"] == 5e-4 and [p.shape for p in adapted["params"]] == [(4, 3, 3, 3)]
    assert excluded["weight_decay"] == 0 and excluded["trust_coefficient"] is None
    assert [tuple(p.shape) for p in excluded["params"]] == [(4,), (4,), (4,), (2, 4), (2,)]
    net["body"][0].weight.requires_grad_(False)
    assert lars_param_groups(net)[0]["params"] == [net["head"].weight]
    with pytest.raises(ValueError, match="no parameter of ModuleDict is named 'classifier'"):
        lars_param_groups(net, head="classifier")


@pytest.mark.parametrize(
    ("argument", "value"), [("lr", -1), ("momentum", 1.0), ("weight_decay", -1e-4), ("trust_coefficient", 0)]
)
def test_errors(argument, value):
    with pytest.raises(ValueError, match=argument):
        LARS([nn.Parameter(torch.ones(2))], **{"lr": 0.1, argument: value})
