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
"""Synthetic fundus photographs ("phantoms") with a grade of diabetic retinopathy, free of shortcuts.

Real collections leak the grade through the camera: the shape of the field of view and the mean color alone predict it.
Here the eye and the camera come from random streams that know nothing of the grade, and the color statistics of the
field are set to values that the camera drew, after the lesions are painted. Only the lesions tell the grade.

The lesions follow the international clinical severity scale (Wilkinson et al., Ophthalmology 2003, 110, 1677-1682).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

__all__ = ["fundus_phantom", "phantom_arrays"]

GRADES = 5
MIN_SIZE = 32
# Shares of the grades 0-4 in a screening population: the counts of APTOS 2019.
GRADE_SHARES = np.array([1805, 370, 999, 193, 295]) / 3662

# Lengths are in units of the radius of a 45 degree field. The fovea is the origin, x points to the nose, y down.
DISC_RADIUS = 0.145
FOVEA_TO_DISC = 5 * DISC_RADIUS  # 2.5 disc diameters

# Lesions by grade: fewest and most. No row ever falls: a higher grade is the same eye later.
MICROANEURYSMS = ((0, 0), (2, 5), (7, 14), (14, 24), (14, 24))
HEMORRHAGES = ((0, 0), (0, 0), (4, 9), (22, 36), (22, 36))
EXUDATE_CLUSTERS = ((0, 0), (0, 0), (1, 4), (2, 5), (2, 5))
COTTON_WOOL_SPOTS = ((0, 0), (0, 0), (0, 0), (3, 7), (3, 7))
NEW_VESSEL_TUFTS = ((0, 0), (0, 0), (0, 0), (0, 0), (1, 3))

# What blood absorbs and what bright lesions reflect, relative to the bare retina, in R, G, B.
BLOOD = (0.30, 0.95, 0.90)
EXUDATE = (1.35, 2.10, 1.10)
COTTON_WOOL = (1.20, 1.70, 2.10)

Array = np.ndarray


class _Camera(NamedTuple):
    """One photograph's geometry and exposure; drawn without the grade."""

    size: int
    side: int  # 1: the disc lies right of the fovea (a right eye), -1: left
    scale: float  # pixels per retina unit
    fovea: Array  # x, y in pixels
    cover: Array  # HW, share of each pixel inside the field of view
    light: Array  # HW, illumination
    blur: float  # in retina units
    noise: float  # standard deviation in gray levels
    black: float  # gray level of the surround
    mean: Array  # of R, G, B in the field, (3, 1, 1), in gray levels
    deviation: Array

    def grid(self) -> tuple[Array, Array]:
        """Retina coordinates x (1, W) and y (H, 1) of the pixel centers."""
        center = (np.arange(self.size) + 0.5 - self.fovea[:, None]) / self.scale
        x, y = center.astype(np.float32)
        return self.side * x[None], y[:, None]


def fundus_phantom(grade: int, size: int = 128, seed: int = 0) -> Array:
    """Draw a synthetic fundus photograph with the lesions of one grade of diabetic retinopathy.

    The same seed with another grade or size is the same eye taken by the same camera. Lesions: 0 none; 1 a few
    microaneurysms; 2 more of them, hemorrhages and hard exudates; 3 many hemorrhages in all quadrants, cotton-wool
    spots and beaded veins; 4 new vessels and mostly a preretinal hemorrhage on top. A higher grade keeps the lesions of
    the lower ones. They are larger than life, to be seen at 64 px.

    Args:
        grade: 0 (none) to 4 (proliferative).
        size: height and width in pixels, at least 32.
        seed: non-negative; fixes eye, camera and lesions.

    Returns:
        RGB image, CHW (3, size, size), uint8, the same in every run. The surround is below 8 in all channels, the field
        of view above 8 in red.

    Raises:
        ValueError: when ``grade``, ``size`` or ``seed`` is out of range.
    """
    if grade not in range(GRADES):
        raise ValueError(f"grade must be an integer from 0 to {GRADES - 1}, got {grade!r}.")
    if size < MIN_SIZE:
        raise ValueError(f"size must be at least {MIN_SIZE} pixels, got {size}.")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")
    eye, camera_stream, noise, *lesions = (np.random.default_rng([seed, stream]) for stream in range(9))
    camera = _camera(camera_stream, size)
    retina = _retina(eye, camera)
    disc = np.array([FOVEA_TO_DISC, eye.uniform(-0.14, 0.04)])
    _paint_disc(eye, camera, retina, disc)
    blood = _vessels(eye, camera, disc, beaded=grade >= 3)
    _paint_lesions(lesions, camera, retina, blood, disc, grade)
    return _expose(noise, camera, retina)


def phantom_arrays(n: int, size: int = 64, seed: int = 0) -> tuple[Array, Array]:
    """Draw a data set of phantoms with the grades of a screening population (49, 10, 27, 5 and 8 %).

    Eye and camera of image i depend on ``seed`` and i alone, so that a larger set continues a smaller one; only where
    grades are changed to give each of them ``n // 20`` images may the lesions differ.

    Args:
        n: number of images, at least 1.
        size: height and width in pixels, at least 32.
        seed: non-negative.

    Returns:
        Images (n, 3, size, size) uint8 and grades (n,) int64.

    Raises:
        ValueError: when an argument is out of range.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")
    draws = np.random.default_rng(seed).random(n)
    grades = np.searchsorted(np.cumsum(GRADE_SHARES)[:-1], draws, side="right").astype(np.int64)
    for grade in range(GRADES):
        while np.count_nonzero(grades == grade) < n // 20:
            most = int(np.bincount(grades).argmax())
            grades[np.flatnonzero(grades == most)[-1]] = grade
    seeds = (int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0]) for i in range(n))
    return np.stack([fundus_phantom(int(g), size, s) for g, s in zip(grades, seeds, strict=True)]), grades


def _rgb(*values: float) -> Array:
    """One value a channel, (3, 1, 1). Single precision all over: the pictures are drawn twice as fast."""
    return np.array(values, dtype=np.float32)[:, None, None]


def _camera(rng: np.random.Generator, size: int) -> _Camera:
    """Draw eye side, gaze, field of view, illumination and exposure."""
    half = size / 2
    side = 1 if rng.random() < 0.5 else -1
    cut = rng.random() < 0.5  # the sensor cuts off top and bottom of the circle
    radius = half * (rng.uniform(0.92, 1.16) if cut else rng.uniform(0.80, 0.98))
    center = half * (1 + rng.uniform(-0.04, 0.04, 2))
    top, bottom = (radius * rng.uniform(0.76, 0.92, 2)).tolist() if cut else (radius, radius)
    scale = radius / rng.uniform(0.92, 1.10)  # the zoom
    # The gaze lies between fovea and disc.
    gaze = np.array([rng.uniform(0.0, 0.45) * side, rng.uniform(-0.08, 0.08)])

    pixel = np.arange(size, dtype=np.float32) + 0.5
    x, y = (pixel - float(center[0]))[None], (pixel - float(center[1]))[:, None]
    distance = np.hypot(x, y)
    inside = np.minimum(radius - distance, np.minimum(y + top, bottom - y))
    if rng.random() < 0.4:  # the notch that tells the photographer which way is up
        along, across = (x - y) / np.sqrt(2), (x + y) / np.sqrt(2)
        notch = np.minimum(radius * 0.03 - np.abs(across), radius * 1.035 - along)
        inside = np.maximum(inside, np.where(along > 0, notch, -size))

    r2, phi = (distance / radius) ** 2, rng.uniform(0, 2 * np.pi)
    tilt = (x * math.cos(phi) + y * math.sin(phi)) / radius
    light = 1 + rng.uniform(0.0, 0.35) * tilt - rng.uniform(0.10, 0.40) * r2 - rng.uniform(0.0, 0.30) * r2**3
    if rng.random() < 0.15:  # stray light from the iris, a crescent at the rim
        light = light + rng.uniform(0.3, 0.8) * np.clip(tilt + r2 - 1.25, 0, 1)

    red = rng.uniform(70, 180)
    mean = red * _rgb(1, rng.uniform(0.42, 0.66), rng.uniform(0.08, 0.36))
    deviation = mean * rng.uniform(0.18, 0.28) * _rgb(*rng.uniform([0.8, 0.95, 1.1], [1.0, 1.2, 1.6]))
    return _Camera(
        size=size,
        side=side,
        scale=scale,
        fovea=center - gaze * scale,
        cover=np.clip(inside + 0.5, 0, 1),
        light=np.maximum(light, 0.1),
        blur=rng.uniform(0.002, 0.014),
        noise=rng.uniform(0.5, 3.0),
        black=rng.uniform(0.0, 3.0),
        mean=mean,
        deviation=deviation,
    )


def _waves(rng: np.random.Generator, x: Array, y: Array, low: float, high: float, spread: float) -> Array:
    """Smooth texture (HW), unit variance: waves of ``low`` to ``high`` radians a unit, up to ``spread`` off an axis."""
    count = 64
    k, phi = np.geomspace(low, high, count), rng.uniform(0, np.pi) + spread * rng.uniform(-1, 1, count)
    phase = rng.uniform(0, 2 * np.pi, (count, 1)).astype(np.float32)
    # cos(a + b), summed over the waves, as a product of matrices; einsum, since BLAS threads cost more than they bring.
    a, b = (k * np.sin(phi)).astype(np.float32) * y, (k * np.cos(phi))[:, None].astype(np.float32) * x + phase
    rows, columns = np.hstack([np.cos(a), -np.sin(a)]), np.vstack([np.cos(b), np.sin(b)])
    return np.einsum("ik,kj->ij", rows, columns) * math.sqrt(2 / count)


def _retina(rng: np.random.Generator, camera: _Camera) -> Array:
    """Bare retina, CHW, 1 on average: pigment, choroidal vessels that shine through, macula."""
    x, y = camera.grid()
    pigment = _waves(rng, x, y, 2, 60, np.pi)
    stripes = np.exp(-((_waves(rng, x, y, 12, 40, 0.9) / 0.4) ** 2)) * np.clip(0.5 + pigment, 0, 1.5)
    retina = 1 + pigment * _rgb(0.04, 0.05, 0.05)
    retina += max(0.0, rng.uniform(-0.1, 0.16)) * stripes * _rgb(1, 1, 0.5)
    r2 = x**2 + y**2
    macula = rng.uniform(0.7, 1.2) * np.exp(-r2 / (2 * rng.uniform(0.11, 0.16) ** 2))
    pit = 0.5 * np.exp(-r2 / (2 * 0.04**2))
    return retina * np.exp(-(macula + pit) * _rgb(0.32, 0.38, 0.30))


def _paint_disc(rng: np.random.Generator, camera: _Camera, retina: Array, disc: Array) -> None:
    """Brighten the optic disc: a glow around it, a yellow rim, a paler cup."""
    x, y = camera.grid()
    radius, cup = DISC_RADIUS * rng.uniform(0.9, 1.1), rng.uniform(0.35, 0.6)
    distance = np.hypot(x - disc[0], (y - disc[1]) * rng.uniform(0.86, 0.96)) / radius
    glow = np.exp(-((distance / 3.0) ** 2))
    rim = 1 / (1 + np.exp((distance - 1) / 0.06))
    pale = 1 / (1 + np.exp((distance - cup) / 0.10))
    for plane, weights in zip(retina, ((0.06, 0.42, 0.18), (0.08, 0.75, 0.65), (0.08, 0.80, 1.50)), strict=True):
        plane += weights[0] * glow + weights[1] * rim + weights[2] * pale


def _stamp(canvas: Array, camera: _Camera, points: Array, radius: Array, value: Array) -> None:
    """Draw N discs (points (N, 2) and radius (N,) in retina units) with smooth edges; the greater value stays."""
    radius = radius * camera.scale
    reach = int(np.ceil(radius.max(initial=0)))
    center = camera.fovea + points * [camera.side * camera.scale, camera.scale]
    seen = np.all((center > -reach) & (center < camera.size + reach), axis=1)
    radius, value = radius[seen, None, None].astype(np.float32), value[seen, None, None].astype(np.float32)
    center = center[seen, :, None].astype(np.float32)
    cells = np.floor(center) + np.arange(-reach, reach + 1, dtype=np.float32)  # N, (x, y), reach
    # Cells out of the picture are infinitely far away.
    squares = np.where((cells >= 0) & (cells < camera.size), (cells + 0.5 - center) ** 2, np.float32(np.inf))
    ink = radius + 0.5 - np.sqrt(squares[:, 1, :, None] + squares[:, 0, None])
    # A disc narrower than a pixel fills only a part of it.
    ink = np.clip(ink, 0, np.minimum(2 * radius, 1)) * value
    cells = np.clip(cells, 0, camera.size - 1).astype(np.intp)
    index = cells[:, 1, :, None] * camera.size + cells[:, 0, None]
    np.maximum.at(canvas.reshape(-1), index.ravel(), ink.ravel())  # fast for equal types only


class _Vessels(NamedTuple):
    """B vessels as paths of T points."""

    points: Array  # BT2
    heading: Array  # BT, radians
    width: Array  # BT
    length: Array  # B
    vein: Array  # B, bool


def _grow(
    rng: np.random.Generator,
    start: Array,
    heading: Array,
    bend: Array,
    length: Array,
    width: Array,
    vein: Array,
    wiggle: float,
) -> _Vessels:
    """Paths from ``start`` (B2) that turn by ``bend`` in all, most of it early, and taper."""
    draws = rng.random((len(heading), 3), dtype=np.float32)[..., None]
    s = np.linspace(0, 1, 32, dtype=np.float32)
    first, turn, reach, caliber = np.stack([heading, bend, length, width]).astype(np.float32)[..., None]
    waves = np.sin(2 * np.pi * ((2 + 3 * draws[:, 0]) * reach * s + draws[:, 1]))
    angle = first + turn * (1 - np.exp(-3.5 * s)) + wiggle * (waves + 3 * (draws[:, 2] - 0.5) * s)
    step = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * (reach[..., None] / (len(s) - 1))
    step[:, 0] = 0
    return _Vessels(start[:, None] + np.cumsum(step, axis=1), angle, caliber * (1 - 0.6 * s), length, vein)


def _branch(rng: np.random.Generator, parents: _Vessels, children: int) -> _Vessels:
    """Let ``children`` branches leave each vessel, to alternating sides."""
    count = len(parents.length)
    share = (np.arange(children) + rng.uniform(0.3, 1.1, (count, children))) / (children + 0.5)
    at = np.round(share * (parents.heading.shape[1] - 1)).astype(np.intp)
    row = np.arange(count)[:, None]
    turn = np.where((np.arange(children) + rng.integers(0, 2, (count, 1))) % 2, 1, -1)
    turn = turn * rng.uniform(0.45, 1.0, (count, children))
    return _grow(
        rng,
        start=parents.points[row, at].reshape(-1, 2),
        heading=(parents.heading[row, at] + turn).ravel(),
        bend=(turn * rng.uniform(-0.9, 0.3, turn.shape)).ravel(),
        length=(parents.length[:, None] * (1.15 - share) * rng.uniform(0.3, 0.65, share.shape)).ravel(),
        width=(parents.width[row, at] * rng.uniform(0.5, 0.75, share.shape)).ravel(),
        vein=np.repeat(parents.vein, children),
        wiggle=0.22,
    )


def _vessels(rng: np.random.Generator, camera: _Camera, disc: Array, beaded: bool) -> Array:
    """Optical density of the vessel tree, HW: from the disc four arteries, four veins and two small ones."""
    # Headings in degrees from the nose, per half: temporal arcade (artery, vein), nasal (artery, vein), macular twig.
    heading, spread = np.array([88, 98, 48, 36, 150]), np.array([9, 9, 10, 10, 12])
    bend = np.array([88, 86, -10, -6, 25])
    length, width = np.array([1.9, 1.9, 1.0, 1.0, 0.45]), np.array([0.026, 0.036, 0.019, 0.025, 0.013])
    heading, bend = heading + spread * rng.uniform(-1, 1, (2, 5)), bend + 14 * rng.uniform(-1, 1, (2, 5))
    half = np.array([[-1], [1]])
    start = disc + DISC_RADIUS * rng.uniform([0.0, -0.4], [0.45, 0.4], (10, 2))
    tree = _grow(
        rng,
        start=start,
        heading=np.deg2rad(half * heading).ravel(),
        bend=np.deg2rad(half * bend).ravel(),
        length=(length * rng.uniform(0.85, 1.1, (2, 5))).ravel(),
        width=(width * rng.uniform(0.85, 1.15, (2, 5))).ravel(),
        vein=np.tile([False, True, False, True, False], 2),
        wiggle=0.13,
    )
    density = np.zeros((camera.size, camera.size), dtype=np.float32)
    for children in (5, 2, 0):
        phase = rng.uniform(0, 2 * np.pi, (len(tree.length), 1))
        width = tree.width
        if beaded:
            beads = np.sin(np.linspace(0, 1, width.shape[1]) * tree.length[:, None] * 2 * np.pi / 0.13 + phase)
            width = width * (1 + 0.5 * tree.vein[:, None] * beads)
        _trace(density, camera, tree, width, np.where(tree.vein, 0.95, 0.65))
        if children:
            tree = _branch(rng, tree, children)
    x, y = camera.grid()
    return density * (1 - np.exp(-(x**2 + y**2) / 0.13**2))  # the fovea has no vessels


def _trace(canvas: Array, camera: _Camera, vessels: _Vessels, width: Array, value: Array) -> None:
    """Draw B vessels, ``width`` (BT) wide, as rows of discs less than a pixel apart."""
    count = np.ceil(vessels.length * camera.scale / 0.7).astype(np.intp)
    vessel = np.repeat(np.arange(len(count)), count)
    nth = np.arange(len(vessel)) - np.repeat(np.cumsum(count) - count, count)
    at = nth * ((width.shape[1] - 1) / count)[vessel]
    low = at.astype(np.intp)
    share = (at - low)[:, None]
    points = vessels.points[vessel, low] * (1 - share) + vessels.points[vessel, low + 1] * share
    _stamp(canvas, camera, points, width[vessel, low] / 2, value[vessel])


def _scatter(rng: np.random.Generator, limits: tuple[int, int], disc: Array, inner: float, outer: float) -> Array:
    """Places (N, 2) off the disc, in the four quadrants around the posterior pole in turn."""
    low, high = limits
    count = low + int(rng.random() * (high - low + 1))
    # All grades take as many numbers from the stream, so that the first lesions are the same.
    first, draws = rng.integers(4), rng.random((64, 2))[:count]
    angle = (np.arange(count) + first + draws[:, 0]) * np.pi / 2
    radius = np.sqrt(inner**2 + (outer**2 - inner**2) * draws[:, 1])
    places = np.array([0.2, 0.0]) + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    away = places - disc
    distance = np.maximum(np.hypot(*away.T), 1e-6)[:, None]
    return disc + away * np.maximum(distance, 1.3 * DISC_RADIUS) / distance


def _paint_lesions(
    streams: list[np.random.Generator], camera: _Camera, retina: Array, blood: Array, disc: Array, grade: int
) -> None:
    """Paint blood vessels and lesions; each kind has its own stream, so that kinds do not disturb each other."""
    dots, blots, hard, soft, tufts, boat = streams
    x, y = camera.grid()

    places = _scatter(dots, MICROANEURYSMS[grade], disc, 0.1, 0.72)
    _stamp(blood, camera, places, np.full(len(places), 0.019), np.full(len(places), 1.25))

    places = _scatter(blots, HEMORRHAGES[grade], disc, 0.2, 0.85)
    count = len(places)
    # A blot is four overlapping discs; they line up along the nerve fibers, away from the disc, in a flame.
    away = places - disc
    shape = blots.random((count, 14))
    line = np.where(shape[:, :1] < 0.35, 0.05, 0.012) * away / np.maximum(np.hypot(*away.T), 1e-6)[:, None]
    parts = places[:, None] + np.linspace(-1, 1, 4)[:, None] * line[:, None]
    parts += 0.016 * (shape[:, 1:9].reshape(count, 4, 2) * 2 - 1)
    radius = (0.014 + 0.020 * shape[:, 9:10] ** 2) * (0.6 + 0.7 * shape[:, 10:14])
    _stamp(blood, camera, parts.reshape(-1, 2), radius.ravel(), np.tile([0.9, 1.4, 1.15, 1.0], count))

    for place in _scatter(tufts, NEW_VESSEL_TUFTS[grade], disc, 0.35, 0.7):
        if tufts.random() < 0.4:
            place = disc + 0.6 * DISC_RADIUS * tufts.uniform(-1, 1, 2)
        count = 18
        tuft = _grow(
            tufts,
            start=place + tufts.normal(0, 0.02, (count, 2)),
            heading=tufts.uniform(0, 2 * np.pi, count),
            bend=tufts.uniform(-4, 4, count),
            length=tufts.uniform(0.2, 0.42, count),
            width=np.full(count, 0.014),
            vein=np.zeros(count, dtype=bool),
            wiggle=0.9,
        )
        _trace(blood, camera, tuft, tuft.width, np.full(count, 1.1))

    if grade == 4 and boat.random() < 0.75:  # blood before the retina sinks: flat above, round below
        center, length = boat.uniform([-0.35, 0.1], [0.6, 0.45]), boat.uniform(0.16, 0.28)
        inside = length * (1 - np.hypot((x - center[0]) / length, (y - center[1]) / (0.65 * length)))
        pool = 1.7 * np.clip(np.minimum(inside, y - center[1]) * camera.scale + 0.5, 0, 1)
        np.maximum(blood, pool, out=blood)

    exudate = np.zeros_like(blood)
    for place in _scatter(hard, EXUDATE_CLUSTERS[grade], np.zeros(2), 0.1, 0.6):
        count = int(hard.integers(8, 20))
        grains = place + hard.uniform(0.03, 0.08) * hard.normal(0, 1, (count, 2))
        _stamp(exudate, camera, grains, hard.uniform(0.008, 0.023, count), np.full(count, 0.95))

    cotton = np.zeros_like(blood)
    for place in _scatter(soft, COTTON_WOOL_SPOTS[grade], disc, 0.35, 0.75):
        a, b = soft.uniform([0.04, 0.03], [0.075, 0.05])
        phi = soft.uniform(0, np.pi)
        u = (x - place[0]) * np.cos(phi) + (y - place[1]) * np.sin(phi)
        v = (y - place[1]) * np.cos(phi) - (x - place[0]) * np.sin(phi)
        np.maximum(cotton, 0.8 * np.exp(-(((u / a) ** 2 + (v / b) ** 2) ** 1.5)), out=cotton)

    for plane, absorbed, yellow, white in zip(retina, BLOOD, EXUDATE, COTTON_WOOL, strict=True):
        plane += exudate * (yellow - plane)
        plane *= np.exp(-absorbed * blood)
        plane += cotton * (white - plane)


def _expose(rng: np.random.Generator, camera: _Camera, retina: Array) -> Array:
    """Turn the retina (CHW) into the photograph (uint8): light, optics, white balance, noise, field of view."""
    # Red and blue are softer than green, as the color planes of a JPEG file are.
    planes = retina * camera.light
    for plane, soft in zip(planes, (1.3, 1.0, 1.6), strict=True):
        gaussian_filter(plane, np.hypot(camera.blur * soft * camera.scale, 0.3), output=plane, truncate=3)
    # The field gets the mean and deviation that the camera drew, whatever the lesions did to them: else they would tell
    # the grade. Clipping disturbs both, hence the repetition. Red stays above the surround, so that no lesion can make
    # a hole in the field of view.
    share = np.float32(1 / np.count_nonzero(camera.cover)) * (camera.cover > 0)
    low = _rgb(14, 0, 0)
    for _ in range(3):
        planes -= (planes * share).sum(axis=(1, 2), keepdims=True)
        planes *= camera.deviation / np.sqrt((planes**2 * share).sum(axis=(1, 2), keepdims=True))
        planes += camera.mean
        np.clip(planes, low, 255, out=planes)
    white = rng.standard_normal((4, camera.size, camera.size), dtype=np.float32)
    grain = gaussian_filter(white, (0, 0.5, 0.5), truncate=3)
    grain = camera.noise * (1.4 * grain[0] + 0.8 * grain[1:])  # gray more than color
    surround = np.clip(camera.black + grain / 2, 0, 7)
    photograph = surround + camera.cover * (np.clip(planes + grain, low, 255) - surround)
    return np.round(photograph).astype(np.uint8)
