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
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import LrScheduleHandler
from torch.utils.data import DataLoader

from conrec_monai.data import CachedImages, EpochBatchSampler, batched, load_datalist
from conrec_monai.engines import ConRecTrainer
from conrec_monai.handlers import RunCheckpoint, check_resume
from conrec_monai.losses import ConRecLoss
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.networks.utils import load_encoder, load_model, read_checkpoint
from conrec_monai.optimizers import build_optimizer, build_schedule
from conrec_monai.transforms import TwoViews

PREPROCESSING = {"image_size": 32, "resize": "squash", "field_of_view": None}
SETTINGS = {"image_size": 32, "features": [4, 8], "seed": 0, "schedule": "warmup_cosine", "max_epochs": 3}
EPOCH = 5  # iterations: 40 images in batches of 8


@pytest.fixture(scope="module")
def images() -> CachedImages:
    return CachedImages(load_datalist("phantom:n=40,size=32"), 32, progress=False).load()


class At:
    """Calls a function after an iteration of the run."""

    def __init__(self, iteration: int, function: Callable[[], Any], event: Events = Events.ITERATION_COMPLETED) -> None:
        self.iteration, self.function, self.event = iteration, function, event

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(self.event, self._call)

    def _call(self, engine: Engine) -> None:
        if engine.state.iteration == self.iteration:
            self.function()


def make_run(
    images: CachedImages,
    output_dir: Path,
    *handlers: Any,
    resume: bool = False,
    seed: int = 0,
    max_minutes: float | None = None,
    **settings: Any,
) -> ConRecTrainer:
    settings = {**SETTINGS, **settings}
    torch.manual_seed(seed)
    network = ConRecUNet(features=settings["features"])
    optimizer = build_optimizer("lars", network, 0.3)
    schedule = build_schedule(settings["schedule"], optimizer, EPOCH, settings["max_epochs"])
    sampler = EpochBatchSampler(len(images), 8, settings["seed"])
    return ConRecTrainer(
        "cpu",
        settings["max_epochs"],
        DataLoader(images, batch_sampler=sampler, collate_fn=batched),
        network,
        optimizer,
        ConRecLoss(),
        TwoViews(32).set_random_state(settings["seed"]),
        False,
        [
            RunCheckpoint(output_dir, network, PREPROCESSING, settings, schedule, resume, max_minutes=max_minutes),
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
            *handlers,
        ],
    )


def assert_same_end(a: ConRecTrainer, b: ConRecTrainer) -> None:
    states = [trainer.network.state_dict() for trainer in (a, b)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for x, y in zip(*(trainer.optimizer.state_dict()["state"].values() for trainer in (a, b)), strict=True):
        assert torch.equal(x["momentum_buffer"], y["momentum_buffer"])
    assert a.optimizer.param_groups[0]["lr"] == b.optimizer.param_groups[0]["lr"]
    assert a.state.iteration == b.state.iteration and a.state.epoch == b.state.epoch


@pytest.fixture(scope="module")
def whole(images: CachedImages, tmp_path_factory: pytest.TempPathFactory) -> tuple[ConRecTrainer, Path]:
    """A run that nothing interrupts, and its folder."""
    path = tmp_path_factory.mktemp("whole")
    trainer = make_run(images, path)
    trainer.run()
    return trainer, path


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_files_of_a_run(whole: tuple[ConRecTrainer, Path]) -> None:
    trainer, path = whole
    assert sorted(file.name for file in path.iterdir()) == ["checkpoint.pt", "encoder.pt"]
    for found, expected in (
        (load_model(path / "checkpoint.pt"), trainer.network),
        (load_encoder(path / "checkpoint.pt"), trainer.network.encoder),
        (load_encoder(path / "encoder.pt"), trainer.network.encoder),
    ):
        weights = expected.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in found.state_dict().items())
    for name in ("checkpoint.pt", "encoder.pt"):
        assert read_checkpoint(path / name)["preprocessing"] == PREPROCESSING
    training = read_checkpoint(path / "checkpoint.pt")["training"]
    assert training["iteration"] == 3 * EPOCH and training["settings"] == SETTINGS
    assert "training" not in read_checkpoint(path / "encoder.pt")


def test_checkpoint_after_every_epoch_behind_all_others(images: CachedImages, tmp_path: Path) -> None:
    found = []

    def look(engine: Engine) -> None:
        path = tmp_path / "checkpoint.pt"
        found.append(read_checkpoint(path)["training"]["iteration"] if path.exists() else 0)

    trainer = make_run(images, tmp_path, max_epochs=2)
    trainer.add_event_handler(Events.EPOCH_STARTED | Events.EPOCH_COMPLETED, look)
    trainer.run()
    assert found == [0, 0, EPOCH, EPOCH]  # started, completed, started, completed


# --- interrupted and gone on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("iteration", "number", "words"),
    [
        (2, signal.SIGINT, "2 of 5 iterations of epoch 1"),
        (8, signal.SIGTERM, "3 of 5 iterations of epoch 2"),
        (10, signal.SIGTERM, "5 of 5 iterations of epoch 2"),
    ],
)
def test_interrupted_run_goes_on_bit_for_bit(
    iteration: int,
    number: int,
    words: str,
    images: CachedImages,
    whole: tuple[ConRecTrainer, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "conrec_monai")
    first = make_run(images, tmp_path, At(iteration, lambda: signal.raise_signal(number)))
    epochs: list[int] = []
    first.add_event_handler(Events.EPOCH_COMPLETED, lambda: epochs.append(first.state.epoch))
    with pytest.raises(SystemExit) as stop:
        first.run()
    assert str(stop.value) == (
        f"Interrupted after {words}. Saved to {tmp_path / 'checkpoint.pt'};"
        " the same command with --resume True goes on from there."
    )
    assert first.state.iteration == iteration
    assert epochs == list(range(1, iteration // EPOCH + 1))  # an epoch that was done is completed, with its metrics
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert "interrupted: saving after this iteration (interrupt again to stop at once)" in caplog.messages

    torch.manual_seed(99)
    second = make_run(images, tmp_path, resume=True, seed=5)
    iterations: list[int] = []
    second.add_event_handler(Events.ITERATION_STARTED, lambda: iterations.append(second.state.iteration))
    second.run()
    assert iterations == list(range(iteration + 1, 3 * EPOCH + 1))
    assert f"going on after epoch {iteration // EPOCH}, iteration {iteration}" in caplog.messages
    assert_same_end(second, whole[0])
    files = [read_checkpoint(path / "encoder.pt")["state_dict"] for path in (tmp_path, whole[1])]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[1])
    assert second.state.metrics == whole[0].state.metrics


@pytest.mark.parametrize("iteration", [8, 10])
def test_stopped_by_the_clock_the_run_ends_and_goes_on(
    iteration: int,
    images: CachedImages,
    whole: tuple[ConRecTrainer, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Within an epoch or at its end: the encoder is written, and the rest is the run that nothing stopped."""
    caplog.set_level(logging.INFO, "conrec_monai")
    clock = [100.0]
    monkeypatch.setattr("conrec_monai.handlers.checkpoint.time.monotonic", lambda: clock[0])
    early = At(iteration - 1, lambda: clock.__setitem__(0, 129.9), Events.ITERATION_STARTED)
    late = At(iteration, lambda: clock.__setitem__(0, 130.0), Events.ITERATION_STARTED)
    first = make_run(images, tmp_path, early, late, max_minutes=0.5)
    first.run()
    assert first.state.iteration == iteration
    place = f"after {iteration - EPOCH} of 5 iterations of epoch 2"
    assert (
        f"max_minutes, 0.5, have passed: stopped {place}; the same command with --resume True goes on from there."
        in (caplog.messages)
    )
    weights, stopped = first.network.encoder.state_dict(), read_checkpoint(tmp_path / "encoder.pt")
    assert all(torch.equal(value, weights[name]) for name, value in stopped["state_dict"].items())
    assert stopped["pretraining"]["epoch"] == iteration // EPOCH

    second = make_run(images, tmp_path, resume=True, seed=5, max_minutes=0.5)
    second.run()
    assert_same_end(second, whole[0])
    assert second.state.metrics == whole[0].state.metrics


def test_interrupted_in_the_last_iteration_the_run_is_done(
    images: CachedImages, whole: tuple[ConRecTrainer, Path], tmp_path: Path
) -> None:
    trainer = make_run(images, tmp_path, At(3 * EPOCH, lambda: signal.raise_signal(signal.SIGTERM)))
    trainer.run()
    assert_same_end(trainer, whole[0])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.pt", "encoder.pt"]


def test_interrupted_between_epochs(images: CachedImages, whole: tuple[ConRecTrainer, Path], tmp_path: Path) -> None:
    first = make_run(images, tmp_path, At(EPOCH, lambda: signal.raise_signal(signal.SIGTERM), Events.EPOCH_STARTED))
    with pytest.raises(SystemExit, match="Interrupted after 1 of 5 iterations of epoch 2"):
        first.run()
    second = make_run(images, tmp_path, resume=True)
    second.run()
    assert_same_end(second, whole[0])


def test_second_interrupt_stops_at_once(images: CachedImages, tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    trainer = make_run(images, tmp_path, At(7, twice))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert read_checkpoint(tmp_path / "checkpoint.pt")["training"]["iteration"] == EPOCH  # that of the first epoch


def test_error_gives_the_signals_back(images: CachedImages, tmp_path: Path) -> None:
    def fail() -> None:
        raise ArithmeticError("an error of the training")

    trainer = make_run(images, tmp_path, At(2, fail))
    with pytest.raises(ArithmeticError, match="an error of the training"):
        trainer.run()  # the fixture looks at the signals


def test_earlier_signal_handler_is_back_after_the_run(images: CachedImages, tmp_path: Path) -> None:
    calls: list[int] = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    try:
        make_run(images, tmp_path, max_epochs=1).run()
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, old)
    assert calls == [signal.SIGTERM]


def test_run_in_another_thread(images: CachedImages, tmp_path: Path) -> None:
    trainer = make_run(images, tmp_path, max_epochs=1)  # signals are for the main thread alone
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join()
    assert (tmp_path / "encoder.pt").is_file()


def test_failed_save_leaves_the_last_checkpoint(
    images: CachedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    trainer = make_run(images, tmp_path, At(EPOCH + 1, lambda: monkeypatch.setattr(torch, "save", half)))
    with pytest.raises(OSError, match="No space left"):
        trainer.run()
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert read_checkpoint(tmp_path / "checkpoint.pt")["training"]["iteration"] == EPOCH


def test_diverged_run_stops_and_keeps_the_last_checkpoint(images: CachedImages, tmp_path: Path) -> None:
    def diverge() -> None:
        with torch.no_grad():
            trainer.network.encoder.levels[0].conv_0.conv.weight.fill_(float("nan"))

    path = tmp_path / "checkpoint.pt"
    trainer = make_run(images, tmp_path, At(EPOCH + 1, diverge))
    with pytest.raises(SystemExit) as stop:
        trainer.run()
    assert stop.value.code == (
        f"Error: the loss is nan in epoch 2; the run has diverged. {path} is still that of an earlier epoch;"
        " try a smaller learning_rate."
    )
    assert read_checkpoint(path)["training"]["iteration"] == EPOCH
    assert not (tmp_path / "encoder.pt").exists()

    (tmp_path / "b").mkdir()
    trainer = make_run(images, tmp_path / "b", At(1, diverge))
    with pytest.raises(SystemExit, match="^Error: the loss is nan in epoch 1; the run has diverged. nothing was saved"):
        trainer.run()
    assert not any((tmp_path / "b").iterdir())


# --- what may go on ---------------------------------------------------------------------------------------------------


def test_resume_without_checkpoint_starts(
    images: CachedImages, whole: tuple[ConRecTrainer, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_run(images, tmp_path, resume=True)
    with caplog.at_level(logging.INFO, "conrec_monai"):
        trainer.run()
    assert f"nothing to go on from in {tmp_path}: the run begins anew" in caplog.text
    assert_same_end(trainer, whole[0])


def test_finished_run_is_done(
    images: CachedImages, whole: tuple[ConRecTrainer, Path], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_run(images, whole[1], resume=True, seed=5)
    with caplog.at_level(logging.INFO, "conrec_monai"):
        trainer.run()
    assert "the run is complete after epoch 3" in caplog.messages  # other schedules refuse a larger max_epochs
    assert trainer.state.output is None  # no iteration
    assert_same_end(trainer, whole[0])


def test_longer_run_goes_on(images: CachedImages, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A constant learning rate does not depend on the length of the run, which may grow."""
    make_run(images, tmp_path, schedule="constant", max_epochs=1).run()
    with caplog.at_level(logging.INFO, "conrec_monai"):
        make_run(images, tmp_path, schedule="constant", max_epochs=1, resume=True).run()
    assert "the run is complete after epoch 1; a larger max_epochs goes on" in caplog.messages
    longer = make_run(images, tmp_path, schedule="constant", max_epochs=2, resume=True, seed=5)
    longer.run()
    (tmp_path / "b").mkdir()
    whole = make_run(images, tmp_path / "b", schedule="constant", max_epochs=2)
    whole.run()
    assert_same_end(longer, whole)


@pytest.mark.parametrize(
    ("new", "difference"),
    [
        ({"seed": 1}, "seed 0 then, 1 now"),
        ({"max_epochs": 4}, "max_epochs 3 then, 4 now"),
        ({"schedule": "constant", "max_epochs": 5}, "schedule 'warmup_cosine' then, 'constant' now"),
        ({"features": [4, 16]}, "features [4, 8] then, [4, 16] now"),
        ({"alpha": 1.0}, "alpha None then, 1.0 now"),
        ({"seed": 1, "image_size": 64}, "image_size 32 then, 64 now, seed 0 then, 1 now"),
    ],
)
def test_other_settings_are_refused(new: dict[str, Any], difference: str, whole: tuple[ConRecTrainer, Path]) -> None:
    path = whole[1] / "checkpoint.pt"
    with pytest.raises(ValueError) as error:
        check_resume(path, {**SETTINGS, **new})
    assert str(error.value) == f"the run cannot go on from {path} with other settings: {difference}."


def test_settings_that_change_nothing_are_free(whole: tuple[ConRecTrainer, Path]) -> None:
    free = {
        "dataset_dir": "b",
        "output_dir": "c",
        "num_workers": 8,
        "probe_every": 1,
        "pictures_every": 1,
        "resume": True,
    }
    assert check_resume(whole[1] / "checkpoint.pt", {**SETTINGS, **free})["training"]["settings"] == SETTINGS


def test_run_refuses_other_settings(images: CachedImages, whole: tuple[ConRecTrainer, Path]) -> None:
    trainer = make_run(images, whole[1], resume=True, image_size=64)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    with pytest.raises(ValueError, match="with other settings: image_size 32 then, 64 now"):
        trainer.run()
    assert trainer.state.iteration == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())


def test_other_images_are_refused(images: CachedImages, tmp_path: Path) -> None:
    trainer = make_run(images, tmp_path, max_epochs=1)
    items = [{"id": name} for name in images.ids]
    RunCheckpoint(tmp_path, trainer.network, PREPROCESSING, SETTINGS, data=items).save(trainer)
    path = tmp_path / "checkpoint.pt"
    check_resume(path, SETTINGS, items)
    check_resume(path, SETTINGS)
    for others in (items[:-1], items[::-1], [{"id": "new"}, *items[1:]]):
        with pytest.raises(ValueError) as error:
            check_resume(path, SETTINGS, others)
        assert str(error.value) == (
            f"the run cannot go on from {path}: its images were others than the {len(others)} of this run: ids or their"
            " order differ, or (of a grading run) labels, parts or contents."
        )


def test_what_the_run_saw_is_written_down(images: CachedImages, tmp_path: Path) -> None:
    trainer = make_run(images, tmp_path, max_epochs=1)
    items = [{"id": name} for name in images.ids]
    handler = RunCheckpoint(
        tmp_path, trainer.network, PREPROCESSING, SETTINGS, data=items, hashes=lambda: images.hashes
    )
    trainer.state.iteration, trainer.state.epoch_length = 2 * EPOCH + 1, EPOCH
    handler.save(trainer)
    handler._finish(trainer)
    for name in ("checkpoint.pt", "encoder.pt"):
        pretraining = torch.load(tmp_path / name, weights_only=True)["pretraining"]
        assert pretraining["settings"] == SETTINGS and pretraining["epoch"] == 2
        assert torch.equal(pretraining["image_hashes"], images.hashes.unique())


def test_weights_of_another_network(images: CachedImages, whole: tuple[ConRecTrainer, Path], tmp_path: Path) -> None:
    content = torch.load(whole[1] / "checkpoint.pt", weights_only=True)
    content["training"]["settings"]["features"] = [4, 16]
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt does not fit ConRecUNet: weights .* of another shape"):
        make_run(images, tmp_path, resume=True, features=[4, 16]).run()


def test_encoder_holds_no_training_state(whole: tuple[ConRecTrainer, Path]) -> None:
    with pytest.raises(ValueError, match=r"encoder\.pt holds no training state to go on from; a run's checkpoint\.pt"):
        check_resume(whole[1] / "encoder.pt", SETTINGS)
