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

import re
import urllib.error
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DenseNet121

from conrec_monai.networks.nets import DenseNetEncoder, EncoderClassifier, densenet


def published_count(module: torch.nn.Module) -> int:
    """The paper counts weights and batch-norm running statistics."""
    return sum(v.numel() for name, v in module.state_dict().items() if not name.endswith("num_batches_tracked"))


@pytest.fixture(scope="module")
def reference() -> DenseNet121:
    """MONAI's network, with running statistics that no new network has."""
    torch.manual_seed(1)
    network = DenseNet121(spatial_dims=2, in_channels=3, out_channels=1000)
    for name, value in network.state_dict().items():
        if "running" in name:
            value.add_(0.1 * torch.rand(value.shape))
    return network.eval()


def normalized(x: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def torchvision_names(network: DenseNet121, old: bool) -> dict[str, torch.Tensor]:
    """The state dict as torchvision names it: as its networks do, or as its older file does."""
    names = {}
    for name, value in network.state_dict().items():
        name = name.replace("class_layers.out.", "classifier.").replace(".layers.", ".")
        if old:
            if name.endswith("num_batches_tracked"):
                continue
            name = re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name)
        names[name] = value
    return names


def test_parameter_count_of_table_1():
    encoder = DenseNetEncoder()
    assert published_count(encoder) == 7_037_504
    # the 8.062M of the table are those of the network with the 1000 classes of ImageNet
    assert published_count(EncoderClassifier(encoder, 1000)) == 8_062_504


@pytest.mark.parametrize("kind", ["monai", "torchvision", "old torchvision"])
def test_weights_of_a_file(kind, reference, tmp_path):
    path = tmp_path / "Netzhaut \u00e4 1.pth"
    names = reference.state_dict() if kind == "monai" else torchvision_names(reference, old=kind.startswith("old"))
    if kind.startswith("old"):
        assert "features.denseblock1.denselayer1.norm.1.weight" in names
    torch.save(names, path)
    encoder = DenseNetEncoder(weights=path).eval()
    x = torch.rand(2, 3, 64, 48)
    expected = reference.features(normalized(x)).relu().mean(dim=(2, 3))
    assert encoder.num_features == expected.shape[1] == 1024
    torch.testing.assert_close(encoder(x), expected)
    logits = reference.class_layers.out(encoder(x))
    torch.testing.assert_close(logits, reference(normalized(x)))
    assert encoder.config == {"in_channels": 3}  # a checkpoint holds the weights themselves


def test_gray_images_are_repeated():
    encoder = DenseNetEncoder().eval()
    gray = DenseNetEncoder(in_channels=1).eval()
    gray.load_state_dict(encoder.state_dict())
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(gray(x), encoder(x.expand(2, 3, 32, 32)))


def test_scriptable():
    encoder = DenseNetEncoder().eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode(), torch.jit.optimized_execution(False):  # compiling for speed takes a minute
        torch.testing.assert_close(torch.jit.script(encoder)(x), encoder(x))


@pytest.mark.parametrize("size", [(29, 29), (29, 50), (97, 33)])
def test_any_size_from_29_pixels(size):
    with torch.inference_mode():
        assert DenseNetEncoder().eval()(torch.rand(1, 3, *size)).isfinite().all()


def test_image_errors():
    encoder = DenseNetEncoder()
    with pytest.raises(ValueError, match="at least 29, got 28 x 64"):
        encoder(torch.rand(1, 3, 28, 64))
    with pytest.raises(ValueError, match="must have 3 channels, got 1"):
        encoder(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match="no attention map"):
        encoder.attention_map(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 2}, r"in_channels must be 1 \(gray\) or 3 \(RGB\), got 2"),
        ({"weights": True}, "weights must be None, 'imagenet' or a path, got True"),
    ],
)
def test_argument_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        DenseNetEncoder(**arguments)


def one_line(error: pytest.ExceptionInfo) -> bool:
    return "\n" not in str(error.value)


def test_files_that_hold_no_weights(reference, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no weights at ImageNet: no such file; weights may be None, 'imagenet'"
    ):
        DenseNetEncoder(weights="ImageNet")
    with pytest.raises(FileNotFoundError, match="a folder"):
        DenseNetEncoder(weights=tmp_path)
    path = tmp_path / "weights.pth"
    for content in (b"", b"PK\x03\x04", b"<html>not found</html>\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights\.pth (is no state dict|cannot be read)") as e:
            DenseNetEncoder(weights=path)
        assert one_line(e)
    names = torchvision_names(reference, old=True)
    lacking = {name: value for name, value in names.items() if name != "features.conv0.weight"}
    for content, message in (
        (lacking, r"1 are missing, .* first: features\.conv0\.weight"),
        ({**names, "features.conv0.weight": torch.zeros(64, 1, 7, 7)}, r"1 are .* first: features\.conv0\.weight"),
        ({**names, "fc.weight": torch.zeros(1)}, r"1 are .* first: fc\.weight"),
        ({"state_dict": names}, "expected a dictionary of tensors alone"),
        ([1, 2], "expected a dictionary of tensors alone"),
        (Path("x"), "never unpickled"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message) as e:
            DenseNetEncoder(weights=path)
        assert str(path) in str(e.value) and one_line(e)


def test_imagenet_weights_come_from_the_cache_or_say_where_to_put_them(reference, tmp_path, monkeypatch):
    asked = []

    def download(url, dst, hash_prefix, progress):
        asked.append((url, dst, hash_prefix))
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    path = tmp_path / "checkpoints" / "densenet121-a639ec97.pth"
    with pytest.raises(
        ValueError, match=r"cannot be downloaded \(<urlopen error no network>\); put https://.* at "
    ) as e:
        DenseNetEncoder(weights="imagenet")
    assert str(path) in str(e.value) and one_line(e)
    assert asked == [(densenet.WEIGHTS_URL, str(path), "a639ec97")]
    torch.save(torchvision_names(reference, old=True), path)
    assert torch.equal(DenseNetEncoder(weights="imagenet").features.conv0.weight, reference.features.conv0.weight)


def test_a_download_with_another_hash_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    other = tmp_path / "densenet121-a639ec97.pth"
    other.write_bytes(b"something else")
    monkeypatch.setattr(densenet, "WEIGHTS_URL", other.as_uri())
    with pytest.raises(ValueError, match="cannot be downloaded .*invalid hash value") as e:
        DenseNetEncoder(weights="imagenet")
    assert one_line(e) and list((tmp_path / "hub" / "checkpoints").iterdir()) == []
