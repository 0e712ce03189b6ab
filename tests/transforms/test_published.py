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

"""Against arrays and distributions of the published implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from conrec_monai.transforms import (
    RandColorJitter,
    RandGrayscale,
    RandInPaint,
    RandLocalPixelShuffle,
    RandOutPaint,
    RandResizedCrop,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    grayscale,
    intensity_curve,
)


@pytest.fixture(scope="module")
def exact(oracles):
    return np.load(oracles / "augmentation_exact.npz")


@pytest.fixture(scope="module")
def statistics(oracles):
    return np.load(oracles / "augmentation_statistics.npz")


def _check(output: torch.Tensor, expected: np.ndarray, atol: float = 1e-4) -> None:
    np.testing.assert_allclose(output[0].numpy(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "function", "atol"),
    [
        ("brightness", adjust_brightness, 1e-4),
        ("contrast", adjust_contrast, 1e-4),
        ("saturation", adjust_saturation, 2e-3),
        ("hue", adjust_hue, 2e-3),
    ],
)
@pytest.mark.parametrize("case", range(4))
def test_color(exact, name, function, atol, case):
    value = torch.tensor(exact["hue_deltas" if name == "hue" else "factors"][case], dtype=torch.float32)
    _check(function(torch.tensor(exact["image"])[None], value.view(1, 1, 1, 1)), exact[f"{name}_{case}"], atol)


def test_grayscale(exact):
    _check(grayscale(torch.tensor(exact["image"])[None]), exact["gray"])


@pytest.mark.parametrize("case", range(4))
def test_blur(exact, case):
    kernel_size = int(exact["blur_side_over_10"][case]) // 2 * 2 + 1
    sigma = torch.tensor([exact["blur_sigma"][case]], dtype=torch.float32)
    _check(gaussian_blur(torch.tensor(exact["image"])[None], sigma, kernel_size, "zeros"), exact[f"blur_{case}"])


@pytest.mark.parametrize("case", range(3))
def test_crop_and_resize(exact, case):
    boxes = exact["crop_boxes_y_x_h_w"][case : case + 1]
    crop = RandResizedCrop(48)
    output = crop.apply(torch.tensor(exact["image"])[None], {"box": boxes})
    _check(output, np.clip(exact[f"crop_resize_{case}"], 0, 1))


@pytest.mark.parametrize("case", range(4))
def test_curve(exact, case):
    image = torch.tensor(exact["curve_image"]).view(1, 1, *exact["curve_image"].shape[-2:])
    points = torch.tensor(exact[f"curve_points_{case}"], dtype=torch.float32)[None]
    decreasing = torch.tensor([bool(exact[f"curve_decreasing_{case}"])])
    _check(intensity_curve(image, points, decreasing), exact[f"curve_{case}"].reshape(image.shape[1:]))


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize(
    ("name", "transform"),
    [("shuffle", RandLocalPixelShuffle()), ("inpaint", RandInPaint()), ("outpaint", RandOutPaint())],
)
def test_masking_distribution(statistics, name, transform, size):
    expected = statistics[f"changed_fraction_{name}_{size}"]
    transform.set_random_state(0)
    noise = torch.rand(len(expected), 3, size, size, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    changed = [((transform.batch(x) - x).abs() > 1e-6).any(1).float().mean((1, 2)) for x in noise.split(20)]
    assert ks_2samp(expected, torch.cat(changed).numpy()).pvalue > 0.001


def test_jitter_distribution(statistics):
    expected = statistics["jitter_channel_mean_std_isgray"]
    image = torch.tensor(statistics["jitter_image"]).permute(2, 0, 1)
    images = image.repeat(len(expected), 1, 1, 1)
    output = RandGrayscale().set_random_state(1).batch(RandColorJitter().set_random_state(0).batch(images))
    found = torch.cat([output.mean((2, 3)), output.std((2, 3), unbiased=False)], dim=1).numpy()
    for i in range(6):  # rounded: a fifth of the images is unchanged, the same up to the last digits
        assert ks_2samp(expected[:, i].round(4), found[:, i].round(4)).pvalue > 0.001
    gray = ((output - output[:, :1]).abs().amax((1, 2, 3)) < 1e-6).float().mean().item()
    assert gray == pytest.approx(expected[:, 6].mean(), abs=4 * (2 * 0.2 * 0.8 / len(expected)) ** 0.5)


def test_crop_distribution(statistics):
    expected = statistics["crop_y_x_h_w_64"]
    boxes = RandResizedCrop(64).set_random_state(0).randomize(len(expected), (3, 64, 64))["box"]
    for i in range(4):
        assert ks_2samp(expected[:, i], boxes[:, i]).pvalue > 0.001
    for statistic in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2]):
        assert ks_2samp(statistic(expected), statistic(boxes)).pvalue > 0.001
