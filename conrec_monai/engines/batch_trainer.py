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

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import Trainer
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from conrec_monai.utils import rank, world_size

__all__ = [
    "BatchTrainer",
    "bfloat16_is_fast",
    "channels_last_is_fast",
    "check_unit_range",
    "compilation_pays",
    "memory_format_of",
]


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic of its own; where it is emulated it is many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (
        device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def channels_last_is_fast(device: torch.device) -> bool:
    """Whether convolutions of the device are at their best in channels-last memory format."""
    return device.type in ("cpu", "cuda")


def memory_format_of(device: torch.device, channels_last: bool | None = None) -> torch.memory_format:
    """Channels-last or contiguous; None for what the device is faster with."""
    wanted = channels_last_is_fast(device) if channels_last is None else channels_last
    return torch.channels_last if wanted else torch.contiguous_format


def compilation_pays(device: torch.device) -> bool:
    """Whether :func:`torch.compile` is expected to make a step faster: on NVIDIA cards that Triton, where it is
    installed, takes; not on the CPU (docs/results/throughput)."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (7, 0)
        and find_spec("triton") is not None
    )


def check_unit_range(images: Tensor) -> None:
    """Raises a ValueError for floating point images that have values outside [0, 1]."""
    if images.is_floating_point():
        low, high = images.amin().item(), images.amax().item()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"floating point images must have values in [0, 1], found {low:g} to {high:g}.")


def _check_memory_format(network: DistributedDataParallel, memory_format: torch.memory_format) -> None:
    """Changed after DistributedDataParallel has laid out its buckets, it makes their gradients wrong."""
    if not all(p.is_contiguous(memory_format=memory_format) for p in network.parameters() if p.ndim == 4):
        raise ValueError(
            f"network must be a DistributedDataParallel of a module that is in {memory_format} already:"
            f" module.to(memory_format={memory_format})."
        )


class BatchTrainer(Trainer):
    """What the trainers of whole batches share: memory format, bfloat16, compilation, metrics that stay on the device
    until the end of the epoch, and a state from which a run goes on.

    Within an epoch the host never waits for the device, unless the loss function or batch norm that is synchronized do.

    A subclass has an ``_iteration`` and a ``_count``, and says in :attr:`random_state` what all randomness of its
    iterations comes from.

    Args:
        device: where to train.
        max_epochs: number of epochs.
        train_data_loader: its batches.
        network: it is moved to the device.
        optimizer: of the network's parameters.
        loss_function: of the iterations.
        totals: zeros, one for each of ``parts``.
        amp: autocast to bfloat16; None where the device has arithmetic for it.
        train_handlers: Ignite handlers with an ``attach`` method.
        inferer: how the network is called; :class:`monai.inferers.SimpleInferer` by default.
        channels_last: whether network and images are in channels-last memory format; None where the device is faster
            so.
        compile: whether the network is compiled by :func:`torch.compile`, which takes minutes first.

    In several processes ``network`` is a DistributedDataParallel, made from a module in its final memory format (that
    of ``channels_last``), each process loads its part of every batch (``EpochBatchSampler(..., rank, num_replicas)``),
    and all have the same random state, from which each takes its part of what one process would draw.

    Raises:
        ValueError: when a DistributedDataParallel was made of a module in another memory format, or a network that
            recomputes its levels (``gradient_checkpointing``) is to be compiled.

    Attributes:
        parts: names of the metrics of an epoch.
        stateful: what handlers remember from epoch to epoch, by name: objects with ``state_dict()`` and
            ``load_state_dict()``.
    """

    parts: tuple[str, ...]

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        optimizer: Optimizer,
        loss_function: Callable,
        totals: Tensor,
        amp: bool | None = None,
        train_handlers: Sequence | None = None,
        inferer: Inferer | None = None,
        channels_last: bool | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            non_blocking=True,
            decollate=False,
        )
        self.device = torch.device(device)
        self.memory_format = memory_format_of(self.device, channels_last)
        if isinstance(network, DistributedDataParallel):
            _check_memory_format(network, self.memory_format)
        network = network.to(self.device).to(memory_format=self.memory_format)  # type: ignore[call-overload]
        if compile:
            if any(getattr(module, "gradient_checkpointing", False) for module in network.modules()):
                raise ValueError("a network with gradient_checkpointing cannot be compiled.")
            network = torch.compile(network)  # type: ignore[assignment]
        self.network = network
        self.optimizer = optimizer
        self.loss_function = loss_function
        self.inferer = SimpleInferer() if inferer is None else inferer
        # Not Trainer.amp: that one scales float16 gradients on CUDA, which bfloat16 does not need.
        self.autocast = bfloat16_is_fast(self.device) if amp is None else bool(amp)
        self._totals = totals.to(self.device)
        self._counted = 0
        self._checked = False
        self._arriving: tuple[Tensor, int, torch.cuda.Event | None] | None = None
        self._recent: dict[str, float] | None = None
        self.stateful: dict[str, Any] = {}
        self.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        self.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)
        if train_handlers is not None:
            self._register_handlers(train_handlers)

    @property
    @abstractmethod
    def random_state(self) -> np.random.RandomState:
        """Drives all randomness of an iteration, dropout included."""

    @abstractmethod
    def _count(self, engine: Engine) -> None:
        """Adds the last iteration to ``_totals``, and to ``_counted`` what they are divided by."""

    def _start_epoch(self, engine: Engine) -> None:
        done = self.state.iteration % self.state.epoch_length
        sampler = getattr(self.data_loader, "batch_sampler", None)
        if sampler is not None and hasattr(sampler, "set_position"):
            sampler.set_position(self.state.epoch - 1, done)
        if not done:
            self._totals.zero_()
            self._counted = 0

    def running_metrics(self) -> dict[str, float]:
        """Means of the metrics of this process over the epoch so far; waits for the device."""
        return dict(zip(self.parts, (self._totals / max(self._counted, 1)).tolist(), strict=True))

    def recent_metrics(self) -> dict[str, float] | None:
        """Means of the metrics of this process over the epoch up to a recent iteration, without waiting for the device;
        None while nothing has arrived from it."""
        if self._arriving is not None and (self._arriving[2] is None or self._arriving[2].query()):
            totals, counted, _ = self._arriving
            self._recent = dict(zip(self.parts, (totals / max(counted, 1)).tolist(), strict=True))
            self._arriving = None
        if self._arriving is None:
            on_cuda = self.device.type == "cuda"
            totals = torch.empty_like(self._totals, device="cpu", pin_memory=on_cuda)
            totals.copy_(self._totals, non_blocking=on_cuda)
            event = torch.cuda.Event() if on_cuda else None
            if event is not None:
                event.record(torch.cuda.current_stream(self.device))
            self._arriving = (totals, self._counted, event)
        return self._recent

    def _predict(self, images: Tensor, *args: Any) -> Any:
        """The network's output for images of an iteration, in training mode; its dropout comes from the random state.

        Dropout draws from the global generators, as loaders and handlers do: seeded here it depends on none of them.
        """
        torch.manual_seed(int(self.random_state.randint(2**31)) + rank())
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self.inferer(images.contiguous(memory_format=self.memory_format), self.network, *args)

    def _epoch_means(self) -> Tensor:
        """The means of a completed epoch over all processes, which count alike."""
        means = self._totals / max(self._counted, 1)
        if world_size() > 1:
            dist.all_reduce(means)
            means /= world_size()
        return means

    def _finish_epoch(self, engine: Engine) -> None:
        self.state.metrics.update(zip(self.parts, self._epoch_means().tolist(), strict=True))

    def training_state(self) -> dict[str, Any]:
        """All that the run's future depends on besides network, data and settings: tensors and plain values."""
        state: Any = self.random_state.get_state(legacy=True)
        return {
            "iteration": self.state.iteration,
            "epoch_length": self.state.epoch_length,
            "optimizer": self.optimizer.state_dict(),
            "random": {"keys": torch.from_numpy(state[1].astype(np.int64)), "rest": list(state[2:])},
            "totals": self._totals.clone(),
            "counted": self._counted,
            "stateful": {name: value.state_dict() for name, value in self.stateful.items()},
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`training_state` was taken; the network's weights are loaded apart.

        Raises:
            ValueError: when the epochs have another number of iterations (the data or the batch size changed).
        """
        if state["epoch_length"] != self.state.epoch_length:
            raise ValueError(
                f"the checkpoint's epochs have {state['epoch_length']} iterations, this run's {self.state.epoch_length}"
                ": the number of images or the batch size changed."
            )
        self.optimizer.load_state_dict(state["optimizer"])
        random = state["random"]
        self.random_state.set_state(("MT19937", random["keys"].numpy().astype(np.uint32), *random["rest"]))
        for name, value in state["stateful"].items():
            if name in self.stateful:
                self.stateful[name].load_state_dict(value)
        self._totals.copy_(state["totals"])
        self._counted = state["counted"]
        self.state.iteration = state["iteration"]
        self.state.epoch = state["iteration"] // self.state.epoch_length
