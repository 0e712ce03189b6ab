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
from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes, label

from conrec_monai.data import load_datalist
from conrec_monai.data.synthetic import (
    CIRCLE_SQUARE,
    RECTANGLE_TRIANGLE,
    circle_square_arrays,
    rectangle_triangle_arrays,
)

Draw = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
BOTH = [(circle_square_arrays, CIRCLE_SQUARE), (rectangle_triangle_arrays, RECTANGLE_TRIANGLE)]


@pytest.fixture(scope="module")
def circles() -> tuple[np.ndarray, np.ndarray]:
    return circle_square_arrays(90, 4)


@pytest.fixture(scope="module")
def rectangles() -> tuple[np.ndarray, np.ndarray]:
    return rectangle_triangle_arrays(120, 4)


def _moments(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return center, and the eigenvalues of the covariance in ascending order, of a weighted region."""
    points = np.argwhere(weights > 0)
    values = weights[weights > 0]
    center = np.average(points, axis=0, weights=values)
    return center, np.linalg.eigvalsh(np.cov(points.T, aweights=values, bias=True))


def _reach(region: np.ndarray, center: np.ndarray) -> float:
    return float(np.hypot(*(np.argwhere(region) - center).T).max())


@pytest.mark.parametrize(("draw", "names"), BOTH)
def test_form_and_balance(draw: Draw, names: tuple[str, ...]) -> None:
    images, labels = draw(len(names) * 3 + 1, 0)
    assert images.shape == (len(names) * 3 + 1, 1, 128, 128) and images.dtype == np.uint8
    assert labels.dtype == np.int64 and labels.tolist() == [*list(range(len(names))) * 3, 0]
    assert images.min() == 0 and images.max() == 255


@pytest.mark.parametrize(("draw", "names"), BOTH)
def test_is_deterministic(draw: Draw, names: tuple[str, ...]) -> None:
    images = draw(6, 5)[0]
    np.testing.assert_array_equal(images, draw(6, 5)[0])
    np.testing.assert_array_equal(images[:2], draw(2, 5)[0])  # the first pictures do not depend on the number
    other = draw(6, 6)[0]
    for i in range(6):
        assert not np.array_equal(images[i], other[i])
        assert not any(np.array_equal(images[i], images[j]) for j in range(i))


@pytest.mark.parametrize("name", ["circles", "rectangles"])
def test_shapes_lie_whole_inside(name: str, request: pytest.FixtureRequest) -> None:
    images = request.getfixturevalue(name)[0][:, 0]
    border = np.ones((128, 128), bool)
    border[1:-1, 1:-1] = False
    assert not images[:, border].any()


def test_circles_and_squares(circles: tuple[np.ndarray, np.ndarray]) -> None:
    """The area over that of the circle around the center that holds all of it: 1 for a circle, 2 / pi for a square."""
    sizes: dict[str, list[float]] = {"circle": [], "square": []}
    for image, number in zip(circles[0][:, 0] / 255, circles[1], strict=True):
        parts, count = label(image > 0)
        assert count == 2  # apart from each other
        squares = 0
        for part in (1, 2):
            weights = image * (parts == part)
            area = weights.sum()
            share = area / (math.pi * _reach(weights > 0.5, _moments(weights)[0]) ** 2)
            is_square = share < (1 + 2 / math.pi) / 2
            assert min(abs(share - 1), abs(share - 2 / math.pi)) < 0.13  # pixels: the smallest reaches 8 of them
            squares += is_square
            sizes["square" if is_square else "circle"].append(
                math.sqrt(area) if is_square else math.sqrt(area * 4 / math.pi)
            )
        assert CIRCLE_SQUARE[number] == ("two circles", "a circle and a square", "two squares")[squares]
    for values in sizes.values():  # uniform in 1/8 to 1/3 of the picture, less for those that do not fit
        assert 15.5 < min(values) < 18 and 36 < max(values) < 43.2
    assert abs(np.mean(sizes["circle"]) - np.mean(sizes["square"])) < 2


def test_rectangles_and_triangles(rectangles: tuple[np.ndarray, np.ndarray]) -> None:
    """The covariance of an equilateral triangle has two equal eigenvalues; of a right one, at least 3 : 1.

    For legs a and b it is [[a^2, -ab/2], [-ab/2, b^2]] / 18: eigenvalues 3 : 1 for a = b, 6.2 : 1 for a = 2 b.
    Of a rectangle they are w^2 / 12 and h^2 / 12, and its corners are sqrt(w^2 + h^2) / 2 from the center.
    """
    areas: dict[str, list[float]] = {"equilateral": [], "right": []}
    for image, number in zip(rectangles[0][:, 0] / 255, rectangles[1], strict=True):
        whole = binary_fill_holes(image > 0.5)
        assert label(whole)[1] == 1
        inside = binary_fill_holes(image > 0.98) & whole
        hole = (1 - image) * inside
        assert label(hole > 0.5, np.ones((3, 3)))[1] == 1  # one triangle, its tips included
        low, high = _moments(hole)[1]
        assert high / low < 1.3 or high / low > 2.5
        kind = "right" if high / low > 2 else "equilateral"
        areas[kind].append(hole.sum())
        center, eigenvalues = _moments(whole.astype(float))
        sides = np.sqrt(12 * eigenvalues)
        corners = "sharp" if _reach(whole, center) / (math.hypot(*sides) / 2) > 0.95 else "rounded"
        assert RECTANGLE_TRIANGLE[number] == f"{corners} corners, {kind} triangle"
        if corners == "sharp":
            assert 63 < sides.min() and sides.max() < 89
    for values in areas.values():
        assert 85 < min(values) < 130 and 370 < max(values) < 425
    assert abs(np.mean(areas["equilateral"]) / np.mean(areas["right"]) - 1) < 0.15  # the area does not tell the kind


@pytest.mark.parametrize(("draw", "names"), BOTH)
def test_errors(draw: Draw, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="n must be at least 1 picture, got 0"):
        draw(0, 0)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        draw(1, -1)


@pytest.mark.parametrize(("draw", "names"), BOTH)
def test_as_data_set(draw: Draw, names: tuple[str, ...]) -> None:
    word = "circle-square" if draw is circle_square_arrays else "rectangle-triangle"
    images, labels = draw(7, 2)
    datalist = load_datalist(f"{word}:train=5, seed=2,test=2")
    np.testing.assert_array_equal(np.stack([item["image"] for item in datalist]), images)
    assert [item["label"] for item in datalist] == labels.tolist()
    assert [item["split"] for item in datalist] == ["train"] * 5 + ["test"] * 2
    assert [item["id"] for item in datalist][::6] == [f"{word}-00000", f"{word}-00006"]
    info = datalist.info
    assert (info.source, info.class_names, info.ordinal, info.channels, info.center_crop) == (
        word,
        list(names),
        False,
        1,
        1.0,
    )
    assert [item["id"] for item in load_datalist(f"{word}:train=5,seed=2,test=2", "test")] == [
        f"{word}-00005",
        f"{word}-00006",
    ]
    with pytest.raises(ValueError, match="has no section 'test', available: train"):
        load_datalist(f"{word}:train=2,test=0", "test")


@pytest.mark.parametrize(
    ("word", "function", "train", "test"),
    [
        ("circle-square", "circle_square_arrays", 600, 399),
        ("rectangle-triangle", "rectangle_triangle_arrays", 1000, 500),
    ],
)
def test_published_numbers(word: str, function: str, train: int, test: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    def record(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        calls.append((n, seed))
        return np.zeros((n, 1, 1, 1), np.uint8), np.zeros(n, np.int64)

    monkeypatch.setattr(f"conrec_monai.data.datalist.{function}", record)
    assert (len(load_datalist(word, "train")), len(load_datalist(f"{word}:seed=3", "test"))) == (train, test)
    assert calls == [(train + test, 0), (train + test, 3)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("n=3", "circle-square:n=3: unknown key 'n', the keys are train, test, seed"),
        ("train=x", "circle-square:train=x: train must be a whole number, got 'x'"),
        ("test=1.5", "test must be a whole number, got '1.5'"),
        ("train=-1", "train and test must be 0 or more, and 1 or more together"),
        ("train=0,test=0", "circle-square:train=0,test=0: train and test must be 0 or more, and 1 or more together"),
        ("train=1,seed=-1", "seed must not be negative, got -1"),
    ],
)
def test_specification_errors(keys: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_datalist(f"circle-square:{keys}")
