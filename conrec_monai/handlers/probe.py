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

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from conrec_monai.data import CachedImages
from conrec_monai.evaluation import complete_groups, embed, knn_evaluation, linear_evaluation, make_folds
from conrec_monai.evaluation.linear import Protocol

__all__ = ["OnlineProbe", "check_channels", "images_of_size"]

METRICS = ("probe_qwk", "probe_accuracy", "probe_knn_qwk", "probe_knn_accuracy")


def check_channels(network: nn.Module, dataset: CachedImages, name: str) -> None:
    """Raises a ValueError where the ``config`` of the network, or of its encoder, has other ``in_channels``."""
    config = getattr(getattr(network, "encoder", network), "config", None) or {}
    expected = config.get("in_channels", dataset.channels)
    if expected != dataset.channels:
        raise ValueError(
            f"{name}: the network takes {expected} channels, the images of dataset have {dataset.channels}."
        )


def images_of_size(images: Tensor, size: int) -> Tensor:
    """Square uint8 images NCHW brought to ``size`` pixels a side, bicubic with antialiasing."""
    if images.shape[-1] == size:
        return images
    return nn.functional.interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False)


class OnlineProbe:
    """Scores the frozen representation during the pretraining, on labeled images, by cross-validation.

    Every ``every`` epochs, on stratified folds that keep groups together, each image scored by a probe that has not
    seen it: linear (the standardized column of :func:`conrec_monai.evaluation.linear_evaluation`) as ``probe_qwk`` and
    ``probe_accuracy``, and nearest neighbors (:func:`conrec_monai.evaluation.knn_evaluation`) as ``probe_knn_qwk`` and
    ``probe_knn_accuracy`` in ``engine.state.metrics``; the kappas for grades only. No label reaches the pretraining. An
    official split into train and test is not used: the folds lie within the given images, so the numbers are not those
    of an evaluation on that split. Numbers to watch, not to choose a checkpoint by: that would be selection on test
    labels. Source: arXiv 2104.04323 (every 20 epochs).

    Args:
        encoder: that is trained.
        dataset: images and labels, those of the training or others; decoded when the probe is attached.
        image_size: side to which the images are brought.
        ordinal: whether the labels are grades.
        every: epochs between evaluations; 0 for none.
        n_folds: of the cross-validation.
        k: nearest neighbors that vote, or all of the training part where it has fewer.
        count: images at most; of more, a sample that is always the same.
        seed: of the folds and the sample.
        batch_size: images per forward pass.
        device: of the encoder.

    Raises:
        ValueError: for a negative ``every``, ``k`` below 1, or images of other channels than the encoder's.
    """

    def __init__(
        self,
        encoder: nn.Module,
        dataset: CachedImages,
        image_size: int,
        ordinal: bool,
        every: int = 20,
        n_folds: int = 3,
        k: int = 20,
        count: int = 4000,
        seed: int = 0,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
    ) -> None:
        if every < 0 or k < 1 or count < 1:
            raise ValueError(f"every must not be negative, k and count positive, got {every}, {k} and {count}.")
        check_channels(encoder, dataset, "OnlineProbe")
        self.encoder, self.dataset, self.image_size, self.ordinal = encoder, dataset, image_size, ordinal
        self.every, self.n_folds, self.k, self.seed = every, n_folds, k, seed
        self.count = count
        self.batch_size, self.device = batch_size, device
        self.logger = logging.getLogger("conrec_monai")

    def attach(self, engine: Engine) -> None:
        if not self.every:
            return
        if (self.dataset.labels >= 0).any():
            self.dataset.load()  # now, ahead of the training; images that cannot be read may be left out
        counts = torch.bincount(self.dataset.labels[self.dataset.labels >= 0])
        if (counts >= self.n_folds).sum() < 2:
            self.logger.info("no online probe: it needs at least two labeled classes of %d images", self.n_folds)
            return
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._probe)

    def _probe(self, engine: Engine) -> None:
        metrics = engine.state.metrics
        for name in METRICS:
            metrics.pop(name, None)
        if engine.state.epoch % self.every:
            return
        chosen = torch.nonzero(self.dataset.labels >= 0)[:, 0].numpy()
        if len(chosen) > self.count:
            chosen = np.sort(np.random.RandomState(self.seed).permutation(chosen)[: self.count])
        images = images_of_size(self.dataset.gather(chosen), self.image_size)
        labels = self.dataset.labels[chosen].numpy()
        groups = complete_groups([self.dataset.groups[i] for i in chosen])
        protocol: Protocol = "diabetic" if self.ordinal else "categorical"
        num_classes = int(labels.max()) + 1
        try:
            folds = make_folds(labels, groups, self.n_folds, 1, self.seed)
            features = embed(self.encoder, images, self.batch_size, self.device)
            linear = linear_evaluation(features, labels, folds, protocol, True, num_classes, groups)
            nearest = knn_evaluation(features, labels, folds, protocol, num_classes, self.k)
        except ValueError as error:  # such as too few groups: a number to watch does not end the training
            self.logger.warning("no online probe: %s", error)
            return
        texts = []
        for prefix, result in (("probe", linear), ("probe_knn", nearest)):
            names = {"qwk": "qwk", "accuracy": "accuracy", "top1": "accuracy"}
            found = {name: result[metric]["mean"] for metric, name in names.items() if metric in result}
            metrics.update({f"{prefix}_{metric}": value for metric, value in found.items()})
            texts.append(", ".join(f"{metric} {value:.3f}" for metric, value in found.items()))
        self.logger.info(
            "online probe (%d images, %d folds): linear %s; %d nearest neighbors %s",
            *(len(labels), self.n_folds, texts[0], max(nearest["k"]), texts[1]),
        )
