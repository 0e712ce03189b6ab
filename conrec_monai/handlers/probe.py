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

import torch
from ignite.engine import Engine, Events

from conrec_monai.data import CachedImages
from conrec_monai.evaluation import complete_groups, embed, linear_evaluation, make_folds
from conrec_monai.networks.nets import ConRecEncoder

__all__ = ["LinearProbe"]


class LinearProbe:
    """Scores the frozen representation during the pretraining: linear evaluation by cross-validation.

    Every ``every`` epochs, on the labeled images among the pretraining's own (their labels train the probe alone), the
    standardized column of :func:`conrec_monai.evaluation.linear_evaluation` on stratified folds; its mean goes to
    ``engine.state.metrics`` as ``probe_qwk`` and ``probe_accuracy``. A number to watch, not to choose a checkpoint by:
    that would be selection on test labels. Source: arXiv 2104.04323 (every 20 epochs).

    Args:
        encoder: that is trained.
        dataset: images and labels.
        image_size: side to which the images are brought.
        ordinal: whether the labels are grades.
        every: epochs between evaluations; 0 for none.
        n_folds: of the cross-validation.
        seed: of the folds.
        batch_size: images per forward pass.
        device: of the encoder.
    """

    def __init__(
        self,
        encoder: ConRecEncoder,
        dataset: CachedImages,
        image_size: int,
        ordinal: bool,
        every: int = 20,
        n_folds: int = 3,
        seed: int = 0,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
    ) -> None:
        if every < 0:
            raise ValueError(f"every must not be negative, got {every}.")
        self.encoder, self.dataset, self.image_size, self.ordinal = encoder, dataset, image_size, ordinal
        self.every, self.n_folds, self.seed = every, n_folds, seed
        self.batch_size, self.device = batch_size, device
        self.logger = logging.getLogger("conrec_monai")

    def attach(self, engine: Engine) -> None:
        counts = torch.bincount(self.dataset.labels[self.dataset.labels >= 0])
        if not self.every:
            return
        if (counts > 0).sum() < 2 or counts[counts > 0].min() < self.n_folds:
            self.logger.info("no linear probe: it needs at least two labeled classes of %d images", self.n_folds)
            return
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._probe)

    def _probe(self, engine: Engine) -> None:
        for name in ("probe_qwk", "probe_accuracy"):
            engine.state.metrics.pop(name, None)
        if engine.state.epoch % self.every:
            return
        chosen = self.dataset.labels >= 0
        images, labels = self.dataset.images[chosen], self.dataset.labels[chosen].numpy()
        if images.shape[-1] != self.image_size:
            images = torch.nn.functional.interpolate(
                images, (self.image_size, self.image_size), mode="bicubic", antialias=True, align_corners=False
            )
        groups = [g for g, c in zip(self.dataset.groups, chosen.tolist(), strict=True) if c]
        known = complete_groups(groups)
        try:
            folds = make_folds(labels, known, self.n_folds, 1, self.seed)
            features = embed(self.encoder, images, self.batch_size, self.device)
            result = linear_evaluation(
                features,
                labels,
                folds,
                "diabetic" if self.ordinal else "categorical",
                True,
                int(labels.max()) + 1,
                known,
            )
        except ValueError as error:  # such as too few groups: a number to watch does not end the training
            self.logger.warning("no linear probe: %s", error)
            return
        for metric in ("qwk", "accuracy", "top1"):
            if metric in result:
                engine.state.metrics[f"probe_{metric.replace('top1', 'accuracy')}"] = result[metric]["mean"]
        self.logger.info(
            "linear probe (standardized, %d folds): %s",
            self.n_folds,
            ", ".join(f"{k[6:]} {v:.3f}" for k, v in engine.state.metrics.items() if k.startswith("probe_")),
        )
