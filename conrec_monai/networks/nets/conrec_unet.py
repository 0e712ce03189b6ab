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

# No postponed annotations here: TorchScript reads the field types of the NamedTuple.
from collections.abc import Sequence
from typing import Any, List, NamedTuple, Optional  # noqa: UP035

import torch
from monai.networks.blocks import Convolution, UpSample
from monai.networks.nets.basic_unet import TwoConv
from torch import Tensor, nn

from conrec_monai.networks.blocks import AttentionPool, ProjectionHead, recompute

__all__ = ["ConRecEncoder", "ConRecOutput", "ConRecUNet"]

# Batch norm of the whole network except inside attention pooling (arXiv 2104.04323, published implementation).
BATCH_NORM = ("batch", {"eps": 1e-5, "momentum": 0.1})
POOLINGS = ("attention", "average", "flatten")
UPSAMPLINGS = ("nontrainable", "deconv")


class ConRecOutput(NamedTuple):
    """What :class:`ConRecUNet` returns: the two heads and what both grow from.

    reconstruction: BCHW, values in [0, 1], or None without decoder. projection: B[P]. representation: B[F].
    """

    reconstruction: Optional[Tensor]  # noqa: UP045
    projection: Tensor
    representation: Tensor


class _AveragePool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean(dim=(2, 3))


class _FlattenPool(nn.Module):
    """Flattens in the order H, W, C."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().permute(0, 2, 3, 1).flatten(1)


def _two_conv(in_channels: int, out_channels: int) -> TwoConv:
    return TwoConv(2, in_channels, out_channels, act=("relu", {"inplace": True}), norm=BATCH_NORM, bias=True)


def _initialize(module: nn.Module) -> None:
    """Glorot-uniform convolutions with zero bias."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ConRecEncoder(nn.Module):
    """The encoder of ConRec, what users take away: image BCHW -> representation B[F] in float32.

    One level per entry of ``features``: twice 3x3 convolution, batch norm, ReLU; 2x2 max pooling between levels; then
    attention-weighted, average or no pooling over space. Images have values in [0, 1]; height and width are multiples
    of ``2 ** (levels - 1)``. Source: arXiv 2104.04323.

    Args:
        in_channels: channels of the image.
        features: channels of each level.
        pooling: "attention" (:class:`conrec_monai.networks.blocks.AttentionPool`), "average" or "flatten".
        image_size: side of the (square) image, for "flatten" only, whose F depends on it.
        gradient_checkpointing: whether training keeps each level's input alone and computes the rest again for the
            gradients: about a quarter slower, for batches that do not fit otherwise. No part of ``config``.

    Attributes:
        num_features: F; the channels of the last level, times its area for "flatten".

    Raises:
        ValueError: when an argument is out of its range, or ``image_size`` is missing for "flatten".
    """

    def __init__(
        self,
        in_channels: int = 3,
        features: Sequence[int] = (64, 128, 256, 512),
        pooling: str = "attention",
        image_size: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        features = tuple(int(f) for f in features)
        if in_channels < 1:
            raise ValueError(f"in_channels must be positive, got {in_channels}.")
        if not features or min(features) < 1:
            raise ValueError(f"features must be one positive number of channels per level, got {features}.")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {pooling!r}.")
        config: dict[str, Any] = {"in_channels": in_channels, "features": list(features), "pooling": pooling}
        self.divisor = 2 ** (len(features) - 1)
        self.num_features = features[-1]
        if pooling == "attention":
            pool: nn.Module = AttentionPool(features[-1])
        elif pooling == "average":
            pool = _AveragePool()
        else:
            if image_size is None or image_size < 1 or image_size % self.divisor:
                raise ValueError(
                    f"pooling 'flatten' needs image_size, a multiple of {self.divisor} for {len(features)} levels,"
                    f" got {image_size}."
                )
            config["image_size"] = image_size
            self.num_features *= (image_size // self.divisor) ** 2
            pool = _FlattenPool()
        self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        self.pooling = pooling
        self.pool = pool
        self.levels = nn.ModuleList(_two_conv(i, o) for i, o in zip((in_channels, *features), features, strict=False))
        self.downsample = nn.MaxPool2d(2)
        self.apply(_initialize)

    @torch.jit.export
    def features(self, x: Tensor) -> List[Tensor]:  # noqa: UP006
        """The outputs of all levels, finest first: level i has shape B[features[i]][H / 2^i][W / 2^i].

        Raises:
            ValueError: when the height or width is not a multiple of ``2 ** (levels - 1)``.
        """
        if x.shape[2] % self.divisor != 0 or x.shape[3] % self.divisor != 0:
            raise ValueError(
                f"image height and width must be multiples of {self.divisor}, got {x.shape[2]} x {x.shape[3]}."
            )
        outputs: List[Tensor] = []  # noqa: UP006
        for i, level in enumerate(self.levels):
            if i > 0:
                x = self.downsample(x)
            if torch.jit.is_scripting():
                x = level(x)
            elif self.gradient_checkpointing and self.training:
                x = recompute(level, x)
            else:
                x = level(x)
            outputs.append(x)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """Represents images: BCHW, values in [0, 1] -> B[F], float32."""
        representation: Tensor = self.pool(self.features(x)[-1])
        return representation

    @torch.jit.export
    def attention_map(self, x: Tensor) -> Tensor:
        """Where the representation looks: images BCHW -> B1hw, values in (0, 1), h = H / 2^(levels - 1).

        Raises:
            ValueError: when the encoder does not pool by attention.
        """
        if hasattr(self.pool, "attention_map"):  # the one test of a module's kind that TorchScript has
            attention: Tensor = self.pool.attention_map(self.features(x)[-1])  # type: ignore[operator]
            return attention
        raise ValueError(f"an encoder with pooling '{self.pooling}' has no attention map.")


class _Decoder(nn.Module):
    """Upsamples level by level, joined with the skip path of the shallowest ``skip_levels`` levels."""

    def __init__(
        self,
        out_channels: int,
        features: tuple[int, ...],
        skip_levels: int,
        skip_strength: float,
        upsample: str,
        gradient_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        self.ups, self.skips, self.levels = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(features) - 1)):
            deep, width = features[i + 1], features[i]
            if upsample == "deconv":
                self.ups.append(UpSample(2, deep, width, scale_factor=2, mode="deconv"))
                deep = width
            else:
                self.ups.append(
                    UpSample(
                        2, deep, deep, mode="nontrainable", pre_conv=None, interp_mode="nearest", align_corners=None
                    )
                )
            if i < skip_levels:
                skip = max(1, int(width * skip_strength))
                self.skips.append(Convolution(2, width, skip, kernel_size=1, act="relu", norm=BATCH_NORM))
                deep += skip
            else:
                self.skips.append(nn.Identity())
            self.levels.append(_two_conv(deep, width))
        self.skip_levels = skip_levels
        self.output = nn.Conv2d(features[0], out_channels, kernel_size=1)

    def forward(self, features: List[Tensor]) -> Tensor:  # noqa: UP006
        x = features[-1]
        i = len(features) - 2
        for up, skip, level in zip(self.ups, self.skips, self.levels):  # noqa: B905 - TorchScript has no strict zip
            x = up(x)
            if i < self.skip_levels:
                x = torch.cat([x, skip(features[i])], dim=1)
            if torch.jit.is_scripting():
                x = level(x)
            elif self.gradient_checkpointing and self.training:
                x = recompute(level, x)
            else:
                x = level(x)
            i -= 1
        logits: Tensor = self.output(x)
        return logits.float().sigmoid()


class ConRecUNet(nn.Module):
    """U-net with two heads: one encoder, a projection for the contrastive loss, a decoder for the reconstruction.

    masked view -> encoder -> representation -> projection; the decoder joins the encoder's levels by a skip path.
    SimCLR is ``decoder=False`` on unmasked views. Scriptable. Source: arXiv 2104.04323.

    Args:
        in_channels: channels of the image and of the reconstruction.
        features: see :class:`ConRecEncoder`.
        pooling: see :class:`ConRecEncoder`.
        image_size: see :class:`ConRecEncoder`.
        decoder: whether there is a reconstruction.
        skip_levels: how many of the shallowest levels have a skip path; None for all but the last level.
        skip_strength: width of the skip path over the width of its level.
        upsample: "nontrainable" (nearest neighbor) or "deconv" (2x2 transposed convolution, stride 2).
        projection_dim: P, width of the projection.
        projection_layers: linear layers of the projection head; the hidden ones are as wide as the last level.
        gradient_checkpointing: see :class:`ConRecEncoder`.

    Attributes:
        encoder: the :class:`ConRecEncoder`.
        config: the arguments, as plain values; ``ConRecUNet(**config)`` is the same architecture.

    Raises:
        ValueError: when an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        features: Sequence[int] = (64, 128, 256, 512),
        pooling: str = "attention",
        image_size: int | None = None,
        decoder: bool = True,
        skip_levels: int | None = None,
        skip_strength: float = 1.0,
        upsample: str = "nontrainable",
        projection_dim: int = 128,
        projection_layers: int = 3,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = ConRecEncoder(in_channels, features, pooling, image_size, gradient_checkpointing)
        widths = tuple(self.encoder.config["features"])
        if skip_levels is None:
            skip_levels = len(widths) - 1
        if not 0 <= skip_levels < len(widths):
            raise ValueError(
                f"skip_levels must be from 0 to {len(widths) - 1} for {len(widths)} levels: {skip_levels}."
            )
        if not skip_strength > 0:
            raise ValueError(f"skip_strength must be positive (skip_levels=0 removes the path), got {skip_strength}.")
        if upsample not in UPSAMPLINGS:
            raise ValueError(f"upsample must be one of {UPSAMPLINGS}, got {upsample!r}.")
        self.config = {
            **self.encoder.config,
            "decoder": bool(decoder),
            "skip_levels": skip_levels,
            "skip_strength": float(skip_strength),
            "upsample": upsample,
            "projection_dim": projection_dim,
            "projection_layers": projection_layers,
        }
        self.projection = ProjectionHead(self.encoder.num_features, widths[-1], projection_dim, projection_layers)
        self.decoder = None
        if decoder:
            self.decoder = _Decoder(in_channels, widths, skip_levels, skip_strength, upsample, gradient_checkpointing)
        if self.decoder is not None:
            self.decoder.apply(_initialize)

    def forward(self, x: Tensor, first: int = 0) -> ConRecOutput:
        """Images BCHW with values in [0, 1] -> :class:`ConRecOutput`, all float32.

        Only the images from ``first`` on are reconstructed, which spares the decoder those that are not masked.
        """
        features = self.encoder.features(x)
        representation = self.encoder.pool(features[-1])
        projection = self.projection(representation).float()
        reconstruction: Optional[Tensor] = None  # noqa: UP045
        if self.decoder is not None:
            # no slices: those of a batch of MetaTensor take its meta data apart, which need not be consistent
            reconstruction = self.decoder([level.narrow(0, first, len(level) - first) for level in features])
        return ConRecOutput(reconstruction, projection, representation)
