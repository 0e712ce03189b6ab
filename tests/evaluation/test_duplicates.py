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

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conrec_monai.data import circle_square_arrays, load_datalist, phantom_arrays, read_image, rectangle_triangle_arrays
from conrec_monai.evaluation import duplicate_groups, merge_groups
from conrec_monai.evaluation.duplicates import (
    _correlation,
    _hashes,
    _patterns,
    _turn,
    _turn_hashes,
    content_hash,
    field_patch,
    linked,
    near_pairs,
)

COPIES = ("jpeg 60", "jpeg 90", "half", "double", "turned", "mirrored", "brighter", "darker", "dimmer", "bars", "all")


def make_copy(image: np.ndarray, kind: str) -> np.ndarray:
    """A copy of an image CHW uint8."""
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    if kind.startswith("jpeg"):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(kind.split()[1]))
        picture = Image.open(buffer)
    elif kind in ("half", "double"):
        factor = 0.5 if kind == "half" else 2
        picture = picture.resize((int(picture.width * factor), int(picture.height * factor)), Image.Resampling.BICUBIC)
    elif kind == "bars":
        wide = Image.new("RGB", (picture.width * 4 // 3, picture.height))
        wide.paste(picture, (picture.width // 6, 0))
        picture = wide
    elif kind == "all":
        return make_copy(make_copy(make_copy(image, "turned"), "brighter"), "jpeg 75")
    array = np.asarray(picture).transpose(2, 0, 1)
    if kind == "turned":
        array = np.rot90(array, 1, (1, 2))
    elif kind == "mirrored":
        array = array[:, :, ::-1]
    elif kind in ("brighter", "darker"):
        array = np.clip(array.astype(int) + (20 if kind == "brighter" else -10), 0, 255).astype(np.uint8)
    elif kind == "dimmer":
        array = (array * 0.7).astype(np.uint8)
    return np.ascontiguousarray(array)


def near_groups(images: list[np.ndarray]) -> list[list[int]]:
    return linked(len(images), near_pairs([field_patch(torch.from_numpy(image)) for image in images]))


@pytest.fixture(scope="module")
def phantoms() -> np.ndarray:
    return phantom_arrays(8, 144, 3)[0]


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_phantoms_are_found_and_nothing_else(phantoms: np.ndarray, kind: str) -> None:
    images = [*phantoms, *(make_copy(image, kind) for image in phantoms)]
    assert near_groups(images) == [[i, i + 8] for i in range(8)]


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_photographs_are_found_and_nothing_else(shared_data: Path, kind: str) -> None:
    items = load_datalist(shared_data / "idrid", "train")[100:412:26]
    photographs = [read_image(item["image"]) for item in items]
    images = [*photographs, *(make_copy(image, kind) for image in photographs)]
    assert near_groups(images) == [[i, i + len(items)] for i in range(len(items))]


def test_same_camera_and_fellow_eyes_are_not_merged(shared_data: Path) -> None:
    """Two mirrored fellow eyes and a row of eyes of one camera, the most alike of APTOS that are not the same eye."""
    items = load_datalist(shared_data / "aptos2019")
    positions = [2493, 2676, 174, 2311, 423, 718, 1071, 1141, 948, 2048, 2349, 2509, 1056, 2052, 1319, 2419]
    assert near_groups([read_image(items[i]["image"]) for i in positions]) == []


def test_the_same_eye_is_found_when_its_exposure_differs(shared_data: Path) -> None:
    items = load_datalist(shared_data / "idrid", "train")
    images = [read_image(items[i]["image"]) for i in (12, 13, 396, 14)]
    assert near_groups(images) == [[0, 2]]


def test_at_64_pixels(phantoms: np.ndarray) -> None:
    images = torch.from_numpy(phantom_arrays(40, 64, 1)[0])
    turned = images[5].rot90(1, (1, 2))[None]
    brighter = (images[7].int() + 15).clamp(max=255).byte()[None]
    assert duplicate_groups(torch.cat([images, turned, images[20:21], brighter])) == [[5, 40], [7, 42], [20, 41]]


def test_sets_of_different_sizes() -> None:
    """Positions go on; small images do not keep others from being searched."""
    small, images = (torch.from_numpy(phantom_arrays(6, size, 1)[0]) for size in (32, 64))
    turned = images[5].rot90(1, (1, 2))[None]
    assert duplicate_groups(torch.cat([small, small[:1]]), torch.cat([images, turned])) == [[0, 6], [12, 13]]


@pytest.mark.parametrize("draw", [circle_square_arrays, rectangle_triangle_arrays])
@pytest.mark.parametrize("size", [64, 128])
def test_drawn_shapes_are_only_compared_for_equality(draw, size: int) -> None:
    images = torch.from_numpy(draw(100, 0)[0])
    if size != images.shape[2]:
        images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    copies = [images[3:4], images[3:4].flip(3)]
    assert duplicate_groups(torch.cat([images, *copies])) == [[3, 100]]


def test_natural_images(shared_data: Path) -> None:
    """Of the first hundred flowers, none was merged wrongly; a copy of each of some is found."""
    items = load_datalist(shared_data / "oxford_flowers102")[:100]
    images = [read_image(item["image"]) for item in items]
    copies = [make_copy(images[i], "jpeg 75") for i in (10, 50, 90)]
    groups = near_groups([*images, *copies])
    assert all(any({i, 100 + k} <= set(group) for group in groups) for k, i in enumerate((10, 50, 90)))
    assert sum(map(len, groups)) <= 10


def test_small_and_uniform_images_are_only_compared_for_equality() -> None:
    small = torch.from_numpy(phantom_arrays(4, 40, 0)[0])
    assert duplicate_groups(torch.cat([small, small[1:2], small[2:3].flip(3)])) == [[1, 4]]
    gray = torch.full((3, 1, 64, 64), 100, dtype=torch.uint8)
    gray[1] = 101
    assert duplicate_groups(gray) == [[0, 2]]
    assert duplicate_groups(torch.zeros(0, 3, 64, 64, dtype=torch.uint8)) == []


def test_a_pair_is_found_across_blocks(phantoms: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [*phantoms, make_copy(phantoms[1], "turned"), make_copy(phantoms[7], "mirrored")]
    whole = near_groups(images)
    for name, value in (("ROWS", 3), ("COLUMNS", 5), ("PAIRS", 1)):
        monkeypatch.setattr(f"conrec_monai.evaluation.duplicates.{name}", value)
    assert near_groups(images) == whole == [[1, 8], [7, 9]]


def test_a_turned_hash_is_the_hash_of_a_turned_pattern(phantoms: np.ndarray) -> None:
    patches = torch.stack([p for image in phantoms[:3] if (p := field_patch(torch.from_numpy(image))) is not None])
    pattern, tellable = _patterns(patches)
    assert tellable.all() and torch.allclose(pattern.float().flatten(1).norm(dim=1), torch.ones(3), atol=1e-2)
    for orientation in range(8):
        turned = _hashes(_turn(pattern, orientation))
        assert torch.allclose(_turn_hashes(_hashes(pattern), orientation), turned, atol=1e-4)
    assert len({tuple(_turn(pattern[:1], o).flatten().tolist()) for o in range(8)}) == 8


def test_correlation_allows_for_a_shift() -> None:
    a = torch.zeros(1, 64, 64)
    a[0, 20:30, 20:30] = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    a /= a.norm()
    assert _correlation(a, a.roll((3, -3), (1, 2)))[0] == pytest.approx(1, abs=1e-4)
    assert _correlation(a, a.roll((5, 0), (1, 2)))[0] < 0.5
    assert _correlation(a, -a)[0] < 0.5


def test_content_hash_knows_shape_and_type() -> None:
    image = np.arange(3 * 4 * 6, dtype=np.uint8).reshape(3, 4, 6)
    assert content_hash(image) == content_hash(np.asfortranarray(image)) != content_hash(image[:, ::-1])
    assert len({content_hash(a) for a in (image, image.reshape(3, 6, 4), image.astype(np.uint16))}) == 3


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 64, 64), torch.zeros(3, 64, 64).byte(), torch.zeros(2, 4, 64, 64).byte()]
)
def test_wrong_images(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected uint8 images NCHW of 1 or 3 channels, got"):
        duplicate_groups(images)


def test_linked() -> None:
    assert linked(7, [(4, 1), [6, 2, 4], (5,), (3, 3)]) == [[1, 2, 4, 6]]
    assert linked(3, []) == []


@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=3), max_size=10))
@settings(max_examples=50, deadline=None)
def test_linked_is_a_partition_that_holds_the_links(links: list[list[int]]) -> None:
    groups = linked(12, links)
    members = [i for group in groups for i in group]
    assert len(set(members)) == len(members) and all(group == sorted(group) and len(group) > 1 for group in groups)
    for link in links:
        assert len(set(link)) == 1 or any(set(link) <= set(group) for group in groups)
    assert linked(12, reversed(links)) == groups


def test_merge_groups() -> None:
    # Patients a (0, 1) and b (3, 4) share the photograph 1 = 3; 2 and 5 are equal; 6 is alone.
    assert merge_groups(["a", "a", None, "b", "b", None, None], [[1, 3], [2, 5]]) == [0, 0, 1, 0, 0, 1, 2]
    assert merge_groups([None] * 3, [[0, 2]]) == [0, 1, 0]
    assert merge_groups(["a", "b", "a"], []) == [0, 1, 0]
    assert merge_groups(["a", "b", None], []) is None
    assert merge_groups([None, None], []) is None
    with pytest.raises(ValueError, match="a duplicate group holds image 2, expected 0 to 1"):
        merge_groups([None, None], [[0, 2]])
