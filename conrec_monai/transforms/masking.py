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

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from conrec_monai.transforms.base import BatchRandTransform, Params, column, on_device, take, update_where
from conrec_monai.transforms.intensity import RandIntensityCurve

__all__ = ["MIN_MASKING_SIZE", "RandInPaint", "RandLocalPixelShuffle", "RandMasking", "RandOutPaint"]

# The published window sizes are empty ranges below this height or width.
MIN_MASKING_SIZE = 25
BORDER = 3
FILLS = ("random", "mean")


def _checked_fill(fill: str) -> str:
    if fill not in FILLS:
        raise ValueError(f"fill must be one of {', '.join(FILLS)}, got {fill!r}.")
    return fill


def check_masking_size(shape: Sequence[int]) -> tuple[int, int]:
    height, width = shape[-2:]
    if min(height, width) < MIN_MASKING_SIZE:
        raise ValueError(f"maskings need images of at least {MIN_MASKING_SIZE} px a side, got {height} x {width}.")
    return height, width


def _noise(seed: Tensor, counter: Tensor) -> Tensor:
    """Counter-based noise: an integer in [0, 2^32) for each seed and counter (both below 2^32), different ones for the
    counters of a seed.

    An integer hash of both: the same numbers on every device, sample by sample.
    """
    x = (seed * 0x9E3779B1 + counter) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _inside(windows: np.ndarray, like: Tensor) -> Tensor:
    """Masks BK1HW, 1 inside the windows (y, x, height, width), shape BK4, 0 outside."""
    y, x, h, w = on_device(windows, like)[..., None].unbind(2)
    rows, columns = torch.arange(like.shape[2], device=like.device), torch.arange(like.shape[3], device=like.device)
    inside_rows, inside_columns = (rows >= y) & (rows < y + h), (columns >= x) & (columns < x + w)
    return (inside_rows[..., None].to(like.dtype) * inside_columns[..., None, :].to(like.dtype))[:, :, None]


class RandLocalPixelShuffle(BatchRandTransform):
    """Shuffles the pixels inside small windows; whole pixels, all channels together.

    Up to ``max_windows`` windows with sides of 1 to int(0.2 S) - 1 (S: side of the image), each drawn with probability
    ``prob`` if all before it were. A window's new content always comes from the unshuffled image. Source: arXiv
    2104.04323 (maskings); the "local pixel shuffling" of Models Genesis, arXiv 1908.06912.

    Args:
        max_windows: largest number of windows.
        prob: probability to go on with a further window.

    Raises:
        ValueError: for images smaller than 25 px.
    """

    def __init__(self, max_windows: int = 15, prob: float = 0.99) -> None:
        self.max_windows, self.prob = max_windows, prob

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws ``windows`` (y, x, height, width), shape nK4, height 0 for none, and ``seed``, shape nK."""
        height, width = check_masking_size(shape)
        size = (n, self.max_windows)
        h, w = (self.R.randint(1, int(0.2 * s), size=size) for s in (height, width))
        y, x = self.R.randint(0, height - h), self.R.randint(0, width - w)
        h = h * np.logical_and.accumulate(self.R.uniform(size=size) < self.prob, axis=1)
        seed = self.R.randint(0, 2**32, size=size, dtype=np.int64)
        return {"windows": np.stack([y, x, h, w], axis=-1), "seed": seed}

    def apply(self, batch: Tensor, params: Params) -> Tensor:
        area = params["windows"][..., 2:].prod(axis=-1).reshape(-1)
        count = int(area.sum())
        if not count:
            return batch
        # One entry for each pixel of each window, window by window: `place` counts them within their window.
        n, k = params["seed"].shape
        size = batch.shape[2] * batch.shape[3]
        window = torch.repeat_interleave(
            torch.arange(n * k, device=batch.device), on_device(area, batch), output_size=count
        )
        start = on_device(np.cumsum(area) - area, batch)
        place = torch.arange(count, device=batch.device) - start[window]
        y, x, _, w = on_device(params["windows"].reshape(-1, 4), batch).T[:, window]
        pixel = (window // k) * size + (y + place // w) * batch.shape[3] + x + place % w  # of all images, in a row
        noise = _noise(on_device(params["seed"].reshape(-1), batch)[window], place)
        shuffled = pixel[((window << 32) | noise).argsort()]  # no two entries of a window have the same noise
        # A later window overwrites an earlier one: of the entries of a pixel the largest, which starts with its window.
        total = n * size
        source = torch.zeros(total, dtype=torch.int64, device=batch.device)
        source.scatter_reduce_(0, pixel, (window % k + 1) * total + shuffled, "amax")
        source = source[pixel] % total
        flat = batch.transpose(0, 1).reshape(batch.shape[1], total)
        flat = flat.index_copy(1, pixel, flat[:, source])
        return flat.view(batch.shape[1], n, *batch.shape[2:]).transpose(0, 1).contiguous()


class RandInPaint(BatchRandTransform):
    """Covers small windows with one color each.

    Up to 5 windows with sides of int(0.14 S) to int(0.2 S) - 1 (S: side of the image), at least 3 px from the border,
    each drawn with probability 0.95 if all before it were. Source: arXiv 2104.04323 (maskings); the "in-painting" of
    Models Genesis, arXiv 1908.06912.

    Args:
        fill: "random", a random color for each window, as published, or "mean", the mean color of the image.

    Raises:
        ValueError: for another ``fill``, and for images smaller than 25 px.
    """

    max_windows = 5
    prob = 0.95

    def __init__(self, fill: str = "random") -> None:
        self.fill = _checked_fill(fill)

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws ``windows`` (y, x, height, width), shape nK4, height 0 for none, and random ``color``, shape nKC."""
        height, width = check_masking_size(shape)
        size = (n, self.max_windows)
        h, w = (self.R.randint(int(0.14 * s), int(0.2 * s), size=size) for s in (height, width))
        y, x = self.R.randint(BORDER, height - h - BORDER), self.R.randint(BORDER, width - w - BORDER)
        h = h * np.logical_and.accumulate(self.R.uniform(size=size) < self.prob, axis=1)
        windows = {"windows": np.stack([y, x, h, w], axis=-1)}
        return {**windows, "color": self.R.uniform(size=(*size, shape[0]))} if self.fill == "random" else windows

    def apply(self, batch: Tensor, params: Params) -> Tensor:
        inside = _inside(params["windows"], batch)
        if self.fill == "mean":
            colors = batch.mean(dim=(2, 3), keepdim=True)[:, None].expand(-1, inside.shape[1], -1, -1, -1)
        else:
            colors = on_device(params["color"], batch, torch.float32)[..., None, None]
        uncovered = torch.ones_like(inside[:, 0])
        painted = torch.zeros_like(batch)
        for k in reversed(range(inside.shape[1])):  # a later window lies over an earlier one
            visible = inside[:, k] * uncovered
            painted.addcmul_(visible, colors[:, k])
            uncovered -= visible
        return painted.addcmul_(batch, uncovered)


class RandOutPaint(BatchRandTransform):
    """Covers all but a few large windows with one color.

    Up to 5 windows, the first certain, the others each with probability 0.95 if all before it were, with sides from
    S - (3S // 7 - 1) to S - 2S // 7 (S: side of the image), at least 3 px from the border. Source: arXiv 2104.04323
    (maskings); the "out-painting" of Models Genesis, arXiv 1908.06912.

    Args:
        fill: "random", a random color, as published, or "mean", the mean color of the image.

    Raises:
        ValueError: for another ``fill``, and for images smaller than 25 px.
    """

    max_windows = 5
    prob = 0.95

    def __init__(self, fill: str = "random") -> None:
        self.fill = _checked_fill(fill)

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws ``windows`` (y, x, height, width), shape nK4, height 0 for none, and random ``color``, shape nC."""
        height, width = check_masking_size(shape)
        size = (n, self.max_windows)
        h, w = (s - self.R.randint(2 * s // 7, 3 * s // 7, size=size) for s in (height, width))
        y, x = self.R.randint(BORDER, height - h - BORDER), self.R.randint(BORDER, width - w - BORDER)
        drawn = self.R.uniform(size=size) < self.prob
        drawn[:, 0] = True
        h = h * np.logical_and.accumulate(drawn, axis=1)
        windows = {"windows": np.stack([y, x, h, w], axis=-1)}
        return {**windows, "color": self.R.uniform(size=(n, shape[0]))} if self.fill == "random" else windows

    def apply(self, batch: Tensor, params: Params) -> Tensor:
        visible = _inside(params["windows"], batch).amax(dim=1)
        mean = self.fill == "mean"
        color = batch.mean(dim=(2, 3), keepdim=True) if mean else column(params["color"], batch)
        return (batch * visible).addcmul_(1 - visible, color)


class RandMasking(BatchRandTransform):
    """One of the maskings at random: local pixel shuffling, in-painting or out-painting, with equal probabilities.

    For images of one channel the shuffling has always 15 windows, and a non-linear intensity curve
    (:class:`RandIntensityCurve`) is a fourth possibility. Source: arXiv 2104.04323 (maskings).

    Args:
        fill: of the painted windows, see :class:`RandInPaint`.

    Raises:
        ValueError: when an argument is out of its range, and for images smaller than 25 px.
    """

    def __init__(self, fill: str = "random") -> None:
        color = (RandLocalPixelShuffle(), RandInPaint(fill), RandOutPaint(fill))
        gray = (RandLocalPixelShuffle(prob=1.0), RandInPaint(fill), RandOutPaint(fill), RandIntensityCurve())
        self.color: tuple[BatchRandTransform, ...] = color
        self.gray: tuple[BatchRandTransform, ...] = gray
        self.set_random_state(state=self.R)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandMasking:
        super().set_random_state(seed, state)
        for transform in self.color + self.gray:
            transform.set_random_state(state=self.R)
        return self

    def _maskings(self, channels: int) -> tuple[BatchRandTransform, ...]:
        return self.gray if channels == 1 else self.color

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws ``masking``, the index of each sample's masking, and the parameters of every masking by class name."""
        maskings = self._maskings(shape[0])
        params: Params = {"masking": self.R.randint(len(maskings), size=n)}
        for masking in maskings:
            params[type(masking).__name__] = masking.randomize(n, shape)
        return params

    def apply(self, batch: Tensor, params: Params) -> Tensor:
        original = batch
        for i, masking in enumerate(self._maskings(batch.shape[1])):
            masked = partial(_masked, masking, params[type(masking).__name__])
            batch = update_where(batch, params["masking"] == i, masked, in_place=batch is not original)
        return batch


def _masked(masking: BatchRandTransform, params: Params, x: Tensor, chosen: np.ndarray) -> Tensor:
    """Samples with a masking by the parameters at their indices."""
    masked: Tensor = masking.apply(x, take(params, chosen))
    return masked
