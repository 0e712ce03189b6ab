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

"""Files of a source, unpacked or in archives, read without trusting it."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, NamedTuple

__all__ = ["JOIN", "MAX_MEMBERS", "Member", "check_members", "copy_member", "fetched", "is_part", "list_members"]

# What an archive may hold; collections of photographs lie far below, bombs above.
MAX_MEMBERS = 1_000_000
JOIN = "Join the parts first: cat NAME.zip.* > NAME.zip"

_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_PART = re.compile(r"\.(zip|tar|tgz|gz|7z|rar)\.\d+$|\.z\d\d$", re.IGNORECASE)  # of an archive in several files
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    gzip.BadGzipFile,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
)


def is_part(name: str) -> bool:
    """Whether a file name is that of a part of an archive in several files."""
    return _PART.search(name) is not None


class Member(NamedTuple):
    """A file of the source: unpacked (`file`) or in an archive (`archive` and what it calls the file)."""

    size: int
    file: Path | None = None
    archive: Path | None = None
    name: str = ""
    problem: str | None = None  # why it is not read


def list_members(source: Path) -> dict[str, Member]:
    """List the files of a folder, or of an archive, by their path in it.

    Archives that lie in the folder itself count as unpacked there; a file that is unpacked already goes first.
    """
    if not source.is_dir():
        if is_part(source.name):
            raise ValueError(f"{source} is a part of an archive in several files. {JOIN}")
        return _archive_members(source)
    members: dict[str, Member] = {}
    archives: list[Path] = []
    seen = set()
    for folder, folders, files in os.walk(source, onerror=_fail, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for file in sorted(name for name in files if not _hidden(name)):
            path = Path(folder, file)
            if path.parent == source and file.lower().endswith(_ARCHIVE_SUFFIXES):
                archives.append(path)
            elif path.is_file():
                members[path.relative_to(source).as_posix()] = Member(path.stat().st_size, path)
    packed: dict[str, Member] = {}
    for archive in archives:
        for name, member in _archive_members(archive).items():
            if name in packed:
                member = member._replace(problem=f"is in {packed[name].archive} too")
            packed[name] = member
    return {**packed, **members}


def _fail(error: OSError) -> None:
    raise error  # a folder that may not be read is not an empty one


def _archive_members(path: Path) -> dict[str, Member]:
    """List the regular files of an archive, by cleaned name.

    Raises:
        ValueError: when it is no archive, damaged, holds too many files, or a name in it leads out of it.
    """
    members: dict[str, Member] = {}
    for name, size, problem in _listed(path):
        if len(members) >= MAX_MEMBERS:
            raise ValueError(f"{path} holds more than {MAX_MEMBERS} files")
        clean = name.replace("\\", "/")
        parts = [part for part in clean.split("/") if part not in ("", ".")]
        if clean.startswith("/") or ".." in parts or re.match("[A-Za-z]:", clean):
            raise ValueError(f"{path}: the name {name!r} leads out of the archive; do not trust it")
        if not parts or any(map(_hidden, parts)):
            continue
        key = "/".join(parts)
        members[key] = Member(size, None, path, name, "is there twice" if key in members else problem)
    return members


def _listed(path: Path) -> Iterator[tuple[str, int, str | None]]:
    """Yield name, size and what is wrong with it of each member of an archive that is not a folder."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    kind = stat.S_IFMT(info.external_attr >> 16)
                    problem = None if kind in (0, stat.S_IFREG) else "is a link or a device"
                    if info.flag_bits & 1:
                        problem = "is encrypted"
                    if not info.is_dir():
                        yield info.filename, info.file_size, problem
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                for member in tar:
                    if not member.isdir():
                        yield member.name, member.size, None if member.isreg() else "is a link or a device"
        else:
            raise ValueError(f"{path} is not an archive that can be read (.zip, .tar, .tar.gz), or not whole")
    except _BROKEN as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from None


def check_members(members: dict[str, Member], limit: int) -> None:
    """Check what the source says of its files.

    Raises:
        ValueError: when one cannot be read, or is longer than `limit` bytes.
    """
    for member in members.values():
        where = f"{member.archive}: {member.name!r}" if member.archive else str(member.file)
        if member.problem is not None:
            raise ValueError(f"{where} {member.problem}; if you trust the archive, unpack it and give the folder")
        if member.size > limit:
            raise ValueError(f"{where} has {member.size} bytes, more than the limit of {limit}")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def fetched(
    members: dict[str, Member], limit: int, scratch: Path | None = None
) -> Generator[tuple[str, Path], None, None]:
    """Yield key and a readable file of each member.

    Members of archives are copied to `scratch` in the order of the archive, where whoever takes them deletes them; to
    a folder of their own, for as long as this iterates, by default.

    Raises:
        ValueError: when a member is longer than `limit` bytes, whatever the archive says, or damaged.
    """
    for key, member in members.items():
        if member.file is not None:
            yield key, member.file
    packed: dict[Path, dict[str, str]] = {}
    for key, member in members.items():
        if member.archive is not None:
            packed.setdefault(member.archive, {})[member.name] = key
    if not packed:
        return
    with tempfile.TemporaryDirectory(prefix="conrec-prepare-") as folder:
        place = scratch or Path(folder)
        number = 0
        for archive, keys in sorted(packed.items()):
            for name, stream in _opened(archive, set(keys)):
                path = place / f"member-{number}"
                number += 1
                copy_member(stream, path, limit, f"{archive}: {name}")
                yield keys[name], path


def _opened(path: Path, names: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.filename in names:
                        with archive.open(info) as stream:
                            yield info.filename, stream
        else:
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name in names and (file := tar.extractfile(member)):
                        yield member.name, file
    except _BROKEN as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from None


def copy_member(stream: IO[bytes], path: Path, limit: int, where: str) -> None:
    """Copy a member of an archive to a file.

    Raises:
        ValueError: when it is longer than `limit` bytes, whatever the archive says, or damaged.
    """
    try:
        with open(path, "wb") as file:
            while chunk := stream.read(2**20):
                file.write(chunk)
                if file.tell() > limit:
                    raise ValueError(f"{where} is larger than {limit} bytes")
    except _BROKEN as error:
        raise ValueError(f"{where} is damaged: {' '.join(str(error).split())}") from None
