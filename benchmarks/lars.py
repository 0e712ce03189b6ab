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

"""One step of LARS, against the same rule as a plain loop and against SGD, which does less.

    python benchmarks/lars.py --output lars.json

The parameters are those of ConRecUNet, the gradients are drawn once. "plain" updates one parameter after the other by
the same rule: it must leave the same weights after 3 steps, which is checked first. "sgd" is ``torch.optim.SGD`` with
momentum, weight decay and multi-tensor operations: without norms and ratios, a lower bound and no alternative.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from common import interleaved, parser, ratio, spread, write
from torch import nn
from torch.optim import SGD, Optimizer

from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.optimizers import LARS, lars_param_groups

SETTINGS: dict[str, Any] = {"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-4}
TRUST = 0.001


class PlainLARS:
    """The rule of :class:`conrec_monai.optimizers.LARS`, without Nesterov momentum, one parameter after the other."""

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, momentum: float, weight_decay: float) -> None:
        self.groups = [
            {"weight_decay": weight_decay, "trust_coefficient": TRUST, **group, "params": list(group["params"])}
            for group in groups
        ]
        self.lr, self.momentum = lr, momentum
        self.buffers = {p: torch.zeros_like(p) for group in self.groups for p in group["params"]}

    @torch.no_grad()
    def step(self) -> None:
        for group in self.groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad + group["weight_decay"] * p
                if group["trust_coefficient"] is not None:
                    weight_norm, update_norm = torch.linalg.vector_norm(p), torch.linalg.vector_norm(update)
                    if weight_norm > 0 and update_norm > 0:
                        update *= group["trust_coefficient"] * weight_norm / update_norm
                self.buffers[p].mul_(self.momentum).add_(update, alpha=self.lr)
                p.sub_(self.buffers[p])


def network(features: int, seed: int) -> ConRecUNet:
    """A U-net with ``features`` channels in the first of four levels, and gradients."""
    torch.manual_seed(seed)
    net = ConRecUNet(features=[features * 2**level for level in range(4)])
    for p in net.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return net


def optimizer(name: str, net: nn.Module) -> Optimizer | PlainLARS:
    """One of "lars", "plain" and "sgd"."""
    if name == "sgd":
        return SGD(net.parameters(), foreach=True, **SETTINGS)
    groups = lars_param_groups(net, SETTINGS["weight_decay"])
    return LARS(groups, trust_coefficient=TRUST, **SETTINGS) if name == "lars" else PlainLARS(groups, **SETTINGS)


def check(features: int, seed: int, steps: int = 3) -> float:
    """The largest difference between the weights that "lars" and "plain" leave.

    Raises:
        AssertionError: when it is more than rounding.
    """
    nets = []
    for name in ("lars", "plain"):
        nets.append(network(features, seed))
        chosen = optimizer(name, nets[-1])
        for _ in range(steps):
            chosen.step()
    pairs = list(zip(*(net.parameters() for net in nets), strict=True))
    torch.testing.assert_close([a for a, _ in pairs], [b for _, b in pairs], rtol=1e-5, atol=1e-7)
    return max((a - b).abs().max().item() for a, b in pairs)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(__doc__, repeats=50)
    options.add_argument("--features", type=int, nargs="+", default=[16, 64], help="channels of the first level")
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    results = []
    for features in args.features:
        difference = check(features, args.seed)
        optimizers = {name: optimizer(name, network(features, args.seed)) for name in ("lars", "plain", "sgd")}
        times = interleaved({name: chosen.step for name, chosen in optimizers.items()}, args.repeats, warmup=3)
        parameters = list(network(features, args.seed).parameters())
        results.append(
            {
                "features": features,
                "tensors": len(parameters),
                "parameters": sum(p.numel() for p in parameters),
                "largest_difference": difference,
                "seconds": {name: spread(values) for name, values in times.items()},
                "plain_over_lars": ratio(times, "plain", "lars"),
                "lars_over_sgd": ratio(times, "lars", "sgd"),
            }
        )
        shown = ", ".join(f"{name} {1e3 * spread(values)['median']:.3f} ms" for name, values in times.items())
        print(f"features {features} ({len(parameters)} tensors): {shown}", flush=True)
    write(args.output, "lars", arguments, vars(args) | SETTINGS | {"trust_coefficient": TRUST}, results)
    return results


if __name__ == "__main__":
    main()
