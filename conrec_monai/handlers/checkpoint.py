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

import hashlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.networks.utils import load_weights, read_checkpoint, save_checkpoint
from conrec_monai.utils import rank, world_size

__all__ = ["CHECKPOINT", "ENCODER", "RunCheckpoint", "check_resume", "data_fingerprint"]

CHECKPOINT = "checkpoint.pt"
ENCODER = "encoder.pt"
# Settings that may change when a run goes on: the numbers it computes do not depend on them, or by rounding alone.
FREE_SETTINGS = {
    "recipe",  # names the values of others
    "dataset_dir",
    "output_dir",
    "num_workers",
    "cache_dir",
    "channels_last",
    "compile",
    "gradient_checkpointing",
    "sync_batchnorm",
    "encoder_half",
    "probe_dir",
    "probe_every",
    "pictures_every",
    "health_every",
    "checkpoint_every",
    "max_minutes",
    "validate_every",
    "early_stop_patience",
    "on_error",
    "label_key",
    "group_key",
    "resume",
}


def data_fingerprint(data: Sequence[Mapping[str, Any]]) -> str:
    """A hash of the ids of a run's images, in their order."""
    return hashlib.sha256("\0".join(str(item["id"]) for item in data).encode("utf-8", "surrogateescape")).hexdigest()


def check_resume(
    path: str | os.PathLike, settings: Mapping[str, Any], data: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Reads the checkpoint of a run that is to go on.

    Args:
        path: of ``checkpoint.pt``.
        settings: of the run that goes on. ``max_epochs`` may differ when the learning rate is constant.
        data: items of the run that goes on, whose ids are compared; None to leave that out.

    Raises:
        FileNotFoundError, ValueError: when it cannot be read, holds no training state, or settings or
            images differ.
    """
    content = read_checkpoint(path)
    if "training" not in content:
        raise ValueError(f"{path} holds no training state to go on from; a run's {CHECKPOINT} does.")
    if "random" not in content["training"]:
        raise ValueError(f"{path} is of an earlier release: its weights can be loaded, but the run cannot go on.")
    free = FREE_SETTINGS | ({"max_epochs"} if settings.get("schedule") == "constant" else set())
    old = content["training"]["settings"]
    names = [name for name in settings if name not in free and old.get(name) != settings[name]]
    if names:
        differences = ", ".join(f"{name} {old.get(name)!r} then, {settings[name]!r} now" for name in names)
        raise ValueError(f"the run cannot go on from {path} with other settings: {differences}.")
    if data is not None and content["training"].get("data") not in (None, data_fingerprint(data)):
        raise ValueError(
            f"the run cannot go on from {path}: its images were others than the {len(data)} of this run: ids or their"
            " order differ, or (of a grading run) labels, parts or contents."
        )
    return content


class RunCheckpoint:
    """Keeps the run: saves after each epoch and when it is interrupted, goes on from there, writes the encoder.

    ``checkpoint.pt`` (the network and the state of the training) is replaced after each epoch, and, on SIGINT (Ctrl-C)
    or SIGTERM, after the iteration under way; the run then ends with a message that says how to go on. At the end of
    the run ``encoder.pt`` is written, which :func:`conrec_monai.load_encoder` reads.

    Args:
        output_dir: folder of the files; it exists.
        network: that is trained.
        preprocessing: see :func:`conrec_monai.networks.utils.save_checkpoint`.
        settings: of the run, plain values.
        lr_scheduler: whose state is kept too; None without one.
        resume: go on from ``checkpoint.pt`` in ``output_dir`` where there is one.
        data: items of the run; a run goes on with the same ones only. None to leave that out.
        every: epochs between checkpoints that are kept beside it, as ``checkpoint_epoch_0100.pt``; 0 for none.
        max_minutes: the run is stopped after the iteration in which so much time has passed since it began, or went on.
            It ends as a whole one does, and can go on. None for no limit.
        hashes: gives the hashes of the run's images (see :class:`conrec_monai.data.CachedImages`), which an evaluation
            needs to tell whether it scores on images of the pretraining; None to leave that out.
        half: whether ``encoder.pt`` holds its weights in half precision (float16), in half the space. They are float32
            again when they are loaded, rounded to some 3 digits.

    Each file has an entry ``pretraining``: ``{"settings", "epoch", "image_hashes"}``; the hashes are sorted.

    In several processes (attach it in each) the first one writes; an interruption is left to the launcher, and the run
    goes on from the last completed epoch, at the end of which alone it is stopped by ``max_minutes``.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        network: ConRecUNet,
        preprocessing: Mapping[str, Any],
        settings: Mapping[str, Any],
        lr_scheduler: LRScheduler | None = None,
        resume: bool = False,
        data: Sequence[Mapping[str, Any]] | None = None,
        every: int = 0,
        hashes: Callable[[], Tensor] | None = None,
        max_minutes: float | None = None,
        half: bool = False,
    ) -> None:
        if every < 0:
            raise ValueError(f"every must not be negative, got {every}.")
        if max_minutes is not None and not 0 < max_minutes < math.inf:
            raise ValueError(f"max_minutes must be positive, got {max_minutes}.")
        self.every, self.max_minutes = every, max_minutes
        self.half = half
        self._end = math.inf
        self.hashes = hashes
        self.output_dir = Path(output_dir)
        self.network, self.preprocessing, self.settings = network, dict(preprocessing), dict(settings)
        self.data = data
        self.lr_scheduler, self.resume = lr_scheduler, resume
        self.logger = logging.getLogger("conrec_monai")
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Attach it first: others see the state that the run goes on from. It saves after all others."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Engine) -> None:
        path = self.output_dir / CHECKPOINT
        if self.resume and path.is_file():
            content = check_resume(path, self.settings, self.data)
            load_weights(self.network, content["state_dict"], str(path))
            engine.load_training_state(content["training"])
            if self.lr_scheduler is not None:
                self.lr_scheduler.load_state_dict(content["training"]["lr_scheduler"])
            if engine.state.epoch >= engine.state.max_epochs:
                on = "; a larger max_epochs goes on" if self.settings.get("schedule") == "constant" else ""
                self.logger.info(f"the run is complete after epoch {engine.state.epoch}{on}")
            else:
                self.logger.info(f"going on after epoch {engine.state.epoch}, iteration {engine.state.iteration}")
        elif self.resume:
            self.logger.info(f"nothing to go on from in {self.output_dir}: the run begins anew")
        if self.max_minutes is not None:
            self._end = time.monotonic() + 60 * self.max_minutes
        if threading.current_thread() is threading.main_thread() and world_size() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._interrupt)
        if not engine.has_event_handler(self.save, Events.EPOCH_COMPLETED):  # now: behind those of all other handlers
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._stop_if_interrupted)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def _interrupt(self, number: int, frame: Any) -> None:
        if self._signal is not None:  # the second time at once
            self._restore_signals()
            raise KeyboardInterrupt
        self._signal = number
        self.logger.info("interrupted: saving after this iteration (interrupt again to stop at once)")

    def _stop_if_interrupted(self, engine: Engine) -> None:
        # After the last iteration of an epoch its metrics are still to come: the epoch is completed first.
        # Several processes agree on the time at the end of an epoch alone.
        stop = self._signal is not None or world_size() == 1 and self._time_is_up()
        if stop and engine.state.iteration % engine.state.epoch_length:
            self.save(engine)

    def _time_is_up(self) -> bool:
        """Whether it is in any of the processes."""
        late = time.monotonic() >= self._end
        if self.max_minutes is None or world_size() == 1:
            return late
        everyone = [late] * world_size()
        dist.all_gather_object(everyone, late)
        return any(everyone)

    def save(self, engine: Engine) -> None:
        """Writes ``checkpoint.pt``; ends the run when it was interrupted, when its time is up, or when its loss is no
        longer finite."""
        path = self.output_dir / CHECKPOINT
        within = engine.state.iteration % engine.state.epoch_length  # else the mean over all processes is known
        loss = {**engine.running_metrics(), **({} if within else engine.state.metrics)}["loss"]
        if not math.isfinite(loss):
            self._restore_signals()
            kept = f"{path} is still that of an earlier epoch" if path.is_file() else "nothing was saved"
            raise SystemExit(
                f"Error: the loss is {loss} in epoch {engine.state.epoch}; the run has diverged. {kept}; try a smaller"
                " learning_rate."
            )
        training = {
            **engine.training_state(),
            "settings": self.settings,
            "data": None if self.data is None else data_fingerprint(self.data),
            "lr_scheduler": None if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
        }
        done, length = engine.state.iteration, engine.state.epoch_length
        unfinished = done < length * engine.state.max_epochs
        stopped = self._time_is_up() and unfinished and self._signal is None
        if stopped:
            engine.terminate()
        if rank():
            return
        entries = {"training": training, **self._entries(engine)}
        save_checkpoint(path, self.network, self.preprocessing, **entries)
        if self.every and not within and engine.state.epoch % self.every == 0:
            snapshot = self.output_dir / f"checkpoint_epoch_{engine.state.epoch:04d}.pt"
            save_checkpoint(snapshot, self.network, self.preprocessing, **entries)
        if not unfinished:
            return
        place = f"after {done % length or length} of {length} iterations of epoch {engine.state.epoch}"
        on = "the same command with --resume True goes on from there."
        if self._signal is not None:
            self._restore_signals()
            raise SystemExit(f"Interrupted {place}. Saved to {path}; {on}")
        if stopped:
            self.logger.info(f"max_minutes, {self.max_minutes:g}, have passed: stopped {place}; {on}")

    def _finish(self, engine: Engine) -> None:
        self._restore_signals()
        if rank():
            return
        path = self.output_dir / ENCODER
        save_checkpoint(path, self.network.encoder, self.preprocessing, self.half, **self._entries(engine))
        self.logger.info(f"encoder written to {path}")

    def _entries(self, engine: Engine) -> dict[str, Any]:
        """What the files say of the run."""
        images = None if self.hashes is None else torch.unique(self.hashes())
        return {"pretraining": {"settings": self.settings, "epoch": self._epoch(engine), "image_hashes": images}}

    @staticmethod
    def _epoch(engine: Engine) -> int:
        """The last completed epoch."""
        return engine.state.iteration // max(1, engine.state.epoch_length or 1)

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._restore_signals()
        raise error

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
