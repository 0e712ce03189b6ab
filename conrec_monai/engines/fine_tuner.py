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

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn
from torch.optim import Optimizer

from conrec_monai.engines.batch_trainer import BatchTrainer, check_unit_range
from conrec_monai.transforms import BatchRandTransform, unit_float
from conrec_monai.utils import rank, world_size

__all__ = ["FineTuner"]


class FineTuner(BatchTrainer):
    """Trains a :class:`conrec_monai.networks.nets.EncoderClassifier` on labeled images.

    Each iteration takes a batch of decoded images to the device, augments all of it at once with parameters of their
    own for every image, and steps the optimizer. Iteration events are those of
    :class:`monai.engines.SupervisedTrainer`. ``engine.state.output`` is a list of one dictionary, the whole batch of
    the last iteration: ``"image"`` (what the network saw), ``"label"``, ``"pred"`` (logits, float32) and the scalar
    ``"loss"``, whose mean over the images of the epoch is in ``engine.state.metrics`` when it is completed. They stay
    on the device until then.

    Each learning rate and weight decay is a matter of the optimizer's groups: see
    :func:`conrec_monai.optimizers.build_optimizer` for a head with those of its own.

    A run that goes on from :meth:`training_state` is, on the CPU, bit for bit the run that was not interrupted, when
    the loader's ``batch_sampler`` has a ``set_position(epoch, batch)`` (:class:`conrec_monai.data.EpochBatchSampler`).

    Args:
        device: where to train.
        max_epochs: number of epochs.
        train_data_loader: yields dictionaries with ``"image"``, BCHW, uint8, uint16 or floats in [0, 1], and
            ``"label"``, B.
        network: from images BCHW to logits B[K]; it is moved to the device.
        optimizer: of the network's parameters.
        loss_function: from logits B[K], float32, and labels B to a scalar: ``torch.nn.CrossEntropyLoss()``, or
            :class:`conrec_monai.losses.CumulativeBCELoss` for grades.
        augmentation: of the training images; None for none. It is given the trainer's random state.
        seed: of all randomness of the iterations, augmentation and dropout.
        amp: autocast to bfloat16; None where the device has arithmetic for it.
        train_handlers: Ignite handlers with an ``attach`` method.
        inferer: how the network is called; :class:`monai.inferers.SimpleInferer` by default.
        channels_last: see :class:`BatchTrainer`.
        compile: see :class:`BatchTrainer`.

    In several processes see :class:`BatchTrainer`; the metrics of a completed epoch are the means over all processes.

    Raises:
        ValueError: at the first iteration, for images or labels that it cannot take; at the end of an epoch whose loss
            is not finite.
    """

    parts = ("loss",)

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        optimizer: Optimizer,
        loss_function: Callable[[Tensor, Tensor], Tensor],
        augmentation: BatchRandTransform | None = None,
        seed: int = 0,
        amp: bool | None = None,
        train_handlers: Sequence | None = None,
        inferer: Inferer | None = None,
        channels_last: bool | None = None,
        compile: bool = False,
    ) -> None:
        self.R = np.random.RandomState(seed)
        self.augmentation = augmentation
        if augmentation is not None:
            augmentation.set_random_state(state=self.R)
        super().__init__(
            device,
            max_epochs,
            train_data_loader,
            network,
            optimizer,
            loss_function,
            torch.zeros(1, dtype=torch.float64),
            amp,
            train_handlers,
            inferer,
            channels_last,
            compile,
        )

    @property
    def random_state(self) -> np.random.RandomState:
        return self.R

    def _check(self, batchdata: dict[str, Tensor]) -> None:
        images, labels = (batchdata.get(key) for key in (Keys.IMAGE, Keys.LABEL))
        if not isinstance(images, Tensor) or images.ndim != 4:
            found = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"a batch must hold 'image', BCHW, found {found}.")
        if not isinstance(labels, Tensor) or len(labels) != len(images):
            found = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(f"a batch must hold 'label', one per image ({len(images)}), found {found}.")
        check_unit_range(images)
        self._checked = True

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> list[dict[str, Any]]:
        if not self._checked:
            self._check(batchdata)
        images = unit_float(batchdata[Keys.IMAGE].to(self.device, non_blocking=True))
        labels = batchdata[Keys.LABEL].to(self.device, non_blocking=True)
        if self.augmentation is not None:
            images = self.augmentation.batch(images, rank(), world_size())
        logits = self._predict(images).float()
        output = {Keys.IMAGE: images, Keys.LABEL: labels, Keys.PRED: logits.detach()}
        engine.state.output = [output]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        loss = self.loss_function(logits, labels)
        output[Keys.LOSS] = loss.detach()
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        loss.backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return [output]

    def _count(self, engine: Engine) -> None:
        output = self.state.output[0]
        self._totals += output[Keys.LOSS] * len(output[Keys.IMAGE])
        self._counted += len(output[Keys.IMAGE])

    def _epoch_means(self) -> Tensor:
        """The mean loss over the images of all processes, which may have different numbers of them."""
        totals = torch.cat([self._totals, self._totals.new_tensor([self._counted])])
        if world_size() > 1:
            dist.all_reduce(totals)
        means = totals[:1] / totals[1]
        if not means.isfinite().item():
            raise ValueError(
                f"the loss is {means.item()} in epoch {self.state.epoch}: the training has diverged; a smaller learning"
                " rate is needed."
            )
        return means
