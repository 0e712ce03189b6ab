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
from scipy.ndimage import map_coordinates

from conrec_monai.transforms import (
    RandCropFlip,
    RandCropFlipd,
    RandHorizontalFlip,
    RandResizedCrop,
    RandVerticalFlip,
    RandVerticalFlipd,
    RandZoom,
    RandZoomd,
    RandZoomFlip,
    RandZoomFlipd,
)
from conrec_monai.transforms.base import take

TWINS = [
    (RandZoom, RandZoomd, {}),
    (RandVerticalFlip, RandVerticalFlipd, {}),
    (RandZoomFlip, RandZoomFlipd, {}),
    (RandCropFlip, RandCropFlipd, {"size": 32}),
]


def _images(n: int = 12, channels: int = 3, size: int = 40) -> torch.Tensor:
    return torch.rand(n, channels, size, size + 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("array", "dictionary", "arguments"), TWINS)
def test_batched_equals_per_sample_equals_dictionary(array, dictionary, arguments):
    images = _images()
    transform = array(**arguments).set_random_state(3)
    params = transform.randomize(len(images), images.shape[1:])
    before = images.clone()
    output = transform.apply(images, params)
    assert torch.equal(images, before) and not torch.equal(output[:, :, :32, :32], images[:, :, :32, :32])
    for i, image in enumerate(images):
        torch.testing.assert_close(transform.apply(image[None], take(params, [i]))[0], output[i], rtol=0, atol=1e-6)
    single = transform.set_random_state(5)(images[0])
    twin = dictionary(keys=["a", "b"], **arguments).set_random_state(5)({"a": images[0], "b": images[0], "c": 1})
    assert torch.equal(twin["a"], single) and torch.equal(twin["b"], single) and twin["c"] == 1


@settings(deadline=None, max_examples=25)
@given(
    zoom=st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
)
def test_zoom_against_scipy(zoom, height, width):
    image = np.random.RandomState(0).rand(height, width)
    y = (np.arange(height) - (height - 1) / 2) / zoom[0] + (height - 1) / 2
    x = (np.arange(width) - (width - 1) / 2) / zoom[1] + (width - 1) / 2
    padded = np.pad(image, 1)  # zeros from outside, and linear on the way there
    expected = map_coordinates(padded, np.meshgrid(y + 1, x + 1, indexing="ij"), order=1, cval=0)
    output = RandZoom().apply(torch.from_numpy(image).float()[None, None], {"zoom": np.array([zoom])})
    np.testing.assert_allclose(output[0, 0], expected, atol=1e-5)


def test_zoom_by_hand():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2] = 1  # a bright row through the center
    shrunk, enlarged = (
        RandZoom().apply(image, {"zoom": np.array([factors])})[0, 0] for factors in ((1.0, 0.5), (2.0, 1.0))
    )
    assert shrunk.tolist() == [[0] * 5, [0] * 5, [0, 1, 1, 1, 0], [0] * 5, [0] * 5]  # black at the sides
    assert enlarged[:, 0].tolist() == [0, 0.5, 1, 0.5, 0]  # twice as high
    assert torch.equal(RandZoom((1, 1)).batch(image), image)


def test_zoom_draws_each_axis_for_itself():
    zoom = RandZoom().set_random_state(0).randomize(4000, (3, 8, 8))["zoom"]
    assert zoom.shape == (4000, 2) and zoom.min() >= 0.85 and zoom.max() <= 1.15
    np.testing.assert_allclose(zoom.mean(0), 1, atol=0.01)
    np.testing.assert_allclose(zoom.std(0), 0.3 / 12**0.5, rtol=0.05)
    assert abs(np.corrcoef(zoom.T)[0, 1]) < 0.05


def test_vertical_flip():
    images = _images(2)
    assert torch.equal(RandVerticalFlip(1.0).batch(images), images.flip(2))
    assert torch.equal(RandVerticalFlip(0.0).batch(images), images)
    share = RandVerticalFlip().set_random_state(0).randomize(4000, (3, 8, 8))["flip"].mean()
    assert abs(share - 0.5) < 5 * 0.5 / 4000**0.5


def test_zoom_flip_is_its_three_steps_with_draws_of_their_own():
    images = _images(400, size=8)
    augment = RandZoomFlip().set_random_state(1)
    params = augment.randomize(400, images.shape[1:])
    flips = [params[name]["flip"] for name in ("horizontal", "vertical")]
    assert abs(np.corrcoef(*flips)[0, 1]) < 0.2
    expected = RandZoom().apply(images, params["zoom"])
    for flip, dim in zip(flips, (-1, -2), strict=True):
        expected[flip] = expected[flip].flip(dim)
    assert torch.equal(augment.apply(images, params), expected)


def test_crop_flip_is_its_two_steps():
    images = _images()
    augment = RandCropFlip(16).set_random_state(1)
    params = augment.randomize(12, images.shape[1:])
    cropped = RandResizedCrop(16).apply(images, params["crop"])
    assert torch.equal(augment.apply(images, params), RandHorizontalFlip().apply(cropped, params["flip"]))


@pytest.mark.parametrize("augment", [RandZoomFlip(), RandCropFlip(30)])
def test_one_state_drives_every_step(augment):
    images = (_images() * 255).to(torch.uint8)
    first, second = (augment.set_random_state(7).batch(images) for _ in range(2))
    third = augment.batch(images)
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert first.dtype == torch.float32 and 0 <= first.min() and first.max() <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RandZoom((0, 1)), r"zoom must be two increasing positive numbers, got \(0, 1\)"),
        (lambda: RandZoom((1.2, 0.8)), "zoom"),
        (lambda: RandZoom((float("nan"), 1)), "zoom"),
        (lambda: RandVerticalFlip(1.5), "prob"),
        (lambda: RandCropFlip(0), "size"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
