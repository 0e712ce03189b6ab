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


"""What compilation and gradient checkpointing cost on this machine, and what they save.

    python benchmarks/options.py --threads 2 --output options.json

The forward and backward pass of the network (the bare step of benchmarks/step.py) as it is, compiled by
:func:`torch.compile` (needs a C++ compiler; the seconds of its first step are given apart), and with
``gradient_checkpointing``; and the bytes that the forward pass keeps for the backward pass.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from common import interleaved, parser, ratio, spread, write
from step import build, step_of
from torch import Tensor, nn

from conrec_monai.engines import bfloat16_is_fast


def kept_bytes(network: nn.Module, size: int, batch: int, amp: bool) -> int:
    """Bytes of all tensors that a forward pass keeps, each memory once, without the network's weights."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no memory is used twice

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    x = torch.rand(2 * batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=amp),
    ):
        network(x)
    return sum(kept.values())


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(__doc__, repeats=15)
    options.add_argument("--size", type=int, default=64, help="pixels a side (default %(default)s)")
    options.add_argument("--features", type=int, default=16, help="of the first level (default %(default)s)")
    options.add_argument("--batch", type=int, default=16, help="images of a step (default %(default)s)")
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    amp = bfloat16_is_fast(torch.device("cpu"))
    networks = {
        name: build(args.features, args.seed, name == "recomputed").to(memory_format=torch.channels_last).train()
        for name in ("eager", "compiled", "recomputed")
    }
    kept = {name: kept_bytes(networks[name], args.size, args.batch, amp) for name in ("eager", "recomputed")}
    networks["compiled"] = torch.compile(networks["compiled"])  # type: ignore[assignment]
    steps = {name: step_of(network, args.size, args.batch, amp) for name, network in networks.items()}
    start = time.perf_counter()
    steps["compiled"]()
    first = time.perf_counter() - start
    times = interleaved(steps, args.repeats, warmup=2)
    result = {
        "bfloat16": amp,
        "seconds": {name: spread(seconds) for name, seconds in times.items()},
        "first_compiled_step": first,
        "kept_bytes": kept,
        "compiled_over_eager": ratio(times, "compiled", "eager"),
        "recomputed_over_eager": ratio(times, "recomputed", "eager"),
    }
    for name, seconds in times.items():
        print(f"{name}: {1e3 * spread(seconds)['median']:.1f} ms", flush=True)
    print(f"compiling took {first:.0f} s; kept: {', '.join(f'{n} {b / 2**20:.1f} MiB' for n, b in kept.items())}")
    write(args.output, "options", arguments, vars(args), result)
    return result


if __name__ == "__main__":
    main()
