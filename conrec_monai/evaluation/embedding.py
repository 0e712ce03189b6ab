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

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from conrec_monai.engines.batch_trainer import memory_format_of
from conrec_monai.utils import progress_bar

__all__ = ["central_part", "embed", "embed_levels", "has_levels"]


def central_part(images: torch.Tensor, size: int) -> torch.Tensor:
    """The central square of images: a view of shape [N, C, size, size].

    Args:
        images: NCHW.
        size: side of the square in pixels.

    Raises:
        ValueError: when the images are smaller.
    """
    height, width = images.shape[-2:]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"expected a central part of 1 to {min(height, width)} pixels, got {size}")
    top, left = (height - size) // 2, (width - size) // 2
    return images[..., top : top + size, left : left + size]


def embed(
    encoder: nn.Module,
    images: torch.Tensor,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> np.ndarray:
    """Representations of images by a frozen encoder.

    The encoder is moved to ``device`` and runs in evaluation mode; then each of its modules is set back to its mode.

    Args:
        encoder: any module that maps BCHW with values in [0, 1] to B[F].
        images: uint8 NCHW.
        batch_size: images per forward pass.
        device: where the encoder runs.
        progress: show a progress bar.

    Returns:
        float32 [N, F].

    Raises:
        ValueError: for images that are not uint8 NCHW, an output that is not B[F], or a non-finite representation.
    """
    return _run(encoder, encoder, images, batch_size, device, progress)


def embed_levels(
    encoder: nn.Module,
    images: torch.Tensor,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> np.ndarray:
    """Multi-level representations of images: the average and the maximum over space of every level of the encoder.

    Args:
        encoder: a :class:`conrec_monai.networks.nets.ConRecEncoder`, or any module whose method ``features`` gives
            the feature maps of its levels, each B[C][h][w].
        images: uint8 NCHW.
        batch_size: images per forward pass.
        device: where the encoder runs.
        progress: show a progress bar.

    Returns:
        float32 [N, 2 * sum of the levels' channels]: the averages of all levels, finest first, then the maxima.

    Raises:
        ValueError: as :func:`embed`; or when the encoder has no levels.
    """
    if not has_levels(encoder):
        raise ValueError(f"a {type(encoder).__name__} gives no feature maps of levels")

    def pooled(x: torch.Tensor) -> torch.Tensor:
        maps = [level.float() for level in encoder.features(x)]  # type: ignore[operator]
        return torch.cat([m.mean(dim=(2, 3)) for m in maps] + [m.amax(dim=(2, 3)) for m in maps], dim=1)

    return _run(encoder, pooled, images, batch_size, device, progress)


def has_levels(encoder: nn.Module) -> bool:
    """Whether :func:`embed_levels` can be used: ``features`` is a method, not a part of the network."""
    return callable(getattr(type(encoder), "features", None))


def _run(
    encoder: nn.Module,
    function: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    batch_size: int,
    device: torch.device | str,
    progress: bool,
) -> np.ndarray:
    if images.ndim != 4 or images.dtype != torch.uint8 or not len(images):
        raise ValueError(f"expected uint8 images NCHW with N >= 1, got {images.dtype} of shape {list(images.shape)}")
    memory_format = memory_format_of(torch.device(device))
    training = [module for module in encoder.modules() if module.training]
    encoder.to(device).eval()
    representations = []
    try:
        with torch.inference_mode():
            for batch in progress_bar(images.split(batch_size), progress, desc="embed", leave=False):
                x = (batch.to(device).float() / 255).contiguous(memory_format=memory_format)
                h = function(x)
                if h.ndim != 2 or len(h) != len(x):
                    raise ValueError(f"expected an encoder that returns [{len(x)}, F], got shape {list(h.shape)}")
                representations.append(h.float().cpu())
    finally:
        for module in training:
            module.training = True
    result = torch.cat(representations).numpy()
    wrong = np.flatnonzero(~np.isfinite(result).all(axis=1))
    if len(wrong):
        raise ValueError(f"the representation of {len(wrong)} of {len(result)} images is not finite, first: {wrong[0]}")
    return result
