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
import io
import logging
import os
from collections import Counter, deque
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset

from conrec_monai.transforms.quality import quality_warnings

from .image_reader import IMAGE_SUFFIXES, count_frames, is_image_name, read_image, to_channels
from .layouts import shown, some
from .preprocessing import FitImage

__all__ = ["ImageStream", "image_files"]

MAX_FRAMES = 10_000  # of a file
AHEAD = 4  # files per thread that are decoded ahead of the one that is wanted

# Suffixes that a message may tell; any other may be a part of a patient's name.
_TOLD_SUFFIXES = {
    f".{word}"
    for word in (
        "avi avif bak bin csv cr2 dat db dng doc docx e2e fda fds gif gz hdr heic heif htm html img ini jp2 json log"
        " mat md mha mhd mov mp4 npy npz nrrd pdf pgm ppm psd raw svg tar tsv txt webp xls xlsx xml yaml yml zip"
    ).split()
}


def image_files(source: str | os.PathLike | Sequence[str | os.PathLike]) -> list[tuple[str, Path]]:
    """The image files of a folder or a list; of those that are named as images none is opened.

    Args:
        source: a folder (with all folders in it, but for links to others: files whose names end as those of images, and
            DICOM files of any name; hidden ones are passed over, and all others, whose number is logged), an image
            file, a list of paths, or a file that holds one: .txt (a path per line) or .csv (with the column "image").
            Relative paths of such a file start at its folder.

    Returns:
        Name and path of each file: relative to the folder, sorted; of a list as it is written there, in its order.

    Raises:
        FileNotFoundError: when a folder or list is not there.
        ValueError: when it holds nothing or anything but paths, or a folder cannot be read.
    """
    if not isinstance(source, str | os.PathLike):
        for position, entry in enumerate(source):
            if not isinstance(entry, str | os.PathLike):
                raise ValueError(f"entry {position} (from 0) of the list of images must be a path, got {entry!r}.")
        listed = [os.fspath(path) for path in source]
        if not listed:
            raise ValueError("the list of images is empty.")
        return [(path, Path(path)) for path in listed]
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(_below(path), key=lambda file: file.relative_to(path).parts)
        if not found:
            raise ValueError(f"{shown(path)} holds no image files.")
        return [(file.relative_to(path).as_posix(), file) for file in found]
    if not path.is_file():
        raise FileNotFoundError(f"no images at {shown(path)}: no such file or folder.")
    suffix = path.suffix.lower()
    if suffix not in (".txt", ".csv"):
        return [(path.name, path)]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{shown(path)} is not UTF-8 text.") from None
    if suffix == ".txt":
        names = [line.strip() for line in text.split("\n")]
    else:
        try:
            table = csv.DictReader(io.StringIO(text, newline=""), strict=True)  # or an open quote would swallow rows
            columns, rows = table.fieldnames or (), list(table)
        except csv.Error as error:
            raise ValueError(f"{shown(path)} is not a CSV file: {error}.") from None
        column = next((name for name in columns if name.strip().lower() == "image"), None)
        if column is None:
            raise ValueError(f"{shown(path)} has no column image, only {some(columns) or 'none'}.")
        names = [(row[column] or "").strip() for row in rows]
    names = [name for name in names if name]
    if not names:
        raise ValueError(f"{shown(path)} lists no images.")
    return [(name, path.parent / name) for name in names]


def _below(folder: Path) -> Iterator[Path]:
    others: Counter[str] = Counter()  # that are passed over, by suffix
    for root, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        for name in files:
            file = Path(root, name)
            if name.startswith("."):
                continue
            if is_image_name(name) or _is_dicom(file):  # many are called by their UID, with dots
                yield file
            else:
                suffix = file.suffix.lower()
                others[suffix if suffix in _TOLD_SUFFIXES else "others"] += 1
    if others:
        kinds = ", ".join(f"{kind} ({others[kind]})" for kind in sorted(others))
        number = others.total()
        said = "1 file of {} is" if number == 1 else f"{number} files of {{}} are"
        logging.getLogger("conrec_monai").warning(
            f"{said.format(shown(folder))} passed over, as no images of a kind that is read: {kinds}; files ending in"
            f" {', '.join(IMAGE_SUFFIXES)} and DICOM files are read"
        )


def _refuse(error: OSError) -> None:
    raise ValueError(f"folder {shown(error.filename)} cannot be read: {error.strerror or error}.")


def _is_dicom(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe would wait
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


class ImageStream(IterableDataset):
    """Image files one after the other, decoded by threads a little ahead: the memory does not grow with their number.

    A file that cannot be read, or a frame of it, is an entry with the reason; the others are done. Iterating gives
    whole batches, for ``DataLoader(stream, batch_size=None)`` without workers: dictionaries of "image" (uint8
    B x channels x size x size; black where there is none), "id" (texts, each once: the name, and "#<frame>" where a
    file has several) and the lists "file" (its number, from 0), "name", "frame" (int, or None where a file has one),
    "status" ("ok" or "error"), "reason" and "warnings" (lists of texts; see
    :func:`conrec_monai.transforms.quality_warnings`).

    Args:
        files: names and paths; see :func:`image_files`.
        fitting: what brings an image to the network's size.
        channels: 3 (RGB) or 1 (gray).
        batch_size: images per batch.
        num_workers: threads that decode.

    Attributes:
        files: as given.

    Raises:
        ValueError: for a number below 1, or no files.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, str | os.PathLike]],
        fitting: FitImage,
        channels: int = 3,
        batch_size: int = 64,
        num_workers: int = 2,
    ) -> None:
        if not files:
            raise ValueError("there are no image files.")
        for name, value in (("batch_size", batch_size), ("num_workers", num_workers)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        self.files, self.fitting, self.channels = list(files), fitting, channels
        self.batch_size, self.num_workers = batch_size, num_workers
        counts: Counter[str] = Counter()
        self._ids = []  # of a name that is there again with its count
        self._taken = {name for name, _ in self.files}
        for name, _ in self.files:
            counts[name] += 1
            self._ids.append(name if counts[name] == 1 else _free(name, self._taken, counts[name]))
            self._taken.add(self._ids[-1])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for entry in self._entries():
            entries.append(entry)
            if len(entries) == self.batch_size:
                yield _batch(entries)
                entries = []
        if entries:
            yield _batch(entries)

    def _entries(self) -> Iterator[dict[str, Any]]:
        pool = ThreadPoolExecutor(self.num_workers)
        waiting: deque[Future[dict[str, Any]]] = deque()
        try:
            for number, (name, path) in enumerate(self.files):
                for frame in self._frames(path):
                    waiting.append(pool.submit(self._entry, number, name, path, frame))
                    if len(waiting) > AHEAD * self.num_workers:
                        yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _frames(self, path: str | os.PathLike) -> Sequence[int | None]:
        """The frames of a file; None where it has one, or where reading it will tell what is wrong with it."""
        try:
            count = count_frames(path)
        except (ValueError, OSError):
            return [None]
        return [None] if count == 1 or count > MAX_FRAMES else range(count)

    def _entry(self, number: int, name: str, path: str | os.PathLike, frame: int | None) -> dict[str, Any]:
        size = self.fitting.size
        entry: dict[str, Any] = {
            "file": number,
            "name": name,
            "frame": frame,
            "status": "ok",
            "reason": "",
            "warnings": [],
        }
        entry["id"] = self._ids[number]
        if frame is not None:
            entry["id"] += f"#{frame}"
            if entry["id"] in self._taken:  # another file is called so
                entry["id"] = _free(entry["id"], self._taken)
        try:
            array = read_image(path, 3, frame=frame, min_side=size)  # the warnings are about the colors
            fitted = self.fitting.fit(to_channels(array, self.channels))
            entry["image"] = fitted.image
            entry["warnings"] = quality_warnings(array, size, fitted.found)
            if any(text.startswith("small") for text in entry["warnings"]):  # perhaps by the reader alone
                entry["warnings"] = quality_warnings(read_image(path, 3, frame=frame), size)
        except Exception as error:  # whatever it is: one file does not end the others
            reason = " ".join(str(error).split()) or type(error).__name__
            entry.update(status="error", reason=reason.replace(shown(path), shown(name)))
            entry["image"] = torch.zeros(self.channels, size, size, dtype=torch.uint8)
        return entry


def _free(name: str, taken: Container[str], number: int = 2) -> str:
    """The name with the first number in parentheses that makes it one that is not taken."""
    while f"{name} ({number})" in taken:
        number += 1
    return f"{name} ({number})"


def _batch(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {key: [entry[key] for entry in entries] for key in entries[0]}
    batch["image"] = torch.stack(batch["image"])
    return batch
