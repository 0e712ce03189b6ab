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
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn
from torch.optim import Optimizer

from conrec_monai.engines.batch_trainer import BatchTrainer, check_unit_range
from conrec_monai.metrics import contrastive_accuracy_entropy
from conrec_monai.transforms import TwoViews
from conrec_monai.utils import rank, world_size

__all__ = ["ConRecTrainer"]

PARTS = ("loss", "contrastive_loss", "reconstruction_loss", "contrastive_accuracy")


class ConRecTrainer(BatchTrainer):
    """Trains a :class:`conrec_monai.networks.nets.ConRecUNet` on unlabeled images.

    Each iteration takes a batch of decoded images, makes both views of all images in batch on the device, runs them
    through the network as one batch of 2B (so batch-norm statistics are shared), and steps the optimizer. Iteration
    events are those of :class:`monai.engines.SupervisedTrainer`. ``engine.state.output`` is a list of one dictionary,
    the whole batch of the last iteration, so that ``from_engine(["loss"], first=True)`` and the handlers of MONAI that
    are built on it work: ``"image"`` (inputs), ``"label"`` (targets), ``"pred"`` (reconstruction, of the last inputs if
    not of all, or None) and the
    scalars ``"loss"``, ``"contrastive_loss"``, ``"reconstruction_loss"``, ``"contrastive_accuracy"``, whose means over
    the epoch are in ``engine.state.metrics`` when it is completed. They stay on the device until then.

    A run that goes on from :meth:`training_state` is, on the CPU, bit for bit the run that was not interrupted, in the
    middle of an epoch too, when the loader's ``batch_sampler`` has a ``set_position(epoch, batch)``
    (:class:`conrec_monai.data.EpochBatchSampler`).

    Args:
        device: where to train.
        max_epochs: number of epochs.
        train_data_loader: yields dictionaries with ``"image"``, BCHW, uint8, uint16 or floats in [0, 1].
        network: from images 2BCHW to a :class:`conrec_monai.networks.nets.ConRecOutput`; it is moved to the device.
            Where the second views alone are masked it also gets the number of the first image that is to be restored.
        optimizer: of the network's parameters.
        loss_function: from (projection, reconstruction, target) to a total and its parts:
            :class:`conrec_monai.losses.ConRecLoss`.
        views: makes inputs and targets; its ``R`` drives all randomness of an iteration, dropout included.
        amp: autocast to bfloat16; None where the device has arithmetic for it.
        train_handlers: Ignite handlers with an ``attach`` method.
        inferer: how the network is called; :class:`monai.inferers.SimpleInferer` by default.
        channels_last: see :class:`BatchTrainer`.
        compile: see :class:`BatchTrainer`.

    In several processes see :class:`BatchTrainer`; ``views`` has the same seed in each. The metrics of a completed
    epoch are the means over all processes. With batch norm that is synchronized
    (:func:`conrec_monai.networks.layers.synchronize_batch_norm`) they compute what one process does with the whole
    batch, but for dropout and rounding.

    Raises:
        ValueError: at the first iteration, for floating point images that have values outside [0, 1].
    """

    parts = PARTS

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        optimizer: Optimizer,
        loss_function: Callable,
        views: TwoViews,
        amp: bool | None = None,
        train_handlers: Sequence | None = None,
        inferer: Inferer | None = None,
        channels_last: bool | None = None,
        compile: bool = False,
    ) -> None:
        self.views = views
        super().__init__(
            device,
            max_epochs,
            train_data_loader,
            network,
            optimizer,
            loss_function,
            torch.zeros(len(PARTS)),
            amp,
            train_handlers,
            inferer,
            channels_last,
            compile,
        )

    @property
    def random_state(self) -> np.random.RandomState:
        return self.views.R

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> list[dict[str, Any]]:
        if batchdata is None:
            raise ValueError("Must provide batch data for current iteration.")
        images = batchdata[Keys.IMAGE].to(self.device, non_blocking=True)
        if not self._checked:
            check_unit_range(images)
        self._checked = True
        inputs, targets = self.views.batch(images, rank(), world_size())
        first = self.views.first_restored(len(inputs))
        prediction = self._predict(inputs, *([first] if first else []))
        reconstruction = prediction.reconstruction
        output = {
            Keys.IMAGE: inputs,
            Keys.LABEL: targets,
            Keys.PRED: None if reconstruction is None else reconstruction.detach(),
        }
        engine.state.output = [output]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        losses = self.loss_function(prediction.projection, reconstruction, targets[first:])
        accuracy, _ = contrastive_accuracy_entropy(*prediction.projection.detach().chunk(2))
        output |= {
            Keys.LOSS: losses.loss.detach(),
            "contrastive_loss": losses.contrastive.detach(),
            "reconstruction_loss": losses.reconstruction.detach(),
            "contrastive_accuracy": accuracy,
        }
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        losses.loss.backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return [output]

    def _count(self, engine: Engine) -> None:
        self._totals += torch.stack([self.state.output[0][name] for name in PARTS])
        self._counted += 1
