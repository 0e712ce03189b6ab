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

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from conrec_monai.transforms.base import BatchRandTransform, Params, column, on_device, separable, update_where

__all__ = [
    "RandColorJitter",
    "RandGaussianBlur",
    "RandGrayscale",
    "RandIntensityCurve",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "gaussian_blur",
    "grayscale",
    "intensity_curve",
]


def adjust_brightness(batch: Tensor, factor: Tensor) -> Tensor:
    """Multiplies images BCHW by a factor per sample (shape B111). Not clipped."""
    return batch * factor


def adjust_contrast(batch: Tensor, factor: Tensor) -> Tensor:
    """Scales images BCHW around the mean of each channel by a factor per sample (shape B111). Not clipped."""
    mean = batch.mean(dim=(2, 3), keepdim=True)
    return mean + (batch - mean) * factor


def adjust_saturation(batch: Tensor, factor: Tensor) -> Tensor:
    """Multiplies the HSV saturation of RGB images BCHW by a factor per sample (shape B111); it ends at 1.

    A channel is V * (1 - S * k) where k depends on the hue alone: the distance to V scales with S.
    """
    value = batch.amax(dim=1, keepdim=True)
    chroma = value - batch.amin(dim=1, keepdim=True)
    # S * factor <= 1 with S = chroma / value; without chroma the distance is 0, whatever it is multiplied by
    scale = torch.minimum(factor, value / chroma.clamp_(min=1e-12))
    distance = (value - batch).mul_(scale)
    return torch.sub(value, distance, out=distance)


def adjust_hue(batch: Tensor, delta: Tensor) -> Tensor:
    """Turns the HSV hue of RGB images BCHW by ``delta`` (fraction of the circle) per sample (shape B111)."""
    value = batch.amax(dim=1, keepdim=True)  # without the index of the maximum, which takes ten times as long
    chroma = value - batch.amin(dim=1, keepdim=True)
    red, green, blue = batch.split(1, dim=1)
    safe = chroma.clamp(min=1e-12)
    hue = torch.where(
        red == value,
        (green - blue).div_(safe),
        torch.where(green == value, (blue - red).div_(safe).add_(2), (red - green).div_(safe).add_(4)),
    )
    # A channel is V - chroma * f; f is 1 up to a distance of 1 from its center on the circle of length 6, 0 from 2 on
    distance = hue + (6 * delta + _per_channel(batch, 3.0, 1.0, -1.0))
    distance.sub_((distance / 6).round_(), alpha=6).abs_()
    fall = torch.sub(2, distance).clamp_(0, 1).mul_(chroma)
    return torch.sub(value, fall, out=fall)


def _per_channel(batch: Tensor, *values: float) -> Tensor:
    """Constants, one for each channel, of shape 1C11; written on the device, as a copy to it would wait for it."""
    return torch.cat([batch.new_full((1, 1, 1, 1), value) for value in values], dim=1)


def grayscale(batch: Tensor) -> Tensor:
    """RGB images BCHW as gray ones with three equal channels (ITU-R 601 luma)."""
    return (batch * _per_channel(batch, 0.2989, 0.587, 0.114)).sum(dim=1, keepdim=True).expand_as(batch)


def _blur_matrix(sigma: Tensor, size: int, kernel_size: int, padding: str) -> Tensor:
    radius = kernel_size // 2
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True))[:, None, :].expand(-1, size, -1)
    taps = torch.arange(size, device=sigma.device)[:, None] + offsets
    if padding == "zeros":
        weights = weights * ((taps >= 0) & (taps < size))
        taps = taps.clamp(0, size - 1)
    else:
        taps = size - 1 - (size - 1 - taps.abs()).abs()
    return weights.new_zeros(len(sigma), size, size).scatter_add_(2, taps.expand(len(sigma), -1, -1), weights)


def gaussian_blur(batch: Tensor, sigma: Tensor, kernel_size: int, padding: str = "reflect") -> Tensor:
    """Blurs images BCHW with a Gaussian per sample, cut off at an odd kernel size.

    Args:
        batch: BCHW.
        sigma: standard deviations in pixels, shape B.
        kernel_size: odd; less than twice the height and width.
        padding: "reflect" (without repeating the border pixel) or "zeros" (darkens the border; the published code).
    """
    rows = _blur_matrix(sigma, batch.shape[2], kernel_size, padding)
    columns = rows if batch.shape[3] == batch.shape[2] else _blur_matrix(sigma, batch.shape[3], kernel_size, padding)
    return separable(batch, rows, columns)


def intensity_curve(batch: Tensor, points: Tensor, decreasing: Tensor, samples: int = 1000) -> Tensor:
    """Maps intensities by a cubic Bezier curve from (0, 0) to (1, 1) per sample.

    Args:
        batch: BCHW, values in [0, 1].
        points: two control points (x, y) per sample, in [0, 1], shape B22.
        decreasing: shape B, bool: the abscissae are sorted and meet the ordinates in reverse, a curve that falls from
            1 to 0; otherwise both are sorted, a curve that rises.
        samples: points of the polygon that stands for the curve.
    """
    t = torch.linspace(0, 1, samples, device=batch.device)
    basis = torch.stack([3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t)])
    curve = points.transpose(1, 2) @ basis + t**3  # B, (x, y), samples; the first control point is 0
    x = curve[:, 0].sort(dim=1).values
    y = torch.where(decreasing[:, None], curve[:, 1].flip(1), curve[:, 1].sort(dim=1).values)
    values = batch.flatten(1)
    right = torch.searchsorted(x, values).clamp(1, samples - 1)
    x0, x1 = x.gather(1, right - 1), x.gather(1, right)
    y0, y1 = y.gather(1, right - 1), y.gather(1, right)
    share = ((values - x0) / (x1 - x0).clamp(min=1e-12)).clamp(0, 1)
    return (y0 + (y1 - y0) * share).view_as(batch)


class RandColorJitter(BatchRandTransform):
    """Random brightness, contrast, saturation and hue, clipped to [0, 1].

    RGB, with probability ``prob``: brightness factor from 1 -+ 0.8 s (not below 0), contrast factor likewise (around
    each channel's own mean), saturation factor likewise and hue shift within 0.2 s of the circle (both in HSV), in
    random order, clipped after each. One channel: contrast and brightness, always, clipped once. Source: arXiv
    2104.04323 (views).

    Args:
        strength: s, not negative.
        prob: probability of the jitter of an RGB image.

    Raises:
        ValueError: when an argument is out of its range, or the images have neither 1 nor 3 channels.
    """

    def __init__(self, strength: float = 1.0, prob: float = 0.8) -> None:
        if not strength >= 0:
            raise ValueError(f"strength must not be negative, got {strength}.")
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be in [0, 1], got {prob}.")
        self.strength, self.prob = strength, prob

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws ``brightness`` and ``contrast``; for RGB also ``saturation``, ``hue``, ``order`` and ``jitter``."""
        if shape[0] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, got {shape[0]}.")
        spread = 0.8 * self.strength
        low, high = max(0.0, 1 - spread), 1 + spread
        params = {name: self.R.uniform(low, high, size=n) for name in ("brightness", "contrast")}
        if shape[0] == 3:
            params["saturation"] = self.R.uniform(low, high, size=n)
            params["hue"] = self.R.uniform(-0.2 * self.strength, 0.2 * self.strength, size=n)
            params["order"] = self.R.uniform(size=(n, 4)).argsort(axis=1)
            params["jitter"] = self.R.uniform(size=n) < self.prob
        return params

    def apply(self, batch: Tensor, params: Params) -> Tensor:
        brightness, contrast = column(params["brightness"], batch), column(params["contrast"], batch)
        if batch.shape[1] == 1:
            return adjust_brightness(adjust_contrast(batch, contrast), brightness).clamp_(0, 1)
        steps = (
            (adjust_brightness, brightness),
            (adjust_contrast, contrast),
            (adjust_saturation, column(params["saturation"], batch)),
            (adjust_hue, column(params["hue"], batch)),
        )
        original = batch
        for place in range(4):
            now = np.where(params["jitter"], params["order"][:, place], -1)
            for step in sorted({*now.tolist()} - {-1}):
                adjust = partial(_adjusted, *steps[step])
                batch = update_where(batch, now == step, adjust, in_place=batch is not original)
        return batch


def _adjusted(function: Callable[[Tensor, Tensor], Tensor], factors: Tensor, x: Tensor, chosen: np.ndarray) -> Tensor:
    """Samples adjusted by the factors at their indices, clipped."""
    return function(x, factors if len(x) == len(factors) else factors[on_device(chosen, x)]).clamp_(0, 1)


class RandGrayscale(BatchRandTransform):
    """Turns RGB images gray with probability ``prob``; they keep three channels.

    Raises:
        ValueError: when ``prob`` is not in [0, 1], or the images do not have 3 channels.
    """

    def __init__(self, prob: float = 0.2) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be in [0, 1], got {prob}.")
        self.prob = prob

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws ``gray``: n booleans."""
        if shape[0] != 3:
            raise ValueError(f"images must have 3 channels (RGB), got {shape[0]}.")
        return {"gray": self.R.uniform(size=n) < self.prob}

    def apply(self, batch: Tensor, params: Params) -> Tensor:
        return update_where(batch, params["gray"], lambda x, _: grayscale(x)).contiguous()


class RandGaussianBlur(BatchRandTransform):
    """Gaussian blur with probability ``prob``; kernel size (H // 10) // 2 * 2 + 1, sigma uniform, in pixels.

    Args:
        prob: probability of a blur.
        sigma: range of the standard deviation in pixels.
        padding: "reflect", or "zeros" as the published code, which darkens the border.

    Raises:
        ValueError: when an argument is out of its range.
    """

    def __init__(self, prob: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0), padding: str = "reflect") -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be in [0, 1], got {prob}.")
        if not 0 < sigma[0] <= sigma[1]:
            raise ValueError(f"sigma must be two increasing positive numbers, got {sigma}.")
        if padding not in ("reflect", "zeros"):
            raise ValueError(f"padding must be 'reflect' or 'zeros', got {padding!r}.")
        self.prob, self.sigma, self.padding = prob, tuple(sigma), padding

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws ``blur``, n booleans, and ``sigma``."""
        return {"blur": self.R.uniform(size=n) < self.prob, "sigma": self.R.uniform(*self.sigma, size=n)}

    def apply(self, batch: Tensor, params: Params) -> Tensor:
        kernel_size = batch.shape[2] // 10 // 2 * 2 + 1

        def blur(x: Tensor, chosen: np.ndarray) -> Tensor:
            sigma = on_device(params["sigma"][chosen], x, torch.float32)
            return gaussian_blur(x, sigma, kernel_size, self.padding).clamp_(0, 1)  # rounding may leave the range

        return update_where(batch, params["blur"], blur)


class RandIntensityCurve(BatchRandTransform):
    """Non-linear intensity curve: a cubic Bezier from (0, 0) to (1, 1) with two random control points.

    With probability 0.5 it falls (about inverts the image), else it rises. See :func:`intensity_curve`.
    """

    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws ``points``, shape n22, and ``decreasing``, n booleans."""
        return {"points": self.R.uniform(size=(n, 2, 2)), "decreasing": self.R.uniform(size=n) < 0.5}

    def apply(self, batch: Tensor, params: Params) -> Tensor:
        points = on_device(params["points"], batch, torch.float32)
        decreasing = on_device(params["decreasing"], batch)
        return intensity_curve(batch, points, decreasing)
