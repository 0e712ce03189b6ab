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
import sys
import time

from ignite.engine import Engine, Events
from tqdm import tqdm

__all__ = ["ProgressHandler"]


class ProgressHandler:
    """Shows how a pretraining goes: images per second, time left for the whole run, and the loss parts.

    On a terminal a live bar; everywhere one log line per epoch. Adds ``images_per_second`` to ``engine.state.metrics``.

    Args:
        batch_size: images per iteration.
        name: of the logger.
    """

    def __init__(self, batch_size: int, name: str = "conrec_monai") -> None:
        self.batch_size = batch_size
        self.logger = logging.getLogger(name)
        self._bar: tqdm | None = None
        self._drawn = 0.0

    def attach(self, engine: Engine) -> None:
        """Attaches to a :class:`conrec_monai.engines.ConRecTrainer`."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self._close)

    def _start(self, engine: Engine) -> None:
        self._first_iteration, self._start_time = engine.state.iteration, time.monotonic()
        self._bar = tqdm(
            total=engine.state.epoch_length * engine.state.max_epochs * self.batch_size,
            initial=engine.state.iteration * self.batch_size,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def _start_epoch(self, engine: Engine) -> None:
        self._epoch_iteration, self._epoch_time = engine.state.iteration, time.monotonic()

    def _iteration(self, engine: Engine) -> None:
        assert self._bar is not None
        self._bar.update(self.batch_size)
        if not self._bar.disable and time.monotonic() - self._drawn > 1:  # reading the metrics waits for the device
            self._drawn = time.monotonic()
            metrics = engine.running_metrics()
            self._bar.set_description(f"epoch {engine.state.epoch}/{engine.state.max_epochs}", refresh=False)
            self._bar.set_postfix_str(
                f"loss {metrics['loss']:.2f}, contrastive {metrics['contrastive_loss']:.3f},"
                f" reconstruction {metrics['reconstruction_loss']:.4f}"
            )

    def _finish_epoch(self, engine: Engine) -> None:
        state, now = engine.state, time.monotonic()
        images = (state.iteration - self._epoch_iteration) * self.batch_size
        state.metrics["images_per_second"] = images / max(now - self._epoch_time, 1e-9)
        left = state.epoch_length * state.max_epochs - state.iteration
        seconds = left * (now - self._start_time) / max(state.iteration - self._first_iteration, 1)
        metrics = state.metrics
        line = (
            f"epoch {state.epoch}/{state.max_epochs}: loss {metrics['loss']:.3f},"
            f" contrastive {metrics['contrastive_loss']:.4f}, reconstruction {metrics['reconstruction_loss']:.5f},"
            f" accuracy {metrics['contrastive_accuracy']:.3f},"
            f" {metrics['images_per_second']:.1f} images/s, {_duration(seconds)} left"
        )
        if self._bar is not None:
            self._bar.clear()
        self.logger.info(line)

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
