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
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from conrec_monai.data import fundus_phantom, phantom_arrays
from conrec_monai.transforms import find_field_of_view, quality_warnings

EYES = [(grade, seed) for grade in (0, 4) for seed in range(4)]


def _unit(grade: int, seed: int) -> np.ndarray:
    return (fundus_phantom(grade, 256, seed) / 255).astype(np.float32)


def _disc(radius: float, side: int = 200, squash: float = 1.0) -> np.ndarray:
    """A disc of noise on black, CHW uint8."""
    place = np.arange(side) + 0.5 - side / 2
    cover = np.hypot(place[:, None] / squash, place) <= radius
    noise = np.random.RandomState(0).uniform(0.8, 1.2, (side, side))
    return (np.array([160, 100, 50])[:, None, None] * noise * cover).astype(np.uint8)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_phantoms_have_none(size: int) -> None:
    images, _ = phantom_arrays(25, size, seed=3)
    assert [quality_warnings(image, 32) for image in images] == [[]] * 25


@settings(deadline=None, max_examples=20)
@given(grade=st.integers(0, 4), seed=st.integers(0, 3))
def test_types_and_borders_do_not_matter(grade: int, seed: int) -> None:
    image = fundus_phantom(grade, 128, seed)
    for size in (64, 500):
        expected = quality_warnings(image, size)
        assert len(expected) == (size == 500)
        for same in (image.astype(np.uint16) * 257, (image / 255).astype(np.float32), image / 255, image[:, :, ::-1]):
            before = same.copy()
            assert [text.split(":")[0] for text in quality_warnings(same, size)] == [
                text.split(":")[0] for text in expected
            ]
            np.testing.assert_array_equal(same, before)


@pytest.mark.parametrize(("grade", "seed"), EYES)
def test_each_fault_has_its_warning(grade: int, seed: int) -> None:
    eye = _unit(grade, seed)
    assert quality_warnings(eye, 64) == []
    assert "too dark" in quality_warnings(eye * np.float32(0.1), 64)
    assert "too bright" in quality_warnings((eye * 8).clip(0, 1), 64)
    assert quality_warnings(gaussian_filter(eye, (0, 6, 6)), 64) == ["blurred or without contrast"]
    for gray in (eye[:1], eye[:1].repeat(3, axis=0)):
        assert quality_warnings(gray, 64)[0] == "no color"  # red alone has less contrast


def test_half_of_it_in_the_dark() -> None:
    # The mean is far above its limit: the share of dark pixels tells it.
    disc = _disc(90)
    assert quality_warnings(disc, 64) == []
    disc[:, :, 115:] = disc[:, :, 115:] // 8
    found = quality_warnings(disc, 64)
    assert "too dark" in found and "too bright" not in found


@pytest.mark.parametrize(("radius", "squash"), [(50, 1.0), (80, 1.0), (80, 0.75)])
def test_small_by_hand(radius: int, squash: float) -> None:
    disc = _disc(radius, squash=squash)
    shorter = round(2 * radius * squash)  # what the resampling has to enlarge
    assert quality_warnings(disc, shorter - 3) == []
    (found,) = quality_warnings(disc, shorter + 4)
    text, pixels, unit = found.rpartition(" pixels")[0].rpartition(" ")[0], found.split()[-2], found.split()[-1]
    assert (text, unit) == ("small: the field of view has", "pixels") and abs(int(pixels) - shorter) <= 3
    assert quality_warnings(disc, int(pixels)) == []
    assert quality_warnings(disc, int(pixels) + 1) == [found]


@pytest.mark.parametrize(
    ("image", "others"),
    [
        (np.full((3, 64, 64), 128, np.uint8), ["no color", "blurred or without contrast"]),
        (np.zeros((3, 64, 64), np.uint8), ["no color", "too dark", "blurred or without contrast"]),
        (np.full((3, 64, 64), 255, np.uint8), ["no color", "too bright", "blurred or without contrast"]),
        (np.random.RandomState(0).randint(0, 256, (3, 64, 64), np.uint8), []),
    ],
)
def test_no_field_of_view(image: np.ndarray, others: list[str]) -> None:
    reason = find_field_of_view(image).reason
    assert reason
    assert quality_warnings(image, 32) == [f"no field of view found: {reason}", *others]


def test_several_come_in_order() -> None:
    found = quality_warnings(np.zeros((1, 20, 20), np.uint16), 64)
    assert [text.split(":")[0] for text in found] == [
        "no field of view found",
        "small",
        "no color",
        "too dark",
        "blurred or without contrast",
    ]
    assert found[1] == "small: the field of view has 20 pixels"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((64, 64), np.uint8), r"must be of shape CHW, got \(64, 64\)"),
        (np.zeros((3, 0, 64), np.uint8), r"must be of shape CHW, got \(3, 0, 64\)"),
        (np.zeros((3, 64, 64), np.int32), "must be uint8, uint16 or floating point in .* got int32"),
        (np.full((3, 64, 64), 2.0), r"must have values in \[0, 1\], found 2 to 2"),
        (np.full((3, 64, 64), np.nan), r"must have values in \[0, 1\]"),
    ],
)
def test_errors(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quality_warnings(image, 32)
