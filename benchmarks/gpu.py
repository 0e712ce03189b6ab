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


"""The check of a machine with an NVIDIA card: does it compute what the CPU does, how fast, and what holds it there.

    python benchmarks/gpu.py --output gpu.json

Needs torch, numpy and this package with monai and pytorch-ignite; a checkout need not be installed. ``--device cpu``
runs all of it at small sizes, without the numbers that a card alone has. The sections, each an entry of the results, of
which one that fails is ``{"failed": reason}``, and the others go on:

- correctness: the device against the CPU in float32 without TF32: the views of the same parameters, and from the CPU's
  views the network's outputs, the losses, the gradient and the first update of LARS for the same weights, without
  dropout. The device has its memory in channels-last format, as the trainer has it, the CPU in contiguous format.
- synchronization: an iteration of the trainer while PyTorch raises where the host waits for the device.
- ceilings: a large matrix product in the trainer's arithmetic (bfloat16 where the device has it) and a large copy.
- throughput: iterations of ``ConRecTrainer`` as the bundle sets it up, not compiled, for more and more images of a
  step, from a batch in pinned memory. Its FLOP are those of the network's convolutions and matrix products, forward and
  backward, for both views of an image; its utilization is their rate over that of the matrix product.
- roofline: of the first of these steps, what the bytes of all operators of network and losses but convolutions and
  matrix products take at the bandwidth of the copy (each reads its inputs and writes its outputs once), what the FLOP
  take at the rate of the matrix product, and the views. ``launch_seconds`` is the same step at 32 px, whose kernels are
  so short that the device waits for the host.
- gradient_checkpointing: a step with and without.
- compiled: throughput of the compiled trainer. On the CPU with ``--compile`` alone. It is the last to be measured, as
  compiling takes minutes: after ``--limit`` seconds no further case begins.
- projection: hours of 1200 epochs of APTOS 2019 at these rates, without the loading of images.
"""

from __future__ import annotations

import argparse
import gc
import math
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

if find_spec("conrec_monai") is None:  # a checkout that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
from common import parser, spread, write

from conrec_monai import __version__
from conrec_monai.engines import ConRecTrainer, bfloat16_is_fast, compilation_pays
from conrec_monai.losses import ConRecLoss
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.optimizers import build_optimizer, default_learning_rate
from conrec_monai.transforms import TwoViews

EPOCHS, IMAGES = 1200, 3662  # of the published training, of APTOS 2019's training set
SMALL = 32  # px, at which a step on a card is nothing but launches
NO_CUDA = "the device is no CUDA device"

# Largest differences in float32: of views absolute, as they are in [0, 1]; of the others relative, norm over norm. What
# a ReLU or a maximum lets through depends on rounding, so gradients differ the most: on the CPU itself by up to 0.02
# between the two memory formats.
TOLERANCES = {
    "view_input": ("largest", 1e-3),
    "view_target": ("largest", 1e-3),
    "reconstruction": ("relative", 1e-3),
    "projection": ("relative", 1e-3),
    "representation": ("relative", 1e-3),
    "loss": ("relative", 1e-3),
    "contrastive_loss": ("relative", 1e-3),
    "reconstruction_loss": ("relative", 1e-3),
    "gradient": ("relative", 3e-2),
    "update": ("relative", 3e-2),
}


@dataclass
class Run:
    """Where and how to measure, and what has been found so far."""

    args: argparse.Namespace
    device: torch.device
    results: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Gives back the memory of what is no longer used; trainers are cycles."""
        gc.collect()
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def elapsed(self, function: Callable[[], object], calls: int = 1) -> float:
        """Seconds of some calls, from an idle device to an idle device."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        self.synchronize()
        return time.perf_counter() - start

    def timed(self, function: Callable[[], object], warmup: int = 2) -> list[float]:
        """Seconds of a call, once for each of some rounds of calls that do not wait for each other."""
        for _ in range(warmup):
            function()
        repeats, seconds = self.args.repeats, self.args.seconds_per_case
        calls = max(1, min(100, int(seconds / repeats / max(self.elapsed(function), 1e-9))))
        end = time.perf_counter() + seconds
        times: list[float] = []
        while len(times) < repeats and not (times and time.perf_counter() > end):
            times.append(self.elapsed(function, calls) / calls)
        return times

    def found(self, section: str, *keys: str) -> Any:
        """A result of a section before; None where it has none."""
        value: Any = self.results.get(section)
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def say(text: str) -> None:
    print(text, flush=True)


def one_line(error: BaseException) -> str:
    """What went wrong, as one line without this machine's folders."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    for folder in (common.ROOT, Path.home()):
        text = text.replace(f"{folder}/", "")
    return text[:300]


def plain(value: Any) -> Any:
    """For JSON, which has no NaN and no infinity: their names."""
    if isinstance(value, Mapping):
        return {key: plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def build(features: int, seed: int, checkpointing: bool = False) -> ConRecUNet:
    torch.manual_seed(seed)
    return ConRecUNet(features=[features * 2**i for i in range(4)], gradient_checkpointing=checkpointing)


def random_images(batch: int, size: int, seed: int, pinned: bool) -> Tensor:
    images = torch.empty(batch, 3, size, size, dtype=torch.uint8, pin_memory=pinned)
    return images.random_(0, 256, generator=torch.Generator().manual_seed(seed))


class Training:
    """A trainer as the bundle sets it up, and a batch of images for it in pinned memory."""

    def __init__(
        self, run: Run, batch: int, compile: bool = False, checkpointing: bool = False, size: int | None = None
    ) -> None:
        args = run.args
        self.device = run.device
        size = args.size if size is None else size
        self.images = random_images(batch, size, args.seed, run.on_cuda)
        network = build(args.features, args.seed, checkpointing).to(self.device)
        optimizer = build_optimizer("lars", network, default_learning_rate("lars", batch))
        views = TwoViews(size).set_random_state(args.seed)
        batches = [{"image": self.images}]
        self.trainer = ConRecTrainer(self.device, 1, batches, network, optimizer, ConRecLoss(), views, compile=compile)

    def step(self) -> None:
        """An iteration, without waiting for it."""
        trainer = self.trainer
        trainer.state.output = trainer._iteration(trainer, {"image": self.images})
        trainer._count(trainer)

    def views(self) -> Any:
        return self.trainer.views.batch(self.images.to(self.device, non_blocking=True))


# --- correctness ------------------------------------------------------------------------------------------------------


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float]:
    """Of some tensors, taken as one vector: the norm of the difference over the norm, and the largest difference."""
    a, b = (torch.cat([x.detach().cpu().double().flatten() for x in tensors]) for tensors in (found, expected))
    return {"relative": ((a - b).norm() / b.norm()).item(), "largest": (a - b).abs().max().item()}


def one_step(
    network: nn.Module, inputs: Tensor, targets: Tensor, device: torch.device, memory_format: torch.memory_format
) -> dict[str, list[Tensor]]:
    """Outputs, losses, gradient and LARS update of a network in float32, without dropout."""
    network = network.to(device).to(memory_format=memory_format).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = build_optimizer("lars", network, default_learning_rate("lars", len(inputs) // 2))
    before = [p.detach().clone() for p in network.parameters()]
    output = network(inputs.to(device).contiguous(memory_format=memory_format))
    losses = ConRecLoss()(output.projection, output.reconstruction, targets.to(device))
    losses.loss.backward()
    gradient = [p.grad.clone() for p in network.parameters()]
    optimizer.step()
    return {
        **{name: [value] for name, value in output._asdict().items()},
        "loss": [losses.loss],
        "contrastive_loss": [losses.contrastive],
        "reconstruction_loss": [losses.reconstruction],
        "gradient": gradient,
        "update": [p.detach() - x for p, x in zip(network.parameters(), before, strict=True)],
    }


def correctness(run: Run) -> dict[str, Any]:
    size, batch, seed = min(run.args.size, 64), 8, run.args.seed
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32
    cuda.allow_tf32 = cudnn.allow_tf32 = False
    try:
        images = random_images(batch, size, seed, pinned=False)
        expected_views, found_views = (
            TwoViews(size).set_random_state(seed).batch(images.to(device)) for device in ("cpu", run.device)
        )
        cpu = torch.device("cpu")
        expected = one_step(build(run.args.features, seed), *expected_views, cpu, torch.contiguous_format)
        found = one_step(build(run.args.features, seed), *expected_views, run.device, torch.channels_last)
        differences = {
            f"view_{name}": difference([getattr(found_views, name)], [getattr(expected_views, name)])
            for name in expected_views._fields
        }
        differences |= {name: difference(found[name], expected[name]) for name in expected}
    finally:
        cuda.allow_tf32, cudnn.allow_tf32 = before
    checks: dict[str, Any] = {}
    for name, (kind, tolerance) in TOLERANCES.items():
        value = differences[name]
        passed = value[kind] <= tolerance  # not a number is no pass
        checks[name] = {**value, "measure": kind, "tolerance": tolerance, "passed": passed}
        say(
            f"correctness, {name}: {'pass' if passed else 'FAIL'}: relative {value['relative']:.2g}, largest"
            f" {value['largest']:.2g} ({kind} at most {tolerance:g})"
        )
    return {
        "passed": all(check["passed"] for check in checks.values()),
        "size": size,
        "features": run.args.features,
        "batch": batch,
        "checks": checks,
    }


# --- synchronization --------------------------------------------------------------------------------------------------


def synchronization(run: Run) -> dict[str, Any]:
    if not run.on_cuda:
        say(f"synchronization: not checked: {NO_CUDA}")
        return {"passed": None, "error": None, "where": None, "reason": NO_CUDA}
    training = Training(run, run.args.batches[0])
    for _ in range(2):
        training.step()
    run.synchronize()
    message = where = None
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.step()
    except RuntimeError as error:
        message = one_line(error)
        frames = [x for x in traceback.extract_tb(error.__traceback__) if "conrec_monai" in x.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else None
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run.synchronize()
    say(f"synchronization: {'passed' if message is None else f'FAIL at {where}: {message}'}")
    return {"passed": message is None, "error": message, "where": where, "reason": None}


# --- ceilings ---------------------------------------------------------------------------------------------------------


def ceilings(run: Run) -> dict[str, Any]:
    kind = torch.bfloat16 if bfloat16_is_fast(run.device) else torch.float32
    arithmetic = str(kind).removeprefix("torch.")
    products = {}
    for n in (4096, 8192, 16384) if run.on_cuda else (256, 512):
        a, b, c = (torch.randn(n, n, device=run.device, dtype=kind) for _ in range(3))
        times = spread(run.timed(lambda a=a, b=b, c=c: torch.mm(a, b, out=c)))
        products[str(n)] = {"seconds": times, "tflop_per_second": 2 * n**3 / times["median"] / 1e12}
        say(f"ceilings, {arithmetic} product of {n}: {products[str(n)]['tflop_per_second']:.3f} TFLOP/s")
        del a, b, c
        run.free()
    best = max(x["tflop_per_second"] for x in products.values())
    source = torch.zeros(2**30 if run.on_cuda else 2**25, dtype=torch.uint8, device=run.device)
    target = torch.ones_like(source)
    times = spread(run.timed(lambda: target.copy_(source)))
    bandwidth = 2 * source.numel() / times["median"]  # read and written
    say(f"ceilings, copy of {source.numel() / 2**20:.0f} MiB: {bandwidth / 1e9:.1f} GB/s read and written")
    return {
        "arithmetic": arithmetic,
        "products": products,
        "flop_per_second": best * 1e12,
        "tflop_per_second": best,
        "copy": {"bytes": source.numel(), "seconds": times},
        "bytes_per_second": bandwidth,
        "gb_per_second": bandwidth / 1e9,
    }


# --- throughput -------------------------------------------------------------------------------------------------------


def count_flop(network: nn.Module, images: Tensor) -> int:
    """FLOP of the convolutions and matrix products of a forward and a backward pass; a multiplication and its addition
    are 2."""
    with FlopCounterMode(display=False) as counter:
        sum(part.float().mean() for part in network(images)).backward()
    return counter.get_total_flops()


def flop_per_image(size: int, features: int) -> float:
    """Of both views of an image; counted on tensors without content, of two images as batch norm needs several."""
    with torch.device("meta"):
        return count_flop(build(features, 0).train(), torch.empty(4, 3, size, size)) / 2


def measure(run: Run, batch: int, compile: bool = False, checkpointing: bool = False) -> dict[str, Any]:
    """A step's time, its memory, and its views alone."""
    run.free()
    training = Training(run, batch, compile, checkpointing)
    first = run.elapsed(training.step)
    if run.on_cuda:
        torch.cuda.reset_peak_memory_stats(run.device)
    step = spread(run.timed(training.step))
    peak = torch.cuda.max_memory_allocated(run.device) if run.on_cuda else None
    views = spread(run.timed(training.views))
    return {
        "batch": batch,
        "bfloat16": training.trainer.autocast,
        "images_per_second": batch / step["median"],
        "seconds": step,
        "first_step_seconds": first,
        "peak_memory_bytes": peak,
        "views_seconds": views,
        "views_share": views["median"] / step["median"],
    }


def gib(peak: int | None) -> str:
    return "unknown" if peak is None else f"{peak / 2**30:.2f} GiB"


def ladder(run: Run, name: str, compile: bool) -> dict[str, Any]:
    """One batch size after the other, up to the first that fails."""
    flop = flop_per_image(run.args.size, run.args.features)
    say(f"{name}, model FLOP: {flop / 1e9:.4g} GFLOP per image and step")
    ceiling = run.found("ceilings", "flop_per_second")
    cases: list[dict[str, Any]] = []
    note = None
    for batch in run.args.batches:
        if time.monotonic() - run.started > run.args.limit:
            note = f"batch {batch} and more: left out after {run.args.limit:g} s"
            break
        try:
            case = measure(run, batch, compile)
        except Exception as error:  # its traceback, which holds the trainer, ends with this block
            note = f"batch {batch}: {one_line(error)}"
            break
        finally:
            if compile:
                torch.compiler.reset()
        rate = flop * case["images_per_second"]
        case["flop_per_second"], case["utilization"] = rate, ceiling and rate / ceiling
        cases.append(case)
        say(f"{name}, batch {batch}: {case['images_per_second']:.1f} images/s")
        say(f"{name}, batch {batch}: {1000 * case['seconds']['median']:.2f} ms a step")
        say(f"{name}, batch {batch}: {100 * case['views_share']:.1f}% of the step for the views")
        say(f"{name}, batch {batch}: peak memory {gib(case['peak_memory_bytes'])}")
        if ceiling:
            say(f"{name}, batch {batch}: {100 * case['utilization']:.1f}% of the ceiling: {rate / 1e12:.3f} TFLOP/s")
        if compile:
            say(f"{name}, batch {batch}: first step, compiling, {case['first_step_seconds']:.1f} s")
    if note:
        say(f"{name}: ends with {note}")
    return {
        "size": run.args.size,
        "features": run.args.features,
        "model_flop_per_image": flop,
        "cases": cases,
        "note": note,
        "peak_memory_reason": None if run.on_cuda else NO_CUDA,
        "utilization_reason": None if ceiling else "the ceilings were not measured",
    }


def throughput(run: Run) -> dict[str, Any]:
    return ladder(run, "throughput", compile=False)


def compiled(run: Run) -> dict[str, Any]:
    if not (run.args.compile or compilation_pays(run.device)):
        reason = "no Triton for this device" if run.on_cuda else f"{NO_CUDA} (--compile)"
        say(f"compiled: left out: {reason}")
        return {"cases": [], "note": None, "reason": reason}
    return {**ladder(run, "compiled", compile=True), "reason": None}


# --- roofline ---------------------------------------------------------------------------------------------------------

aten = torch.ops.aten
OVERWRITES = {aten.copy_, aten.fill_, aten.zero_}  # do not read what they write to


def bytes_of(x: Tensor) -> int:
    """Of the different elements: a dimension of stride 0 has one."""
    return math.prod(n if stride or not n else 1 for n, stride in zip(x.shape, x.stride(), strict=True)) * x.itemsize


class Traffic(TorchDispatchMode):
    """Sums the bytes of the inputs and outputs of all operators, as if each read and wrote them once, but for
    convolutions and matrix products, views, and memory that is only allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.of_operators: Counter[str] = Counter()
        self.calls = 0

    @property
    def bytes(self) -> int:
        return self.of_operators.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet not in flop_registry and "empty" not in packet.__name__:
            read = (args[1:] if packet in OVERWRITES else args, {k: v for k, v in kwargs.items() if k != "out"})
            inputs, outputs = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in (read, result))
            places = {x.untyped_storage().data_ptr() for x in inputs}
            is_view = not func._schema.is_mutable and all(x.untyped_storage().data_ptr() in places for x in outputs)
            if not is_view:
                self.of_operators[packet.__name__] += sum(map(bytes_of, inputs + outputs))
                self.calls += 1
        return result


def what_holds(step: float, parts: Mapping[str, float], launches: float | None) -> str:
    """One sentence from the seconds of a step, those its parts take at the ceilings, and those of its launches."""
    if launches is not None and launches >= 0.9 * step:
        return (
            f"Launches and host hold it there: at {SMALL} px the step takes {1000 * launches:.2f} of"
            f" {1000 * step:.2f} ms."
        )
    rest = "what neither ceiling explains" if launches is not None else "launches, host and what else is left"
    whole = {**parts, rest: max(0.0, step - sum(parts.values()))}
    shares = [f"{name} {100 * seconds / step:.0f}%" for name, seconds in whole.items()]
    largest = max(whole, key=whole.__getitem__)
    return f"Of the step of {1000 * step:.2f} ms the most is {largest} ({', '.join(shares)})."


def roofline(run: Run) -> dict[str, Any]:
    bandwidth, ceiling = (run.found("ceilings", name) for name in ("bytes_per_second", "flop_per_second"))
    cases = run.found("throughput", "cases")
    if not (bandwidth and ceiling and cases):
        raise ValueError("needs the ceilings and the first step of throughput")
    case = cases[0]
    batch, step = case["batch"], case["seconds"]["median"]
    run.free()
    training = Training(run, batch)
    trainer = training.trainer
    training.step()
    inputs, targets = training.views()
    with Traffic() as traffic:
        prediction = trainer._predict(inputs)
        trainer.loss_function(prediction.projection, prediction.reconstruction, targets).loss.backward()
    del training, trainer, prediction, inputs, targets
    run.free()
    launches = spread(run.timed(Training(run, batch, size=SMALL).step))["median"] if run.on_cuda else None
    parts = {
        "memory traffic": traffic.bytes / bandwidth,
        "matrix products": run.found("throughput", "model_flop_per_image") * batch / ceiling,
        "views": case["views_seconds"]["median"],
    }
    sentence = what_holds(step, parts, launches)
    say(f"roofline, batch {batch}: {traffic.bytes / 1e9:.4g} GB moved by {traffic.calls} operators")
    most = {name: n for name, n in traffic.of_operators.most_common(10) if n}
    shares = [f"{name} {100 * n / traffic.bytes:.0f}%" for name, n in list(most.items())[:5]]
    say(f"roofline, batch {batch}: most of it by {', '.join(shares)}")
    for name, seconds in parts.items():
        say(f"roofline, batch {batch}: {1000 * seconds:.2f} ms {name}")
    say(f"roofline, batch {batch}: {100 * sum(parts.values()) / step:.0f}% of the step of {1000 * step:.2f} ms")
    if launches is not None:
        say(f"roofline, batch {batch}: {1000 * launches:.2f} ms the step at {SMALL} px")
    say(f"roofline: {sentence}")
    return {
        "batch": batch,
        "bytes": traffic.bytes,
        "operators": traffic.calls,
        "bytes_of_operators": most,
        "memory_seconds": parts["memory traffic"],
        "matrix_seconds": parts["matrix products"],
        "views_seconds": parts["views"],
        "sum_seconds": sum(parts.values()),
        "step_seconds": step,
        "sum_over_step": sum(parts.values()) / step,
        "launch_seconds": launches,
        "launch_reason": None if run.on_cuda else NO_CUDA,
        "what_holds_it_there": sentence,
    }


# --- gradient checkpointing, projection -------------------------------------------------------------------------------


def gradient_checkpointing(run: Run) -> dict[str, Any]:
    """At the largest batch of up to 64 images that ran without, else at the first."""
    cases = run.found("throughput", "cases") or []
    batch = max([c["batch"] for c in cases if c["batch"] <= 64], default=run.args.batches[0])
    result: dict[str, Any] = {"batch": batch}
    for name, checkpointing in (("without", False), ("with", True)):
        case = measure(run, batch, checkpointing=checkpointing)
        result[name] = {key: case[key] for key in ("images_per_second", "seconds", "peak_memory_bytes")}
        say(f"gradient_checkpointing, {name}, batch {batch}: {case['images_per_second']:.1f} images/s")
        say(f"gradient_checkpointing, {name}, batch {batch}: peak memory {gib(case['peak_memory_bytes'])}")
    result["peak_memory_reason"] = None if run.on_cuda else NO_CUDA
    return result


def projection(run: Run) -> dict[str, Any]:
    cases = [
        {"compiled": section == "compiled", "batch": c["batch"], "images_per_second": c["images_per_second"]}
        for section in ("throughput", "compiled")
        for c in run.found(section, "cases") or []
    ]
    if not cases:
        raise ValueError("needs a rate of throughput or compiled")
    batch = 16 if any(c["batch"] == 16 for c in cases) else cases[0]["batch"]
    result: dict[str, Any] = {"epochs": EPOCHS, "images": IMAGES}
    for name, some in (("best", cases), (f"batch_{batch}", [c for c in cases if c["batch"] == batch])):
        case = max(some, key=lambda c: c["images_per_second"])
        hours = EPOCHS * IMAGES / case["images_per_second"] / 3600
        result[name] = {**case, "hours": hours}
        way = "compiled" if case["compiled"] else "not compiled"
        say(f"projection, {name}: {hours:.2f} h for {EPOCHS} epochs (batch {case['batch']}, {way})")
    return result


# --- all --------------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[Run], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        correctness,
        synchronization,
        ceilings,
        throughput,
        roofline,
        gradient_checkpointing,
        compiled,
        projection,
    )
}


def card(device: torch.device) -> dict[str, Any]:
    """What a time on the card depends on; the machine's name is no part of it."""
    if device.type != "cuda":
        return {"type": device.type, "name": None, "reason": NO_CUDA}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": device.type,
        "name": torch.cuda.get_device_name(device),
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": list(torch.cuda.get_device_capability(device)),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver(),
        "triton": find_spec("triton") is not None,
        "reason": None,
    }


def driver() -> str | None:
    """Version of NVIDIA's driver, as nvidia-smi says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None


def version(name: str, installed: Callable[[str], str] = common.version) -> str:
    """Of a package; a checkout that is not installed has its own."""
    try:
        return installed(name)
    except PackageNotFoundError:
        if name != "conrec-monai":
            raise
        return __version__


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(__doc__, repeats=5)
    options.add_argument("--device", help="(default: cuda where there is one, else cpu)")
    options.add_argument("--size", type=int, help="pixels a side (default 224, on the CPU 32)")
    options.add_argument("--features", type=int, help="of the first level (default 64, on the CPU 8)")
    options.add_argument(
        "--batches", type=int, nargs="+", help="images of a step (default 16 32 64 128 256 512, on the CPU 2 4)"
    )
    options.add_argument(
        "--seconds-per-case", type=float, default=3.0, help="that a number is timed for (default %(default)s)"
    )
    options.add_argument(
        "--limit", type=float, default=400.0, help="seconds after which no batch size begins (default %(default)s)"
    )
    options.add_argument("--compile", action="store_true", help="the compiled step on the CPU too")
    args = options.parse_args(arguments)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=args.device).device
    except (RuntimeError, AssertionError) as error:
        options.error(f"--device {args.device}: {str(error).splitlines()[0]}")
    small = device.type != "cuda"
    args.size = args.size or (32 if small else 224)
    args.features = args.features or (8 if small else 64)
    args.batches = args.batches or ([2, 4] if small else [16, 32, 64, 128, 256, 512])
    if min(args.batches) < 2:
        options.error(f"--batches must be at least 2: {args.batches}.")
    torch.set_num_threads(args.threads)
    if device.type == "cuda":
        torch.cuda.set_device(torch.cuda.current_device() if device.index is None else device.index)
    common.version = version
    run = Run(args, device)
    run.results["device"] = card(device)
    say(f"device: {run.results['device']['name'] or device.type}")
    for name, section in SECTIONS.items():
        try:
            run.free()  # fails itself where the section before has broken the device
            run.results[name] = section(run)
        except Exception as error:
            run.results[name] = {"failed": one_line(error)}
            say(f"{name}: failed: {run.results[name]['failed']}")
        # After each section, for the case that the run is cut off.
        write(args.output, "gpu", arguments, vars(args), plain(run.results), ["pytorch-ignite"])
    say(f"seconds: {time.monotonic() - run.started:.0f}")
    return run.results


if __name__ == "__main__":
    main()
