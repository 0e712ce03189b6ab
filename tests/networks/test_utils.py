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
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conrec_monai.data import load_preprocessing
from conrec_monai.networks import utils
from conrec_monai.networks.nets import ConRecEncoder, ConRecUNet, DenseNetEncoder, EncoderClassifier, SimCLRNet
from conrec_monai.networks.utils import (
    build_network,
    load_encoder,
    load_model,
    load_weights,
    read_checkpoint,
    save_checkpoint,
    untrained_like,
)

PREPROCESSING = {"image_size": 32, "resize": "squash"}


def make_network(**config: Any) -> ConRecUNet:
    """A network whose weights and running statistics are none that a new network has."""
    torch.manual_seed(0)
    network = ConRecUNet(**{"features": (4, 8), **config})
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand(value.shape))
            else:
                value.add_(3)
    return network


def images(size: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint.pt", make_network(), PREPROCESSING)
    return tmp_path / "checkpoint.pt"


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "encoder.pt", make_network().encoder, PREPROCESSING)
    return tmp_path / "encoder.pt"


def changed(path: Path, **entries: Any) -> Path:
    """The checkpoint with other entries; those that are None are left out."""
    content = {**torch.load(path, weights_only=True), **entries}
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return path


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"pooling": "average", "decoder": False},
        {"pooling": "flatten", "image_size": 32},
        {"in_channels": 1, "features": (4, 4, 8), "skip_levels": 1, "skip_strength": 0.5, "upsample": "deconv"},
        {"projection_dim": 16, "projection_layers": 1},
    ],
)
def test_round_trip(config: dict[str, Any], tmp_path: Path) -> None:
    network = make_network(**config).eval()
    x = images(channels=config.get("in_channels", 3))
    save_checkpoint(tmp_path / "checkpoint.pt", network, PREPROCESSING)
    save_checkpoint(tmp_path / "encoder.pt", network.encoder, PREPROCESSING)

    model = load_model(tmp_path / "checkpoint.pt")
    assert type(model) is ConRecUNet and model.config == network.config and not model.training
    assert network(x).projection.isfinite().all()
    for found, expected in zip(model(x), network(x), strict=True):
        assert (found is None and expected is None) or torch.equal(found, expected)
    for name in ("checkpoint.pt", "encoder.pt"):
        encoder = load_encoder(tmp_path / name)
        assert type(encoder) is ConRecEncoder and encoder.config == network.encoder.config and not encoder.training
        assert torch.equal(encoder(x), network(x).representation)


def with_encoder(kind: str) -> tuple[nn.Module, nn.Module]:
    """A network and its encoder."""
    torch.manual_seed(0)
    encoder: nn.Module = DenseNetEncoder(1) if kind == "DenseNetEncoder" else ConRecEncoder(features=(4, 8))
    network = {"SimCLRNet": lambda e: SimCLRNet(e, 16, 2), "EncoderClassifier": lambda e: EncoderClassifier(e, 5, True)}
    return network.get(kind, lambda e: e)(encoder), encoder


@pytest.mark.parametrize("kind", ["ConRecEncoder", "DenseNetEncoder", "SimCLRNet", "EncoderClassifier"])
def test_other_networks(kind: str, tmp_path: Path) -> None:
    network, encoder = with_encoder(kind)
    path = tmp_path / "a.pt"
    save_checkpoint(path, network, PREPROCESSING)
    assert read_checkpoint(path)["kind"] == kind
    found = [load_encoder(path)]
    assert type(found[0]) is type(encoder) and found[0].config == encoder.config and not found[0].training
    if network is encoder:
        with pytest.raises(ValueError, match="holds an encoder alone"):
            load_model(path)
    else:
        model = load_model(path)
        assert type(model) is type(network) and model.config == network.config and not model.training
        assert all(torch.equal(v, network.state_dict()[name]) for name, v in model.state_dict().items())
        found.append(model.encoder)
    for other in found:
        assert all(torch.equal(v, encoder.state_dict()[name]) for name, v in other.state_dict().items())
    if kind == "EncoderClassifier":
        assert not any(p.requires_grad for p in model.encoder.parameters())


@pytest.mark.parametrize("kind", ["ConRecUNet", "ConRecEncoder", "DenseNetEncoder", "SimCLRNet", "EncoderClassifier"])
def test_untrained_like(kind: str) -> None:
    network = make_network(upsample="deconv") if kind == "ConRecUNet" else with_encoder(kind)[0]
    twin = untrained_like(network)
    assert type(twin) is type(network) and twin.config == network.config
    assert {n: v.shape for n, v in twin.state_dict().items()} == {n: v.shape for n, v in network.state_dict().items()}
    assert not all(torch.equal(v, network.state_dict()[n]) for n, v in twin.state_dict().items() if v.ndim > 1)
    assert twin.training


class OtherEncoder(nn.Identity):
    num_features = 3


class Subclass(ConRecEncoder):
    pass


def test_networks_that_cannot_be_rebuilt(tmp_path: Path) -> None:
    for network, message in (
        (nn.Linear(2, 1), "a Linear cannot be rebuilt from a checkpoint; expected one of"),
        (Subclass(features=(4, 8)), "a Subclass cannot be rebuilt"),
        (SimCLRNet(OtherEncoder()), r"a OtherEncoder cannot be rebuilt .* as encoder"),
        (EncoderClassifier(OtherEncoder(), 2), r"a OtherEncoder cannot be rebuilt .* as encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            save_checkpoint(tmp_path / "a.pt", network, PREPROCESSING)
        with pytest.raises(ValueError, match=message):
            untrained_like(network)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("UNet", {}, "a network must be one of .*, got 'UNet'"),
        (
            "DenseNetEncoder",
            {"weights": "imagenet"},
            "no valid DenseNetEncoder .* unexpected keyword argument 'weights'",
        ),
        ("DenseNetEncoder", {"in_channels": 2}, "no valid DenseNetEncoder configuration: in_channels must be 1"),
        ("SimCLRNet", {}, "encoder must be a dictionary of kind and config, got None"),
        ("SimCLRNet", {"encoder": {"kind": "SimCLRNet", "config": {}}}, "encoder must be one of"),
        ("SimCLRNet", {"encoder": {"kind": [], "config": {}}}, "encoder must be one of"),
        ("SimCLRNet", {"encoder": {"kind": "ConRecEncoder", "config": None}}, "encoder must be one of"),
        ("EncoderClassifier", {"encoder": {"kind": "ConRecEncoder", "config": {}}}, "missing .*'num_classes'"),
        (
            "EncoderClassifier",
            {"encoder": {"kind": "ConRecEncoder", "config": {"pooling": "max"}}, "num_classes": 2},
            "no valid EncoderClassifier configuration: no valid ConRecEncoder configuration: pooling must be",
        ),
    ],
)
def test_configurations_that_are_none(kind: str, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(kind, config)
    if kind == "UNet":
        return
    save_checkpoint(tmp_path / "a.pt", make_network(), PREPROCESSING)
    changed(tmp_path / "a.pt", kind=kind, config=config)
    load = load_encoder if kind == "DenseNetEncoder" else load_model
    with pytest.raises(ValueError, match=r"a\.pt holds .*" + message):
        load(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt "):
        load_encoder(tmp_path / "a.pt")


def test_content(encoder_file: Path) -> None:
    content = torch.load(encoder_file, weights_only=True)
    assert list(content) == ["format", "version", "kind", "config", "preprocessing", "state_dict"]
    assert (content["format"], content["version"], content["kind"]) == ("conrec_monai", 1, "ConRecEncoder")
    assert content["config"] == {"in_channels": 3, "features": [4, 8], "pooling": "attention"}
    assert content["preprocessing"] == PREPROCESSING
    assert {n: v.tolist() for n, v in content["state_dict"].items()} == {
        n: v.tolist() for n, v in make_network().encoder.state_dict().items()
    }


def test_extra_entries_and_memory_format(tmp_path: Path) -> None:
    network = make_network().to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "a.pt", network, PREPROCESSING, training={"iteration": 3, "totals": torch.ones(4)})
    content = read_checkpoint(str(tmp_path / "a.pt"))
    assert content["training"]["iteration"] == 3 and torch.equal(content["training"]["totals"], torch.ones(4))
    assert all(value.is_contiguous() for value in content["state_dict"].values())
    assert not network.encoder.levels[1].conv_0.conv.weight.is_contiguous()  # that of the training stays


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "a.pt", make_network(), PREPROCESSING)
        assert os.umask(0o027) == 0o027  # as it was
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.pt").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_save_keeps_the_old_file(
    error: BaseException, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = checkpoint.read_bytes()

    def half(content: Any, file: Any) -> None:
        file.write(b"half")
        file.flush()
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(type(error)):
        save_checkpoint(checkpoint, make_network(decoder=False), PREPROCESSING)
    assert checkpoint.read_bytes() == old
    assert [file.name for file in checkpoint.parent.iterdir()] == ["checkpoint.pt"]


def test_save_replaces(checkpoint: Path) -> None:
    save_checkpoint(checkpoint, make_network(features=(2, 8)), PREPROCESSING)
    assert load_model(checkpoint).config["features"] == [2, 8]
    assert [file.name for file in checkpoint.parent.iterdir()] == ["checkpoint.pt"]


# --- files that are no checkpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [read_checkpoint, load_model, load_encoder])
def test_no_file(load: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*missing\.pt: no such file"):
        load(tmp_path / "missing.pt")
    with pytest.raises(FileNotFoundError, match="a folder"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"epoch,loss\n1,2.5\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04"])
def test_other_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.pt (is not a ConRec checkpoint|cannot be read as a checkpoint)") as e:
        load_encoder(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.9, 0.999])
def test_truncated_file(part: float, checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"checkpoint\.pt (is not a ConRec|cannot be read as a) checkpoint") as e:
        load_model(checkpoint)
    assert "\n" not in str(e.value)


def test_damaged_file(checkpoint: Path) -> None:
    """Bytes changed anywhere end in an error that names the file, or in the same content: never in another error."""
    content = checkpoint.read_bytes()
    for start in range(0, len(content), len(content) // 40):
        checkpoint.write_bytes(content[:start] + b"\xff" * 24 + content[start + 24 :])
        try:
            load_model(checkpoint)
        except ValueError as error:
            assert str(checkpoint) in str(error), start


@pytest.mark.parametrize("load", [read_checkpoint, load_model, load_encoder, load_preprocessing])
def test_plain_weights(load: Any, tmp_path: Path) -> None:
    torch.save(make_network().state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt holds plain weights without .* Expected: .*model\.pt of a run\.$"):
        load(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [[1, 2], 3.5, torch.zeros(2), {}, {"state_dict": {"a": torch.zeros(2)}}])
def test_other_content(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt is not a ConRec checkpoint: expected an entry format"):
        read_checkpoint(tmp_path / "a.pt")


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_objects_are_never_unpickled(checkpoint: Path, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    with (tmp_path / "plain.pkl").open("wb") as file:
        pickle.dump({"format": "conrec_monai", "version": 1, "x": Attack(proof)}, file, protocol=2)
    changed(checkpoint, training=Attack(proof))
    for path in (tmp_path / "plain.pkl", checkpoint):
        for load in (read_checkpoint, load_model, load_encoder):
            with pytest.raises(ValueError, match="holds objects other than tensors and plain values, which are never"):
                load(path)
    assert not proof.exists()
    torch.load(checkpoint, weights_only=False)  # the attack would have worked
    assert proof.exists()


def test_newer_version(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.pt has format version 2, this release reads 1"):
        load_model(changed(checkpoint, version=2))


@pytest.mark.parametrize("name", ["kind", "config", "preprocessing", "state_dict"])
def test_missing_entry(name: str, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=rf"checkpoint\.pt lacks the entries \['{name}'\]"):
        load_encoder(changed(checkpoint, **{name: None}))


# --- checkpoints that do not fit --------------------------------------------------------------------------------------


def test_kinds(encoder_file: Path) -> None:
    with pytest.raises(ValueError, match=r"encoder\.pt holds an encoder alone.*use load_encoder, or .*checkpoint\.pt"):
        load_model(encoder_file)
    changed(encoder_file, kind="UNet")
    for load in (load_model, load_encoder):
        with pytest.raises(ValueError, match=r"holds a UNet, expected one of \['ConRecEncoder', 'ConRecUNet', 'Dense"):
            load(encoder_file)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pooling": "max"}, "no valid ConRecUNet configuration: pooling must be one of"),
        ({"features": []}, "no valid ConRecUNet configuration: features must be"),
        ({"dropout": 0.1}, "no valid ConRecUNet configuration: .*unexpected keyword argument 'dropout'"),
        ({"features": [4, 16]}, "weights .* of another shape"),
        ({"pooling": "average"}, "weights .* unexpected"),
        ({"decoder": False}, "weights .* unexpected"),
    ],
)
def test_configuration_of_another_network(config: dict[str, Any], message: str, checkpoint: Path) -> None:
    changed(checkpoint, config={**make_network().config, **config})
    with pytest.raises(ValueError, match=message) as e:
        load_model(checkpoint)
    assert str(checkpoint) in str(e.value)


WEIGHT = "levels.0.conv_0.conv.weight"


@pytest.mark.parametrize("load", [load_model, load_encoder])
def test_every_weight_must_fit(load: Any, checkpoint: Path) -> None:
    state_dict, name = make_network().state_dict(), f"encoder.{WEIGHT}"
    own = name if load is load_model else WEIGHT
    kind = "ConRecUNet" if load is load_model else "ConRecEncoder"

    renamed = {name.replace("conv_0", "conv_9"): state_dict[name], **state_dict}
    del renamed[name]
    with pytest.raises(ValueError) as e:
        load(changed(checkpoint, state_dict=renamed))
    assert str(e.value) == (
        f"{checkpoint} does not fit {kind}: weights 1 missing ({own});"
        f" 1 unexpected ({own.replace('conv_0', 'conv_9')})."
    )

    lacking = {n: v for n, v in state_dict.items() if n != name}
    with pytest.raises(ValueError, match=rf"does not fit {kind}: weights 1 missing \({own}\)\.$"):
        load(changed(checkpoint, state_dict=lacking))

    misshapen = {**state_dict, name: state_dict[name][:, :1]}
    with pytest.raises(ValueError, match=rf"1 of another shape \({own} \(4, 1, 3, 3\) instead of \(4, 3, 3, 3\)\)\.$"):
        load(changed(checkpoint, state_dict=misshapen))


@pytest.mark.parametrize("prefix", ["module.", "network.", None])
def test_nothing_that_matches_never_passes(prefix: str | None, checkpoint: Path) -> None:
    weights = {} if prefix is None else {prefix + n: v for n, v in make_network().state_dict().items()}
    changed(checkpoint, state_dict=weights)
    for load, network in ((load_model, make_network()), (load_encoder, make_network().encoder)):
        with pytest.raises(ValueError, match=f"{len(network.state_dict())} missing"):
            load(checkpoint)


def test_weights_are_untouched_by_an_error() -> None:
    network = nn.Linear(2, 1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"^there does not fit Linear: weights 1 missing \(bias\)\.$"):
        load_weights(network, {"weight": torch.ones(1, 2)}, "there")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    load_weights(network, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "there")
    assert network(torch.tensor([[2.0, 3.0]])).item() == 5


def test_long_lists_are_cut() -> None:
    with pytest.raises(ValueError, match=r"7 unexpected \(a0, a1, a2, \.\.\.\)\.$"):
        load_weights(nn.Identity(), {f"a{i}": torch.zeros(1) for i in range(7)}, "there")


def test_public_names() -> None:
    assert {"load_encoder", "load_model", "read_checkpoint", "save_checkpoint"} <= set(utils.__all__)


def test_keras_checkpoint_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "model.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match="is a Keras checkpoint: conrec-monai import-keras model.hdf5 model.pt"):
        load_encoder(tmp_path / "model.hdf5")


def test_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = ConRecEncoder()  # 4.7 million weights
    encoder.levels[0].conv_0.adn.N.running_var.fill_(1e6)  # beyond float16
    for half in (False, True):
        save_checkpoint(tmp_path / f"{half}.pt", encoder, {"image_size": 64, "resize": "squash"}, half)
    sizes = [(tmp_path / f"{half}.pt").stat().st_size for half in (False, True)]
    assert sizes[1] < 0.51 * sizes[0] < 16e6
    loaded = load_encoder(tmp_path / "True.pt")
    for name, value in loaded.state_dict().items():
        expected = encoder.state_dict()[name]
        assert value.dtype == expected.dtype, name
        torch.testing.assert_close(value, expected, rtol=2**-11, atol=2**-24)
    assert torch.equal(loaded.levels[0].conv_0.adn.N.running_var, torch.full((64,), 1e6))
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), encoder.eval()(x), rtol=1e-2, atol=1e-3)
