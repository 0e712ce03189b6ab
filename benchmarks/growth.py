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


"""How the cost of training grows: images, image side, features, batch and processes, one at a time.

    python benchmarks/growth.py --output growth.json --plot growth.png

From a step of 16 drawn photographs at 64 px with 16 features in the first level, on one thread. Each curve is fitted by
``seconds = a * size ** exponent``; the seconds are of an epoch for images, of an image for batch and processes (all
sharing a batch of 16, each with a thread of its own), of a step for the others. Medians of --repeats steps, the sizes
of a curve in turns.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import interleaved, parser, spread, write
from step import build, conrec_step, make_trainer

from conrec_monai.data import CachedImages, phantom_arrays
from conrec_monai.engines import ConRecTrainer
from conrec_monai.utils import end_processes

BASE = {"images": 16, "side": 64, "features": 16, "batch": 16}
CURVES: dict[str, tuple[int, ...]] = {
    "images": (16, 32, 64, 128),
    "side": (32, 64, 96, 128, 160),
    "features": (8, 16, 32, 64),
    "batch": (4, 8, 16, 32, 64),
}
LABELS = {
    "images": ("images", "seconds an epoch"),
    "side": ("pixels a side", "seconds a step"),
    "features": ("features of the first level", "seconds a step"),
    "batch": ("images of a batch", "seconds an image"),
    "processes": ("processes", "seconds an image"),
}


def photographs(count: int, side: int, seed: int) -> CachedImages:
    arrays, _ = phantom_arrays(count, side, seed)
    return CachedImages([{"image": array} for array in arrays], side, progress=False).load()


def step(curve: str, size: int, seed: int) -> tuple[Callable[[], object], float]:
    """What is timed, and what its seconds are divided by."""
    setting = {**BASE, curve: size}
    images = photographs(max(setting["images"], setting["batch"]), setting["side"], seed)
    if curve == "images":
        trainer = make_trainer(build(setting["features"], seed), images, setting["side"], setting["batch"], seed)
        return lambda: _epoch(trainer), 1.0
    once = conrec_step(images, setting["side"], setting["features"], setting["batch"], seed)
    return once, float(size) if curve == "batch" else 1.0


def _epoch(trainer: ConRecTrainer) -> None:
    for batch in trainer.data_loader:
        trainer.state.output = trainer._iteration(trainer, batch)
        trainer._count(trainer)


def measure(curve: str, sizes: Sequence[int], repeats: int, seed: int) -> dict[str, Any]:
    """One curve."""
    made = {str(size): step(curve, size, seed) for size in sizes}
    times = interleaved({name: function for name, (function, _) in made.items()}, repeats)
    return fitted(curve, {int(name): [s / made[name][1] for s in seconds] for name, seconds in times.items()})


def fitted(curve: str, seconds: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    """The medians of a curve and its exponent by least squares in logarithms."""
    medians = {size: spread(values) for size, values in seconds.items()}
    x, y = np.log(list(medians)), np.log([m["median"] for m in medians.values()])
    exponent, offset = np.polyfit(x, y, 1)
    residual = float(np.abs(y - exponent * x - offset).max())
    return {
        "curve": curve,
        "seconds": {str(size): found for size, found in medians.items()},
        "exponent": float(exponent),
        "factor": float(np.exp(offset)),
        "largest_residual": float(np.expm1(residual)),
    }


def _process(rank: int, world: int, folder: str, repeats: int, seed: int, side: int, features: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    network = build(features, seed).to(memory_format=torch.channels_last)
    trainer = make_trainer(
        torch.nn.parallel.DistributedDataParallel(network),
        photographs(BASE["batch"], side, seed),
        side,
        BASE["batch"],
        seed,
        rank,
        world,
    )
    seconds = []
    for number in range(-2, repeats):
        dist.barrier()
        start = time.perf_counter()
        _epoch(trainer)
        dist.barrier()
        if number >= 0:
            seconds.append((time.perf_counter() - start) / BASE["batch"])
    if not rank:
        np.save(Path(folder) / f"{world}.npy", seconds)
    end_processes()


def measure_processes(
    counts: Sequence[int], repeats: int, seed: int, side: int = BASE["side"], features: int = BASE["features"]
) -> dict[str, Any]:
    """Seconds an image where processes share a batch."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for world in counts:
            mp.spawn(_process, (world, folder, repeats, seed, side, features), world)
            found[world] = np.load(Path(folder) / f"{world}.npy").tolist()
    return fitted("processes", found)


def plot(results: Sequence[Mapping[str, Any]], path: str) -> None:
    """The curves, with logarithmic axes and the fitted lines."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator

    figure = Figure(figsize=(3.1 * len(results), 3.2), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(results)), results, strict=True):
        sizes = np.array(sorted(map(int, result["seconds"])))
        found = [result["seconds"][str(size)] for size in sizes]
        middle = np.array([f["median"] for f in found])
        bars = [middle - [f["low"] for f in found], [f["high"] for f in found] - middle]
        line = result["factor"] * sizes.astype(float) ** result["exponent"]
        axes.plot(sizes, line, color="#777777", linewidth=1)
        axes.errorbar(sizes, middle, bars, fmt="o", color="#0b5fa5", markersize=5, capsize=2, linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sizes, map(str, sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        low, high = middle.min(), middle.max()
        ticks = [t for e in range(-6, 4) for t in np.array([1, 2, 3, 5, 7]) * 10.0**e if 0.8 * low <= t <= 1.25 * high]
        if len(ticks) < 3:
            ticks = [float(f"{t:.2g}") for t in np.geomspace(low, high, 3)]
        axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
        axes.set_xlabel(LABELS[result["curve"]][0])
        axes.set_ylabel(LABELS[result["curve"]][1])
        axes.set_title(f"exponent {result['exponent']:.2f}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(__doc__, repeats=7)
    options.add_argument("--plot", metavar="FILE", help="picture of the curves (needs matplotlib)")
    for name, sizes in CURVES.items():
        options.add_argument(f"--{name}", type=int, nargs="+", default=list(sizes), help="(default %(default)s)")
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="(default %(default)s)")
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    results = []
    for name in (*CURVES, "processes"):
        sizes = getattr(args, name)
        if name == "processes":
            result = measure_processes(sizes, args.repeats, args.seed)
        else:
            result = measure(name, sizes, args.repeats, args.seed)
        results.append(result)
        medians = ", ".join(f"{size}: {found['median']:.4g}" for size, found in result["seconds"].items())
        print(f"{name}, {LABELS[name][1]}: {medians}; exponent {result['exponent']:.2f}", flush=True)
    write(args.output, "growth", arguments, vars(args), results)
    if args.plot:
        plot(results, args.plot)
    return results


if __name__ == "__main__":
    main()
