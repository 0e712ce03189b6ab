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
from ignite.engine import Engine, Events
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer, SimpleInferer
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn
from torch.optim import Optimizer

from conrec_monai.metrics import contrastive_accuracy_entropy
from conrec_monai.transforms import TwoViews

__all__ = ["ConRecTrainer", "bfloat16_is_fast"]

PARTS = ("loss", "contrastive_loss", "reconstruction_loss", "contrastive_accuracy")


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic of its own; where it is emulated it is many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (
        device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class ConRecTrainer(Trainer):
    """Trains a :class:`conrec_monai.networks.nets.ConRecUNet` on unlabeled images.

    Each iteration takes a batch of decoded images, makes both views of all images in batch on the device, runs them
    through the network as one batch of 2B (so batch-norm statistics are shared) in channels-last memory format, and
    steps the optimizer. Iteration events are those of :class:`monai.engines.SupervisedTrainer`. ``engine.state.output``
    is a list of one dictionary, the whole batch of the last iteration, so that ``from_engine(["loss"], first=True)``
    and the handlers of MONAI that are built on it work: ``"image"`` (inputs), ``"label"`` (targets), ``"pred"``
    (reconstruction or None) and the scalars ``"loss"``, ``"contrastive_loss"``, ``"reconstruction_loss"``,
    ``"contrastive_accuracy"``, whose means over the epoch are in ``engine.state.metrics`` when it is completed. They
    stay on the device until then.

    A run that goes on from :meth:`training_state` is, on the CPU, bit for bit the run that was not interrupted, in the
    middle of an epoch too, when the loader's ``batch_sampler`` has a ``set_position(epoch, batch)``
    (:class:`conrec_monai.data.EpochBatchSampler`).

    Args:
        device: where to train.
        max_epochs: number of epochs.
        train_data_loader: yields dictionaries with ``"image"``, BCHW, uint8, uint16 or floats in [0, 1].
        network: from images 2BCHW to a :class:`conrec_monai.networks.nets.ConRecOutput`; it is moved to the device.
        optimizer: of the network's parameters.
        loss_function: from (projection, reconstruction, target) to a total and its parts:
            :class:`conrec_monai.losses.ConRecLoss`.
        views: makes inputs and targets; its ``R`` drives all randomness of an iteration, dropout included.
        amp: autocast to bfloat16; None where the device has arithmetic for it.
        train_handlers: Ignite handlers with an ``attach`` method.
        inferer: how the network is called; :class:`monai.inferers.SimpleInferer` by default.

    In several processes ``network`` is a DistributedDataParallel, whose module is in channels-last format already, each
    process loads its part of the batch (``EpochBatchSampler(..., rank, num_replicas)``) and seeds ``views`` by its
    rank. The metrics of a completed epoch are the means over all processes.

    Raises:
        ValueError: at the first iteration, for floating point images that have values outside [0, 1].
    """

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
        self.views = views
        self.inferer = SimpleInferer() if inferer is None else inferer
        # Not Trainer.amp: that one scales float16 gradients on CUDA, which bfloat16 does not need.
        self.autocast = bfloat16_is_fast(self.device) if amp is None else bool(amp)
        self._totals = torch.zeros(len(PARTS), device=self.device)
        self._counted = 0
        self._checked = False
        # What handlers remember from epoch to epoch, by name: objects with state_dict() and load_state_dict().
        self.stateful: dict[str, Any] = {}
        self.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        self.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)
        if train_handlers is not None:
            self._register_handlers(train_handlers)

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> list[dict[str, Any]]:
        if batchdata is None:
            raise ValueError("Must provide batch data for current iteration.")
        images = batchdata[Keys.IMAGE].to(self.device, non_blocking=True)
        if not self._checked and images.is_floating_point():
            low, high = images.amin().item(), images.amax().item()
            if not (low >= 0 and high <= 1):
                raise ValueError(f"floating point images must have values in [0, 1], found {low:g} to {high:g}.")
        self._checked = True
        inputs, targets = self.views.batch(images)
        # Dropout draws from the global generators, as loaders and handlers do: seeded here it depends on none of them.
        torch.manual_seed(int(self.views.R.randint(2**31)))
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            prediction = self.inferer(inputs.contiguous(memory_format=torch.channels_last), self.network)
        reconstruction = prediction.reconstruction
        output = {
            Keys.IMAGE: inputs,
            Keys.LABEL: targets,
            Keys.PRED: None if reconstruction is None else reconstruction.detach(),
        }
        engine.state.output = [output]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        losses = self.loss_function(prediction.projection, reconstruction, targets)
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

    def _start_epoch(self, engine: Engine) -> None:
        done = self.state.iteration % self.state.epoch_length
        sampler = getattr(self.data_loader, "batch_sampler", None)
        if sampler is not None and hasattr(sampler, "set_position"):
            sampler.set_position(self.state.epoch - 1, done)
        if not done:
            self._totals.zero_()
            self._counted = 0

    def _count(self, engine: Engine) -> None:
        self._totals += torch.stack([self.state.output[0][name] for name in PARTS])
        self._counted += 1

    def running_metrics(self) -> dict[str, float]:
        """Means of the loss parts over this process's iterations of the epoch so far; waits for the device."""
        return dict(zip(PARTS, (self._totals / max(self._counted, 1)).tolist(), strict=True))

    def _finish_epoch(self, engine: Engine) -> None:
        means = self._totals / max(self._counted, 1)
        if world_size() > 1:
            dist.all_reduce(means)
            means /= world_size()
        self.state.metrics.update(zip(PARTS, means.tolist(), strict=True))

    def training_state(self) -> dict[str, Any]:
        """All that the run's future depends on besides network, data and settings: tensors and plain values.

        In several processes all of them call it: it holds the random state of each.
        """
        name, keys, position, has_gauss, cached = self.views.R.get_state(legacy=True)
        views = [{"keys": torch.from_numpy(keys.astype(np.int64)), "rest": [position, has_gauss, cached]}]
        if world_size() > 1:
            everyone: list[Any] = [None] * world_size()
            dist.all_gather_object(everyone, views[0])
            views = everyone
        return {
            "iteration": self.state.iteration,
            "epoch_length": self.state.epoch_length,
            "optimizer": self.optimizer.state_dict(),
            "views": views,
            "totals": self._totals.clone(),
            "counted": self._counted,
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
        self.views.R.set_state(("MT19937", views["keys"].numpy().astype(np.uint32), *views["rest"]))
        for name, value in state["stateful"].items():
            if name in self.stateful:
                self.stateful[name].load_state_dict(value)
        self._totals.copy_(state["totals"])
        self._counted = state["counted"]
        self.state.iteration = state["iteration"]
        self.state.epoch = state["iteration"] // self.state.epoch_length
