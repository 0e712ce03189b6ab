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

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from conrec_monai.transforms.base import BatchRandTransform, Params, on_device, separable, update_where

__all__ = ["RandHorizontalFlip", "RandResizedCrop", "RandRotatedCrop", "RandVerticalFlip", "RandZoom"]

ATTEMPTS = 100  # to draw a large enough crop


def _cubic_rows(batch: Tensor, start: np.ndarray, length: np.ndarray, out_size: int) -> Tensor:
    """Rows of images BCHW from start to start + length, resampled to BC[out_size]W by cubic convolution.

    As published: a = -0.75, no antialiasing, output row j at ``j * length / out_size`` of the window (its corner, not
    its center), taps outside the window repeat its border.
    """
    position = np.arange(out_size) * (length[:, None] / out_size)
    taps = np.floor(position).astype(np.int64) + np.arange(-1, 3)[:, None, None]
    x = np.abs(position - taps)
    weights = np.where(x <= 1, (1.25 * x - 2.25) * x * x + 1, -0.75 * (((x - 5) * x + 8) * x - 4))
    taps = np.clip(taps, 0, length[:, None] - 1) + start[:, None]
    b, c, height, width = batch.shape
    rows = batch.reshape(b * c * height, width)
    first = torch.arange(0, b * c * height, height, device=batch.device).view(b, c, 1)
    taken = batch.new_empty(b * c * out_size, width)
    result = batch.new_empty(b, c, out_size, width)
    factors = on_device(weights[:, :, None, :, None], batch, batch.dtype)
    for number, (tap, weight) in enumerate(zip(on_device(taps[:, :, None], batch), factors, strict=True)):
        torch.index_select(rows, 0, (first + tap).flatten(), out=taken)
        if number:
            result.addcmul_(taken.view_as(result), weight)
        else:
            torch.mul(taken.view_as(result), weight, out=result)
    return result


def _check_crop(size: int, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    if size < 1:
        raise ValueError(f"size must be positive, got {size}.")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale must be two increasing numbers in (0, 1], got {scale}.")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio must be two increasing positive numbers, got {ratio}.")


class RandResizedCrop(BatchRandTransform):
    """Random crop, resized to a square by bicubic interpolation and clipped to [0, 1].

    The aspect ratio r (width / height) is uniform; the height is a uniform integer from round(sqrt(scale[0] H W / r))
    to the largest that fits into the image and under the area scale[1] H W, the width round(height * r); redrawn while
    the area is under ``min_area`` H W, after 100 attempts the whole image. The corner is a uniform integer below
    H - height (W - width).
    Source: arXiv 2104.04323 (views); parameters of the published implementation.

    Args:
        size: side of the result in pixels.
        scale: smallest and largest area of the crop over that of the image.
        ratio: range of the aspect ratio.
        min_area: area over that of the image under which a crop is redrawn.

    Raises:
        ValueError: when an argument is out of its range.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        min_area: float = 0.1,
    ) -> None:
        _check_crop(size, scale, ratio)
        if not 0 <= min_area < 0.7 * scale[1]:  # every aspect ratio must leave crops that are large enough
            raise ValueError(f"min_area must be from 0 to 0.7 of the largest scale {scale[1]}, got {min_area}.")
        self.size, self.scale, self.ratio, self.min_area = size, tuple(scale), tuple(ratio), min_area

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws ``box``: n integer boxes (y, x, height, width)."""
        height, width = shape[-2:]
        area = height * width
        boxes = np.empty((n, 4), dtype=np.int64)
        todo = np.arange(n)
        for _ in range(ATTEMPTS):
            ratio = self.R.uniform(*self.ratio, size=len(todo))
            high = np.minimum(height, np.sqrt(self.scale[1] * area / ratio) + 1).astype(np.int64)
            high = np.minimum(high, ((width + 1) / ratio).astype(np.int64))
            for _step in range(3):  # at most two too high
                w = np.rint(high * ratio)
                high = high - ((high > 1) & ((w > width) | (high * w > self.scale[1] * area)))
            low = np.minimum(np.rint(np.sqrt(self.scale[0] * area / ratio)).astype(np.int64), high)
            h = self.R.randint(np.maximum(low, 1), high + 1)
            w = np.clip(np.rint(h * ratio).astype(np.int64), 1, width)
            y = self.R.randint(0, np.maximum(height - h, 1))
            x = self.R.randint(0, np.maximum(width - w, 1))
            large = h * w >= self.min_area * area
            boxes[todo[large]] = np.stack([y, x, h, w], axis=1)[large]
            todo = todo[~large]
            if not len(todo):
                break
        boxes[todo] = (0, 0, height, width)  # too long and narrow an image for any such crop
        return {"box": boxes}

    def apply(self, batch: Tensor, params: Params) -> Tensor:
        """BCHW -> BC[size][size]."""
        y, x, h, w = np.asarray(params["box"]).T
        # the columns as rows of the transposed image: whole rows are copied many times as fast
        lying = _cubic_rows(batch, y, h, self.size).transpose(2, 3).contiguous()
        return _cubic_rows(lying, x, w, self.size).transpose(2, 3).clamp(0, 1).contiguous()


class RandRotatedCrop(BatchRandTransform):
    """Random rectangle of the image after a rotation about its center by any angle, resized to a square.

    For a photograph that has no side which must be up, as that of a retina: its circle stays where it is. The area is
    uniform in ``scale``, the aspect ratio (width / height) log-uniform in ``ratio``, a side that would be longer than
    the image's is cut to it; the place is uniform. One bilinear interpolation, black where nothing is.

    Args:
        size: side of the result in pixels.
        scale: smallest and largest area of the crop over that of the image.
        ratio: range of the aspect ratio.

    Raises:
        ValueError: when an argument is out of its range.
    """

    def __init__(
        self, size: int, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
    ) -> None:
        _check_crop(size, scale, ratio)
        self.size, self.scale, self.ratio = size, tuple(scale), tuple(ratio)

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws ``theta``, shape n23: from places in the result to those in the image, both from -1 to 1 (x, y)."""
        area, ratio = self.R.uniform(*self.scale, size=n), np.exp(self.R.uniform(*np.log(self.ratio), size=n))
        long = shape[-2] / shape[-1]
        ratio = ratio * long
        sides = np.minimum(np.sqrt([area * ratio, area / ratio]), 1)  # width and height over those of the image
        center = self.R.uniform(-1, 1, size=(2, n)) * (1 - sides)
        angle = self.R.uniform(0, 2 * np.pi, size=n)
        rotation = np.array([[np.cos(angle), -np.sin(angle) * long], [np.sin(angle) / long, np.cos(angle)]])  # 2, 2, n
        theta = np.concatenate([rotation * sides, np.einsum("ijn,jn->in", rotation, center)[:, None]], axis=1)
        return {"theta": theta.transpose(2, 0, 1)}

    def apply(self, batch: Tensor, params: Params) -> Tensor:
        """BCHW -> BC[size][size]."""
        theta = on_device(params["theta"], batch, torch.float32)
        grid = F.affine_grid(theta, [len(batch), batch.shape[1], self.size, self.size], align_corners=False)
        # rounding of the interpolation may leave the range
        return F.grid_sample(batch, grid, mode="bilinear", align_corners=False).clamp_(0, 1)


def _linear_matrix(zoom: Tensor, size: int) -> Tensor:
    """Matrices B[size][size] that enlarge by factors B about the center, bilinear, with zeros from outside."""
    offset = torch.arange(size, device=zoom.device) - (size - 1) / 2
    return (1 - (offset[:, None] / zoom[:, None, None] - offset).abs()).clamp(min=0)


class RandZoom(BatchRandTransform):
    """Enlarges or shrinks the image about its center, height and width by factors of their own, uniform in ``zoom``.

    The result has the size of the image: what is enlarged is cut, what is shrunk stands on black. Bilinear.
    Source: arXiv 2104.04323 (augmentation of the fine-tuning on graded photographs).

    Args:
        zoom: range of the factors; above 1 the image is enlarged.

    Raises:
        ValueError: when ``zoom`` is no increasing pair of positive numbers.
    """

    def __init__(self, zoom: tuple[float, float] = (0.85, 1.15)) -> None:
        if not 0 < zoom[0] <= zoom[1] < math.inf:
            raise ValueError(f"zoom must be two increasing positive numbers, got {zoom}.")
        self.zoom = tuple(zoom)

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws ``zoom``: n pairs of factors (height, width)."""
        return {"zoom": self.R.uniform(*self.zoom, size=(n, 2))}

    def apply(self, batch: Tensor, params: Params) -> Tensor:
        y, x = on_device(params["zoom"], batch, torch.float32).unbind(1)
        rows, columns = _linear_matrix(y, batch.shape[2]), _linear_matrix(x, batch.shape[3])
        return separable(batch, rows, columns).clamp_(0, 1)


class _RandFlip(BatchRandTransform):
    dim: int

    def __init__(self, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be in [0, 1], got {prob}.")
        self.prob = prob

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws ``flip``: n booleans."""
        return {"flip": self.R.uniform(size=n) < self.prob}

    def apply(self, batch: Tensor, params: Params) -> Tensor:
        return update_where(batch, params["flip"], lambda x, _: x.flip(self.dim))


class RandHorizontalFlip(_RandFlip):
    """Flips left and right with probability ``prob``.

    Raises:
        ValueError: when ``prob`` is not in [0, 1].
    """

    dim = -1


class RandVerticalFlip(_RandFlip):
    """Flips top and bottom with probability ``prob``.

    Raises:
        ValueError: when ``prob`` is not in [0, 1].
    """

    dim = -2
