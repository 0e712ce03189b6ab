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
"""Finds images that show the same photograph.

Fundus photographs all look alike: a hash of what is coarse in them would merge different eyes. What tells an eye from
all others are its vessels. So an image is cropped to its field of view, brought to 64 x 64 pixels whatever its size,
and locally normalized: what remains is the pattern of fine structures, free of brightness, of the shape of the field
and of its rim, which all photographs of one camera share. A band of DCT coefficients of the pattern is its perceptual
hash, which proposes pairs in all eight orientations (turned or mirrored, coefficients only swap places and signs); the
correlation of the two patterns confirms them. docs/audit.md tells how often that is right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct

from conrec_monai.utils import progress_bar

__all__ = ["content_hash", "duplicate_groups", "field_patch", "linked", "merge_groups", "near_pairs"]

SIDE = 64  # of a pattern, in pixels
MIN_SIDE = 48  # images with a shorter side show too little of the vessels
REDUCED = 256  # the shorter side of larger images is brought to this first
FIELD = 0.15  # from the dark to the bright end of an image: what is brighter is inside the field of view
MIN_FIELD = 0.25  # of the crop: what must be well inside the field
TEXTURE = 0.25  # gray levels: standard deviation in a window of 7 x 7 from which on there is structure
MIN_TEXTURE = 0.96  # of the field: what must hold structure; drawn shapes have it at their edges alone
BAND = (6, 18)  # DCT coefficients of the hash: half waves per side, from (as a radius) and below (per axis)
CANDIDATE = 0.5  # cosine of two hashes from which on a pair is compared
SAME = 0.7  # correlation of two patterns from which on they are the same photograph
SHIFT = 3  # pixels by which two crops may be off
ROWS, COLUMNS, PAIRS = 1024, 4096, 512  # compared at a time


def content_hash(image: np.ndarray) -> str:
    """Hash of the pixels (CHW) as hexadecimal text: equal where shape, type and all values are."""
    digest = hashlib.blake2b(f"{image.dtype} {image.shape}".encode(), digest_size=16)
    # Decoded photographs lie in memory with the channels last: they are not copied.
    digest.update(np.ascontiguousarray(image.transpose(1, 2, 0)).data)
    return digest.hexdigest()


def field_patch(image: torch.Tensor) -> torch.Tensor | None:
    """Crop an image to its field of view and bring it to one size.

    Args:
        image: uint8 CHW with 1 or 3 channels.

    Returns:
        float16 [2, 64, 64]: luma in [0, 255], and how much of a pixel is inside the field of view, in [0, 1]. None when
        the image has a side below 48 pixels or is nearly uniform.
    """
    shorter = min(image.shape[1:])
    if shorter < MIN_SIDE:
        return None
    if shorter > REDUCED:
        size = [round(side * REDUCED / shorter) for side in image.shape[1:]]
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    brightness = image.amax(dim=0)
    cumulative = np.cumsum(np.bincount(brightness.flatten().numpy(), minlength=256)) / brightness.numel()
    dark, bright = (int(np.searchsorted(cumulative, share)) for share in (0.01, 0.95))
    if bright - dark < 16:
        return None
    # Relative, so that the crop stays where it is when the image becomes brighter or darker.
    inside = (brightness > dark + FIELD * (bright - dark)).float()
    rows, columns = (torch.nonzero(inside.mean(dim=dim) > 0.04).flatten() for dim in (1, 0))
    if not len(rows) or not len(columns):
        return None
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    crop = image[:, box[0], box[1]].float()
    luma = torch.einsum("chw,c->hw", crop, torch.tensor([0.299, 0.587, 0.114])) if len(crop) == 3 else crop[0]
    both = torch.stack([luma, inside[box]])[None]
    return F.interpolate(both, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)[0].half()


def near_pairs(patches: Sequence[torch.Tensor | None], progress: bool = False) -> list[tuple[int, int]]:
    """Find the patches that show the same photograph.

    Args:
        patches: of :func:`field_patch`; a None is like no other.
        progress: show a progress bar, on a terminal only.

    Returns:
        Pairs of positions, the lower one first, sorted. Pairs that follow from others (a and c, where a and b, b and c
        are there) may be missing: make groups of them by :func:`linked`.
    """
    there = [i for i, patch in enumerate(patches) if patch is not None]
    found: list[torch.Tensor] = []
    known: list[int] = []
    for start in range(0, len(there), ROWS):
        part = there[start : start + ROWS]
        pattern, tellable = _patterns(torch.stack([patch for i in part if (patch := patches[i]) is not None]))
        found.append(pattern[tellable])
        known += [i for i, keep in zip(part, tellable.tolist(), strict=True) if keep]
    if len(known) < 2:
        return []
    pattern = torch.cat(found)
    hashes = torch.cat([_hashes(part) for part in pattern.split(ROWS)])
    count = len(known)
    root = torch.arange(count)  # of the group that an image is in so far: its members need no comparison any more
    pairs = []
    for orientation in progress_bar(range(8), progress, desc="Comparing images"):
        turned = _turn_hashes(hashes, orientation).flatten(1)
        for row in range(0, count, ROWS):
            for column in range(row - row % COLUMNS, count, COLUMNS):
                cosine = hashes[row : row + ROWS].flatten(1) @ turned[column : column + COLUMNS].T
                i, j = torch.nonzero(cosine > CANDIDATE, as_tuple=True)
                i, j = i + row, j + column
                i, j = i[i < j], j[i < j]
                while (new := root[i] != root[j]).any():
                    i, j = i[new], j[new]
                    a, b = i[:PAIRS], j[:PAIRS]
                    same = _correlation(pattern[a], _turn(pattern[b], orientation)) > SAME
                    for p, q in zip(a[same].tolist(), b[same].tolist(), strict=True):
                        pairs.append((known[p], known[q]))
                        root[root == root[q]] = int(root[p])
                    i, j = i[PAIRS:], j[PAIRS:]
    return sorted(pairs)


def duplicate_groups(*images: torch.Tensor) -> list[list[int]]:
    """Find images that are equal, or show the same photograph.

    That a photograph was encoded again, resized, turned by 90, 180 or 270 degrees, mirrored, or made brighter or darker
    makes no difference. Images of less than 48 pixels, and those without structure in most of their field of view, such
    as drawn shapes, are only compared for equality.

    Args:
        *images: uint8 NCHW with 1 or 3 channels; several of them when the images have different sizes.

    Returns:
        Groups of two or more positions, each sorted, in the order of their first one; no image is in two groups. The
        positions of further images go on where those of the first end.

    Raises:
        ValueError: for images that are not uint8 NCHW.
    """
    for part in images:
        if part.ndim != 4 or part.dtype != torch.uint8 or part.shape[1] not in (1, 3):
            raise ValueError(
                f"expected uint8 images NCHW of 1 or 3 channels, got {part.dtype} of shape {list(part.shape)}"
            )
    every = [image for part in images for image in part.cpu()]
    hashes = [content_hash(image.numpy()) for image in every]
    first = dict(zip(reversed(hashes), reversed(range(len(hashes))), strict=True))
    patches = [
        field_patch(image) if first[key] == i else None
        for i, (key, image) in enumerate(zip(hashes, every, strict=True))
    ]
    return linked(len(every), [(first[key], i) for i, key in enumerate(hashes)] + near_pairs(patches))


def linked(count: int, links: Iterable[Sequence[int]]) -> list[list[int]]:
    """Close links transitively.

    Args:
        count: number of items N.
        links: positions 0..N-1 that belong together, of any number.

    Returns:
        Groups of two or more positions, each sorted, in the order of their first one.
    """
    root = list(range(count))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for link in links:
        for i in link[1:]:
            a, b = sorted((find(link[0]), find(i)))
            root[b] = a  # the lowest position is the root
    groups: dict[int, list[int]] = {}
    for i in range(count):
        groups.setdefault(find(i), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def merge_groups(groups: Sequence[Hashable | None], duplicates: Iterable[Sequence[int]]) -> list[int] | None:
    """Join the groups of a data set, such as patients, that share a photograph.

    Args:
        groups: [N] group of each image; None for an image that has none.
        duplicates: positions that belong together, such as :func:`duplicate_groups` gives them.

    Returns:
        [N] number of the group of each image, from 0 in the order of the images; an image that belongs to no other has
        a number of its own. None where that is so for all.

    Raises:
        ValueError: when a position is not one of the N images.
    """
    duplicates = [list(group) for group in duplicates]
    for group in duplicates:
        if outside := [i for i in group if not 0 <= i < len(groups)]:
            raise ValueError(f"a duplicate group holds image {outside[0]}, expected 0 to {len(groups) - 1}")
    members: dict[Hashable, list[int]] = {}
    for i, name in enumerate(groups):
        if name is not None:
            members.setdefault(name, []).append(i)
    joined = linked(len(groups), [*members.values(), *(group for group in duplicates if group)])
    if not joined:
        return None
    first = {i: group[0] for group in joined for i in group}
    numbers: dict[int, int] = {}
    return [numbers.setdefault(first.get(i, i), len(numbers)) for i in range(len(groups))]


def _mean(x: torch.Tensor, window: int) -> torch.Tensor:
    return F.avg_pool2d(x[:, None], window, 1, window // 2, count_include_pad=False)[:, 0]


def _patterns(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the patterns of [N, 2, 64, 64]: float16 [N, 64, 64] of norm 1; and [N], whether they can be told apart."""
    luma, inside = patches.float().unbind(dim=1)
    field = (_mean(inside, 5) > 0.98).float()
    area = field.sum(dim=(1, 2)).clamp(min=1)
    share = _mean(field, 7).clamp(min=1e-3)
    detail = (luma - _mean(luma * field, 7) / share) * field
    deviation = (_mean(detail**2, 7) / share).sqrt()
    textured = ((deviation > TEXTURE) * field).sum(dim=(1, 2)) / area
    usual = (deviation * field).sum(dim=(1, 2)) / area
    pattern = detail / (deviation + 0.5 * usual[:, None, None] + 1e-3)
    # The finest of it is what a JPEG encoder changes.
    weights = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * 0.7**2))
    weights /= weights.sum()
    pattern = F.conv2d(pattern[:, None], weights.outer(weights)[None, None], padding=2)[:, 0]
    pattern /= pattern.flatten(1).norm(dim=1).clamp(min=1e-3)[:, None, None]
    return pattern.half(), (field.mean(dim=(1, 2)) >= MIN_FIELD) & (textured >= MIN_TEXTURE)


def _hashes(pattern: torch.Tensor) -> torch.Tensor:
    """Return DCT coefficients [N, K, K] (vertical, horizontal frequency) of norm 1."""
    low, high = BAND
    waves = torch.from_numpy(dct(np.eye(SIDE, dtype=np.float32), axis=0, norm="ortho")[:high].copy())
    frequency = torch.arange(high)
    band = torch.hypot(frequency[:, None].float(), frequency.float()) >= low
    coefficients = waves @ pattern.float() @ waves.T * band
    return coefficients / coefficients.flatten(1).norm(dim=1).clamp(min=1e-6)[:, None, None]


def _turn_hashes(hashes: torch.Tensor, orientation: int) -> torch.Tensor:
    """Return the hashes of the patterns that `_turn` gives."""
    signs = (-1.0) ** torch.arange(hashes.shape[-1])
    if orientation & 1:
        hashes = hashes * signs
    if orientation & 2:
        hashes = hashes * signs[:, None]
    return hashes.transpose(1, 2) if orientation & 4 else hashes


def _turn(pattern: torch.Tensor, orientation: int) -> torch.Tensor:
    """Mirror left and right (1) and top and bottom (2), then transpose (4)."""
    if dims := [dim for bit, dim in ((1, 2), (2, 1)) if orientation & bit]:
        pattern = pattern.flip(dims)
    return pattern.transpose(1, 2) if orientation & 4 else pattern


def _correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return [N], the highest correlation of patterns [N, 64, 64] that are shifted by at most `SHIFT` pixels."""
    spectrum = torch.fft.rfft2(a.float()) * torch.fft.rfft2(b.float()).conj()
    product = torch.fft.irfft2(spectrum, s=(SIDE, SIDE)).roll((SHIFT, SHIFT), (1, 2))
    return product[:, : 2 * SHIFT + 1, : 2 * SHIFT + 1].flatten(1).amax(dim=1)
