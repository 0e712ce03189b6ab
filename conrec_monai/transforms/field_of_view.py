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

"""Field-of-view normalization: every fundus photograph brought to one circle under one mask.

Cameras differ by the shape of the photograph, and clinics by the camera, so that the shape alone tells much of the
grade (see :func:`conrec_monai.evaluation.shortcut_features`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type
from scipy import ndimage
from torch import Tensor

__all__ = [
    "FIELDS_OF_VIEW",
    "FieldOfView",
    "NormalizeFieldOfView",
    "NormalizeFieldOfViewd",
    "field_of_view_mask",
    "find_field_of_view",
]

Array = np.ndarray

FIELDS_OF_VIEW = (None, "normalize", "local_contrast")  # what a data set does with the field of view
RADIUS = 0.96  # of the disc, that reaches the left and right border of the result: its rim is blurred
HEIGHT = 0.72  # of the disc's radius, that is kept above and below its center
DARK = 9  # of 255: the least value of a pixel in the mask, in its brightest channel; 8 and less count as outside

SIDE = 224  # pixels of the longer side at which the disc is looked for, at most
LEVELS = (16, 28, 44, 8)  # of 255, above the surround: tried until a border is clean; else the best one counts
SAMPLES = 100  # tried shapes of each kind
POINTS = 160  # of the border, on which they are compared
SECTORS = 72
CLEAN = 0.95  # share of a border that lies on the ellipse


class FieldOfView(NamedTuple):
    """The ellipse of a retina's disc, in pixels; 0 is the upper or left border of the image, not a pixel's center.

    Attributes:
        y: of the center.
        x: of the center.
        radius_y: half the vertical axis.
        radius_x: half the horizontal axis.
        reason: why no disc was found, and this is the largest ellipse in the image; "" for a disc.
    """

    y: float
    x: float
    radius_y: float
    radius_x: float
    reason: str = ""


def field_of_view_mask(size: int, height: float = HEIGHT) -> Array:
    """The mask of every normalized image: a circle over the whole width, cut off at equal heights above and below.

    Args:
        size: side S of the image in pixels.
        height: of the disc's radius; see :class:`NormalizeFieldOfView`.

    Returns:
        bool SS.
    """
    place = (np.arange(size) + 0.5) / size * 2 - 1
    return (place[:, None] ** 2 + place**2 <= 1) & (np.abs(place[:, None]) <= height / RADIUS)


class NormalizeFieldOfView(Transform):
    """Finds the retina's disc, brings it to a circle and shows the same part of it in every image.

    The disc (an ellipse in a squashed image) may be cut off at any side; see :func:`find_field_of_view`. What lies
    within 0.96 of its radius and, above and below the center, within ``height`` of it is kept; all else is black. The
    mask is the same for all images, so that nobody sees which discs were cut off. To this end pixels in the mask that
    are dark in all channels are lifted to 9 of 255, and the few places in it that lie beyond the image hold the mirror
    image of its border. Bicubic with antialiasing. The result depends on the image alone.

    Where no disc is found, the largest ellipse in the image takes its place, a warning is logged and
    :meth:`normalize` gives the reason. No input array is changed.

    Args:
        size: side of the result in pixels; None for the shorter side of the image.
        height: how much of the disc is kept above and below its center, in its radii; 1 for the whole circle. 0.72 is
            what nearly all discs have that a sensor cuts off.

    Raises:
        ValueError: when an argument is out of range.
    """

    def __init__(self, size: int | None = None, height: float = HEIGHT) -> None:
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ValueError(f"size must be at least 1 pixel, or None, got {size!r}.")
        if not 0 < height <= 1:
            raise ValueError(f"height must be in (0, 1], got {height!r}.")
        self.size, self.height = size, height

    def normalize(self, image: Array, found: FieldOfView | None = None) -> tuple[Array, FieldOfView]:
        """Normalizes one image, and tells what was found.

        Args:
            image: CHW, uint8, uint16 or floating point in [0, 1].
            found: its field of view, where that is known; None to look for it.

        Returns:
            The image C[size][size] of the same type, and its field of view; no warning is logged.

        Raises:
            ValueError: when the shape, the type or the values are others.
        """
        _check(image)
        found = find_field_of_view(image) if found is None else found
        size = self.size or min(image.shape[1:])
        rows, columns = (
            _Axis(center - RADIUS * radius, 2 * RADIUS * radius, size, length)
            for center, radius, length in zip((found.y, found.x), found[2:4], image.shape[1:], strict=True)
        )
        x = image[:, rows.first : rows.last, columns.first : columns.last]
        x = rows.matrix() @ rows.reduce(x, 1)
        x = columns.reduce(x, 2) @ columns.matrix().T
        high = 1.0 if np.issubdtype(image.dtype, np.floating) else float(np.iinfo(image.dtype).max)
        mask = field_of_view_mask(size, self.height)
        x = np.where(mask, x.clip(0, high), 0)
        if image.dtype.kind == "u":
            x = x.round()
        dark = np.nextafter(np.float32(DARK * high / 255), np.float32(2 * high)) if high == 1 else DARK * high / 255
        x = np.where(mask & (x < dark).all(axis=0), np.maximum(x, dark), x)
        return x.astype(image.dtype), found

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Normalizes one image CHW; see :meth:`normalize`."""
        image, found = self.normalize(_plain(img))
        if found.reason:
            _warn(1, 1, found.reason)
        return _like(image, img)

    def batch(self, images: NdarrayOrTensor) -> NdarrayOrTensor:
        """Normalizes images BCHW of the same types; equal to the images one by one, with one warning."""
        plain = _plain(images)
        if plain.ndim != 4 or not len(plain):
            raise ValueError(f"the images must be of shape BCHW, got {tuple(plain.shape)}.")
        results = [self.normalize(image) for image in plain]
        reasons = [found.reason for _, found in results if found.reason]
        if reasons:
            _warn(len(reasons), len(results), reasons[0])
        return _like(np.stack([image for image, _ in results]), images)


class NormalizeFieldOfViewd(MapTransform):
    """Dictionary twin of :class:`NormalizeFieldOfView`; ``<key>_unsure`` becomes the reason, "" where a disc was found.

    Args:
        keys: of the images, each CHW.
        size: see :class:`NormalizeFieldOfView`.
        height: see :class:`NormalizeFieldOfView`.
        allow_missing_keys: whether a missing key is passed over.
    """

    def __init__(
        self, keys: KeysCollection, size: int | None = None, height: float = HEIGHT, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = NormalizeFieldOfView(size, height)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor | str]:
        result: dict[Hashable, NdarrayOrTensor | str] = dict(data)
        for key in self.key_iterator(data):
            image, found = self.transform.normalize(_plain(data[key]))
            if found.reason:
                _warn(1, 1, found.reason)
            result[key], result[f"{key}_unsure"] = _like(image, data[key]), found.reason
        return result


def _plain(image: NdarrayOrTensor) -> Array:
    if isinstance(image, Tensor):
        return (image.as_tensor() if isinstance(image, MetaTensor) else image).detach().cpu().numpy()
    return np.asarray(image)


def _like(image: Array, other: NdarrayOrTensor) -> NdarrayOrTensor:
    if not isinstance(other, Tensor):
        return image
    return convert_to_dst_type(torch.from_numpy(image), other, dtype=other.dtype)[0]


def _check(image: Array) -> None:
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"the image must be of shape CHW, got {tuple(image.shape)}.")
    is_float = np.issubdtype(image.dtype, np.floating)
    if not is_float and image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"images must be uint8, uint16 or floating point in [0, 1], got {image.dtype}.")
    if is_float and not (image.min() >= 0 and image.max() <= 1):  # so put, NaN fails as well
        raise ValueError(f"floating point images must have values in [0, 1], found {image.min():g} to {image.max():g}.")


def _warn(count: int, total: int, reason: str) -> None:
    logging.getLogger("conrec_monai").warning(
        f"no retina was found in {count} of {total} images ({reason}); the largest ellipse in the image is kept"
    )


class _Axis:
    """Resamples the pixels from ``start`` to ``start + length`` (maybe beyond the image) of one axis to ``size``."""

    def __init__(self, start: float, length: float, size: int, pixels: int) -> None:
        self.step = max(1, int(length / size / 3))  # far larger images are averaged first: that is faster
        margin = 3 * math.ceil(max(length / size, 1)) + self.step
        self.first = max(0, math.floor(start) - margin)
        self.last = min(pixels, math.ceil(start + length) + margin)
        self.step = min(self.step, self.last - self.first)
        self.start, self.length, self.size = (start - self.first) / self.step, length / self.step, size
        self.pixels = (self.last - self.first) // self.step

    def reduce(self, x: Array, axis: int) -> Array:
        """Averages blocks of ``step`` pixels; float32."""
        total: Array | None = None
        for i in range(self.step):
            index = [slice(None)] * x.ndim
            index[axis] = slice(i, self.pixels * self.step, self.step)
            part = x[tuple(index)].astype(np.float32)
            total = part if total is None else total + part
        assert total is not None
        return total / np.float32(self.step)

    def matrix(self) -> Array:
        """[size][pixels]: cubic convolution (a = -0.5, as Pillow's), stretched for antialiasing; mirrored borders."""
        ratio = self.length / self.size
        scale = max(ratio, 1)
        place = self.start + (np.arange(self.size)[:, None] + 0.5) * ratio
        reach = math.ceil(2 * scale) + 1
        taps = np.floor(place).astype(int) + np.arange(-reach, reach + 1)
        x = np.abs(taps + 0.5 - place) / scale
        weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0))
        weights /= weights.sum(axis=1, keepdims=True)
        taps = taps % (2 * self.pixels)
        taps = np.minimum(taps, 2 * self.pixels - 1 - taps)
        matrix = np.zeros((self.size, self.pixels))
        np.add.at(matrix, (np.arange(self.size)[:, None], taps), weights)
        return matrix.astype(np.float32)


class _Fit(NamedTuple):
    """The shape found at one threshold; the best quality of all thresholds counts."""

    ellipse: Array  # x, y, radius_x, radius_y
    quality: float
    reason: str
    clean: float = 0.0


def find_field_of_view(image: Array) -> FieldOfView:
    """Fits an ellipse with vertical and horizontal axes to the border of the retina's disc.

    Of the border only what does not lie on the image's edge counts, so that a disc that is cut off is found as well. A
    circle or an ellipse through random points of it is chosen by consensus (RANSAC; a circle unless an ellipse fits
    better) and refined by least squares. Larger images are searched at 224 pixels.

    Args:
        image: CHW, uint8, uint16 or floating point in [0, 1].

    Returns:
        The ellipse; its ``reason`` says why the search was in vain: nearly all is dark, there is no dark border, or it
        is none of an ellipse with half axes of at least 0.15 and at most 1 of the image's sides, of a ratio from 1/2
        to 2, bright inside, its center well within the image.

    Raises:
        ValueError: when the shape, the type or the values are others.
    """
    _check(image)
    height, width = image.shape[1:]
    step = max(1, math.ceil(max(height, width) / SIDE))
    level = _level(image, step)
    surround = float(np.percentile(level, 1))
    best = None
    for threshold in LEVELS:
        fit = _fit(level, min(surround, 40.0) + threshold)
        if best is None or fit.quality > best.quality:
            best = fit
        if fit.clean > CLEAN and not fit.reason:
            break
    assert best is not None
    if best.reason:
        return FieldOfView(height / 2, width / 2, height / 2, width / 2, best.reason)
    x, y, radius_x, radius_y = (step * best.ellipse).tolist()
    return FieldOfView(y, x, radius_y, radius_x)


def _level(image: Array, step: int) -> Array:
    """The brightest channel of every step-th pixel (HW float32 in 0 .. 255), slightly smoothed."""
    rows, columns = (slice(min(step // 2, length - 1), None, step) for length in image.shape[1:])  # one at least
    x = image[:, rows, columns].max(axis=0)
    scale = 255 if np.issubdtype(x.dtype, np.floating) else 255 / np.iinfo(x.dtype).max
    return ndimage.uniform_filter(x.astype(np.float32) * np.float32(scale), 3, mode="nearest")


def _fit(level: Array, threshold: float) -> _Fit:
    height, width = level.shape
    frame = np.array([width, height], dtype=np.float64)
    mask = _largest_part(level > threshold)
    share = mask.mean()
    if share < 0.05:
        return _Fit(frame, -1, "nearly all of it is dark")
    points = _border(level, mask, threshold)
    if len(points) < 0.15 * max(height, width):
        return _Fit(frame, -0.5, "it has no dark border")
    random = np.random.RandomState(0)  # of its own: the result depends on the image alone
    origin = np.array([mask.sum(0) @ np.arange(width), mask.sum(1) @ np.arange(height)]) / mask.sum() + 0.5
    tolerance = max(0.008 * max(height, width), 0.75)
    some = points[random.permutation(len(points))[:POINTS]]
    lowest, ellipse = math.inf, None
    for parameters in (3, 4):  # a circle, an ellipse
        shapes = _plausible(_through(points, origin, random, parameters), frame)
        if not len(shapes):
            continue
        shape = shapes[_cost(_distance(some, shapes), tolerance).argmin()]
        for factor in (2, 2, 1, 1):
            shape = _refined(points, shape, factor * tolerance, frame, parameters)
        cost = float(_cost(_distance(points, shape[None]), tolerance)[0])
        if cost < 0.95 * lowest - 0.02:  # an ellipse has to fit better
            lowest, ellipse = cost, shape
    if ellipse is None:
        return _Fit(frame, 0, "no ellipse fits its border")
    near = np.abs(_distance(points, ellipse[None])[0]) < tolerance
    x, y = ((points[near] - ellipse[:2]) / ellipse[2:]).T
    covered = len(np.unique(((np.arctan2(y, x) / math.pi + 1) / 2 * SECTORS).astype(int))) / SECTORS
    columns, rows = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    beyond = ((columns - ellipse[0]) / ellipse[2]) ** 2 + ((rows - ellipse[1]) / ellipse[3]) ** 2 > (
        1 + 1.5 * tolerance / ellipse[2:].min()
    ) ** 2
    outside = (mask & beyond).sum() / mask.sum()
    filled = (mask & ~beyond).sum() / max((~beyond).sum(), 1)
    reason = ""
    if covered < 0.12 or near.mean() < 0.3:
        reason = "too little of its border lies on an ellipse"
    elif outside > 0.02 or filled < 0.6:
        reason = "what is bright does not fill an ellipse"
    elif (np.minimum(ellipse[:2], frame - ellipse[:2]) < 0.45 * ellipse[2:]).any():
        reason = "the ellipse lies largely beyond the image"
    return _Fit(ellipse, covered * near.mean() - 5 * max(outside - 0.005, 0), reason, near.mean())


def _largest_part(mask: Array) -> Array:
    labels, count = ndimage.label(mask)
    return mask if count < 2 else labels == np.bincount(labels.ravel())[1:].argmax() + 1


def _border(level: Array, mask: Array, threshold: float) -> Array:
    """Where each row and column enters and leaves the mask: points [N, 2] (x, y), but for those at the image's edge."""
    points = []
    for axis in (0, 1):
        for backwards in (False, True):
            a, inside = (level.T, mask.T) if axis else (level, mask)
            if backwards:
                a, inside = a[:, ::-1], inside[:, ::-1]
            first = inside.argmax(axis=1)
            rows = np.flatnonzero(first > 1)  # 0 too where a row has none
            i = first[rows]
            # the level on the way in; halfway up is where the border was before it was blurred
            taps = np.clip(i[:, None] + np.arange(-1, 4), 0, a.shape[1] - 1)
            way = a[rows[:, None], taps]
            half = np.maximum(threshold, way.max(axis=1) / 2)
            k, n = np.maximum((way >= half[:, None]).argmax(axis=1), 1), np.arange(len(rows))
            low, high = way[n, k - 1], way[n, k]
            place = i + k - 0.5 - np.clip((high - half) / np.maximum(high - low, 1e-6), 0, 1)
            pair = [a.shape[1] - place if backwards else place, rows + 0.5]
            points.append(np.stack(pair[::-1] if axis else pair, axis=1))
    return np.concatenate(points)


def _through(points: Array, origin: Array, random: np.random.RandomState, parameters: int) -> Array:
    """Circles (3 parameters) or ellipses (4) through random points: [K, 4]."""
    scale = np.abs(points - origin).max()
    chosen = (points[random.randint(0, len(points), (SAMPLES, parameters))] - origin) / scale
    squares = chosen**2
    # a x^2 + b y^2 + c x + d y = 1: the origin, the mask's center of gravity, is never on the border
    terms = squares if parameters == 4 else squares.sum(axis=-1, keepdims=True)
    matrix = np.concatenate([terms, chosen], axis=-1)
    matrix = matrix[np.abs(np.linalg.det(matrix)) > 1e-9]
    solution = np.linalg.solve(matrix, np.ones((len(matrix), parameters, 1)))[..., 0]
    a, b, c, d = (solution if parameters == 4 else solution[:, [0, 0, 1, 2]]).T
    with np.errstate(all="ignore"):
        x, y = -c / (2 * a), -d / (2 * b)
        size = 1 + a * x * x + b * y * y
        ellipses = scale * np.stack([x, y, np.sqrt(size / a), np.sqrt(size / b)], axis=1)
    return ellipses + np.append(origin, [0, 0])


def _plausible(ellipses: Array, frame: Array) -> Array:
    with np.errstate(all="ignore"):
        center, radius = ellipses[:, :2] / frame, ellipses[:, 2:] / frame
        ratio = ellipses[:, 3] / ellipses[:, 2]
        good = (np.abs(center - 0.5).max(1) < 0.4) & (radius.min(1) > 0.15) & (radius.max(1) < 1)
        return ellipses[good & (ratio > 0.5) & (ratio < 2)]


def _distance(points: Array, ellipses: Array) -> Array:
    """Signed distances [K, N] along the ray from the center, positive outside."""
    x, y = points[:, 0] - ellipses[:, :1], points[:, 1] - ellipses[:, 1:2]
    r = np.sqrt((x / ellipses[:, 2:3]) ** 2 + (y / ellipses[:, 3:]) ** 2)
    return (1 - 1 / np.maximum(r, 1e-3)) * np.sqrt(x * x + y * y)


def _cost(distance: Array, tolerance: float) -> Array:
    """Mean cost [K]; the retina may be dark, or cut off, inside of its circle, but nothing is bright outside."""
    d = distance / tolerance
    return (np.minimum(d * d, 1) * np.where(d > 1, 1.5, 1)).mean(axis=1)


def _refined(points: Array, ellipse: Array, tolerance: float, frame: Array, parameters: int) -> Array:
    """One step of Gauss-Newton on the points near the ellipse."""
    distance = _distance(points, ellipse[None])[0]
    near = np.abs(distance) < tolerance
    x, y = (points[near] - ellipse[:2]).T
    if len(x) < 8:
        return ellipse
    u, v = x / ellipse[2], y / ellipse[3]
    r2 = u * u + v * v
    gradient = np.stack([u / ellipse[2], v / ellipse[3], u * u / ellipse[2], v * v / ellipse[3]])
    gradient *= np.sqrt((x * x + y * y) / r2) / r2
    if parameters == 3:
        gradient = np.stack([gradient[0], gradient[1], gradient[2] + gradient[3]])
    step = np.linalg.solve(gradient @ gradient.T + 1e-9 * np.eye(parameters), gradient @ distance[near])
    new = ellipse + (step if parameters == 4 else step[[0, 1, 2, 2]])
    return new if len(_plausible(new[None], frame)) else ellipse
