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


"""A training step with its views, against the plain way, the bare step and its convolutions alone.

    pip install -c constraints.txt -e ".[bench]"
    python benchmarks/step.py --threads 2 --output step.json

All train the same :class:`ConRecUNet` on batches of 16 drawn photographs (uint8), in one process:

- conrec_monai: an iteration of ``ConRecTrainer`` as the bundle sets it up (LARS, views, masking, both losses, metrics),
  with the batch it takes from ``CachedImages``.
- plain: the way of MONAI's tutorials: dictionary transforms per sample in a ``Dataset``, with MONAI's ``DataLoader``
  (``--workers`` processes), float32, contiguous memory, MONAI's ``ContrastiveLoss``, the squared error, and SGD, in the
  order of ``SupervisedTrainer``. What its transforms are: benchmarks/views.py. Needs kornia. plain_amp is the same with
  the arithmetic of conrec_monai (autocast to bfloat16 where that is fast).
- bare: forward and backward pass of a mean of the network's outputs, in the same arithmetic and memory format, on
  inputs that are there: no views, losses or optimizer.
- convolutions: the forward and backward passes of the network's convolutions alone, one after the other, on tensors
  that are there in that arithmetic and format: the floor.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from common import interleaved, parser, ratio, spread, write
from monai.data import DataLoader, Dataset
from monai.losses import ContrastiveLoss
from torch import Tensor, nn
from views import monai_compose

from conrec_monai.data import CachedImages, EpochBatchSampler, batched, phantom_arrays
from conrec_monai.engines import ConRecTrainer
from conrec_monai.losses import ConRecLoss
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.optimizers import build_optimizer, default_learning_rate
from conrec_monai.transforms import TwoViews

Step = Callable[[], object]
CASES = ((64, 16), (64, 64), (224, 64))  # image size, features of the first level


def build(features: int, seed: int, gradient_checkpointing: bool = False) -> ConRecUNet:
    torch.manual_seed(seed)
    levels = [features, 2 * features, 4 * features, 8 * features]
    return ConRecUNet(features=levels, gradient_checkpointing=gradient_checkpointing)


def make_trainer(
    network: nn.Module, images: CachedImages, size: int, batch: int, seed: int, rank: int = 0, num_replicas: int = 1
) -> ConRecTrainer:
    sampler = EpochBatchSampler(len(images), batch, seed, rank=rank, num_replicas=num_replicas)
    loader = torch.utils.data.DataLoader(images, batch_sampler=sampler, collate_fn=batched)
    optimizer = build_optimizer("lars", network, default_learning_rate("lars", batch))
    views = TwoViews(size).set_random_state(seed)
    return ConRecTrainer("cpu", 1, loader, network, optimizer, ConRecLoss(), views)


def conrec_step(images: CachedImages, size: int, features: int, batch: int, seed: int) -> Step:
    """An iteration of the trainer."""
    trainer = make_trainer(build(features, seed), images, size, batch, seed)
    batches = endless(trainer.data_loader)

    def step() -> None:
        trainer.state.output = trainer._iteration(trainer, next(batches))
        trainer._count(trainer)

    return step


def endless(loader: Any) -> Any:
    while True:
        yield from loader


class PlainViews(Dataset):
    """Both views of each image by MONAI's transforms."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        first, second = (self.transform({"image": self.data[index]}) for _ in range(2))
        return {f"{key}_{i}": view[key] for i, view in enumerate((first, second)) for key in ("image", "target")}


def plain_step(images: Tensor, size: int, features: int, batch: int, seed: int, workers: int, amp: bool) -> Step:
    """An iteration of a plain loop."""
    network = build(features, seed)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    contrastive, reconstruction = ContrastiveLoss(temperature=0.5), nn.MSELoss()
    dataset = PlainViews(list(images), monai_compose(size, True, seed))
    loader = DataLoader(
        dataset, batch_size=batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    batches = endless(loader)

    def step() -> float:
        data = next(batches)
        inputs = torch.cat([data["image_0"], data["image_1"]])
        targets = torch.cat([data["target_0"], data["target_1"]])
        network.train()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            output = network(inputs)
        loss = 2 * contrastive(*output.projection.chunk(2)) + 100 * reconstruction(output.reconstruction, targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def bare_step(size: int, features: int, batch: int, seed: int, amp: bool) -> Step:
    """Forward and backward pass of the network."""
    return step_of(build(features, seed).to(memory_format=torch.channels_last).train(), size, batch, amp)


def step_of(network: nn.Module, size: int, batch: int, amp: bool) -> Step:
    inputs = torch.rand(2 * batch, 3, size, size).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            output = network(inputs)
        sum(part.mean() for part in output).backward()

    return step


def convolutions(size: int, features: int, batch: int, seed: int, amp: bool) -> Step:
    """Forward and backward passes of the convolutions."""
    network = build(features, seed).to(memory_format=torch.channels_last)
    kind = torch.bfloat16 if amp else torch.float32
    found: list[tuple[nn.Module, torch.Size]] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, _: found.append((module, inputs[0].shape)))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        network(torch.rand(2, 3, size, size))
    for hook in hooks:
        hook.remove()
    network.to(kind)
    first = found[0][0]  # no gradient for the images
    layers = []
    for module, shape in found:
        x = torch.rand(2 * batch, *shape[1:], dtype=kind).contiguous(memory_format=torch.channels_last)
        x.requires_grad_(module is not first)
        with torch.no_grad():
            gradient = torch.rand_like(module(x))
        layers.append((module, x, gradient))

    def step() -> None:
        for module, x, gradient in layers:
            torch.autograd.grad(
                module(x), [*([x] if x.requires_grad else []), *module.parameters()], gradient, allow_unused=True
            )

    return step


def measure(size: int, features: int, batch: int, repeats: int, seed: int, workers: int) -> dict[str, Any]:
    """The times of one size."""
    arrays, _ = phantom_arrays(2 * batch, size, seed)
    images = CachedImages([{"image": array} for array in arrays], size, progress=False).load()
    amp = make_trainer(build(8, seed), images, size, batch, seed).autocast
    steps = {
        "conrec_monai": conrec_step(images, size, features, batch, seed),
        "bare": bare_step(size, features, batch, seed, amp),
        "convolutions": convolutions(size, features, batch, seed, amp),
    }
    if find_spec("kornia"):
        steps["plain"] = plain_step(images.images, size, features, batch, seed, workers, False)
        steps["plain_amp"] = plain_step(images.images, size, features, batch, seed, workers, amp)
    times = interleaved(steps, repeats, warmup=2)
    result: dict[str, Any] = {"size": size, "features": features, "batch": batch, "bfloat16": amp}
    for name in ("conrec_monai", "bare", "convolutions", "plain", "plain_amp"):
        found = spread(times[name]) if name in times else None
        result[name] = found and {"seconds": found, "images_per_second": batch / found["median"]}
    for a, b in (
        ("conrec_monai", "bare"),
        ("conrec_monai", "convolutions"),
        ("bare", "convolutions"),
        ("plain", "conrec_monai"),
        ("plain_amp", "conrec_monai"),
    ):
        result[f"{a}_over_{b}"] = ratio(times, a, b) if a in times else None
    return result


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(__doc__, repeats=15)
    options.add_argument(
        "--cases",
        nargs="+",
        default=[f"{size}:{features}" for size, features in CASES],
        metavar="SIZE:FEATURES",
        help="pixels a side and features of the first level (default %(default)s)",
    )
    options.add_argument("--batch", type=int, default=16, help="images of a step (default %(default)s)")
    options.add_argument("--workers", type=int, default=2, help="processes of the plain loader (default %(default)s)")
    options.add_argument(
        "--large-repeats", type=int, default=3, help="rounds above 64 px, which take minutes (default %(default)s)"
    )
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    results = []
    cases = [tuple(map(int, case.split(":"))) for case in args.cases if re.fullmatch(r"\d+:\d+", case)]
    if len(cases) < len(args.cases):
        options.error(f"--cases must be SIZE:FEATURES, such as 64:16, got {' '.join(args.cases)}")
    for size, features in cases:
        repeats = args.repeats if size <= 64 else min(args.repeats, args.large_repeats)
        result = measure(size, features, args.batch, repeats, args.seed, args.workers)
        results.append(result)
        rates = [f"{n} {result[n]['images_per_second']:.1f}" for n in ("plain", "conrec_monai", "bare") if result[n]]
        times = f"{result['conrec_monai_over_bare']['median']:.3f} times the bare step"
        print(f"{size} px, features {features}, images/s: {', '.join(rates)}; {times}", flush=True)
    write(args.output, "step", arguments, vars(args), results, ["kornia"] if find_spec("kornia") else [])
    return results


if __name__ == "__main__":
    main()
