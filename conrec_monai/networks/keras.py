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

"""Checkpoints of the published implementation of ConRec (Keras HDF5) as networks of this project."""

from __future__ import annotations

import json
import math
import os
import reprlib
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.networks.utils import save_checkpoint

__all__ = ["import_keras"]

IMAGE_SIZE = 224  # of the publication; for a file whose input has no fixed size
MAX_CONFIG = 1 << 26  # bytes of the graph
# A file of float32 weights holds as many bytes as they have; compression may spare some of them.
MAX_COMPRESSION = 16


class _Layer(NamedTuple):
    kind: str
    name: str
    config: dict[str, Any]
    inputs: tuple[str, ...]


# torch's name of a layer, its kind and the Keras layer that it comes from
_Places = dict[str, tuple[str, _Layer]]

_SAME = {"strides": [1, 1], "dilation_rate": [1, 1], "groups": 1, "data_format": "channels_last"}
_LATER = {"groups": 1, "keepdims": False}  # settings that files of older releases of TensorFlow 2 lack
_NORM = {"momentum": 0.9, "epsilon": 1e-5, "scale": True}
_ATTENTION_NORM = {"momentum": 0.99, "epsilon": 1e-3, "scale": True}
_CHANNELS_LAST = {"data_format": "channels_last"}
_AVERAGE = {"keepdims": False, **_CHANNELS_LAST}


def import_keras(source: str | os.PathLike, target: str | os.PathLike | None = None) -> ConRecUNet:
    """The network of a checkpoint that the published implementation of ConRec saved (Keras 2 HDF5), in evaluation mode.

    The architecture is read from the graph in the file, whose layers must be those of :class:`ConRecUNet`, each with
    its published settings; every weight is placed, batch-norm statistics too. Nothing in the file is executed or
    unpickled: the graph is read as JSON, in which the code of a Lambda layer is a text that nothing looks at. Links to
    other files are refused.

    Args:
        source: the HDF5 file; needs h5py (``pip install "conrec-monai[keras]"``).
        target: file to which the network is written by :func:`conrec_monai.networks.utils.save_checkpoint`, with the
            image size of the graph's input (224 where that is not fixed); None writes nothing.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when h5py is missing; when the file is no Keras checkpoint, or one of another architecture; when a
            weight is missing, has another shape or is not finite; when ``target`` exists or cannot be written.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError('Keras checkpoints need h5py: pip install "conrec-monai[keras]"') from None
    source = Path(source)
    if not source.is_file():
        raise FileNotFoundError(
            f"no Keras checkpoint at {source}: {'a folder' if source.is_dir() else 'no such file'}."
        )
    if target is not None:
        target = Path(target)
        _check_target(target)
    try:
        source.open("rb").close()
        if not h5py.is_hdf5(source):
            raise ValueError(f"{source} is no HDF5 file; a Keras checkpoint of the published implementation is one.")
        with h5py.File(source, "r") as file:
            graph = _Graph(_read_layers(file, source), source)
            network = _empty_network(graph)
            weights = _read_weights(file, graph.places, network, source)
    except Exception as error:  # damaged bytes make HDF5 raise nearly anything
        if isinstance(error, ValueError) and str(error).startswith(str(source)):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{source} cannot be read as a Keras checkpoint (truncated or damaged?): {reason}") from None
    counters = {n: torch.zeros_like(v, device="cpu") for n, v in network.state_dict().items() if n not in weights}
    network.load_state_dict({**counters, **weights}, assign=True)  # Keras counts no batches
    network.eval()
    if target is not None:
        try:
            save_checkpoint(target, network, {"image_size": graph.image_size or IMAGE_SIZE, "resize": "squash"})
        except OSError as error:
            raise ValueError(f"{target} cannot be written: {error.strerror or error}.") from None
    return network


def _check_target(target: Path) -> None:
    try:
        if target.exists() or target.is_symlink():
            raise ValueError(f"{target} exists; it is not overwritten: name another file.")
        if not target.parent.is_dir():
            raise ValueError(f"{target} cannot be written: there is no folder {target.parent}.")
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {error.strerror or error}.") from None


# --- the graph --------------------------------------------------------------------------------------------------------


def _read_layers(file: Any, source: Path) -> tuple[dict[str, _Layer], list[str]]:
    """The layers by name, and the names of the outputs."""
    if "model_config" not in file.attrs:
        raise ValueError(f"{source} has no model_config: it holds no graph (weights alone?), or is of another program.")
    attribute = file.attrs.get_id("model_config")
    if attribute.shape != () or attribute.dtype.kind not in "OSU" or attribute.get_storage_size() > MAX_CONFIG:
        raise ValueError(f"{source}: model_config must be one text.")
    text = file.attrs["model_config"]
    try:
        config = json.loads(text)["config"]
        outputs = [_reference(output) for output in config["output_layers"]]
        layers: dict[str, _Layer] = {}
        for entry in config["layers"]:
            name, calls = entry["name"], entry["inbound_nodes"]
            if not isinstance(name, str) or not isinstance(entry["config"], dict) or len(calls) > 1 or name in layers:
                raise ValueError(f"layer {name!r}")
            inputs = tuple(_reference(node) for node in calls[0]) if calls else ()
            layers[name] = _Layer(str(entry["class_name"]), name, entry["config"], inputs)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        detail = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"{source}: model_config is no graph of a functional Keras 2 model: {detail}") from None
    return layers, outputs


def _reference(entry: Any) -> str:
    """The layer that ``[name, 0, 0]`` or ``[name, 0, 0, {}]`` refers to: the one output of its one call."""
    if not isinstance(entry, list) or entry[1:] not in ([0, 0], [0, 0, {}]) or not isinstance(entry[0], str):
        raise ValueError(f"unexpected reference {entry!r}")
    return entry[0]


class _Graph:
    """Reads the graph from its outputs back to its input; every layer must be one that :class:`ConRecUNet` has.

    Attributes:
        config: arguments of the :class:`ConRecUNet`.
        image_size: side of the input in pixels, None where it is not fixed.
        places: the Keras layers that hold weights, by the name of their place in the network.
    """

    def __init__(self, content: tuple[dict[str, _Layer], list[str]], source: Path) -> None:
        self.layers, outputs = content
        self.source = source
        self.used: set[str] = set()
        self.places: _Places = {}
        self.image_size: int | None = None
        self.config: dict[str, Any] = {}
        ends = [self._skip_identities(name) for name in outputs]
        reconstructions = [layer for layer in ends if layer.kind == "Conv2D"]
        projections = [layer for layer in ends if layer.kind != "Conv2D"]
        if len(projections) != 1 or len(reconstructions) > 1:
            raise ValueError(
                f"{source} is another architecture: expected one projection and at most one reconstruction"
                f" as outputs, found {outputs}."
            )
        pooled = self._projection(projections[0])
        last = self._pooling(pooled)
        levels = self._encoder(last)
        if reconstructions:
            self._decoder(reconstructions[0], levels)
        else:
            self.config["decoder"] = False
        unused = [name for name in self.layers if name not in self.used]
        if unused:
            self._unexpected(self.layers[unused[0]], "a layer on no path to the outputs")

    # reading single layers

    def _unexpected(self, layer: _Layer, why: str) -> NoReturn:
        raise ValueError(
            f"{self.source} is another architecture: layer {layer.name[:80]!r} ({layer.kind[:40]!r}): {why}."
        )

    def _get(self, name: str) -> _Layer:
        if name not in self.layers:
            raise ValueError(f"{self.source}: model_config refers to a layer {name!r} that it does not hold.")
        self.used.add(name)
        return self.layers[name]

    def _skip_identities(self, name: str) -> _Layer:
        """The layer of that name, or the first before it that is no mere name for the output of another."""
        seen: set[str] = set()
        while (layer := self._get(name)).kind == "Layer" and name not in seen:
            seen.add(name)
            name = self._input(layer)
        return layer

    def _input(self, layer: _Layer) -> str:
        if len(layer.inputs) != 1:
            self._unexpected(layer, f"expected one input, found {len(layer.inputs)}")
        return layer.inputs[0]

    def _previous(self, layer: _Layer) -> _Layer:
        return self._skip_identities(self._input(layer))

    def _expect(self, layer: _Layer, kinds: str | tuple[str, ...], **settings: Any) -> _Layer:
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        if layer.kind not in kinds:
            self._unexpected(layer, f"expected {' or '.join(kinds)}")
        for name, expected in settings.items():
            found = layer.config.get(name, _LATER.get(name))
            if found != expected or type(found) is not type(expected):
                self._unexpected(layer, f"expected {name} {expected!r}, found {reprlib.repr(found)}")
        return layer

    def _whole(self, layer: _Layer, name: str) -> int:
        value = layer.config.get(name)
        if type(value) is not int or not 1 <= value < 1 << 31:
            self._unexpected(layer, f"expected {name}, a positive whole number, found {reprlib.repr(value)}")
        return value

    def _relu(self, layer: _Layer) -> _Layer:
        """What goes into a ReLU, which Keras has in two forms."""
        if layer.kind == "Activation":
            return self._previous(self._expect(layer, "Activation", activation="relu"))
        self._expect(layer, ("ReLU", "Activation"), max_value=None, negative_slope=0.0, threshold=0.0)
        return self._previous(layer)

    def _conv(self, place: str, layer: _Layer, size: int, activation: str = "linear") -> _Layer:
        self._expect(layer, "Conv2D", kernel_size=[size, size], activation=activation, use_bias=True, **_SAME)
        if size > 1:
            self._expect(layer, "Conv2D", padding="same")
        self.places[place] = ("conv", layer)
        return layer

    def _conv_norm_relu(self, place: str, layer: _Layer, size: int, norm: dict[str, Any]) -> _Layer:
        """The convolution of a convolution, batch norm and ReLU that end in a layer."""
        norm_layer = self._expect(self._relu(layer), "BatchNormalization", axis=[3], center=True, **norm)
        self.places[f"{place}.adn.N"] = ("norm", norm_layer)
        return self._conv(f"{place}.conv", self._previous(norm_layer), size)

    def _two_conv(self, place: str, layer: _Layer) -> tuple[_Layer, int]:
        """What goes into the two convolutions that end in a layer, and their width."""
        second = self._conv_norm_relu(f"{place}.conv_1", layer, 3, _NORM)
        first = self._conv_norm_relu(f"{place}.conv_0", self._previous(second), 3, _NORM)
        width = self._whole(second, "filters")
        self._expect(first, "Conv2D", filters=width)
        return self._previous(first), width

    # reading the parts of the network

    def _projection(self, layer: _Layer) -> _Layer:
        """What is projected by the head that ends in a layer."""
        if layer.kind == "Flatten":  # of one dimension: changes nothing
            layer = self._previous(layer)
        head: list[tuple[_Layer, _Layer]] = []
        while True:
            last = not head
            norm = self._expect(layer, "BatchNormalization", axis=[1], center=not last, **_NORM)
            dense = self._expect(self._previous(norm), "Dense", activation="linear", use_bias=False)
            head.append((dense, norm))
            layer = self._previous(dense)
            if layer.kind not in ("ReLU", "Activation"):
                break
            layer = self._relu(layer)
            self._stop_at_a_cycle(len(head))
        for i, (dense, norm) in enumerate(reversed(head)):
            self.places[f"projection.linear_{i}"] = ("dense", dense)
            self.places[f"projection.norm_{i}"] = ("norm", norm)
        self.config["projection_dim"] = self._whole(head[0][0], "units")
        self.config["projection_layers"] = len(head)
        return layer

    def _stop_at_a_cycle(self, steps: int) -> None:
        if steps > len(self.layers):
            raise ValueError(f"{self.source}: the layers in model_config form a cycle.")

    def _pooling(self, layer: _Layer) -> _Layer:
        """The last level's output, of which a layer is the representation."""
        if layer.kind == "Flatten":
            self.config["pooling"] = "flatten"
            return self._previous(self._expect(layer, "Flatten", **_CHANNELS_LAST))
        if layer.kind == "GlobalAveragePooling2D":
            self.config["pooling"] = "average"
            return self._previous(self._expect(layer, "GlobalAveragePooling2D", **_AVERAGE))
        self.config["pooling"] = "attention"
        # the quotient of two averages: that of the weighted features, and that of the weights
        self._expect(layer, ("GlobalAveragePooling2D", "Flatten", "Lambda"))
        if len(layer.inputs) != 2:
            self._unexpected(layer, f"expected two inputs, found {len(layer.inputs)}")
        above, below = (
            self._expect(self._skip_identities(name), "GlobalAveragePooling2D", **_AVERAGE) for name in layer.inputs
        )
        weights = self._previous(below)
        product = self._expect(self._previous(above), "Multiply")
        if len(product.inputs) != 2:
            self._unexpected(product, f"expected two inputs, found {len(product.inputs)}")
        factors = [self._skip_identities(name) for name in product.inputs]
        if weights not in factors:
            self._unexpected(product, f"expected {weights.name!r} as one factor")
        features = factors[1 - factors.index(weights)]
        # Repeats the map for every channel; cancels out of the quotient.
        self._expect(weights, "Conv2D", kernel_size=[1, 1], activation="linear", use_bias=False, **_SAME)
        self.places["constant"] = ("constant", weights)
        place = "encoder.pool.branch.conv_"
        branch = self._conv(f"{place}3", self._previous(weights), 1, activation="sigmoid")
        self._expect(branch, "Conv2D", filters=1)
        for i in (2, 1, 0):
            branch = self._conv_norm_relu(f"{place}{i}", self._previous(branch), 1, _ATTENTION_NORM)
        dropout = self._expect(self._previous(branch), "Dropout", rate=0.5, noise_shape=None)
        if self._previous(dropout) is not features:
            self._unexpected(dropout, f"expected the input {features.name!r}")
        return features

    def _encoder(self, layer: _Layer) -> list[_Layer]:
        """The outputs of all levels, finest first."""
        found: list[tuple[_Layer, int]] = []  # output and width, deepest first
        while True:
            # Numbered from the deepest level until their number is known.
            start, width = self._two_conv(f"level_{len(found)}", layer)
            found.append((layer, width))
            if start.kind != "MaxPooling2D":
                break
            self._expect(start, "MaxPooling2D", pool_size=[2, 2], strides=[2, 2], **_CHANNELS_LAST)
            layer = self._previous(start)
            self._stop_at_a_cycle(len(found))
        for place in [p for p in self.places if p.startswith("level_")]:
            number, rest = place.removeprefix("level_").split(".", 1)
            self.places[f"encoder.levels.{len(found) - 1 - int(number)}.{rest}"] = self.places.pop(place)
        self.config["features"] = [width for _, width in reversed(found)]
        self._input_layer(start, 2 ** (len(found) - 1))
        return [output for output, _ in reversed(found)]

    def _input_layer(self, layer: _Layer, divisor: int) -> None:
        shape = self._expect(layer, "InputLayer").config.get("batch_input_shape")
        if not isinstance(shape, list) or len(shape) != 4 or layer.inputs:
            self._unexpected(
                layer, f"expected an input of [batch, height, width, channels], found {reprlib.repr(shape)}"
            )
        _, height, width, channels = shape
        if type(channels) is not int or not 1 <= channels < 1 << 16:
            self._unexpected(layer, f"expected a number of channels, found {reprlib.repr(channels)}")
        if height != width or not (height is None or (type(height) is int and height > 0)):
            self._unexpected(layer, f"expected square images, found {reprlib.repr([height, width])}")
        if height is not None and height % divisor:
            self._unexpected(layer, f"expected a multiple of {divisor} as image size, found {height}")
        self.config["in_channels"] = channels
        self.image_size = height
        if self.config["pooling"] == "flatten":
            if height is None:
                self._unexpected(layer, "flatten pooling needs an input of fixed size")
            self.config["image_size"] = height

    def _decoder(self, layer: _Layer, levels: list[_Layer]) -> None:
        self._conv("decoder.output", layer, 1, activation="sigmoid")
        self._expect(layer, "Conv2D", filters=self.config["in_channels"])
        features: list[int] = self.config["features"]
        skips: dict[int, int] = {}  # width by level
        kinds: set[str] = set()
        x = self._previous(layer)
        for i in range(len(levels) - 1):  # from the finest level down
            j = len(levels) - 2 - i  # the network counts from the deepest up
            up, width = self._two_conv(f"decoder.levels.{j}", x)
            if width != features[i]:
                self._unexpected(x, f"expected {features[i]} channels, found {width}")
            if up.kind == "Concatenate":
                self._expect(up, "Concatenate", axis=3)
                if len(up.inputs) != 2:
                    self._unexpected(up, f"expected two inputs, found {len(up.inputs)}")
                up, skip = (self._skip_identities(name) for name in up.inputs)
                conv = self._conv_norm_relu(f"decoder.skips.{j}", skip, 1, _NORM)
                if self._previous(conv) is not levels[i]:
                    self._unexpected(conv, f"expected the input {levels[i].name!r}")
                skips[i] = self._whole(conv, "filters")
            kinds.add(up.kind)
            if up.kind == "Conv2DTranspose":
                same = {**_SAME, "strides": [2, 2], "output_padding": None}
                self._expect(up, "Conv2DTranspose", kernel_size=[2, 2], activation="linear", use_bias=True, **same)
                self.places[f"decoder.ups.{j}.deconv"] = ("conv", up)
            else:
                kind = ("UpSampling2D", "Conv2DTranspose")
                self._expect(up, kind, size=[2, 2], interpolation="nearest", **_CHANNELS_LAST)
            if len(kinds) > 1:
                self._unexpected(up, "expected one kind of upsampling in all levels")
            x = self._previous(up)
        if x is not levels[-1]:
            self._unexpected(x, f"expected the last level of the encoder, {levels[-1].name!r}")
        if sorted(skips) != list(range(len(skips))):
            self._unexpected(layer, f"expected a skip path of the shallowest levels, found it at {sorted(skips)}")
        self.config["decoder"] = True
        self.config["skip_levels"] = len(skips)
        self.config["skip_strength"] = self._skip_strength(layer, [(features[i], w) for i, w in skips.items()])
        self.config["upsample"] = "deconv" if "Conv2DTranspose" in kinds else "nontrainable"

    def _skip_strength(self, layer: _Layer, widths: list[tuple[int, int]]) -> float:
        """The strength s for which every skip path has the width max(1, int(s * width of its level))."""
        if not widths:
            return 1.0
        # Rounding down makes the largest ratio the nearest one; a 1 may have been rounded up.
        strength = max([s / w for w, s in widths if s > 1], default=1 / max(w for w, _ in widths))
        for candidate in (strength, math.nextafter(strength, math.inf)):
            if all(max(1, int(w * candidate)) == s for w, s in widths):
                return candidate
        self._unexpected(layer, f"expected skip paths of one strength, found widths {[s for _, s in widths]}")


# --- the weights ------------------------------------------------------------------------------------------------------

_PARAMETERS = {
    "conv": {"kernel": "weight", "bias": "bias"},
    "dense": {"kernel": "weight"},
    "norm": {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"},
}


def _empty_network(graph: _Graph) -> ConRecUNet:
    """The network without memory for its weights."""
    try:
        with torch.device("meta"):
            return ConRecUNet(**graph.config)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{graph.source} is another architecture: no ConRecUNet has {graph.config}: {reason}"
        ) from None


def _read_weights(file: Any, places: _Places, network: ConRecUNet, source: Path) -> dict[str, Tensor]:
    """Reads an array for every weight, once all shapes that the graph declares are known to fit the file's size."""
    expected = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    size, total = source.stat().st_size, 4 * sum(value.numel() for value in expected.values())
    if total > MAX_COMPRESSION * size:
        raise ValueError(f"{source}: a file of {size} bytes cannot hold the {total} bytes of weights of its graph.")
    weights: dict[str, Tensor] = {}
    for place, (kind, layer) in places.items():
        arrays = _layer_arrays(file, layer.name, source)
        if kind == "constant":
            channels = network.encoder.config["features"][-1]
            values = _read_array(arrays, layer.name, "kernel", (1, 1, 1, channels), source)
            if not np.all(values):
                raise ValueError(f"{source}: layer {layer.name!r} must not be 0 anywhere: it is divided by.")
            continue
        for keras, ours in _PARAMETERS[kind].items():
            name = f"{place}.{ours}"
            if name not in expected:  # the last batch norm of the projection has no shift
                continue
            shape = tuple(expected[name].shape)
            if ours == "weight" and len(shape) == 4:  # HWIO, and of a transposed convolution HWOI
                shape = (*shape[2:], shape[1], shape[0])
            values = _read_array(arrays, layer.name, keras, shape[::-1] if kind == "dense" else shape, source)
            array = torch.from_numpy(values)
            if ours == "weight" and array.ndim > 1:
                array = array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T
            weights[name] = array.contiguous()
    missing = [name for name in expected if name not in weights]
    if missing:
        raise ValueError(f"{source} is another architecture: nothing in it is the network's {missing[0]}.")
    return weights


def _layer_arrays(file: Any, layer: str, source: Path) -> dict[str, Any]:
    """The datasets of a layer by the last part of their name, without reading them."""
    group = _child(file, ["model_weights", *layer.split("/")], source)
    if "weight_names" not in group.attrs:
        return {}
    shape = group.attrs.get_id("weight_names").shape
    if len(shape) != 1 or shape[0] > 8:
        raise ValueError(f"{source}: layer {layer!r}: expected at most 8 weight_names, found the shape {shape}.")
    arrays = {}
    for name in group.attrs["weight_names"]:
        path = (name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)).split("/")
        arrays[path[-1].split(":")[0]] = _child(group, path, source)
    return arrays


def _child(group: Any, path: list[str], source: Path) -> Any:
    """A member of a group, through links that stay in the file."""
    import h5py

    for part in path:
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) and part not in ("", ".") else None
        if link is None:
            raise ValueError(f"{source} lacks the weights {'/'.join(path)!r}.")
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{source}: {'/'.join(path)!r} is a link to another place, which is not followed.")
        group = group[part]
    return group


def _read_array(arrays: dict[str, Any], layer: str, name: str, shape: tuple[int, ...], source: Path) -> np.ndarray:
    """An array in float32, read when it has the shape that is expected."""
    import h5py

    if name not in arrays:
        raise ValueError(f"{source}: layer {layer!r} lacks its {name}.")
    data = arrays[name]
    if not isinstance(data, h5py.Dataset) or data.dtype.kind != "f":
        raise ValueError(f"{source}: layer {layer!r}: {name} must be an array of floating point numbers.")
    if data.shape != shape:
        raise ValueError(f"{source}: layer {layer!r}: {name} has shape {data.shape}, expected {shape}.")
    if data.is_virtual or data.external:
        raise ValueError(f"{source}: layer {layer!r}: {name} lies in another file, which is not read.")
    if data.chunks and math.prod(data.chunks) > max(data.size, 1 << 20):
        raise ValueError(f"{source}: layer {layer!r}: {name} has chunks of {data.chunks}, larger than the array.")
    if not data.id.get_storage_size():
        raise ValueError(f"{source}: layer {layer!r}: {name} was never written.")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(data[()], dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{source}: layer {layer!r}: {name} holds values that are not finite.")
    return values
