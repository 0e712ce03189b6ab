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

import pickle
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from conrec_monai.data.layouts_matlab import read_numbers, read_texts


def _cells(texts: list[Any]) -> np.ndarray:
    cells = np.empty((len(texts), 1), dtype=object)
    cells[:, 0] = texts
    return cells


def _fails(read: Callable[[Path, str], Any], file: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(file, "x")
    assert "\n" not in str(error.value) and str(file) in str(error.value)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("shape", [(1, 7), (7, 1)])
def test_numbers(tmp_path: Path, compressed: bool, dtype: str, shape: tuple[int, int]) -> None:
    values = [0, 1, 2, 127, 3, 99, 5]
    other = {"a": np.eye(3), "structure": {"b": 1}, "text": "abc"}
    savemat(tmp_path / "x.mat", {**other, "x": np.array(values, dtype).reshape(shape)}, do_compression=compressed)
    assert read_numbers(tmp_path / "x.mat", "x") == values


@pytest.mark.parametrize("values", [[], [7], [1, 2], [1, 2, 3, 4], [-(2**31), 2**31 - 1]])
def test_few_numbers(tmp_path: Path, values: list[int]) -> None:
    """Up to 4 bytes are stored in another way."""
    for dtype in ("i4", "i8") if values and min(values) < 0 else ("u1", "i4", "f8"):
        savemat(tmp_path / "x.mat", {"x": np.array([values], dtype)})
        assert read_numbers(tmp_path / "x.mat", "x") == values


@pytest.mark.parametrize("compressed", [False, True])
def test_texts(tmp_path: Path, compressed: bool) -> None:
    texts = ["n02085620-Chihuahua/n02085620_10621.jpg", "a", "abcd", "Öl 花.jpg", ""]
    savemat(tmp_path / "x.mat", {"y": 1, "x": _cells(texts)}, do_compression=compressed)
    assert read_texts(tmp_path / "x.mat", "x") == texts


def test_big_endian(tmp_path: Path) -> None:
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8, b"\0")

    def matrix(kind: int, name: bytes, rows: int, content: bytes) -> bytes:
        head = element(6, struct.pack(">II", kind, 0)) + element(5, struct.pack(">ii", rows, 1)) + element(1, name)
        return element(14, head + content)

    header = b"MATLAB".ljust(124) + struct.pack(">H", 0x100) + b"MI"
    text = matrix(4, b"", 1, element(17, "aé".encode("utf-16-be")))
    numbers = matrix(6, b"n", 3, element(3, struct.pack(">hhh", 1, 300, -2)))
    (tmp_path / "x.mat").write_bytes(header + numbers + matrix(1, b"x", 1, text))
    assert read_numbers(tmp_path / "x.mat", "n") == [1, 300, -2]
    assert read_texts(tmp_path / "x.mat", "x") == ["aé"]
    assert loadmat(tmp_path / "x.mat")["n"].ravel().tolist() == [1, 300, -2]  # it is a file as others read it


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (read_numbers, np.array([[1.5]]), "x.mat: x must be a vector of whole numbers"),
        (read_numbers, np.array([[np.nan]]), "x must be a vector of whole numbers"),
        (read_numbers, np.array([[np.inf]]), "x must be a vector of whole numbers"),
        (read_numbers, np.eye(2), r"x.mat: x must be a vector, found the shape \(2, 2\)"),
        (read_numbers, "abc", "x must be a vector of whole numbers"),
        (read_numbers, {"a": 1}, "x must be a vector of whole numbers"),
        (read_numbers, _cells([1, 2]), "x must be a vector of whole numbers"),
        (read_texts, np.eye(2), "x.mat: x must be a cell array of texts"),
        (read_texts, _cells(["a", 1]), "cell 2 of x is no text"),
        (read_texts, _cells([_cells(["a"])]), "cell 1 of x is no text"),
    ],
)
def test_other_values(tmp_path: Path, read: Callable[[Path, str], Any], value: Any, message: str) -> None:
    savemat(tmp_path / "x.mat", {"x": value})
    _fails(read, tmp_path / "x.mat", message)


def test_other_names(tmp_path: Path) -> None:
    savemat(tmp_path / "x.mat", {"a": 1, "b": 2})
    _fails(read_numbers, tmp_path / "x.mat", "x.mat must hold the variable x, found 'a', 'b'")


class _Bomb:
    """Executes code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was executed",))


def test_other_files(tmp_path: Path) -> None:
    file = tmp_path / "x.mat"
    for content in (b"", b"MATLAB", pickle.dumps(_Bomb()), b"MATLAB 5.0".ljust(126) + b"??" + bytes(100)):
        file.write_bytes(content)
        _fails(read_numbers, file, "x.mat is not a MATLAB 5 file that can be read: it has no MATLAB 5 header")
    file.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(100))
    _fails(read_numbers, file, "it is of another version; save it with the option -v7")


def test_decompression_is_limited(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(2**27))
    file = tmp_path / "x.mat"
    file.write_bytes(b"MATLAB".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed)
    _fails(read_numbers, file, "cut short, or larger than 67108864 bytes")


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_ends_in_one_line(tmp_path: Path, compressed: bool) -> None:
    """With the reader of SciPy, this test ends the process."""
    file = tmp_path / "x.mat"
    for read, value in ((read_numbers, np.arange(8, dtype=np.int16)), (read_texts, _cells(["ab", "longer text"]))):
        savemat(file, {"x": value}, do_compression=compressed)
        content = file.read_bytes()
        for length in range(0, len(content), 3):
            file.write_bytes(content[:length])
            _fails(read, file, "x.mat")
        for place in range(124, len(content)):
            for flip in (0x01, 0xFF):
                file.write_bytes(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
                try:
                    read(file, "x")  # a flipped value is another value
                except ValueError as error:
                    assert re.match(r".*x\.mat", str(error)) and "\n" not in str(error)


@given(content=st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_content_ends_in_one_line(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "x.mat"
    file.write_bytes(b"MATLAB".ljust(124) + b"\x00\x01IM" + content)
    for read in (read_numbers, read_texts):
        _fails(read, file, "x.mat")


def test_real_files(shared_data: Path) -> None:
    folder = shared_data / "oxford_flowers102"
    assert (
        read_numbers(folder / "imagelabels.mat", "labels") == loadmat(folder / "imagelabels.mat")["labels"][0].tolist()
    )
    splits = loadmat(folder / "setid.mat")
    for name in ("trnid", "valid", "tstid"):
        assert read_numbers(folder / "setid.mat", name) == splits[name][0].tolist()
