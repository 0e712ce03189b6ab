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

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .phantom import phantom_arrays
from .synthetic import CIRCLE_SQUARE, RECTANGLE_TRIANGLE, circle_square_arrays, rectangle_triangle_arrays

__all__ = ["DR_GRADES", "Datalist", "DatalistInfo", "load_datalist"]

# The grades 0 to 4 of the International Clinical Diabetic Retinopathy scale.
DR_GRADES = ("No DR", "Mild", "Moderate", "Severe", "Proliferative DR")

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_OTHER_IMAGE_SUFFIXES = (".tif", ".tiff", ".bmp", ".gif", ".webp", ".dcm")
_SPLIT_FOLDERS = ("train", "val", "test")

Item = dict[str, Any]


@dataclass(frozen=True)
class DatalistInfo:
    """What is known of a data set as a whole.

    Attributes:
        source: the layout in one word: "datalist", "aptos", "medmnist", "classes", "folder", "phantom",
            "circle-square" or "rectangle-triangle".
        name: the layout in words.
        path: where the data was read from, as given.
        class_names: name of each class in the order of the labels 0..k-1; None where unknown.
        label_column: the column or key that the labels were read from; None where they do not come from a table.
        ordinal: whether the labels are ordered grades.
        channels: 1 where all images are gray arrays, else 3.
    """

    source: str
    name: str
    path: str
    class_names: list[str] | None = None
    label_column: str | None = None
    ordinal: bool = False
    channels: int = 3


class Datalist(list[Item]):
    """List of items with `info`; fits every MONAI dataset.

    An item has "image" (path, or CHW uint8 array), "label" (int or None), "group" (str or None: items of one group,
    such as a patient, belong on one side of a split), "split" (str or None) and "id" (str, unique).
    """

    def __init__(self, items: Iterable[Item], info: DatalistInfo) -> None:
        super().__init__(items)
        self.info = info


def load_datalist(path: str | os.PathLike[str], section: str | None = None) -> Datalist:
    """List the images and labels of a data set, whatever its layout.

    - MONAI datalist (.json, as of the Medical Segmentation Decathlon): each key that holds a list of {"image": ...}
      objects is a section. Optional keys of an object: "label" (int), "group", "id" (the image as written by default)
      and "split" (the section by default); a "test" section may hold plain file names. Relative paths start at the
      folder of the file. Optional top-level keys: "labels" ({"0": name, ...}) and "ordinal" (true or false).
    - APTOS folder: train.csv (id_code, diagnosis 0-4) and train_images/<id_code>.*, split "train"; if there are both
      test.csv and test_images, these images follow without label, as split "test". Images that no row names are
      left out.
    - MedMNIST (.npz): the arrays {train,val,test}_{images,labels} as splits; ordinal grades if the file name holds
      "retina".
    - Class folders: <class>/* or {train,val,test}/<class>/*, two or more classes, each the same in all splits. Labels
      follow the sorted names (by value if all are whole numbers), and are ordinal only if the names are exactly
      0, 1, .., k-1.
    - Flat folder of images, without labels.
    - Drawn pictures, by a word and any of its keys: "phantom:n=600,size=64,seed=0" (`phantom_arrays`) and the two
      synthetic sets of the publication, "circle-square:train=600,test=399,seed=0" (`circle_square_arrays`) and
      "rectangle-triangle:train=1000,test=500,seed=0" (`rectangle_triangle_arrays`); the test pictures follow the
      training ones in the same stream.

    Images in folders are PNG or JPEG (suffix in any case). Hidden files and __MACOSX are ignored; folders that also
    hold images of a kind that is not read are an error. Tables keep their order, folders are sorted by name. Nothing is
    unpickled.

    Args:
        path: file, folder or phantom specification.
        section: the split to keep; all by default.

    Returns:
        the items and, as `info`, the class names and more.

    Raises:
        FileNotFoundError: when there is no such path.
        ValueError: when the layout is not recognized, or the data contradicts it: a missing image, a label out of
            range, an id that occurs twice, a section that does not exist.
    """
    word = str(path).partition(":")[0]
    if word in _DRAWN:
        datalist = _build(_DRAWN[word], path, _drawn(str(path)))
    else:
        datalist = _recognize(Path(path).expanduser())
    if not datalist:
        raise ValueError(f"{path} holds no images")
    repeated = [name for name, count in Counter(item["id"] for item in datalist).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: {len(repeated)} ids occur more than once: {_some(repeated)}")
    if section is None:
        return datalist
    splits = dict.fromkeys(item["split"] for item in datalist if item["split"] is not None)
    if section not in splits:
        raise ValueError(f"{path} has no section {section!r}, available: {', '.join(splits) or 'none'}")
    return Datalist((item for item in datalist if item["split"] == section), datalist.info)


class _Found(NamedTuple):
    """What a recognizer returns: the items and the fields of `DatalistInfo` that depend on the data."""

    items: list[Item]
    class_names: list[str] | None = None
    label_column: str | None = None
    ordinal: bool = False


class _Layout(NamedTuple):
    """A layout: one word, a description for users, and the function that returns None for any other layout."""

    source: str
    name: str
    recognize: Callable[[Path], _Found | None]


def _build(layout: _Layout, path: str | os.PathLike[str], found: _Found) -> Datalist:
    gray = all(isinstance(item["image"], np.ndarray) and item["image"].shape[0] == 1 for item in found.items)
    info = DatalistInfo(
        layout.source,
        layout.name,
        str(path),
        found.class_names,
        found.label_column,
        found.ordinal,
        channels=1 if gray else 3,
    )
    return Datalist(found.items, info)


def _recognize(path: Path) -> Datalist:
    if not path.exists():
        raise FileNotFoundError(f"data not found: {path} (neither a file nor a folder)")
    for layout in _LAYOUTS:
        found = layout.recognize(path)
        if found is not None:
            return _build(layout, path, found)
    looked_for = "; ".join(layout.name for layout in (*_LAYOUTS, *_DRAWN.values()))
    raise ValueError(f"{path} is no data set that can be read. Looked for: {looked_for}. Found: {_describe(path)}.")


def _item(
    image: str | Path | np.ndarray,
    name: str,
    label: int | None = None,
    split: str | None = None,
    group: str | None = None,
) -> Item:
    image = image if isinstance(image, np.ndarray) else str(image)
    return {"image": image, "label": label, "group": group, "split": split, "id": name}


def _drawn(spec: str) -> _Found:
    word, _, text = spec.partition(":")
    values = {"phantom": {"n": 600, "size": 64}, "circle-square": {"train": 600, "test": 399}}.get(
        word, {"train": 1000, "test": 500}
    )
    values["seed"] = 0
    for part in filter(None, text.split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in values:
            raise ValueError(f"{spec}: unknown key {key!r}, the keys are {', '.join(values)}")
        try:
            values[key] = int(value)
        except ValueError:
            raise ValueError(f"{spec}: {key} must be a whole number, got {value!r}") from None
    if word == "phantom":
        images, labels = phantom_arrays(**values)
        splits, names = [None] * len(images), DR_GRADES
    else:
        for key in ("train", "test"):
            if values[key] < 0:
                raise ValueError(f"{spec}: {key} must not be negative")
        draw, names = (
            (circle_square_arrays, CIRCLE_SQUARE)
            if word == "circle-square"
            else (rectangle_triangle_arrays, RECTANGLE_TRIANGLE)
        )
        images, labels = draw(values["train"] + values["test"], values["seed"])
        splits = ["train"] * values["train"] + ["test"] * values["test"]
    rows = enumerate(zip(images, labels.tolist(), splits, strict=True))
    items = [_item(image, f"{word}-{i:05d}", label, split) for i, (image, label, split) in rows]
    return _Found(items, list(names), None, word == "phantom")


def _monai_json(path: Path) -> _Found | None:
    if path.is_dir() or path.suffix.lower() != ".json":
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a datalist is a JSON object of sections, found a {type(content).__name__}")
    sections = {
        key: value
        for key, value in content.items()
        if isinstance(value, list) and any(isinstance(e, dict) and "image" in e or key == "test" for e in value)
    }
    if not sections:
        raise ValueError(f'{path}: no section, such as "training": [{{"image": ...}}]; its keys are {_some(content)}')
    class_names = _json_class_names(path, content.get("labels"))
    ordinal = content.get("ordinal", False)
    if not isinstance(ordinal, bool):
        raise ValueError(f'{path}: "ordinal" must be true or false, got {ordinal!r}')
    entries = [
        (f"{path}: item {i} of {key!r}", key, entry) for key, part in sections.items() for i, entry in enumerate(part)
    ]
    return _Found([_json_item(path.parent, *entry, class_names) for entry in entries], class_names, "label", ordinal)


def _json_class_names(path: Path, labels: Any) -> list[str] | None:
    if labels is None:
        return None
    keys = [str(i) for i in range(len(labels))] if isinstance(labels, dict) else []
    if not keys or set(keys) != set(labels) or not all(isinstance(name, str) for name in labels.values()):
        raise ValueError(
            f'{path}: "labels" must map "0", "1", ... without a gap to names, got {json.dumps(labels)[:200]}'
        )
    return [labels[key] for key in keys]


def _json_item(folder: Path, where: str, section: str, entry: Any, class_names: list[str] | None) -> Item:
    if isinstance(entry, str):
        entry = {"image": entry}
    name = entry.get("image") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise ValueError(f'{where} must be an object with the path of an "image", got {json.dumps(entry)[:200]}')
    if not (folder / name).is_file():
        raise ValueError(f"{where}: image file not found: {folder / name}")
    label = entry.get("label")
    if label is not None:
        limit = len(class_names) if class_names else float("inf")
        if type(label) is not int or not 0 <= label < limit:
            expected = f"an integer from 0 to {limit - 1}" if class_names else "an integer >= 0"
            raise ValueError(f"{where}: the label must be {expected}, got {label!r}")
    texts: dict[str, str | None] = {}
    for key, default in (("id", name), ("split", section), ("group", None)):
        value = entry.get(key, default)
        if type(value) not in (str, int, type(default)):
            raise ValueError(f'{where}: "{key}" must be a text or a whole number, got {value!r}')
        texts[key] = None if value is None else str(value)
    return _item(folder / name, str(texts["id"]), label, texts["split"], texts["group"])


def _aptos(path: Path) -> _Found | None:
    table = path / "train.csv"
    if not path.is_dir() or not (table.is_file() or (path / "train_images").is_dir()):
        return None
    if not table.is_file():
        raise ValueError(f"{path} holds train_images but no train.csv (id_code, diagnosis)")
    header = next((values for _, values in _csv_lines(table)), [])
    if not {"id_code", "diagnosis"} <= set(header):
        if not (path / "train_images").is_dir():
            return None
        raise ValueError(f"{table} must have the columns id_code and diagnosis, found {_some(header)}")
    items = []
    for where, row, image in _aptos_rows(table, path / "train_images"):
        if row["diagnosis"] not in ("0", "1", "2", "3", "4"):
            raise ValueError(f"{where}: diagnosis must be an integer from 0 to 4, got {row['diagnosis']!r}")
        items.append(_item(image, row["id_code"], int(row["diagnosis"]), "train"))
    table, folder = path / "test.csv", path / "test_images"
    if table.is_file() and folder.is_dir():
        items += [_item(image, row["id_code"], None, "test") for _, row, image in _aptos_rows(table, folder)]
    return _Found(items, list(DR_GRADES), "diagnosis", True)


def _aptos_rows(table: Path, folder: Path) -> list[tuple[str, dict[str, str], Path]]:
    """Return for each row: file and line for error messages, the stripped values, the image."""
    if not folder.is_dir():
        raise ValueError(f"{table} has no image folder {folder}")
    images: dict[str, Path] = {}
    for image in _images(folder):
        if image.stem in images:
            raise ValueError(f"{folder} holds two images of the same name: {images[image.stem].name} and {image.name}")
        images[image.stem] = image
    rows = []
    for line, row in _csv_rows(table):
        if "id_code" not in row:
            raise ValueError(f"{table} must have the column id_code, found {_some(row)}")
        where, name = f"{table}, line {line}", row["id_code"]
        if name not in images:
            raise ValueError(f"{where}: no image {folder / name}.* (PNG or JPEG)")
        rows.append((where, row, images[name]))
    if not rows:
        raise ValueError(f"{table} has no rows")
    return rows


def _csv_rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Return line number and values by column of each row that is not blank."""
    lines = _csv_lines(table)
    header = lines[0][1] if lines else []
    for number, values in lines:
        if len(values) != len(header):
            raise ValueError(f"{table}, line {number}: {len(values)} values for the columns {_some(header)}")
    return [(number, dict(zip(header, values, strict=True))) for number, values in lines[1:]]


def _csv_lines(table: Path) -> list[tuple[int, list[str]]]:
    """Return line number and stripped values of each line that is not blank, the header included."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{table} is not a CSV file in UTF-8: {error}") from error
    return [(number, values) for number, values in lines if any(values)]


def _medmnist(path: Path) -> _Found | None:
    if path.is_dir() or path.suffix.lower() != ".npz":
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files if name.endswith(("_images", "_labels"))}
            names = file.files
    except Exception as error:  # a damaged archive makes zipfile, zlib and numpy raise nearly anything
        raise ValueError(f"{path} is not an .npz file of plain arrays: {' '.join(str(error).split())}") from error
    splits = [split for split in _SPLIT_FOLDERS if f"{split}_images" in arrays]
    if not splits:
        raise ValueError(f"{path} holds no train_images, val_images or test_images, only {_some(names)}")
    retina = "retina" in path.stem.lower()
    items = [item for split in splits for item in _medmnist_split(path, arrays, split)]
    highest = max((item["label"] for item in items), default=0)
    if retina and highest >= len(DR_GRADES):
        raise ValueError(f"{path}: the labels of a retina file are the grades 0 to 4, found {highest}")
    return _Found(items, list(DR_GRADES) if retina else None, None, retina)


def _medmnist_split(path: Path, arrays: dict[str, np.ndarray], split: str) -> list[Item]:
    images, labels = arrays[f"{split}_images"], arrays.get(f"{split}_labels")
    if images.dtype != np.uint8 or not (images.ndim == 3 or images.ndim == 4 and images.shape[3] == 3):
        raise ValueError(f"{path}: {split}_images must be uint8 N,H,W or N,H,W,3, found {images.dtype} {images.shape}")
    if labels is None or labels.dtype.kind not in "iu" or labels.shape != (len(images), 1) or labels.min(initial=0) < 0:
        found = "none" if labels is None else f"{labels.dtype} {labels.shape}"
        raise ValueError(f"{path}: {split}_labels must be integers >= 0 of shape {(len(images), 1)}, found {found}")
    chw = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if images.ndim == 4 else images[:, None]
    pairs = enumerate(zip(chw, labels[:, 0].tolist(), strict=True))
    return [_item(image, f"{split}-{i:05d}", label, split) for i, (image, label) in pairs]


def _class_folders(path: Path) -> _Found | None:
    tops = _folders(path)
    is_split = bool(tops) and all(folder.name.lower() in _SPLIT_FOLDERS for folder in tops)
    parents = {folder.name.lower(): folder for folder in tops} if is_split else {None: path}
    images = {split: {folder.name: _images(folder) for folder in _folders(top)} for split, top in parents.items()}
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
            raise ValueError(f"{top} has no folder for class {_some(missing)}, which another split has")
        loose = _images(top)
        if loose:
            raise ValueError(f"{top} holds both class folders and images of its own ({loose[0].name}, ...)")
    for name in names:
        # An empty folder would shift the labels of all the classes after it, were it left out.
        if not any(classes[name] for classes in images.values()):
            raise ValueError(f"{path}: class folder {name!r} holds no PNG or JPEG image")
    items = [
        _item(file, file.relative_to(path).as_posix(), label, split)
        for split in sorted(images, key=lambda split: _SPLIT_FOLDERS.index(split) if split else 0)
        for label, name in enumerate(names)
        for file in images[split][name]
    ]
    return _Found(items, names, None, names == [str(i) for i in range(len(names))])


def _flat_folder(path: Path) -> _Found | None:
    files = _images(path) if path.is_dir() else []
    if not files:
        return None
    deeper = [folder.name for folder in _folders(path) if _images(folder)]
    if deeper:
        raise ValueError(f"{path} holds both images and subfolders with images ({_some(deeper)})")
    return _Found([_item(file, file.name) for file in files])


def _visible(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted by name, without hidden files and what macOS puts into archives."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__MACOSX")


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if entry.is_dir()]


def _images(folder: Path) -> list[Path]:
    """Return the PNG and JPEG files directly in a folder, sorted by name.

    Raises:
        ValueError: when there are images of another kind among them, which would be lost silently.
    """
    files = [entry for entry in _visible(folder) if entry.is_file()]
    images = [file for file in files if file.suffix.lower() in _IMAGE_SUFFIXES]
    others = [file.name for file in files if file.suffix.lower() in _OTHER_IMAGE_SUFFIXES]
    if images and others:
        raise ValueError(
            f"{folder} holds {len(images)} PNG or JPEG images, and {len(others)} of other kinds: {_some(others)}"
        )
    return images


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def _describe(path: Path) -> str:
    if path.is_file():
        return f"a file with the suffix {path.suffix!r}"
    counts = Counter(file.suffix.lower() or "(no suffix)" for file in _visible(path) if file.is_file())
    parts = [f"{count} {suffix}" for suffix, count in sorted(counts.items())]
    folders = [f"{folder.name} ({len(_visible(folder))} entries)" for folder in _folders(path)]
    if folders:
        parts.append(f"subfolders {_some(folders)}")
    return ", ".join(parts) or "nothing (the folder is empty)"


# Tried in this order, the most specific first.
_LAYOUTS = (
    _Layout("datalist", "MONAI datalist (.json)", _monai_json),
    _Layout("medmnist", "MedMNIST (.npz)", _medmnist),
    _Layout("aptos", "APTOS folder (train.csv with id_code and diagnosis, train_images)", _aptos),
    _Layout("classes", "class folders of PNG or JPEG images (two or more)", _class_folders),
    _Layout("folder", "flat folder of PNG or JPEG images", _flat_folder),
)
_DRAWN = {
    layout.source: layout
    for layout in (
        _Layout("phantom", "the word phantom, or phantom:n=600,size=64,seed=0", lambda path: _drawn(str(path))),
        _Layout("circle-square", "circle-square, or circle-square:train=600,test=399,seed=0", lambda p: _drawn(str(p))),
        _Layout(
            "rectangle-triangle",
            "rectangle-triangle, or rectangle-triangle:train=1000,test=500,seed=0",
            lambda path: _drawn(str(path)),
        ),
    )
}
