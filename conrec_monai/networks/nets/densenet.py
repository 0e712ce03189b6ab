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
import re
import sys
from http.client import HTTPException
from pathlib import Path

import torch
from monai.networks.nets import DenseNet121
from torch import Tensor, nn

__all__ = ["DenseNetEncoder"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# torchvision's, which MONAI's DenseNet121(pretrained=True) takes too; the name ends in the start of its SHA-256
WEIGHTS_URL = "https://download.pytorch.org/models/densenet121-a639ec97.pth"
# "denselayer1.norm.1.weight" in the file of torchvision, "denselayer1.norm1.weight" in its networks, and
# "denselayer1.layers.norm1.weight" in MONAI
_LAYER = re.compile(r"^(features\.denseblock\d+\.denselayer\d+)\.(?:layers\.)?(norm|conv)\.?([12])\.(\w+)$")
_CLASSIFIERS = ("classifier.", "class_layers.")


class DenseNetEncoder(nn.Module):
    """DenseNet121 without its classifier, as an encoder: image BCHW -> representation B[1024] in float32.

    The features of :class:`monai.networks.nets.DenseNet121`, ReLU, average over space. Images have values in [0, 1];
    ImageNet's mean and standard deviation normalize them inside the module, with random weights too, so that any
    weights of this class fit the same images. An image of one channel is repeated to three. Any height and width of at
    least 29 pixels will do. Source: the rows "DenseNet121" of Table 1, arXiv 2104.04323, whose 8.062M parameters
    include the 1000 classes of ImageNet; the encoder has 7,037,504.

    Args:
        in_channels: channels of the image, 1 or 3.
        weights: None (random), "imagenet" (downloaded once into the cache of torch.hub), or the path of a state dict
            of DenseNet121 as torchvision or MONAI name its entries; its classifier is left out.

    Attributes:
        num_features: 1024.
        divisor: 1; the image size need not be a multiple of anything.
        config: the arguments but ``weights``, as plain values; ``DenseNetEncoder(**config)`` has random weights.

    Raises:
        ValueError: for other arguments; or when the weights cannot be read, downloaded, or do not fit.
        FileNotFoundError: when there is no such file.
    """

    def __init__(self, in_channels: int = 3, weights: str | os.PathLike | None = None) -> None:
        super().__init__()
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels must be 1 (gray) or 3 (RGB), got {in_channels!r}.")
        if weights is not None and not isinstance(weights, str | os.PathLike):
            raise ValueError(f"weights must be None, 'imagenet' or a path, got {weights!r}.")
        content, source = None, ""
        if weights is not None:
            path = _downloaded() if weights == "imagenet" else Path(weights)
            content, source = _read(path), str(path)
        self.config = {"in_channels": in_channels}
        self.in_channels = in_channels
        self.num_features = 1024
        self.divisor = 1
        self.features = DenseNet121(spatial_dims=2, in_channels=3, out_channels=1).features
        # not persistent: they are no weights
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        if content is not None:
            self._load(content, source)

    def _load(self, content: dict[str, Tensor], source: str) -> None:
        weights = {_LAYER.sub(r"\1.layers.\2\3.\4", name): value for name, value in content.items()}
        weights = {name: value for name, value in weights.items() if not name.startswith(_CLASSIFIERS)}
        own = self.state_dict()
        for name, value in own.items():
            if name.endswith("num_batches_tracked"):
                weights.setdefault(name, value)  # older than this counter, which nothing here depends on
        wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
        wrong += [name for name in weights if name not in own]
        if wrong:
            raise ValueError(
                f"{source} holds no weights of DenseNet121: {len(wrong)} are missing, unexpected or of another shape,"
                f" first: {wrong[0]}."
            )
        self.load_state_dict(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Represents images: BCHW, values in [0, 1] -> B[1024], float32.

        Raises:
            ValueError: for another number of channels, or fewer than 29 pixels in height or width.
        """
        if x.shape[1] != self.in_channels:
            raise ValueError(f"images must have {self.in_channels} channels, got {x.shape[1]}.")
        if x.shape[2] < 29 or x.shape[3] < 29:
            raise ValueError(f"image height and width must be at least 29, got {x.shape[2]} x {x.shape[3]}.")
        # one channel becomes three
        features: Tensor = self.features((x - self.mean) / self.std)  # type: ignore[operator]
        return features.relu().float().mean(dim=(2, 3))

    @torch.jit.export
    def attention_map(self, x: Tensor) -> Tensor:
        """Raises a ValueError: this encoder averages without attention."""
        raise ValueError("an encoder of the kind 'DenseNetEncoder' has no attention map.")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        reason = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"no weights at {path}: {reason}; weights may be None, 'imagenet' or a file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} is no state dict: it is no PyTorch file, or holds objects other than tensors, which are never"
            " unpickled."
        ) from None
    except Exception as error:  # damaged bytes make torch and pickle raise nearly anything
        raise ValueError(f"{path} cannot be read (truncated or damaged?): {_first_line(error)}") from None
    if not isinstance(content, dict) or not all(
        isinstance(n, str) and isinstance(v, Tensor) for n, v in content.items()
    ):
        raise ValueError(f"{path} is no state dict: expected a dictionary of tensors alone.")
    return dict(content)


def _downloaded() -> Path:
    """Where the cache of torch.hub has torchvision's file, downloaded when it is not there yet."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_URL.rsplit("/", 1)[1]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                WEIGHTS_URL, str(path), hash_prefix=path.stem.rsplit("-", 1)[1], progress=sys.stderr.isatty()
            )
        except (OSError, RuntimeError, HTTPException) as error:  # no network or no space; another hash
            raise ValueError(
                f"the ImageNet weights cannot be downloaded ({_first_line(error)}); put {WEIGHTS_URL} at {path}, or"
                " name the file that holds them as weights."
            ) from None
    return path


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
