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

"""The two synthetic data sets of the publication (arXiv 2104.04323), fine-grained by construction.

White on black, 128 x 128, one channel, each picture rotated as a whole by -90 to 90 degrees. What the publication
leaves open is chosen so that the classes differ in their shapes alone: positions, sizes and angles come from the same
distributions for all classes, and every shape lies whole inside the picture at every rotation. (A square of a side has
more area than a circle of that diameter, so circle-square can be told a little by the amount of white.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

__all__ = ["CIRCLE_SQUARE", "RECTANGLE_TRIANGLE", "circle_square_arrays", "rectangle_triangle_arrays"]

SIZE = 128
CIRCLE_SQUARE = ("two circles", "a circle and a square", "two squares")
RECTANGLE_TRIANGLE = (
    "sharp corners, equilateral triangle",
    "sharp corners, right triangle",
    "rounded corners, equilateral triangle",
    "rounded corners, right triangle",
)
CORNER_RADIUS = 20  # pixels
GAP = 4  # fewest pixels between two shapes, or between a triangle and the border of its rectangle

Array = np.ndarray


def circle_square_arrays(n: int = 600, seed: int = 0) -> tuple[Array, Array]:
    """Pictures of two shapes, each a circle or a square: the classes of :data:`CIRCLE_SQUARE`.

    The side of a square, the diameter of a circle, is uniform in 1/8 to 1/3 of the picture.

    Args:
        n: number of pictures; the classes differ by at most one in number.
        seed: the same numbers for the same seed. The first pictures do not depend on `n`.

    Returns:
        uint8 images n x 1 x 128 x 128 and int64 classes 0 to 2, in turn.

    Raises:
        ValueError: when `n` is not positive or the seed is negative.
    """
    return _draw(_circle_square, len(CIRCLE_SQUARE), n, seed, key=1)


def rectangle_triangle_arrays(n: int = 1000, seed: int = 0) -> tuple[Array, Array]:
    """Pictures of a white rectangle that holds a black triangle: the classes of :data:`RECTANGLE_TRIANGLE`.

    Sides of the rectangle are uniform in 64 to 88 pixels; rounded corners have a radius of 20 pixels. The triangle is
    equilateral or has a right angle between legs of a ratio from 1/2 to 1; its angle in the rectangle is random, and
    its area, 90 to 420 pixels, has the same distribution for both kinds.

    Args, Returns, Raises:
        as :func:`circle_square_arrays`, with the classes 0 to 3.
    """
    return _draw(_rectangle_triangle, len(RECTANGLE_TRIANGLE), n, seed, key=2)


def _draw(
    draw: Callable[[np.random.Generator, int, Array], Array], classes: int, n: int, seed: int, key: int
) -> tuple[Array, Array]:
    if n < 1:
        raise ValueError(f"n must be at least 1 picture, got {n}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    labels = np.arange(n) % classes
    images = np.empty((n, 1, SIZE, SIZE), dtype=np.uint8)
    for i, label in enumerate(labels):
        rng = np.random.default_rng([seed, key, i])
        angle = rng.uniform(-math.pi / 2, math.pi / 2)
        y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
        turned = np.stack([x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)])
        images[i, 0] = np.rint(255 * draw(rng, int(label), turned))
    return images, labels.astype(np.int64)


def _circle_square(rng: np.random.Generator, label: int, grid: Array) -> Array:
    square = [label == 2, label >= 1]
    while True:  # about every second draw fits
        half = rng.uniform(SIZE / 8, SIZE / 3, 2) / 2
        # Room for a square, whatever the shape: else circles would lie further apart than squares.
        reach = SIZE / 2 - 1 - half * math.sqrt(2)
        radius, theta = reach * np.sqrt(rng.uniform(0, 1, 2)), rng.uniform(0, 2 * math.pi, 2)
        centers = np.stack([radius * np.cos(theta), radius * np.sin(theta)])
        if np.abs(centers[:, 0] - centers[:, 1]).max() >= half.sum() + GAP:
            break
    order = rng.permutation(2)
    parts = [
        _box(grid - centers[:, i, None, None], half[[i, i]])
        if square[order[i]]
        else np.hypot(*(grid - centers[:, i, None, None])) - half[i]
        for i in range(2)
    ]
    return _cover(np.minimum(*parts))


def _rectangle_triangle(rng: np.random.Generator, label: int, grid: Array) -> Array:
    rounded, right = divmod(label, 2)
    half = rng.uniform(SIZE / 2, SIZE - 40, 2) / 2
    side = math.sqrt(rng.uniform(90, 420) * 4 / math.sqrt(3))  # of the equilateral triangle of that area
    ratio = rng.uniform(0.5, 1)
    mirror = rng.choice([-1, 1])
    if right:
        leg = math.sqrt(side**2 * math.sqrt(3) / 2 / ratio)
        corners = np.array([[0, 0], [leg, 0], [0, leg * ratio]])
    else:
        corners = np.array([[0, 0], [side, 0], [side / 2, side * math.sqrt(3) / 2]])
    corners = (corners - corners.mean(axis=0)) * [mirror, 1]
    theta = rng.uniform(0, 2 * math.pi)
    corners = corners @ np.array([[math.cos(theta), math.sin(theta)], [-math.sin(theta), math.cos(theta)]])
    while True:  # inside rounded corners, in every class: the place of the triangle tells nothing
        moved = (corners + rng.uniform(-1, 1, 2) * half).T
        if (_box(moved, half, CORNER_RADIUS) <= -GAP).all():
            break
    rectangle = _box(grid, half, CORNER_RADIUS if rounded else 0)
    return _cover(rectangle) * (1 - _cover(_triangle(grid, moved)))


def _box(points: Array, half: Array, corner: float = 0) -> Array:
    """Signed distance of points (2 x ...) to a rectangle of these half sides around the origin, negative inside."""
    over = np.abs(points) - (half - corner).reshape(2, *[1] * (points.ndim - 1))
    return np.hypot(*np.maximum(over, 0)) + np.minimum(over.max(axis=0), 0) - corner


def _triangle(grid: Array, corners: Array) -> Array:
    """Largest signed distance to the three lines through the corners (2 x 3): negative inside."""
    distances = []
    center = corners.mean(axis=1)
    for i in range(3):
        a, b = corners[:, i], corners[:, (i + 1) % 3]
        normal = np.array([b[1] - a[1], a[0] - b[0]]) / np.hypot(*(b - a))
        normal = normal if normal @ (center - a) < 0 else -normal
        distances.append(np.tensordot(normal, grid - a[:, None, None], axes=1))
    return np.max(distances, axis=0)


def _cover(distance: Array) -> Array:
    """How much of a pixel is inside, from the signed distance of its center: a smooth edge one pixel wide."""
    return np.clip(0.5 - distance, 0, 1)
