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

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from conrec_monai.bundle.training import check_output_dir, checked_device
from conrec_monai.data.preprocessing import RESIZES
from conrec_monai.networks.utils import build_network, is_plain_weights, load_encoder, load_weights, read_checkpoint
from conrec_monai.transforms.field_of_view import FIELDS_OF_VIEW

__all__ = ["InferenceEncoder", "check_inference", "load_for_inference"]


class InferenceEncoder(NamedTuple):
    """An encoder in evaluation mode, and how images become its input: BCHW, values in [0, 1]."""

    encoder: nn.Module
    image_size: int
    resize: str
    field_of_view: str | None = None


def load_for_inference(
    checkpoint: str | os.PathLike, architecture: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> InferenceEncoder:
    """The encoder of a checkpoint, ready to be used.

    Args:
        checkpoint: ``encoder.pt`` or ``checkpoint.pt`` of a run, which bring their own architecture and preprocessing;
            or a plain state dictionary, such as the ``models/model.pt`` of a MONAI bundle.
        architecture: arguments of :class:`conrec_monai.networks.nets.ConRecEncoder` for a plain state dictionary.
        preprocessing: ``image_size``, ``resize`` and ``field_of_view`` (one of `CachedImages`; null where it is absent)
            for a plain state dictionary.

    Raises:
        FileNotFoundError, ValueError: when the file cannot be read or does not fit.
    """
    if not isinstance(checkpoint, str | os.PathLike):
        raise ValueError(f"checkpoint must be a path, got {checkpoint!r}.")
    state_dict = plain_state_dict(checkpoint)
    if state_dict is None:
        preprocessing = read_checkpoint(checkpoint)["preprocessing"]
        return InferenceEncoder(
            load_encoder(checkpoint),
            preprocessing["image_size"],
            preprocessing["resize"],
            preprocessing["field_of_view"],
        )
    encoder = plain_network("ConRecEncoder", architecture, preprocessing, state_dict, checkpoint)
    return InferenceEncoder(encoder, *checked_preprocessing(preprocessing, encoder.divisor))


def plain_network(
    kind: str, architecture: Any, preprocessing: Any, state_dict: Mapping[str, torch.Tensor], source: str | os.PathLike
) -> Any:
    """The network of a plain state dictionary, in evaluation mode.

    Args:
        kind, architecture: see :func:`conrec_monai.networks.utils.build_network`.
        preprocessing: a dictionary; what it holds is not looked at.
        state_dict: its weights.
        source: what an error calls their origin.

    Raises:
        ValueError: when an argument is no dictionary, or the weights do not fit.
    """
    for name, value in (("architecture", architecture), ("preprocessing", preprocessing)):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must be a dictionary, got {value!r}.")
    network = build_network(kind, architecture)
    load_weights(network, state_dict, str(source))
    return network.eval()


def checked_preprocessing(preprocessing: Mapping[str, Any], divisor: int) -> tuple[int, str, str | None]:
    """``image_size``, ``resize`` and ``field_of_view`` of the images that a network takes.

    Args:
        preprocessing: that holds them.
        divisor: of the network's image size.

    Raises:
        ValueError: when one of them is not what it must be.
    """
    size, resize = preprocessing.get("image_size"), preprocessing.get("resize")
    if type(size) is not int or size < 1 or size % divisor:
        raise ValueError(f"preprocessing must hold image_size, a multiple of {divisor}, found {size!r}.")
    if resize not in RESIZES:
        raise ValueError(f"preprocessing must hold resize, one of {', '.join(RESIZES)}, found {resize!r}.")
    field_of_view = preprocessing.get("field_of_view")
    if field_of_view not in FIELDS_OF_VIEW:
        raise ValueError(
            f"preprocessing must hold field_of_view, null, normalize or local_contrast, found {field_of_view!r}."
        )
    return size, resize, field_of_view


def plain_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor] | None:
    """The content of a file that holds tensors by name and nothing else; None for any other file, or none."""
    if not Path(path).is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # read_checkpoint, called next, says what is wrong with it
        return None
    return content if is_plain_weights(content) else None


def check_inference(
    encoder: nn.Module,
    output_dir: str | os.PathLike,
    batch_size: int,
    num_workers: int,
    attention_maps: bool | None,
    device: torch.device | str,
) -> None:
    """Checks what an inference needs before any work starts.

    Args:
        encoder: that computes the representations.
        output_dir: folder to write to; created.
        batch_size: images per forward pass.
        num_workers: threads that decode.
        attention_maps: whether attention maps are written; None where the encoder pools by attention.
        device: of the encoder.

    Raises:
        ValueError: naming the key, what was found and what was expected.
    """
    for name, value in (("batch_size", batch_size), ("num_workers", num_workers)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    if not (attention_maps is None or isinstance(attention_maps, bool)):
        raise ValueError(f"attention_maps must be True, False or null, got {attention_maps!r}.")
    config: Any = encoder.config
    pooling = config.get("pooling")
    if attention_maps and pooling != "attention":
        raise ValueError(f"attention_maps needs an encoder that pools by attention; this one has pooling {pooling!r}.")
    checked_device(device)
    check_output_dir(output_dir, "inference_dir")
