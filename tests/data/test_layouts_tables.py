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

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conrec_monai.data import Datalist, load_datalist
from conrec_monai.data.datalist import DR_GRADES


def _image(path: Path, frames: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.new("RGB", (4, 4)) for _ in range(frames)]
    if path.suffix.lower() in (".tif", ".tiff"):
        pages[0].save(path, "TIFF", save_all=True, append_images=pages[1:])
    else:
        pages[0].save(path, "PNG")
    return path


def _table(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _labels(datalist: Datalist) -> dict[str, int | None]:
    return {item["id"]: item["label"] for item in datalist}


def _column(datalist: Datalist, key: str) -> list[Any]:
    return [item[key] for item in datalist]


def _fails(path: Path, message: str, **arguments: Any) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_datalist(path, **arguments)
    assert "\n" not in str(error.value)


# --- IDRiD ------------------------------------------------------------------------------------------------------------

TRAIN = "a. IDRiD_Disease Grading_Training Labels.csv"
TEST = "b. IDRiD_Disease Grading_Testing Labels.csv"


@pytest.fixture
def idrid(tmp_path: Path) -> Path:
    """A folder as it is published: blank columns, trailing blanks, names that start anew in the test part."""
    grading = tmp_path / "IDRiD" / "B. Disease Grading"
    for name in ("a. Training Set/IDRiD_001.jpg", "a. Training Set/IDRiD_002.jpg", "b. Testing Set/IDRiD_001.jpg"):
        _image(grading / "1. Original Images" / name)
    header = "Image name,Retinopathy grade,Risk of macular edema "
    _table(grading / "2. Groundtruths" / TRAIN, f"{header},,,\r\nIDRiD_001,3,2,,,\r\nIDRiD_002 , 0,1,,,\r\n,,,,,\r\n")
    _table(grading / "2. Groundtruths" / TEST, f"{header}\r\nIDRiD_001,4,0\r\n")
    return grading


def test_idrid(idrid: Path) -> None:
    datalist = load_datalist(idrid.parent)
    assert _labels(datalist) == {"train/IDRiD_001": 3, "train/IDRiD_002": 0, "test/IDRiD_001": 4}
    assert _column(datalist, "split") == ["train", "train", "test"] and _column(datalist, "group") == [None] * 3
    assert datalist[2]["image"] == str(idrid / "1. Original Images" / "b. Testing Set" / "IDRiD_001.jpg")
    info = datalist.info
    assert (info.source, info.class_names, info.label_column, info.ordinal, info.center_crop) == (
        "idrid",
        list(DR_GRADES),
        "Retinopathy grade",
        True,
        1.0,
    )
    assert load_datalist(idrid) == datalist and datalist.skipped == []
    assert _labels(load_datalist(idrid, "test")) == {"test/IDRiD_001": 4}


@pytest.mark.parametrize("key", ["Risk of macular edema", "Risk of macular edema ", "risk of Macular EDEMA"])
def test_idrid_macular_edema(idrid: Path, key: str) -> None:
    datalist = load_datalist(idrid, label_key=key)
    assert _column(datalist, "label") == [2, 1, 0]
    info = datalist.info
    assert info.label_column == "Risk of macular edema" and info.ordinal
    assert info.class_names is not None and len(info.class_names) == 3 and info.class_names[0] == "No exudates"


def test_idrid_in_part(idrid: Path) -> None:
    (idrid / "1. Original Images" / "b. Testing Set" / "IDRiD_001.jpg").unlink()
    (idrid / "1. Original Images" / "b. Testing Set").rmdir()
    assert set(_column(load_datalist(idrid), "split")) == {"train"}
    _fails(idrid, "no section 'test', available: train", section="test")
    (idrid / "1. Original Images" / "a. Training Set" / "IDRiD_002.jpg").unlink()
    missing = r"Training Labels\.csv, line 3: no image .*a\. Training Set/IDRiD_002\.\*$"
    _fails(idrid, missing)
    datalist = load_datalist(idrid, on_error="skip")
    assert _labels(datalist) == {"train/IDRiD_001": 3}
    assert datalist.skipped[0]["id"] == "train/IDRiD_002" and len(datalist.skipped) == 1


def test_idrid_errors(idrid: Path) -> None:
    images, truth = idrid / "1. Original Images", idrid / "2. Groundtruths"
    _fails(images, "is a part of IDRiD: name the folder above")  # its parts look like two classes
    _fails(idrid, "must have the column grade, found Image name, Retinopathy grade, Risk of macular", label_key="grade")
    header = "Image name,Retinopathy grade,Risk of macular edema"
    _table(truth / TEST, f"{header}\nIDRiD_001,5,0\n")
    _fails(idrid, r"Testing Labels\.csv, line 2: Retinopathy grade must be an integer from 0 to 4, got '5'")
    _table(truth / TEST, f"{header}\nIDRiD_001,,0\n")
    _fails(idrid, "line 2: Retinopathy grade must be an integer from 0 to 4, got ''")
    _table(truth / TEST, f"{header}\nIDRiD_001,0,3\n")
    _fails(idrid, "line 2: Risk of macular edema must be an integer from 0 to 2, got '3'", label_key=header[29:])
    _table(truth / TEST, f"{header}\nIDRiD_001,1,0\nIDRiD_001,1,0\n")
    _fails(idrid, "1 ids occur more than once: test/IDRiD_001")
    _table(truth / TEST, f"{header}\nIDRiD_001,1,0,7\n")
    _fails(idrid, r"Testing Labels\.csv, line 2: 4 values for the columns Image name, Retinopathy grade, Risk")
    (truth / TEST).unlink()
    _fails(idrid, r"2\. Groundtruths must hold one table 'b\. IDRiD_Disease Grading_Testing Labels\.csv', found none")
    _image(idrid.parent / "C" / "1. Original Images" / "x.png")
    _fails(idrid.parent / "C", r"must hold the folders 'a\. Training Set' or 'b\. Testing Set'")


# --- EyePACS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [".", "train", "train_images"])
def test_eyepacs(tmp_path: Path, folder: str) -> None:
    for name in ("10_left.jpeg", "10_right.jpeg", "7_left_left.jpeg", "unnamed.jpeg"):
        _image(tmp_path / folder / name)
    _table(tmp_path / "trainLabels.csv", "image,level\n10_left,0\n10_right,4\n7_left_left,2\n")
    datalist = load_datalist(tmp_path)
    assert [(i["id"], i["label"], i["group"], i["split"]) for i in datalist] == [
        ("10_left", 0, "10", "train"),
        ("10_right", 4, "10", "train"),
        ("7_left_left", 2, "7_left", "train"),
    ]
    info = datalist.info
    assert (info.source, info.class_names, info.label_column, info.ordinal) == (
        "eyepacs",
        list(DR_GRADES),
        "level",
        True,
    )


@pytest.mark.parametrize("table", ["testLabels.csv", "retinopathy_solution.csv"])
def test_eyepacs_test_part(tmp_path: Path, table: str) -> None:
    _image(tmp_path / "train" / "10_left.jpeg")
    _table(tmp_path / "trainLabels.csv", "image,level\n10_left,0\n")
    _table(tmp_path / table, "image,level,Usage\n1_left,3,Public\n")
    assert len(load_datalist(tmp_path)) == 1  # without its images the table says nothing
    _image(tmp_path / "test" / "1_left.jpeg")
    assert [(i["id"], i["label"], i["group"]) for i in load_datalist(tmp_path, "test")] == [("1_left", 3, "1")]
    _fails(tmp_path, r"trainLabels\.csv must have the column Usage, found image, level", split_key="Usage")


def test_eyepacs_errors(tmp_path: Path) -> None:
    for name in ("10_left.jpeg", "11.jpeg"):
        _image(tmp_path / "train" / name)
    table = tmp_path / "trainLabels.csv"
    _table(table, "image,level\n10_left,0\n11,1\n")
    _fails(tmp_path, r"trainLabels\.csv, line 3: the image must be <patient>_left or <patient>_right, got 11")
    _table(table, "image,level\n10_left,5\n")
    _fails(tmp_path, r"trainLabels\.csv, line 2: level must be an integer from 0 to 4, got '5'")
    _table(table, "image,level\n10_left,0\n10_right,1\n9_left,2\n")
    _fails(tmp_path, r"line 3: no image .*train/10_right\.\* \(2 images are missing or damaged in all\)$")
    _table(table, "id,label\n10_left,cat\n11,frog\n")
    _fails(tmp_path, r"trainLabels\.csv must have the columns image and level, found id, label")
    # Named columns make it a table as any other.
    datalist = load_datalist(tmp_path, image_key="id", label_key="label")
    assert datalist.info.source == "csv" and _labels(datalist) == {"10_left": 0, "11": 1}


# --- Messidor-2 -------------------------------------------------------------------------------------------------------

MESSIDOR = (
    "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n"
    "20051020_43808_0100_PP.png,0,0,1\nIM000123.jpg,2.0,1,1\nIM000124.jpg,,,0\n"
)


@pytest.mark.parametrize("folder", [".", "IMAGES", "photographs"])
def test_messidor(tmp_path: Path, folder: str) -> None:
    for name in ("20051020_43808_0100_PP.png", "IM000123.JPG", "IM000124.JPG"):  # the published case differs, too
        _image(tmp_path / folder / name)
    table = _table(tmp_path / "messidor_data.csv", MESSIDOR)
    datalist = load_datalist(tmp_path)
    assert _labels(datalist) == {"20051020_43808_0100_PP.png": 0, "IM000123.jpg": 2, "IM000124.jpg": None}
    assert datalist[1]["image"] == str(tmp_path / folder / "IM000123.JPG")
    info = datalist.info
    assert (info.source, info.class_names, info.label_column, info.ordinal) == (
        "messidor",
        list(DR_GRADES),
        "adjudicated_dr_grade",
        True,
    )
    assert load_datalist(table) == datalist
    edema = load_datalist(tmp_path, label_key="adjudicated_dme")
    assert _column(edema, "label") == [0, 1, None] and edema.info.class_names == ["No edema", "Edema"]
    _table(table, MESSIDOR.replace("2.0", "2.5"))
    _fails(tmp_path, "line 3: adjudicated_dr_grade must be an integer from 0 to 4 or blank, got '2.5'")
    _table(tmp_path / "again.csv", MESSIDOR)
    _fails(tmp_path, r"holds 2 tables with the column image_id: name one, .*again\.csv")


# --- Any table --------------------------------------------------------------------------------------------------------


def test_csv_with_default_columns(tmp_path: Path) -> None:
    absolute = _image(tmp_path / "elsewhere" / "c.png")
    for name in ("data/photos/a.png", "data/photos/b.JPEG", "data/photos/left over.png", "data/d e.png"):
        _image(tmp_path / name)
    table = _table(
        tmp_path / "data" / "list.CSV",
        f'Split,note,IMAGE,label,group\ntrain,"x, y",photos/a.png,1,p1\ntest,,{absolute},0,\n,,b,,p2\ntest,,d e,3,p2\n',
    )
    datalist = load_datalist(table)
    assert datalist == [
        {
            "image": str(tmp_path / "data/photos/a.png"),
            "label": 1,
            "group": "p1",
            "split": "train",
            "id": "photos/a.png",
        },
        {"image": str(absolute), "label": 0, "group": None, "split": "test", "id": str(absolute)},
        {"image": str(tmp_path / "data/photos/b.JPEG"), "label": None, "group": "p2", "split": None, "id": "b"},
        {"image": str(tmp_path / "data/d e.png"), "label": 3, "group": "p2", "split": "test", "id": "d e"},
    ]
    info = datalist.info
    assert (info.source, info.class_names, info.label_column, info.ordinal) == ("csv", None, "label", False)
    assert _column(load_datalist(table, "test"), "label") == [0, 3]
    _fails(table, "no section 'val', available: train, test", section="val")


def test_csv_without_labels(tmp_path: Path) -> None:
    _image(tmp_path / "a.png")
    datalist = load_datalist(_table(tmp_path / "x.csv", "image,grade\na,2\n"))
    assert _labels(datalist) == {"a": None} and datalist.info.label_column is None and not datalist.info.ordinal


def test_csv_with_named_columns(tmp_path: Path) -> None:
    for name in "abc":
        _image(tmp_path / f"{name}.png")
    table = _table(tmp_path / "x.csv", "file,kind,who,part\na,drusen,1,x\nb,Öl,2,y\nc,drusen,2,x\n")
    keys = {"image_key": "file", "label_key": "kind", "group_key": "who", "split_key": "part"}
    datalist = load_datalist(table, **keys)
    assert _column(datalist, "label") == [0, 1, 0] and datalist.info.class_names == ["drusen", "Öl"]
    assert _column(datalist, "group") == ["1", "2", "2"] and _column(datalist, "split") == ["x", "y", "x"]
    assert load_datalist(tmp_path, **keys) == datalist
    assert _column(load_datalist(table, "y", **keys), "label") == [1]  # the labels are those of all splits
    _fails(table, r"x\.csv must have the columns image and level, found file, kind, who, part", label_key="level")
    for key in ("", " ", 3):
        _fails(table, "group_key must be the name of a column, got", group_key=key)


@pytest.mark.parametrize(
    ("column", "values", "labels", "names", "ordinal"),
    [
        ("grade", "0 2 1", [0, 2, 1], None, True),
        ("DR", "0 2 1", [0, 2, 1], None, True),
        ("dr_level-2", "0 3.0 ", [0, 3, None], None, True),
        ("final Diagnosis", "1 1 1", [1, 1, 1], None, True),
        ("address", "0 2 1", [0, 2, 1], None, False),  # "dr" is in it, but is no word of it
        ("grader", "0 2 1", [0, 2, 1], None, False),
        ("grade", "mild severe mild", [0, 1, 0], ["mild", "severe"], False),
        ("label", "b a ", [1, 0, None], ["a", "b"], False),
        ("label", "  ", [None, None, None], None, False),
    ],
)
def test_csv_labels(
    tmp_path: Path, column: str, values: str, labels: list[int | None], names: list[str] | None, ordinal: bool
) -> None:
    for name in "abc":
        _image(tmp_path / f"{name}.png")
    rows = "".join(f"{name},{value}\n" for name, value in zip("abc", values.split(" "), strict=True))
    datalist = load_datalist(_table(tmp_path / "x.csv", f"image,{column}\n{rows}"), label_key=column)
    assert _column(datalist, "label") == labels
    assert (datalist.info.class_names, datalist.info.ordinal) == (names, ordinal)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na,1\n", "x.csv must have the column image, found name, label"),
        ("image;label\na;1\n", "x.csv must have the column image, found image;label"),
        ("", "x.csv must have the column image, found none"),
        ("image,label\n", "x.csv has no rows"),
        ("image,label\na,1\nb,-1\n", "x.csv, line 3: the values of label must be whole numbers.*, got '-1'"),
        ("image,label\na,1\nb,1.5\n", "line 3: the values of label must be .*, got '1.5'"),
        ("image,label\na,1\nb,mild\n", "line 3: the values of label must be .*, got 'mild'"),
        ("image,label\na,1\nb,1234567890\n", "line 3: the values of label must be .*, got '1234567890'"),
        ("image,label\na,1\n,2\n", "x.csv, line 3: no image name in the column image"),
        ("image,label\na,1\na,1\n", "1 ids occur more than once: a"),
        ("image,label\na,1\na.png,1\n", "x.csv, line 3: the image a.png is listed before, as a"),
        ("image,label\na,1\nb,1,1\n", "x.csv, line 3: 3 values for the columns image, label"),
        ("image,label\na,1\nb\n", "x.csv, line 3: 1 values for the columns image, label"),
        ("image,Image ,label\na,a,1\n", None),
        ("Image,IMAGE\na,b\n", "x.csv has 2 columns image: Image, IMAGE"),
        ("image,label,label\na,1,2\n", "x.csv has 2 columns label"),
        ("image\ntwice\n", "holds two images of the same name: twice.jpg and twice.png"),
        ("image\nno/where.png\n", r"x.csv, line 2: no image .*no/where\.png$"),
        ('image\n"two\nlines"\n', r"x.csv, line 3: no image '.*two\\nlines'"),
        ("image\n" + "n" * 300 + "\n", "x.csv, line 2: no image"),
        ("image\na\0b\n", "x.csv"),
        ("image\n..\n", "x.csv, line 2: no image"),
        ('image\n"a\nb\n', "x.csv is not a CSV file in UTF-8: unexpected end of data"),
    ],
)
def test_csv_errors(tmp_path: Path, text: str, message: str | None) -> None:
    for name in ("a.png", "b.png", "twice.png", "twice.jpg"):
        _image(tmp_path / name)
    path = _table(tmp_path / "x.csv", text)
    if message is None:
        assert _labels(load_datalist(path)) == {"a": 1}
    else:
        _fails(path, message)


@given(text=st.text(st.sampled_from('ab,\n"\r;0é\0 /.'), max_size=30))
@settings(max_examples=30, deadline=None)
def test_any_table_gives_items_or_one_line(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any" / "any.csv"
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (1, 1)).save(path.parent / "a.png")
    path.write_text("image,label\n" + text, encoding="utf-8", newline="")
    try:
        assert isinstance(load_datalist(path), Datalist)
    except ValueError as error:
        assert "\n" not in str(error) and str(path.parent) in str(error)


def test_csv_is_no_utf_8(tmp_path: Path) -> None:
    _image(tmp_path / "a.png")
    (tmp_path / "x.csv").write_bytes(b"image,label\na,1\n\xe9,2\n")
    for path in (tmp_path / "x.csv", tmp_path):
        _fails(path, r"x\.csv is not a CSV file in UTF-8")


def test_folder_with_a_table(tmp_path: Path) -> None:
    text = "image,label\na,1\n"
    for name, files in {
        "beside": ["a.png"],
        "below": ["photos/a.png"],
        "of several": ["Images/a.png", "masks/a.png"],
    }.items():
        for file in files:
            _image(tmp_path / name / file)
        table = _table(tmp_path / name / "x.csv", text)
        datalist = load_datalist(tmp_path / name)
        assert datalist.info.source == "csv" and datalist[0]["image"] == str(tmp_path / name / files[0])
        assert load_datalist(table) == datalist
        _table(tmp_path / name / "y.csv", text)
        _fails(tmp_path / name, r"holds 2 tables: name one, x\.csv, y\.csv", label_key="label")


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    """A table says what a folder is only if it is alone and plain, unless a key is given."""
    for name in ("classes/a/1.png", "classes/b/2.png", "flat/1.png", "two/1.png"):
        _image(tmp_path / name)
    for name in ("classes/x.csv", "two/x.csv", "two/y.csv"):
        _table(tmp_path / name, "image,label\n1,1\n")
    _table(tmp_path / "flat" / "x.csv", "name,label\n1,1\n")
    for name, source in (("classes", "classes"), ("flat", "folder"), ("two", "folder")):
        assert load_datalist(tmp_path / name).info.source == source
    assert load_datalist(tmp_path / "flat", image_key="name").info.source == "csv"
    _fails(tmp_path / "classes", r"x\.csv, line 2: no image .*classes/1\.\*", label_key="label")
    _table(tmp_path / "classes" / "x.csv", "image,label\na/1.png,1\nb/2,0\n")
    assert _labels(load_datalist(tmp_path / "classes", label_key="label")) == {"a/1.png": 1, "b/2": 0}


def test_tables_that_are_not_read_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _image(tmp_path / "photos" / "1.png")
    _table(tmp_path / "labels.csv", "file,grade\n1,1\n")
    hint = "labels.csv has no column image, only file, grade: image_key and label_key name others"
    _fails(tmp_path, rf"Perhaps: {hint} \(--image_key, --label_key\)\.$")
    assert load_datalist(tmp_path, image_key="file", label_key="grade")[0]["label"] == 1
    _image(tmp_path / "photos" / "2.png")
    _table(tmp_path / "photos" / "labels.csv", "file,grade\n1,1\n")
    assert load_datalist(tmp_path / "photos").info.source == "folder"
    assert f"{tmp_path / 'photos'}: images without labels; {hint}" in caplog.text
    _table(tmp_path / "more.csv", "image\n1\n")
    _fails(tmp_path, r"Perhaps: it holds 2 tables \(labels\.csv, more\.csv\): name one in place of the folder\.$")


@pytest.mark.parametrize("layout", ["classes", "folder", "json", "npz", "phantom"])
def test_keys_are_for_tables(tmp_path: Path, layout: str) -> None:
    for name in ("classes/a/1.png", "classes/b/2.png", "folder/1.png"):
        _image(tmp_path / name)
    np.savez(tmp_path / "npz.npz", train_images=np.zeros((1, 4, 4), np.uint8), train_labels=np.zeros((1, 1), np.uint8))
    (tmp_path / "json.json").write_text('{"training": [{"image": "folder/1.png"}]}')
    path = {"json": tmp_path / "json.json", "npz": tmp_path / "npz.npz", "phantom": "phantom:n=1,size=32"}.get(
        layout, tmp_path / layout
    )
    assert len(load_datalist(path)) >= 1
    _fails(path, "label_key, group_key cannot be used, for it is no table", label_key="x", group_key="y")  # type: ignore[arg-type]


def test_skipping(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _image(tmp_path / "a.png")
    table = _table(tmp_path / "x.csv", "image,label,split\na,cat,u\ngone,dog,u\nlost/b.png,ant,v\n")
    _fails(table, r"line 3: no image .*gone\.\* \(2 images are missing or damaged in all\)$")
    datalist = load_datalist(table, on_error="skip")
    assert _labels(datalist) == {"a": 1}  # the classes are those of the table
    assert datalist.info.class_names == ["ant", "cat", "dog"]
    assert datalist.skipped == [
        {
            "id": "gone",
            "image": str(tmp_path / "gone"),
            "reason": f"{table}, line 3: no image {tmp_path / 'gone'}.*",
        },
        {
            "id": "lost/b.png",
            "image": str(tmp_path / "lost/b.png"),
            "reason": f"{table}, line 4: no image {tmp_path / 'lost/b.png'}",
        },
    ]
    assert caplog.messages == [f"{table}: 2 of 3 images are left out: gone, lost/b.png"]
    assert caplog.records[0].name == "conrec_monai"
    assert [entry["id"] for entry in load_datalist(table, "u", on_error="skip").skipped] == ["gone"]
    _fails(table, "on_error must be 'raise' or 'skip', got 'ignore'", on_error="ignore")
    _table(table, "image,label\na,1\ngone,-1\n")
    _fails(table, "line 3: the values of label must be", on_error="skip")  # labels are never skipped
    _table(table, "image,label\ngone,1\n")
    _fails(table, r"x\.csv holds no images: .*line 2: no image .*gone", on_error="skip")


def test_frames_of_a_table(tmp_path: Path) -> None:
    _image(tmp_path / "stack.tif", frames=3)
    _image(tmp_path / "single.tif")
    _image(tmp_path / "plain.png")
    table = _table(tmp_path / "x.csv", "image,label,group\nstack,1,\nsingle.tif,0,\nplain,2,g\n")
    datalist = load_datalist(table)
    assert [(i["id"], i.get("frame"), i["label"], i["group"]) for i in datalist] == [
        ("stack#0", 0, 1, "stack"),  # pictures of one file must not be parted
        ("stack#1", 1, 1, "stack"),
        ("stack#2", 2, 1, "stack"),
        ("single.tif", None, 0, None),
        ("plain", None, 2, "g"),
    ]
    assert "frame" not in datalist[3]
    (tmp_path / "single.tif").write_bytes(b"II*\0")
    _fails(table, r"cannot read image .*single\.tif")
    left = load_datalist(table, on_error="skip")
    assert len(left) == 4 and left.skipped[0]["id"] == "single.tif" and "single.tif" in left.skipped[0]["reason"]


# --- Real photographs -------------------------------------------------------------------------------------------------


def test_real_idrid(shared_data: Path) -> None:
    datalist = load_datalist(shared_data / "idrid")
    assert np.bincount(_column(datalist, "label")).tolist() == [134, 20, 136, 74, 49]
    assert set(_column(datalist, "split")) == {"train"}
    edema = load_datalist(shared_data / "idrid" / "B. Disease Grading", label_key="Risk of macular edema")
    assert len(np.bincount(_column(edema, "label"))) == 3 and len(edema) == 413


def test_real_table(shared_data: Path) -> None:
    table = shared_data / "aptos2019" / "train.csv"
    datalist = load_datalist(table, image_key="id_code", label_key="diagnosis")
    assert np.bincount(_column(datalist, "label")).tolist() == [1805, 370, 999, 193, 295] and datalist.info.ordinal
