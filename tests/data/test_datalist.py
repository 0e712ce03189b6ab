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

import copy
import csv
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conrec_monai.data import CachedImages, Datalist, load_datalist, phantom_arrays
from conrec_monai.data.datalist import DR_GRADES, DatalistInfo, write_manifest


def _image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "PNG")  # listing does not decode, so the suffix may say anything
    return path


def _json(folder: Path, content: Any, name: str = "data.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def _labels(datalist: Datalist) -> dict[str, int | None]:
    return {item["id"]: item["label"] for item in datalist}


# --- MONAI datalist ---------------------------------------------------------------------------------------------------


def test_json_sections(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "d.png"):
        _image(tmp_path / "img" / name)
    absolute = str(tmp_path / "img" / "c.png")
    path = _json(
        tmp_path,
        {
            "name": "demo",
            "numTraining": 2,
            "authors": ["x", "y"],
            "labels": {"1": "sick", "0": "healthy"},
            "ordinal": True,
            "training": [
                {"image": "img/b.png", "label": 1, "group": 7},
                {"image": "./img/a.png", "label": 0, "id": "A"},
            ],
            "validation": [{"image": absolute, "split": "holdout", "group": "g"}],
            "test": ["img/d.png"],
        },
    )
    datalist = load_datalist(path)
    assert datalist == [
        {"image": str(tmp_path / "img/b.png"), "label": 1, "group": "7", "split": "training", "id": "img/b.png"},
        {"image": str(tmp_path / "img/a.png"), "label": 0, "group": None, "split": "training", "id": "A"},
        {"image": absolute, "label": None, "group": "g", "split": "holdout", "id": absolute},
        {"image": str(tmp_path / "img/d.png"), "label": None, "group": None, "split": "test", "id": "img/d.png"},
    ]
    info = datalist.info
    assert (info.source, info.path, info.class_names, info.label_column, info.ordinal) == (
        "datalist",
        str(path),
        ["healthy", "sick"],
        "label",
        True,
    )
    assert [item["id"] for item in load_datalist(path, "training")] == ["img/b.png", "A"]
    assert load_datalist(path, "training").info == info
    with pytest.raises(ValueError, match="no section 'validation', available: training, holdout, test"):
        load_datalist(path, "validation")


def test_json_suffix_in_any_case_and_byte_order_mark(tmp_path: Path) -> None:
    _image(tmp_path / "a.png")
    path = _json(tmp_path, "\ufeff" + json.dumps({"training": [{"image": "a.png"}]}), "DATA.JSON")
    datalist = load_datalist(path)
    assert _labels(datalist) == {"a.png": None}
    assert datalist.info.class_names is None and not datalist.info.ordinal


ITEM = {"image": "a.png"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "data.json is not valid JSON: .*line 1"),
        ("[" * 100_000, "data.json is not valid JSON"),
        ([ITEM], "JSON object of sections, found a list"),
        ({"train": "a.png"}, "no section.*its keys are train"),
        ({"train": [{"img": "a.png"}]}, "item 0 of 'train' must be an object with the path of an \"image\""),
        ({"other": [{"img": "a.png"}], "train": [ITEM]}, "item 0 of 'other' must be an object"),
        ({"training": [ITEM, 3], "test": []}, "item 1 of 'training'"),
        ({"training": [ITEM, {"label": 1}]}, "item 1 of 'training' must be an object with the path of an \"image\""),
        ({"training": [ITEM, "a.png", 3]}, "item 2 of 'training'"),
        ({"test": [None]}, "item 0 of 'test' must be an object"),
        ({"training": [{"image": "none.png"}]}, "item 0 of 'training': image file not found: .*none.png"),
        ({"training": [{**ITEM, "label": 1.0}]}, "the label must be an integer >= 0, got 1.0"),
        ({"training": [{**ITEM, "label": True}]}, "the label must be an integer >= 0, got True"),
        ({"training": [{**ITEM, "label": -1}]}, "the label must be an integer >= 0, got -1"),
        ({"training": [{**ITEM, "label": 1}], "labels": {"0": "x"}}, "an integer from 0 to 0, got 1"),
        ({"training": [ITEM], "labels": {"0": "x", "2": "y"}}, '"labels" must map'),
        ({"training": [ITEM], "labels": ["x", "y"]}, '"labels" must map'),
        ({"training": [ITEM], "labels": {}}, '"labels" must map'),
        ({"training": [ITEM], "ordinal": 1}, '"ordinal" must be true or false, got 1'),
        ({"training": [{**ITEM, "group": [1]}]}, r'"group" must be a text or a whole number, got \[1\]'),
        ({"training": [{**ITEM, "id": None}]}, '"id" must be a text or a whole number, got None'),
        ({"training": [ITEM], "validation": [ITEM]}, "1 ids occur more than once: a.png"),
    ],
)
def test_json_errors(tmp_path: Path, content: Any, message: str) -> None:
    _image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message) as error:
        load_datalist(_json(tmp_path, content))
    assert "\n" not in str(error.value) and "data.json" in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.sampled_from(["image", "label", "training", "test", "labels", "0"]), children, max_size=3)
    ),
    max_leaves=12,
)


@given(content=json_values)
@settings(max_examples=40, deadline=None)
def test_any_json_gives_items_or_one_line(content: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = _json(tmp_path_factory.getbasetemp(), content, "any.json")
    try:
        assert isinstance(load_datalist(path), Datalist)
    except ValueError as error:
        assert "\n" not in str(error) and "any.json" in str(error)


def test_json_skips_missing_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _image(tmp_path / "a.png")
    entries = [ITEM, *({"image": name, "label": 0} for name in ("none.png", "two\nlines.png", "n" * 300))]
    path = _json(tmp_path, {"training": entries, "test": ["gone.png"]})
    with pytest.raises(ValueError, match=r"item 1 of 'training': image file not found: .*none.png \(4 images are"):
        load_datalist(path)
    datalist = load_datalist(path, on_error="skip")
    assert _labels(datalist) == {"a.png": None}
    assert [entry["id"] for entry in datalist.skipped] == ["none.png", "two\nlines.png", "n" * 300, "gone.png"]
    assert all("\n" not in entry["reason"] and set(entry) == {"id", "image", "reason"} for entry in datalist.skipped)
    assert len(caplog.messages) == 1 and "\n" not in caplog.messages[0]
    assert [entry["id"] for entry in load_datalist(path, "training", on_error="skip").skipped][0] == "none.png"
    path = _json(tmp_path, {"training": [ITEM, {"image": "none.png", "label": -1}]})
    with pytest.raises(ValueError, match="the label must be an integer >= 0, got -1"):
        load_datalist(path, on_error="skip")


# --- APTOS ------------------------------------------------------------------------------------------------------------


def _aptos(root: Path, rows: str, images: tuple[str, ...] = ("b1.png", "a2.JPG", "c3.jpeg")) -> Path:
    for name in images:
        _image(root / "train_images" / name)
    (root / "train.csv").write_text(rows, encoding="utf-8-sig")
    return root


def test_aptos(tmp_path: Path) -> None:
    root = _aptos(
        tmp_path, "id_code,diagnosis\nb1,0\na2, 4\n\nc3,2\n", ("b1.png", "a2.JPG", "c3.jpeg", "extra.png", ".c3.png")
    )
    datalist = load_datalist(root)
    assert _labels(datalist) == {"b1": 0, "a2": 4, "c3": 2}
    assert [item["image"] for item in datalist] == [
        str(root / "train_images" / n) for n in ("b1.png", "a2.JPG", "c3.jpeg")
    ]
    assert {item["split"] for item in datalist} == {"train"}
    info = datalist.info
    assert (info.source, info.class_names, info.label_column, info.ordinal) == (
        "aptos",
        list(DR_GRADES),
        "diagnosis",
        True,
    )


def test_aptos_test_part(tmp_path: Path) -> None:
    root = _aptos(tmp_path, "id_code,diagnosis\nb1,0\n")
    (root / "test.csv").write_text("id_code\nt2\nt1\n")
    assert len(load_datalist(root)) == 1  # without its images the table says nothing
    for name in ("t1.png", "t2.png"):
        _image(root / "test_images" / name)
    assert _labels(load_datalist(root)) == {"b1": 0, "t2": None, "t1": None}
    assert [item["id"] for item in load_datalist(root, "test")] == ["t2", "t1"]
    assert [item["id"] for item in load_datalist(root, "train")] == ["b1"]
    (root / "test.csv").write_text("name\nt2\n")
    with pytest.raises(ValueError, match=r"test\.csv must have the column id_code, found name"):
        load_datalist(root)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("id_code,diagnosis\nb1,0\nzz,1\n", r"train\.csv, line 3: no image .*train_images/zz\.\*"),
        ("id_code,diagnosis\nb1,0\n,1\n", r"train\.csv, line 3: no image"),
        ("id_code,diagnosis\nb1,5\n", r"train\.csv, line 2: diagnosis must be an integer from 0 to 4, got '5'"),
        ("id_code,diagnosis\n\nb1,\n", r"train\.csv, line 3: diagnosis must be an integer from 0 to 4, got ''"),
        ("id_code,diagnosis\nb1,1.0\n", "got '1.0'"),
        ("id_code,diagnosis\nb1,-1\n", "got '-1'"),
        ("id_code,diagnosis\nb1\n", r"train\.csv, line 2: 1 values for the columns id_code, diagnosis"),
        ("id_code,diagnosis\nb1,1\nb1,2\n", "1 ids occur more than once: b1"),
        ("id_code,diagnosis\n", r"train\.csv has no rows"),
        ("", r"train\.csv must have the columns id_code and diagnosis"),
        ("name,grade\nb1,1\n", r"train\.csv must have the columns id_code and diagnosis, found name, grade"),
    ],
)
def test_aptos_errors(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_datalist(_aptos(tmp_path, rows))


def test_aptos_incomplete_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.csv").write_text("id_code,diagnosis\nb1,0\n")
    with pytest.raises(ValueError, match="train.csv has no image folder .*train_images"):
        load_datalist(tmp_path / "a")
    for folder in ("train_images", "test_images"):  # must not become two classes
        _image(tmp_path / "b" / folder / "x.png")
    with pytest.raises(ValueError, match="holds train_images but no train.csv"):
        load_datalist(tmp_path / "b")
    _aptos(tmp_path / "c", "id_code,diagnosis\nb1,0\n", ("b1.png", "b1.jpg"))
    with pytest.raises(ValueError, match="two images of the same name: b1.jpg and b1.png"):
        load_datalist(tmp_path / "c")
    (tmp_path / "c" / "train.csv").write_bytes(b"id_code,diagnosis\n\xff,0\n")
    with pytest.raises(ValueError, match="train.csv is not a CSV file in UTF-8"):
        load_datalist(tmp_path / "c")


# --- MedMNIST ---------------------------------------------------------------------------------------------------------


def _npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_medmnist_rgb(tmp_path: Path) -> None:
    images = np.random.RandomState(0).randint(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    labels = np.array([[4], [0], [2]], dtype=np.uint8)
    path = _npz(
        tmp_path / "RetinaMNIST_224.npz",
        test_images=images[:1],
        test_labels=labels[:1],
        train_images=images,
        train_labels=labels,
    )
    datalist = load_datalist(path)
    assert _labels(datalist) == {"train-00000": 4, "train-00001": 0, "train-00002": 2, "test-00000": 4}
    assert datalist[1]["image"].shape == (3, 5, 4)
    np.testing.assert_array_equal(datalist[1]["image"], images[1].transpose(2, 0, 1))
    assert (datalist.info.source, datalist.info.ordinal, datalist.info.class_names) == (
        "medmnist",
        True,
        list(DR_GRADES),
    )
    assert len(load_datalist(path, "test")) == 1
    with pytest.raises(ValueError, match="no section 'val', available: train, test"):
        load_datalist(path, "val")


def test_medmnist_gray(tmp_path: Path) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    datalist = load_datalist(_npz(tmp_path / "pneumonia.npz", val_images=images, val_labels=np.array([[1], [0]])))
    np.testing.assert_array_equal(datalist[0]["image"], images[:1])
    assert [item["split"] for item in datalist] == ["val", "val"]
    assert not datalist.info.ordinal and datalist.info.class_names is None


IMAGES, LABELS = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 1), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, "holds no train_images, val_images or test_images, only x"),
        ({"train_images": IMAGES}, r"train_labels must be integers >= 0 of shape \(2, 1\), found none"),
        ({"train_images": IMAGES, "train_labels": np.zeros((2, 14), int)}, r"found int64 \(2, 14\)"),
        ({"train_images": IMAGES, "train_labels": LABELS - 1.0}, "found float64"),
        ({"train_images": IMAGES, "train_labels": np.array([[0], [-1]])}, "must be integers >= 0"),
        (
            {"train_images": IMAGES.astype(float), "train_labels": LABELS},
            r"uint8 N,H,W or N,H,W,3, found float64 \(2, 4, 4\)",
        ),
        ({"train_images": np.zeros((2, 4, 4, 4), np.uint8), "train_labels": LABELS}, r"found uint8 \(2, 4, 4, 4\)"),
        ({"train_images": IMAGES, "train_labels": LABELS + 5}, "grades 0 to 4, found 5"),
        ({"train_images": IMAGES[:0], "train_labels": LABELS[:0]}, "holds no images"),
    ],
)
def test_medmnist_errors(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_datalist(_npz(tmp_path / "retina.npz", **arrays))


class _Bomb:
    """Executes code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was executed",))


def test_medmnist_never_unpickles(tmp_path: Path) -> None:
    path = tmp_path / "retina.npz"
    objects = np.empty(2, dtype=object)
    objects[:] = [_Bomb(), _Bomb()]
    np.savez(path, train_images=objects, train_labels=LABELS)
    with pytest.raises(ValueError, match="is not an .npz file of plain arrays"):
        load_datalist(path)
    path.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ValueError, match="is not an .npz file of plain arrays"):
        load_datalist(path)


def test_medmnist_damaged(tmp_path: Path) -> None:
    path = _npz(tmp_path / "retina.npz", train_images=IMAGES, train_labels=LABELS)
    content = path.read_bytes()
    array = io.BytesIO()
    np.save(array, IMAGES)
    member = io.BytesIO()
    with zipfile.ZipFile(member, "w") as archive:
        archive.writestr("train_images.npy", b"no array")
    for damaged in (b"", b"no archive", content[:-100], content[:60], array.getvalue(), member.getvalue()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="retina.npz") as error:
            load_datalist(path)
        assert "\n" not in str(error.value)


# --- Folders ----------------------------------------------------------------------------------------------------------


def test_class_folders(tmp_path: Path) -> None:
    for name in (
        "dog/b.PNG",
        "dog/a.jpeg",
        "cat/z.jpg",
        "cat/.hidden.png",
        ".git/a.png",
        "__MACOSX/a.png",
        "dog/._a.jpeg",
    ):
        _image(tmp_path / name)
    (tmp_path / "readme.txt").write_text("x")
    datalist = load_datalist(str(tmp_path))
    assert _labels(datalist) == {"cat/z.jpg": 0, "dog/a.jpeg": 1, "dog/b.PNG": 1}
    assert [item["id"] for item in datalist] == ["cat/z.jpg", "dog/a.jpeg", "dog/b.PNG"]
    info = datalist.info
    assert (info.source, info.class_names, info.label_column, info.ordinal) == ("classes", ["cat", "dog"], None, False)
    with pytest.raises(ValueError, match="no section 'train', available: none"):
        load_datalist(tmp_path, "train")


@pytest.mark.parametrize(
    ("names", "expected", "ordinal"),
    [
        (["10", "9", "1"], ["1", "9", "10"], False),
        ([str(i) for i in range(11)], [str(i) for i in range(11)], True),
        (["1", "2"], ["1", "2"], False),
        (["00", "01"], ["00", "01"], False),
        (["10", "9", "x"], ["10", "9", "x"], False),
    ],
)
def test_class_names_that_are_integers(tmp_path: Path, names: list[str], expected: list[str], ordinal: bool) -> None:
    for name in names:
        _image(tmp_path / name / "a.png")
    datalist = load_datalist(tmp_path)
    assert datalist.info.class_names == expected and datalist.info.ordinal is ordinal
    assert _labels(datalist) == {f"{name}/a.png": label for label, name in enumerate(expected)}


def test_split_folders(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "val/a/1.png", "test/b/3.png"):
        _image(tmp_path / name)
    for name in ("val/b", "test/a"):  # a class may be empty in one of the splits
        (tmp_path / name).mkdir()
    datalist = load_datalist(tmp_path)
    assert [(item["id"], item["split"], item["label"]) for item in datalist] == [
        ("train/a/1.png", "train", 0),
        ("train/b/2.png", "train", 1),
        ("val/a/1.png", "val", 0),
        ("test/b/3.png", "test", 1),
    ]
    assert [item["id"] for item in load_datalist(tmp_path, "test")] == ["test/b/3.png"]
    (tmp_path / "test" / "a").rmdir()
    with pytest.raises(ValueError, match="test has no folder for class a, which another split has"):
        load_datalist(tmp_path)


def test_split_folders_without_classes_are_no_classes(tmp_path: Path) -> None:
    for name in ("train/1.png", "test/2.png"):
        _image(tmp_path / name)
    with pytest.raises(ValueError, match=r"Found: subfolders test \(1 entries\), train \(1 entries\)"):
        load_datalist(tmp_path)


def test_empty_class_folder_would_shift_labels(tmp_path: Path) -> None:
    for name in ("0", "2"):
        _image(tmp_path / name / "a.png")
    (tmp_path / "1").mkdir()
    with pytest.raises(ValueError, match="class folder '1' holds no image"):
        load_datalist(tmp_path)


def test_flat_folder(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.jpeg", ".d.png"):
        _image(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.csv").write_text("x")
    datalist = load_datalist(tmp_path)
    assert datalist == [
        {"image": str(tmp_path / name), "label": None, "group": None, "split": None, "id": name}
        for name in ("a.JPG", "b.png", "c.jpeg")
    ]
    assert datalist.info.source == "folder" and datalist.info.class_names is None


def test_mixtures_are_errors(tmp_path: Path) -> None:
    _image(tmp_path / "flat" / "a.png")
    _image(tmp_path / "flat" / "thumbs" / "a.png")
    with pytest.raises(ValueError, match=r"both images and subfolders with images \(thumbs\)"):
        load_datalist(tmp_path / "flat")
    _image(tmp_path / "flat" / "more" / "a.png")
    with pytest.raises(ValueError, match=r"both class folders and images of its own \(a.png, ...\)"):
        load_datalist(tmp_path / "flat")
    _image(tmp_path / "kinds" / "a.png")
    (tmp_path / "kinds" / "b.GIF").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="holds 1 images that can be read, and 1 of other kinds: b.GIF"):
        load_datalist(tmp_path / "kinds")


def test_folders_hold_every_kind_of_image(tmp_path: Path) -> None:
    names = ["a.bmp", "b.JPG", "c.dcm", "d.NII.GZ", "e.nii", "f.png", "g.jpeg", "h.tif", "i.TIFF"]
    for folder in ("0", "1"):
        for name in names:
            _image(tmp_path / folder / name)  # the readers go by the content, which is PNG
    assert [item["id"] for item in load_datalist(tmp_path / "0")] == names
    assert [item["id"] for item in load_datalist(tmp_path)] == [f"{folder}/{name}" for folder in "01" for name in names]


def test_frames_become_items(tmp_path: Path) -> None:
    pages = [Image.new("L", (4, 4), value) for value in (10, 20, 30)]
    for folder in ("a", "b"):
        _image(tmp_path / folder / "1.png")
        pages[0].save(_image(tmp_path / folder / "2.tif"), "TIFF", save_all=True, append_images=pages[1:])
        pages[0].save(tmp_path / folder / "3.tif", "TIFF")
    assert [(item["id"], item.get("frame"), item["label"], item["group"]) for item in load_datalist(tmp_path)[4:]] == [
        ("a/3.tif", None, 0, None),
        ("b/1.png", None, 1, None),
        ("b/2.tif#0", 0, 1, "b/2.tif"),
        ("b/2.tif#1", 1, 1, "b/2.tif"),
        ("b/2.tif#2", 2, 1, "b/2.tif"),
        ("b/3.tif", None, 1, None),
    ]
    flat = load_datalist(tmp_path / "a")
    assert [item["id"] for item in flat] == ["1.png", "2.tif#0", "2.tif#1", "2.tif#2", "3.tif"]
    assert CachedImages(flat, 4, channels=1, progress=False).images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 10]
    (tmp_path / "a" / "3.tif").write_bytes(b"II*\0")
    with pytest.raises(ValueError, match="cannot read image .*3.tif"):
        load_datalist(tmp_path / "a")
    left = load_datalist(tmp_path / "a", on_error="skip")
    assert len(left) == 4 and [entry["id"] for entry in left.skipped] == ["3.tif"]


def test_frames_are_counted_only_where_there_can_be_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("conrec_monai.data.datalist.count_frames", lambda path: asked.append(Path(path).name) or 1)
    for name in ("a.png", "b.jpg", "c.JPEG", "d.bmp", "e.dcm", "f.tif", "g.nii.gz"):
        _image(tmp_path / name)
    assert len(load_datalist(tmp_path)) == 7 and asked == ["e.dcm", "f.tif", "g.nii.gz"]
    _image(tmp_path / "IM01")  # DICOM files often have no suffix
    load_datalist(_json(tmp_path, {"training": [{"image": "IM01"}, {"image": "a.png"}]}))
    assert asked[3:] == ["IM01"]


# --- Phantom ----------------------------------------------------------------------------------------------------------


def test_phantom() -> None:
    datalist = load_datalist("phantom:n=5,seed=3")
    images, grades = phantom_arrays(5, 64, 3)
    assert [item["label"] for item in datalist] == grades.tolist()
    np.testing.assert_array_equal(np.stack([item["image"] for item in datalist]), images)
    assert datalist[0]["image"].dtype == np.uint8
    assert [item["id"] for item in datalist][:2] == ["phantom-00000", "phantom-00001"]
    info = datalist.info
    assert (info.source, info.path, info.ordinal, info.class_names) == (
        "phantom",
        "phantom:n=5,seed=3",
        True,
        list(DR_GRADES),
    )
    assert load_datalist("phantom:n=2, size=32")[0]["image"].shape == (3, 32, 32)


def test_phantom_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, int]] = []

    def record(**values: int) -> tuple[np.ndarray, np.ndarray]:
        calls.append(values)
        return np.zeros((1, 3, 8, 8), np.uint8), np.zeros(1, np.int64)

    monkeypatch.setattr("conrec_monai.data.datalist.phantom_arrays", record)
    load_datalist("phantom")
    load_datalist("phantom:seed=7,n=1")
    assert calls == [{"n": 600, "size": 64, "seed": 0}, {"n": 1, "size": 64, "seed": 7}]


def test_phantom_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="phantom:m=3: unknown key 'm', the keys are n, size, seed"):
        load_datalist("phantom:m=3")
    for value in ("n=x", "n=", "n"):
        with pytest.raises(ValueError, match="n must be a whole number"):
            load_datalist(f"phantom:{value}")
    monkeypatch.chdir(tmp_path)
    _image(tmp_path / "phantom" / "a.png")
    assert load_datalist(Path("phantom")).info.source == "folder"  # a path object is never the word


# --- All --------------------------------------------------------------------------------------------------------------


def test_missing_empty_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^data not found: .*none .*$"):
        load_datalist(tmp_path / "none")
    with pytest.raises(ValueError, match=r"Found: nothing \(the folder is empty\)") as error:
        load_datalist(tmp_path)
    for layout in (
        *("MONAI datalist", "MedMNIST", "IDRiD", "Oxford Flowers", "Stanford Dogs", "EyePACS", "APTOS", "Messidor-2"),
        *("table (.csv", "class folders", "flat folder", "phantom", "circle-square", "rectangle-triangle"),
    ):
        assert layout in str(error.value)
    (tmp_path / "a.mat").write_text("x")
    (tmp_path / "B.MAT").write_text("x")
    (tmp_path / "c").write_text("x")
    _image(tmp_path / "jpg" / "1.jpg")  # a single subfolder is no set of classes
    with pytest.raises(ValueError, match=r"Found: 1 \(no suffix\), 2 \.mat, subfolders jpg \(1 entries\)\.$") as error:
        load_datalist(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"Found: a file with the suffix '\.mat'"):
        load_datalist(tmp_path / "a.mat")


def test_datalist_is_a_list_that_travels() -> None:
    datalist = load_datalist("phantom:n=2,size=32")
    assert isinstance(datalist, list) and datalist.skipped == []
    datalist.skipped = [{"id": "a", "image": "a.png", "reason": "gone"}]
    for other in (pickle.loads(pickle.dumps(datalist)), copy.deepcopy(datalist)):
        assert isinstance(other, Datalist) and other.info == datalist.info and _labels(other) == _labels(datalist)
        assert other.skipped == datalist.skipped


def test_center_crop_is_the_whole_image_elsewhere() -> None:
    assert DatalistInfo("folder", "flat folder", "x").center_crop == 1.0
    assert load_datalist("phantom:n=2,size=32").info.center_crop == 1.0


def test_manifest(tmp_path: Path) -> None:
    skipped = [
        {"id": "a", "image": "x/ä, b.png", "reason": 'no "image"'},
        {"id": "two\nlines", "image": "no \udce4 UTF-8.png", "reason": ""},
    ]
    write_manifest(tmp_path / "skipped.csv", skipped)
    with open(tmp_path / "skipped.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    skipped[1]["image"] = "no \\udce4 UTF-8.png"
    assert rows == skipped and list(rows[0]) == ["id", "image", "reason"]
    write_manifest(tmp_path / "skipped.csv", [])
    assert (tmp_path / "skipped.csv").read_text() == "id,image,reason\n"


def test_names_that_are_no_utf_8(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = os.fsdecode(b"\xe4.png")
    try:
        _image(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    _image(tmp_path / "b.tif").write_bytes(b"II*\0")
    datalist = load_datalist(tmp_path, on_error="skip")
    assert _labels(datalist) == {name: None} and len(CachedImages(datalist, 4, progress=False).load().images) == 1
    caplog.messages[0].encode()


def test_real_data(shared_data: Path) -> None:
    aptos = load_datalist(shared_data / "aptos2019")
    assert np.bincount([item["label"] for item in aptos]).tolist() == [1805, 370, 999, 193, 295]
    retina = shared_data / "retinamnist" / "retinamnist.npz"
    assert [len(load_datalist(retina, split)) for split in ("train", "val", "test")] == [1080, 120, 400]
    assert load_datalist(retina).info.ordinal
    dogs = load_datalist(shared_data / "stanford_dogs" / "Images")
    assert (
        dogs.info.class_names is not None
        and len(dogs.info.class_names) == 6
        and dogs.info.class_names[0].endswith("Chihuahua")
    )
    flowers = load_datalist(shared_data / "oxford_flowers102" / "jpg")
    assert flowers.info.source == "folder" and flowers[0]["id"] == "image_03095.jpg"
    idrid = load_datalist(shared_data / "idrid" / "B. Disease Grading" / "1. Original Images" / "a. Training Set")
    assert len(idrid) == 413


def test_sections_of_plain_names(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        _image(tmp_path / name)
    path = _json(tmp_path, {"training": ["a.png"], "test": [{"image": "b.png"}]})
    assert [(item["id"], item["split"]) for item in load_datalist(path)] == [("a.png", "training"), ("b.png", "test")]


def test_images_that_folders_would_hide(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "deep" / name).mkdir(parents=True)
        _image(tmp_path / "deep" / name / "x.png")
    (tmp_path / "deep" / "a" / "more").mkdir()
    _image(tmp_path / "deep" / "a" / "more" / "y.png")
    with pytest.raises(ValueError, match="holds images below its class folders, which would be lost: in a/more"):
        load_datalist(tmp_path / "deep")

    for split in ("train", "valid"):
        (tmp_path / "splits" / split).mkdir(parents=True)
        _image(tmp_path / "splits" / split / "x.png")
    with pytest.raises(ValueError, match="holds the folders train, valid: splits must be called train, val, test"):
        load_datalist(tmp_path / "splits")

    for split in ("train", "Train"):
        (tmp_path / "twice" / split / "a").mkdir(parents=True)
        _image(tmp_path / "twice" / split / "a" / "x.png")
    with pytest.raises(ValueError, match="holds two folders of one split: Train, train"):
        load_datalist(tmp_path / "twice")


def test_table_of_a_whole_data_set(tmp_path: Path) -> None:
    (tmp_path / "trainLabels.csv").write_text("image,level\n1_left,0\n")
    _image(tmp_path / "1_left.png")
    with pytest.raises(ValueError, match="trainLabels.csv is the table of a whole data set: give its folder"):
        load_datalist(tmp_path / "trainLabels.csv")
    assert load_datalist(tmp_path)[0]["group"] == "1"
