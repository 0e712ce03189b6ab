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
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from conrec_monai.data import CachedImages
from conrec_monai.metrics import attention_entropy, effective_rank, embedding_std

from .probe import check_channels, images_of_size

__all__ = ["HealthMonitor", "evaluating", "has_attention"]

# Collapsed runs fall below these, by far; an untrained encoder has an embedding_std of 0.05, a trained one of 0.4.
STD_LIMITS = {"embedding_std": 0.02, "projection_std": 0.1}
RANK_LIMITS = {"effective_rank": 2.0, "projection_rank": 2.0}
MEASURED = ("embedding_std", "effective_rank", "projection_std", "projection_rank", "attention_entropy")
RANK_SAMPLE = 16  # images; of fewer the rank is small anyway
SETTLED = 100  # iterations until the running averages of batch norm follow the weights


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, after which each module is back in its own mode.

    :func:`monai.networks.utils.eval_mode` would set a frozen part of the network to training.
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def has_attention(encoder: nn.Module) -> bool:
    """Whether the encoder pools by attention, and so has an ``attention_map``; of a scripted encoder too."""
    return hasattr(getattr(encoder, "pool", None), "attention_map")


class HealthMonitor:
    """Watches a pretraining: how far embeddings spread and where the attention looks.

    Every ``every`` epochs, on a fixed sample of images without augmentation, in evaluation mode, of the representation
    h and the projection z: ``embedding_std`` and ``projection_std`` (:func:`conrec_monai.metrics.embedding_std`, 0 to
    1), ``effective_rank`` and ``projection_rank`` (:func:`conrec_monai.metrics.effective_rank`), and, for attention
    pooling, ``attention_entropy`` (:func:`conrec_monai.metrics.attention_entropy`), in
    ``engine.state.metrics``.

    Warns of collapse once, and again only after it has recovered; not in the first 100 iterations, when the running
    averages of batch norm do not follow the weights yet. The training does not depend on it: no weight, mode or random
    generator is touched. :class:`monai.metrics.EmbeddingCollapseMetric` has the same rank, as a score relative to the
    size of the sample, but of constant embeddings it measures the rounding noise, which has full rank, and it has no
    spread: without labels it would miss complete collapse.

    Args:
        network: that is trained; maps images to a :class:`conrec_monai.networks.nets.ConRecOutput`, and its ``encoder``
            pools by attention or not.
        dataset: the sample is drawn from it, always the same one.
        image_size: side to which the images are brought.
        every: epochs between measurements; 0 for none.
        count: images of the sample, at most; it bounds the ranks.
        batch_size: images per forward pass.

    Raises:
        ValueError: for a negative ``every``, less than 2 images, or images of other channels than the network's.
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: CachedImages,
        image_size: int,
        every: int = 1,
        count: int = 256,
        batch_size: int = 64,
    ) -> None:
        if every < 0 or min(count, len(dataset)) < 2:
            raise ValueError(
                f"every must not be negative, count and the images of dataset at least 2, got {every}, {count} and"
                f" {len(dataset)}."
            )
        check_channels(network, dataset, "HealthMonitor")
        self.network, self.dataset, self.image_size = network, dataset, image_size
        self.every, self.count, self.batch_size = every, count, batch_size
        self.logger = logging.getLogger("conrec_monai")
        self._collapsed = False

    def attach(self, engine: Engine) -> None:
        """Attach it ahead of handlers that write metrics."""
        if self.every:
            self.dataset.load()
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)

    def _finish_epoch(self, engine: Engine) -> None:
        state = engine.state
        for name in MEASURED:
            state.metrics.pop(name, None)
        if state.epoch % self.every:
            return
        try:
            found = self._measure()
        except ValueError as error:  # not finite: the training itself sees to that
            self.logger.warning("no health measured in epoch %d: %s", state.epoch, error)
            return
        state.metrics.update(found)
        if state.iteration >= SETTLED:
            self._judge(found, state.epoch)

    def _measure(self) -> dict[str, float]:
        maps: list[Tensor] = []
        # A generator of its own: evenly spaced images could be all of one class, the global one is the training's.
        sample = torch.from_numpy(np.random.RandomState(0).permutation(len(self.dataset))[: self.count])
        images = images_of_size(self.dataset.gather(sample), self.image_size)
        encoder, hook = self.network.get_submodule("encoder"), None
        if has_attention(encoder):
            pool = encoder.get_submodule("pool")
            hook = pool.register_forward_hook(lambda module, inputs, _: maps.append(module.attention_map(inputs[0])))
        device = next(self.network.parameters()).device
        try:
            with evaluating(self.network):
                outputs = [self.network(x.to(device).float() / 255)[1:] for x in images.split(self.batch_size)]
        finally:
            if hook is not None:
                hook.remove()
        z, h = (torch.cat(parts).cpu() for parts in zip(*outputs, strict=True))
        found = {
            "embedding_std": embedding_std(h),
            "effective_rank": effective_rank(h),
            "projection_std": embedding_std(z),
            "projection_rank": effective_rank(z),
        }
        return {**found, "attention_entropy": attention_entropy(torch.cat(maps).cpu())} if maps else found

    def _judge(self, found: dict[str, float], epoch: int) -> None:
        alike = [f"{n} {found[n]:.3f} (below {limit})" for n, limit in STD_LIMITS.items() if found[n] < limit]
        flat = [f"{n} {found[n]:.2f} (below {limit:g})" for n, limit in RANK_LIMITS.items() if found[n] < limit]
        if min(self.count, len(self.dataset)) < RANK_SAMPLE:
            flat = []
        if (alike or flat) and not self._collapsed:
            meaning = (
                "all images look nearly the same to the network" if alike else "images differ in one direction only"
            )
            self.logger.warning(
                "collapse in epoch %d: %s: %s; try a smaller learning_rate, a larger batch_size or a smaller alpha, and"
                " check that the images themselves differ",
                *(epoch, ", ".join(alike + flat), meaning),
            )
        self._collapsed = bool(alike or flat)
