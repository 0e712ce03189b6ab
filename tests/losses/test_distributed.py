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

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from conrec_monai.losses import NTXentLoss
from conrec_monai.utils import end_processes

WORLD, BATCH, FEATURES = 2, 6, 5


def _network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, FEATURES), nn.Tanh()).double()


def _views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(WORLD * BATCH, 4, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    network = nn.parallel.DistributedDataParallel(_network())
    part = slice(rank * BATCH, (rank + 1) * BATCH)
    projections = network(torch.cat([view[part] for view in _views()]))
    loss = NTXentLoss(0.1)(*projections.chunk(2))
    alone = NTXentLoss(0.1, gather=False)(*projections.detach().chunk(2))
    loss.backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    torch.save({"loss": loss.detach(), "alone": alone, "gradients": gradients}, f"{folder}/{rank}.pt")
    end_processes()


def test_processes_give_the_loss_and_the_gradients_of_one_process_with_the_whole_batch(tmp_path):
    mp.spawn(_work, (str(tmp_path),), WORLD)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]

    network = _network()
    projections = network(torch.cat(_views()))
    loss = NTXentLoss(0.1)(*projections.chunk(2))
    loss.backward()
    torch.testing.assert_close(sum(result["loss"] for result in results) / WORLD, loss.detach(), rtol=1e-6, atol=0)
    for result in results:
        for gradient, parameter in zip(result["gradients"], network.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-8)
    # Without the others' negatives the loss is another one: each process sees its own views only.
    for rank, result in enumerate(results):
        own = [view[rank * BATCH : (rank + 1) * BATCH] for view in projections.detach().chunk(2)]
        torch.testing.assert_close(result["alone"], NTXentLoss(0.1)(*own), rtol=1e-6, atol=0)
        assert result["alone"] < result["loss"]
