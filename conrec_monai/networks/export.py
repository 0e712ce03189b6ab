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

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conrec_monai.networks.nets import EncoderClassifier, GradingNet
from conrec_monai.networks.utils import load_encoder, load_model, read_checkpoint, write_in_one_step
from conrec_monai.version import __version__

__all__ = ["DESCRIPTION", "export_network"]

DESCRIPTION = "conrec_monai.json"  # name of the description in a TorchScript file, and its key in an ONNX file
TOLERANCE = 1e-4
INPUT, OUTPUT = "image", "output"


def export_network(source: str | os.PathLike, target: str | os.PathLike) -> dict[str, Any]:
    """Writes the network of a checkpoint as TorchScript (.ts) or ONNX (.onnx), for programs without this library.

    One input, ``image``: float32 BCHW with values in [0, 1], of any batch size; TorchScript takes any height and width
    that the encoder does, ONNX those of the preprocessing. One output, B[K]: probabilities of a grading network, logits
    of an :class:`conrec_monai.networks.nets.EncoderClassifier`, else the representation of the encoder (a projection or
    a decoder is left out). The file holds all weights, and a description in JSON: in TorchScript as the extra file
    ``conrec_monai.json``, in ONNX as the metadata entry of that name. It says how an image becomes the input (see
    :func:`conrec_monai.data.image_preprocessing`), what the output is, and the classes. Of a grading network also its
    task, whether the classes are ordered, and the decision: "median", the highest class that is reached or exceeded
    with a probability above 0.5, or "argmax", the most probable one (see :func:`conrec_monai.evaluation.graded`).

    Before it is written the result is compared with PyTorch's: it may differ by 1e-4.

    Args:
        source: any checkpoint of this project.
        target: of the file; an existing one is not overwritten.

    Returns:
        The description.

    Raises:
        FileNotFoundError, ValueError: see :func:`conrec_monai.networks.utils.read_checkpoint`; for another suffix, a
            file that exists, missing packages (``pip install "conrec-monai[export]"``), or outputs that differ.
    """
    path = Path(target)
    if path.suffix not in (".ts", ".onnx"):
        raise ValueError(f"the target must end in .ts (TorchScript) or .onnx, got {path.name}.")
    if path.exists():
        raise ValueError(f"{path} exists; it is not overwritten.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.absolute().parent}.")
    content = read_checkpoint(source)
    has_head = content["kind"] in ("EncoderClassifier", "GradingNet")
    network: Any = load_model(source) if has_head else load_encoder(source)
    encoder: Any = network.encoder if has_head else network
    channels = encoder.config["in_channels"]
    preprocessing = {name: content["preprocessing"][name] for name in ("image_size", "resize", "field_of_view")}
    size, resize, field_of_view = preprocessing.values()
    grading = content.get("grading") or {}
    description: dict[str, Any] = {
        "conrec_monai": __version__,
        "network": type(network).__name__,
        "input": {
            "name": INPUT,
            "layout": "BCHW",
            "channels": "RGB" if channels == 3 else "gray",
            "value_range": [0, 1],
            "levels": 256,
            **preprocessing,
            "made_by": f"conrec_monai.data.image_preprocessing({size}, {resize!r}, {field_of_view!r}, {channels})",
        },
        "output": {"name": OUTPUT, **_output(network, grading)},
        "classes": grading.get("classes"),
    }
    images = torch.rand(3, channels, size, size, generator=torch.Generator().manual_seed(0))
    make = _torchscript if path.suffix == ".ts" else _onnx
    with _quiet():
        data, run = make(network, images[:2], json.dumps(description))
        with torch.inference_mode():
            for batch in (images, images[:1]):
                difference = float((run(batch) - network(batch)).abs().max())
                if not difference <= TOLERANCE:
                    raise ValueError(f"the result differs from PyTorch's by {difference:.2g}; nothing is written.")
    write_in_one_step(path, lambda file: file.write(data))
    return description


def _output(network: Any, grading: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(network, GradingNet):
        ranked = network.task != "categorical"
        return {
            "meaning": f"{'' if grading.get('validation') is None else 'calibrated '}probabilities of the classes",
            "size": network.num_classes,
            "task": network.task,
            "ordered": ranked or bool(grading.get("ordinal")),
            "decision": "median" if ranked else "argmax",
        }
    if isinstance(network, EncoderClassifier):
        return {"meaning": "logits of the classes", "size": network.head.out_features}
    return {"meaning": "representation", "size": network.num_features}


def _torchscript(network: nn.Module, images: Tensor, description: str) -> tuple[bytes, Any]:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer, _extra_files={DESCRIPTION: description})
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    return buffer.getvalue(), loaded


def _onnx(network: nn.Module, images: Tensor, description: str) -> tuple[bytes, Any]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - which the exporter needs
    except ImportError as error:
        raise ValueError(f'an ONNX file needs {error.name}: pip install "conrec-monai[export]"') from None
    program: Any = torch.onnx.export(
        network,
        (images,),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = DESCRIPTION, description
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda batch: torch.from_numpy(session.run([OUTPUT], {INPUT: batch.numpy()})[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk a lot."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
