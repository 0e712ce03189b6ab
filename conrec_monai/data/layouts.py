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

"""What the recognizers of data set layouts share: items, what is found, and how images are found in folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .image_reader import IMAGE_SUFFIXES, is_image_name

__all__ = [
    "DR_GRADES",
    "Found",
    "ImageFinder",
    "Item",
    "Layout",
    "holds_images",
    "image_folders",
    "images_in",
    "lost_item",
    "make_item",
    "shown",
    "some",
    "subfolders",
    "visible",
]

# The grades 0 to 4 of the International Clinical Diabetic Retinopathy scale.
DR_GRADES = ("No DR", "Mild", "Moderate", "Severe", "Proliferative DR")

# Pictures that are not read: beside others they would be lost silently.
_OTHER_IMAGE_SUFFIXES = (".gif", ".webp")

Item = dict[str, Any]


@dataclass
class Found:
    """What a recognizer returns.

    Attributes:
        items: as `make_item` gives them.
        class_names: name of each class in the order of the labels; None where unknown.
        label_column: the column or key that the labels were read from; None where they do not come from a table.
        ordinal: whether the labels are ordered grades.
        lost: items whose image is missing, with the "reason".
        may_be_partial: whether missing images are left out even if nobody asks for that.
        center_crop: the central share of the height and width that the published evaluation looks at.
    """

    items: list[Item]
    class_names: list[str] | None = None
    label_column: str | None = None
    ordinal: bool = False
    lost: list[Item] = field(default_factory=list)
    may_be_partial: bool = False
    center_crop: float = 1.0


class Layout(NamedTuple):
    """A layout: one word, a description for users, and what tells it from others.

    `recognize` takes the path and the columns that the user named, by role ("image", "label", "group", "split"), and
    returns None for any other layout. It is only asked about columns if `has_columns`.
    """

    source: str
    name: str
    recognize: Callable[[Path, Mapping[str, str]], Found | None]
    has_columns: bool = False


def make_item(
    image: str | Path | np.ndarray,
    name: str,
    label: int | None = None,
    split: str | None = None,
    group: str | None = None,
) -> Item:
    """Return an item of a `Datalist`; `name` is its id."""
    image = image if isinstance(image, np.ndarray) else str(image)
    return {"image": image, "label": label, "group": group, "split": split, "id": name}


def lost_item(image: str | Path, name: str, split: str | None, reason: str) -> Item:
    """Return what is kept of an item whose image is missing."""
    return {"id": name, "image": str(image), "split": split, "reason": reason}


class ImageFinder:
    """Finds the image that a table names.

    In each folder in turn it looks for a file of that very name (which may hold a path below the folder, or be an
    absolute one), then for the one image that is called so apart from the suffix, which may be missing or another.

    Args:
        folders: where to look; names are relative to these.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self._listed: dict[Path, tuple[set[str], dict[str, list[str]]]] = {}

    def __call__(self, name: str) -> Path | None:
        """Return the image, or None if there is none.

        Raises:
            ValueError: when there are two of that name with different suffixes.
        """
        for folder in self.folders:
            path = folder / name
            files, stems = self._list(path.parent)
            if path.name in files:
                return path
            matches = stems.get(path.name) or stems.get(_stem(path.name), [])
            if len(matches) > 1:
                names = " and ".join(shown(match) for match in matches[:2])
                raise ValueError(f"{path.parent} holds two images of the same name: {names}")
            if matches:
                return path.parent / matches[0]
        return None

    def missing(self, name: str) -> str:
        """Return what was looked for, in words."""
        suffix = "" if is_image_name(name) else ".*"
        return f"no image {' or '.join(shown(folder / name) for folder in self.folders)}{suffix}"

    def _list(self, folder: Path) -> tuple[set[str], dict[str, list[str]]]:
        """Return the names of the files in a folder, and of the images among them by their stem."""
        if folder not in self._listed:
            # One listing instead of a question per name: tables are long and network drives slow.
            files = sorted(file.name for file in os.scandir(folder) if file.is_file()) if os.path.isdir(folder) else []
            stems: dict[str, list[str]] = {}
            for name in files:
                if is_image_name(name) and not name.startswith("."):
                    stems.setdefault(_stem(name), []).append(name)
            self._listed[folder] = set(files), stems
        return self._listed[folder]


def _stem(name: str) -> str:
    """Return a file name without the suffix, if that is one of an image."""
    # The longest first: .nii.gz.
    suffix = max((s for s in IMAGE_SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(suffix)]


def visible(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted by name, without hidden files and what macOS puts into archives."""
    if not os.path.isdir(folder):
        return []
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__MACOSX")


def subfolders(folder: Path) -> list[Path]:
    return [entry for entry in visible(folder) if entry.is_dir()]


def images_in(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted by name.

    Raises:
        ValueError: when there are images of a kind that is not read among them, which would be lost silently.
    """
    files = [entry for entry in visible(folder) if entry.is_file()]
    images = [file for file in files if is_image_name(file.name)]
    others = [file.name for file in files if file.suffix.lower() in _OTHER_IMAGE_SUFFIXES]
    if images and others:
        raise ValueError(
            f"{folder} holds {len(images)} images that can be read, and {len(others)} of other kinds: {some(others)}"
        )
    return images


def holds_images(folder: Path) -> bool:
    return any(is_image_name(entry.name) and entry.is_file() for entry in visible(folder))


def image_folders(folder: Path) -> list[Path]:
    """Return where the images of a table may lie: its folder, and the one subfolder that holds images.

    Of several subfolders with images it is the one called "images", in any case; there may be none.
    """
    inside = [sub for sub in subfolders(folder) if holds_images(sub)]
    if len(inside) > 1:
        inside = [sub for sub in inside if sub.name.lower() == "images"]
    return [folder, *inside] if len(inside) == 1 else [folder]


def shown(name: object) -> str:
    """Return a name from a file as text of one line that can be written anywhere."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def some(names: Iterable[object], limit: int = 5) -> str:
    """Return the first names as one line."""
    texts = [shown(name) for name in names]
    return ", ".join(texts[:limit]) + (f", ... ({len(texts)} in all)" if len(texts) > limit else "")
