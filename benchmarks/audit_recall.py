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
"""How often the audit finds a copy of a photograph, and how often it is right.

Each image is copied in every way below. Of each kind of copy, the recall is the share that is linked to its original;
the precision is the share of linked pairs, over originals and copies of that kind, that belong together. Pairs of
originals that are linked without any copy are no mistakes of these copies: a person has to judge them. They are listed.

    python benchmarks/audit_recall.py --data data/idrid

With ``--other`` it counts the links between two data sets from different clinics instead: each is a mistake, whatever
the method itself holds for the truth.

    python benchmarks/audit_recall.py --data data/idrid --other data/aptos2019
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance

from conrec_monai.data import load_datalist, read_image
from conrec_monai.evaluation.duplicates import field_patch, linked, near_pairs


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def copy(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return copy


def resized(horizontal: float, vertical: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize(
        (round(image.width * horizontal), round(image.height * vertical)), Image.Resampling.BICUBIC
    )


def brighter(levels: int) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.point(lambda value: value + levels)


def scaled(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


def padded(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (image.width * 5 // 4, image.height))
    canvas.paste(image, (image.width // 8, 0))
    return canvas


def cropped(image: Image.Image) -> Image.Image:
    x, y = image.width // 50, image.height // 50
    return image.crop((x, y, image.width - x, image.height - y))


def all_at_once(image: Image.Image) -> Image.Image:
    return jpeg(75)(brighter(20)(resized(0.6, 0.6)(image).transpose(Image.Transpose.ROTATE_90)))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 90": jpeg(90),
    "JPEG, quality 75": jpeg(75),
    "JPEG, quality 60": jpeg(60),
    "resized to 50 %": resized(0.5, 0.5),
    "resized to 150 %": resized(1.5, 1.5),
    "squashed to 4:3": resized(4 / 3, 1),
    "turned by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 180 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "20 levels brighter": brighter(20),
    "20 levels darker": brighter(-20),
    "brightness x 1.3": scaled(1.3),
    "brightness x 0.7": scaled(0.7),
    "black bars at the sides": padded,
    "2 % cut off at each side": cropped,
    "50 %, 90 degrees, brighter, JPEG 75": all_at_once,
}


def patch(image: Image.Image) -> torch.Tensor | None:
    return field_patch(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def load(path: str, limit: int | None, size: int | None) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """Items and images of a data set, as the options say."""
    items = list(load_datalist(path, on_error="skip"))
    if limit is not None and limit < len(items):
        items = [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]
    images = []
    for item in items:
        array = item["image"] if isinstance(item["image"], np.ndarray) else read_image(item["image"])
        image = Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0))).convert("RGB")
        images.append(image.resize((size, size)) if size else image)
    return items, images


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Recall and precision of near duplicates on made copies.")
    parser.add_argument("--data", required=True, help="data set, as conrec-monai info takes it")
    parser.add_argument("--other", help="a data set that shares no photograph with it: count the links between both")
    parser.add_argument("--limit", type=int, help="only so many images, evenly spread")
    parser.add_argument("--size", type=int, help="bring the images to this side first")
    options = parser.parse_args(arguments)
    items, images = load(options.data, options.limit, options.size)
    count = len(images)
    originals = [patch(image) for image in images]
    if options.other is not None:
        others = [patch(image) for image in load(options.other, options.limit, options.size)[1]]
        across = [(a, b) for a, b in near_pairs([*originals, *others]) if a < count <= b]
        print(f"{options.data}: {count} images; {options.other}: {len(others)} images")
        print(f"of {count * len(others)} pairs across, {len(across)} are linked")
        return
    alike = linked(count, near_pairs(originals))
    truth = list(range(count))
    for group in alike:
        for i in group:
            truth[i] = group[0]
    print(f"{options.data}: {count} images, {sum(p is None for p in originals)} too small or uniform to be compared")
    print(f"originals linked with each other: {len(alike)} groups")
    for group in alike:
        print("  " + ", ".join(items[i]["id"] for i in group))
    print("\n| copy | recall | precision |\n|---|---|---|")
    for name, copy in COPIES.items():
        groups = linked(2 * count, near_pairs([*originals, *(patch(copy(image)) for image in images)]))
        pairs = [pair for group in groups for pair in combinations(group, 2)]
        found = sum(b - a == count for a, b in pairs)
        right = sum(truth[a % count] == truth[b % count] for a, b in pairs)
        precision = f"{100 * right / len(pairs):.1f} %" if pairs else "-"
        print(f"| {name} | {100 * found / count:.1f} % | {precision} |", flush=True)


if __name__ == "__main__":
    main()
