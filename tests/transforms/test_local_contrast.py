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

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy import ndimage

from conrec_monai.data import fundus_phantom
from conrec_monai.transforms import LocalContrast, LocalContrastd, NormalizeFieldOfView, field_of_view_mask

MASK = field_of_view_mask(64)


def _retina(color: tuple[float, ...]) -> np.ndarray:
    """One color on black, float32 [channels, 64, 64]."""
    return (np.array(color, np.float32)[:, None, None] * MASK).astype(np.float32)


# --- what is taken away -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("color", [(0.7, 0.4, 0.2), (0.04, 0, 0), (1, 1, 1), (0, 0, 0.5), (0.3,), (0.2, 0.9, 0.1, 0.5)])
def test_one_color_becomes_gray_up_to_its_rim(color):
    result = LocalContrast()(_retina(color))
    np.testing.assert_allclose(result[:, MASK], 0.5, atol=1e-5)
    assert not result[:, ~MASK].any() and result.shape == (len(color), 64, 64)


def test_what_is_dark_in_all_channels_is_outside():
    image = np.full((3, 16, 16), 60, np.uint8)
    image[:, :, :3] = 8  # noise of the surround; it has no part in the mean
    image[:, :, 3] = np.array([8, 8, 9])[:, None]
    image[:, :, 4:] = np.array([8, 8, 9])[:, None, None]
    result = LocalContrast()(image)
    assert not result[:, :, :3].any() and np.isin(result[:, :, 3:], (127, 128)).all()  # of 127.5
    assert not LocalContrast()(np.zeros((3, 5, 5), np.uint8)).any()


def test_color_and_illumination_are_gone():
    image = _retina((0.4, 0.4, 0.4)) + 0.02 * np.random.RandomState(0).rand(3, 64, 64).astype(np.float32) * MASK
    expected = LocalContrast()(image)
    cast = LocalContrast()(image + _retina((0.3, -0.1, 0.05)))
    np.testing.assert_allclose(cast, expected, atol=1e-5)
    slope = np.linspace(-0.05, 0.05, 64, dtype=np.float32)
    lit = np.abs(LocalContrast()(image + slope * MASK) - expected)
    # A slope is its own mean where the Gaussian, of 4 pixels, sees both sides of a pixel.
    assert lit[:, 28:36, 17:47].max() < 1e-3 and lit.max() < 3 * 0.1 / 16


# --- what is left -----------------------------------------------------------------------------------------------------


def test_spot_by_hand():
    image = _retina((0.5, 0.5, 0.5))
    image[1, 32, 30] += 0.1
    image[2, 32, 30] -= 0.1
    result = LocalContrast()(image)
    rest = 1 - 1 / (2 * np.pi * 4**2)  # of a single pixel, less its own share of the mean
    assert result[:, 32, 30] == pytest.approx([0.5, 0.5 + 0.3 * rest, 0.5 - 0.3 * rest], abs=1e-4)
    assert result[1, 32, 31] == pytest.approx(0.5 - 0.3 * np.exp(-1 / 32) / (2 * np.pi * 16), abs=1e-4)
    assert LocalContrast(gain=1)(image)[1, 32, 30] == pytest.approx(0.5 + 0.1 * rest, abs=1e-4)
    assert LocalContrast(gain=9)(image)[1:, 32, 30].tolist() == [1, 0]  # clipped


@pytest.mark.parametrize(("sigma", "gain"), [(1 / 16, 3.0), (0.1, 2), (0.03, 8)])
def test_formula(sigma, gain):
    image = NormalizeFieldOfView(40)(fundus_phantom(4, 64, 1) / 255)[:, :, :36]  # sigma is one of the shorter side
    mask = field_of_view_mask(40)[:, :36]
    share = ndimage.gaussian_filter(mask.astype(float), 36 * sigma, mode="constant")
    mean = np.stack([ndimage.gaussian_filter(channel, 36 * sigma, mode="constant")[mask] for channel in image])
    expected = np.clip(0.5 + gain * (image[:, mask] - mean / share[mask]), 0, 1)
    dark = expected.max(axis=0) < 9 / 255
    expected[:, dark] = 9 / 255
    assert dark.any() == (gain == 8) and (expected.std(axis=1) > 0.01).all()
    result = LocalContrast(sigma, gain)(image)
    np.testing.assert_allclose(result[:, mask], expected, atol=1e-5)
    assert not result[:, ~mask].any()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 3, 4]), st.integers(1, 40), st.integers(0, 255), st.floats(0.01, 1), st.integers(0, 9))
def test_any_image_flipped_and_turned(channels, size, high, sigma, seed):
    image = np.random.RandomState(seed).randint(0, high + 1, (channels, size, size)).astype(np.float32) / 255
    transform = LocalContrast(sigma)
    result = transform(image)
    assert result.shape == image.shape and result.min() >= 0 and result.max() <= 1
    np.testing.assert_allclose(transform(image[:, :, ::-1]), result[:, :, ::-1], atol=1e-5)
    for turns in (1, 2, 3):
        turned = np.rot90(image, turns, (1, 2))
        np.testing.assert_allclose(transform(turned), np.rot90(result, turns, (1, 2)), atol=1e-5)


# --- types ------------------------------------------------------------------------------------------------------------


def test_types_agree_within_rounding():
    image = NormalizeFieldOfView(64)(fundus_phantom(3, 96, 2))
    transform = LocalContrast()
    exact = transform(image / 255)
    for kind, high, tolerance in (
        (np.uint8, 255, 0.5 / 255),
        (np.uint16, 65535, 0.5 / 65535),
        (np.float32, 1, 0),
        (np.float16, 1, 5e-3),
    ):
        array = (image / 255 * high).round().astype(kind) if high > 1 else (image / 255).astype(kind)
        before = array.copy()
        result = transform(array)
        assert result.dtype == kind and (array == before).all()
        np.testing.assert_allclose(result.astype(np.float64) / high, exact, atol=tolerance + 1e-5)
    assert exact.dtype == np.float64


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_arrays_tensors_and_dictionaries(kind):
    image = NormalizeFieldOfView(32)(fundus_phantom(2, 64, 3))
    image = image if kind is np.uint8 else (image / 255).astype(kind)
    tensor, meta = torch.from_numpy(image.copy()), MetaTensor(torch.from_numpy(image.copy()))
    expected = LocalContrast()(image)
    for one in (tensor, meta):
        result = LocalContrast()(one)
        assert type(result) is type(one) and result.dtype == one.dtype
        assert (np.asarray(result) == expected).all() and (np.asarray(one) == image).all()
    assert (LocalContrast()(image[:1]) == expected[:1]).all()  # a channel by itself: red is the brightest one
    data = {"a": image, "b": tensor, "c": image, "d": 1}
    found = LocalContrastd(["a", "b"], sigma=0.1, gain=2)(data)
    assert found["c"] is image and found["d"] == 1 and data["a"] is image and data["b"] is tensor
    assert (found["a"] == LocalContrast(0.1, 2)(image)).all() and (found["b"].numpy() == found["a"]).all()
    assert list(LocalContrastd(["a", "e"], allow_missing_keys=True)(data)) == ["a", "b", "c", "d"]
    with pytest.raises(KeyError, match="e"):
        LocalContrastd(["a", "e"])(data)


@pytest.mark.parametrize("name", ["sigma", "gain"])
@pytest.mark.parametrize("value", [0, -1.5, float("nan"), float("inf")])
def test_arguments_that_are_not_positive(name, value):
    for call in (lambda: LocalContrast(**{name: value}), lambda: LocalContrastd("image", **{name: value})):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == f"{name} must be positive, got {value!r}."


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), "the image must be of shape CHW, got (8, 8)."),
        (np.zeros((2, 3, 8, 8), np.uint8), "the image must be of shape CHW, got (2, 3, 8, 8)."),
        (np.zeros((3, 0, 8), np.uint8), "the image must be of shape CHW, got (3, 0, 8)."),
        (np.zeros((3, 8, 8), bool), "images must be uint8, uint16 or floating point in [0, 1], got bool."),
        (np.zeros((3, 8, 8), np.int64), "images must be uint8, uint16 or floating point in [0, 1], got int64."),
        (np.full((3, 8, 8), 1.5), "floating point images must have values in [0, 1], found 1.5 to 1.5."),
        (np.full((3, 8, 8), -0.5), "floating point images must have values in [0, 1], found -0.5 to -0.5."),
        (np.full((3, 8, 8), np.nan), "floating point images must have values in [0, 1], found nan to nan."),
    ],
)
def test_images_that_are_none(image, message):
    for one in (image, torch.from_numpy(image)):
        with pytest.raises(ValueError) as error:
            LocalContrast()(one)
        assert str(error.value) == message
