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

"""Time and memory of NTXentLoss, forward and backward, against monai.losses.ContrastiveLoss.

    python benchmarks/nt_xent.py --output nt_xent.json

2B embeddings of F = 128 numbers, float32, temperature 0.5. MONAI's loss holds all products before it sums them to
similarities, (2B)^2 F numbers, and some 6 such arrays at once. It is left out where these are more than 3/4 of this
machine's memory. With the default sizes it takes 12 GiB and most of the time.

Memory: each loss at each size runs in a process of its own. It calls the loss once on 4 embeddings, sets the kernel's
mark of the largest resident set (VmHWM, in kB of 1024 bytes) back to what the process holds now, with its embeddings,
and calls the loss on these. The rise of the mark is the loss's own memory, with the gradients of the embeddings; below
some MiB it is code that is used for the first time. (ru_maxrss is the same mark, but a child starts with that of its
parent.) Where the mark cannot be set back, the rise is a lower bound.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import interleaved, parser, ratio, spread, write
from monai.losses import ContrastiveLoss

from conrec_monai.losses import NTXentLoss

FEATURES = 128
TEMPERATURE = 0.5
ARRAYS = 6  # of (2B)^2 F numbers that MONAI's loss needs at once, about
SHARE = 0.75  # of the memory of the machine
LOSSES: dict[str, Callable[[], torch.nn.Module]] = {
    "conrec_monai": lambda: NTXentLoss(TEMPERATURE),
    "monai": lambda: ContrastiveLoss(TEMPERATURE),
}


def embeddings(views: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both views, [B, F] each, B half of ``views``."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, views // 2, FEATURES, generator=generator)
    return first.requires_grad_(), second.requires_grad_()


def run(loss: torch.nn.Module, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Forward and backward."""
    for view in pair:
        view.grad = None
    value = loss(*pair)
    value.backward()
    return value.detach()


def resident(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, field
    return 1024 * int(found[1])


def own_memory(name: str, views: int, seed: int) -> int:
    """Bytes that the loss adds to the resident set of this process, at its peak."""
    loss, pair = LOSSES[name](), embeddings(views, seed)
    run(loss, embeddings(4, seed))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmHWM")
    run(loss, pair)
    return resident("VmHWM") - before


def memory_of(name: str, views: int, seed: int, threads: int) -> int:
    """:func:`own_memory` in a process of its own."""
    options = ["--memory-of", name, "--sizes", str(views), "--seed", str(seed), "--threads", str(threads)]
    done = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def reason_against(views: int) -> str | None:
    """Why MONAI's loss is not run at a size; None where it is."""
    needed = ARRAYS * views**2 * FEATURES * 4
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed <= SHARE * total:
        return None
    return f"needs about {needed / 2**30:.1f} GiB, more than {SHARE:.0%} of {total / 2**30:.1f} GiB"


def measure(views: int, repeats: int, seed: int, threads: int) -> dict[str, Any]:
    """What one size takes."""
    reason = reason_against(views)
    names = [name for name in LOSSES if name != "monai" or reason is None]
    memory = {name: memory_of(name, views, seed, threads) for name in names}
    losses, pair = {name: LOSSES[name]() for name in names}, embeddings(views, seed)
    values = {name: run(loss, pair).item() for name, loss in losses.items()}
    if reason is None:  # both are means over the 2B rows
        assert abs(values["monai"] - values["conrec_monai"]) < 1e-5, f"the losses differ: {values}"
    times = interleaved({name: partial(run, loss, pair) for name, loss in losses.items()}, repeats)
    return {
        "views": views,
        "loss": values["conrec_monai"],
        "seconds": {name: spread(times[name]) if name in times else None for name in LOSSES},
        "bytes": {name: memory.get(name) for name in LOSSES},
        "monai_over_conrec_monai": None
        if reason
        else {
            "seconds": ratio(times, "monai", "conrec_monai"),
            "bytes": memory["monai"] / max(memory["conrec_monai"], 1),
        },
        "monai_left_out": reason,
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]] | None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(__doc__, repeats=10)
    sizes = [256 * 2**k for k in range(7)]
    options.add_argument("--sizes", type=int, nargs="+", default=sizes, help="2B, even, from 4 (default %(default)s)")
    options.add_argument("--memory-of", choices=LOSSES, help=argparse.SUPPRESS)
    args = options.parse_args(arguments)
    if min(args.sizes) < 4 or any(size % 2 for size in args.sizes):
        options.error(f"--sizes must be even and at least 4, got {args.sizes}")
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(own_memory(args.memory_of, args.sizes[0], args.seed))
        return None
    results = []
    for views in args.sizes:
        results.append(measure(views, args.repeats, args.seed, args.threads))
        shown = [
            f"{name} {1e3 * taken['median']:.1f} ms, {results[-1]['bytes'][name] / 2**20:.1f} MiB"
            if taken
            else f"{name} left out"
            for name, taken in results[-1]["seconds"].items()
        ]
        print(f"2B = {views}: {'; '.join(shown)}", flush=True)
    settings = {name: value for name, value in vars(args).items() if name != "memory_of"}
    settings |= {"features": FEATURES, "temperature": TEMPERATURE, "dtype": "float32"}
    write(args.output, "nt_xent", arguments, settings, results)
    return results


if __name__ == "__main__":
    main()
