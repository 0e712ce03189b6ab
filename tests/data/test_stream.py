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
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from conrec_monai.data import CachedImages, FitImage, ImageStream, fundus_phantom, image_files, read_image, stream
from conrec_monai.transforms import quality_warnings


def _noise(seed: int = 0, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_noise(seed)).save(path, format="PNG")
    return path


def save_pages(path: Path, count: int) -> Path:
    pages = [Image.fromarray(_noise(seed)) for seed in range(count)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


def make(paths: list[Path], **options: Any) -> ImageStream:
    return ImageStream([(path.name, path) for path in paths], FitImage(16), **options)


def entries(images: ImageStream, key: str) -> list[Any]:
    return [value for batch in images for value in batch[key]]


# --- image_files ------------------------------------------------------------------------------------------------------


def test_folder(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/c/y.nii.gz", "a.tif", ".hidden.png", ".folder/x.png", "__MACOSX/b.png"):
        save(tmp_path / name)
    (tmp_path / "table.csv").write_text("image\n")
    (tmp_path / "IM0001").write_bytes(b"\0" * 128 + b"DICM")  # as DICOM files often are called
    (tmp_path / "README").write_text("no image " * 50)
    (tmp_path / "short").write_bytes(b"DICM")
    (tmp_path / "1.2.840.113619.2.5").write_bytes(b"\0" * 128 + b"DICM")  # by its UID
    os.mkfifo(tmp_path / "pipe")
    names = ["1.2.840.113619.2.5", "IM0001", "a/c/y.nii.gz", "a/z.JPG", "a.tif", "b.png"]
    for source in (tmp_path, str(tmp_path)):
        assert image_files(source) == [(name, tmp_path / name) for name in names]


def test_folders_are_sorted_as_folders(tmp_path: Path) -> None:
    for name in ("a-b/1.png", "a/2.png", "a/10.png", "B/1.png"):
        save(tmp_path / name)
    assert [name for name, _ in image_files(tmp_path)] == ["B/1.png", "a/10.png", "a/2.png", "a-b/1.png"]


def test_files_that_are_passed_over_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "a.png")
    image_files(tmp_path)
    assert not caplog.messages
    for name in ("b.gif", "c/d.GIF", "README", "e.Smith", "f.1234", ".hidden", ".folder/g.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [name for name, _ in image_files(tmp_path)] == ["a.png"]
    assert caplog.messages == [
        f"5 files of {tmp_path} are passed over, as no images of a kind that is read: .gif (2), others (3); files"
        " ending in .png, .jpg, .jpeg, .tif, .tiff, .bmp, .dcm, .nii, .nii.gz and DICOM files are read"
    ]
    save(tmp_path / "c" / "h.png")
    image_files(tmp_path / "c")
    assert caplog.messages[-1].startswith(f"1 file of {tmp_path / 'c'} is passed over, as ")


def test_no_file_with_an_images_suffix_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b", "c.txt"):
        save(tmp_path / name)
    opened = []
    monkeypatch.setattr(stream, "_is_dicom", lambda path: opened.append(path.name))
    assert [name for name, _ in image_files(tmp_path)] == ["a.png"] and sorted(opened) == ["b", "c.txt"]


def test_one_file(tmp_path: Path) -> None:
    path = tmp_path / "any.thing"  # whether it is an image, reading it will tell
    path.write_text("x")
    assert image_files(path) == [("any.thing", path)]


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "eyes" / "a.png")
    assert image_files("~/eyes") == [("a.png", tmp_path / "eyes" / "a.png")]


def test_list_keeps_its_order(tmp_path: Path) -> None:
    listed = [tmp_path / "b.png", "a.png", tmp_path / "b.png"]
    expected = [(os.fspath(path), Path(path)) for path in listed]
    assert image_files(listed) == image_files(tuple(listed)) == expected  # none of them is there


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\ufeffsub/ä b.png\r\n\r\n  c.png  \n/data/d.png\n", encoding="utf-8")
    assert image_files(path) == [
        ("sub/ä b.png", tmp_path / "sub" / "ä b.png"),
        ("c.png", tmp_path / "c.png"),
        ("/data/d.png", Path("/data/d.png")),
    ]


def test_table(tmp_path: Path) -> None:
    path = tmp_path / "list.CSV"
    path.write_text('label, Image \n1,"b, c.png"\n2,\n3,a.png\n4\n', encoding="utf-8")
    assert image_files(path) == [("b, c.png", tmp_path / "b, c.png"), ("a.png", tmp_path / "a.png")]


def test_table_with_a_line_break_in_a_name(tmp_path: Path) -> None:
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image"], ["a\nb.png"], ["c\u2028d.png"]])
    assert [name for name, _ in image_files(tmp_path / "list.csv")] == ["a\nb.png", "c\u2028d.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.txt", b"\n  \n", r"list\.txt lists no images"),
        ("list.csv", b"image\n", r"list\.csv lists no images"),
        ("list.csv", b"file,label\na.png,1\n", r"list\.csv has no column image, only file, label"),
        ("list.csv", b"", r"list\.csv has no column image, only none"),
        ("list.csv", b'image\n"a.png\nb.png\n', r"list\.csv is not a CSV file: unexpected end of data"),
        ("list.csv", b'"image\na.png\n', r"list\.csv is not a CSV file: unexpected end of data"),
        ("list.txt", b"\xff\xfe\n", r"list\.txt is not UTF-8 text"),
        ("list.csv", b"image\n\xe4.png\n", r"list\.csv is not UTF-8 text"),
    ],
)
def test_lists_that_are_none(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        image_files(tmp_path / name)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match="holds no image files"):
        image_files(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no images at .*none: no such file or folder"):
        image_files(tmp_path / "none")
    with pytest.raises(ValueError, match="the list of images is empty"):
        image_files([])
    for entry in (1, None, b"b.png"):
        with pytest.raises(
            ValueError, match=rf"entry 1 \(from 0\) of the list of images must be a path, got {entry!r}"
        ):
            image_files(["a.png", entry])  # type: ignore[list-item]


# --- ImageStream ------------------------------------------------------------------------------------------------------


def test_batches_in_order(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.png", i) for i in (3, 1, 4, 0, 2)]
    images = make(paths, batch_size=2)
    batches = list(DataLoader(images, batch_size=None))
    assert [len(batch["image"]) for batch in batches] == [2, 2, 1]
    assert set(batches[0]) == {"image", "id", "file", "name", "frame", "status", "reason", "warnings"}
    found = torch.cat([batch["image"] for batch in batches])
    expected = CachedImages([{"image": path} for path in paths], 16, progress=False).images
    assert found.dtype == torch.uint8 and torch.equal(found, expected)
    names = [path.name for path in paths]
    assert entries(images, "name") == entries(images, "id") == names
    assert entries(images, "frame") == [None] * 5 and entries(images, "status") == ["ok"] * 5
    assert entries(images, "reason") == [""] * 5


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_workers_and_batch_size_change_nothing(num_workers: int, batch_size: int, tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.png", i) for i in range(9)]
    images = make(paths, batch_size=batch_size, num_workers=num_workers)
    for _ in range(2):  # a second time too
        assert entries(images, "name") == [path.name for path in paths]
        found = torch.stack(entries(images, "image"))
        assert torch.equal(found, torch.stack([FitImage(16).fit(read_image(path)).image for path in paths]))


def test_fitting_and_channels(tmp_path: Path) -> None:
    eye = fundus_phantom(2, 60)
    path = tmp_path / "a.png"
    Image.fromarray(eye.transpose(1, 2, 0).copy()).save(path)
    fitting = FitImage(16, field_of_view="normalize")
    (batch,) = ImageStream([("a", path)], fitting, channels=1)
    assert batch["image"].shape == (1, 1, 16, 16)
    assert torch.equal(batch["image"][0], fitting.fit(read_image(path, 1)).image)
    assert batch["warnings"] == [[]]  # of the photograph, which has colors
    Image.open(path).convert("L").save(path)
    (batch,) = ImageStream([("a", path)], fitting, channels=1)
    assert torch.equal(batch["image"][0], fitting.fit(read_image(path, 1)).image)
    assert batch["warnings"] == [quality_warnings(read_image(path, 1), 16)] == [["no color"]]


def test_pages_of_a_file_are_entries(tmp_path: Path) -> None:
    pages, one = save_pages(tmp_path / "pages.tif", 3), save_pages(tmp_path / "one.tif", 1)
    images = make([one, pages, one], batch_size=2)
    assert entries(images, "name") == ["one.tif"] + ["pages.tif"] * 3 + ["one.tif"]
    assert entries(images, "frame") == [None, 0, 1, 2, None]
    assert entries(images, "id") == ["one.tif", "pages.tif#0", "pages.tif#1", "pages.tif#2", "one.tif (2)"]
    for frame, image in enumerate(entries(images, "image")[1:4]):
        assert torch.equal(image, FitImage(16).fit(read_image(pages, frame=frame)).image)


def test_ids_are_unique(tmp_path: Path) -> None:
    pages, one = save_pages(tmp_path / "a.tif", 2), save(tmp_path / "b.png")
    names = ["b", "b", "b (2)", "b", "a", "a#1", "a", "a#0 (2)"]
    files = [(name, pages if name == "a" else one) for name in names]
    ids = entries(ImageStream(files, FitImage(16)), "id")
    assert ids == ["b", "b (3)", "b (2)", "b (4)", "a#0", "a#1 (2)", "a#1", "a (2)#0", "a (2)#1", "a#0 (2)"]


def test_files_that_cannot_be_read_are_entries(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no image")
    half = tmp_path / "half.png"
    half.write_bytes(good.read_bytes()[:500])
    (tmp_path / "empty.png").touch()
    names = ["text.png", "good.png", "none.png", "half.png", "empty.png", "good.png"]
    images = make([tmp_path / name for name in names], batch_size=4)
    assert entries(images, "name") == names
    assert entries(images, "status") == ["error", "ok", "error", "error", "error", "ok"]
    reasons = entries(images, "reason")
    assert reasons[0] == "cannot read image text.png: not a PNG, JPEG, TIFF, BMP, DICOM or NIfTI file"
    assert reasons[2] == "image file not found: none.png"
    assert reasons[3].startswith("cannot read image half.png: ")
    assert reasons[4] == "cannot read image empty.png: the file is empty"
    assert reasons[1] == reasons[5] == ""
    assert str(tmp_path) not in "".join(reasons)  # a folder may be named after a patient
    for image, status in zip(entries(images, "image"), entries(images, "status"), strict=True):
        assert image.shape == (3, 16, 16) and image.any().item() == (status == "ok")


def test_reasons_are_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.png"
    (reason,) = entries(ImageStream([(path.name, path)], FitImage(16)), "reason")
    assert reason == "image file not found: 'a\\nb.png'"


def test_a_damaged_page_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_pages(tmp_path / "pages.tif", 3)

    def read(*args: Any, frame: int | None = None, **more: Any) -> np.ndarray:
        if frame == 1:
            raise ValueError(f"cannot read image {path}:\n broken  strip")
        return read_image(*args, frame=frame, **more)

    monkeypatch.setattr(stream, "read_image", read)
    images = make([path])
    assert entries(images, "status") == ["ok", "error", "ok"]
    assert entries(images, "reason") == ["", "cannot read image pages.tif: broken strip", ""]


@pytest.mark.parametrize(("error", "reason"), [(MemoryError(), "MemoryError"), (OSError("disk"), "disk")])
def test_other_reasons(error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*args: Any, **more: Any) -> np.ndarray:
        raise error

    monkeypatch.setattr(stream, "read_image", read)
    (batch,) = make([save(tmp_path / "a.png")])
    assert batch["status"] == ["error"] and batch["reason"] == [reason]


def test_files_of_too_many_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_FRAMES", 2)
    images = make([save_pages(tmp_path / "2.tif", 2), save_pages(tmp_path / "3.tif", 3)])
    assert entries(images, "id") == ["2.tif#0", "2.tif#1", "3.tif"]
    assert entries(images, "status") == ["ok", "ok", "error"]
    assert "it holds 3 frames" in entries(images, "reason")[2]


def test_warnings_come_with_their_image(tmp_path: Path) -> None:
    for name, array in (("eye.png", fundus_phantom(0, 128)), ("dark.png", fundus_phantom(0, 128) // 10)):
        Image.fromarray(array.transpose(1, 2, 0).copy()).save(tmp_path / name)
    images = make([tmp_path / "eye.png", tmp_path / "none.png", tmp_path / "dark.png"])
    found = entries(images, "warnings")
    assert "too dark" in found[2] and "too dark" not in found[0] and found[1] == []


def test_small_counts_the_pixels_of_the_file(tmp_path: Path) -> None:
    place = np.arange(300) + 0.5 - 150
    noise = np.random.RandomState(0).uniform(0.8, 1.2, (300, 300, 1)) * [160, 100, 50]
    disc = (noise * (np.hypot(place[:, None], place) <= 55)[..., None]).astype(np.uint8)
    Image.fromarray(disc).save(tmp_path / "a.png")
    Image.fromarray(disc).save(tmp_path / "a.jpg", quality=95)
    images = ImageStream([(name, tmp_path / name) for name in ("a.png", "a.jpg")], FitImage(64))
    assert entries(images, "warnings") == [[], []]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_decodes_a_few_files_ahead(num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png")
    opened, threads = [], set()
    count_frames = stream.count_frames

    def count(path: Path) -> int:
        opened.append(path)
        return count_frames(path)

    def read(*args: Any, **more: Any) -> np.ndarray:
        threads.add(threading.current_thread())
        return read_image(*args, **more)

    monkeypatch.setattr(stream, "count_frames", count)  # of a file before it is given to a thread
    monkeypatch.setattr(stream, "read_image", read)
    taken, ahead = 0, []
    for batch in ImageStream([(str(i), path) for i in range(60)], FitImage(16), 3, 2, num_workers):
        taken += len(batch["image"])
        ahead.append(len(opened) - taken)
    assert taken == len(opened) == 60
    assert ahead[0] == max(ahead) == stream.AHEAD * num_workers
    assert threading.main_thread() not in threads and 1 <= len(threads) <= num_workers


def test_one_that_is_given_up_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png")
    threads = set()

    def read(*args: Any, **more: Any) -> np.ndarray:
        threads.add(threading.current_thread())
        return read_image(*args, **more)

    monkeypatch.setattr(stream, "read_image", read)
    batches = iter(ImageStream([(str(i), path) for i in range(40)], FitImage(16), batch_size=2))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threads and not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([], {}, "there are no image files"),
        ([("a", "a")], {"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ([("a", "a")], {"batch_size": 2.0}, r"batch_size must be a whole number of at least 1, got 2\.0"),
        ([("a", "a")], {"num_workers": 0}, "num_workers must be a whole number of at least 1, got 0"),
        ([("a", "a")], {"num_workers": True}, "num_workers must be a whole number of at least 1, got True"),
    ],
)
def test_errors(files: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageStream(files, FitImage(16), **options)
