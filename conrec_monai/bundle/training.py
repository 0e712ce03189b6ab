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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from conrec_monai.data import CachedImages, Datalist, load_datalist, write_manifest
from conrec_monai.data.preprocessing import RESIZES
from conrec_monai.engines import bfloat16_is_fast, channels_last_is_fast, compilation_pays
from conrec_monai.handlers.checkpoint import CHECKPOINT, ENCODER, check_resume
from conrec_monai.losses import ConRecLoss
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.networks.utils import check_weights, read_checkpoint
from conrec_monai.optimizers import OPTIMIZERS, SCHEDULES, default_learning_rate
from conrec_monai.transforms import TwoViews
from conrec_monai.transforms.field_of_view import FIELDS_OF_VIEW
from conrec_monai.utils import rank, world_size

__all__ = [
    "check_output_dir",
    "check_run_dir",
    "checked_datalist",
    "checked_device",
    "check_network",
    "check_training",
    "decode",
    "decode_training",
    "pretraining_data",
    "probe_data",
    "recipe_values",
    "training_settings",
]


# Whole numbers among the settings, and the least value of each.
LIMITS = (
    ("batch_size", 2),
    ("max_epochs", 1),
    ("image_size", 1),
    ("cache_size", 1),
    ("seed", 0),
    ("num_workers", 1),
    ("probe_every", 0),
    ("pictures_every", 0),
    ("health_every", 0),
    ("validate_every", 1),
    ("masked_views", 0),
    ("checkpoint_every", 0),
    ("early_stop_patience", 0),
)


def recipe_values(recipe: Any, recipes: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The settings of a recipe by its name.

    Args:
        recipe: the name.
        recipes: all of them by name.

    Raises:
        ValueError: when there is no such recipe.
    """
    if not isinstance(recipe, str) or recipe not in recipes:
        raise ValueError(f"recipe must be one of {', '.join(recipes)}, got {recipe!r}.")
    return recipes[recipe]


def checked_datalist(dataset_dir: Any, section: Any = None, on_error: Any = "raise", **keys: Any) -> Datalist:
    """:func:`conrec_monai.data.load_datalist` of what a user typed.

    Raises:
        FileNotFoundError, ValueError: see there; and when an argument is no text.
    """
    if not isinstance(dataset_dir, str | os.PathLike) or not os.fspath(dataset_dir):
        raise ValueError(f"dataset_dir must be a path, got {dataset_dir!r}.")
    if section is not None and not isinstance(section, str):
        raise ValueError(f"section must be the name of one split, got {section!r}.")
    for name, value in keys.items():
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{name} must be the name of a column, got {value!r}.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be raise or skip, got {on_error!r}.")
    return load_datalist(dataset_dir, section, on_error=on_error, **keys)


class PretrainingData(NamedTuple):
    """Images to train on, and to validate on (None when there is no such section)."""

    training: Datalist
    validation: Datalist | None


def pretraining_data(
    dataset_dir: str | os.PathLike,
    section: str | None = None,
    validation_section: str | None = None,
    on_error: str = "raise",
    **keys: str | None,
) -> PretrainingData:
    """The images to pretrain on: those of a section, or all but those of the split "test" when there are others.

    Pretraining on images that are later tested is transductive, even without their labels; so it is not the default.
    Images of the validation section are not trained on.

    Args:
        dataset_dir: see :func:`conrec_monai.data.load_datalist`.
        section: to train on.
        validation_section: to validate on; None to not validate.
        on_error: see :func:`conrec_monai.data.load_datalist`.
        **keys: ``image_key``, ``label_key``, ``group_key``, ``split_key``.

    Raises:
        FileNotFoundError, ValueError: see :func:`conrec_monai.data.load_datalist`.
    """
    training = checked_datalist(dataset_dir, section, on_error, **keys)
    validation = None
    if validation_section is not None:
        if validation_section == section:
            raise ValueError(f"section and validation_section are both {section!r}: nothing would be held out.")
        validation = checked_datalist(dataset_dir, validation_section, on_error, **keys)
    rest = [item for item in training if item["split"] != "test"]
    kept = training if section is not None or not rest else rest
    kept = [item for item in kept if validation is None or item["split"] != validation_section]
    if not kept:
        raise ValueError(f"validation_section {validation_section!r} holds all images; none are left to train on.")
    shared = {item["group"] for item in kept} & {item["group"] for item in validation or ()} - {None}
    if shared:
        raise ValueError(
            f"{len(shared)} groups (patients) are in the training and in validation_section {validation_section!r} too,"
            f" such as {min(shared)!r}: its loss would not be one of unseen patients."
        )
    return PretrainingData(Datalist(kept, training.info, training.skipped), validation)


def probe_data(
    probe_dir: str | os.PathLike | None, training: CachedImages, section: str | None = None, on_error: str = "raise"
) -> CachedImages:
    """The labeled images of the online probe: a data set of their own, or those of the training.

    Args:
        probe_dir: see :func:`conrec_monai.data.load_datalist`; None for the images of the training.
        training: whose size, way of resizing, channels and field of view are used.
        section: of ``probe_dir``.
        on_error: see :class:`conrec_monai.data.CachedImages`.

    Raises:
        FileNotFoundError, ValueError: see :func:`conrec_monai.data.load_datalist`; and when nothing has a label.
    """
    if probe_dir is None:
        return training
    datalist = checked_datalist(probe_dir, section, on_error)
    if all(item["label"] is None for item in datalist):
        raise ValueError(f"probe_dir {probe_dir} holds {len(datalist)} images without labels; a probe needs labels.")
    return CachedImages(
        datalist,
        training.size,
        training.resize,
        training.channels,
        training.num_workers,
        on_error=on_error,
        field_of_view=training.field_of_view,
        cache_dir=training.cache_dir,
    )


def decode(output_dir: str | os.PathLike, dataset: CachedImages, *others: CachedImages) -> None:
    """Decodes images before the work starts; writes what was left out to ``skipped.csv``, the images in which no retina
    was found to ``unsure.csv``.

    Args:
        output_dir: folder of the manifests; it exists.
        dataset: to decode.
        *others: to decode too; the same one may be there twice.

    Raises:
        ValueError: when images cannot be read and none may be left out, or none is left.
    """
    chosen = list({id(images): images for images in (dataset, *others)}.values())
    for images in chosen:
        images.load()
    if rank():
        return
    for name in ("skipped", "unsure"):
        entries = list({tuple(entry.items()): entry for images in chosen for entry in getattr(images, name)}.values())
        if entries:
            write_manifest(Path(output_dir) / f"{name}.csv", entries)


def decode_training(
    settings: Mapping[str, Any],
    training: CachedImages,
    validation: CachedImages | None = None,
    others: Sequence[CachedImages] = (),
) -> None:
    """:func:`decode` for a pretraining, and once more the checks that depend on which images can be read.

    Args:
        settings: of :func:`training_settings`.
        training: images to train on.
        validation: images to validate on; None without validation.
        others: further images, such as those of the probe.

    Raises:
        ValueError: see :func:`decode`; and when too few images are left, or a run that goes on had others.
    """
    decode(settings["output_dir"], training, *others, *([] if validation is None else [validation]))
    for dataset in (training, *([] if validation is None else [validation])):
        if len(dataset) < settings["batch_size"]:
            raise ValueError(
                f"batch_size {settings['batch_size']} is larger than the {len(dataset)} images that could be read."
            )
    path = Path(settings["output_dir"]) / CHECKPOINT
    if path.is_file() and isinstance(training.data, Datalist):
        _check_goes_on(path, settings, training.data)


def checked_device(device: torch.device | str) -> torch.device:
    """The device of a name.

    Raises:
        ValueError: when there is no such device.
    """
    if not isinstance(device, torch.device | str):
        raise ValueError(f"device must be the name of one, such as cpu or cuda:0, got {device!r}.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0].split(". ")[0]
        raise ValueError(f"device {device!r} is not available: {reason}") from None
    if torch.device(device).type == "meta":
        raise ValueError("device 'meta' computes nothing; expected one such as cpu or cuda:0.")
    return torch.device(device)


def check_output_dir(output_dir: str | os.PathLike, name: str = "output_dir") -> Path:
    """Makes a folder to write to.

    Args:
        output_dir: the folder.
        name: what an error calls it.

    Raises:
        ValueError: when it cannot be made or written to.
    """
    if not isinstance(output_dir, str | os.PathLike) or not os.fspath(output_dir):
        raise ValueError(f"{name} must be the path of a folder, got {output_dir!r}.")
    path = Path(output_dir)
    try:
        if path.is_file():
            raise ValueError(f"{name} {path} is a file, expected a folder to write to.")
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"{name} {path} cannot be written to: {error.strerror or error}.") from None
    return path


def check_run_dir(
    output_dir: str | os.PathLike, resume: bool, results: Sequence[str], begun: Sequence[str]
) -> Path | None:
    """Checks that a folder is free for a run, or holds the run that is to go on; makes it.

    Args:
        output_dir: the folder.
        resume: whether the run may go on.
        results: files that are never overwritten.
        begun: files that a run leaves which was stopped at once, before its first checkpoint; one that may go on
            begins anew over them.

    Returns:
        The checkpoint to go on from; None where the run begins.

    Raises:
        ValueError: when it holds another run, or cannot be made or written to.
    """
    folder = check_output_dir(output_dir)
    path = folder / CHECKPOINT
    if path.is_file():
        if not resume:
            raise ValueError(
                f"{path} exists; it is not overwritten: go on with that run (--resume True) or name another output_dir."
            )
        return path
    for name in results if resume else (*results, *begun):
        if (folder / name).exists():
            raise ValueError(f"output_dir {folder} holds the {name} of another run; name another output_dir.")
    return None


def training_settings(device: torch.device | str = "cpu", **settings: Any) -> dict[str, Any]:
    """The settings of a run with every default filled in: null values become what they stand for.

    ``cache_size`` is ``image_size``; ``learning_rate`` is that of
    :func:`conrec_monai.optimizers.default_learning_rate`; where they are "auto", ``amp`` is whether the device has
    bfloat16 arithmetic, ``channels_last`` whether its convolutions are at their best so, and ``compile`` whether that
    pays there.

    Args:
        device: where the run trains. It is checked, and not one of the settings.
        **settings: by their name in ``train.json``.

    Raises:
        ValueError: when a value has the wrong type, or the network is to be compiled and cannot be.
    """
    whole = ("in_channels", "skip_levels", *(name for name, _ in LIMITS))
    for name in whole:
        if name in ("cache_size", "skip_levels") and settings[name] is None:
            continue
        if not isinstance(settings[name], int) or isinstance(settings[name], bool):
            raise ValueError(f"{name} must be a whole number, got {settings[name]!r}.")
    optional = tuple(name for name in ("learning_rate", "max_minutes") if settings[name] is not None)
    for name in ("alpha", "temperature", "jitter", "gray_prob", "blur_prob", *optional):
        if not isinstance(settings[name], int | float) or isinstance(settings[name], bool):
            raise ValueError(f"{name} must be a number, got {settings[name]!r}.")
        if not math.isfinite(settings[name]):
            raise ValueError(f"{name} must be finite, got {settings[name]}.")
    scale = settings["crop_scale"]
    if (
        not isinstance(scale, list | tuple)
        or len(scale) != 2
        or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in scale)
    ):
        raise ValueError(f"crop_scale must be two numbers, the smallest and the largest area, got {scale!r}.")
    settings["crop_scale"] = list(scale)
    for name in ("rotate", "decoder", "resume", "gradient_checkpointing", "encoder_half", "sync_batchnorm"):
        if not isinstance(settings[name], bool):
            raise ValueError(f"{name} must be True or False, got {settings[name]!r}.")
    for name in ("amp", "channels_last", "compile"):
        if not isinstance(settings[name], bool) and settings[name] != "auto":
            raise ValueError(f"{name} must be auto, True or False, got {settings[name]!r}.")
    for name in ("dataset_dir", "output_dir", "cache_dir"):
        if not isinstance(settings[name], str | os.PathLike) and (name != "cache_dir" or settings[name] is not None):
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
    if settings["cache_dir"] is not None:
        settings["cache_dir"] = str(settings["cache_dir"])
    if settings["amp"] == "auto":
        settings["amp"] = bfloat16_is_fast(device)
    if settings["channels_last"] == "auto":
        settings["channels_last"] = channels_last_is_fast(device)
    if settings["compile"] is True and settings["gradient_checkpointing"]:
        raise ValueError("compile and gradient_checkpointing cannot both be True.")
    if settings["compile"] == "auto" and (settings["gradient_checkpointing"] or not compilation_pays(device)):
        settings["compile"] = False
    if settings["compile"]:
        reason = _why_not_compiled(device)
        if reason and settings["compile"] is True:
            raise ValueError(f"compile True: torch.compile does not work on this machine: {reason}")
        if reason:
            logging.getLogger("conrec_monai").warning(f"torch.compile does not work on this machine: {reason}")
        settings["compile"] = not reason
    return settings


def _why_not_compiled(device: torch.device) -> str | None:
    """Compiles something small: whether that works is known only then."""
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:  # whatever the compiler behind it raises
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def check_training(settings: Mapping[str, Any], data: PretrainingData) -> None:
    """Checks everything that a pretraining needs before any work starts.

    Args:
        settings: of :func:`training_settings`.
        data: the images.

    Raises:
        ValueError, OSError: naming the key, what was found and what was expected.
    """
    for name, low in LIMITS:
        if settings[name] < low:
            raise ValueError(f"{name} must be at least {low}, got {settings[name]}.")
    if settings["seed"] >= 2**32:
        raise ValueError(f"seed must be below {2**32}, got {settings['seed']}.")
    for name, options in (("resize", RESIZES), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        if settings[name] not in options:
            raise ValueError(f"{name} must be one of {', '.join(options)}, got {settings[name]!r}.")
    if settings["field_of_view"] not in FIELDS_OF_VIEW:
        raise ValueError(f"field_of_view must be null, normalize or local_contrast, got {settings['field_of_view']!r}.")
    for name in ("learning_rate", "max_minutes"):
        if settings[name] is not None and not settings[name] > 0:
            raise ValueError(f"{name} must be positive, got {settings[name]}.")
    if settings["in_channels"] not in (1, 3):
        raise ValueError(f"in_channels must be 1 (gray) or 3 (RGB), got {settings['in_channels']}.")
    ConRecLoss(settings["alpha"], temperature=settings["temperature"])
    datalist, size = data.training, settings["image_size"]
    _check_sizes(settings, 2 ** (len(settings["features"]) - 1), f"{len(settings['features'])} levels of features")
    if settings["cache_size"] < size:
        raise ValueError(
            f"cache_size must be at least image_size, {size}, from which views are cut out, got"
            f" {settings['cache_size']} (null is image_size)."
        )
    if settings["pooling"] == "flatten" and settings["cache_size"] != size:
        raise ValueError(
            f"pooling flatten takes images of one size: cache_size must be image_size, {size}, got"
            f" {settings['cache_size']}."
        )
    try:
        TwoViews(size, **{name: settings[name] for name in TwoViews.OPTIONS})
    except ValueError as error:
        raise ValueError(f"views of image_size {size}: {error}") from None
    with torch.device("meta"):  # checks the arguments, computes nothing
        keys = ("in_channels", "features", "pooling", "decoder", "upsample", "skip_levels")
        architecture = {key: settings[key] for key in keys}
        ConRecUNet(image_size=size, **architecture)
    for part, what in ((data.training, "data set"), (data.validation, "validation section")):
        if part is not None and settings["batch_size"] > len(part):
            raise ValueError(
                f"batch_size {settings['batch_size']} is larger than the {what}: {len(part)} images in"
                f" {settings['dataset_dir']}."
            )
    processes = world_size()
    if settings["batch_size"] % processes or settings["batch_size"] < 2 * processes:
        raise ValueError(
            f"batch_size, of all {processes} processes together, must be a multiple of {processes} and at least"
            f" {2 * processes}, got {settings['batch_size']}."
        )
    if settings["probe_dir"] is not None and not isinstance(settings["probe_dir"], str | os.PathLike):
        raise ValueError(f"probe_dir must be a path, got {settings['probe_dir']!r}.")
    if settings["cache_dir"] is not None and not any(Path(settings["cache_dir"]).glob("*.images")):
        check_output_dir(settings["cache_dir"], "cache_dir")  # one that holds all images may be read-only
    path = check_run_dir(settings["output_dir"], settings["resume"], (ENCODER,), ("metrics.csv",))
    if path is not None:
        # Images that cannot be read are known only when they are decoded; then the run is compared as a whole.
        _check_goes_on(path, settings, datalist if settings["on_error"] == "raise" else None)
    if rank():
        return
    chosen = [
        "bfloat16 arithmetic" if settings["amp"] else "float32 arithmetic",
        f"{'channels-last' if settings['channels_last'] else 'contiguous'} memory",
        "compiled (in the first steps, which take long)" if settings["compile"] else "not compiled",
        *(["gradient_checkpointing"] if settings["gradient_checkpointing"] else []),
        *([f"{processes} processes"] if processes > 1 else []),
        *(["sync_batchnorm"] if settings["sync_batchnorm"] and processes > 1 else []),
        *([f"field_of_view {settings['field_of_view']}"] if settings["field_of_view"] is not None else []),
        *([f"cache_dir {settings['cache_dir']}"] if settings["cache_dir"] is not None else []),
        *([f"max_minutes {settings['max_minutes']:g}"] if settings["max_minutes"] is not None else []),
    ]
    logging.getLogger("conrec_monai").info(
        f"recipe {settings['recipe']}: {len(datalist)} images ({datalist.info.source}) at {size} px, batch_size"
        f" {settings['batch_size']}, max_epochs {settings['max_epochs']}, {settings['optimizer']} with learning_rate"
        f" {settings['learning_rate']:g}, features {settings['features']}, {', '.join(chosen)}"
    )
    if datalist.info.source == "classes" and datalist.info.class_names is not None:  # any folders look like classes
        counts = Counter(item["label"] for item in datalist)
        names = ", ".join(f"{name} ({counts[i]})" for i, name in enumerate(datalist.info.class_names[:20]))
        logging.getLogger("conrec_monai").info(f"{len(datalist.info.class_names)} classes by folder: {names}")


def _check_goes_on(path: Path, settings: Mapping[str, Any], data: Datalist | None) -> None:
    """Checks that a run can go on from a checkpoint; without data, all but the images."""
    training = check_resume(path, settings, data)["training"]
    old = training["epoch_length"]
    if data is not None and old != len(data) // settings["batch_size"]:
        raise ValueError(
            f"the run cannot go on from {path}: its epochs have {old} iterations, this run's"
            f" {len(data) // settings['batch_size']}; the number of images changed."
        )
    done = training["iteration"] // old
    if done > settings["max_epochs"]:
        raise ValueError(f"{path} is already after epoch {done}, max_epochs is {settings['max_epochs']}.")


def check_network(network: nn.Module, settings: Mapping[str, Any]) -> None:
    """Checks that the network of a run fits its images, and a checkpoint that the run goes on from.

    Args:
        network: a :class:`conrec_monai.networks.nets.ConRecUNet` or
            :class:`conrec_monai.networks.nets.SimCLRNet`.
        settings: of :func:`training_settings`.

    Raises:
        ValueError: naming what was found and what was expected.
    """
    encoder = getattr(network, "encoder", None)
    if encoder is None or not hasattr(network, "config"):
        raise ValueError(f"network_def must be a ConRecUNet or a SimCLRNet, got a {type(network).__name__}.")
    if not hasattr(encoder, "config"):
        raise ValueError(
            f"the encoder of network_def must be a ConRecEncoder or a DenseNetEncoder, got a {type(encoder).__name__}:"
            " no other can be written to a checkpoint."
        )
    channels = encoder.config["in_channels"]
    if channels != settings["in_channels"]:
        raise ValueError(f"the images have in_channels {settings['in_channels']}, network_def takes {channels}.")
    size = settings["image_size"]
    _check_sizes(settings, encoder.divisor, type(encoder).__name__)
    training = [module for module in network.modules() if module.training]
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, channels, size, size))
    except RuntimeError as error:  # a ValueError says itself what is wrong
        reason = str(error).splitlines()[0]
        raise ValueError(f"network_def cannot take images of image_size {size}: {reason}") from None
    finally:
        for module in training:
            module.training = True
    path = Path(settings["output_dir"]) / CHECKPOINT
    if path.is_file():
        check_weights(network, read_checkpoint(path)["state_dict"], str(path))


def _check_sizes(settings: Mapping[str, Any], divisor: int, what: str) -> None:
    for name in ("image_size", "cache_size"):  # of the views; of what the encoder represents
        size = settings[name]
        if size % divisor:
            lower = size - size % divisor
            near = f"{lower} or {lower + divisor}" if lower else f"{divisor}"
            raise ValueError(f"{name} must be a multiple of {divisor} for {what} (for example {near}), got {size}.")
