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

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conrec_monai.evaluation import color_features, linear_evaluation, make_folds, shortcut_features


def test_by_hand_at_64_pixels() -> None:
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[0, 1, :, :32] = 8  # not above the threshold
    image[0, 0, :, 32:] = 51
    image[0, 2, :32, 32:] = 255
    features = shortcut_features(image)
    assert features.shape == (1, 262) and features.dtype == np.float32
    grid = features[0, :256].reshape(16, 16)
    np.testing.assert_array_equal(grid, np.repeat([[0.0, 1.0]], 8, axis=1).repeat(16, axis=0))
    np.testing.assert_allclose(features[0, 256:], [0.2, 0, 0.5, 0, 0, 0.5], atol=1e-6)


def test_grid_holds_the_part_of_a_cell_that_is_in_the_field() -> None:
    image = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    image[0, 0, 0, :3] = 100  # 3 of the 16 pixels of the first cell
    features = shortcut_features(image)[0]
    assert features[0] == pytest.approx(3 / 16)
    assert (features[1:256] == 0).all()
    np.testing.assert_allclose(features[256:], [100 / 255, 0], atol=1e-6)


def test_black_image_and_one_channel() -> None:
    features = shortcut_features(torch.zeros(2, 1, 30, 40, dtype=torch.uint8))
    assert features.shape == (2, 258)
    assert (features == 0).all()


def test_color_alone() -> None:
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[0, 0, :, :32] = 255  # half of the field of view is bright in the first channel ...
    images[0, 1, :, :] = 51  # ... all of it in the second
    expected = [[0.5, 0.2, 0, 0.5, 0, 0], [0] * 6]
    np.testing.assert_allclose(color_features(images), expected, atol=1e-6)
    np.testing.assert_array_equal(color_features(images), shortcut_features(images)[:, -6:])


def test_large_images_are_averaged_to_64_pixels_first() -> None:
    small = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    large = small.repeat_interleave(3, dim=2).repeat_interleave(2, dim=3)
    np.testing.assert_allclose(shortcut_features(large), shortcut_features(small), atol=1e-5)
    # A bright pixel on black is in no field of view once averaged: 3 x 3 pixels of which one is 60.
    speck = torch.zeros(1, 1, 192, 192, dtype=torch.uint8)
    speck[0, 0, 0, 0] = 60
    assert (shortcut_features(speck) == 0).all()


def test_batches_and_arrays_give_the_same() -> None:
    images = torch.randint(0, 256, (300, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features = shortcut_features(images.numpy())
    np.testing.assert_array_equal(features[290:], shortcut_features(images[290:]))


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_mistakes_are_named(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected uint8 images NCHW"):
        shortcut_features(images)


def test_aptos_grades_leak_through_the_shortcut(shared_data: Path) -> None:
    folder = shared_data / "aptos2019"
    with open(folder / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))[::4]
    paths = {path.stem: path for path in (folder / "train_images").iterdir()}
    photos = [Image.open(paths[row["id_code"]]).convert("RGB").resize((64, 64), Image.Resampling.BOX) for row in rows]
    features = shortcut_features(np.stack([np.asarray(photo) for photo in photos]).transpose(0, 3, 1, 2).copy())
    labels = np.array([int(row["diagnosis"]) for row in rows])
    qwk = linear_evaluation(features, labels, make_folds(labels), "diabetic", True, 5)["qwk"]["mean"]
    assert 0.6 < qwk < 0.8
