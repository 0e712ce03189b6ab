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

import errno
import hashlib
import json
import logging
import mmap
import os
import sys
import threading
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from conrec_monai.version import __version__

__all__ = ["DIGEST_BYTES", "ImageCache"]

DIGEST_BYTES = 32
LAYOUT = 1
# Packages that decode and resample: another version of one may give other pixels.
PYLIBJPEG = ("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")
DECODERS = ("pillow", "torch", "numpy", "scipy", "nibabel", "pydicom", *PYLIBJPEG)
_ENTRY = np.dtype([("digest", f"V{DIGEST_BYTES}"), ("note", "S220"), ("check", "<u4")])


class ImageCache:
    """Decoded images in files that processes share, each found by what its source holds.

    A cache of one shape and one way of decoding is two files in ``folder``: ``*.images``, the images one after the
    other, which is mapped into memory, and ``*.index``, an entry for each. Their name comes from ``decoding``, the
    shape and the versions of the packages that decode: of anything else there are other files. An image is looked up by
    a digest of the content it was decoded from, so a changed file is another image; what was is never read again.
    An entry holds a checksum of itself and of the image: one that is torn, by a crash or a full disk, counts as absent
    and is written anew. Delete the folder to free its space.

    Looking up needs no more than the object. To add, use it as a context, in which the process has the cache for
    itself: another one waits until it is done, and then finds what was added. What :meth:`images` returned stays valid
    for ever.

    Args:
        folder: is made where it does not exist.
        shape: C, H, W of the images, uint8.
        decoding: all that decides which pixels come from a file, as values that JSON can hold.

    Raises:
        OSError: when the folder cannot be made or written to; on entering the context, when the files cannot.
    """

    def __init__(self, folder: str | os.PathLike, shape: tuple[int, int, int], decoding: Mapping[str, Any]) -> None:
        self.shape, self.size = shape, int(np.prod(shape))
        versions = {name: _version(name) for name in DECODERS}
        about = {**decoding, "shape": shape, "layout": LAYOUT, "conrec_monai": __version__, "packages": versions}
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"{shape[1]}x{shape[2]}x{shape[0]}-{key}"
        self.images_path, self.index_path = self.folder / f"{stem}.images", self.folder / f"{stem}.index"
        self._lock = FileLock(self.folder / f"{stem}.lock")
        self._writing = threading.Lock()
        self._read()

    def __len__(self) -> int:
        """Entries, torn ones included."""
        return self._next

    def _read(self) -> None:
        """What is there now. Entries that were cut off, or whose image was, are not: their places are taken again."""
        found = [path.stat().st_size if path.is_file() else 0 for path in (self.images_path, self.index_path)]
        self._next = min(found[0] // self.size, found[1] // _ENTRY.itemsize)
        self._index = np.fromfile(self.index_path, _ENTRY, self._next) if self._next else np.empty(0, _ENTRY)
        self._slots = {entry["digest"].tobytes(): slot for slot, entry in enumerate(self._index)}
        self._mapped = _map(self.images_path, self._next, self.size)

    def __enter__(self) -> ImageCache:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            logging.getLogger("conrec_monai").info(f"waiting for another process that decodes into {self.folder}")
            self._lock.acquire()
        except NotImplementedError:
            raise OSError(errno.ENOLCK, "its file system has no locks, use another", str(self.folder)) from None
        with ExitStack() as stack:
            stack.callback(self._lock.release)
            for path in (self.images_path, self.index_path):
                path.touch()
            self._images_file = stack.enter_context(self.images_path.open("r+b", buffering=0))
            self._index_file = stack.enter_context(self.index_path.open("r+b", buffering=0))
            self._read()
            self._opened = stack.pop_all()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    def find(self, digest: bytes) -> tuple[int, str] | None:
        """The place of an image, and its note; None when it is absent or torn."""
        slot = self._slots.get(digest)
        if slot is None:
            return None
        entry = self._index[slot]
        if entry["check"] != _check(digest, bytes(entry["note"]), self._mapped[slot]):
            return None
        return slot, bytes(entry["note"]).decode("utf-8", "ignore")

    def add(self, digest: bytes, image: Tensor, note: str = "") -> int:
        """Writes an image, uint8 CHW, with a note of up to 220 bytes; threads may call it. Returns its place.

        Raises:
            OSError: when it cannot be written, as on a full disk.
        """
        pixels = image.contiguous().numpy().reshape(-1)
        entry = np.zeros((), _ENTRY)
        entry["digest"] = np.void(digest)
        entry["note"] = note.encode()[: _ENTRY["note"].itemsize]
        entry["check"] = _check(digest, bytes(entry["note"][()]), pixels)
        with self._writing:
            slot = self._next
            _write(self._images_file, self.images_path, slot * self.size, memoryview(pixels.tobytes()))
            _write(self._index_file, self.index_path, slot * _ENTRY.itemsize, memoryview(entry.tobytes()))
            self._next += 1
        return slot

    def images(self) -> Tensor:
        """All images, uint8 NCHW, by their place: a private map of the file, of which pages are read when used."""
        return torch.from_numpy(_map(self.images_path, self._next, self.size).reshape(-1, *self.shape))


def _check(digest: bytes, note: bytes, pixels: np.ndarray) -> int:
    return zlib.crc32(pixels.data, zlib.crc32(note, zlib.crc32(digest)))


def _map(path: Path, count: int, size: int) -> np.ndarray:
    if not count:
        return np.empty((0, size), np.uint8)
    # Copy-on-write: pages are shared with other processes, and nothing that is done to them reaches the file.
    if sys.platform != "linux":
        return np.memmap(path, np.uint8, "c", shape=(count, size))
    # Linux would reserve memory for as much as the file is long, but for this flag (mmap.MAP_NORESERVE, Python 3.13).
    flags = mmap.MAP_PRIVATE | 0x4000
    with path.open("rb") as file:
        private = mmap.mmap(file.fileno(), count * size, flags, mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(private, np.uint8).reshape(count, size)


def _write(file: Any, path: Path, position: int, content: memoryview) -> None:
    try:
        file.seek(position)
        while content:  # an unbuffered file may take a part only
            content = content[file.write(content) :]
    except OSError as error:
        raise OSError(error.errno, f"the cache of images cannot be written ({error.strerror})", str(path)) from None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
