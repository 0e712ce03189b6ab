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

import logging
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.utils.data import DataLoader

from conrec_monai.data import CachedImages, EpochBatchSampler, batched, load_datalist
from conrec_monai.engines import ConRecTrainer
from conrec_monai.handlers import HealthMonitor
from conrec_monai.losses import ConRecLoss
from conrec_monai.metrics import attention_entropy, effective_rank, embedding_std
from conrec_monai.networks.nets import ConRecOutput, ConRecUNet
from conrec_monai.optimizers import build_optimizer
from conrec_monai.transforms import TwoViews

MEASURED = ["embedding_std", "effective_rank", "projection_std", "projection_rank", "attention_entropy"]


@pytest.fixture(scope="module")
def images() -> CachedImages:
    return CachedImages(load_datalist("phantom:n=32,size=32"), 32, progress=False).load()


def train(images: CachedImages, network: nn.Module, handlers: list, max_epochs: int = 2) -> ConRecTrainer:
    trainer = ConRecTrainer(
        "cpu",
        max_epochs,
        DataLoader(images, batch_sampler=EpochBatchSampler(len(images), 16, 0), collate_fn=batched),
        network,
        build_optimizer("lars", network, 0.3),
        ConRecLoss(),
        TwoViews(32).set_random_state(0),
        False,
        train_handlers=handlers,
    )
    trainer.run()
    return trainer


def metrics_of(engine: Engine) -> dict[int, dict[str, Any]]:
    """The metrics of each epoch of the coming run."""
    found: dict[int, dict[str, Any]] = {}
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: found.update({engine.state.epoch: dict(engine.state.metrics)})
    )
    return found


class Blocks(nn.Module):
    """A network whose outputs are made by a function of the number of images."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.encoder, self.outputs = nn.Linear(1, 1), outputs

    def forward(self, x: Tensor) -> ConRecOutput:
        h, z = self.outputs(len(x))
        return ConRecOutput(None, z, h)


# --- what is measured -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 16])
def test_values(size: int, images: CachedImages) -> None:
    torch.manual_seed(0)
    network = ConRecUNet(features=(4, 8))
    engine = Engine(lambda engine, batch: None)
    HealthMonitor(network, images, size, every=2, count=20, batch_size=7).attach(engine)
    found = metrics_of(engine)
    engine.run(range(1), max_epochs=3)

    sample = np.random.RandomState(0).permutation(32)[:20]
    x = images.images[torch.from_numpy(sample)]
    x = nn.functional.interpolate(x, (size, size), mode="bicubic", antialias=True) if size != 32 else x
    with torch.no_grad():
        output = network.eval()(x.float() / 255)
        attention = network.encoder.attention_map(x.float() / 255)
    expected = [
        embedding_std(output.representation),
        effective_rank(output.representation),
        embedding_std(output.projection),
        effective_rank(output.projection),
        attention_entropy(attention),
    ]
    assert [list(found[epoch]) for epoch in (1, 2, 3)] == [[], MEASURED, []]
    assert [found[2][name] for name in MEASURED] == pytest.approx(expected, rel=1e-4)
    assert all(type(value) is float for value in found[2].values())


def test_without_attention_or_decoder(images: CachedImages) -> None:
    network = ConRecUNet(features=(4, 8), pooling="average", decoder=False)
    trainer = train(images, network, [HealthMonitor(network, images, 32)], 1)
    assert [name for name in MEASURED if name in trainer.state.metrics] == MEASURED[:-1]


# --- the training does not notice -------------------------------------------------------------------------------------


def test_training_does_not_depend_on_it(images: CachedImages) -> None:
    states = []
    for attached in (False, True):
        torch.manual_seed(0)
        np.random.seed(0)
        network = ConRecUNet(features=(4, 8))
        trainer = train(images, network, [HealthMonitor(network, images, 32, batch_size=9)] if attached else [])
        assert attached == ("embedding_std" in trainer.state.metrics)
        states.append((network.state_dict(), torch.get_rng_state(), np.random.random()))
    assert all(torch.equal(value, states[1][0][name]) for name, value in states[0][0].items())
    assert torch.equal(states[0][1], states[1][1]) and states[0][2] == states[1][2]


def test_modes_and_hooks_are_as_before(images: CachedImages) -> None:
    network = ConRecUNet(features=(4, 8)).train()
    network.encoder.levels[0].eval()  # a frozen part
    before = [module.training for module in network.modules()]
    engine = Engine(lambda engine, batch: None)
    HealthMonitor(network, images, 32).attach(engine)
    engine.run(range(1), max_epochs=2)
    assert [module.training for module in network.modules()] == before
    assert not network.encoder.pool._forward_hooks
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


# --- collapse ---------------------------------------------------------------------------------------------------------


def run_through(states: list[str], images: CachedImages, iterations: int = 100, count: int = 256) -> None:
    """An epoch for each state of the network."""
    generator = torch.Generator().manual_seed(0)

    def outputs(n: int) -> tuple[Tensor, Tensor]:
        healthy = torch.randn(n, 16, generator=generator)
        one, line = torch.ones(n, 16), torch.linspace(-1, 1, n)[:, None] * torch.ones(n, 16)
        return {
            "healthy": (healthy, healthy),
            "h alike": (one + 1e-3 * healthy, healthy),
            "all alike": (one, one),
            "z on a line": (healthy, line),
            "not finite": (healthy, healthy * float("nan")),
        }[states[engine.state.epoch - 1]]

    engine = Engine(lambda engine, batch: None)
    HealthMonitor(Blocks(outputs), images, 32, count=count).attach(engine)
    engine.run(range(iterations), max_epochs=len(states))


def test_collapse_is_told_once_until_it_is_over(images: CachedImages, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "conrec_monai")
    run_through(["healthy", "all alike", "all alike", "h alike", "healthy", "z on a line", "healthy"], images)
    assert caplog.messages == [
        "collapse in epoch 2: embedding_std 0.000 (below 0.02), projection_std 0.000 (below 0.1), effective_rank 0.00"
        " (below 2), projection_rank 0.00 (below 2): all images look nearly the same to the network; try a smaller"
        " learning_rate, a larger batch_size or a smaller alpha, and check that the images themselves differ",
        "collapse in epoch 6: projection_rank 1.00 (below 2): images differ in one direction only; try a smaller"
        " learning_rate, a larger batch_size or a smaller alpha, and check that the images themselves differ",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_no_alarm_before_batch_norm_has_settled(images: CachedImages, caplog: pytest.LogCaptureFixture) -> None:
    run_through(["all alike"] * 3, images, iterations=33)
    assert not caplog.messages
    run_through(["all alike"] * 4, images, iterations=33)
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("collapse in epoch 4: ")


def test_few_images_have_few_directions(images: CachedImages, caplog: pytest.LogCaptureFixture) -> None:
    run_through(["z on a line"], images, count=15)
    assert not caplog.messages
    run_through(["all alike"], images, count=2)
    assert len(caplog.messages) == 1 and "projection_std 0.000 (below 0.1): all images" in caplog.messages[0]
    run_through(["z on a line"], images, count=16)
    assert len(caplog.messages) == 2


def test_values_that_are_not_finite_end_nothing(images: CachedImages, caplog: pytest.LogCaptureFixture) -> None:
    run_through(["not finite", "healthy"], images)
    assert caplog.messages == ["no health measured in epoch 1: 32 of 32 embeddings are not finite"]


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_never(images: CachedImages) -> None:
    engine = Engine(lambda engine, batch: None)
    HealthMonitor(ConRecUNet(features=(4, 8)), images, 32, every=0).attach(engine)
    engine.run(range(1))
    assert engine.state.metrics == {}


@pytest.mark.parametrize(("every", "count"), [(-1, 256), (1, 1)])
def test_values_out_of_range(every: int, count: int, images: CachedImages) -> None:
    with pytest.raises(ValueError, match=f"at least 2, got {every}, {count} and 32"):
        HealthMonitor(ConRecUNet(features=(4, 8)), images, 32, every, count)


def test_other_channels(images: CachedImages) -> None:
    with pytest.raises(ValueError, match="HealthMonitor: the network takes 1 channels, the images of dataset have 3"):
        HealthMonitor(ConRecUNet(1, (4, 8)), images, 32)
