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

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from conrec_monai.data import image_cache
from conrec_monai.data.image_cache import DIGEST_BYTES, ImageCache

SHAPE = (3, 4, 5)
SIZE = 60  # bytes of an image
ENTRY = 32 + 220 + 4  # bytes of an entry: digest, note, checksum


def image(seed: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8))


def digest(seed: int) -> bytes:
    return np.random.RandomState(1000 + seed).bytes(DIGEST_BYTES)


def opened(folder: Path, shape: tuple[int, int, int] = SHAPE, **decoding: Any) -> ImageCache:
    return ImageCache(folder, shape, decoding)


def filled(folder: Path, count: int = 4) -> ImageCache:
    """A cache, closed again, of ``count`` images with the notes note 0, note 1, ..."""
    with opened(folder) as cache:
        for seed in range(count):
            assert cache.add(digest(seed), image(seed), f"note {seed}") == seed
    return cache


def found(cache: ImageCache, seed: int) -> bool:
    """Whether an image is found; what is found is what was added."""
    entry = cache.find(digest(seed))
    if entry is None:
        return False
    place, note = entry
    assert note == f"note {seed}" and torch.equal(cache.images()[place], image(seed))
    return True


def flip(path: Path, position: int, bits: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= bits
    path.write_bytes(content)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    with opened(tmp_path / "new" / "folder") as cache:
        assert cache.images().shape == (0, *SHAPE) and cache.find(digest(0)) is None
        transposed = image(7, (5, 4, 3)).permute(2, 1, 0)  # not contiguous
        assert [cache.add(digest(0), image(0), "größer"), cache.add(digest(1), transposed)] == [0, 1]
        now = cache.images()
    assert now.shape == (2, *SHAPE) and now.dtype == torch.uint8
    assert torch.equal(now[0], image(0)) and torch.equal(now[1], transposed)
    with opened(tmp_path / "new" / "folder") as cache:
        assert cache.find(digest(0)) == (0, "größer") and cache.find(digest(1)) == (1, "")
        assert cache.find(digest(2)) is None and cache.find(bytes(DIGEST_BYTES)) is None
        assert torch.equal(cache.images(), now)
        assert cache.add(digest(2), image(2)) == 2
        assert torch.equal(cache.images(), torch.stack([image(0), transposed, image(2)]))
    assert cache.images_path.stat().st_size == 3 * SIZE and cache.index_path.stat().st_size == 3 * ENTRY


def test_long_note_ends_with_a_whole_character(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        cache.add(digest(0), image(0), "x" + "ü" * 150)  # 301 bytes
    with opened(tmp_path) as cache:
        assert cache.find(digest(0)) == (0, "x" + "ü" * 109)  # 219 bytes


def test_last_of_two_with_the_same_content_counts(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        assert [cache.add(digest(0), image(0), note) for note in ("first", "second")] == [0, 1]
    with opened(tmp_path) as cache:
        assert cache.find(digest(0)) == (1, "second")


def test_anything_else_is_in_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = [
        opened(tmp_path),
        opened(tmp_path, (3, 5, 4)),
        opened(tmp_path, (1, 4, 15)),
        opened(tmp_path, resize="pad"),
        opened(tmp_path, resize="crop"),
        opened(tmp_path, resize=None),
        opened(tmp_path, other="pad"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "version", lambda package: "0.1" if package == "pillow" else "1")
        caches.append(opened(tmp_path))
        patch.setattr(image_cache, "version", lambda package: "0.2" if package == "pillow" else "1")
        caches.append(opened(tmp_path))
        patch.setattr(image_cache, "_version", lambda package: None)
        caches.append(opened(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "__version__", "0.0.0")
        caches.append(opened(tmp_path))
    assert len({cache.images_path for cache in caches}) == len({cache.index_path for cache in caches}) == len(caches)
    with caches[0] as cache:
        cache.add(digest(0), image(0))
    for other in caches[1:]:
        with other:  # a lock of its own: it does not wait for the others
            assert other.find(digest(0)) is None
    assert opened(tmp_path, a=1, b=2).images_path == opened(tmp_path, b=2, a=1).images_path


def test_missing_package_is_a_version_too() -> None:
    assert image_cache._version("torch") == torch.__version__ and image_cache._version("no-such-package") is None


# --- torn entries -----------------------------------------------------------------------------------------------------


def flip_image(images: Path, index: Path) -> None:
    flip(images, 3 * SIZE + 17)


def flip_note(images: Path, index: Path) -> None:
    flip(index, 3 * ENTRY + 33)


def flip_check(images: Path, index: Path) -> None:
    flip(index, 4 * ENTRY - 1)


def cut_image(images: Path, index: Path) -> None:
    os.truncate(images, 4 * SIZE - 23)


def cut_entry(images: Path, index: Path) -> None:
    os.truncate(index, 4 * ENTRY - 100)


def zero_entry(images: Path, index: Path) -> None:
    index.write_bytes(index.read_bytes()[: 3 * ENTRY] + bytes(ENTRY))


def zero_image(images: Path, index: Path) -> None:
    images.write_bytes(images.read_bytes()[: 3 * SIZE] + bytes(SIZE))


def fewer_images(images: Path, index: Path) -> None:
    os.truncate(images, 3 * SIZE)


def fewer_entries(images: Path, index: Path) -> None:
    os.truncate(index, 3 * ENTRY)


@pytest.mark.parametrize(
    "tear",
    [
        flip_image,
        flip_note,
        flip_check,
        cut_image,
        cut_entry,
        zero_entry,
        zero_image,
        fewer_images,
        fewer_entries,
    ],
    ids=lambda tear: tear.__name__,
)
def test_torn_entry_is_absent_and_written_anew(tmp_path: Path, tear: Any) -> None:
    cache = filled(tmp_path)
    tear(cache.images_path, cache.index_path)
    with opened(tmp_path) as cache:
        assert [found(cache, seed) for seed in range(4)] == [True, True, True, False]
        cache.add(digest(3), image(3), "note 3")
        cache.add(digest(4), image(4), "note 4")
    with opened(tmp_path) as cache:
        assert all(found(cache, seed) for seed in range(5))
        assert cache.images_path.stat().st_size // SIZE == cache.index_path.stat().st_size // ENTRY


@pytest.mark.parametrize("name", ["images_path", "index_path"])
def test_one_of_the_files_is_gone(tmp_path: Path, name: str) -> None:
    cache = filled(tmp_path)
    getattr(cache, name).unlink()
    with opened(tmp_path) as cache:
        assert not any(found(cache, seed) for seed in range(4))
        assert cache.add(digest(0), image(0), "note 0") == 0
    with opened(tmp_path) as cache:
        # The old entries, or images, that are left beyond it are as they were: absent, or whole.
        assert found(cache, 0) and not any(found(cache, seed) for seed in range(1, 4))


def test_entry_moved_to_another_place_is_absent(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    entries = cache.index_path.read_bytes()
    cache.index_path.write_bytes(entries[ENTRY : 2 * ENTRY] + entries[:ENTRY] + entries[2 * ENTRY :])
    with opened(tmp_path) as cache:
        assert [found(cache, seed) for seed in range(4)] == [False, False, True, True]


DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(["images", "index"]),
        st.sampled_from(["flip", "cut", "zero", "append"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=4,
)


def harm(path: Path, kind: str, where: float, bits: int) -> None:
    content = bytearray(path.read_bytes())
    position = int(where * len(content))
    if kind == "cut":
        del content[position:]
    elif kind == "append":
        content += np.random.RandomState(bits).bytes(bits)
    elif content:
        end = position + 1 if kind == "flip" else position + bits
        for place in range(position, min(end, len(content))):
            content[place] = content[place] ^ bits if kind == "flip" else 0
    path.write_bytes(content)


@given(damages=st.lists(DAMAGE, min_size=1, max_size=3))
@example(damages=[[("images", "flip", 0.0, 1), ("images", "flip", 0.5, 1)], [("images", "cut", 0.0, 1)]])
@settings(max_examples=80, deadline=None)
def test_whatever_is_damaged_what_is_found_is_what_was_added(damages: list[list[tuple[str, str, float, int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = filled(Path(folder))
        for round_, damage in enumerate(damages):
            for name, kind, where, bits in damage:
                harm(getattr(cache, f"{name}_path"), kind, where, bits)
            with opened(Path(folder)) as cache:
                for seed in range(4 + round_):
                    if not found(cache, seed):  # which compares
                        cache.add(digest(seed), image(seed), f"note {seed}")
                cache.add(digest(4 + round_), image(4 + round_), f"note {4 + round_}")
            with opened(Path(folder)) as cache:  # all is well again
                assert all(found(cache, seed) for seed in range(5 + round_))


# --- several at once --------------------------------------------------------------------------------------------------


def test_threads_add_at_once(tmp_path: Path) -> None:
    places: dict[int, int] = {}
    barrier = threading.Barrier(4)

    def add(first: int) -> None:
        barrier.wait()
        for seed in range(first, first + 25):
            places[seed] = cache.add(digest(seed), image(seed), f"note {seed}")

    with opened(tmp_path) as cache:
        threads = [threading.Thread(target=add, args=(25 * part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        images = cache.images()
    assert sorted(places.values()) == list(range(100))
    assert all(torch.equal(images[place], image(seed)) for seed, place in places.items())
    with opened(tmp_path) as cache:
        assert all(found(cache, seed) for seed in range(100))


def test_what_was_returned_stays_valid(tmp_path: Path) -> None:
    expected = torch.stack([image(seed) for seed in range(4)])
    with filled(tmp_path) as cache:
        images = cache.images()
    with opened(tmp_path) as later:
        for seed in range(4, 1000):  # several pages
            later.add(digest(seed), image(0), "")
    assert images.shape == (4, *SHAPE) and torch.equal(images, expected)
    with opened(tmp_path) as cache:
        whole = cache.images()
    shutil.rmtree(tmp_path)  # the space is freed when nothing maps it
    assert torch.equal(images, expected) and torch.equal(whole[:4], expected) and torch.equal(whole[999], image(0))


def test_second_context_waits_and_finds_what_was_added(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "conrec_monai")
    waits, seen = threading.Event(), []
    real = FileLock.acquire

    class Waiting(FileLock):
        def acquire(self, *args: Any, **kwargs: Any) -> Any:
            if not kwargs:  # the second attempt, which waits
                waits.set()
            return real(self, *args, **kwargs)

    def second() -> None:
        other = opened(tmp_path)
        other._lock = Waiting(other._lock.lock_file)
        with other:
            seen.append(found(other, 0))

    with opened(tmp_path) as cache:
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(60)
        cache.add(digest(0), image(0), "note 0")
        assert not seen
    thread.join(60)
    assert seen == [True]
    assert caplog.messages == [f"waiting for another process that decodes into {tmp_path}"]


def test_error_inside_lets_the_next_one_in(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as cache:
        cache.add(digest(0), image(0), "note 0")
        raise KeyboardInterrupt
    with opened(tmp_path) as cache:
        assert found(cache, 0)


def test_map_is_private(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    before = cache.images_path.read_bytes()
    with cache:
        images, other = cache.images(), cache.images()
        images.zero_()
        assert not images.any() and torch.equal(other[3], image(3))
        assert all(found(cache, seed) for seed in range(4))
    del images
    assert cache.images_path.read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="the size of the memory is told by /proc")
def test_cache_larger_than_the_memory(tmp_path: Path) -> None:
    shape, size = (1, 4096, 4096), 4096 * 4096
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    count = 2 * pages // size
    with opened(tmp_path, shape) as cache:
        cache.add(digest(0), torch.full(shape, 7, dtype=torch.uint8))
    os.truncate(cache.index_path, count * ENTRY)
    try:
        os.truncate(cache.images_path, count * size)  # nothing but its first image takes space
    except OSError as error:
        pytest.skip(f"no file of this length: {error}")
    with opened(tmp_path, shape) as cache:
        assert cache.find(digest(0)) == (0, "")
        images = cache.images()
    assert images.shape == (count, *shape) and images[0, 0, 0, 0] == 7 and images[-1, 0, -1, -1] == 0
    images[-1, 0, -1, -1] = 1  # of this process alone
    assert cache.images()[-1, 0, -1, -1] == 0


# --- what cannot be written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["images", "index"])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    class Full:
        """A file that takes ten bytes of what is written, then no more."""

        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 10

        def seek(self, position: int) -> None:
            self.file.seek(position)

        def write(self, content: memoryview) -> int:
            if not self.left:
                raise OSError(28, "No space left on device")
            taken, self.left = self.file.write(content[: self.left]), 0
            return taken

        def close(self) -> None:
            self.file.close()

    filled(tmp_path)
    with opened(tmp_path) as cache:
        whole = getattr(cache, f"_{name}_file")
        setattr(cache, f"_{name}_file", Full(whole))
        with pytest.raises(OSError, match="the cache of images cannot be written .No space left on device.") as error:
            cache.add(digest(4), image(4), "note 4")
        assert error.value.errno == 28 and error.value.filename == str(getattr(cache, f"{name}_path"))
        assert len(cache.images()) == 4
        assert [found(cache, seed) for seed in range(5)] == [True] * 4 + [False]
    with opened(tmp_path) as cache:
        assert [found(cache, seed) for seed in range(5)] == [True] * 4 + [False]
        assert cache.add(digest(4), image(4), "note 4") == 4
    with opened(tmp_path) as cache:
        assert all(found(cache, seed) for seed in range(5))


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from conrec_monai.data.image_cache import ImageCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with ImageCache(sys.argv[1], (3, 4, 5), {}) as cache:
    for value in range(100):
        cache.add(bytes([value] * 32), torch.full((3, 4, 5), value, dtype=torch.uint8), str(value))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of the size of files")
def test_limit_of_the_system(tmp_path: Path) -> None:
    # Entries have 256 bytes: of 1000 bytes the fourth is torn.
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=120)
    path = opened(tmp_path).index_path
    assert done.returncode == 1 and path.stat().st_size == 1000
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: ") and "the cache of images cannot be written (File too large)" in last
    assert str(path) in last
    with opened(tmp_path) as cache:
        places = [cache.find(bytes([value] * 32)) for value in range(100)]
        assert places == [(0, "0"), (1, "1"), (2, "2")] + [None] * 97
        assert cache.images()[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    for folder in (tmp_path / "cache", tmp_path / "cache" / "below"):
        with pytest.raises(OSError, match=str(tmp_path / "cache")):
            opened(folder)


@pytest.mark.parametrize("name", ["images_path", "index_path"])
def test_file_that_is_a_folder(tmp_path: Path, name: str) -> None:
    path = getattr(opened(tmp_path), name)
    path.mkdir()
    with pytest.raises(OSError, match=path.name), opened(tmp_path):
        pass
    path.rmdir()
    filled(tmp_path)  # the lock is free again


def test_failed_map_frees_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)

    def fail(*args: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    cache = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "_map", fail)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            cache.__enter__()
    assert not cache._lock.is_locked
    with opened(tmp_path) as other:
        assert found(other, 0)


def test_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(OSError, match="its file system has no locks, use another") as error, opened(tmp_path):
        pass
    assert error.value.filename == str(tmp_path)
