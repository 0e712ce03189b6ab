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
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer, SimpleInferer
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn
from torch.optim import Optimizer

from conrec_monai.engines.trainer import bfloat16_is_fast, world_size
from conrec_monai.transforms import BatchRandTransform, unit_float

__all__ = ["FineTuner"]


class FineTuner(Trainer):
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
        seed: of all randomness of the iterations, augmentation and dropout; in several processes another one in each.
        amp: autocast to bfloat16; None where the device has arithmetic for it.
        train_handlers: Ignite handlers with an ``attach`` method.
        inferer: how the network is called; :class:`monai.inferers.SimpleInferer` by default.

    In several processes ``network`` is a DistributedDataParallel, whose module is in channels-last format already; the
    metrics of a completed epoch are the means over all processes.

    Raises:
        ValueError: at the first iteration, for images or labels that it cannot take; at the end of an epoch whose loss
            is not finite.
    """

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
    ) -> None:
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            non_blocking=True,
            decollate=False,
        )
        self.device = torch.device(device)
        self.network = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = optimizer
        self.loss_function = loss_function
        self.R = np.random.RandomState(seed)
        self.augmentation = augmentation
        if augmentation is not None:
            augmentation.set_random_state(state=self.R)
        self.inferer = SimpleInferer() if inferer is None else inferer
        # Not Trainer.amp: that one scales float16 gradients on CUDA, which bfloat16 does not need.
        self.autocast = bfloat16_is_fast(self.device) if amp is None else bool(amp)
        self._totals = torch.zeros(2, dtype=torch.float64, device=self.device)  # of the losses; images
        self._checked = False
        # What handlers remember from epoch to epoch, by name: objects with state_dict() and load_state_dict().
        self.stateful: dict[str, Any] = {}
        self.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        self.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)
        if train_handlers is not None:
            self._register_handlers(train_handlers)

    def _check(self, batchdata: dict[str, Tensor]) -> None:
        images, labels = (batchdata.get(key) for key in (Keys.IMAGE, Keys.LABEL))
        if not isinstance(images, Tensor) or images.ndim != 4:
            found = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"a batch must hold 'image', BCHW, found {found}.")
        if not isinstance(labels, Tensor) or len(labels) != len(images):
            found = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(f"a batch must hold 'label', one per image ({len(images)}), found {found}.")
        if images.is_floating_point():
            low, high = images.amin().item(), images.amax().item()
            if not (low >= 0 and high <= 1):
                raise ValueError(f"floating point images must have values in [0, 1], found {low:g} to {high:g}.")
        self._checked = True

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> list[dict[str, Any]]:
        if not self._checked:
            self._check(batchdata)
        images = unit_float(batchdata[Keys.IMAGE].to(self.device, non_blocking=True))
        labels = batchdata[Keys.LABEL].to(self.device, non_blocking=True)
        if self.augmentation is not None:
            images = self.augmentation.batch(images)
        # Dropout draws from the global generators, as loaders and handlers do: seeded here it depends on none of them.
        torch.manual_seed(int(self.R.randint(2**31)))
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            logits = self.inferer(images.contiguous(memory_format=torch.channels_last), self.network)
        logits = logits.float()
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

    def _start_epoch(self, engine: Engine) -> None:
        done = self.state.iteration % self.state.epoch_length
        sampler = getattr(self.data_loader, "batch_sampler", None)
        if sampler is not None and hasattr(sampler, "set_position"):
            sampler.set_position(self.state.epoch - 1, done)
        if not done:
            self._totals.zero_()

    def _count(self, engine: Engine) -> None:
        output = self.state.output[0]
        self._totals[0] += output[Keys.LOSS] * len(output[Keys.IMAGE])
        self._totals[1] += len(output[Keys.IMAGE])

    def running_metrics(self) -> dict[str, float]:
        """The mean loss of this process's images of the epoch so far; waits for the device."""
        loss, images = self._totals.tolist()
        return {"loss": loss / max(images, 1)}

    def _finish_epoch(self, engine: Engine) -> None:
        totals = self._totals.clone()
        if world_size() > 1:
            dist.all_reduce(totals)
        loss = (totals[0] / totals[1]).item()
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} in epoch {self.state.epoch}: the training has diverged; a smaller learning rate is"
                " needed."
            )
        self.state.metrics["loss"] = loss

    def training_state(self) -> dict[str, Any]:
        """All that the run's future depends on besides network, data and settings: tensors and plain values.

        In several processes all of them call it: it holds the random state of each.
        """
        state: Any = self.R.get_state(legacy=True)
        views: list[Any] = [{"keys": torch.from_numpy(state[1].astype(np.int64)), "rest": list(state[2:])}]
        if world_size() > 1:
            everyone: list[Any] = [None] * world_size()
            dist.all_gather_object(everyone, views[0])
            views = everyone
        return {
            "iteration": self.state.iteration,
            "epoch_length": self.state.epoch_length,
            "optimizer": self.optimizer.state_dict(),
            "views": views,  # named as in ConRecTrainer, for the same handlers
            "totals": self._totals.clone(),
            "stateful": {name: value.state_dict() for name, value in self.stateful.items()},
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`training_state` was taken; the network's weights are loaded apart.

        Raises:
            ValueError: when the epochs have another number of iterations (the data or the batch size changed), or the
                number of processes is another.
        """
        if state["epoch_length"] != self.state.epoch_length:
            raise ValueError(
                f"the checkpoint's epochs have {state['epoch_length']} iterations, this run's {self.state.epoch_length}"
                ": the number of images or the batch size changed."
            )
        if len(state["views"]) != world_size():
            raise ValueError(
                f"the checkpoint is one of {len(state['views'])} processes, this run has {world_size()}: it goes on in"
                " as many only."
            )
        self.optimizer.load_state_dict(state["optimizer"])
        views = state["views"][dist.get_rank() if world_size() > 1 else 0]
        self.R.set_state(("MT19937", views["keys"].numpy().astype(np.uint32), *views["rest"]))
        for name, value in state["stateful"].items():
            if name in self.stateful:
                self.stateful[name].load_state_dict(value)
        self._totals.copy_(state["totals"])
        self.state.iteration = state["iteration"]
        self.state.epoch = state["iteration"] // self.state.epoch_length
