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

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.handlers import LrScheduleHandler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from conrec_monai.data import EpochBatchSampler, batched
from conrec_monai.engines import FineTuner, bfloat16_is_fast
from conrec_monai.losses import CumulativeBCELoss
from conrec_monai.networks.nets import EncoderClassifier
from conrec_monai.networks.nets.encoders import check_encoder
from conrec_monai.networks.utils import check_weights, untrained_like
from conrec_monai.optimizers import OPTIMIZERS, SCHEDULES, build_optimizer, build_schedule
from conrec_monai.transforms import BatchRandTransform, RandCropFlip, RandZoomFlip
from conrec_monai.utils import duration, progress_bar
from conrec_monai.utils.progress import SECONDS_BETWEEN_LINES

from .folds import Folds
from .linear import _checked_labels, check_folds
from .predictions import FoldPrediction, Predictions
from .store import FoldStore

__all__ = ["AUGMENTATIONS", "PROTOCOLS", "FineTuneSettings", "paper_settings", "predict_fine_tuned"]

AUGMENTATIONS = ("zoom_flip", "crop_flip")
INITS = ("pretrained", "scratch")
PROTOCOLS = ("frozen_head", "fine_tune", "supervised")
TEST_BATCH = 64
SECONDS_BETWEEN_STATES = 30.0


@dataclass(frozen=True)
class FineTuneSettings:
    """How an encoder with a linear head is trained on labels; :func:`paper_settings` has those of the publication.

    The head gets no weight decay, and from LARS no layer adaptation.

    Attributes:
        optimizer: "lars", "sgd" (Nesterov momentum 0.9), "adam" or "adamw".
        learning_rate: of encoder and head.
        batch_size: images per iteration, at least 2; all of a training part that is smaller.
        epochs: passes over the training part. The last one counts: no score chooses among them.
        augmentation: "zoom_flip" (:class:`conrec_monai.transforms.RandZoomFlip`), "crop_flip"
            (:class:`conrec_monai.transforms.RandCropFlip`) or None.
        weight_decay: of the encoder.
        freeze: train the head alone, on an encoder that stays as it is, its batch-norm statistics included.
        init: "pretrained" (the encoder's weights) or "scratch" (random ones, the same architecture).
        schedule: of the learning rate: "constant", as published, or "warmup_cosine"
            (:func:`conrec_monai.optimizers.build_schedule`). Rates far above the published one need the latter: while
            weights still move, the running statistics of batch norm lag behind them, and what the network predicts in
            evaluation can be far from what it learned.

    Raises:
        ValueError: when a value is out of its range.
    """

    optimizer: str
    learning_rate: float
    batch_size: int
    epochs: int
    augmentation: str | None
    weight_decay: float = 0.0
    freeze: bool = False
    init: str = "pretrained"
    schedule: str = "constant"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("augmentation", self.augmentation, (*AUGMENTATIONS, None)),
            ("init", self.init, INITS),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}.")
        for name, number, low in (("batch_size", self.batch_size, 2), ("epochs", self.epochs, 1)):
            if type(number) is not int or number < low:
                raise ValueError(f"{name} must be a whole number of at least {low}, got {number!r}.")
        for name, rate in (("learning_rate", self.learning_rate), ("weight_decay", self.weight_decay)):
            if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate < math.inf:
                raise ValueError(f"{name} must be a number that is not negative, got {rate!r}.")
        if not isinstance(self.freeze, bool):
            raise ValueError(f"freeze must be True or False, got {self.freeze!r}.")


def paper_settings(protocol: str, source: str, ordinal: bool) -> FineTuneSettings:
    """The settings of the publication (arXiv 2104.04323), and where it gives none, those of its nearest case.

    =============  =====================================  =====================================  ====================
    protocol       graded photographs                     Oxford Flowers ("flowers102"),         Stanford Dogs
                   ("aptos", ordinal)                     other categories                       ("dogs")
    =============  =====================================  =====================================  ====================
    "frozen_head"  *as Flowers*, 140 epochs               SGD, rate 0.1, batch 64, 400 epochs    rate 0.01, 500 epochs
    "fine_tune"    Adam, rate 5e-5, batch 32, 25 epochs   *as APTOS*                             *as APTOS*
    "supervised"   *as "fine_tune"*, random weights       LARS, rate 0.3, batch 16, weight       weight decay 1e-4,
                                                          decay 5e-4, 1000 epochs                500 epochs
    =============  =====================================  =====================================  ====================

    What stands in italics is this project's reading: the publication scores frozen encoders on APTOS by logistic
    regression alone, does not say how its supervised networks on APTOS were trained, and fine-tunes no whole encoder on
    the others. 140 epochs of APTOS's 2930 training images are as many updates as 400 of Flowers' 1020; Adam at 5e-5
    moves a head on frozen features too little in 25 epochs. Graded photographs are augmented by zoom and flips, others
    by random crop and horizontal flip; heads have no weight decay. Replace single values by
    :func:`dataclasses.replace`.

    Args:
        protocol: "frozen_head", "fine_tune" or "supervised" (from random weights).
        source: of the data, as ``load_datalist`` names it (``info.source``).
        ordinal: whether the classes are grades.

    Raises:
        ValueError: for another protocol.
    """
    graded = ordinal or source == "aptos"
    augmentation = "zoom_flip" if graded else "crop_flip"
    if protocol == "frozen_head":
        rate, epochs = (0.01, 500) if source == "dogs" else (0.1, 140 if graded else 400)
        return FineTuneSettings("sgd", rate, 64, epochs, augmentation, freeze=True)
    if protocol == "fine_tune":
        return FineTuneSettings("adam", 5e-5, 32, 25, augmentation)
    if protocol == "supervised":
        if graded:
            return FineTuneSettings("adam", 5e-5, 32, 25, augmentation, init="scratch")
        decay, epochs = (1e-4, 500) if source == "dogs" else (5e-4, 1000)
        return FineTuneSettings("lars", 0.3, 16, epochs, augmentation, decay, init="scratch")
    raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}.")


def predict_fine_tuned(
    make_encoder: Callable[[], nn.Module],
    images: Tensor,
    labels: np.ndarray,
    folds: Folds,
    ordinal: bool,
    num_classes: int,
    settings: FineTuneSettings,
    seed: int = 0,
    device: torch.device | str = "cpu",
    amp: bool | None = False,
    progress: bool = True,
    store: FoldStore | None = None,
) -> Predictions:
    """Trains an encoder with a linear head on the training part of each fold, and predicts its test part.

    Grades are learned by :class:`conrec_monai.losses.CumulativeBCELoss`, other classes by cross-entropy. The test part
    chooses nothing: the last epoch counts, and test images are seen as they are. All randomness of a fold comes from
    ``seed`` and the number of the fold: encoders are compared on the same batches and augmentations. A last batch of a
    single image is left out of an epoch, as it has no batch statistics.

    With a ``store`` a run that was interrupted goes on from its last completed fold, and within a fold from the last
    state that was kept (at the end of an epoch, one a half-minute), to the numbers of one that was not interrupted (on
    the same machine, with as many threads).

    Args:
        make_encoder: gives the encoder, a module from BCHW with values in [0, 1] to B[F] with ``num_features``; it is
            copied and never changed.
        images: uint8 NCHW.
        labels: [N] classes 0 .. num_classes - 1.
        folds: pairs of (training indices, test indices).
        ordinal: whether the classes are grades.
        num_classes: K.
        settings: of the training.
        seed: not negative.
        device: where to train.
        amp: autocast to bfloat16; None where the device has arithmetic for it.
        progress: show a bar on a terminal, and log lines with loss, rate and time left.
        store: keeps what is computed; None to keep nothing. It answers for these very arguments alone.

    Returns:
        The predictions of the folds.

    Raises:
        ValueError: before any training, for images or labels that do not fit, an encoder that cannot take the images,
            a fold whose sides are empty or overlap, or whose training part has a single class or lacks one that its
            test part has, or a saved prediction of other images; later, when a training diverges.
    """
    labels = _checked(images, labels, folds, num_classes, settings, seed)
    _check_output(make_encoder(), images)
    folds = [(np.asarray(train), np.asarray(test)) for train, test in folds]
    found = [None if store is None else store.prediction(number) for number in range(len(folds))]
    for number, prediction in enumerate(found):
        if prediction is not None:
            _check_saved(prediction, folds[number][1], num_classes, f"fold {number + 1} of {len(folds)}")

    device = torch.device(device)
    autocast = bfloat16_is_fast(device) if amp is None else bool(amp)
    todo = [number for number, prediction in enumerate(found) if prediction is None]
    log = _Progress(settings.epochs * sum(len(folds[number][0]) for number in todo), len(folds)) if progress else None
    try:
        for number in todo:
            train, test = folds[number]
            init_seed, order_seed, trainer_seed = (
                int(value) for value in np.random.SeedSequence([seed, number]).generate_state(3)
            )
            # The trainer seeds torch's generators in each iteration: the caller's stay as they are.
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(init_seed)
                network = _classifier(make_encoder(), num_classes, settings)
                n, size = len(train), min(settings.batch_size, len(train))
                sampler = EpochBatchSampler(n, size, order_seed, drop_last=n > size and n % size == 1)
                loader = DataLoader(
                    _Part(images, torch.from_numpy(labels), train), batch_sampler=sampler, collate_fn=batched
                )
                optimizer = build_optimizer(
                    settings.optimizer, network, settings.learning_rate, settings.weight_decay, head="head"
                )
                schedule = build_schedule(settings.schedule, optimizer, len(loader), settings.epochs)
                trainer = FineTuner(
                    device,
                    settings.epochs,
                    loader,
                    network,
                    optimizer,
                    CumulativeBCELoss() if ordinal else nn.CrossEntropyLoss(),
                    _augmentation(settings.augmentation, images.shape[-1]),
                    trainer_seed,
                    autocast,
                    [
                        LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
                        *([] if store is None else [_KeepState(store, number, schedule)]),
                        *([] if log is None else [log.of_fold(number, n)]),
                    ],
                )
                try:
                    trainer.run()
                    probabilities = _probabilities(network, images, test, ordinal, device, autocast)
                except ValueError as error:
                    raise ValueError(f"fold {number + 1} of {len(folds)}: {error}") from error
            make = FoldPrediction.of_cumulative if ordinal else FoldPrediction.of_classes
            prediction = make(test, probabilities)
            if store is not None:
                store.put_prediction(number, prediction)
            found[number] = prediction
    finally:
        if log is not None:
            log.close()
    return Predictions([prediction for prediction in found if prediction is not None])


def _checked(
    images: Tensor, labels: np.ndarray, folds: Folds, num_classes: int, settings: FineTuneSettings, seed: int
) -> np.ndarray:
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(f"expected uint8 images NCHW, got {images.dtype} of shape {list(images.shape)}")
    labels = _checked_labels(labels, num_classes)
    if len(labels) != len(images):
        raise ValueError(f"expected one label per image, got {len(labels)} labels for {len(images)} images")
    check_folds(labels, folds)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a whole number that is not negative, got {seed!r}")
    if settings.augmentation == "crop_flip" and images.shape[2] != images.shape[3]:
        height, width = images.shape[2:]
        raise ValueError(f"augmentation crop_flip makes square images; these are of {height} x {width} pixels")
    return labels


def _check_output(encoder: nn.Module, images: Tensor) -> None:
    """Checks that the encoder takes the images, before a training ends in the middle."""
    width = check_encoder(encoder)
    shape = list(images.shape[1:])
    encoder = copy.deepcopy(encoder).cpu().eval()
    try:
        with torch.inference_mode():
            h = encoder(images[:1].float() / 255)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{type(encoder).__name__} cannot take images of shape {shape}: {reason}") from error
    if h.shape != (1, width):
        raise ValueError(
            f"{type(encoder).__name__} gives shape {list(h.shape)} for an image of shape {shape}, expected [1, {width}]"
        )
    if not h.isfinite().all():
        raise ValueError(f"{type(encoder).__name__} gives a representation that is not finite: check its weights")


def _check_saved(prediction: FoldPrediction, test: np.ndarray, num_classes: int, name: str) -> None:
    if not np.array_equal(prediction.test, test):
        raise ValueError(f"the saved prediction of {name} is one of other test images; remove it to train again")
    if prediction.probabilities.shape != (len(test), num_classes):
        found = list(prediction.probabilities.shape)
        raise ValueError(f"the saved prediction of {name} has probabilities {found}, not {[len(test), num_classes]}")


def _classifier(encoder: nn.Module, num_classes: int, settings: FineTuneSettings) -> EncoderClassifier:
    encoder = untrained_like(encoder) if settings.init == "scratch" else copy.deepcopy(encoder)
    # The caller may have frozen its encoder for inference.
    return EncoderClassifier(encoder.requires_grad_(True), num_classes, settings.freeze)


def _augmentation(name: str | None, image_size: int) -> BatchRandTransform | None:
    if name is None:
        return None
    return RandZoomFlip() if name == "zoom_flip" else RandCropFlip(image_size)


def _probabilities(
    network: nn.Module, images: Tensor, indices: np.ndarray, ordinal: bool, device: torch.device, autocast: bool
) -> np.ndarray:
    """Cumulative (ordinal) or class probabilities [len(indices), K] of images as they are."""
    network.eval()
    parts = []
    with torch.inference_mode():
        for index in torch.from_numpy(indices).split(TEST_BATCH):
            x = images.index_select(0, index).to(device).float() / 255
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
                logits = network(x.contiguous(memory_format=torch.channels_last))
            parts.append(logits.double().cpu())
    logits = torch.cat(parts)
    if not logits.isfinite().all():
        raise ValueError("predictions are not finite: the training has diverged; a smaller learning rate is needed.")
    return (logits.sigmoid() if ordinal else logits.softmax(dim=1)).numpy()


class _Part(Dataset):
    """Some of the images and labels, whole batches at a time."""

    def __init__(self, images: Tensor, labels: Tensor, indices: np.ndarray) -> None:
        self.images, self.labels, self.indices = images, labels, torch.from_numpy(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Tensor]:
        index = self.indices[torch.as_tensor(positions)]
        return {"image": self.images.index_select(0, index), "label": self.labels.index_select(0, index)}


class _KeepState:
    """Keeps the state of a training at the end of epochs, not too often, and lets the training go on from it."""

    def __init__(self, store: FoldStore, fold: int, schedule: LambdaLR) -> None:
        self.store, self.fold, self.schedule = store, fold, schedule
        self.written = time.monotonic()

    def attach(self, engine: FineTuner) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)

    def _start(self, engine: FineTuner) -> None:
        state = self.store.state(self.fold)
        if state is None:
            return
        try:
            check_weights(engine.network, state["network"], "the state of the training")
            self.schedule.load_state_dict(state["schedule"])
        except (AttributeError, KeyError, TypeError, ValueError):  # of another release, say: the fold starts again
            return
        engine.network.load_state_dict(state["network"])
        engine.load_training_state(state["training"])

    def _epoch(self, engine: FineTuner) -> None:
        if engine.state.epoch < engine.state.max_epochs and time.monotonic() - self.written >= SECONDS_BETWEEN_STATES:
            self.store.put_state(
                self.fold,
                {
                    "network": engine.network.state_dict(),
                    "schedule": self.schedule.state_dict(),
                    "training": engine.training_state(),
                },
            )
            self.written = time.monotonic()


class _Progress:
    """How the training of all folds goes: a live bar on a terminal, log lines everywhere.

    Args:
        total: images to train on, over all epochs and folds.
        folds: number of all folds.
    """

    def __init__(self, total: int, folds: int) -> None:
        self.total, self.folds = total, folds
        self.seen = 0
        self.logger = logging.getLogger("conrec_monai")
        self.bar = progress_bar(total=total, unit=" images", unit_scale=True, dynamic_ncols=True)
        self.start = self.written = time.monotonic()

    def of_fold(self, number: int, images: int) -> _FoldProgress:
        """The handler of a fold with so many training images."""
        return _FoldProgress(self, number, images)

    def leave_out(self, images: int) -> None:
        """These were seen before the run was interrupted."""
        self.total -= images
        self.bar.total = self.total

    def update(self, images: int) -> None:
        self.seen += images
        self.bar.update(images)

    def write(self, engine: Engine, number: int) -> None:
        """One line at the end of a fold, and in between one in ten seconds: epochs of small data are short."""
        state, now = engine.state, time.monotonic()
        place = f"fold {number + 1}/{self.folds}, epoch {state.epoch}/{state.max_epochs}"
        self.bar.set_description_str(f"{place}, loss {state.metrics['loss']:.3f}")
        if state.epoch < state.max_epochs and now - self.written < SECONDS_BETWEEN_LINES:
            return
        self.written = now
        rate = self.seen / max(now - self.start, 1e-9)
        self.bar.clear()
        self.logger.info(
            f"{place}: loss {state.metrics['loss']:.3f}, {rate:.1f} images/s,"
            f" {duration((self.total - self.seen) / rate)} left"
        )

    def close(self) -> None:
        self.bar.close()


class _FoldProgress:
    def __init__(self, progress: _Progress, number: int, images: int) -> None:
        self.progress, self.number, self.images = progress, number, images

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)

    def _start(self, engine: Engine) -> None:
        self.progress.leave_out(engine.state.epoch * self.images)

    def _iteration(self, engine: Engine) -> None:
        self.progress.update(len(engine.state.output[0]["image"]))

    def _epoch(self, engine: Engine) -> None:
        self.progress.write(engine, self.number)
