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

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer, SimpleInferer
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn

from conrec_monai.engines.batch_trainer import bfloat16_is_fast, memory_format_of
from conrec_monai.engines.trainer import PARTS
from conrec_monai.metrics import contrastive_accuracy_entropy
from conrec_monai.transforms import TwoViews
from conrec_monai.utils import world_size

__all__ = ["ConRecEvaluator"]


class ConRecEvaluator(Evaluator):
    """The losses of a pretraining on images that it does not train on: what :class:`ConRecTrainer` computes, with the
    network in evaluation mode.

    Each run draws the same views of the same images, so that its numbers can be compared from epoch to epoch.
    ``engine.state.output`` is as in :class:`ConRecTrainer`; the means over the run, and over all processes, are in
    ``engine.state.metrics``.

    Args:
        device: where to evaluate.
        val_data_loader: yields dictionaries with ``"image"``, BCHW, uint8, uint16 or floats in [0, 1], in an order that
            is the same every time.
        network: from images 2BCHW to a :class:`conrec_monai.networks.nets.ConRecOutput`.
        loss_function: see :class:`ConRecTrainer`; in several processes, each of which evaluates all images, one that
            does not gather the negatives.
        views: makes inputs and targets; not the object that the training uses, whose random state it would change.
        seed: of the views.
        amp: autocast to bfloat16; None where the device has arithmetic for it.
        inferer: how the network is called; :class:`monai.inferers.SimpleInferer` by default.
        val_handlers: Ignite handlers with an ``attach`` method.
        channels_last: whether the images are in channels-last memory format, as the trainer has brought the network to;
            None where the device is faster so.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Iterable,
        network: nn.Module,
        loss_function: Callable,
        views: TwoViews,
        seed: int = 0,
        amp: bool | None = None,
        inferer: Inferer | None = None,
        val_handlers: Sequence | None = None,
        channels_last: bool | None = None,
    ) -> None:
        super().__init__(device=device, val_data_loader=val_data_loader, non_blocking=True, decollate=False)
        self.device = torch.device(device)
        self.network, self.loss_function, self.views, self.seed = network, loss_function, views, seed
        self.autocast = bfloat16_is_fast(self.device) if amp is None else bool(amp)
        self.memory_format = memory_format_of(self.device, channels_last)
        self.inferer = SimpleInferer() if inferer is None else inferer
        self._totals: dict[str, list[Tensor]] = {}
        self.add_event_handler(Events.EPOCH_STARTED, self._start)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._finish)
        if val_handlers is not None:
            self._register_handlers(val_handlers)

    def _start(self, engine: Engine) -> None:
        self.views.set_random_state(self.seed)
        self._totals = {name: [] for name in PARTS}

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> list[dict[str, Any]]:
        inputs, targets = self.views.batch(batchdata[Keys.IMAGE].to(self.device, non_blocking=True))
        with self.mode(self.network), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            first = self.views.first_restored(len(inputs))
            prediction = self.inferer(
                inputs.contiguous(memory_format=self.memory_format), self.network, *([first] if first else [])
            )
        with torch.no_grad():
            losses = self.loss_function(prediction.projection, prediction.reconstruction, targets[first:])
            accuracy, _ = contrastive_accuracy_entropy(*prediction.projection.chunk(2))
        output = {
            Keys.IMAGE: inputs,
            Keys.LABEL: targets,
            Keys.PRED: prediction.reconstruction,
            **dict(zip(PARTS, (losses.loss, losses.contrastive, losses.reconstruction, accuracy), strict=True)),
        }
        engine.state.output = [output]
        for name in PARTS:
            self._totals[name].append(output[name])
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return [output]

    def _finish(self, engine: Engine) -> None:
        means = torch.stack([torch.stack(values).mean() for values in self._totals.values()])
        if world_size() > 1:  # one number, whatever the batch norm of each process has seen
            dist.all_reduce(means)
            means /= world_size()
        engine.state.metrics.update(zip(self._totals, means.tolist(), strict=True))
