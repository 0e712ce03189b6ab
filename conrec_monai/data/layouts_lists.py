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

"""Layouts whose images are listed, split by split: Oxford Flowers 102 and Stanford Dogs.

Both are often passed on in part. What the lists name and the folder lacks is left out; the labels are then those of the
classes that are there, in official order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from .layouts import Found, ImageFinder, Item, lost_item, make_item, shown, subfolders
from .layouts_matlab import read_numbers, read_texts

__all__ = ["dogs", "flowers"]

CENTER_CROP = 0.875  # what the published evaluation sees of both
_FLOWERS = 102
# The training set is the small one, trnid, as published; some works train on tstid.
_FLOWER_SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}


class _Entry(NamedTuple):
    """An image as a list names it: the place in the list, path below the root, class in official order, split."""

    where: str
    name: str
    number: int | str
    split: str


def flowers(path: Path, keys: Mapping[str, str]) -> Found | None:
    labels, splits = path / "imagelabels.mat", path / "setid.mat"
    lists = {split: path / f"{name}.txt" for split, name in (("train", "train"), ("val", "valid"), ("test", "test"))}
    if not (path / "jpg").is_dir():
        if labels.is_file() and splits.is_file():
            raise ValueError(f"{path} holds imagelabels.mat and setid.mat, but no folder jpg with the images")
        return None
    if labels.is_file() or splits.is_file():
        for file in (labels, splits):
            if not file.is_file():
                raise ValueError(f"{path} holds no {file.name}, which belongs to the images in jpg")
        entries = _flower_matrices(labels, splits)
    elif all(file.is_file() for file in lists.values()):
        entries = [entry for split, file in lists.items() for entry in _flower_list(file, split)]
    else:
        return None
    return _found(path, entries, lambda number: f"class {number}")


def _flower_matrices(labels: Path, splits: Path) -> list[_Entry]:
    numbers = read_numbers(labels, "labels")
    for i, number in enumerate(numbers):
        if not 1 <= number <= _FLOWERS:
            raise ValueError(f"{labels}: the labels must be 1 to {_FLOWERS}, got {number} for image {i + 1}")
    entries = []
    for split, matrix in _FLOWER_SPLITS.items():
        for image in read_numbers(splits, matrix):
            if not 1 <= image <= len(numbers):
                raise ValueError(f"{splits}: {matrix} must hold images 1 to {len(numbers)}, got {image}")
            entries.append(_Entry(f"{splits}, {matrix}", f"jpg/image_{image:05d}.jpg", numbers[image - 1], split))
    return entries


def _flower_list(file: Path, split: str) -> list[_Entry]:
    entries = []
    for where, line in _lines(file):
        name, label = line.rsplit(None, 1) if len(line.split()) > 1 else ("", line)
        if not name or not re.fullmatch("[0-9]{1,3}", label) or int(label) >= _FLOWERS:
            expected = f"an image and a label from 0 to {_FLOWERS - 1}, as in 'jpg/image_00001.jpg 76'"
            raise ValueError(f"{where}: expected {expected}, got {shown(repr(line))}")
        entries.append(_Entry(where, name, int(label) + 1, split))
    return entries


def dogs(path: Path, keys: Mapping[str, str]) -> Found | None:
    images = path / "Images"
    if not any(re.match(r"n\d{8}-", folder.name) for folder in subfolders(images)):
        return None
    entries = []
    for split in ("train", "test"):
        candidates = [folder / f"{split}_list{kind}" for kind in (".mat", ".txt") for folder in (path, path / "lists")]
        file = next((file for file in candidates if file.is_file()), None)
        if file is None:
            raise ValueError(
                f"{path} holds the folder Images but no {split}_list.mat or {split}_list.txt; "
                f"without the official splits, {images} can be read as class folders"
            )
        if file.suffix == ".txt":
            lines = _lines(file)
        else:
            lines = [(f"{file}, line {i}", text) for i, text in enumerate(read_texts(file, "file_list"), 1)]
        for where, name in lines:
            if not re.fullmatch("[^/]+/[^/]+", name):
                raise ValueError(f"{where}: expected an image as <wnid>-<breed>/<file>, got {shown(repr(name))}")
            entries.append(_Entry(where, name, name.split("/")[0], split))
    return _found(images, entries, lambda folder: str(folder).partition("-")[2] or str(folder))


def _found(root: Path, entries: list[_Entry], class_name: Callable[[int | str], str]) -> Found:
    finder = ImageFinder([root])
    present: list[tuple[_Entry, Path]] = []
    lost: list[Item] = []
    for entry in entries:
        image = finder(entry.name)
        if image is not None:
            present.append((entry, image))
        else:
            reason = f"{entry.where}: {finder.missing(entry.name)}"
            lost.append(lost_item(root / entry.name, entry.name, entry.split, reason))
    numbers = sorted({entry.number for entry, _ in present})
    label = {number: i for i, number in enumerate(numbers)}
    items = [make_item(image, entry.name, label[entry.number], entry.split) for entry, image in present]
    names = [class_name(number) for number in numbers]
    return Found(items, names, lost=lost, may_be_partial=True, center_crop=CENTER_CROP)


def _lines(file: Path) -> list[tuple[str, str]]:
    """Return place and text of each line that is not blank."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except ValueError as error:
        raise ValueError(f"{file} is not a text file in UTF-8: {error}") from error
    return [(f"{file}, line {i}", line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
