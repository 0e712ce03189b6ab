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
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from conrec_monai.networks.nets import (
    ConRecEncoder,
    ConRecUNet,
    DenseNetEncoder,
    EncoderClassifier,
    GradingNet,
    SimCLRNet,
)
from conrec_monai.transforms.field_of_view import FIELDS_OF_VIEW

__all__ = [
    "FORMAT",
    "VERSION",
    "build_network",
    "check_weights",
    "is_plain_weights",
    "load_encoder",
    "load_model",
    "load_weights",
    "read_checkpoint",
    "save_checkpoint",
    "untrained_like",
    "write_in_one_step",
]

FORMAT = "conrec_monai"
VERSION = 1
Encoder = ConRecEncoder | DenseNetEncoder
Model = ConRecUNet | SimCLRNet | EncoderClassifier | GradingNet
_ENCODERS: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in (ConRecEncoder, DenseNetEncoder)}
# the models whose config holds the kind and the config of their encoder
_WITH_ANY_ENCODER: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (EncoderClassifier, GradingNet, SimCLRNet)
}
_MODELS: dict[str, type[nn.Module]] = {"ConRecUNet": ConRecUNet, **_WITH_ANY_ENCODER}
_KINDS = {**_ENCODERS, **_MODELS}
_PREFIX = "encoder."


def build_network(kind: str, config: Mapping[str, Any]) -> nn.Module:
    """A network of this project with random weights.

    Args:
        kind: name of its class: ConRecUNet, ConRecEncoder, DenseNetEncoder, SimCLRNet, EncoderClassifier or GradingNet.
        config: the network's ``config``: its arguments as plain values, an encoder as ``{"kind", "config"}``.

    Raises:
        ValueError: for another kind, or arguments that it does not take.
    """
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"a network must be one of {sorted(_KINDS)}, got {kind!r}.")
    arguments = dict(config)
    try:
        if kind in _WITH_ANY_ENCODER:
            encoder = arguments.pop("encoder", None)
            if not isinstance(encoder, Mapping) or encoder.keys() != {"kind", "config"}:
                raise ValueError(f"encoder must be a dictionary of kind and config, got {encoder!r}.")
            if not _is_encoder(encoder["kind"]) or not isinstance(encoder["config"], Mapping):
                raise ValueError(f"encoder must be one of {sorted(_ENCODERS)} with its config, got {encoder!r}.")
            return _KINDS[kind](build_network(encoder["kind"], encoder["config"]), **arguments)
        if "weights" in arguments:  # no other file, no download
            raise ValueError("unexpected keyword argument 'weights'.")
        return _KINDS[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"no valid {kind} configuration: {error}") from None


def _is_encoder(kind: Any) -> bool:
    return isinstance(kind, str) and kind in _ENCODERS


def untrained_like(network: nn.Module) -> nn.Module:
    """A network of the same architecture with random weights, in training mode on the CPU; see :func:`build_network`.

    Raises:
        ValueError: when the network, or the encoder in it, is none of this project.
    """
    kind, config = _architecture(network)
    return build_network(kind, config)


def _architecture(network: nn.Module) -> tuple[str, dict[str, Any]]:
    for part in (network, network.encoder) if isinstance(network, SimCLRNet | EncoderClassifier) else (network,):
        if type(part) is not _KINDS.get(type(part).__name__):
            raise ValueError(
                f"a {type(part).__name__} cannot be rebuilt from a checkpoint; expected one of {sorted(_KINDS)}"
                f"{'' if part is network else ' as encoder'}."
            )
    config: Any = network.config
    return type(network).__name__, config


def save_checkpoint(
    path: str | os.PathLike, network: nn.Module, preprocessing: Mapping[str, Any], half: bool = False, **extra: Any
) -> None:
    """Writes a checkpoint in one step: an interruption leaves the old file, never half a new one.

    The file holds ``{"format", "version", "kind", "config", "preprocessing", "state_dict", ...}``: tensors and plain
    values only, so that ``torch.load(path, weights_only=True)`` reads it.

    Args:
        path: of the file; its folder exists.
        network: see :func:`build_network`; its class name becomes ``kind``, its arguments ``config``, its weights
            ``state_dict``.
        preprocessing: how images become the network's input: ``image_size`` (pixels), ``resize`` ("squash", "pad" or
            "crop") and ``field_of_view`` (None, "normalize", "local_contrast"; None when absent); values are in [0, 1].
        half: write the weights as float16; but as float32 those of a tensor that is beyond its range.
        **extra: further entries, such as the state of the training.

    Raises:
        ValueError: when the network, or the encoder in it, is none of this project.
    """
    kind, config = _architecture(network)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "config": config,
        "preprocessing": dict(preprocessing),
        # contiguous: the memory format of the training is no part of the weights
        "state_dict": {
            name: (_halved(value) if half else value).detach().cpu().contiguous()
            for name, value in network.state_dict().items()
        },
        **extra,
    }
    write_in_one_step(path, lambda file: torch.save(content, file))


def _halved(weights: Tensor) -> Tensor:
    if not weights.is_floating_point():
        return weights
    half = weights.half()
    return half if torch.isfinite(half).all() or not torch.isfinite(weights).all() else weights


def write_in_one_step(path: str | os.PathLike, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file so that an interruption leaves the old one, or none, never half a new one.

    Args:
        path: of the file; its folder exists.
        write: writes the content to an open binary file.
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def is_plain_weights(content: Any) -> bool:
    """Whether the content of a file is a plain state dictionary: tensors by name and nothing else."""
    return isinstance(content, dict) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a checkpoint of this project; nothing in it is executed or unpickled but tensors and plain values.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no checkpoint, or one of another project or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: {'a folder' if path.is_dir() else 'no such file'}.")
    with path.open("rb") as file:
        start = file.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        raise ValueError(
            f"{path} is a Keras checkpoint: conrec-monai import-keras {path.name} model.pt makes one of it."
        )
    if not start.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle of old versions of torch
        raise ValueError(f"{path} is not a ConRec checkpoint: it is no PyTorch file (truncated or damaged?).")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is not a ConRec checkpoint: it is no PyTorch file, or holds objects other than tensors and plain"
            " values, which are never unpickled."
        ) from None
    except Exception as error:  # damaged bytes make torch and pickle raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint (truncated or damaged?): {reason}") from None
    if is_plain_weights(content):
        raise ValueError(
            f"{path} holds plain weights without architecture and preprocessing, as models/model.pt of a MONAI bundle"
            " does: its own configs and MONAI's ckpt_export and onnx_export take that. Expected: encoder.pt or model.pt"
            " of a run."
        )
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} is not a ConRec checkpoint: expected an entry format={FORMAT!r}, found {found}.")
    if content.get("version") != VERSION:
        raise ValueError(f"{path} has format version {content.get('version')}, this release reads {VERSION}.")
    missing = {"kind", "config", "preprocessing", "state_dict"} - content.keys()
    if missing:
        raise ValueError(f"{path} lacks the entries {sorted(missing)}.")
    for name in ("config", "preprocessing", "state_dict"):
        if not isinstance(content[name], dict):
            raise ValueError(f"{path}: {name} must be a dictionary, found a {type(content[name]).__name__}.")
    wrong = [name for name, value in content["state_dict"].items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"{path}: state_dict must hold tensors, {wrong[0]} is none.")
    resize = content["preprocessing"].get("resize", "squash")
    if not isinstance(resize, str):
        raise ValueError(f"{path}: preprocessing must hold resize as a text, found {resize!r}.")
    content["preprocessing"]["resize"] = resize
    field_of_view = content["preprocessing"].setdefault("field_of_view")  # absent in files of earlier releases
    if field_of_view not in FIELDS_OF_VIEW:
        raise ValueError(
            f"{path}: preprocessing must hold field_of_view as one of {FIELDS_OF_VIEW}, found {field_of_view!r}."
        )
    size = content["preprocessing"].get("image_size")
    if type(size) is not int or size < 1:
        raise ValueError(f"{path}: preprocessing must hold image_size, a positive whole number, found {size!r}.")
    return content


def check_weights(network: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Checks that every weight fits a network, which may be on the device "meta".

    Args:
        network: that is to receive the weights.
        state_dict: the weights by name.
        source: what the error calls their origin.

    Raises:
        ValueError: when names or shapes differ; it names how many do, and the first of them.
    """
    own = network.state_dict()
    differences = []
    for what, names in (
        ("missing", [n for n in own if n not in state_dict]),
        ("unexpected", [n for n in state_dict if n not in own]),
        (
            "of another shape",
            [
                f"{n} {tuple(state_dict[n].shape)} instead of {tuple(own[n].shape)}"
                for n in own
                if n in state_dict and state_dict[n].shape != own[n].shape
            ],
        ),
    ):
        if names:
            differences.append(f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    if differences:
        raise ValueError(f"{source} does not fit {type(network).__name__}: weights {'; '.join(differences)}.")


def load_weights(network: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Loads weights of which every one must fit: see :func:`check_weights`."""
    check_weights(network, state_dict, source)
    network.load_state_dict(state_dict)


def _build(kind: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor], source: str | os.PathLike) -> Any:
    try:
        network = build_network(kind, config)
    except ValueError as error:
        raise ValueError(f"{source} holds {error}") from None
    load_weights(network, state_dict, str(source))
    return network.eval()


def _checked(path: str | os.PathLike) -> dict[str, Any]:
    content = read_checkpoint(path)
    if not isinstance(content["kind"], str) or content["kind"] not in _KINDS:
        raise ValueError(f"{path} holds a {content['kind']}, expected one of {sorted(_KINDS)}.")
    return content


def load_model(path: str | os.PathLike) -> Model:
    """The whole network of a checkpoint (``checkpoint.pt``), in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_checkpoint`; and when the file holds an encoder alone
            (``encoder.pt``), or its weights do not fit its configuration.
    """
    content = _checked(path)
    if content["kind"] in _ENCODERS:
        raise ValueError(
            f"{path} holds an encoder alone, no projection and decoder: use load_encoder, or the run's checkpoint.pt."
        )
    model: Model = _build(content["kind"], content["config"], content["state_dict"], path)
    return model


def load_encoder(path: str | os.PathLike) -> Encoder:
    """The encoder of any checkpoint of this project (``checkpoint.pt`` or ``encoder.pt``), in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_checkpoint`; and when its weights do not fit its configuration.
    """
    content = _checked(path)
    kind, config, state_dict = content["kind"], content["config"], content["state_dict"]
    if kind in _MODELS:
        if kind == "ConRecUNet":
            kind = "ConRecEncoder"
            config = {k: v for k, v in config.items() if k in ("in_channels", "features", "pooling", "image_size")}
        else:
            entry = config.get("encoder")
            entry = entry if isinstance(entry, dict) else {}
            kind, config = entry.get("kind"), entry.get("config")
            if not _is_encoder(kind) or not isinstance(config, dict):
                raise ValueError(f"{path} holds no valid encoder: expected one of {sorted(_ENCODERS)}, found {kind!r}.")
        state_dict = {k.removeprefix(_PREFIX): v for k, v in state_dict.items() if k.startswith(_PREFIX)}
    encoder: Encoder = _build(kind, config, state_dict, path)
    return encoder
