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

"""Bring a public data set, as its source offers it, into a small folder of the same layout.

The tables are copied and the images shrunk, at the same relative paths: `load_datalist` reads the result as it reads
the original, with the same labels, groups and splits. Nothing is downloaded, RetinaMNIST excepted.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from conrec_monai.utils import duration, progress_bar
from conrec_monai.version import __version__

from .archives import JOIN, Member, check_members, fetched, is_part, list_members
from .datalist import Datalist, load_datalist
from .image_reader import read_image

__all__ = ["DATA_SETS", "DataSet", "Prepared", "prepare"]

logger = logging.getLogger("conrec_monai")

RECIPE = 1  # of the pixels; another number never mixes with this one in one folder
JPEG_QUALITY = 95
MEDMNIST_SIZES = (28, 64, 128, 224)  # pixels; what MedMNIST+ offers

_JPEG_SUFFIXES = (".jpg", ".jpeg")
_IMAGE_SUFFIXES = (*_JPEG_SUFFIXES, ".png", ".tif", ".tiff", ".bmp")

# Photographs and tables lie far below, bombs above.
MAX_TABLE_BYTES = 2**26
MAX_IMAGE_BYTES = 2**29

_STATE = ".preparing"  # settings and a line per finished image, while a run is under way
_MEMBERS = ".members"  # members of archives on their way through
_RECORD = "prepared.json"

Counts = dict[str, int]


@dataclass(frozen=True)
class DataSet:
    """A public data set: what is needed to prepare and to check it. Its data card: `datasets/<name>/README.md`.

    Attributes:
        name: the word that users type.
        title: in words, one line.
        layout: the `source` that `load_datalist` must recognize.
        mark: pattern of a file that must be there, relative to the root; it tells where in a source the root is.
        tables: patterns of the files that go along with the images, relative to the root.
        counts: number of images by split ("all": altogether) of the whole data set.
        classes: number of images by class, by split, where they are known.
        url: page of the source.
        terms: license or terms of use, in a few words.
    """

    name: str
    title: str
    layout: str
    mark: str
    tables: tuple[str, ...]
    counts: Counts
    url: str
    terms: str
    classes: dict[str, tuple[int, ...]] = field(default_factory=dict)


DATA_SETS = {
    data_set.name: data_set
    for data_set in (
        DataSet(
            "aptos2019",
            "APTOS 2019 Blindness Detection: 3662 fundus photographs, grades 0-4",
            "aptos",
            "train.csv",
            ("train.csv", "test.csv"),
            {"train": 3662},
            "https://www.kaggle.com/c/aptos2019-blindness-detection",
            "rules of the Kaggle competition",
            {"train": (1805, 370, 999, 193, 295)},
        ),
        DataSet(
            "idrid",
            "IDRiD disease grading: 413 + 103 fundus photographs, grades 0-4",
            "idrid",
            "2. Groundtruths/a. *.csv",
            ("2. Groundtruths/?. *.csv",),
            {"train": 413, "test": 103},
            "https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid",
            "CC BY 4.0",
            {"train": (134, 20, 136, 74, 49), "test": (34, 5, 32, 19, 13)},
        ),
        DataSet(
            "retinamnist",
            "RetinaMNIST of MedMNIST+: 1080 + 120 + 400 small fundus photographs, grades 0-4",
            "medmnist",
            "retinamnist*.npz",
            (),
            {"train": 1080, "val": 120, "test": 400},
            "https://medmnist.com",
            "CC BY 4.0",
            {"train": (486, 128, 206, 194, 66), "val": (54, 12, 28, 20, 6), "test": (174, 46, 92, 68, 20)},
        ),
        DataSet(
            "eyepacs",
            "EyePACS (Kaggle 2015): 35126 + 53576 fundus photographs, grades 0-4",
            "eyepacs",
            "trainLabels.csv",
            ("trainLabels.csv", "retinopathy_solution.csv", "testLabels.csv"),
            {"train": 35126, "test": 53576},
            "https://www.kaggle.com/c/diabetic-retinopathy-detection",
            "rules of the Kaggle competition",
            {"train": (25810, 2443, 5292, 873, 708), "test": (39533, 3762, 7861, 1214, 1206)},
        ),
        DataSet(
            "messidor2",
            "Messidor-2: 1748 fundus photographs, 1744 with adjudicated grades 0-4",
            "messidor",
            "messidor_data.csv",
            ("messidor_data.csv", "messidor-2.csv"),
            {"all": 1748},
            "https://www.adcis.net/en/third-party/messidor2/",
            "research and education, no redistribution",
            {"all": (1017, 270, 347, 75, 35)},
        ),
        DataSet(
            "oxford_flowers102",
            "Oxford Flowers 102: 1020 + 1020 + 6149 photographs, 102 classes",
            "flowers102",
            "imagelabels.mat",
            ("imagelabels.mat", "setid.mat"),
            {"train": 1020, "val": 1020, "test": 6149},
            "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
            "not stated by the source",
        ),
        DataSet(
            "stanford_dogs",
            "Stanford Dogs: 12000 + 8580 photographs, 120 breeds",
            "dogs",
            "Images/n*-*/*.*",
            ("train_list.*", "test_list.*", "lists/train_list.*", "lists/test_list.*"),
            {"train": 12000, "test": 8580},
            "http://vision.stanford.edu/aditya86/ImageNetDogs/",
            "not stated by the source",
        ),
    )
}


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made.

    Attributes:
        path: what `load_datalist` takes: the folder, or the .npz file.
        datalist: as read from there.
        written: number of images written by this run; the others were there already.
        warnings: what differs from the whole data set, a line each.
    """

    path: Path
    datalist: Datalist
    written: int
    warnings: list[str]


def prepare(
    name: str,
    source: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    size: int | None = None,
    image_format: str | None = None,
    workers: int | None = None,
) -> Prepared:
    """Bring a data set into a folder of the same layout with images of a handy size.

    Images keep their aspect ratio: the shorter side becomes `size` (bicubic with antialiasing), smaller images keep
    their pixels. They are turned upright, EXIF and other metadata are dropped, all become RGB with 8 bits. An
    interrupted run goes on where it stopped; a finished one does nothing. Every file appears whole or not at all.
    `prepared.json` records settings and counts.

    RetinaMNIST is a single file: it is checked and copied, or downloaded by the package `medmnist`.

    Args:
        name: one of `DATA_SETS`.
        source: an archive (.zip, .tar, .tar.gz, ...) or a folder, with the data unpacked or in archives as downloaded.
            For "retinamnist" a .npz file, a folder that holds it, or None to download it.
        output: folder to write to: new, empty, or of an earlier run with the same settings.
        size: shorter side in pixels, 512 by default. For "retinamnist" 28, 64, 128 or 224; by default that of the
            source, and 224 for a download.
        image_format: "jpg" (quality 95, no chroma subsampling) or "png"; by default JPEG images stay JPEG, and all
            others become PNG.
        workers: threads; as many as there are processors by default.

    Returns:
        where the result is, its contents, and what is missing from the whole data set.

    Raises:
        FileNotFoundError: when there is no such source.
        ValueError: when an argument is out of range, the source is not this data set or contradicts itself, an archive
            is damaged or unsafe, images cannot be read (after all others are written), or the output holds something
            else or was made with other settings.
    """
    data_set = DATA_SETS.get(name)
    if data_set is None:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(DATA_SETS)}")
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"workers must be at least 1 thread, got {workers}")
    if image_format not in (None, "jpg", "png"):
        raise ValueError(f"the format must be jpg or png, got {image_format!r}")
    origin = None if source is None else Path(source).expanduser()
    if origin is not None and not origin.exists():
        raise FileNotFoundError(f"source not found: {origin} (neither a file nor a folder)")
    target = Path(output).expanduser()
    if target.exists() and not target.is_dir():
        raise ValueError(f"the output {target} is not a folder")
    if data_set.layout == "medmnist":
        if image_format is not None:
            raise ValueError(f"{name} is a file of arrays, for which there is no format to choose")
        return _prepare_medmnist(data_set, origin, target, size)
    if origin is None:
        raise ValueError(f"{name} needs a source: the archive or the folder as downloaded from {data_set.url}")
    size = 512 if size is None else size
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if origin.is_dir() and target.resolve().is_relative_to(origin.resolve()):
        raise ValueError(f"the output {target} lies in the source {origin}; choose a folder outside of it")
    return _prepare_folder(data_set, origin, target, size, image_format, workers)


# --- a folder of images and tables ------------------------------------------------------------------------------------


def _prepare_folder(
    data_set: DataSet, source: Path, output: Path, size: int, image_format: str | None, workers: int
) -> Prepared:
    settings = {"name": data_set.name, "size": size, "format": image_format, "recipe": RECIPE}
    plan = _plan(data_set, source, image_format)
    warnings = _compare(data_set, plan.datalist)
    for warning in warnings:
        logger.warning(warning)
    finished = _finished(output, settings, plan)
    todo = {name: member for name, member in plan.images.items() if name not in finished}
    if todo:
        if len(todo) < len(plan.images):
            logger.info("%d of %d images are there already", len(plan.images) - len(todo), len(plan.images))
        output.mkdir(parents=True, exist_ok=True)
        _shrink_all(todo, output, settings, workers, len(plan.images))
    # Tables come last: without them, nobody takes an unfinished folder for the data set.
    for name, content in plan.tables.items():
        if not ((output / name).is_file() and (output / name).read_bytes() == content):
            _write(output / name, content)
    datalist = _load(output)
    if _contents(datalist, output) != plan.contents:
        raise ValueError(f"{output} reads otherwise than {source}: files in it were changed; choose another output")
    if todo or not (output / _RECORD).is_file():
        _write_record(output, data_set, settings, plan.digest, datalist)
    (output / _STATE).unlink(missing_ok=True)
    return Prepared(output, datalist, len(todo), warnings)


class _Plan(NamedTuple):
    """What there is to do: files by their path in the output."""

    images: dict[str, Member]
    tables: dict[str, bytes]
    datalist: Datalist
    contents: list[tuple[Any, ...]]
    digest: str


def _plan(data_set: DataSet, source: Path, image_format: str | None) -> _Plan:
    """Find out what the source holds, and let `load_datalist` say which images are needed."""
    members = list_members(source)
    parts = [name for name in members if is_part(name)]
    hint = f" ({parts[0]} is a part of an archive in several files. {JOIN})" if parts else ""
    root = _root(data_set, source, members, hint)
    inside = {name[len(root) :]: member for name, member in members.items() if name.startswith(root)}
    wanted = {
        name: member
        for name, member in inside.items()
        if any(fnmatch.fnmatch(name.lower(), pattern.lower()) for pattern in data_set.tables)
    }
    check_members(wanted, MAX_TABLE_BYTES)
    tables = {name: path.read_bytes() for name, path in fetched(wanted, MAX_TABLE_BYTES)}
    images: dict[str, Member] = {}
    names: dict[str, str] = {}
    for name, member in sorted(inside.items()):
        if not name.lower().endswith(_IMAGE_SUFFIXES):
            continue
        renamed = _renamed(name, image_format)
        if renamed in images:
            raise ValueError(f"{source}: {names[renamed]} and {name} would both become {renamed}")
        images[renamed], names[renamed] = member, name
    # The data set as it will be, its images empty files: listing it decodes nothing.
    with tempfile.TemporaryDirectory(prefix="conrec-prepare-") as folder:
        sketch = Path(folder).resolve() / data_set.name
        for name in {*images, *tables}:
            (sketch / name).parent.mkdir(parents=True, exist_ok=True)
            (sketch / name).write_bytes(tables.get(name, b""))
        try:
            datalist = _load(sketch)
        except (ValueError, OSError) as error:
            raise ValueError(str(error).replace(str(sketch), str(source / root)) + hint) from None
        if datalist.info.source != data_set.layout:
            raise ValueError(f"{source} reads as {datalist.info.name}, which is not {data_set.title}{hint}")
        contents = _contents(datalist, sketch)
    needed = {row[0]: images[row[0]] for row in contents}
    check_members(needed, MAX_IMAGE_BYTES)
    digest = hashlib.sha256()
    for name, content in sorted(tables.items()):
        digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode("utf-8", "surrogateescape"))
    for name, member in sorted(needed.items()):
        digest.update(f"{names[name]}\0{member.size}\n".encode("utf-8", "surrogateescape"))
    return _Plan(needed, tables, datalist, contents, digest.hexdigest())


def _root(data_set: DataSet, source: Path, members: dict[str, Member], hint: str) -> str:
    """Return what all names of the data set begin with: nothing, or folders with a slash at the end."""
    pattern = data_set.mark.lower()
    depth = pattern.count("/") + 1
    parts = [name.split("/") for name in members]
    roots = {tuple(p[:-depth]) for p in parts if fnmatch.fnmatch("/".join(p[-depth:]).lower(), pattern)}
    if not roots:
        tops = sorted({name.partition("/")[0] for name in members})
        found = ", ".join(tops[:5]) + (f", ... ({len(tops)} in all)" if len(tops) > 5 else "") or "nothing"
        raise ValueError(f"{source} is not {data_set.name}: no {data_set.mark} in it, found {found}{hint}")
    highest = sorted(root for root in roots if len(root) == min(map(len, roots)))
    if len(highest) > 1:
        places = ", ".join("/".join(root) or "." for root in highest)
        raise ValueError(f"{source} holds {data_set.name} more than once, in {places}; give one of them")
    return "".join(f"{part}/" for part in highest[0])


def _renamed(name: str, image_format: str | None) -> str:
    """Return the name in the output. JPEG files keep their suffix, however it is written: tables may name it."""
    stem, suffix = os.path.splitext(name)
    was_jpeg = suffix.lower() in _JPEG_SUFFIXES
    if image_format == "jpg" or image_format is None and was_jpeg:
        return name if was_jpeg else f"{stem}.jpg"
    return name if suffix.lower() == ".png" else f"{stem}.png"


def _load(folder: Path) -> Datalist:
    """List without the warning that images are left out: `_compare` says it better."""

    def silence(_: logging.LogRecord) -> bool:
        return False

    logger.addFilter(silence)
    try:
        return load_datalist(folder)
    finally:
        logger.removeFilter(silence)


def _contents(datalist: Datalist, folder: Path) -> list[tuple[Any, ...]]:
    """Return path in the folder, label, group, split and id of each item."""
    return [
        (
            Path(os.path.relpath(item["image"], folder)).as_posix(),
            *(item[key] for key in ("label", "group", "split", "id")),
        )
        for item in datalist
    ]


def _finished(output: Path, settings: dict[str, Any], plan: _Plan) -> set[str]:
    """Return the images that an earlier run left in the output, all of the same making.

    Raises:
        ValueError: when the output holds something else.
    """
    record, state = output / _RECORD, output / _STATE
    if record.is_file():
        earlier = _json(record)
        _check_settings(output, earlier, settings)
        if earlier.get("source") != plan.digest:
            raise ValueError(
                f"{output} was prepared from another copy of {settings['name']} (other images or tables); "
                "choose another output or delete it"
            )
        return {name for name in plan.images if (output / name).is_file()}
    if state.is_file():
        first, *lines = state.read_text(encoding="utf-8").split("\n")
        if first:
            _check_settings(output, _json(state, first), settings)
        finished = set()
        for line in lines:
            try:
                name, was, now = json.loads(line)
            except ValueError:  # the end of the file, or a line that was cut off by the end of the run
                continue
            file = output / name
            if name in plan.images and plan.images[name].size == was and file.is_file() and file.stat().st_size == now:
                finished.add(name)
        return finished
    if output.is_dir() and any(output.iterdir()):
        raise ValueError(f"the output {output} is not empty and was not made by prepare; choose another folder")
    return set()


def _json(path: Path, text: str | None = None) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8") if text is None else text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete the folder and prepare anew") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (no JSON object); delete the folder and prepare anew")
    return content


def _check_settings(output: Path, earlier: dict[str, Any], settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        if earlier.get(key) != value:
            found = "nothing" if earlier.get(key) is None else earlier.get(key)
            raise ValueError(
                f"{output} was begun with another {key}: {found}, not {'nothing' if value is None else value}; "
                "choose another output or delete it"
            )


def _shrink_all(todo: dict[str, Member], output: Path, settings: dict[str, Any], workers: int, total: int) -> None:
    """Write all images, in threads (PIL decodes, resizes and encodes without the interpreter lock).

    Images that cannot be read are told together at the end, so that they do not cost the others; whatever hinders
    writing ends the run at once.
    """
    state, scratch = output / _STATE, output / _MEMBERS
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    failures: list[str] = []
    pending: dict[Future[int], str] = {}
    torn = state.is_file() and not state.read_bytes().endswith(b"\n")
    pool = ThreadPoolExecutor(workers)
    try:
        with (
            open(state, "a", encoding="utf-8") as journal,
            _Progress(total, total - len(todo)) as progress,
            closing(fetched(todo, MAX_IMAGE_BYTES, scratch)) as files,
        ):
            if journal.tell() == 0:
                print(json.dumps(settings), file=journal, flush=True)
            elif torn:
                print(file=journal)

            def collect(futures: Iterable[Future[int]]) -> None:
                for future in futures:
                    name = pending.pop(future)
                    try:
                        line = json.dumps([name, todo[name].size, future.result()])
                        print(line, file=journal, flush=True)
                    except _Unreadable as error:
                        failures.append(f"{name} ({error})")
                    progress.step()

            for name, path in files:
                if len(pending) >= 2 * workers:  # bounds what waits on disk
                    collect(wait(pending, return_when=FIRST_COMPLETED).done)
                temporary = path.parent == scratch
                pending[pool.submit(_shrink, path, output / name, int(settings["size"]), temporary)] = name
            while pending:
                collect(wait(pending, return_when=FIRST_COMPLETED).done)
    finally:
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(scratch, ignore_errors=True)
    if failures:
        more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
        raise ValueError(
            f"{len(failures)} of {total} images cannot be read: {'; '.join(sorted(failures)[:5])}{more}. "
            "The others are written; mend the source and run the same command again"
        )


class _Unreadable(Exception):
    """An image of the source that cannot be decoded; its message says why."""


def _shrink(source: Path, target: Path, size: int, temporary: bool) -> int:
    """Write one image, its shorter side at most `size` pixels. Returns the length of the file in bytes."""
    try:
        try:
            array = read_image(source, channels=3, min_side=size)
        finally:
            if temporary:
                source.unlink()
    except (ValueError, FileNotFoundError) as error:
        text = str(source)  # as the message has it; the path of a copy would tell nobody anything
        prefix = f"cannot read image {text if text.isprintable() else ascii(text)}: "
        raise _Unreadable(str(error).removeprefix(prefix)) from None
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) + 128) // 257  # 65535 / 255
    image = Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0), dtype=np.uint8))
    short = min(image.size)
    if short > size:
        width, height = (max(size, round(side * size / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    if target.suffix.lower() == ".png":
        image.save(part, "PNG")
    else:
        image.save(part, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    length = part.stat().st_size
    os.replace(part, target)
    return length


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def _write_record(output: Path, data_set: DataSet, settings: dict[str, Any], digest: str, datalist: Datalist) -> None:
    """Write what was made of what; the same bytes for the same data, wherever and whenever."""
    record = {
        **settings,
        "title": data_set.title,
        "url": data_set.url,
        "terms": data_set.terms,
        "source": digest,
        "splits": _splits(datalist),
        "groups": len({item["group"] for item in datalist} - {None}),
        "version": __version__,
    }
    _write(output / _RECORD, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


class _Progress:
    """A bar with rate and time left on a terminal; elsewhere a log line every half minute."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.first, self.done = total, done, done
        self.start = self.last = time.monotonic()
        self.bar = progress_bar(total=total, initial=done, desc="Preparing", unit="image", dynamic_ncols=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self) -> None:
        self.done += 1
        self.bar.update()
        now = time.monotonic()
        if self.bar.disable and now - self.last > 30:
            self.last = now
            rate = (self.done - self.first) / (now - self.start)
            left = duration((self.total - self.done) / rate)
            logger.info("%d of %d images, %.1f images/s, %s left", self.done, self.total, rate, left)


# --- RetinaMNIST ------------------------------------------------------------------------------------------------------


def _prepare_medmnist(data_set: DataSet, source: Path | None, output: Path, size: int | None) -> Prepared:
    if size is not None and size not in MEDMNIST_SIZES:
        raise ValueError(f"{data_set.name} comes in sizes of {', '.join(map(str, MEDMNIST_SIZES))} pixels, got {size}")
    record = output / _RECORD
    earlier: dict[str, Any] = {}
    if record.is_file():
        earlier = _json(record)
        _check_settings(output, earlier, {"name": data_set.name, **({} if size is None else {"size": size})})
        file = output / _medmnist_name(data_set, int(earlier["size"]))
        if source is None and file.is_file():
            datalist = load_datalist(file)
            return Prepared(file, datalist, 0, _compare(data_set, datalist))
    elif output.is_dir() and any(entry.name != _MEMBERS for entry in output.iterdir()):
        raise ValueError(f"the output {output} is not empty and was not made by prepare; choose another folder")
    scratch = output / _MEMBERS
    try:
        if source is None:
            size = size or int(earlier.get("size", MEDMNIST_SIZES[-1]))
            scratch.mkdir(parents=True, exist_ok=True)
            source = _download_medmnist(data_set, scratch, size)
        elif source.is_dir():
            source = _find_medmnist(data_set, source, size)
        datalist = load_datalist(source)
        shapes = {item["image"].shape for item in datalist}
        found = next(iter(shapes))[-1]
        if shapes != {(3, found, found)} or found not in MEDMNIST_SIZES or size not in (None, found):
            sides = size or "28, 64, 128 or 224"
            raise ValueError(f"{source} holds images of {_some_shapes(shapes)}, not RGB of {sides} pixels")
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        if earlier and (earlier["size"], earlier.get("source")) != (found, digest):
            raise ValueError(
                f"{output} was prepared from another file than {source}; choose another output or delete it"
            )
        file = output / _medmnist_name(data_set, found)
        written = 0 if file.is_file() else len(datalist)
        if written:
            _write(file, source.read_bytes())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    datalist = load_datalist(file)
    warnings = _compare(data_set, datalist)
    for warning in warnings:
        logger.warning(warning)
    if written or not earlier:
        _write_record(output, data_set, {"name": data_set.name, "size": found}, digest, datalist)
    return Prepared(file, datalist, written, warnings)


def _medmnist_name(data_set: DataSet, size: int) -> str:
    return f"{data_set.name}.npz" if size == 28 else f"{data_set.name}_{size}.npz"


def _find_medmnist(data_set: DataSet, folder: Path, size: int | None) -> Path:
    files = {n: folder / _medmnist_name(data_set, n) for n in (MEDMNIST_SIZES if size is None else (size,))}
    there = [file for file in files.values() if file.is_file()]
    if not there:
        raise ValueError(f"{folder} holds no {' or '.join(file.name for file in files.values())}")
    if len(there) > 1:
        raise ValueError(f"{folder} holds {', '.join(file.name for file in there)}; say which by size")
    return there[0]


def _download_medmnist(data_set: DataSet, folder: Path, size: int) -> Path:
    name = _medmnist_name(data_set, size)
    by_hand = f"or get {name} from https://doi.org/10.5281/zenodo.10519652 and give it as source"
    try:
        import medmnist  # the package is an extra
    except ImportError:
        raise ValueError(
            f'downloading {data_set.name} needs the package medmnist: pip install "conrec-monai[medmnist]", {by_hand}'
        ) from None
    try:
        medmnist.RetinaMNIST(split="train", download=True, root=str(folder), size=size)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"medmnist could not download {data_set.name} ({reason}); try again, {by_hand}") from None
    return folder / name


def _some_shapes(shapes: set[tuple[int, ...]]) -> str:
    return " and ".join(f"{height} x {width} pixels, {c} channel(s)" for c, height, width in sorted(shapes)[:3])


# --- counts -----------------------------------------------------------------------------------------------------------


def _compare(data_set: DataSet, datalist: Datalist) -> list[str]:
    """Return a line for each split that differs from the whole data set. A partial copy is legitimate."""
    lines = []
    for split, expected in data_set.counts.items():
        items = [item for item in datalist if split in ("all", item["split"])]
        part = "" if split == "all" else f" {split}"
        if len(items) != expected:
            lines.append(f"{data_set.name}: {len(items)}{part} images, the whole data set has {expected}")
            continue
        classes = data_set.classes.get(split)
        if classes:
            labels = Counter(item["label"] for item in items)
            found = tuple(labels[label] for label in range(len(classes)))
            if found != classes:
                lines.append(
                    f"{data_set.name}:{part} images by class {'/'.join(map(str, found))}, "
                    f"the whole data set has {'/'.join(map(str, classes))}"
                )
    return lines


def _splits(datalist: Datalist) -> dict[str, dict[str, Any]]:
    """Return number of images and of each label, by split ("all" for images of none)."""
    result: dict[str, dict[str, Any]] = {}
    for split in dict.fromkeys(item["split"] for item in datalist):
        labels = [item["label"] for item in datalist if item["split"] == split]
        counts = Counter(label for label in labels if label is not None)
        result[split or "all"] = {
            "images": len(labels),
            "labels": {str(label): counts[label] for label in sorted(counts)},
        }
    return result
