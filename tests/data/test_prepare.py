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

import io
import json
import os
import shutil
import stat
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from conrec_monai.data import archives, load_datalist, read_image
from conrec_monai.data import prepare as module
from conrec_monai.data.prepare import DATA_SETS, Prepared, prepare

if isinstance(module, types.FunctionType):  # whichever of the two the package exports
    module = sys.modules["conrec_monai.data.prepare"]

WIDTH, HEIGHT, SIZE = 24, 16, 8


def picture(path: Path, seed: int = 0, width: int = WIDTH, height: int = HEIGHT, **options: Any) -> None:
    """A smooth color picture, so that JPEG keeps it nearly."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([60 + 4 * x + seed, 200 - 6 * y, 40 + 3 * x + 3 * y], axis=2) % 256
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".png": "PNG", ".tif": "TIFF", ".bmp": "BMP"}.get(path.suffix.lower(), "JPEG")
    Image.fromarray(pixels.astype(np.uint8)).save(path, kind, **options)


def aptos(folder: Path, suffix: str = ".png", n: int = 6) -> Path:
    rows = [f"image{i:03d},{i % 5}" for i in range(n)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.csv").write_text("\n".join(["id_code,diagnosis", *rows]) + "\n")
    for i in range(n):
        picture(folder / "train_images" / f"image{i:03d}{suffix}", i)
    return folder


def idrid(folder: Path) -> Path:
    top = folder / "B. Disease Grading"
    for part, name, grades in (("a", "Training", (2, 0, 4)), ("b", "Testing", (1, 3))):
        rows = [f"IDRiD_{i:03d},{grade},1,,," for i, grade in enumerate(grades, 1)]
        table = top / "2. Groundtruths" / f"{part}. IDRiD_Disease Grading_{name} Labels.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text("\n".join(["Image name,Retinopathy grade,Risk of macular edema ,,,", *rows]) + "\n")
        for i in range(1, len(grades) + 1):
            picture(top / "1. Original Images" / f"{part}. {name} Set" / f"IDRiD_{i:03d}.jpg", i)
    return folder


def eyepacs(folder: Path) -> Path:
    names = [f"{patient}_{side}" for patient in (10, 13) for side in ("left", "right")]
    for table, columns, part, ids in (
        ("trainLabels.csv", "image,level", "train", names),
        ("retinopathy_solution.csv", "image,level,Usage", "test", ["1_left", "1_right"]),
    ):
        more = ",Public" if "Usage" in columns else ""
        rows = [f"{name},{i % 5}{more}" for i, name in enumerate(ids)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / table).write_text("\n".join([columns, *rows]) + "\n")
        for i, name in enumerate(ids):
            picture(folder / part / f"{name}.jpeg", i)
    return folder


def messidor2(folder: Path) -> Path:
    rows = ["image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable"]
    rows += ["20051020_43808_0100_PP.png,0,0,1", "20051020_43832_0100_PP.png,2,1,1", "IM000001.jpg,3,0,1"]
    rows += ["IM000002.jpg,,,0"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "messidor_data.csv").write_text("\n".join(rows) + "\n")
    for i, row in enumerate(rows[1:]):
        picture(folder / "IMAGES" / row.partition(",")[0].replace(".jpg", ".JPG"), i)
    return folder


def flowers(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 2, 2, 1]], dtype=np.uint8)})
    split = {"trnid": [[2, 1]], "valid": [[3]], "tstid": [[4, 5, 6]]}
    scipy.io.savemat(folder / "setid.mat", {key: np.array(ids, dtype=np.uint16) for key, ids in split.items()})
    for i in range(1, 7):
        picture(folder / "jpg" / f"image_{i:05d}.jpg", i)
    return folder


def dogs(folder: Path) -> Path:
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for breed in ("n02085620-Chihuahua", "n02086240-Shih-Tzu"):
        for i in range(3):
            name = f"{breed}/{breed.partition('-')[0]}_{i}.jpg"
            picture(folder / "Images" / name, i)
            lists["test" if i == 2 else "train"].append(name)
    for split, names in lists.items():
        cells = np.empty((len(names), 1), dtype=object)
        cells[:, 0] = names
        labels = np.array([[1 + ("Shih" in name)] for name in names], dtype=np.uint8)
        scipy.io.savemat(folder / f"{split}_list.mat", {"file_list": cells, "labels": labels})
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "aptos2019": aptos,
    "idrid": idrid,
    "eyepacs": eyepacs,
    "messidor2": messidor2,
    "oxford_flowers102": flowers,
    "stanford_dogs": dogs,
}


def zipped(folder: Path, path: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, top + file.relative_to(folder).as_posix())
    return path


def contents(path: Path) -> list[tuple[Any, ...]]:
    """What a data set says of its images, wherever it lies and whatever their format is."""
    keys = ("label", "group", "split", "id")
    return [
        (Path(os.path.relpath(item["image"], path)).with_suffix("").as_posix(), *(item[key] for key in keys))
        for item in load_datalist(path)
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shrink_only(count: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] = KeyboardInterrupt) -> None:
    """Let the run end with an error after so many images."""
    original, calls = module._shrink, []

    def failing(*arguments: Any) -> int:
        if len(calls) == count:
            raise error("stop")
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(module, "_shrink", failing)


# --- every data set ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_folder_reads_as_before(name: str, tmp_path: Path) -> None:
    source = MAKERS[name](tmp_path / "source")
    done = prepare(name, source, tmp_path / "out", SIZE, workers=2)
    assert isinstance(done, Prepared) and done.path == tmp_path / "out"
    before = contents(source)
    assert len(before) == done.written == len(done.datalist) and len(before) >= 4
    strip = "B. Disease Grading/" if name == "idrid" else ""
    assert contents(tmp_path / "out") == [(row[0].removeprefix(strip), *row[1:]) for row in before]
    assert done.datalist.info.source == DATA_SETS[name].layout
    for item in done.datalist:
        with Image.open(item["image"]) as image:
            assert image.size == (12, 8) and image.mode == "RGB"  # the shorter side is 8, the ratio stays 3:2
    assert done.warnings and all(name in line and "the whole data set has" in line for line in done.warnings)


@pytest.mark.parametrize("name", MAKERS)
def test_archives_give_the_same_bytes_as_the_folder(name: str, tmp_path: Path) -> None:
    source = MAKERS[name](tmp_path / "source")
    prepare(name, source, tmp_path / "out", SIZE, workers=1)
    expected = files(tmp_path / "out")
    prepare(name, zipped(source, tmp_path / "data.zip"), tmp_path / "a", SIZE, workers=2)
    prepare(name, zipped(source, tmp_path / "deeper.zip", "some folder/below/"), tmp_path / "b", SIZE, workers=2)
    with tarfile.open(tmp_path / "data.tgz", "w:gz") as tar:
        tar.add(source, ".")
    prepare(name, tmp_path / "data.tgz", tmp_path / "c", SIZE, workers=2)
    for out in "abc":
        assert files(tmp_path / out) == expected


def test_downloads_of_several_archives(tmp_path: Path) -> None:
    source = flowers(tmp_path / "source")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with tarfile.open(downloads / "102flowers.tgz", "w:gz") as tar:
        tar.add(source / "jpg", "jpg")
    for name in ("imagelabels.mat", "setid.mat"):
        shutil.copy(source / name, downloads)
    (downloads / "readme.txt").write_text("hello")
    prepare("oxford_flowers102", source, tmp_path / "a", SIZE)
    prepare("oxford_flowers102", downloads, tmp_path / "b", SIZE)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert "readme.txt" not in files(tmp_path / "b")


def test_lists_of_the_dogs_may_lie_in_a_folder(tmp_path: Path) -> None:
    source = dogs(tmp_path / "source" / "dogs")
    expected = prepare("stanford_dogs", source, tmp_path / "a", SIZE)
    (source / "lists").mkdir()
    for split in ("train", "test"):
        (source / f"{split}_list.mat").rename(source / "lists" / f"{split}_list.mat")
    done = prepare("stanford_dogs", tmp_path / "source", tmp_path / "b", SIZE)
    assert (tmp_path / "b" / "lists" / "train_list.mat").is_file()
    assert contents(tmp_path / "b") == contents(tmp_path / "a") and done.warnings == expected.warnings


def test_part_of_a_data_set_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = flowers(tmp_path / "source")
    for image in (1, 3, 6):  # all of class 1
        (source / "jpg" / f"image_{image:05d}.jpg").unlink()
    caplog.clear()
    done = prepare("oxford_flowers102", source, tmp_path / "out", SIZE)
    assert done.datalist.info.class_names == ["class 2"] and [item["label"] for item in done.datalist] == [0, 0, 0]
    warnings = [
        "oxford_flowers102: 1 train images, the whole data set has 1020",
        "oxford_flowers102: 0 val images, the whole data set has 1020",
        "oxford_flowers102: 2 test images, the whole data set has 6149",
    ]
    assert done.warnings == warnings
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == warnings


def test_unpacked_files_go_before_archives(tmp_path: Path) -> None:
    source = aptos(tmp_path / "source")
    zipped(source, source / "all.zip")
    (source / "train.csv").write_text("id_code,diagnosis\nimage000,3\n")
    done = prepare("aptos2019", source, tmp_path / "out", SIZE)
    assert [(item["id"], item["label"]) for item in done.datalist] == [("image000", 3)]
    assert sorted(files(tmp_path / "out")) == ["prepared.json", "train.csv", "train_images/image000.png"]


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_pixels_are_those_of_the_photograph(tmp_path: Path) -> None:
    source = aptos(tmp_path / "source", n=1)
    y, x = np.mgrid[:64, :96]
    ramps = np.stack([2 * x, 255 - 3 * y, x + y], axis=2).astype(np.uint8)
    Image.fromarray(ramps).save(source / "train_images" / "image000.png")
    prepare("aptos2019", source, tmp_path / "out", 32)
    got = read_image(tmp_path / "out" / "train_images" / "image000.png")
    assert got.shape == (3, 32, 48)
    means = ramps.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)  # halving a ramp is averaging it
    assert np.abs(got - means)[:, 2:-2, 2:-2].max() <= 1


def test_small_images_keep_their_pixels(tmp_path: Path) -> None:
    source = aptos(tmp_path / "source")
    done = prepare("aptos2019", source, tmp_path / "out", HEIGHT + 1)
    for item in done.datalist:
        original = source / "train_images" / Path(item["image"]).name
        assert np.array_equal(read_image(item["image"]), read_image(original))


def test_upright_and_without_exif(tmp_path: Path) -> None:
    source = aptos(tmp_path / "source", ".jpg", n=1)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x013B] = 6, "Jane Doe, 1.1.1950", "Dr. No"
    path = source / "train_images" / "image000.jpg"
    picture(path, exif=exif, comment=b"Jane Doe")
    upright = read_image(path)
    assert upright.shape == (3, WIDTH, HEIGHT)
    prepare("aptos2019", source, tmp_path / "out", HEIGHT)
    written = tmp_path / "out" / "train_images" / "image000.jpg"
    assert np.abs(read_image(written).astype(int) - upright).max() < 12
    with Image.open(written) as image:
        assert not image.getexif() and "comment" not in image.info
    assert b"Doe" not in written.read_bytes() and b"Doe" in path.read_bytes()


@pytest.mark.parametrize(
    ("suffix", "image_format", "expected"),
    [
        (".jpg", None, ".jpg"),
        (".JPEG", None, ".JPEG"),
        (".png", None, ".png"),
        (".tif", None, ".png"),
        (".bmp", None, ".png"),
        (".png", "jpg", ".jpg"),
        (".JPEG", "jpg", ".JPEG"),
        (".jpg", "png", ".png"),
        (".PNG", "png", ".PNG"),
    ],
)
def test_format(suffix: str, image_format: str | None, expected: str, tmp_path: Path) -> None:
    source = aptos(tmp_path / "source", suffix, n=1)
    done = prepare("aptos2019", source, tmp_path / "out", SIZE, image_format)
    (item,) = done.datalist
    assert Path(item["image"]).name == f"image000{expected}"
    with Image.open(item["image"]) as image:
        assert image.format == ("PNG" if expected.lower() == ".png" else "JPEG")
        assert image.size == (12, 8)


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    source = aptos(tmp_path / "source", n=1)
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(source / "train_images" / "image000.png")
    done = prepare("aptos2019", source, tmp_path / "out", 8)
    got = read_image(done.datalist[0]["image"])
    assert got.dtype == np.uint8 and np.array_equal(got[0], np.rint(values / 257))


# --- going on ---------------------------------------------------------------------------------------------------------


def test_second_run_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = aptos(tmp_path / "source")
    prepare("aptos2019", source, tmp_path / "out", SIZE)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    shrink_only(0, monkeypatch, AssertionError)
    done = prepare("aptos2019", source, tmp_path / "out", SIZE)
    assert done.written == 0 and len(done.datalist) == 6
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert prepare("aptos2019", zipped(source, tmp_path / "same.zip"), tmp_path / "out", SIZE).written == 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
def test_goes_on_after_an_interruption(
    packed: bool, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = aptos(tmp_path / "source", n=12)
    source = zipped(folder, tmp_path / "data.zip") if packed else folder
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        shrink_only(7, patch, error)
        with pytest.raises(error, match="stop"):
            prepare("aptos2019", source, out, SIZE, workers=1)
    half = files(out)
    kept = {name for name in half if name.startswith("train_images/")}
    assert 0 < len(kept) <= 7 and "train.csv" not in half and "prepared.json" not in half
    with pytest.raises(ValueError, match="size"):  # an unfinished folder is not mixed either
        prepare("aptos2019", source, out, SIZE + 1)
    journal = half[".preparing"].decode().splitlines()
    assert len(journal) - 1 <= 7
    done = prepare("aptos2019", source, out, SIZE, workers=1)
    assert done.written == 12 - (len(journal) - 1) < 12
    prepare("aptos2019", source, tmp_path / "whole", SIZE)
    assert files(out) == files(tmp_path / "whole")


def test_what_is_not_whole_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = aptos(tmp_path / "source"), tmp_path / "out"
    with monkeypatch.context() as patch:
        shrink_only(5, patch)
        with pytest.raises(KeyboardInterrupt):
            prepare("aptos2019", source, out, SIZE, workers=1)
    names = [json.loads(line)[0] for line in (out / ".preparing").read_text().splitlines()[1:]]
    assert len(names) >= 3
    (out / names[0]).write_bytes(b"")  # the file system lost its content
    with Image.open(source / names[1]) as image:
        image.save(source / names[1], compress_level=0)  # another file than before
    with open(out / ".preparing", "a") as file:
        file.write('["train_im')  # the last line was not finished
    done = prepare("aptos2019", source, out, SIZE)
    assert done.written == 6 - len(names) + 2
    prepare("aptos2019", source, tmp_path / "whole", SIZE)
    assert files(out) == files(tmp_path / "whole")


def test_unreadable_images_do_not_cost_the_others(tmp_path: Path) -> None:
    source, out = aptos(tmp_path / "source"), tmp_path / "out"
    (source / "train_images" / "image001.png").write_bytes(b"no picture")
    good = (source / "train_images" / "image003.png").read_bytes()
    (source / "train_images" / "image003.png").write_bytes(good[:60])
    with pytest.raises(ValueError) as mistake:
        prepare("aptos2019", zipped(source, tmp_path / "data.zip"), out, SIZE)
    text = str(mistake.value)
    assert text.startswith("2 of 6 images cannot be read: train_images/image001.png (")
    assert "image003.png" in text and "member-" not in text and str(out) not in text
    assert len(list((out / "train_images").glob("*.png"))) == 4 and not (out / "train.csv").exists()
    picture(source / "train_images" / "image001.png", 1)
    picture(source / "train_images" / "image003.png", 3)
    assert prepare("aptos2019", source, out, SIZE).written == 2
    prepare("aptos2019", source, tmp_path / "whole", SIZE)
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 9}, "begun with another size: 8, not 9; choose another output"),
        ({"image_format": "jpg"}, "begun with another format: nothing, not jpg"),
        ({"name": "eyepacs"}, "begun with another name: aptos2019, not eyepacs"),
    ],
)
def test_other_settings_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = eyepacs(aptos(tmp_path / "source"))
    settings = {"name": "aptos2019", "size": SIZE, "image_format": None}
    prepare(settings["name"], source, tmp_path / "out", SIZE)
    before = files(tmp_path / "out")
    settings |= change
    if settings["name"] == "eyepacs":
        (source / "train.csv").unlink()
    with pytest.raises(ValueError, match=message):
        prepare(settings["name"], source, tmp_path / "out", settings["size"], settings["image_format"])
    assert files(tmp_path / "out") == before


def test_another_source_is_refused(tmp_path: Path) -> None:
    source, out = aptos(tmp_path / "source"), tmp_path / "out"
    prepare("aptos2019", source, out, SIZE)
    table = source / "train.csv"
    table.write_text(table.read_text().replace("image000,0", "image000,1"))
    with pytest.raises(ValueError, match="prepared from another copy of aptos2019"):
        prepare("aptos2019", source, out, SIZE)


def test_output_of_somebody_else_is_refused(tmp_path: Path) -> None:
    source, out = aptos(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and was not made by prepare"):
        prepare("aptos2019", source, out, SIZE)
    assert files(out) == {"thesis.txt": b"years of work"}
    with pytest.raises(ValueError, match="is not a folder"):
        prepare("aptos2019", source, out / "thesis.txt", SIZE)
    with pytest.raises(ValueError, match="lies in the source"):
        prepare("aptos2019", source, source / "small", SIZE)
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(ValueError, match="lies in the source"):
        prepare("aptos2019", source, tmp_path / "link", SIZE)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_damaged_record(content: str, tmp_path: Path) -> None:
    source, out = aptos(tmp_path / "source"), tmp_path / "out"
    prepare("aptos2019", source, out, SIZE)
    (out / "prepared.json").write_text(content)
    with pytest.raises(ValueError, match="prepared.json is damaged"):
        prepare("aptos2019", source, out, SIZE)


def test_result_that_was_tampered_with(tmp_path: Path) -> None:
    source, out = aptos(tmp_path / "source", ".jpg"), tmp_path / "out"
    prepare("aptos2019", source, out, SIZE)
    (out / "test.csv").write_text("id_code\nx\n")
    picture(out / "test_images" / "x.jpg")
    with pytest.raises(ValueError, match="reads otherwise than"):
        prepare("aptos2019", source, out, SIZE)


# --- record and counts ------------------------------------------------------------------------------------------------


def test_record(tmp_path: Path) -> None:
    source = eyepacs(tmp_path / "source")
    prepare("eyepacs", source, tmp_path / "out", SIZE)
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert record["name"] == "eyepacs" and record["size"] == SIZE and record["format"] is None
    assert record["splits"]["train"] == {"images": 4, "labels": {"0": 1, "1": 1, "2": 1, "3": 1}}
    assert record["splits"]["test"] == {"images": 2, "labels": {"0": 1, "1": 1}}
    assert record["groups"] == 3
    assert str(tmp_path) not in json.dumps(record)


def test_counts_of_the_whole_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = aptos(tmp_path / "source")
    whole = module.DataSet(
        "aptos2019", "x", "aptos", "train.csv", ("train.csv",), {"train": 6}, "", "", {"train": (2, 1, 1, 1, 1)}
    )
    monkeypatch.setitem(DATA_SETS, "aptos2019", whole)
    assert prepare("aptos2019", source, tmp_path / "a", SIZE).warnings == []
    table = source / "train.csv"
    table.write_text(table.read_text().replace("image000,0", "image000,1"))
    assert prepare("aptos2019", source, tmp_path / "b", SIZE).warnings == [
        "aptos2019: train images by class 1/2/1/1/1, the whole data set has 2/1/1/1/1"
    ]
    table.write_text("id_code,diagnosis\nimage000,0\n")
    assert prepare("aptos2019", source, tmp_path / "c", SIZE).warnings == [
        "aptos2019: 1 train images, the whole data set has 6"
    ]


def test_known_counts_agree_with_each_other() -> None:
    for data_set in DATA_SETS.values():
        for split, classes in data_set.classes.items():
            if data_set.name != "messidor2":  # whose 4 ungradable photographs have no grade
                assert sum(classes) == data_set.counts[split]
    assert sum(DATA_SETS["messidor2"].classes["all"]) == 1744
    assert sum(DATA_SETS["oxford_flowers102"].counts.values()) == 8189
    assert sum(DATA_SETS["stanford_dogs"].counts.values()) == 20580
    cards = Path(__file__).resolve().parents[2] / "datasets"
    for name, data_set in DATA_SETS.items():
        card = (cards / name / "README.md").read_text()
        assert f"conrec-monai prepare {name}" in card and data_set.url in card
        for count in data_set.counts.values():
            assert str(count) in card, (name, count)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("aptos", "source"), ValueError, "there is no data set 'aptos'; there are aptos2019, idrid, "),
        (("aptos2019", "none"), FileNotFoundError, "source not found: .*none"),
        (("aptos2019", None), ValueError, "aptos2019 needs a source: .* https://www.kaggle.com"),
        (("aptos2019", "source", 0), ValueError, "size must be at least 1 pixel, got 0"),
        (("aptos2019", "source", 8, "gif"), ValueError, "the format must be jpg or png, got 'gif'"),
        (("aptos2019", "source", 8, None, 0), ValueError, "workers must be at least 1 thread, got 0"),
        (("idrid", "source"), ValueError, r"source is not idrid: no 2\. Groundtruths/a\. .* found train.csv, train_im"),
    ],
)
def test_arguments(arguments: tuple[Any, ...], error: type[Exception], message: str, tmp_path: Path) -> None:
    aptos(tmp_path / "source")
    name, source, *others = arguments
    with pytest.raises(error, match=message):
        prepare(name, source and tmp_path / source, tmp_path / "out", *others)
    assert not (tmp_path / "out").exists()


def test_missing_image_is_told_before_anything_is_written(tmp_path: Path) -> None:
    source = aptos(tmp_path / "source")
    (source / "train_images" / "image004.png").unlink()
    with pytest.raises(ValueError, match=f"^{source}/train.csv, line 6: no image .*image004"):
        prepare("aptos2019", source, tmp_path / "out", SIZE)
    archive = zipped(source, tmp_path / "data.zip", "top/")
    with pytest.raises(ValueError, match=f"^{archive}/top/train.csv, line 6: no image .*image004"):
        prepare("aptos2019", archive, tmp_path / "out", SIZE)
    assert not (tmp_path / "out").exists()


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(ValueError, match="no train.csv in it, found nothing"):
        prepare("aptos2019", tmp_path / "source", tmp_path / "out")


def test_two_copies(tmp_path: Path) -> None:
    aptos(tmp_path / "source" / "a")
    aptos(tmp_path / "source" / "b")
    with pytest.raises(ValueError, match="holds aptos2019 more than once, in a, b"):
        prepare("aptos2019", tmp_path / "source", tmp_path / "out")


def test_two_images_of_one_name(tmp_path: Path) -> None:
    source = aptos(tmp_path / "source", ".tif")
    picture(source / "train_images" / "image000.bmp")
    with pytest.raises(ValueError, match="image000.bmp and train_images/image000.tif would both become"):
        prepare("aptos2019", source, tmp_path / "out")


def test_parts_of_an_archive_are_to_be_joined(tmp_path: Path) -> None:
    source = eyepacs(tmp_path / "source")
    shutil.rmtree(source / "train")
    (source / "train.zip.001").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"train.zip.001 is a part of an .*several files. Join the parts first: cat "):
        prepare("eyepacs", source, tmp_path / "out")
    with pytest.raises(ValueError, match=r"train.zip.001 is a part of an .*several files. Join the parts first: cat "):
        prepare("eyepacs", source / "train.zip.001", tmp_path / "out")


def test_links_in_a_folder_are_followed_once(tmp_path: Path) -> None:
    source = aptos(tmp_path / "elsewhere")
    linked = tmp_path / "source"
    linked.mkdir()
    (linked / "train.csv").symlink_to(source / "train.csv")
    (linked / "train_images").symlink_to(source / "train_images")
    (source / "train_images" / "loop").symlink_to(linked)
    assert len(prepare("aptos2019", linked, tmp_path / "out", SIZE).datalist) == 6


# --- hostile and damaged archives -------------------------------------------------------------------------------------


def aptos_zip(path: Path, *extra: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    data = io.BytesIO()
    Image.new("RGB", (9, 9)).save(data, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.csv", "id_code,diagnosis\na,0\n")
        archive.writestr("train_images/a.png", data.getvalue())
        for name, content in extra:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name", ["../evil.png", "train_images/../../evil.png", "/tmp/evil.png", "..\\evil.png", "C:\\evil.png", "C:/evil"]
)
def test_names_that_lead_out(name: str, tmp_path: Path) -> None:
    archive = aptos_zip(tmp_path / "data.zip", (zipfile.ZipInfo(name), b"x"))
    with pytest.raises(ValueError, match="leads out of the archive"):
        prepare("aptos2019", archive, tmp_path / "out")
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match="leads out of the archive"):
        prepare("aptos2019", tmp_path / "data.tar", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.tar", "data.zip"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_archives(kind: bytes, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    picture(secret)
    info = zipfile.ZipInfo("train_images/a.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("train.csv", "id_code,diagnosis\na,0\n")
        archive.writestr(info, str(secret))
    table = tarfile.TarInfo("train.csv")
    table.size = 22
    link = tarfile.TarInfo("train_images/a.png")
    link.type, link.linkname = kind, str(secret)
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.addfile(table, io.BytesIO(b"id_code,diagnosis\na,0\n"))
        tar.addfile(link)
    for name in ("data.zip", "data.tar"):
        with pytest.raises(ValueError, match="'train_images/a.png' is a link or a device; if you trust the archive"):
            prepare("aptos2019", tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_that_nobody_needs(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("train_images/latest.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = aptos_zip(tmp_path / "data.zip", (info, b"a.png"))
    prepare("aptos2019", archive, tmp_path / "out", SIZE)
    assert sorted(files(tmp_path / "out")) == ["prepared.json", "train.csv", "train_images/a.png"]


def test_image_in_two_archives(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("a.zip", "b.zip"):
        aptos_zip(tmp_path / "source" / name)
    with pytest.raises(ValueError, match="b.zip: 'train.csv' is in .*a.zip too"):
        prepare("aptos2019", tmp_path / "source", tmp_path / "out")


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = aptos_zip(tmp_path / "data.zip")
    monkeypatch.setattr(module, "MAX_TABLE_BYTES", 10)
    with pytest.raises(ValueError, match="data.zip: 'train.csv' has 22 bytes, more than the limit of 10"):
        prepare("aptos2019", archive, tmp_path / "out")
    monkeypatch.setattr(module, "MAX_TABLE_BYTES", 1000)
    monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 50)
    with pytest.raises(ValueError, match="data.zip: 'train_images/a.png' has .* more than the limit of 50"):
        prepare("aptos2019", archive, tmp_path / "out")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 1)
    with pytest.raises(ValueError, match="holds more than 1 files"):
        prepare("aptos2019", archive, tmp_path / "out")


def test_length_that_the_archive_understates(tmp_path: Path) -> None:
    content = io.BytesIO(b"x" * 100)
    with pytest.raises(ValueError, match="is larger than 50 bytes"):
        archives.copy_member(content, tmp_path / "copy", 50, "an archive: a member")


def test_member_twice(tmp_path: Path) -> None:
    archive = aptos_zip(tmp_path / "data.zip", ("./train_images//a.png", b"other"))
    with pytest.raises(ValueError, match="is there twice"):
        prepare("aptos2019", archive, tmp_path / "out")


def test_encrypted(tmp_path: Path) -> None:
    archive = aptos_zip(tmp_path / "data.zip")
    data = bytearray(archive.read_bytes())
    place = data.rfind(b"PK\x01\x02")
    data[place + 8] |= 1  # the flag in the directory of the archive
    archive.write_bytes(data)
    with pytest.raises(ValueError, match="is encrypted; .*unpack it and give the folder"):
        prepare("aptos2019", archive, tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.9])
def test_cut_off(kind: str, part: float, tmp_path: Path) -> None:
    source = aptos(tmp_path / "source", ".jpg", n=40)
    path = tmp_path / f"data.{kind}"
    if kind == "zip":
        zipped(source, path)
    else:
        with tarfile.open(path, "w:gz" if kind == "tgz" else "w") as tar:
            tar.add(source, ".")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(ValueError):
        prepare("aptos2019", path, tmp_path / "out", SIZE)
    assert not (tmp_path / "out" / "prepared.json").exists()


def test_damaged_member(tmp_path: Path) -> None:
    source = aptos(tmp_path / "source", ".jpg", n=3)
    archive = zipped(source, tmp_path / "data.zip")
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        offset = file.getinfo("train_images/image001.jpg").header_offset
    data[offset + 200 : offset + 210] = bytes(10)
    archive.write_bytes(data)
    with pytest.raises(ValueError, match="data.zip: train_images/image001.jpg is damaged"):
        prepare("aptos2019", archive, tmp_path / "out", SIZE)


def test_no_archive(tmp_path: Path) -> None:
    (tmp_path / "data.rar").write_bytes(b"Rar!" + bytes(100))
    with pytest.raises(ValueError, match=r"data.rar is not an archive that can be read \(.zip, .tar, .tar.gz\)"):
        prepare("aptos2019", tmp_path / "data.rar", tmp_path / "out")


def test_junk_of_macos_is_ignored(tmp_path: Path) -> None:
    archive = aptos_zip(
        tmp_path / "data.zip", ("__MACOSX/train_images/._a.png", b"x"), ("train_images/.DS_Store", b"x")
    )
    prepare("aptos2019", archive, tmp_path / "out", SIZE)
    assert sorted(files(tmp_path / "out")) == ["prepared.json", "train.csv", "train_images/a.png"]


@pytest.mark.parametrize("name", ["größe ß", "目 の", 'a\'b "c" [x]', "new\nline", "p\u2028q"])
def test_odd_names(name: str, tmp_path: Path) -> None:
    """Of folders, of archives and of images."""
    source = aptos(tmp_path / name / "source", ".jpg", n=1)
    (source / "train_images" / "image000.jpg").rename(source / "train_images" / f"{name}.jpg")
    quoted = name.replace('"', '""')
    (source / "train.csv").write_text(f'id_code,diagnosis\n"{quoted}",3\n', encoding="utf-8", newline="")
    done = prepare("aptos2019", source, tmp_path / name / "out", SIZE)
    assert [(item["id"], item["label"]) for item in done.datalist] == [(name, 3)]
    archive = zipped(source, tmp_path / name / f"{name}.zip", f"{name}/")
    prepare("aptos2019", archive, tmp_path / name / "b", SIZE)
    assert files(tmp_path / name / "b") == files(tmp_path / name / "out")


# --- RetinaMNIST ------------------------------------------------------------------------------------------------------


def medmnist_file(path: Path, size: int = 28, n: int = 4) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 5).astype(np.uint8)[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


@pytest.fixture
def medmnist(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The package, which is not installed for tests and would download."""
    calls: list[dict[str, Any]] = []

    def retina(**arguments: Any) -> None:
        calls.append(arguments)
        size = arguments["size"]
        medmnist_file(Path(arguments["root"]) / f"retinamnist{'' if size == 28 else f'_{size}'}.npz", size)

    monkeypatch.setitem(sys.modules, "medmnist", types.SimpleNamespace(RetinaMNIST=retina))
    return calls


@pytest.mark.parametrize(("size", "name"), [(28, "retinamnist.npz"), (64, "retinamnist_64.npz")])
def test_retinamnist_from_a_file(size: int, name: str, tmp_path: Path) -> None:
    source = medmnist_file(tmp_path / "a copy.npz", size)
    done = prepare("retinamnist", source, tmp_path / "out")
    assert done.path == tmp_path / "out" / name and done.written == 12
    assert done.path.read_bytes() == source.read_bytes()
    assert done.datalist.info.ordinal and done.datalist.info.source == "medmnist"
    assert done.warnings[0] == "retinamnist: 4 train images, the whole data set has 1080"
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert record["size"] == size and record["splits"]["val"]["images"] == 4
    before = files(tmp_path / "out")
    assert prepare("retinamnist", source, tmp_path / "out", size).written == 0
    assert prepare("retinamnist", None, tmp_path / "out").written == 0  # nothing to download
    assert files(tmp_path / "out") == before
    medmnist_file(source, size, n=5)
    with pytest.raises(ValueError, match="was prepared from another file"):
        prepare("retinamnist", source, tmp_path / "out")


def test_retinamnist_from_a_folder(tmp_path: Path) -> None:
    medmnist_file(tmp_path / "in" / "retinamnist.npz")
    assert prepare("retinamnist", tmp_path / "in", tmp_path / "a").path.name == "retinamnist.npz"
    medmnist_file(tmp_path / "in" / "retinamnist_64.npz", 64)
    assert prepare("retinamnist", tmp_path / "in", tmp_path / "b", 64).path.name == "retinamnist_64.npz"
    with pytest.raises(ValueError, match="holds retinamnist.npz, retinamnist_64.npz; say which by size"):
        prepare("retinamnist", tmp_path / "in", tmp_path / "c")
    with pytest.raises(ValueError, match="holds no retinamnist_128.npz"):
        prepare("retinamnist", tmp_path / "in", tmp_path / "c", 128)


@pytest.mark.parametrize(("size", "expected"), [(None, 224), (64, 64), (28, 28)])
def test_retinamnist_download(size: int | None, expected: int, tmp_path: Path, medmnist: list[dict[str, Any]]) -> None:
    done = prepare("retinamnist", None, tmp_path / "out", size)
    assert [(call["download"], call["size"]) for call in medmnist] == [(True, expected)]
    assert done.datalist[0]["image"].shape == (3, expected, expected)
    assert len(files(tmp_path / "out")) == 2 and not (tmp_path / "out" / ".members").exists()
    assert prepare("retinamnist", None, tmp_path / "out", size).written == 0
    assert len(medmnist) == 1
    with pytest.raises(ValueError, match="begun with another size"):
        prepare("retinamnist", None, tmp_path / "out", 128)


def test_retinamnist_without_package_or_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(ValueError, match=r'pip install "conrec-monai\[medmnist\]", or get retinamnist_64.npz from'):
        prepare("retinamnist", None, tmp_path / "out", 64)

    def fail(**_: Any) -> None:
        raise RuntimeError("Something went\nwrong")

    monkeypatch.setitem(sys.modules, "medmnist", types.SimpleNamespace(RetinaMNIST=fail))
    with pytest.raises(ValueError, match=r"could not download retinamnist \(Something went wrong\); try again"):
        prepare("retinamnist", None, tmp_path / "out", 64)
    assert prepare("retinamnist", medmnist_file(tmp_path / "in.npz"), tmp_path / "out").written == 12


def test_retinamnist_mistakes(tmp_path: Path) -> None:
    source = medmnist_file(tmp_path / "in.npz")
    with pytest.raises(ValueError, match="comes in sizes of 28, 64, 128, 224 pixels, got 100"):
        prepare("retinamnist", source, tmp_path / "out", 100)
    with pytest.raises(ValueError, match="holds images of 28 x 28 pixels, .* not RGB of 64 pixels"):
        prepare("retinamnist", source, tmp_path / "out", 64)
    with pytest.raises(ValueError, match="holds images of 30 x 30 pixels"):
        prepare("retinamnist", medmnist_file(tmp_path / "odd.npz", 30), tmp_path / "out")
    with pytest.raises(ValueError, match="no format to choose"):
        prepare("retinamnist", source, tmp_path / "out", image_format="png")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(ValueError, match="not an .npz file"):
        prepare("retinamnist", tmp_path / "text.npz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- real data --------------------------------------------------------------------------------------------------------


def test_real_idrid(shared_data: Path, tmp_path: Path) -> None:
    done = prepare("idrid", shared_data / "idrid", tmp_path / "out", 32)
    assert len(done.datalist) == 413
    assert done.warnings == ["idrid: 0 test images, the whole data set has 103"]


def test_real_retinamnist(shared_data: Path, tmp_path: Path) -> None:
    done = prepare("retinamnist", shared_data / "retinamnist", tmp_path / "out")
    assert len(done.datalist) == 1600 and done.warnings == []
