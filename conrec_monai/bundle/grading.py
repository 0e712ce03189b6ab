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

import csv
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from conrec_monai.bundle.evaluation import duplicates_size
from conrec_monai.bundle.training import (
    check_output_dir,
    check_run_dir,
    checked_datalist,
    checked_device,
    decode,
)
from conrec_monai.data import DR_GRADES, CachedImages, Datalist
from conrec_monai.data.preprocessing import RESIZES
from conrec_monai.engines import bfloat16_is_fast
from conrec_monai.evaluation import complete_groups, duplicate_groups, merge_groups, split_parts
from conrec_monai.handlers import check_resume
from conrec_monai.handlers.checkpoint import CHECKPOINT, ENCODER
from conrec_monai.handlers.grading import BEST, MODEL
from conrec_monai.losses import CumulativeBCELoss, GradeRegressionLoss
from conrec_monai.networks.nets import ConRecEncoder, DenseNetEncoder
from conrec_monai.networks.nets.grading_net import TASKS
from conrec_monai.networks.utils import load_encoder, read_checkpoint
from conrec_monai.optimizers import OPTIMIZERS, SCHEDULES
from conrec_monai.transforms.field_of_view import FIELDS_OF_VIEW
from conrec_monai.utils import rank, world_size

__all__ = [
    "GradingStart",
    "Parts",
    "check_grading",
    "class_weights",
    "grade_names",
    "grading_data",
    "grading_loss",
    "grading_settings",
    "grading_split",
    "image_groups",
    "load_start",
]

PARTS = ("train", "validation", "test")
RANDOM = "random"
DENSENET = "densenet121"
AUTO = "auto"
ARCHITECTURE = {"features": [16, 32, 64, 128], "pooling": "attention"}  # of random weights
DEFAULTS = {"image_size": 64, "resize": "squash", "field_of_view": "local_contrast"}  # of an encoder without a file


class GradingStart(NamedTuple):
    """What a fine-tuning starts from.

    Attributes:
        encoder: whose weights are trained on.
        preprocessing: ``image_size``, ``resize`` and ``field_of_view`` of the images that it takes.
        source: where its weights come from, in words.
        pretraining: entry of that name of its checkpoint; None without one.
        labeled: sorted hashes of the images whose labels its weights come from already; None where that is not known.
    """

    encoder: nn.Module
    preprocessing: dict[str, Any]
    source: str
    pretraining: dict[str, Any] | None = None
    labeled: Tensor | None = torch.empty(0, dtype=torch.int64)


class Parts(NamedTuple):
    """Positions of the images of each part; the weight of each grade in the loss (None for equal ones); and id, label,
    part and content of each image of training and validation part, by which a run that goes on is compared."""

    train: list[int]
    validation: list[int]
    test: list[int]
    weights: Tensor | None
    identity: list[dict[str, str]]


def grading_data(
    dataset_dir: str | os.PathLike, section: str | None = None, on_error: str = "raise", **keys: str | None
) -> Datalist:
    """The graded images of a data set: those that have a label.

    Args:
        dataset_dir, section, on_error, **keys: see :func:`conrec_monai.data.load_datalist`.

    Raises:
        FileNotFoundError, ValueError: see there; and when fewer than two grades are there.
    """
    datalist = checked_datalist(dataset_dir, section, on_error, **keys)
    labelled = [item for item in datalist if item["label"] is not None]
    grades = {item["label"] for item in labelled}
    if len(grades) < 2:
        raise ValueError(
            f"{dataset_dir} holds {len(datalist)} images, {len(labelled)} of them with a label, of {len(grades)}"
            " different grades; a grading learns from at least 2 grades."
        )
    return Datalist(labelled, datalist.info, datalist.skipped)


def grade_names(data: Datalist) -> list[str]:
    """Name of each grade of a data set, 0 .. K - 1."""
    if data.info.class_names is not None:
        return list(data.info.class_names)
    count = 1 + max(item["label"] for item in data)
    return list(DR_GRADES) if count == len(DR_GRADES) and data.info.ordinal else [str(i) for i in range(count)]


def load_start(
    encoder: Any,
    image_size: Any = AUTO,
    resize: Any = AUTO,
    field_of_view: Any = AUTO,
    features: Any = AUTO,
    pooling: Any = AUTO,
    in_channels: int = 3,
    densenet_weights: Any = None,
    seed: int = 0,
) -> GradingStart:
    """The encoder that a fine-tuning starts from.

    Args:
        encoder: path of ``encoder.pt`` or ``checkpoint.pt`` of a pretraining, or of an imported Keras checkpoint;
            "random" (a :class:`conrec_monai.networks.nets.ConRecEncoder` with random weights) or "densenet121".
        image_size, resize, field_of_view: of the images, "auto" for those of the checkpoint; without one for 64,
            "squash" and "local_contrast".
        features, pooling: of a ConRecEncoder, "auto" for those of the checkpoint, which others may not contradict;
            without one for (16, 32, 64, 128) and "attention".
        in_channels: of one without a checkpoint.
        densenet_weights: of "densenet121"; see :class:`conrec_monai.networks.nets.DenseNetEncoder`.
        seed: of random weights.

    Raises:
        FileNotFoundError, ValueError: naming the key, what was found and what was expected.
    """
    if not isinstance(encoder, str | os.PathLike) or not os.fspath(encoder):
        raise ValueError(
            f"encoder must be the path of a checkpoint (encoder.pt of a pretraining), random or densenet121, got"
            f" {encoder!r}."
        )
    if densenet_weights is not None and encoder != DENSENET:
        raise ValueError(f"densenet_weights is for encoder densenet121 alone, the encoder is {encoder}.")
    if pooling not in (AUTO, "attention", "average"):
        raise ValueError(f"pooling must be auto, attention or average, got {pooling!r}.")
    if features != AUTO and (not isinstance(features, list | tuple) or not all(type(f) is int for f in features)):
        raise ValueError(f"features must be auto or a list of whole numbers, one per level, got {features!r}.")
    architecture = {"features": features if features == AUTO else list(features), "pooling": pooling}
    architecture = {name: value for name, value in architecture.items() if value != AUTO}
    preprocessing = dict(DEFAULTS)
    network: Any
    pretraining, labeled = None, GradingStart._field_defaults["labeled"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if encoder == DENSENET:
            if architecture:
                raise ValueError(f"{next(iter(architecture))} is of a ConRecEncoder, the encoder is {DENSENET}.")
            network = DenseNetEncoder(in_channels, densenet_weights)
            source = f"DenseNet121, {'random' if densenet_weights is None else densenet_weights} weights"
        elif encoder != RANDOM:
            if not Path(encoder).exists():
                raise FileNotFoundError(
                    f"no checkpoint at {encoder}: no such file (encoder must be a path, {RANDOM} or {DENSENET})."
                )
            network, content = load_encoder(encoder), read_checkpoint(encoder)
            preprocessing = {name: content["preprocessing"][name] for name in DEFAULTS}
            pretraining = content.get("pretraining")
            if content["kind"] in ("EncoderClassifier", "GradingNet"):
                labeled = (content.get("grading") or {}).get("image_hashes")
            source = f"{type(network).__name__} of {encoder}"
            for name, value in architecture.items():
                found = network.config.get(name)
                if found != value:
                    raise ValueError(
                        f"{name} must be auto or as in {encoder}, {found}, got {value}; encoder {RANDOM} takes any."
                    )
        else:
            network = ConRecEncoder(in_channels, **{**ARCHITECTURE, **architecture})
            source = "random weights"
    given = {"image_size": image_size, "resize": resize, "field_of_view": field_of_view}
    preprocessing.update({name: value for name, value in given.items() if value != AUTO})
    size = preprocessing["image_size"]
    if type(size) is not int or size < network.divisor or size % network.divisor:
        raise ValueError(f"image_size must be auto or a multiple of {network.divisor}, got {size!r}.")
    if preprocessing["resize"] not in RESIZES:
        raise ValueError(f"resize must be auto, {', '.join(RESIZES)}, got {preprocessing['resize']!r}.")
    if preprocessing["field_of_view"] not in FIELDS_OF_VIEW:
        raise ValueError(
            f"field_of_view must be auto, normalize, local_contrast or null, got {preprocessing['field_of_view']!r}."
        )
    return GradingStart(network, preprocessing, source, pretraining, labeled)


WHOLE = (
    ("batch_size", 2),
    ("max_epochs", 1),
    ("seed", 0),
    ("num_workers", 1),
    ("n_folds", 2),
    ("validate_every", 1),
    ("early_stop_patience", 0),
)


def grading_settings(device: torch.device | str = "cpu", **settings: Any) -> dict[str, Any]:
    """The settings of a fine-tuning, checked, with every default filled in.

    Args:
        device: where the run trains. It is checked, and not one of the settings.
        **settings: by their name in ``train.json``.

    Raises:
        ValueError: naming the key, what was found and what was expected.
    """
    for name, low in WHOLE:
        if type(settings[name]) is not int or settings[name] < low:
            raise ValueError(f"{name} must be a whole number of at least {low}, got {settings[name]!r}.")
    if settings["fold"] is not None and (type(settings["fold"]) is not int or settings["fold"] < 0):
        raise ValueError(f"fold must be a whole number, or null for no test part, got {settings['fold']!r}.")
    for name in ("learning_rate", "head_learning_rate", "weight_decay", "class_balance"):
        value, high = settings[name], 1 if name == "class_balance" else math.inf
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= high or value == math.inf:
            wanted = "a number from 0 to 1" if high == 1 else "a number that is not negative"
            raise ValueError(f"{name} must be {wanted}, got {value!r}.")
    minutes = settings["max_minutes"]
    if minutes is not None and not (isinstance(minutes, int | float) and 0 < minutes < math.inf) or minutes is True:
        raise ValueError(f"max_minutes must be a positive number, or null, got {minutes!r}.")
    if settings["validate_every"] > settings["max_epochs"]:
        raise ValueError(
            f"validate_every must be at most max_epochs, {settings['max_epochs']}, or no epoch could be chosen; got"
            f" {settings['validate_every']}."
        )
    if settings["cache_dir"] is not None and not isinstance(settings["cache_dir"], str | os.PathLike):
        raise ValueError(f"cache_dir must be a path, or null, got {settings['cache_dir']!r}.")
    for name in ("freeze", "resume", "group_duplicates"):
        if not isinstance(settings[name], bool):
            raise ValueError(f"{name} must be True or False, got {settings[name]!r}.")
    if not isinstance(settings["amp"], bool) and settings["amp"] != AUTO:
        raise ValueError(f"amp must be auto, True or False, got {settings['amp']!r}.")
    for name, options in (
        ("task", TASKS),
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("augmentation", ("zoom_flip", None)),
    ):
        if settings[name] not in options:
            raise ValueError(f"{name} must be one of {', '.join(map(str, options))}, got {settings[name]!r}.")
    if settings["seed"] >= 2**32:
        raise ValueError(f"seed must be below {2**32}, got {settings['seed']}.")
    device = checked_device(device)
    if settings["amp"] == AUTO:
        settings["amp"] = bfloat16_is_fast(device)
    return {name: str(value) if isinstance(value, os.PathLike) else value for name, value in settings.items()}


def check_grading(settings: Mapping[str, Any], data: Datalist, start: GradingStart) -> None:
    """Checks what a fine-tuning needs before any work starts, and says what it will do.

    Args:
        settings: of :func:`grading_settings`.
        data: of :func:`grading_data`.
        start: of :func:`load_start`.

    Raises:
        ValueError, OSError: naming the key, what was found and what was expected.
    """
    config: Any = start.encoder.config
    if data.info.channels != config["in_channels"] and config["in_channels"] == 1:
        logging.getLogger("conrec_monai").warning("the encoder takes gray images; the color of these is not used")
    if settings["task"] != "categorical" and not data.info.ordinal:
        raise ValueError(
            f"task {settings['task']} needs ordered grades, {settings['dataset_dir']} has the classes"
            f" {', '.join(grade_names(data)[:5])}: use task categorical, or a data set that is marked as ordinal."
        )
    labels = np.array([item["label"] for item in data])
    groups = complete_groups([item["group"] for item in data])
    splits = [item["split"] for item in data]
    parts = split_parts(labels, groups, splits, settings["fold"], settings["n_folds"], settings["seed"])
    _check_batch_size(parts, settings)  # duplicates, which are not known yet, change little
    processes = world_size()
    if settings["batch_size"] % processes or settings["batch_size"] < 2 * processes:
        raise ValueError(
            f"batch_size, of all {processes} processes together, must be a multiple of {processes} and at least"
            f" {2 * processes}, got {settings['batch_size']}."
        )
    if settings["cache_dir"] is not None:
        check_output_dir(settings["cache_dir"], "cache_dir")
    path = check_run_dir(settings["output_dir"], settings["resume"], (MODEL, ENCODER), (BEST, "metrics.csv"))
    if path is not None:
        check_resume(path, settings)
    if rank():
        return
    counts = np.bincount(labels, minlength=len(grade_names(data))).tolist()
    grades = ", ".join(f"{name} ({n})" for name, n in zip(grade_names(data), counts, strict=True))
    logging.getLogger("conrec_monai").info(
        f"{len(data)} graded images ({data.info.source}): {grades}; encoder: {start.source}"
        f"{', frozen' if settings['freeze'] else ''}; {start.preprocessing['image_size']} px, field_of_view"
        f" {start.preprocessing['field_of_view']}; task {settings['task']}, batch_size {settings['batch_size']},"
        f" max_epochs {settings['max_epochs']}, {settings['optimizer']} with learning_rate"
        f" {settings['learning_rate']:g}, of the head {settings['head_learning_rate']:g}"
    )


def _check_batch_size(parts: np.ndarray, settings: Mapping[str, Any]) -> None:
    count = int((parts == "train").sum())
    if count < settings["batch_size"]:
        raise ValueError(
            f"batch_size {settings['batch_size']} is larger than the training part, {count} of {len(parts)} images."
        )


def grading_split(dataset: CachedImages, settings: Mapping[str, Any], num_classes: int) -> Parts:
    """Decodes the images, splits them into training, validation and test part, and writes ``split.csv``.

    Patients, and with ``group_duplicates`` exact and near duplicates, are on one side. See
    :func:`conrec_monai.evaluation.split_parts`.

    Args:
        dataset: graded images.
        settings: of :func:`grading_settings`: ``output_dir``, ``fold``, ``n_folds``, ``seed``, ``group_duplicates``,
            ``class_balance``.
        num_classes: K.

    Raises:
        ValueError: when images cannot be read and none may be left out, they cannot be split so, or a run that goes on
            had other images, labels or parts.
    """
    decode(settings["output_dir"], dataset)
    labels = dataset.labels.numpy()
    groups, found = image_groups(dataset, settings["group_duplicates"])
    splits = [item.get("split") for item in dataset.data]
    parts = split_parts(labels, groups, splits, settings["fold"], settings["n_folds"], settings["seed"])
    positions = {part: np.flatnonzero(parts == part).tolist() for part in PARTS}
    classes = np.unique(labels[parts == "train"])
    if len(classes) < 2:
        raise ValueError(f"the training part has the grade {classes.tolist()} alone; at least 2 are needed.")
    _check_batch_size(parts, settings)
    learned = np.flatnonzero(np.isin(parts, PARTS[:2]))
    identity = [{"id": f"{dataset.ids[i]} {labels[i]} {parts[i]} {dataset.hashes[i]}"} for i in learned]
    path = Path(settings["output_dir"]) / CHECKPOINT
    if path.is_file():
        check_resume(path, settings, identity)
    if not rank():
        with (Path(settings["output_dir"]) / "split.csv").open(
            "w", newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            writer = csv.writer(file)
            writer.writerow(["id", "label", "part"])
            writer.writerows(zip(dataset.ids, labels.tolist(), parts.tolist(), strict=True))
        unused = len(labels) - sum(map(len, positions.values()))
        logging.getLogger("conrec_monai").info(
            ", ".join(f"{part} part {len(positions[part])} images" for part in PARTS)
            + (f", {unused} of no part" if unused else "")
            + (f"; {len(found)} groups of duplicates are kept together" if found else "")
        )
    weights = class_weights(labels[positions["train"]], num_classes, settings["class_balance"])
    return Parts(positions["train"], positions["validation"], positions["test"], weights, identity)


def image_groups(dataset: CachedImages, group_duplicates: bool) -> tuple[np.ndarray | None, list[list[int]]]:
    """Groups of images that belong on one side of a split, and the duplicates among them.

    Args:
        dataset: decoded images.
        group_duplicates: join those that are duplicates of each other, too.

    Returns:
        [N] group of each image, of its patient and its duplicates (None where each is alone); the groups of duplicates.
    """
    found: list[list[int]] = []
    if group_duplicates:
        whole = CachedImages(
            dataset.data, duplicates_size(dataset.data), "squash", 3, dataset.num_workers, cache_dir=dataset.cache_dir
        )
        found = duplicate_groups(whole.images)
    return complete_groups(merge_groups(dataset.groups, found)), found


def class_weights(labels: np.ndarray, num_classes: int, balance: float) -> Tensor | None:
    """Weight of each grade in the loss: its frequency to the power of -balance, 1 on average over the images.

    Args:
        labels: [N] of the training part.
        num_classes: K.
        balance: 0 for equal weights (None), 1 for weights with which every grade counts alike.

    Returns:
        [K] float32; a grade without images has the largest weight of the others.
    """
    if not balance:
        return None
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    weights = np.where(counts > 0, np.maximum(counts, 1) ** -float(balance), 0)
    weights[counts == 0] = weights.max()
    return torch.from_numpy(weights * len(labels) / (weights * counts).sum()).float()


def grading_loss(task: str, num_classes: int, weights: Tensor | None) -> nn.Module:
    """The loss of a task of :class:`conrec_monai.networks.nets.GradingNet`."""
    if task == "ordinal":
        return CumulativeBCELoss(weights)
    return GradeRegressionLoss(num_classes, weights) if task == "regression" else nn.CrossEntropyLoss(weights)
