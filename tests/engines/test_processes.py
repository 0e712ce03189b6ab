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

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from torch import nn
from torch.utils.data import DataLoader

from conrec_monai.data import CachedImages, EpochBatchSampler, batched, phantom_arrays
from conrec_monai.engines import ConRecTrainer
from conrec_monai.losses import ConRecLoss
from conrec_monai.networks.layers import synchronize_batch_norm
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.optimizers import build_optimizer
from conrec_monai.transforms import TwoViews
from conrec_monai.utils import end_processes

WORLD, BATCH, STEPS = 2, 8, 3


def train(network: ConRecUNet, rank: int = 0, world: int = 1, compile: bool = False) -> dict[str, Any]:
    """Losses and gradients of a few iterations, and where they lead; pooling, views and losses alone in float32."""
    network = network.double().to(memory_format=torch.channels_last)
    network.projection.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    network.encoder.pool.branch.dropout.p = 0.0  # each process draws its own
    images = CachedImages([{"image": array} for array in phantom_arrays(STEPS * BATCH, 32)[0]], 32)
    sampler = EpochBatchSampler(len(images), BATCH, seed=1, rank=rank, num_replicas=world)
    module: nn.Module = network
    if world > 1:
        module = nn.parallel.DistributedDataParallel(synchronize_batch_norm(network, "cpu"))
    trainer = ConRecTrainer(
        "cpu",
        1,
        DataLoader(images, batch_sampler=sampler, collate_fn=batched),
        module,
        build_optimizer("sgd", module, 0.01),
        ConRecLoss(),
        TwoViews(32).set_random_state(2),
        amp=False,
        inferer=lambda x, network: network(x.double()),
        compile=compile,
    )
    losses: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []

    def keep(engine: ConRecTrainer) -> None:
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))

    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, keep)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output[0]["loss"].clone())
    )
    trainer.run()
    return {
        "losses": torch.stack(losses),
        "gradients": torch.stack(gradients),
        "metrics": dict(trainer.state.metrics),
        "state": network.state_dict(),
        "random": trainer.training_state()["random"]["keys"],
    }


def untidy(rank: int, folder: str) -> None:
    """Forgets the memory format."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    network = nn.parallel.DistributedDataParallel(build())
    optimizer = build_optimizer("sgd", network, 0.01)
    with pytest.raises(ValueError, match=r"a module that is in torch\.channels_last already"):
        ConRecTrainer("cpu", 1, [], network, optimizer, ConRecLoss(), TwoViews(32))
    ConRecTrainer("cpu", 1, [], network, optimizer, ConRecLoss(), TwoViews(32), channels_last=False)
    end_processes()


def build() -> ConRecUNet:
    torch.manual_seed(3)
    return ConRecUNet(features=(8, 16))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    torch.save(train(build(), rank, WORLD), f"{folder}/{rank}.pt")
    torch.compile = partial(torch.compile, backend="aot_eager")  # all of it but the code that a compiler writes
    torch.save(train(build(), rank, WORLD, compile=True), f"{folder}/compiled_{rank}.pt")
    end_processes()


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    """The same views of the same images, negatives and batch statistics of all, gradients averaged."""
    mp.spawn(work, (str(tmp_path),), WORLD)
    whole = train(build())
    for name in ("", "compiled_"):
        check([torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True) for rank in range(WORLD)], whole)


def check(parts: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    losses = torch.stack([part["losses"] for part in parts]).mean(0)
    torch.testing.assert_close(losses, whole["losses"], rtol=1e-6, atol=0)  # a float32 sum in another order
    scale = whole["gradients"].abs().max().item()
    for part in parts:
        torch.testing.assert_close(part["gradients"], whole["gradients"], rtol=1e-4, atol=1e-6 * scale)
        for name, value in whole["state"].items():
            torch.testing.assert_close(part["state"][name], value, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(part["random"], whole["random"])
        for name in ("loss", "contrastive_loss", "reconstruction_loss"):
            assert part["metrics"][name] == pytest.approx(whole["metrics"][name], rel=1e-6)
    # neither process alone has it: the two see other images
    assert not torch.allclose(parts[0]["losses"], parts[1]["losses"], rtol=1e-4)


def test_memory_format_changed_after_the_gradients_were_laid_out(tmp_path: Path) -> None:
    mp.spawn(untidy, (str(tmp_path),), 1)
