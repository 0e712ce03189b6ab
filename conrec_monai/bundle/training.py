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
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from conrec_monai.data import Datalist, load_datalist
from conrec_monai.engines import bfloat16_is_fast
from conrec_monai.handlers.checkpoint import CHECKPOINT, check_resume
from conrec_monai.losses import ConRecLoss
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.optimizers import OPTIMIZERS, SCHEDULES, default_learning_rate
from conrec_monai.transforms import TwoViews

__all__ = ["check_output_dir", "check_training", "pretraining_datalist", "training_settings"]

RESIZES = ("squash", "pad", "crop")


def pretraining_datalist(dataset_dir: str | os.PathLike, section: str | None = None) -> Datalist:
    """The images to pretrain on: those of a section, or all but those of the split "test" when there are others.

    Pretraining on images that are later tested is transductive, even without their labels; so it is not the default.

    Raises:
        FileNotFoundError, ValueError: see :func:`conrec_monai.data.load_datalist`.
    """
    datalist = load_datalist(dataset_dir, section)
    rest = [item for item in datalist if item["split"] != "test"]
    return datalist if section is not None or not rest else Datalist(rest, datalist.info)


def check_output_dir(output_dir: str | os.PathLike) -> Path:
    """Makes a folder to write to.

    Raises:
        ValueError: when it cannot be made or written to.
    """
    path = Path(output_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"output_dir {path} cannot be written to: {error.strerror or error}.") from None
    return path


def training_settings(**settings: Any) -> dict[str, Any]:
    """The settings of a run with every default filled in: null values become what they stand for.

    ``cache_size`` is ``image_size``; ``learning_rate`` is that of
    :func:`conrec_monai.optimizers.default_learning_rate`; ``amp`` is whether the device has bfloat16 arithmetic.

    Raises:
        ValueError: when a value has the wrong type.
    """
    whole = ("image_size", "batch_size", "max_epochs", "seed", "num_workers", "probe_every", "pictures_every")
    for name in (*whole, *(("cache_size",) if settings["cache_size"] is not None else ())):
        if not isinstance(settings[name], int) or isinstance(settings[name], bool):
            raise ValueError(f"{name} must be a whole number, got {settings[name]!r}.")
    for name in ("alpha", "temperature", *(("learning_rate",) if settings["learning_rate"] is not None else ())):
        if not isinstance(settings[name], int | float) or isinstance(settings[name], bool):
            raise ValueError(f"{name} must be a number, got {settings[name]!r}.")
    for name in ("masking", "decoder", "resume", *(("amp",) if settings["amp"] is not None else ())):
        if not isinstance(settings[name], bool):
            raise ValueError(f"{name} must be True or False, got {settings[name]!r}.")
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
        settings["amp"] = bfloat16_is_fast(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
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
        ("cache_size", 1),
        ("seed", 0),
        ("num_workers", 1),
        ("probe_every", 0),
        ("pictures_every", 0),
    ):
        if settings[name] < low:
            raise ValueError(f"{name} must be at least {low}, got {settings[name]}.")
    for name, options in (("resize", RESIZES), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        if settings[name] not in options:
            raise ValueError(f"{name} must be one of {', '.join(options)}, got {settings[name]!r}.")
    if not settings["learning_rate"] > 0:
        raise ValueError(f"learning_rate must be positive, got {settings['learning_rate']}.")
    ConRecLoss(settings["alpha"], temperature=settings["temperature"])
    size, divisor = settings["image_size"], 2 ** (len(settings["features"]) - 1)
    if size < divisor or size % divisor:
        near = f"{max(size // divisor, 1) * divisor} or {(size // divisor + 1) * divisor}"
        raise ValueError(
            f"image_size must be a multiple of {divisor} for {len(settings['features'])} levels of features"
            f" (for example {near}), got {size}."
        )
    try:
        TwoViews(size, settings["masking"])
    except ValueError as error:
        raise ValueError(f"image_size {size} is too small: {error}") from None
    with torch.device("meta"):  # checks the arguments, computes nothing
        ConRecUNet(3, settings["features"], settings["pooling"], size, settings["decoder"])
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
        content = check_resume(path, settings)
        done = content["training"]["iteration"] // content["training"]["epoch_length"]
        if done > settings["max_epochs"]:
            raise ValueError(f"{path} is already after epoch {done}, max_epochs is {settings['max_epochs']}.")
    logging.getLogger("conrec_monai").info(
        f"{len(datalist)} images ({datalist.info.source}), {len(datalist) // settings['batch_size']} iterations per"
        f" epoch, {'bfloat16' if settings['amp'] else 'float32'} arithmetic"
    )
