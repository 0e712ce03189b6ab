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
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

from conrec_monai.data import CachedImages, EpochBatchSampler, batched, load_datalist
from conrec_monai.engines import ConRecEvaluator, ConRecTrainer
from conrec_monai.handlers import EarlyStop, ValidationHandler
from conrec_monai.losses import ConRecLoss
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.optimizers import build_optimizer
from conrec_monai.transforms import TwoViews
from conrec_monai.utils import end_processes


@pytest.fixture(scope="module")
def images() -> CachedImages:
    return CachedImages(load_datalist("phantom:n=16,size=32"), 32, progress=False).load()


def make(images: CachedImages, *handlers: Any, max_epochs: int = 4, interval: int | None = None) -> ConRecTrainer:
    torch.manual_seed(0)
    network = ConRecUNet(features=(4, 8))
    first = []
    if interval is not None:
        loader = DataLoader(images, batch_size=8, collate_fn=batched)
        evaluator = ConRecEvaluator("cpu", loader, network, ConRecLoss(), TwoViews(32), amp=False)
        first = [ValidationHandler(interval, evaluator)]
    loader = DataLoader(images, batch_sampler=EpochBatchSampler(16, 8, 0), collate_fn=batched)
    optimizer = build_optimizer("lars", network, 0.3)
    views = TwoViews(32).set_random_state(0)
    return ConRecTrainer(
        "cpu", max_epochs, loader, network, optimizer, ConRecLoss(), views, False, train_handlers=[*first, *handlers]
    )


class Losses:
    """Replaces the loss of each epoch by a given one, and counts the epochs."""

    def __init__(self, *values: float) -> None:
        self.values, self.epochs = values, 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._set)

    def _set(self, engine: Engine) -> None:
        self.epochs += 1
        engine.state.metrics["loss"] = self.values[engine.state.epoch - 1]


def test_validation_stands_beside_the_training_in_its_epochs(
    images: CachedImages, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(images, interval=2)
    found: dict[int, dict[str, float]] = {}
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: found.update({e.state.epoch: dict(e.state.metrics)}))
    with caplog.at_level(logging.INFO, "conrec_monai"):
        trainer.run()
    names = {"val_loss", "val_contrastive_loss", "val_reconstruction_loss", "val_contrastive_accuracy"}
    assert all(names & set(found[epoch]) == (names if epoch in (2, 4) else set()) for epoch in (1, 2, 3, 4))
    expected = 2 * found[4]["val_contrastive_loss"] + 100 * found[4]["val_reconstruction_loss"]
    assert found[4]["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert caplog.text.count("validation: loss ") == 2


def test_validation_does_not_change_the_training(images: CachedImages) -> None:
    weights = []
    for interval in (None, 1):
        trainer = make(images, interval=interval)
        trainer.run()
        weights.append(trainer.network.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_stops_when_the_loss_no_longer_falls(images: CachedImages, caplog: pytest.LogCaptureFixture) -> None:
    losses, completed = Losses(3.0, 2.0, 2.0, 2.5, 1.0, 0.5), []
    trainer = make(images, losses, EarlyStop(2), max_epochs=6)
    trainer.add_event_handler(Events.COMPLETED, lambda engine: completed.append(engine.state.epoch))
    with caplog.at_level(logging.INFO, "conrec_monai"):
        trainer.run()
    assert losses.epochs == 4
    assert completed == [4]  # what is written at the end of a run is written
    assert "stopping early: loss has not fallen below 2.0000 for 2 evaluations" in caplog.text


@pytest.mark.parametrize("patience", [0, 3])
def test_goes_on_while_it_may(patience: int, images: CachedImages) -> None:
    losses = Losses(3.0, 2.0, 2.0, 2.5, 1.0, 1.5)
    make(images, losses, EarlyStop(patience), max_epochs=6).run()
    assert losses.epochs == 6


def test_epochs_without_the_metric_do_not_count(images: CachedImages) -> None:
    losses = Losses(*[1.0] * 6)
    make(images, losses, EarlyStop(2, "val_loss"), max_epochs=6).run()
    assert losses.epochs == 6


def test_count_is_part_of_the_state_of_the_training(images: CachedImages, caplog: pytest.LogCaptureFixture) -> None:
    values = (3.0, 2.0, 2.0, 2.5, 1.0, 0.5)
    trainer = make(images, Losses(*values), EarlyStop(2), max_epochs=3)
    trainer.run()  # one epoch without improvement so far
    state = trainer.training_state()

    losses = Losses(*values)
    trainer = make(images, losses, EarlyStop(2), max_epochs=6)
    trainer.add_event_handler(Events.STARTED, lambda engine: engine.load_training_state(state))
    trainer.run()
    assert losses.epochs == 1
    stopped = trainer.training_state()

    losses = Losses(*values)

    class Load:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.STARTED, lambda engine: engine.load_training_state(stopped))

    trainer = make(images, Load(), losses, EarlyStop(2), max_epochs=6)
    with caplog.at_level(logging.INFO, "conrec_monai"):
        trainer.run()
    assert losses.epochs == 0
    assert "the run had stopped early after epoch 4" in caplog.text


def test_stops_when_a_score_no_longer_rises(images: CachedImages, caplog: pytest.LogCaptureFixture) -> None:
    losses = Losses(0.2, 0.5, 0.4, 0.5, 0.9, 0.9)  # an equal one is no improvement
    trainer = make(images, losses, EarlyStop(2, rising=True), max_epochs=6)
    with caplog.at_level(logging.INFO, "conrec_monai"):
        trainer.run()
    assert losses.epochs == 4
    assert "stopping early: loss has not risen above 0.5000 for 2 evaluations" in caplog.text


def test_goes_on_while_a_score_rises(images: CachedImages) -> None:
    losses = Losses(-0.2, -0.1, -0.3, 0.0, 0.0, 0.1)
    make(images, losses, EarlyStop(2, rising=True), max_epochs=6).run()
    assert losses.epochs == 6
    losses = Losses(-0.2, -0.1, -0.3, 0.0, 0.0, 0.1)  # the same numbers as losses
    make(images, losses, EarlyStop(2), max_epochs=6).run()
    assert losses.epochs == 5


def test_count_of_a_rising_score_is_kept(images: CachedImages) -> None:
    values = (0.2, 0.5, 0.4, 0.3, 0.9, 0.9)
    trainer = make(images, Losses(*values), EarlyStop(2, rising=True), max_epochs=3)
    trainer.run()
    state = trainer.training_state()
    losses = Losses(*values)
    trainer = make(images, losses, EarlyStop(2, rising=True), max_epochs=6)
    trainer.add_event_handler(Events.STARTED, lambda engine: engine.load_training_state(state))
    trainer.run()
    assert losses.epochs == 1


def test_message_of_a_score_below_zero(images: CachedImages, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "conrec_monai"):
        make(images, Losses(-0.2, -0.3), EarlyStop(1, rising=True), max_epochs=2).run()
    assert "loss has not risen above -0.2000 for 1 evaluations" in caplog.text


def stop(rank: int, folder: str) -> None:
    """A score that differs by rounding: to the second process alone it rises in epoch 2."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    engine = Engine(lambda engine, batch: None)
    engine.stateful = {}  # type: ignore[attr-defined]
    losses = Losses(*([0.5, 0.5, 0.5, 0.5], [0.5, 0.5 + 1e-7, 0.5, 0.5])[rank])
    for handler in (losses, EarlyStop(2, rising=True)):
        handler.attach(engine)
    engine.run([0], max_epochs=4)
    Path(folder, f"{rank}.txt").write_text(str(losses.epochs))
    end_processes()


def test_processes_stop_in_the_same_epoch(tmp_path: Path) -> None:
    mp.spawn(stop, (str(tmp_path),), 2)
    assert [Path(tmp_path, f"{rank}.txt").read_text() for rank in range(2)] == ["3", "3"]


def test_negative_patience() -> None:
    with pytest.raises(ValueError, match="patience must not be negative, got -1"):
        EarlyStop(-1)
