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

"""Layouts of CSV tables beside folders of images: APTOS, EyePACS, IDRiD, Messidor-2, and any table whose columns are
named."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .layouts import (
    DR_GRADES,
    Found,
    ImageFinder,
    Item,
    holds_images,
    image_folders,
    lost_item,
    make_item,
    shown,
    some,
    visible,
)

__all__ = ["aptos", "csv_table", "eyepacs", "idrid", "messidor", "unused_tables"]

# IDRiD (Porwal et al., Data 2018, 3(3), 25): hard exudates, and whether within one disc diameter of the macula center.
_EDEMA_RISK = ("No exudates", "Exudates far from macula", "Exudates near macula")
_EDEMA = ("No edema", "Edema")

# A column of whole numbers is taken for ordered grades if one of these is a word of its name.
_GRADE_WORDS = {"grade", "level", "dr", "diagnosis"}

_ROLES = ("image", "label", "group", "split")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


# --- Layouts ----------------------------------------------------------------------------------------------------------


def aptos(path: Path, keys: Mapping[str, str]) -> Found | None:
    table = path / "train.csv"
    if not path.is_dir() or not (table.is_file() or (path / "train_images").is_dir()):
        return None
    if not table.is_file():
        raise ValueError(f"{path} holds train_images but no train.csv (id_code, diagnosis)")
    columns = {"image": "id_code", "label": "diagnosis"}
    if not (path / "train_images").is_dir():
        if not set(columns.values()) <= set(_peek(table)):
            return None
        raise ValueError(f"{table} has no image folder {path / 'train_images'}")
    parts = [_Part(table, ImageFinder([path / "train_images"]), "train")]
    if (path / "test.csv").is_file() and (path / "test_images").is_dir():
        parts.append(_Part(path / "test.csv", ImageFinder([path / "test_images"]), "test", has_labels=False))
    return _read(parts, keys, columns, {"diagnosis": DR_GRADES})


def eyepacs(path: Path, keys: Mapping[str, str]) -> Found | None:
    table = path / "trainLabels.csv"
    if not table.is_file() or keys and not {"image", "level"} <= set(_peek(table)):  # others call a table so, too
        return None
    folders = [path / name for name in ("train", "train_images") if (path / name).is_dir()]
    parts = [_Part(table, ImageFinder(folders[:1] or image_folders(path)), "train")]
    tables = [path / name for name in ("testLabels.csv", "retinopathy_solution.csv") if (path / name).is_file()]
    folders = [path / name for name in ("test", "test_images") if (path / name).is_dir()]
    if tables and folders:
        parts.append(_Part(tables[0], ImageFinder(folders[:1]), "test"))
    return _read(parts, keys, {"image": "image", "label": "level"}, {"level": DR_GRADES}, group=_patient)


def _patient(where: str, name: str) -> str:
    patient = re.fullmatch(r"(.+)_(left|right)", name)
    if patient is None:
        raise ValueError(f"{where}: the image must be <patient>_left or <patient>_right, got {shown(name)}")
    return patient[1]


def idrid(path: Path, keys: Mapping[str, str]) -> Found | None:
    names = (("train", "a. Training Set"), ("test", "b. Testing Set"))
    if any((path / name).is_dir() for _, name in names):  # they look like two classes
        raise ValueError(f"{path} is a part of IDRiD: name the folder above, which also holds '2. Groundtruths'")
    candidates = [folder / "1. Original Images" for folder in (path, path / "B. Disease Grading")]
    images = next((folder for folder in candidates if folder.is_dir()), None)
    if images is None:
        return None
    truth = images.parent / "2. Groundtruths"
    parts = []
    for split, name in names:
        if (images / name).is_dir():
            tables = [file for file in _tables(truth) if file.name.startswith(name[:2])]
            if len(tables) != 1:
                wanted = f"{name[:2]} IDRiD_Disease Grading_{name[3:-4]} Labels.csv"
                raise ValueError(
                    f"{truth} must hold one table {wanted!r}, found {some(t.name for t in tables) or 'none'}"
                )
            # The official names start from IDRiD_001 in both.
            parts.append(_Part(tables[0], ImageFinder([images / name]), split, prefix=f"{split}/"))
    if not parts:
        raise ValueError(f"{images} must hold the folders 'a. Training Set' or 'b. Testing Set'")
    columns = {"image": "Image name", "label": "Retinopathy grade"}
    return _read(parts, keys, columns, {"retinopathy grade": DR_GRADES, "risk of macular edema": _EDEMA_RISK})


def messidor(path: Path, keys: Mapping[str, str]) -> Found | None:
    columns = {"image": "image_id", "label": "adjudicated_dr_grade"}
    tables = [table for table in _tables(path) if set(columns.values()) <= set(_peek(table))]
    if not tables:
        return None
    if len(tables) > 1:
        raise ValueError(f"{path} holds {len(tables)} tables with the column image_id: name one, {some(tables)}")
    parts = [_Part(tables[0], ImageFinder(image_folders(tables[0].parent)))]
    known = {"adjudicated_dr_grade": DR_GRADES, "adjudicated_dme": _EDEMA}
    return _read(parts, keys, columns, known, may_be_blank=True)


def csv_table(path: Path, keys: Mapping[str, str]) -> Found | None:
    tables = _tables(path)
    if not tables:
        return None
    if not path.is_dir() and not keys and path.name in ("trainLabels.csv", "train.csv"):
        official = {"trainLabels.csv": {"image", "level"}, "train.csv": {"id_code", "diagnosis"}}[path.name]
        if official <= set(_peek(path)):
            raise ValueError(
                f"{path} is the table of a whole data set: give its folder, {path.parent}, or name columns"
            )
    if path.is_dir():
        if keys and len(tables) > 1:
            raise ValueError(f"{path} holds {len(tables)} tables: name one, {some(table.name for table in tables)}")
        # Without keys, nothing but a table that plainly says what the images are is taken for one.
        plain = len(tables) == 1 and "image" in _peek(tables[0])
        if not keys and not (plain and sum(holds_images(folder) for folder in image_folders(path)) == 1):
            return None
    parts = [_Part(tables[0], ImageFinder(image_folders(tables[0].parent)))]
    return _read(parts, keys, {role: role for role in _ROLES}, optional=("label", "group", "split"))


def unused_tables(path: Path) -> str:
    """Return why the tables in a folder are not read as tables of images, in words; "" where that is not known."""
    tables = _tables(path) if path.is_dir() else []
    if len(tables) > 1:
        return (
            f"it holds {len(tables)} tables ({some(table.name for table in tables)}): name one in place of the folder"
        )
    columns = _peek(tables[0]) if tables else []
    if not tables or "image" in columns:
        return ""
    return (
        f"{shown(tables[0].name)} has no column image, only {some(columns) or 'none'}: image_key and label_key name"
        " others (--image_key, --label_key)"
    )


# --- Reading of tables ------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A table, where its images are, the split that it is, and what its ids start with."""

    table: Path
    finder: ImageFinder
    split: str | None = None
    has_labels: bool = True
    prefix: str = ""


def _read(
    parts: Sequence[_Part],
    keys: Mapping[str, str],
    columns: Mapping[str, str],
    known: Mapping[str, Sequence[str]] | None = None,
    *,
    optional: Collection[str] = (),
    may_be_blank: bool = False,
    group: Callable[[str, str], str] | None = None,
) -> Found:
    """Read tables of one data set.

    Args:
        parts: the tables.
        keys: columns by role, as the user named them.
        columns: columns by role where the user named none.
        known: the names of the grades, by column in lower case.
        optional: roles whose column may be missing where the user did not name it.
        may_be_blank: whether a label of a known column may be.
        group: gives the group from place and name of an image; a column that the user named goes before it.
    """
    found = Found([])
    texts: list[tuple[str, str]] = []  # place and label of each row that has one
    labeled: list[Item] = []
    named: dict[Path, str] = {}
    for part in parts:
        header, rows = _read_csv(part.table)
        wanted = {role: keys.get(role, columns.get(role)) for role in _ROLES if role != "label" or part.has_labels}
        column = _choose(part.table, header, wanted, [role for role in optional if role not in keys])
        if not rows:
            raise ValueError(f"{part.table} has no rows")
        if "label" in column and found.label_column is None:
            found.label_column = column["label"]
        for where, row in rows:
            name = row[column["image"]]
            if not name:
                raise ValueError(f"{where}: no image name in the column {column['image']}")
            split = row[column["split"]] or None if "split" in column else part.split
            image = part.finder(name)
            if image is None:
                reason = f"{where}: {part.finder.missing(name)}"
                item = lost_item(part.finder.folders[0] / name, part.prefix + name, split, reason)
                found.lost.append(item)
            else:
                if named.setdefault(image, name) != name:
                    raise ValueError(f"{where}: the image {shown(name)} is listed before, as {shown(named[image])}")
                item = make_item(image, part.prefix + name, None, split)
                if "group" in column:
                    item["group"] = row[column["group"]] or None
                elif group is not None:
                    item["group"] = group(where, name)
                found.items.append(item)
            if "label" in column:
                texts.append((where, row[column["label"]]))
                labeled.append(item)
    if found.label_column is not None:
        names = (known or {}).get(found.label_column.lower())
        if names is not None:
            labels = _grades(texts, found.label_column, len(names), may_be_blank)
            found.class_names, found.ordinal = list(names), True
        else:
            labels, found.class_names = _labels(texts, found.label_column)
            words = set(re.findall("[a-z]+", found.label_column.lower()))
            found.ordinal = found.class_names is None and bool(words & _GRADE_WORDS)
        for item, label in zip(labeled, labels, strict=True):
            item["label"] = label
    return found


def _grades(texts: Sequence[tuple[str, str]], column: str, count: int, may_be_blank: bool) -> list[int | None]:
    labels = [_whole(text) if may_be_blank or text.isdecimal() else None for _, text in texts]
    for (where, text), label in zip(texts, labels, strict=True):
        if not (label is not None and label < count or may_be_blank and not text):
            expected = f"an integer from 0 to {count - 1}" + (" or blank" if may_be_blank else "")
            raise ValueError(f"{where}: {column} must be {expected}, got {shown(repr(text))}")
    return labels


def _labels(texts: Sequence[tuple[str, str]], column: str) -> tuple[list[int | None], list[str] | None]:
    """Return labels, None where blank, and the names of the classes if they are texts."""
    if not any(_NUMBER.fullmatch(text) for _, text in texts):
        names = sorted({text for _, text in texts} - {""})
        number = {name: i for i, name in enumerate(names)}
        return [number.get(text) for _, text in texts], names or None
    labels = [_whole(text) for _, text in texts]
    for (where, text), label in zip(texts, labels, strict=True):
        if label is None and text:
            expected = "whole numbers >= 0 or blank, or names without a number among them"
            raise ValueError(f"{where}: the values of {column} must be {expected}, got {shown(repr(text))}")
    return labels, None


def _whole(text: str) -> int | None:
    """Return a whole number >= 0; columns with blanks are often written as 2.0."""
    number = re.fullmatch(r"([0-9]{1,9})(\.0*)?", text)
    return int(number[1]) if number else None


def _choose(
    table: Path, header: Sequence[str], wanted: Mapping[str, str | None], optional: Collection[str]
) -> dict[str, str]:
    """Return the column of each role, in the writing of the table."""
    chosen, missing = {}, []
    for role, name in wanted.items():
        if name is None:
            continue
        same = [column for column in header if column == name.strip()]
        same = same or [column for column in header if column and column.lower() == name.strip().lower()]
        if len(same) > 1:
            raise ValueError(f"{table} has {len(same)} columns {name}: {some(header, 50)}")
        if same:
            chosen[role] = same[0]
        elif role not in optional:
            missing.append(name)
    if missing:
        columns = "columns" if len(missing) > 1 else "column"
        found = some(filter(None, header), 50) or "none"
        keys = " and ".join(f"{role}_key" for role, name in wanted.items() if name in missing)
        raise ValueError(
            f"{table} must have the {columns} {' and '.join(missing)}, found {found} ({keys} names another)"
        )
    return chosen


def _tables(path: Path) -> list[Path]:
    """Return the table that a path is, or those directly in a folder."""
    files = visible(path) if path.is_dir() else [path]
    return [file for file in files if file.suffix.lower() == ".csv" and file.is_file()]


def _peek(table: Path) -> list[str]:
    """Return the columns of a file that may be a table of images, or of something else."""
    with open(table, encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            return next(([value.strip() for value in row] for row in csv.reader(file) if any(row)), [])
        except csv.Error:
            return []


def _read_csv(table: Path) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Return the columns; and of each row that is not blank the place, for messages, and the values by column."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)  # or an open quote would swallow all rows after it
            lines = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{table} is not a CSV file in UTF-8: {error}") from error
    lines = [(number, values) for number, values in lines if any(values)]
    header = lines[0][1] if lines else []
    while header and not header[-1]:  # spreadsheets leave columns behind
        header.pop()
    rows = []
    for number, values in lines[1:]:
        where = f"{table}, line {number}"
        if len(values) < len(header) or any(values[len(header) :]):
            raise ValueError(f"{where}: {len(values)} values for the columns {some(header, 50)}")
        rows.append((where, dict(zip(header, values, strict=False))))
    return header, rows
