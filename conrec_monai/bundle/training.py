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
import math
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from conrec_monai.data import Datalist, load_datalist
from conrec_monai.data.dataset import RESIZES
from conrec_monai.engines import bfloat16_is_fast
from conrec_monai.handlers.checkpoint import CHECKPOINT, ENCODER, check_resume
from conrec_monai.losses import ConRecLoss
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.networks.utils import check_weights
from conrec_monai.optimizers import OPTIMIZERS, SCHEDULES, default_learning_rate
from conrec_monai.transforms import TwoViews

__all__ = [
    "check_output_dir",
    "checked_datalist",
    "checked_device",
    "check_training",
    "pretraining_datalist",
    "training_settings",
]


def checked_datalist(dataset_dir: Any, section: Any) -> Datalist:
    """:func:`conrec_monai.data.load_datalist` of what a user typed.

    Raises:
        FileNotFoundError, ValueError: see there; and when an argument is no text.
    """
    if not isinstance(dataset_dir, str | os.PathLike) or not os.fspath(dataset_dir):
        raise ValueError(f"dataset_dir must be a path, got {dataset_dir!r}.")
    if section is not None and not isinstance(section, str):
        raise ValueError(f"section must be the name of one split, got {section!r}.")
    return load_datalist(dataset_dir, section)


def pretraining_datalist(dataset_dir: str | os.PathLike, section: str | None = None) -> Datalist:
    """The images to pretrain on: those of a section, or all but those of the split "test" when there are others.

    Pretraining on images that are later tested is transductive, even without their labels; so it is not the default.

    Raises:
        FileNotFoundError, ValueError: see :func:`conrec_monai.data.load_datalist`.
    """
    datalist = checked_datalist(dataset_dir, section)
    rest = [item for item in datalist if item["split"] != "test"]
    return datalist if section is not None or not rest else Datalist(rest, datalist.info)


def checked_device(device: torch.device | str | None) -> torch.device:
    """The device of a name; CUDA where there is some, by default.

    Raises:
        ValueError: when there is no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device {device!r} is not available: {(str(error).splitlines() or ['unknown'])[0]}") from None
    return torch.device(device)


def check_output_dir(output_dir: str | os.PathLike) -> Path:
    """Makes a folder to write to.

    Raises:
        ValueError: when it cannot be made or written to.
    """
    if not isinstance(output_dir, str | os.PathLike) or not os.fspath(output_dir):
        raise ValueError(f"output_dir must be the path of a folder, got {output_dir!r}.")
    path = Path(output_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"output_dir {path} cannot be written to: {error.strerror or error}.") from None
    return path


def training_settings(device: torch.device | str | None = None, **settings: Any) -> dict[str, Any]:
    """The settings of a run with every default filled in: null values become what they stand for.

    ``cache_size`` is ``image_size``; ``learning_rate`` is that of
    :func:`conrec_monai.optimizers.default_learning_rate`; ``amp`` is whether the device has bfloat16 arithmetic.

    Args:
        device: where the run trains; CUDA where there is some, by default. It is checked, and not one of the settings.
        **settings: by their name in ``train.json``.

    Raises:
        ValueError: when a value has the wrong type.
    """
    whole = ("in_channels", "image_size", "batch_size", "max_epochs", "seed", "num_workers", "probe_every", "pictures_every")
    for name in (*whole, *(("cache_size",) if settings["cache_size"] is not None else ())):
        if not isinstance(settings[name], int) or isinstance(settings[name], bool):
            raise ValueError(f"{name} must be a whole number, got {settings[name]!r}.")
    for name in ("alpha", "temperature", *(("learning_rate",) if settings["learning_rate"] is not None else ())):
        if not isinstance(settings[name], int | float) or isinstance(settings[name], bool):
            raise ValueError(f"{name} must be a number, got {settings[name]!r}.")
        if not math.isfinite(settings[name]):
            raise ValueError(f"{name} must be finite, got {settings[name]}.")
    for name in ("masking", "decoder", "resume", *(("amp",) if settings["amp"] is not None else ())):
        if not isinstance(settings[name], bool):
            raise ValueError(f"{name} must be True or False, got {settings[name]!r}.")
    for name in ("dataset_dir", "output_dir"):
        if not isinstance(settings[name], str | os.PathLike):
            raise ValueError(f"{name} must be a path, got {settings[name]!r}.")
    device = checked_device(device)
    features = settings["features"]
    if not isinstance(features, list | tuple) or not all(isinstance(f, int) for f in features):
        raise ValueError(f"features must be a list of whole numbers, one per level, got {features!r}.")
    settings["features"] = list(features)
    settings["dataset_dir"], settings["output_dir"] = str(settings["dataset_dir"]), str(settings["output_dir"])
    if settings["cache_size"] is None:
        settings["cache_size"] = settings["image_size"]
    if settings["learning_rate"] is None and settings["batch_size"] > 0:
        settings["learning_rate"] = default_learning_rate(settings["optimizer"], settings["batch_size"])
    if settings["amp"] is None:
        settings["amp"] = bfloat16_is_fast(device)
    return settings


def check_training(settings: Mapping[str, Any], datalist: Datalist) -> None:
    """Checks everything that a pretraining needs before any work starts.

    Args:
        settings: of :func:`training_settings`.
        datalist: the images.

    Raises:
        ValueError, OSError: naming the key, what was found and what was expected.
    """
    for name, low in (
        ("batch_size", 2),
        ("max_epochs", 1),
        ("image_size", 1),
        ("cache_size", 1),
        ("seed", 0),
        ("num_workers", 1),
        ("probe_every", 0),
        ("pictures_every", 0),
    ):
        if settings[name] < low:
            raise ValueError(f"{name} must be at least {low}, got {settings[name]}.")
    if settings["seed"] >= 2**32:
        raise ValueError(f"seed must be below {2**32}, got {settings['seed']}.")
    for name, options in (("resize", RESIZES), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        if settings[name] not in options:
            raise ValueError(f"{name} must be one of {', '.join(options)}, got {settings[name]!r}.")
    if not settings["learning_rate"] > 0:
        raise ValueError(f"learning_rate must be positive, got {settings['learning_rate']}.")
    if settings["in_channels"] not in (1, 3):
        raise ValueError(f"in_channels must be 1 (gray) or 3 (RGB), got {settings['in_channels']}.")
    ConRecLoss(settings["alpha"], temperature=settings["temperature"])
    size, divisor = settings["image_size"], 2 ** (len(settings["features"]) - 1)
    if size % divisor:
        lower = size - size % divisor
        near = f"{lower} or {lower + divisor}" if lower else f"{divisor}"
        raise ValueError(
            f"image_size must be a multiple of {divisor} for {len(settings['features'])} levels of features"
            f" (for example {near}), got {size}."
        )
    try:
        TwoViews(size, settings["masking"])
    except ValueError as error:
        raise ValueError(f"image_size {size} is too small: {error}") from None
    with torch.device("meta"):  # checks the arguments, computes nothing
        network = ConRecUNet(settings["in_channels"], settings["features"], settings["pooling"], size, settings["decoder"])
    if settings["batch_size"] > len(datalist):
        raise ValueError(
            f"batch_size {settings['batch_size']} is larger than the data set: {len(datalist)} images in"
            f" {settings['dataset_dir']}."
        )
    path = check_output_dir(settings["output_dir"]) / CHECKPOINT
    if path.is_file():
        if not settings["resume"]:
            raise ValueError(
                f"{path} exists; it is not overwritten: go on with that run (--resume True) or name another output_dir."
            )
        content = check_resume(path, settings, datalist)
        check_weights(network, content["state_dict"], str(path))
        old, new = content["training"]["epoch_length"], len(datalist) // settings["batch_size"]
        if old != new:
            raise ValueError(
                f"the run cannot go on from {path}: its epochs have {old} iterations, this run's {new};"
                " the number of images changed."
            )
        done = content["training"]["iteration"] // old
        if done > settings["max_epochs"]:
            raise ValueError(f"{path} is already after epoch {done}, max_epochs is {settings['max_epochs']}.")
    written = [name for name in (ENCODER, "metrics.csv") if (path.parent / name).exists()]
    if written and not path.is_file() and not settings["resume"]:
        raise ValueError(f"output_dir {path.parent} holds the {written[0]} of another run; name another output_dir.")
    logging.getLogger("conrec_monai").info(
        f"{len(datalist)} images ({datalist.info.source}) at {size} px, batch_size {settings['batch_size']}, max_epochs"
        f" {settings['max_epochs']}, {settings['optimizer']} with learning_rate {settings['learning_rate']:g}, features"
        f" {settings['features']}, {'bfloat16' if settings['amp'] else 'float32'} arithmetic"
    )
    if datalist.info.source == "classes" and datalist.info.class_names is not None:  # any folders look like classes
        counts = Counter(item["label"] for item in datalist)
        names = ", ".join(f"{name} ({counts[i]})" for i, name in enumerate(datalist.info.class_names[:20]))
        logging.getLogger("conrec_monai").info(f"{len(datalist.info.class_names)} classes by folder: {names}")
