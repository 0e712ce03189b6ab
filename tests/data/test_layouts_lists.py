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

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from conrec_monai.data import load_datalist


def _image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "PNG")
    return path


def _fails(path: Path, message: str, **arguments: Any) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_datalist(path, **arguments)
    assert "\n" not in str(error.value)


# --- Oxford Flowers ---------------------------------------------------------------------------------------------------


def _matrices(root: Path, labels: Any, **splits: Any) -> None:
    savemat(root / "imagelabels.mat", {"labels": np.array([labels])})
    savemat(root / "setid.mat", {name: np.array([images]) for name, images in splits.items()})


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Eight images of the classes 5, 77 and 102; image 4, the only one of class 77, and image 8 are not there."""
    for number in (1, 2, 3, 5, 6, 7):
        _image(tmp_path / "jpg" / f"image_{number:05d}.jpg")
    _matrices(tmp_path, [102, 5, 102, 77, 5, 5, 102, 5], trnid=[2, 1], valid=[3, 5], tstid=[8, 7, 6, 4])
    return tmp_path


def test_flowers(flowers: Path, caplog: pytest.LogCaptureFixture) -> None:
    datalist = load_datalist(flowers)
    assert [(item["id"][-5:-4], item["label"], item["split"]) for item in datalist] == [
        ("2", 0, "train"),
        ("1", 1, "train"),
        ("3", 1, "val"),
        ("5", 0, "val"),
        ("7", 1, "test"),
        ("6", 0, "test"),
    ]
    assert datalist[0]["id"] == "jpg/image_00002.jpg"
    assert datalist[0]["image"] == str(flowers / "jpg" / "image_00002.jpg")
    info = datalist.info
    assert (info.source, info.class_names, info.label_column, info.ordinal, info.center_crop) == (
        "flowers102",
        ["class 5", "class 102"],
        None,
        False,
        0.875,
    )
    assert [entry["id"] for entry in datalist.skipped] == ["jpg/image_00008.jpg", "jpg/image_00004.jpg"]
    assert datalist.skipped[0]["reason"].startswith(f"{flowers / 'setid.mat'}, tstid: no image ")
    assert caplog.messages == [
        f"{flowers}: 2 of 8 images are left out: jpg/image_00008.jpg, jpg/image_00004.jpg",
    ]
    train = load_datalist(flowers, "train")
    assert [item["label"] for item in train] == [0, 1] and train.skipped == [] and train.info == info
    _fails(flowers, "no section 'valid', available: train, val, test", section="valid")
    assert load_datalist(flowers / "jpg").info.source == "folder"


def test_flowers_as_text(flowers: Path) -> None:
    (flowers / "imagelabels.mat").unlink()
    (flowers / "setid.mat").unlink()
    lists = {"train": "2 4\n1 101\n", "valid": "\n3\t101\n5 4\r\n", "test": "8 4\n7 101\n6 4\n4 76"}
    for name, text in lists.items():
        lines = [f"jpg/image_0000{line}" for line in text.split("\n")]
        text = "\n".join(line[:15] + ".jpg" + line[15:] if len(line) > 14 else "" for line in lines)
        (flowers / f"{name}.txt").write_text(text)
    datalist = load_datalist(flowers)
    assert datalist.info.source == "flowers102" and datalist.info.class_names == ["class 5", "class 102"]
    assert [(item["id"][-5:-4], item["label"], item["split"]) for item in datalist] == [
        ("2", 0, "train"),
        ("1", 1, "train"),
        ("3", 1, "val"),
        ("5", 0, "val"),
        ("7", 1, "test"),
        ("6", 0, "test"),
    ]
    assert datalist.info.center_crop == 0.875 and len(datalist.skipped) == 2
    for line in ("jpg/image_00002.jpg", "jpg/image_00002.jpg 102", "jpg/image_00002.jpg -1", "7", "a b c"):
        (flowers / "train.txt").write_text(f"jpg/image_00001.jpg 4\n\n{line}\n")
        _fails(flowers, rf"train\.txt, line 3: expected an image and a label from 0 to 101, .*, got '{line}'")
    (flowers / "train.txt").write_bytes(b"\xff\xfe")
    _fails(flowers, r"train\.txt is not a text file in UTF-8")
    (flowers / "train.txt").unlink()
    _fails(flowers, "is no data set that can be read")  # a folder jpg and some texts may be anything


def test_flowers_errors(flowers: Path) -> None:
    splits = {"trnid": [1], "valid": [2], "tstid": [3]}
    for labels, sets, message in (
        ([0, 1, 2], splits, r"imagelabels\.mat: the labels must be 1 to 102, got 0 for image 1"),
        ([1, 103, 2], splits, "must be 1 to 102, got 103 for image 2"),
        ([1, 2.5, 2], splits, r"imagelabels\.mat: labels must be a vector of whole numbers"),
        ([1, np.nan, 2], splits, "must be a vector of whole numbers"),
        ([1, np.inf, 2], splits, "must be a vector of whole numbers"),
        (["a", "b", "c"], splits, "must be a vector of whole numbers"),
        ([1, 2, 3], {**splits, "tstid": [4]}, r"setid\.mat: tstid must hold images 1 to 3, got 4"),
        ([1, 2, 3], {**splits, "valid": [0]}, "valid must hold images 1 to 3, got 0"),
        ([1, 2, 3], {**splits, "valid": [1]}, r"1 ids occur more than once: jpg/image_00001\.jpg"),
        ([1, 2, 3], {"trnid": [1], "tstid": [3]}, r"setid\.mat must hold the variable valid, found 'trnid', 'tstid'"),
    ):
        _matrices(flowers, labels, **sets)
        _fails(flowers, message)
    _matrices(flowers, [1, 2, 3.0, 4], trnid=[4], valid=[4][:0], tstid=[4][:0])
    _fails(flowers, r"holds no images: .*setid\.mat, trnid: no image .*image_00004\.jpg")
    (flowers / "setid.mat").unlink()
    _fails(flowers, r"holds no setid\.mat, which belongs to the images in jpg")
    _matrices(flowers, [1], trnid=[1], valid=[1], tstid=[1])
    (flowers / "jpg").rename(flowers / "images")
    _fails(flowers, r"holds imagelabels\.mat and setid\.mat, but no folder jpg")


# --- Stanford Dogs ----------------------------------------------------------------------------------------------------

CHIN, SHIH_TZU, LHASA = "n02085782-Japanese_spaniel", "n02086240-Shih-Tzu", "n02098413-Lhasa"


def _cells(names: list[str]) -> np.ndarray:
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = names
    return cells


def _lists(root: Path, kind: str, **lists: list[str]) -> None:
    root.mkdir(exist_ok=True)
    for split, names in lists.items():
        if kind == "mat":
            labels = np.zeros((len(names), 1))
            savemat(root / f"{split}_list.mat", {"file_list": _cells(names), "labels": labels})
        else:
            (root / f"{split}_list.txt").write_text("\n".join(names) + "\n")


@pytest.fixture
def dogs(tmp_path: Path) -> Path:
    for name in (f"{LHASA}/a_1.jpg", f"{CHIN}/b_1.jpg", f"{CHIN}/b_2.jpg", f"{LHASA}/a_2.jpg"):
        _image(tmp_path / "Images" / name)
    return tmp_path


TRAIN = [f"{LHASA}/a_1.jpg", f"{CHIN}/b_2.jpg", f"{SHIH_TZU}/c_1.jpg"]
TEST = [f"{CHIN}/b_1.jpg"]


@pytest.mark.parametrize("folder", [".", "lists"])
@pytest.mark.parametrize("kind", ["mat", "txt"])
def test_dogs(dogs: Path, folder: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    _lists(dogs / folder, kind, train=TRAIN, test=TEST)
    datalist = load_datalist(dogs)
    assert [(item["id"], item["label"], item["split"]) for item in datalist] == [
        (TRAIN[0], 1, "train"),
        (TRAIN[1], 0, "train"),
        (TEST[0], 0, "test"),
    ]
    info = datalist.info
    assert (info.source, info.class_names, info.ordinal, info.center_crop) == (
        "dogs",
        ["Japanese_spaniel", "Lhasa"],
        False,
        0.875,
    )
    assert [entry["id"] for entry in datalist.skipped] == [TRAIN[2]]
    assert caplog.messages == [f"{dogs}: 1 of 4 images are left out: {TRAIN[2]}"]
    # Not the labels of a split alone.
    assert load_datalist(dogs, "test").info == info and len(load_datalist(dogs, "test")) == 1
    assert load_datalist(dogs / "Images").info.source == "classes"


def test_dogs_hyphen_belongs_to_the_breed(dogs: Path) -> None:
    _image(dogs / "Images" / TRAIN[2])
    _lists(dogs, "txt", train=TRAIN, test=TEST)
    assert load_datalist(dogs).info.class_names == ["Japanese_spaniel", "Shih-Tzu", "Lhasa"]


def test_dogs_errors(dogs: Path) -> None:
    _fails(dogs, r"no train_list\.mat or train_list\.txt; without the official splits, .*Images can be read as class")
    _lists(dogs, "txt", train=TRAIN)
    _fails(dogs, r"no test_list\.mat or test_list\.txt")
    _lists(dogs, "txt", test=["b_1.jpg"])
    _fails(dogs, r"test_list\.txt, line 1: expected an image as <wnid>-<breed>/<file>, got 'b_1\.jpg'")
    _lists(dogs, "txt", test=TRAIN[:1])
    _fails(dogs, "1 ids occur more than once: n02098413-Lhasa/a_1.jpg")
    _lists(dogs, "txt", test=TEST)
    _fails(dogs, "split_key cannot be used, for it is no table", split_key="x")
    savemat(dogs / "test_list.mat", {"file_list": np.array([[1.0, 2.0]])})
    _fails(dogs, r"test_list\.mat: file_list must be a cell array of texts")
    savemat(dogs / "test_list.mat", {"labels": np.array([[1.0, 2.0]])})
    _fails(dogs, r"test_list\.mat must hold the variable file_list, found 'labels'")


# --- Real photographs -------------------------------------------------------------------------------------------------


def test_real_flowers(shared_data: Path) -> None:
    datalist = load_datalist(shared_data / "oxford_flowers102")
    assert datalist.info.class_names is not None and len(datalist.info.class_names) == 20
    assert set(item["label"] for item in datalist) == set(range(20))
    assert len(datalist) + len(datalist.skipped) == 8189
    assert len(datalist) == len(list((shared_data / "oxford_flowers102" / "jpg").iterdir()))
    train = load_datalist(shared_data / "oxford_flowers102", "train")
    assert len(train) + len(train.skipped) == 1020


def test_real_dogs(shared_data: Path) -> None:
    datalist = load_datalist(shared_data / "stanford_dogs")
    assert datalist.skipped == [] and Counter(item["split"] for item in datalist) == {"train": 574, "test": 518}
    assert datalist.info.class_names == [
        "Chihuahua",
        "Japanese_spaniel",
        "Maltese_dog",
        "Pekinese",
        "Shih-Tzu",
        "Blenheim_spaniel",
    ]
    for item in datalist:
        assert datalist.info.class_names[item["label"]] in item["image"]
