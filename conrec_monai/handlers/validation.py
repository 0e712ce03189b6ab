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

import monai.handlers
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping

from conrec_monai.utils import world_size

__all__ = ["EarlyStop", "ValidationHandler"]


class ValidationHandler(monai.handlers.ValidationHandler):
    """:class:`monai.handlers.ValidationHandler` whose scores stand beside those of the training: the evaluator's metric
    ``loss`` becomes ``val_loss`` in the trainer's ``engine.state.metrics``, and so on, in the epochs that validate.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._clear)
        super().attach(engine)

    def _clear(self, engine: Engine) -> None:
        for name in [name for name in engine.state.metrics if name.startswith("val_")]:
            del engine.state.metrics[name]

    def __call__(self, engine: Engine) -> None:
        super().__call__(engine)
        assert self.validator is not None
        metrics = self.validator.state.metrics
        engine.state.metrics.update({f"val_{name}": value for name, value in metrics.items()})
        logging.getLogger("conrec_monai").info(
            "validation: " + ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())
        )


class EarlyStop:
    """Ends a run that no longer gets better: :class:`ignite.handlers.EarlyStopping` on a metric of the trainer.

    Attach it behind :class:`ValidationHandler` and before the writers of metrics. Its count is part of the state of the
    training: a run that has stopped early does not go on when it is resumed, unless ``patience`` is larger. In several
    processes the first one's metric decides, and becomes that of all.

    Args:
        patience: epochs with the metric but without improvement; 0 to never stop early.
        metric: such as ``loss``, or ``val_loss`` in a run that validates.
        rising: whether the metric should rise; else it should fall.
    """

    def __init__(self, patience: int, metric: str = "loss", rising: bool = False) -> None:
        if patience < 0:
            raise ValueError(f"patience must not be negative, got {patience}.")
        self.patience, self.metric, self.rising = patience, metric, rising
        self.logger = logging.getLogger("conrec_monai")

    def attach(self, engine: Engine) -> None:
        """Attaches to a :class:`conrec_monai.engines.BatchTrainer`."""
        if not self.patience:
            return
        sign = 1 if self.rising else -1
        self.stopping = EarlyStopping(self.patience, lambda e: sign * e.state.metrics[self.metric], engine)
        engine.stateful["early_stop"] = self.stopping
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)

    def _start(self, engine: Engine) -> None:
        if self.stopping.counter >= self.patience:
            self.logger.info(f"the run had stopped early after epoch {engine.state.epoch}; a larger patience goes on")
            engine.terminate()

    def _check(self, engine: Engine) -> None:
        if self.metric not in engine.state.metrics:  # an epoch that does not validate
            return
        if world_size() > 1:  # rounded otherwise, they would stop in different epochs, and wait for each other
            value = [engine.state.metrics[self.metric]]
            dist.broadcast_object_list(value)
            engine.state.metrics[self.metric] = value[0]
        self.stopping(engine)
        sign = 1 if self.rising else -1
        if self.stopping.counter >= self.patience:
            best, moved = sign * (self.stopping.best_score or 0), "risen above" if self.rising else "fallen below"
            self.logger.info(
                f"stopping early: {self.metric} has not {moved} {best:.4f} for {self.patience} evaluations"
            )
