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
import time
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events

from conrec_monai.utils import duration, progress_bar

__all__ = ["ProgressHandler"]

# of the parts of a loss, in a line
_NAMES = {
    "contrastive_loss": "contrastive",
    "reconstruction_loss": "reconstruction",
    "contrastive_accuracy": "accuracy",
}
_DIGITS = {"contrastive_loss": 4, "reconstruction_loss": 5}


class ProgressHandler:
    """Shows how a training goes: loss parts, images per second, the share of time spent waiting for data, and the
    time left for the whole run.

    On a terminal a live bar; everywhere one log line per epoch. Adds to ``engine.state.metrics``, every epoch:
    ``images_per_second``, and ``data_wait``, the share of its iterations' time (of the host, not the device) that went
    by until the next batch was there: near 0 where the data keeps up.

    Args:
        batch_size: images per iteration, of all processes together.
        name: of the logger.
    """

    def __init__(self, batch_size: int, name: str = "conrec_monai") -> None:
        self.batch_size = batch_size
        self.logger = logging.getLogger(name)
        self._bar: Any = None
        self._drawn = 0.0

    def attach(self, engine: Engine) -> None:
        """Attaches to a :class:`conrec_monai.engines.BatchTrainer`, ahead of handlers that write metrics."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._receive)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self._close)

    def _start(self, engine: Engine) -> None:
        self._first_iteration, self._start_time = engine.state.iteration, time.monotonic()
        self._bar = progress_bar(
            total=engine.state.epoch_length * engine.state.max_epochs * self.batch_size,
            initial=engine.state.iteration * self.batch_size,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
        )

    def _start_epoch(self, engine: Engine) -> None:
        self._epoch_iteration = engine.state.iteration
        self._epoch_time = self._iterated = time.monotonic()
        self._waited = 0.0

    def _ask(self, engine: Engine) -> None:
        self._asked = time.monotonic()

    def _receive(self, engine: Engine) -> None:
        self._waited += time.monotonic() - self._asked

    def _iteration(self, engine: Engine) -> None:
        now = self._iterated = time.monotonic()
        self._bar.update(self.batch_size)
        if not self._bar.disable and now - self._drawn > 1:
            self._drawn = now
            self._bar.set_description(f"epoch {engine.state.epoch}/{engine.state.max_epochs}", refresh=False)
            metrics = engine.recent_metrics()
            if metrics:
                waited = self._waited / max(now - self._epoch_time, 1e-9)
                self._bar.set_postfix_str(f"{_parts(engine, metrics)}, {waited:.0%} waiting for data")

    def _finish_epoch(self, engine: Engine) -> None:
        state, now = engine.state, time.monotonic()  # the trainer has waited for the device by now
        metrics = state.metrics
        images = (state.iteration - self._epoch_iteration) * self.batch_size
        metrics["images_per_second"] = images / max(now - self._epoch_time, 1e-9)
        # other handlers may have taken their time since the last iteration
        metrics["data_wait"] = self._waited / max(self._iterated - self._epoch_time, 1e-9)
        left = state.epoch_length * state.max_epochs - state.iteration
        seconds = left * (now - self._start_time) / max(state.iteration - self._first_iteration, 1)
        line = (
            f"epoch {state.epoch}/{state.max_epochs}: {_parts(engine, metrics)},"
            f" {metrics['images_per_second']:.1f} images/s, {metrics['data_wait']:.1%} waiting for data,"
            f" {duration(seconds)} left"
        )
        if self._bar is not None:
            self._bar.clear()
        self.logger.info(line)

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()


def _parts(engine: Engine, metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{_NAMES.get(name, name)} {metrics[name]:.{_DIGITS.get(name, 3)}f}" for name in engine.parts)
