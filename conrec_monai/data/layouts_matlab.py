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

"""Vectors of numbers and of texts from MATLAB files.

A reader of its own, because that of SciPy is not made for damaged files: some of them end the whole process (seen with
SciPy 1.17). This one knows vectors and cell arrays of texts, and touches nothing else. The format is described in
"MAT-File Level 5 File Format" (MathWorks).
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["read_numbers", "read_texts"]

# Types of data elements.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
# Classes of matrices.
_CELL, _CHAR, _NUMERIC = 1, 4, range(6, 16)
_LARGEST = 2**26  # bytes of a matrix


class _Matrix(NamedTuple):
    name: str
    kind: int
    shape: tuple[int, ...]
    content: bytes


def read_numbers(file: Path, name: str) -> list[int]:
    """Return a vector of whole numbers.

    Raises:
        ValueError: when the file cannot be read, or holds no such vector; in one line.
    """
    matrix, order = _find(file, name)
    if matrix.kind in _NUMERIC:
        try:
            kind, content, _ = _element(matrix.content, 0, order)
            values = np.frombuffer(content, np.dtype(order + _NUMBERS[kind]))
        except (ValueError, KeyError) as error:
            raise _damaged(file, error) from error
        if len(values) != _length(file, matrix):
            raise _damaged(file, f"{name} holds {len(values)} numbers, not {matrix.shape}")
        if np.isfinite(values).all() and (values == np.floor(values)).all():
            return [int(value) for value in values]
    raise ValueError(f"{file}: {name} must be a vector of whole numbers")


def read_texts(file: Path, name: str) -> list[str]:
    """Return a cell array of texts.

    Raises:
        ValueError: when the file cannot be read, or holds no such cell array; in one line.
    """
    matrix, order = _find(file, name)
    if matrix.kind != _CELL:
        raise ValueError(f"{file}: {name} must be a cell array of texts")
    texts: list[str] = []
    try:
        for kind, content in _elements(matrix.content, order):
            cell = _matrix(content, order) if kind == _MATRIX else None
            if cell is None or cell.kind != _CHAR:
                raise ValueError(f"cell {len(texts) + 1} of {name} is no text")
            kind, content, _ = _element(cell.content, 0, order)
            encoding = _TEXTS[kind]
            if encoding in ("utf-16", "utf-32"):
                encoding += "-le" if order == "<" else "-be"
            texts.append(content.decode(encoding))
    except (ValueError, KeyError) as error:
        raise _damaged(file, error) from error
    if len(texts) != _length(file, matrix):
        raise _damaged(file, f"{name} holds {len(texts)} cells, not {matrix.shape}")
    return texts


def _damaged(file: Path, reason: object) -> ValueError:
    text = f"unknown type {reason}" if isinstance(reason, KeyError) else str(reason)
    return ValueError(f"{file} is not a MATLAB 5 file that can be read: {text}")


def _length(file: Path, matrix: _Matrix) -> int:
    length = math.prod(matrix.shape)
    if length != max(matrix.shape) and length:
        raise ValueError(f"{file}: {matrix.name} must be a vector, found the shape {matrix.shape}")
    return length


def _find(file: Path, name: str) -> tuple[_Matrix, str]:
    """Return a variable and the byte order of the file."""
    names = []
    try:
        content = file.read_bytes()
        order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
        if order is None:
            raise ValueError("it has no MATLAB 5 header")
        if struct.unpack(order + "H", content[124:126])[0] != 0x100:
            raise ValueError("it is of another version; save it with the option -v7 (not -v7.3)")
        for kind, element in _elements(content[128:], order):
            if kind == _COMPRESSED:
                unpacker = zlib.decompressobj()
                packed, element = element, unpacker.decompress(element, _LARGEST)
                if not unpacker.eof:
                    raise ValueError(f"a variable of {len(packed)} bytes is cut short, or larger than {_LARGEST} bytes")
                kind, element, _ = _element(element, 0, order)
            if kind == _MATRIX:
                matrix = _matrix(element, order)
                if matrix.name == name:
                    return matrix, order
                names.append(matrix.name)
    except (ValueError, zlib.error) as error:
        raise _damaged(file, error) from error
    raise ValueError(f"{file} must hold the variable {name}, found {', '.join(map(repr, names[:20])) or 'none'}")


def _matrix(content: bytes, order: str) -> _Matrix:
    """Parse a matrix as far as its values."""
    kind, flags, place = _element(content, 0, order)
    if kind != 6 or len(flags) != 8:
        raise ValueError("a variable does not start with its flags")
    kind, shape, place = _element(content, place, order)
    if kind != 5 or len(shape) % 4 or len(shape) < 8:
        raise ValueError("a variable has no shape")
    kind, name, place = _element(content, place, order)
    if kind not in (1, 16):
        raise ValueError("a variable has no name")
    sizes = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    if min(sizes) < 0:
        raise ValueError(f"a variable has the shape {sizes}")
    return _Matrix(name.decode("utf-8"), struct.unpack(order + "I", flags[:4])[0] & 0xFF, sizes, content[place:])


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(content):
        kind, element, place = _element(content, place, order)
        yield kind, element


def _element(content: bytes, start: int, order: str) -> tuple[int, bytes, int]:
    """Return type and bytes of the element at a place, and the place of the next one."""
    if len(content) < start + 8:
        raise ValueError("it ends too early")
    kind, size = struct.unpack(order + "II", content[start : start + 8])
    if kind >> 16:  # a short element: up to 4 bytes in the place of the size
        kind, size, first = kind & 0xFFFF, kind >> 16, start + 4
        stop = start + 8
        if size > 4:
            raise ValueError("a short element is too long")
    else:
        first = start + 8
        stop = first + size if kind == _COMPRESSED else first + -(-size // 8) * 8
    if len(content) < first + size:
        raise ValueError("it ends too early")
    return kind, content[first : first + size], stop
