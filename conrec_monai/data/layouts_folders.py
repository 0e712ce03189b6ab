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

"""Layouts without a table: class folders, and flat folders of images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .layouts import Found, holds_images, images_in, make_item, some, subfolders

__all__ = ["SPLIT_FOLDERS", "class_folders", "flat_folder"]

SPLIT_FOLDERS = ("train", "val", "test")
_OTHER_SPLITS = (*SPLIT_FOLDERS, "training", "valid", "validation", "testing")


def class_folders(path: Path, keys: Mapping[str, str]) -> Found | None:
    tops = subfolders(path)
    is_split = bool(tops) and all(folder.name.lower() in SPLIT_FOLDERS for folder in tops)
    if is_split and len({folder.name.lower() for folder in tops}) < len(tops):
        raise ValueError(f"{path} holds two folders of one split: {some(folder.name for folder in tops)}")
    parents = {folder.name.lower(): folder for folder in tops} if is_split else {None: path}
    images = {split: {sub.name: images_in(sub) for sub in subfolders(top)} for split, top in parents.items()}
    if not any(files for classes in images.values() for files in classes.values()):
        return None
    names = sorted({name for classes in images.values() for name in classes})
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    if len(names) < 2:
        return None
    for split, top in parents.items():
        missing = [name for name in names if name not in images[split]]
        if missing:
            raise ValueError(f"{top} has no folder for class {some(missing)}, which another split has")
        loose = images_in(top)
        if loose:
            raise ValueError(f"{top} holds both class folders and images of its own ({loose[0].name}, ...)")
    other = [name for name in names if name.lower() in _OTHER_SPLITS]
    if not is_split and other:
        raise ValueError(f"{path} holds the folders {some(names)}: splits must be called {', '.join(SPLIT_FOLDERS)}")
    for top in parents.values():
        deeper = [
            f"{sub.name}/{deep.name}" for sub in subfolders(top) for deep in subfolders(sub) if holds_images(deep)
        ]
        if deeper:
            raise ValueError(f"{top} holds images below its class folders, which would be lost: in {some(deeper)}")
    for name in names:
        # An empty folder would shift the labels of all the classes after it, were it left out.
        if not any(classes[name] for classes in images.values()):
            raise ValueError(f"{path}: class folder {name!r} holds no image")
    items = [
        make_item(file, file.relative_to(path).as_posix(), label, split)
        for split in sorted(images, key=lambda split: SPLIT_FOLDERS.index(split) if split else 0)
        for label, name in enumerate(names)
        for file in images[split][name]
    ]
    return Found(items, names, None, names == [str(i) for i in range(len(names))])


def flat_folder(path: Path, keys: Mapping[str, str]) -> Found | None:
    files = images_in(path)
    if not files:
        return None
    deeper = [folder.name for folder in subfolders(path) if images_in(folder)]
    if deeper:
        raise ValueError(f"{path} holds both images and subfolders with images ({some(deeper)})")
    return Found([make_item(file, file.name) for file in files])
