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

import functools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import conrec_monai
from conrec_monai import import_keras, load_encoder, load_model
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.networks.utils import read_checkpoint

h5py = pytest.importorskip("h5py")


def make_network(**config: Any) -> ConRecUNet:
    """A network whose weights and running statistics are none that a new network has."""
    torch.manual_seed(0)
    network = ConRecUNet(**{"features": (8, 16), "projection_dim": 4, **config})
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape))
    return network.eval()


class KerasWriter:
    """Writes a network in the form in which Keras saves that of the published implementation."""

    def __init__(self, network: ConRecUNet, size: int | None) -> None:
        self.layers: list[dict[str, Any]] = []
        self.weights: dict[str, dict[str, np.ndarray]] = {}
        self.counts: Counter[str] = Counter()
        self.network = network
        shape = [None, size, size, network.config["in_channels"]]
        outputs = self._model(self._add("InputLayer", [], batch_input_shape=shape))
        config = {"layers": self.layers, "output_layers": [[name, 0, 0] for name in outputs]}
        self.graph: dict[str, Any] = {"class_name": "Functional", "config": config}

    def write(self, path: Path) -> Path:
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = json.dumps(self.graph)
            for layer in self.layers:
                arrays = self.weights.get(layer["name"], {})
                group = file.create_group(f"model_weights/{layer['name']}")
                group.attrs["weight_names"] = [f"{layer['name']}/{name}:0".encode() for name in arrays]
                for name, array in arrays.items():
                    group[f"{layer['name']}/{name}:0"] = array
        return path

    def _add(self, kind: str, inputs: list[str], weights: dict | None = None, **config: Any) -> str:
        name = f"{kind.lower()}_{self.counts[kind]}"
        self.counts[kind] += 1
        calls = [[[i, 0, 0, {}] for i in inputs]] if inputs else []
        self.layers.append({"class_name": kind, "name": name, "config": config, "inbound_nodes": calls})
        if weights:
            self.weights[name] = {key: value.detach().numpy() for key, value in weights.items()}
        return name

    def _conv(self, x: str, conv: nn.Module, activation: str = "linear", kind: str = "Conv2D") -> str:
        transposed = kind == "Conv2DTranspose"
        return self._add(
            kind,
            [x],
            {"kernel": conv.weight.permute(2, 3, 1, 0), "bias": conv.bias},
            filters=conv.out_channels,
            kernel_size=list(conv.kernel_size),
            strides=list(conv.stride),
            padding="same",
            data_format="channels_last",
            dilation_rate=[1, 1],
            groups=1,
            activation=activation,
            use_bias=True,
            **({"output_padding": None} if transposed else {}),
        )

    def _norm(self, x: str, norm: nn.Module) -> str:
        weights = {"gamma": norm.weight, "moving_mean": norm.running_mean, "moving_variance": norm.running_var}
        if norm.bias is not None:
            weights["beta"] = norm.bias
        return self._add(
            "BatchNormalization",
            [x],
            weights,
            axis=[1 if isinstance(norm, nn.BatchNorm1d) else 3],
            momentum=round(1 - norm.momentum, 9),
            epsilon=norm.eps,
            center=norm.bias is not None,
            scale=True,
        )

    def _unit(self, x: str, unit: nn.Module) -> str:
        x = self._norm(self._conv(x, unit.conv), unit.adn.N)
        return self._add("Activation", [x], activation="relu")

    def _two_conv(self, x: str, level: nn.Module) -> str:
        return self._unit(self._unit(x, level.conv_0), level.conv_1)

    def _model(self, x: str) -> list[str]:
        network, last = self.network, {"data_format": "channels_last"}
        levels = []
        for i, level in enumerate(network.encoder.levels):
            if i:
                x = self._add("MaxPooling2D", [x], pool_size=[2, 2], strides=[2, 2], padding="valid", **last)
            levels.append(self._add("Layer", [self._two_conv(x, level)]))
            x = levels[-1]
        pooling = network.config["pooling"]
        if pooling == "flatten":
            h = self._add("Flatten", [x], **last)
        elif pooling == "average":
            h = self._add("GlobalAveragePooling2D", [x], keepdims=False, **last)
        else:
            branch = network.encoder.pool.branch
            a = self._add("Dropout", [x], rate=0.5, noise_shape=None)
            for unit in (branch.conv_0, branch.conv_1, branch.conv_2):
                a = self._norm(self._conv(a, unit.conv), unit.adn.N)
                a = self._add("ReLU", [a], max_value=None, negative_slope=0.0, threshold=0.0)
            up = nn.Conv2d(1, network.config["features"][-1], 1)
            nn.init.ones_(up.weight)
            a = self._conv(self._conv(a, branch.conv_3, activation="sigmoid"), up)
            self.layers[-1]["config"]["use_bias"] = False
            del self.weights[a]["bias"]
            above, below = (
                self._add("GlobalAveragePooling2D", [i], **last) for i in (self._add("Multiply", [a, x]), a)
            )
            h = self._add("Lambda", [above, below], function=["lambda x: x[0] / x[1]", None, None])
        p, head = self._add("Layer", [h]), network.projection
        for i in range(network.config["projection_layers"]):
            if i:
                p = self._add("ReLU", [p], max_value=None, negative_slope=0.0, threshold=0.0)
            linear = head.get_submodule(f"linear_{i}")
            p = self._add(
                "Dense",
                [p],
                {"kernel": linear.weight.T},
                units=linear.out_features,
                activation="linear",
                use_bias=False,
            )
            p = self._norm(p, head.get_submodule(f"norm_{i}"))
        outputs = [self._add("Flatten", [p], **last)]
        if network.decoder is None:
            return outputs
        decoder = network.decoder
        for j in range(len(levels) - 1):
            i = len(levels) - 2 - j
            if network.config["upsample"] == "deconv":
                x = self._conv(x, decoder.ups[j].deconv, kind="Conv2DTranspose")
            else:
                x = self._add("UpSampling2D", [x], size=[2, 2], interpolation="nearest", **last)
            if i < network.config["skip_levels"]:
                x = self._add("Concatenate", [x, self._unit(levels[i], decoder.skips[j])], axis=3)
            x = self._two_conv(x, decoder.levels[j])
        return [self._conv(x, decoder.output, activation="sigmoid"), *outputs]


@functools.cache
def content(size: int | None, **config: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return KerasWriter(make_network(**config), size).write(Path(folder) / "a.hdf5").read_bytes()


def write(path: Path, edit: Callable[[dict], Any] | None = None, size: int | None = 32, **config: Any) -> Path:
    """Writes a checkpoint with an edited graph."""
    path.write_bytes(content(size, **config))
    if edit is not None:
        with h5py.File(path, "r+") as file:
            graph = json.loads(file.attrs["model_config"])
            edit(graph)
            file.attrs["model_config"] = json.dumps(graph)
    return path


def layer(graph: dict, kind: str, number: int = 0) -> dict[str, Any]:
    return [entry for entry in graph["config"]["layers"] if entry["class_name"] == kind][number]


def fails(path: Path, message: str, target: Path | None = None) -> None:
    """The import ends in one line that names the file, and that says what is wrong."""
    with pytest.raises(ValueError, match=message) as e:
        import_keras(path, target)
    assert str(path if target is None else target) in str(e.value) and "\n" not in str(e.value)


# --- what is imported -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attention_rgb", "attention_gray_depth3", "pooling_rgb", "transpose_skip1"])
def test_published_checkpoints(oracles, name, tmp_path):
    z = np.load(oracles / f"checkpoint_{name}.npz")
    config = json.loads(str(z["config"]).replace("'", '"').replace("None", "null"))
    target = tmp_path / "model.pt"
    network = import_keras(oracles / f"checkpoint_{name}.hdf5", target)
    depth = config["depth"]
    assert network.config == {
        "in_channels": config["in_channels"],
        "features": [config["filters"] * 2**i for i in range(depth)],
        "pooling": "attention" if config["pooling"] == "ga_attention" else "average",
        "decoder": True,
        "skip_levels": depth - 1 if config["skip_levels"] is None else config["skip_levels"],
        "skip_strength": config["skip_strength"],
        "upsample": "deconv" if config["decoder"] == "transpose" else "nontrainable",
        "projection_dim": config["projection_dim"],
        "projection_layers": config["projection_layers"],
    }
    assert read_checkpoint(target)["preprocessing"] == {
        "image_size": config["size"],
        "resize": "squash",
        "field_of_view": None,
    }
    x = torch.tensor(z["x"])
    for model in (network, load_model(target)):
        assert not model.training
        for key, value in model(x)._asdict().items():
            np.testing.assert_allclose(value.detach().numpy(), z[key], rtol=0, atol=1e-4)
    np.testing.assert_allclose(load_encoder(target)(x).detach().numpy(), z["representation"], rtol=0, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    features=st.lists(st.sampled_from([8, 16, 24]), min_size=1, max_size=3),
    in_channels=st.sampled_from([1, 3]),
    pooling=st.sampled_from(["attention", "average", "flatten"]),
    decoder=st.booleans(),
    skip=st.integers(0, 2),
    strength=st.sampled_from([0.01, 0.3, 0.5, 1.0, 1.7]),
    upsample=st.sampled_from(["nontrainable", "deconv"]),
    layers=st.integers(1, 4),
)
def test_every_architecture_comes_back(
    tmp_path_factory, features, in_channels, pooling, decoder, skip, strength, upsample, layers
):
    upsample = upsample if decoder and len(features) > 1 else "nontrainable"
    network = make_network(
        features=features,
        in_channels=in_channels,
        pooling=pooling,
        image_size=8 if pooling == "flatten" else None,
        decoder=decoder,
        skip_levels=min(skip, len(features) - 1) if decoder else None,
        skip_strength=strength,
        upsample=upsample,
        projection_layers=layers,
    )
    path = KerasWriter(network, 8).write(tmp_path_factory.mktemp("keras") / "model.hdf5")
    found = import_keras(path)
    assert not found.training and all(p.requires_grad for p in found.parameters())
    # another strength may give the same widths
    assert {**found.config, "skip_strength": 0} == {**network.config, "skip_strength": 0}
    assert found.state_dict().keys() == network.state_dict().keys()
    assert [
        name for name, value in found.state_dict().items() if not torch.equal(value, network.state_dict()[name])
    ] == []


def test_any_image_size(tmp_path):
    write(tmp_path / "a.hdf5", size=None)
    import_keras(tmp_path / "a.hdf5", tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt")["preprocessing"]["image_size"] == 224


def test_random_numbers_are_left_alone(tmp_path):
    path = write(tmp_path / "a.hdf5")
    state = torch.get_rng_state()
    import_keras(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_file_of_an_older_release(tmp_path):
    def edit(graph: dict) -> None:
        for entry in graph["config"]["layers"]:
            entry["config"].pop("groups", None)
            entry["config"].pop("keepdims", None)
            for node in entry["inbound_nodes"]:
                node[:] = [reference[:3] for reference in node]

    network = import_keras(write(tmp_path / "a.hdf5", edit))
    assert torch.equal(network.projection.linear_0.weight, make_network().projection.linear_0.weight)


@pytest.mark.parametrize(
    "code",
    [
        ["gASVJAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjA9leGl0IDEgPiBwd25lZJSFlFKULg==", None, None],
        "__import__('os')._exit(1)",
        {"class_name": "__lambda__", "config": {"code": "\ud800 garbage \x00"}},
        7,
    ],
)
def test_the_code_of_a_lambda_is_nothing_but_text(code, tmp_path):
    def edit(graph: dict) -> None:
        layer(graph, "Lambda")["config"] = {"function": code, "module": "os", "arguments": {"x": [1] * 9}}

    network = import_keras(write(tmp_path / "a.hdf5", edit))
    expected = make_network()
    x = torch.rand(2, 3, 32, 32)
    for a, b in zip(network(x), expected(x), strict=True):
        torch.testing.assert_close(a, b)


def test_exported():
    assert conrec_monai.import_keras is import_keras


# --- what is not ------------------------------------------------------------------------------------------------------


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no Keras checkpoint at .*a\.hdf5: no such file"):
        import_keras(tmp_path / "a.hdf5")
    with pytest.raises(FileNotFoundError, match="a folder"):
        import_keras(tmp_path)


def test_other_files(tmp_path):
    path = tmp_path / "a.hdf5"
    for other in (b"", b"epoch,loss\n", b"\x89HDF\r\n"):
        path.write_bytes(other)
        fails(path, "is no HDF5 file")
    with h5py.File(path, "w") as file:
        file["x"] = 1.0
    fails(path, "has no model_config")


def test_damaged_files(tmp_path):
    """Truncation or bytes changed anywhere end in one line that names the file, or change nothing or a weight."""
    whole = write(tmp_path / "a.hdf5", features=(8,), pooling="average", decoder=False).read_bytes()
    path = tmp_path / "b.hdf5"
    for part in (0.01, 0.3, 0.9):
        path.write_bytes(whole[: int(part * len(whole))])
        fails(path, "cannot be read as a Keras checkpoint|is no HDF5 file")
    for start in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:start] + b"\xff" * 24 + whole[start + 24 :])
        try:
            import_keras(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error), start


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"config": 1}',
        '{"config": {"layers": [], "output_layers": [["x"]]}}',
        "[" * 100_000,
        "1" * 9999,
    ]
    + ['{"config": {"output_layers": [["a", 0, 0]], "layers": [{"class_name": "A", "name": "a", "config": {}}]}}']
    + ['{"class_name": "Sequential", "config": {"name": "s", "layers": []}}'],
)
def test_graphs_that_are_none(text, tmp_path):
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = text
    fails(path, "model_config is no graph of a functional Keras 2 model")


@pytest.mark.parametrize("value", [1.5, [1, 2], ["{}", "{}"]])
def test_model_config_that_is_no_text(value, tmp_path):
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = value
    fails(path, "model_config must be one text")


def test_graph_of_keras_3(tmp_path):
    def edit(graph: dict) -> None:
        for entry in graph["config"]["layers"]:
            entry["inbound_nodes"] = [{"args": [], "kwargs": {}} for _ in entry["inbound_nodes"]]

    fails(write(tmp_path / "a.hdf5", edit), "no graph of a functional Keras 2 model: unexpected reference 'args'")


def change(kind: str, number: int = 0, **config: Any) -> Callable[[dict], None]:
    return lambda graph: layer(graph, kind, number)["config"].update(config)


def rename(kind: str, new: str, number: int = 0) -> Callable[[dict], None]:
    return lambda graph: layer(graph, kind, number).update(class_name=new)


def rewire(kind: str, number: int, *inputs: str) -> Callable[[dict], None]:
    return lambda graph: layer(graph, kind, number).update(inbound_nodes=[[[name, 0, 0, {}] for name in inputs]])


def one_more_layer(graph: dict) -> None:
    extra = {**layer(graph, "Layer"), "name": "extra"}
    graph["config"]["layers"].append(extra)


def no_outputs(graph: dict) -> None:
    graph["config"]["output_layers"] = []


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            change("Conv2D", kernel_size=[5, 5]),
            r"'conv2d_0' \('Conv2D'\): expected kernel_size \[3, 3\], found \[5, 5\]",
        ),
        (change("Conv2D", strides=[2, 2]), "expected strides"),
        (change("Conv2D", padding="valid"), "expected padding 'same', found 'valid'"),
        (change("Conv2D", data_format="channels_first"), "expected data_format"),
        (change("Conv2D", use_bias=1), "expected use_bias True, found 1"),
        (change("Conv2D", activation="relu"), "expected activation 'linear'"),
        (change("Conv2D", filters=12), "'conv2d_0'.*expected filters 8, found 12"),
        (change("Conv2D", 1, filters=1.5), "'conv2d_1'.*expected filters, a positive whole number, found 1.5"),
        (change("Conv2D", groups=2), "expected groups 1, found 2"),
        (change("BatchNormalization", epsilon=0.001), "expected epsilon 1e-05, found 0.001"),
        (change("BatchNormalization", momentum=0.99), "expected momentum 0.9, found 0.99"),
        (change("BatchNormalization", scale=False), "expected scale True"),
        (change("Activation", activation="gelu"), "expected activation 'relu', found 'gelu'"),
        (change("ReLU", max_value=6.0), "expected max_value None, found 6.0"),
        (change("Dropout", rate=0.1), "expected rate 0.5, found 0.1"),
        (change("MaxPooling2D", pool_size=[3, 3]), r"expected pool_size \[2, 2\]"),
        (change("Dense", use_bias=True), "expected use_bias False"),
        (change("UpSampling2D", interpolation="bilinear"), "expected interpolation 'nearest', found 'bilinear'"),
        (change("Concatenate", axis=1), "expected axis 3, found 1"),
        (change("GlobalAveragePooling2D", keepdims=True), "expected keepdims False, found True"),
        (change("InputLayer", batch_input_shape=[None, 32, 48, 3]), r"expected square images, found \[32, 48\]"),
        (change("InputLayer", batch_input_shape=[None, 33, 33, 3]), "expected a multiple of 2 as image size, found 33"),
        (change("InputLayer", batch_input_shape=[None, 784]), "expected an input of"),
        (change("InputLayer", batch_input_shape=[None, 32, 32, "3"]), "expected a number of channels, found '3'"),
        (rename("MaxPooling2D", "AveragePooling2D"), r"'maxpooling2d_0' \('AveragePooling2D'\): expected InputLayer"),
        (rename("Lambda", "Add"), r"'lambda_0' \('Add'\): expected GlobalAveragePooling2D or Flatten or Lambda"),
        (rename("Multiply", "Add"), "expected Multiply"),
        (rename("BatchNormalization", "LayerNormalization"), "expected BatchNormalization"),
        (rename("UpSampling2D", "Resizing"), "expected UpSampling2D or Conv2DTranspose"),
        (rewire("UpSampling2D", 0, "layer_0"), "expected the last level of the encoder"),
        (rewire("Dropout", 0, "layer_0"), "'dropout_0'.*expected the input 'activation_3'"),
        (rewire("Multiply", 0, "layer_0", "layer_1"), "as one factor"),
        (rewire("Lambda", 0, "globalaveragepooling2d_0"), "'lambda_0'.*expected two inputs, found 1"),
        (rewire("Layer", 0, "layer_0"), "'layer_0'.*expected"),
        (rewire("MaxPooling2D", 0, "layer_1"), "form a cycle"),
        (rewire("ReLU", 3, "batchnormalization_8"), "form a cycle"),
        (rewire("Layer", 0, "nowhere"), "refers to a layer 'nowhere' that it does not hold"),
        (one_more_layer, "'extra'.*a layer on no path to the outputs"),
        (no_outputs, "expected one projection and at most one reconstruction"),
    ],
)
def test_other_architectures(edit, message, tmp_path):
    path = write(tmp_path / "a.hdf5", edit)
    fails(path, message)


def test_attention_of_a_width_that_has_none(tmp_path):
    def edit(graph: dict) -> None:
        for entry in graph["config"]["layers"]:
            if entry["config"].get("filters") == 16:
                entry["config"]["filters"] = 12

    path = write(tmp_path / "a.hdf5", edit)
    fails(path, "multiple of 8 channels, got 12")


def test_weights_that_do_not_fit(tmp_path):
    name = "model_weights/conv2d_0/conv2d_0/kernel:0"

    def changed(change: Callable[[Any], None], message: str) -> None:
        path = write(tmp_path / "a.hdf5")
        with h5py.File(path, "r+") as file:
            change(file)
        fails(path, message)

    def replace(value: Any, **options: Any) -> Callable[[Any], None]:
        def change(file: Any) -> None:
            del file[name]
            file.create_dataset(name, data=value, **options)

        return change

    def remove(path: str) -> Callable[[Any], None]:
        return lambda file: file.__delitem__(path)

    def forget(file: Any) -> None:
        group = file["model_weights/conv2d_0"]
        group.attrs["weight_names"] = [group.attrs["weight_names"][1]]

    def too_many(file: Any) -> None:
        file["model_weights/conv2d_0"].attrs["weight_names"] = ["x"] * 1000

    kernel = np.zeros((3, 3, 3, 8), np.float32)
    changed(remove(name), "lacks the weights 'conv2d_0/kernel:0'")
    changed(remove("model_weights/dense_1"), "lacks the weights 'model_weights/dense_1'")
    changed(remove("model_weights"), "lacks the weights 'model_weights/")
    changed(forget, "layer 'conv2d_0' lacks its kernel")
    changed(too_many, "expected at most 8 weight_names")
    changed(replace(kernel[:, :, :2]), r"'conv2d_0': kernel has shape \(3, 3, 2, 8\), expected \(3, 3, 3, 8\)")
    changed(replace(kernel.transpose(3, 2, 0, 1)), r"kernel has shape \(8, 3, 3, 3\)")
    changed(replace(kernel.astype(np.int32)), "kernel must be an array of floating point numbers")
    changed(replace(kernel + np.nan), "kernel holds values that are not finite")
    changed(replace(kernel.astype(np.float64) + 1e300), "kernel holds values that are not finite")
    changed(
        lambda file: file["model_weights/conv2d_8/conv2d_8/kernel:0"].write_direct(np.zeros((1, 1, 1, 16), "f4")),
        "must not be 0",
    )


def test_compressed_weights(tmp_path):
    path = write(tmp_path / "a.hdf5")
    name = "model_weights/conv2d_0/conv2d_0/kernel:0"
    with h5py.File(path, "r+") as file:
        values = file[name][()].astype(np.float64)
        del file[name]
        file.create_dataset(name, data=values, compression="gzip")
    assert torch.equal(
        import_keras(path).encoder.levels[0].conv_0.conv.weight, make_network().encoder.levels[0].conv_0.conv.weight
    )


def test_links_to_other_files_are_not_followed(tmp_path):
    """The other file holds the very weights, so that only the refusal keeps them out."""
    other = write(tmp_path / "other.hdf5")
    name = "model_weights/conv2d_0/conv2d_0/kernel:0"
    kernel = h5py.File(other)[name][()]
    kernel.tofile(tmp_path / "raw")
    layout = h5py.VirtualLayout(kernel.shape, "f4")
    layout[:] = h5py.VirtualSource(other, name, kernel.shape)
    path = tmp_path / "a.hdf5"

    def group_link(file: Any) -> None:
        del file["model_weights/conv2d_0"]
        file["model_weights/conv2d_0"] = h5py.ExternalLink(other, "model_weights/conv2d_0")

    def raw(file: Any) -> None:
        file.create_dataset(name, kernel.shape, "f4", external=[(str(tmp_path / "raw"), 0, kernel.nbytes)])

    for make, message in (
        (lambda file: file.__setitem__(name, h5py.ExternalLink(other, name)), "is a link to another place"),
        (lambda file: file.__setitem__(name, h5py.SoftLink("/" + name.replace("conv2d_0", "conv2d_1"))), "is a link"),
        (group_link, "'model_weights/conv2d_0' is a link to another place"),
        (lambda file: file.create_virtual_dataset(name, layout), "kernel lies in another file"),
        (raw, "kernel lies in another file"),
    ):
        write(path)
        with h5py.File(path, "r+") as file:
            del file[name]
            make(file)
        fails(path, message)


def test_declared_sizes_are_checked_before_anything_is_read(tmp_path):
    name = "model_weights/conv2d_0/conv2d_0/kernel:0"
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:  # 4 TiB, none of them stored
        del file[name]
        file.create_dataset(name, (1 << 40,), "f4", chunks=(1 << 20,))
    fails(path, r"kernel has shape \(1099511627776,\), expected")
    write(path)
    with h5py.File(path, "r+") as file:  # the right shape in chunks of 4 GiB
        del file[name]
        file.create_dataset(name, (3, 3, 3, 8), "f4", chunks=(3, 3, 3, 1 << 24), maxshape=(3, 3, 3, None))
    fails(path, "kernel has chunks of .*, larger than the array")
    write(path)
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, (3, 3, 3, 8), "f4")
    fails(path, "kernel was never written")

    def wide(graph: dict) -> None:
        for entry in graph["config"]["layers"]:
            if entry["config"].get("filters") == 16:
                entry["config"]["filters"] = 1 << 20

    fails(write(path, wide), "cannot hold the .* bytes of weights of its graph")


def test_targets(tmp_path):
    path = write(tmp_path / "a.hdf5")
    target = tmp_path / "a.pt"
    target.write_text("mine")
    fails(path, "exists; it is not overwritten", target)
    assert target.read_text() == "mine"
    fails(path, "exists", tmp_path)
    fails(path, "there is no folder", tmp_path / "none" / "a.pt")
    fails(path, "cannot be written", tmp_path / ("a" * 300))
    new = tmp_path / "n\u00e4u.pt"
    network = import_keras(str(path), str(new))
    assert load_model(new).config == network.config
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hdf5", "a.pt", "n\u00e4u.pt"]


def test_failed_write(tmp_path, monkeypatch):
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    path = write(tmp_path / "a.hdf5")
    monkeypatch.setattr(torch, "save", full)
    fails(path, "cannot be written: No space left on device", tmp_path / "a.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.hdf5"]


def test_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r'need h5py: pip install "conrec-monai\[keras\]"'):
        import_keras(tmp_path / "a.hdf5")
