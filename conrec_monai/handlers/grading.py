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

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import PrepareBatch
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from conrec_monai.engines import PrepareUnitBatch
from conrec_monai.evaluation.calibration import HIGH, LOW, calibrate, graded
from conrec_monai.evaluation.metrics import METRICS
from conrec_monai.handlers.checkpoint import RunCheckpoint
from conrec_monai.handlers.health import evaluating
from conrec_monai.networks.nets import GradingNet
from conrec_monai.networks.utils import load_weights, read_checkpoint, save_checkpoint
from conrec_monai.utils import rank

__all__ = ["BEST", "MODEL", "GradingCheckpoint", "GradingScores"]

BEST = "best.pt"
MODEL = "model.pt"


class GradingScores:
    """Scores of a :class:`monai.engines.SupervisedEvaluator` whose network is a
    :class:`conrec_monai.networks.nets.GradingNet`, in ``engine.state.metrics`` at the end of its run: ``qwk``,
    ``accuracy`` and ``nll``, the mean negative logarithm of the probability of the true grade.

    The evaluator does not decollate; each of several processes evaluates all images.

    Args:
        task: of the network.
    """

    def __init__(self, task: str) -> None:
        self.task = task
        self._parts: list[tuple[Tensor, Tensor]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self._parts = []

    def _collect(self, engine: Engine) -> None:
        self._parts.append((engine.state.output[Keys.PRED], engine.state.output[Keys.LABEL]))

    def _finish(self, engine: Engine) -> None:
        probabilities, labels = (torch.cat(parts).cpu().numpy() for parts in zip(*self._parts, strict=True))
        if not np.isfinite(probabilities).all():
            raise ValueError("probabilities are not finite: the training has diverged; try a smaller learning_rate.")
        said = graded(np.arange(len(labels)), probabilities, self.task)
        for name in ("qwk", "accuracy"):
            engine.state.metrics[name] = METRICS[name](labels, said.predicted, said.probabilities)
        likely = said.probabilities[np.arange(len(labels)), labels].clip(1e-7)
        engine.state.metrics["nll"] = float(-np.log(likely).mean())


class _Best:
    """The best epoch so far; part of the training's state."""

    def __init__(self) -> None:
        self.score, self.epoch = (-math.inf, -math.inf), 0

    def state_dict(self) -> dict[str, Any]:
        return {"score": list(self.score), "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.score, self.epoch = tuple(state["score"]), state["epoch"]


class GradingCheckpoint(RunCheckpoint):
    """Keeps the run of a grading network: the last epoch, the best one, and at the end the calibrated network.

    ``checkpoint.pt`` as in :class:`RunCheckpoint`. ``best.pt`` is the network of the epoch with the highest ``metric``
    (of equal ones that with the lowest ``val_nll``). At the end of the run its probabilities are calibrated on the
    validation images (:func:`conrec_monai.evaluation.calibrate`), and ``model.pt`` is written: what inference and
    evaluation take. It has an entry ``grading``: ``{"settings", "classes", "ordinal", "epoch", "validation",
    "image_hashes"}``, the metrics of the validation part after the calibration, and the sorted hashes of all images
    that the network has learned from, those of the validation part included; and an entry ``pretraining``, that of its
    encoder's checkpoint. ``best.pt`` and ``checkpoint.pt`` have them too, with None as ``validation``: they are not
    calibrated.

    Args:
        output_dir, network, preprocessing, settings, lr_scheduler, resume, data, max_minutes: see
            :class:`RunCheckpoint`.
        start: what the network's encoder comes from: its ``pretraining``, which becomes an entry of the files, and the
            hashes ``labeled`` of images whose labels it knows already, which join ``image_hashes``; both may be None.
        validation: batches of the validation part, as those of the training.
        classes: name of each grade.
        ordinal: whether they are ordered.
        metric: of the trainer, that should rise.
        hashes: gives the hashes of the images of training and validation part.
        prepare_batch: of the validation part's batches.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        network: GradingNet,
        preprocessing: Mapping[str, Any],
        settings: Mapping[str, Any],
        validation: Iterable,
        classes: Sequence[str],
        ordinal: bool = True,
        metric: str = "val_qwk",
        lr_scheduler: LRScheduler | None = None,
        resume: bool = False,
        data: Sequence[Mapping[str, Any]] | None = None,
        hashes: Callable[[], Tensor] | None = None,
        start: Any = None,
        max_minutes: float | None = None,
        prepare_batch: PrepareBatch | None = None,
    ) -> None:
        super().__init__(
            output_dir,
            network,  # type: ignore[arg-type]
            preprocessing,
            settings,
            lr_scheduler,
            resume,
            data,
            hashes=hashes,
            max_minutes=max_minutes,
        )
        self.grader, self.validation, self.metric = network, validation, metric
        self.classes, self.ordinal = list(classes), ordinal
        self.prepare_batch = PrepareUnitBatch() if prepare_batch is None else prepare_batch
        self.pretraining = None if start is None else start.pretraining
        self.labeled = torch.empty(0, dtype=torch.int64) if start is None else start.labeled
        self.best = _Best()

    def attach(self, engine: Engine) -> None:
        engine.stateful["best"] = self.best
        super().attach(engine)

    def _start(self, engine: Engine) -> None:
        if not engine.has_event_handler(self._keep_best, Events.EPOCH_COMPLETED):  # behind those that validate
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._keep_best)
        super()._start(engine)

    def _keep_best(self, engine: Engine) -> None:
        metrics = engine.state.metrics
        if self.metric not in metrics:  # an epoch that does not validate
            return
        score = (metrics[self.metric], -metrics.get("val_nll", 0.0))
        if not score > self.best.score:
            return
        self.best.score, self.best.epoch = score, engine.state.epoch
        if not rank():
            self._write(BEST, self.best.epoch)

    def _finish(self, engine: Engine) -> None:
        self._restore_signals()
        if rank():
            return
        if not self.best.epoch:
            self.logger.warning(f"no epoch was validated: there is no {MODEL}")
            return
        best = self.output_dir / BEST
        load_weights(self.grader, read_checkpoint(best)["state_dict"], str(best))
        outputs, labels = [], []
        with evaluating(self.grader):
            for batch in self.validation:
                images, _ = self.prepare_batch(batch, engine.state.device)
                outputs.append(self.grader.outputs(images).cpu())
                labels.append(batch[Keys.LABEL].numpy())
        truth = np.concatenate(labels)
        scale = calibrate(self.grader, torch.cat(outputs), truth)
        if not LOW * 1.01 < scale < HIGH / 1.01:
            self.logger.warning(
                f"the calibration ended at its bound, {scale:.3g}: the probabilities say little, for example after too"
                " few epochs"
            )
        with evaluating(self.grader):
            probabilities = self.grader.probabilities(torch.cat(outputs).to(self.grader.scale.device)).cpu().numpy()
        said = graded(np.arange(len(truth)), probabilities, self.grader.task)
        if len(np.unique(said.predicted)) == 1:
            self.logger.warning(
                f"all images of the validation part are given the grade {self.classes[said.predicted[0]]}: the network"
                " has not learned to tell grades apart, for example in too few epochs"
            )
        names = ("qwk", "accuracy", "ece", "brier")
        scores = {name: METRICS[name](truth, said.predicted, said.probabilities) for name in names}
        self._write(MODEL, self.best.epoch, scores)
        self.logger.info(
            f"{self.output_dir / MODEL} written: epoch {self.best.epoch} of {engine.state.epoch}, scale {scale:.3f},"
            " validation " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        )

    def _write(self, name: str, epoch: int, scores: Mapping[str, float] | None = None) -> None:
        save_checkpoint(self.output_dir / name, self.grader, self.preprocessing, **self._about(epoch, scores))

    def _entries(self, engine: Engine) -> dict[str, Any]:
        return self._about(self._epoch(engine), None)

    def _about(self, epoch: int, scores: Mapping[str, float] | None) -> dict[str, Any]:
        return {
            "pretraining": self.pretraining,
            "grading": {
                "settings": self.settings,
                "classes": self.classes,
                "ordinal": self.ordinal,
                "epoch": epoch,
                "validation": scores,
                "image_hashes": self._learned_from(),
            },
        }

    def _learned_from(self) -> Tensor | None:
        """Hashes of all images whose labels the weights come from; None where that is not known."""
        if self.hashes is None or self.labeled is None:
            return None
        return torch.unique(torch.cat([self.hashes(), self.labeled]))
