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
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .image_reader import count_frames
from .layouts import DR_GRADES, Found, Item, Layout, lost_item, make_item, shown, some, subfolders, visible
from .layouts_folders import SPLIT_FOLDERS, class_folders, flat_folder
from .layouts_lists import dogs, flowers
from .layouts_tables import aptos, csv_table, eyepacs, idrid, messidor, unused_tables
from .phantom import phantom_arrays
from .synthetic import CIRCLE_SQUARE, RECTANGLE_TRIANGLE, circle_square_arrays, rectangle_triangle_arrays

__all__ = ["DR_GRADES", "Datalist", "DatalistInfo", "load_datalist", "write_manifest"]

# What becomes of images that are missing or cannot be read.
ON_ERROR = ("raise", "skip")

# The words for drawn pictures, and the defaults of their keys.
_DRAWN_KEYS = {
    "phantom": {"n": 600, "size": 64, "seed": 0},
    "circle-square": {"train": 600, "test": 399, "seed": 0},
    "rectangle-triangle": {"train": 1000, "test": 500, "seed": 0},
}

# Files that are not opened to count the pictures in them, for there is one. DICOM files often have no suffix.
_SINGLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class DatalistInfo:
    """What is known of a data set as a whole.

    Attributes:
        source: the layout in one word: "datalist", "medmnist", "idrid", "flowers102", "dogs", "eyepacs", "aptos",
            "messidor", "csv", "classes", "folder", "phantom", "circle-square" or "rectangle-triangle".
        name: the layout in words.
        path: where the data was read from, as given.
        class_names: name of each class in the order of the labels 0..k-1; None where unknown.
        label_column: the column or key that the labels were read from; None where they do not come from a table.
        ordinal: whether the labels are ordered grades.
        channels: 1 where all images are gray arrays, else 3.
        center_crop: the central share of height and width that the published evaluation looks at: 0.875 for Oxford
            Flowers and Stanford Dogs, else 1.
    """

    source: str
    name: str
    path: str
    class_names: list[str] | None = None
    label_column: str | None = None
    ordinal: bool = False
    channels: int = 3
    center_crop: float = 1.0


class Datalist(list[Item]):
    """List of items with `info`; fits every MONAI dataset.

    An item has "image" (path, or CHW uint8 array), "label" (int or None), "group" (str or None: items of one group,
    such as a patient, belong on one side of a split), "split" (str or None) and "id" (str, unique). Where its file
    holds several pictures, it also has "frame" (int, from 0).

    Attributes:
        info: what is known of the data set as a whole.
        skipped: what was left out, each {"id", "image", "reason"}.
    """

    def __init__(self, items: Iterable[Item], info: DatalistInfo, skipped: Iterable[Mapping[str, str]] = ()) -> None:
        super().__init__(items)
        self.info = info
        self.skipped = [dict(entry) for entry in skipped]


def load_datalist(
    path: str | os.PathLike[str],
    section: str | None = None,
    *,
    image_key: str | None = None,
    label_key: str | None = None,
    group_key: str | None = None,
    split_key: str | None = None,
    on_error: str = "raise",
) -> Datalist:
    """List the images and labels of a data set, whatever its layout.

    Files:

    - MONAI datalist (.json, as of the Medical Segmentation Decathlon): each key that holds a list of {"image": ...}
      objects is a section. Optional keys of an object: "label" (int), "group", "id" (the image as written by default)
      and "split" (the section by default); a "test" section may hold plain file names. Relative paths start at the
      folder of the file. Optional top-level keys: "labels" ({"0": name, ...}) and "ordinal" (true or false).
    - MedMNIST (.npz): the arrays {train,val,test}_{images,labels} as splits; ordinal grades if the file name holds
      "retina".
    - Table (.csv) of images, or the folder that holds it and the images, see below.

    Tables of images [*]: one row per image, blank rows ignored. The image is a file of that name relative to the
    folder that is given below, or an absolute path; else the one image there of that name with any suffix. Images that
    no row names are left out.

    - IDRiD: the folder that holds "B. Disease Grading", or that one; official splits "train" and "test" where their
      images are there. Ids start with the split. `label_key="Risk of macular edema"` gives the risk, 0-2.
    - EyePACS: trainLabels.csv (image, level 0-4) with the images in train, train_images or beside it, split "train";
      testLabels.csv or retinopathy_solution.csv with test or test_images, if there are both, as split "test". The group
      is the patient, from <patient>_left and <patient>_right.
    - APTOS: train.csv (id_code, diagnosis 0-4) and train_images, split "train"; if there are both test.csv and
      test_images, these images follow without label, as split "test".
    - Messidor-2: a table with image_id and adjudicated_dr_grade (0-4), and its images beside it or in a subfolder.
      Images without a grade (not gradable) stay, without a label. `label_key="adjudicated_dme"` gives edema, 0-1.
    - Any other table with the column "image", and "label", "group" and "split" where it has them; each may have another
      name, which the keys give. Images are beside it or in the one subfolder that has images (of several, the one
      called "images"). Labels are whole numbers >= 0, ordinal only if "grade", "level", "dr" or "diagnosis" is a word
      of the column's name (in any case, words being parted by anything but letters); or names, whose sorted order gives
      the labels; or blank (None). A folder is taken for such a table if it holds one .csv alone, with the column
      "image", and images either beside it or in one subfolder; or if a key is given.

    Lists of images. What is listed but not there is left out, logged and recorded as skipped. Labels are then compact:
    0..k-1 are those classes that an image of any split is there of, in official order, and `class_names` name them.

    - Oxford Flowers 102: jpg with imagelabels.mat and setid.mat, splits "train" (trnid, 1020 images), "val" (valid) and
      "test" (tstid); or with train.txt, valid.txt and test.txt of lines "jpg/image_00001.jpg 76", labels from 0.
    - Stanford Dogs: Images/<wnid>-<breed> with {train,test}_list (.mat or .txt), here or in the folder lists.

    Folders alone:

    - Class folders: <class>/* or {train,val,test}/<class>/*, two or more classes, each the same in all splits. Labels
      follow the sorted names (by value if all are whole numbers), and are ordinal only if the names are exactly
      0, 1, .., k-1.
    - Flat folder of images, without labels.

    Drawn pictures, by a word and any of its keys: "phantom:n=600,size=64,seed=0" (`phantom_arrays`) and the two
    synthetic sets of the publication, "circle-square:train=600,test=399,seed=0" (`circle_square_arrays`) and
    "rectangle-triangle:train=1000,test=500,seed=0" (`rectangle_triangle_arrays`); the test pictures follow the training
    ones in the same stream.

    Images in folders are known by their suffix (in any case), see `IMAGE_SUFFIXES`. Hidden files and __MACOSX are
    ignored; folders that also hold images of a kind that is not read are an error. DICOM, TIFF and NIfTI files of
    several pictures become one item per picture, with the "frame", the id "<id>#<frame>" and, where there is no other,
    the file as the group. Tables keep their order, folders are sorted by name. Nothing is unpickled.

    Args:
        path: file, folder or specification of drawn pictures.
        section: the split to keep; all by default.
        image_key: for the layouts marked with [*]: the column of the image. A column is found in any case.
        label_key: the column of the label.
        group_key: the column of the group; a blank value is None.
        split_key: the column of the split; a blank value is None.
        on_error: what becomes of images that the data names but that are not there, and of files whose pictures cannot
            be counted: "raise" (an error) or "skip" (left out, logged and recorded as skipped). All other
            contradictions are errors.

    Returns:
        the items; as `info`, the class names and more; as `skipped`, what is not there.

    Raises:
        FileNotFoundError: when there is no such path.
        ValueError: when the layout is not recognized, or the data contradicts it: a missing image, a missing column, a
            label out of range, an id that occurs twice, a section that does not exist.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error must be {' or '.join(map(repr, ON_ERROR))}, got {on_error!r}")
    roles = {"image": image_key, "label": label_key, "group": group_key, "split": split_key}
    keys = {role: key for role, key in roles.items() if key is not None}
    for role, key in keys.items():
        if not isinstance(key, str) or not key.strip():
            raise ValueError(f"{role}_key must be the name of a column, got {key!r}")
    word = path.partition(":")[0] if isinstance(path, str) else ""  # a path object is never a word
    layout, found = (_DRAWN[word], _drawn(str(path))) if word in _DRAWN else _recognize(Path(path).expanduser(), keys)
    if keys and not layout.has_columns:
        names = ", ".join(f"{role}_key" for role in keys)
        raise ValueError(f"{path}: {names} cannot be used, for it is no table of images but: {layout.name}")
    if layout.source == "folder" and (hint := unused_tables(Path(path).expanduser())):
        logging.getLogger("conrec_monai").warning(f"{path}: images without labels; {hint}")
    items, lost = _frames(found.items)
    if lost and on_error == "raise":
        raise ValueError(_first(lost))
    if found.lost and on_error == "raise" and not found.may_be_partial:
        raise ValueError(_first(found.lost))
    lost = found.lost + lost
    if not items:
        raise ValueError(f"{path} holds no images" + (f": {_first(lost)}" if lost else ""))
    repeated = [name for name, count in Counter(item["id"] for item in items).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: {len(repeated)} ids occur more than once: {some(repeated)}")
    gray = all(isinstance(item["image"], np.ndarray) and item["image"].shape[0] == 1 for item in items)
    info = DatalistInfo(
        layout.source,
        layout.name,
        str(path),
        found.class_names,
        found.label_column,
        found.ordinal,
        1 if gray else 3,
        found.center_crop,
    )
    if section is not None:
        splits = dict.fromkeys(item["split"] for item in items if item["split"] is not None)
        if section not in splits:
            raise ValueError(f"{path} has no section {section!r}, available: {some(splits, 20) or 'none'}")
        items = [item for item in items if item["split"] == section]
        lost = [item for item in lost if item["split"] == section]
    if lost:
        first = some((item["id"] for item in lost), 3)
        logging.getLogger("conrec_monai").warning(
            f"{path}: {len(lost)} of {len(lost) + len(items)} images are left out: {first}"
        )
    return Datalist(items, info, ({key: item[key] for key in ("id", "image", "reason")} for item in lost))


def write_manifest(path: str | os.PathLike[str], skipped: Iterable[Mapping[str, str]]) -> None:
    """Write what was left out of a data set as a table (CSV, UTF-8) with the columns id, image and reason.

    Args:
        path: the file; one that exists is replaced.
        skipped: as `Datalist.skipped` and `CachedImages.skipped` give it.
    """
    # File names that are no UTF-8 are written as escapes: the table stays readable.
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, ("id", "image", "reason"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(skipped)


def _recognize(path: Path, keys: Mapping[str, str]) -> tuple[Layout, Found]:
    if not path.exists():
        raise FileNotFoundError(f"data not found: {path} (neither a file nor a folder)")
    for layout in _LAYOUTS:
        found = layout.recognize(path, keys)
        if found is not None:
            return layout, found
    looked_for = "; ".join(layout.name for layout in (*_LAYOUTS, *_DRAWN.values()))
    hint = unused_tables(path)
    raise ValueError(
        f"{path} is no data set that can be read. Looked for: {looked_for}. Found: {_describe(path)}."
        + (f" Perhaps: {hint}." if hint else "")
    )


def _frames(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Return the items, one for each frame; and those whose frames cannot be counted."""
    result, lost = [], []
    for item in items:
        count = 1
        if isinstance(item["image"], str) and not item["image"].lower().endswith(_SINGLE_SUFFIXES):
            try:
                count = count_frames(item["image"])
            except (ValueError, OSError) as error:
                lost.append(lost_item(item["image"], item["id"], item["split"], str(error)))
                continue
        if count == 1:
            result.append(item)
        else:
            # Pictures of one file belong together, whatever else is known.
            group = item["id"] if item["group"] is None else item["group"]
            result += [{**item, "id": f"{item['id']}#{i}", "group": group, "frame": i} for i in range(count)]
    return result, lost


def _first(lost: Sequence[Item]) -> str:
    return lost[0]["reason"] + (f" ({len(lost)} images are missing or damaged in all)" if len(lost) > 1 else "")


def _drawn(spec: str) -> Found:
    word, _, text = spec.partition(":")
    values = dict(_DRAWN_KEYS[word])
    for part in filter(None, text.split(",")):
        key, value = (piece.strip() for piece in part.partition("=")[::2])
        if key not in values:
            raise ValueError(f"{spec}: unknown key {key!r}, the keys are {', '.join(values)}")
        try:
            values[key] = int(value)
        except ValueError:
            raise ValueError(f"{spec}: {key} must be a whole number, got {value!r}") from None
    splits: list[str | None]
    names: tuple[str, ...]
    if word == "phantom":
        images, labels = phantom_arrays(**values)
        splits, names = [None] * len(images), DR_GRADES
    else:
        if min(values["train"], values["test"]) < 0 or values["train"] + values["test"] < 1:
            raise ValueError(f"{spec}: train and test must be 0 or more, and 1 or more together")
        draw, names = (
            (circle_square_arrays, CIRCLE_SQUARE)
            if word == "circle-square"
            else (rectangle_triangle_arrays, RECTANGLE_TRIANGLE)
        )
        images, labels = draw(values["train"] + values["test"], values["seed"])
        splits = [*["train"] * values["train"], *["test"] * values["test"]]
    rows = enumerate(zip(images, labels.tolist(), splits, strict=True))
    items = [make_item(image, f"{word}-{i:05d}", label, split) for i, (image, label, split) in rows]
    return Found(items, list(names), None, word == "phantom")


_SECTIONS = ("training", "train", "validation", "val", "test")  # that may hold plain file names


def _monai_json(path: Path, keys: Mapping[str, str]) -> Found | None:
    if path.is_dir() or path.suffix.lower() != ".json":
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a datalist is a JSON object of sections, found a {type(content).__name__}")
    # Any list of objects is a section, or images would be lost to a misspelt "image"; other lists are the user's own.
    sections = {
        key: value
        for key, value in content.items()
        if isinstance(value, list) and (any(isinstance(entry, dict) for entry in value) or value and key in _SECTIONS)
    }
    if not sections:
        raise ValueError(f'{path}: no section, such as "training": [{{"image": ...}}]; its keys are {some(content)}')
    class_names = _json_class_names(path, content.get("labels"))
    ordinal = content.get("ordinal", False)
    if not isinstance(ordinal, bool):
        raise ValueError(f'{path}: "ordinal" must be true or false, got {ordinal!r}')
    entries = [
        (f"{path}: item {i} of {key!r}", key, entry) for key, part in sections.items() for i, entry in enumerate(part)
    ]
    items = [_json_item(path.parent, *entry, class_names) for entry in entries]
    lost = [item for item in items if "reason" in item]
    return Found([item for item in items if "reason" not in item], class_names, "label", ordinal, lost)


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
    """Return the item; or that its image is missing."""
    if isinstance(entry, str):
        entry = {"image": entry}
    name = entry.get("image") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise ValueError(f'{where} must be an object with the path of an "image", got {json.dumps(entry)[:200]}')
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
    if not os.path.isfile(folder / name):  # unlike Path.is_file, no error for names that no file can have
        reason = f"{where}: image file not found: {shown(folder / name)}"
        return lost_item(folder / name, str(texts["id"]), texts["split"], reason)
    return make_item(folder / name, str(texts["id"]), label, texts["split"], texts["group"])


def _medmnist(path: Path, keys: Mapping[str, str]) -> Found | None:
    if path.is_dir() or path.suffix.lower() != ".npz":
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files if name.endswith(("_images", "_labels"))}
            names = file.files
    except Exception as error:  # a damaged archive makes zipfile, zlib and numpy raise nearly anything
        reason = (
            "it holds objects, which are never unpickled" if "pickle" in str(error) else " ".join(str(error).split())
        )
        raise ValueError(f"{path} is not an .npz file of plain arrays: {reason}") from error
    splits = [split for split in SPLIT_FOLDERS if f"{split}_images" in arrays]
    if not splits:
        raise ValueError(f"{path} holds no train_images, val_images or test_images, only {some(names)}")
    retina = "retina" in path.stem.lower()
    items = [item for split in splits for item in _medmnist_split(path, arrays, split)]
    highest = max((item["label"] for item in items), default=0)
    if retina and highest >= len(DR_GRADES):
        raise ValueError(f"{path}: the labels of a retina file are the grades 0 to 4, found {highest}")
    return Found(items, list(DR_GRADES) if retina else None, None, retina)


def _medmnist_split(path: Path, arrays: dict[str, np.ndarray], split: str) -> list[Item]:
    images, labels = arrays[f"{split}_images"], arrays.get(f"{split}_labels")
    if images.dtype != np.uint8 or not (images.ndim == 3 or images.ndim == 4 and images.shape[3] == 3):
        raise ValueError(f"{path}: {split}_images must be uint8 N,H,W or N,H,W,3, found {images.dtype} {images.shape}")
    if labels is None or labels.dtype.kind not in "iu" or labels.shape != (len(images), 1) or labels.min(initial=0) < 0:
        found = "none" if labels is None else f"{labels.dtype} {labels.shape}"
        raise ValueError(f"{path}: {split}_labels must be integers >= 0 of shape {(len(images), 1)}, found {found}")
    chw = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if images.ndim == 4 else images[:, None]
    pairs = enumerate(zip(chw, labels[:, 0].tolist(), strict=True))
    return [make_item(image, f"{split}-{i:05d}", label, split) for i, (image, label) in pairs]


def _describe(path: Path) -> str:
    if path.is_file():
        return f"a file with the suffix {path.suffix!r}"
    counts = Counter(file.suffix.lower() or "(no suffix)" for file in visible(path) if file.is_file())
    parts = [f"{count} {suffix}" for suffix, count in sorted(counts.items())]
    folders = [f"{folder.name} ({len(visible(folder))} entries)" for folder in subfolders(path)]
    if folders:
        parts.append(f"subfolders {some(folders)}")
    return ", ".join(parts) or "nothing (the folder is empty)"


# Tried in this order, the most specific first.
_LAYOUTS = (
    Layout("datalist", "MONAI datalist (.json)", _monai_json),
    Layout("medmnist", "MedMNIST (.npz)", _medmnist),
    Layout("idrid", 'IDRiD folder ("B. Disease Grading" with 1. Original Images, 2. Groundtruths)', idrid, True),
    Layout("flowers102", "Oxford Flowers folder (jpg with imagelabels.mat and setid.mat, or lists .txt)", flowers),
    Layout("dogs", "Stanford Dogs folder (Images/<wnid>-<breed> with train_list and test_list)", dogs),
    Layout("eyepacs", "EyePACS folder (trainLabels.csv with image and level, train)", eyepacs, True),
    Layout("aptos", "APTOS folder (train.csv with id_code and diagnosis, train_images)", aptos, True),
    Layout("messidor", "Messidor-2 table (.csv with image_id and adjudicated_dr_grade)", messidor, True),
    Layout("csv", "table (.csv with the column image, or the one that image_key names)", csv_table, True),
    Layout("classes", "class folders of images (two or more)", class_folders),
    Layout("folder", "flat folder of images", flat_folder),
)
_DRAWN = {
    word: Layout(
        word,
        f"the word {word}, or {word}:{','.join(f'{key}={value}' for key, value in values.items())}",
        lambda path, keys: _drawn(str(path)),
    )
    for word, values in _DRAWN_KEYS.items()
}
