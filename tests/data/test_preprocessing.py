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

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose
from PIL import Image

from conrec_monai.data import CachedImages, FitImage, ReadImage, fundus_phantom, image_preprocessing, read_image

VIEWS: list[tuple[str, str | None]] = [
    ("squash", None),
    ("pad", None),
    ("crop", None),
    ("squash", "normalize"),
    ("pad", "local_contrast"),
]


def _noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (channels, height, width), dtype=np.uint8)


def _save(path: Path, array: np.ndarray, **options: Any) -> Path:
    Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0).squeeze())).save(path, **options)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    eye = fundus_phantom(3, 150, seed=1)
    deep = np.round(eye[1].astype(np.float64) * 257 + np.arange(150) % 100).clip(0, 65535).astype(np.uint16)
    return [
        _save(folder / "wide.png", _noise(40, 90)),
        _save(folder / "tall.png", _noise(90, 41, seed=1)),
        _save(folder / "exact.png", _noise(24, 24, seed=2)),
        _save(folder / "eye.png", eye),
        _save(folder / "deep.png", deep[None]),
        _save(folder / "large.jpg", fundus_phantom(2, 300), quality=95),  # decoded at a part of its size
    ]


@pytest.mark.parametrize(("resize", "field_of_view"), VIEWS)
@pytest.mark.parametrize("channels", [3, 1])
def test_as_a_data_set_bit_by_bit(files: list[Path], resize: str, field_of_view: str | None, channels: int) -> None:
    data = [{"image": path} for path in files]
    expected = CachedImages(data, 24, resize, channels, field_of_view=field_of_view, progress=False).images
    transform = image_preprocessing(24, resize, field_of_view, channels)
    for path, image in zip(files, expected, strict=True):
        found = transform(path)
        assert found.dtype == torch.float32 and torch.equal(found, image.float() / 255)
        assert torch.equal(transform(str(path)), found)
    assert len(expected.unique()) > 50


@pytest.mark.parametrize(("resize", "field_of_view"), VIEWS)
def test_arrays_as_a_data_set_bit_by_bit(resize: str, field_of_view: str | None) -> None:
    eye = fundus_phantom(4, 90, seed=2)
    for array in (
        eye,
        eye.astype(np.uint16) * 257 + 3,
        (eye / 255).astype(np.float32),
        eye / 255,
        eye[:, 10:80, ::-1],
        eye[:1],
    ):
        (expected,) = CachedImages([{"image": array}], 24, resize, len(array), field_of_view=field_of_view).images
        before = array.copy()
        fitted = FitImage(24, resize, field_of_view).fit(array)
        assert torch.equal(fitted.image, expected) and fitted.image.dtype == torch.uint8 and fitted.unsure == ""
        assert torch.equal(FitImage(24, resize, field_of_view)(array), expected.float() / 255)
        np.testing.assert_array_equal(array, before)


@settings(deadline=None, max_examples=20)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    resize=st.sampled_from(["squash", "pad", "crop"]),
    kind=st.sampled_from([np.uint8, np.uint16, np.float32]),
)
def test_any_shape_as_a_data_set(height: int, width: int, resize: str, kind: Any) -> None:
    array = np.random.RandomState(0).uniform(0, 1, (3, height, width))
    array = array.astype(kind) if kind is np.float32 else (array * np.iinfo(kind).max).astype(kind)
    (expected,) = CachedImages([{"image": array}], 13, resize).images
    assert torch.equal(FitImage(13, resize)(array), expected.float() / 255)


def test_tensors() -> None:
    array = fundus_phantom(1, 40)
    fitting = FitImage(24)
    expected = fitting(array)
    assert torch.equal(fitting(torch.from_numpy(array)), expected)
    found = fitting(MetaTensor(torch.from_numpy(array)))
    assert type(found) is torch.Tensor and torch.equal(found, expected)
    halves = torch.from_numpy(array).float() / 255
    assert torch.equal(fitting(halves), FitImage(24)(halves.numpy()))


def test_levels_by_hand() -> None:
    deep = np.array([0, 128, 129, 257, 65535, 32896], dtype=np.uint16).reshape(1, 1, 6).repeat(6, axis=1)
    assert (FitImage(6)(deep)[0, 0] * 255).tolist() == [0, 0, 1, 1, 255, 128]


def test_unsure_where_no_retina_is_found() -> None:
    flat = np.full((3, 40, 40), 200, dtype=np.uint8)
    assert FitImage(24, field_of_view="normalize").fit(flat).unsure == "it has no dark border"
    assert FitImage(24).fit(flat).unsure == ""  # none is looked for
    assert FitImage(24, field_of_view="normalize").fit(np.zeros_like(flat)).unsure == "nearly all of it is dark"


def test_steps_of_the_composition(files: list[Path]) -> None:
    transform = image_preprocessing(24, "pad", "normalize", 1)
    assert isinstance(transform, Compose)
    reading, fitting = transform.transforms
    assert isinstance(reading, ReadImage) and (reading.channels, reading.min_side) == (1, 24)
    assert isinstance(fitting, FitImage)
    assert (fitting.size, fitting.resize, fitting.field_of_view) == (24, "pad", "normalize")
    np.testing.assert_array_equal(ReadImage()(files[5]), read_image(files[5]))
    assert ReadImage(3, 24)(files[5]).shape == (3, 75, 75)  # a quarter of 300 is enough
    assert ReadImage(1)(files[0]).shape == (1, 40, 90)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "size must be at least 1 pixel, got 0"),
        ((24.0,), "size must be at least 1 pixel, got 24.0"),
        ((True,), "size must be at least 1 pixel, got True"),
        ((24, "stretch"), "resize must be one of squash, pad, crop, got 'stretch'"),
        ((24, "pad", "yes"), "field_of_view must be None, 'normalize' or 'local_contrast', got 'yes'"),
    ],
)
def test_errors(arguments: tuple, message: str) -> None:
    for make in (FitImage, image_preprocessing):
        with pytest.raises(ValueError, match=message):
            make(*arguments)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 9, 9), np.uint8), "channels must be 1"),
        (np.zeros((9, 9), np.uint8), "channels must be 1"),
        (np.zeros((3, 9), np.uint8), r"must be CHW with 1 or 3 channels, got shape \(3, 9\)"),
        (np.zeros((3, 0, 9), np.uint8), r"must be CHW with 1 or 3 channels, got shape \(3, 0, 9\)"),
        (np.zeros((3, 9, 9), np.int64), "must be uint8, uint16 or floating point, got int64"),
        (np.full((3, 9, 9), 1.5), r"must lie in \[0, 1\], got \[1.5, 1.5\]"),
        (np.full((3, 9, 9), np.nan), r"must lie in \[0, 1\]"),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitImage(24)(array)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"image file not found: .*none\.png"):
        ReadImage()(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"text\.png: not a PNG"):
        ReadImage()(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"channels must be 1 \(gray\) or 3 \(RGB\), got 4"):
        ReadImage(4)(tmp_path / "text.png")
