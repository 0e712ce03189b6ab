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

import hashlib
import logging
import operator
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from conrec_monai.utils import progress_bar

from .datalist import ON_ERROR, Datalist
from .image_cache import DIGEST_BYTES, ImageCache
from .image_reader import read_image, to_channels
from .layouts import shown, some
from .preprocessing import FitImage

__all__ = ["CachedImages", "EpochBatchSampler", "batched"]

ATTEMPTS = 3  # to read a file that another process is writing
REVISION = 1  # of what is done to an image here and in NormalizeFieldOfView: a cache of another one is not used
_T = TypeVar("_T")


class CachedImages(Dataset):
    """Images decoded once and kept as uint8, in memory or on disk, so that an epoch costs one gather per batch.

    The constructor only checks its arguments; `load` decodes, and the first access calls it. Call it before a
    `DataLoader` starts worker processes, or each of them decodes for itself. Batches come fastest, and only work, with
    `DataLoader(dataset, batch_sampler=..., collate_fn=batched)`: a batch is gathered as a whole and needs no collation.

    Images of another size are resampled bicubically with antialiasing and clipped; images of the right size pass
    through bit by bit. 16-bit images are resampled at full depth, then scaled by 255 / 65535 and rounded; floating
    point images by 255. Of a file that holds several pictures, the "frame" of an item says which.

    With `field_of_view="normalize"`, each image as decoded passes through `NormalizeFieldOfView`, which brings it to
    the square of `size` by itself; `resize` then has no effect. Images in which no retina was found are kept, named in
    `unsure` and logged as one warning. With "local_contrast" the result passes through `LocalContrast` too.

    With a `cache_dir` the images are decoded into an `ImageCache` there, once for all runs and processes, and mapped
    into memory: one copy for all processes, of no more than what is used where memory is short. A photograph that is
    added later is decoded alone. Every file is still read, to tell by its content whether it is the same one. (Worker
    processes of a `DataLoader` that are spawned, not forked, would each get a copy; batches need none.)

    With `on_error="skip"`, `load` removes the images that cannot be read from `data`, `labels`, `ids`, `groups` and
    `images` alike: call it before anything takes the length of the dataset.

    Args:
        data: items with "image" (path, or CHW array that `to_channels` accepts), and optionally "label" (int >= 0 or
            None), "id", "group" and "frame", as `load_datalist` gives them.
        size: side S of the cached squares in pixels.
        resize: "squash" (the whole image, its aspect ratio ignored), "pad" (the whole image, centered on black) or
            "crop" (the largest central square).
        channels: 3 (RGB) or 1 (gray).
        num_workers: threads that decode.
        progress: show a progress bar while decoding, on a terminal only.
        on_error: what becomes of images that cannot be read: "raise" (an error) or "skip" (left out, logged and
            recorded).
        field_of_view: "normalize" to bring each retina to the same circle and mask, "local_contrast" to then take the
            mean color around each pixel from it; None to leave images as they are.
        cache_dir: folder of decoded images; None to keep them in the memory of this process.

    Attributes:
        data: the items as given; where some were left out, a new list (`Datalist` if that was given) of the others.
        images: uint8 tensor N x channels x S x S; not to be changed. From a `cache_dir` it may be a copy: better
            `gather` those that are needed.
        labels: int64 tensor of N labels, -1 where an item has none.
        ids: N identifiers; the position as text where an item has none.
        groups: N group names or None.
        hashes: int64 tensor of N hashes of the content (of a file's bytes, or of an array) and the frame: which images
            these are, whatever their names.
        skipped: what was left out, each {"id", "image", "reason"}: first what a `Datalist` says of itself.
        unsure: the images in which no retina was found, in the same form; known after `load`.

    Raises:
        ValueError: when an argument is out of range, or an item has no "image" or an invalid "label".
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        size: int,
        resize: str = "squash",
        channels: int = 3,
        num_workers: int = 2,
        progress: bool = True,
        on_error: str = "raise",
        field_of_view: str | None = None,
        cache_dir: str | os.PathLike | None = None,
    ) -> None:
        if len(data) == 0:
            raise ValueError("data holds no items")
        self._fitting = FitImage(size, resize, field_of_view)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (gray) or 3 (RGB), got {channels!r}")
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1 thread, got {num_workers}")
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error must be {' or '.join(map(repr, ON_ERROR))}, got {on_error!r}")
        for index, item in enumerate(data):
            if "image" not in item:
                raise ValueError(f"item {index} of data has no 'image', only {sorted(item)}")
            if not isinstance(item["image"], (str, os.PathLike, np.ndarray)):
                kind = type(item["image"]).__name__
                raise ValueError(f"the image of item {index} of data must be a path or a numpy array, got {kind}")
        self.data = data
        self.size = size
        self.resize = resize
        self.channels = channels
        self.num_workers = num_workers
        self.progress = progress
        self.on_error = on_error
        self.field_of_view = field_of_view
        self.labels = torch.tensor([_label(index, item.get("label")) for index, item in enumerate(data)])
        self.ids = [str(item.get("id", index)) for index, item in enumerate(data)]
        self.groups: list[str | None] = [item.get("group") for item in data]
        self.skipped: list[dict[str, str]] = list(data.skipped) if isinstance(data, Datalist) else []
        self.unsure: list[dict[str, str]] = []
        self.cache_dir = cache_dir
        self._images: torch.Tensor | None = None
        self._places: torch.Tensor | None = None  # of this dataset's images among those of a cache
        self._hashes = torch.empty(0, dtype=torch.int64)

    def load(self) -> CachedImages:
        """Decode all images, unless that is done already.

        Returns:
            The dataset itself.

        Raises:
            ValueError: when images cannot be read (with `on_error="skip"`, when none can); names their number and the
                first five with the reasons.
        """
        if self._images is not None:
            return self
        cache = None
        if self.cache_dir is not None:
            decoding = {"revision": REVISION, "resize": self.resize, "field_of_view": self.field_of_view}
            cache = ImageCache(self.cache_dir, (self.channels, self.size, self.size), decoding)
        images = self._memory() if cache is None else None
        places = torch.arange(len(self))
        hashes = torch.zeros(len(self), dtype=torch.int64)
        unsure: dict[int, str] = {}

        def fill(index: int, decode: bool) -> str | None:
            try:
                digest, known, array = self._read(index, cache, decode)
                hashes[index] = int.from_bytes(digest[:8], "little", signed=True)
                reason = ""
                if known is not None:
                    places[index], reason = known
                elif array is None:
                    missing.append(index)
                else:
                    image = self._fitting.fit(array)
                    fitted, reason = image.image, image.unsure
            except (ValueError, OSError) as error:
                in_memory = isinstance(self.data[index]["image"], np.ndarray)
                return f"item {self.ids[index]}: {error}" if in_memory else str(error)
            if reason:
                unsure[index] = reason
            if known is None and array is not None:
                if cache is not None:
                    places[index] = cache.add(digest, fitted, reason)
                elif images is not None:
                    images[index] = fitted
            return None

        def fill_all(indices: Sequence[int], decode: bool) -> dict[int, str]:
            pool = ThreadPoolExecutor(self.num_workers)
            try:
                done = pool.map(fill, indices, repeat(decode))
                options = {"desc": "Loading images", "total": len(indices), "unit": "image"}
                bar = progress_bar(done, self.progress, lines=True, **options)
                return {index: failure for index, failure in zip(indices, bar, strict=True) if failure}
            finally:
                pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the images that are left

        missing: list[int] = []
        everything = range(len(self))
        if cache is None:
            failures = fill_all(everything, True)
        else:
            failures = fill_all(everything, False) if len(cache) else {}
            wanted = sorted(missing) if len(cache) else everything
            logging.getLogger("conrec_monai").info(
                f"{len(self) - len(wanted) - len(failures)} of {len(self)} images are in cache_dir {self.cache_dir}"
            )
            if len(wanted):
                with cache:  # in which another process may have added some of them
                    failures = dict(sorted({**failures, **fill_all(wanted, True)}.items()))
        if failures and (self.on_error == "raise" or len(failures) == len(self)):
            first = "; ".join(list(failures.values())[:5])
            more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
            raise ValueError(f"{len(failures)} of {len(self)} images cannot be loaded: {first}{more}")
        self.unsure = [self._entry(index, unsure[index]) for index in sorted(unsure)]
        if unsure:
            names = some((self.ids[index] for index in sorted(unsure)), 3)
            logging.getLogger("conrec_monai").warning(
                f"no retina was found in {len(unsure)} of {len(self)} images, of which the largest ellipse is kept:"
                f" {names}"
            )
        self._hashes = hashes
        if failures:
            places = self._skip(failures, places)
        if images is None:
            assert cache is not None
            self._images, self._places = cache.images(), places
            return self
        if failures:
            for new, old in enumerate(places):  # in place: the images may fill most of the memory
                images[new] = images[old]
        self._images = images[: len(self)]
        return self

    def _read(
        self, index: int, cache: ImageCache | None, decode: bool
    ) -> tuple[bytes, tuple[int, str] | None, np.ndarray | None]:
        """The digest of an item's content, its place and note in the cache, and, unless it is there or is not to be
        decoded, the picture of just that content."""
        image, frame = self.data[index]["image"], self.data[index].get("frame")
        if isinstance(image, np.ndarray):
            array = to_channels(image, self.channels)
            digest = _content_digest(image, frame)
            return digest, None if cache is None else cache.find(digest), array if decode else None
        for _ in range(ATTEMPTS):
            before = _state(image)
            digest = _content_digest(image, frame)
            known = None if cache is None else cache.find(digest)
            if known is not None or not decode:
                return digest, known, None
            array = read_image(image, self.channels, frame=frame, min_side=self.size)
            if _state(image) == before:
                return digest, None, array
        raise ValueError(f"cannot read image {shown(image)}: it is being changed")

    def _memory(self) -> torch.Tensor:
        try:
            return torch.empty(len(self), self.channels, self.size, self.size, dtype=torch.uint8)
        except RuntimeError:
            gigabytes = len(self) * self.channels * self.size**2 / 1e9
            raise ValueError(
                f"{len(self)} images of {self.size} x {self.size} pixels need {gigabytes:.3g} GB, more than there is;"
                " a smaller size is needed, or a cache_dir"
            ) from None

    def _skip(self, failures: dict[int, str], places: torch.Tensor) -> torch.Tensor:
        """Remove the images of these positions, the values are the reasons, everywhere; the places of the others."""
        names = some((self.ids[index] for index in failures), 3)
        logging.getLogger("conrec_monai").warning(
            f"{len(failures)} of {len(self)} images cannot be read and are left out: {names}"
        )
        self.skipped += [self._entry(index, reason) for index, reason in failures.items()]
        kept = [index for index in range(len(self)) if index not in failures]
        items = [self.data[index] for index in kept]
        self.data = Datalist(items, self.data.info, self.skipped) if isinstance(self.data, Datalist) else items
        self.labels = self.labels[kept]
        self._hashes = self._hashes[kept]
        self.ids = [self.ids[index] for index in kept]
        self.groups = [self.groups[index] for index in kept]
        return places[kept]

    def _entry(self, index: int, reason: str) -> dict[str, str]:
        image = self.data[index]["image"]
        place = "array" if isinstance(image, np.ndarray) else os.fspath(image)
        return {"id": self.ids[index], "image": place, "reason": reason}

    @property
    def images(self) -> torch.Tensor:
        self.load()
        assert self._images is not None
        if self._places is None:
            return self._images
        first = int(self._places[0])
        if torch.equal(self._places, torch.arange(first, first + len(self))):
            return self._images[first : first + len(self)]
        return self._images.index_select(0, self._places)

    def gather(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> torch.Tensor:
        """Copy the images at these positions: uint8 B x channels x S x S."""
        self.load()
        assert self._images is not None
        index = torch.as_tensor(indices, dtype=torch.int64)
        return self._images.index_select(0, index if self._places is None else self._places[index])

    @property
    def hashes(self) -> torch.Tensor:
        self.load()
        return self._hashes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # A copy: transforms that work in place must not reach the images that are kept.
        index = range(len(self))[index]  # a negative one counts from the end, as in a list
        return {"image": self.gather([index])[0], "label": self.labels[index].clone(), "id": self.ids[index]}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return a whole batch: "image" B x C x S x S (uint8), "label" B (int64), "id" (B texts); for `DataLoader`."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return {
            "image": self.gather(index),
            "label": self.labels.index_select(0, index),
            "id": [self.ids[i] for i in indices],
        }


def batched(batch: _T) -> _T:
    """Return the batch as it is: the `collate_fn` for a dataset, such as `CachedImages`, that gives whole batches."""
    return batch


class EpochBatchSampler(Sampler[list[int]]):
    """Shuffled batches of indices whose order is a pure function of seed and epoch, so that a run resumes exactly.

    The order of an epoch is `numpy.random.RandomState([seed, epoch]).permutation(length)`, a stream that NumPy keeps
    the same for all versions. An iteration that runs to its end moves on to batch 0 of the next epoch; one that is
    abandoned leaves the position where it was.

    Example:
        To go on after `done` batches in all: `sampler.set_position(*divmod(done, len(sampler)))`.

    Args:
        length: number of items N.
        batch_size: indices per batch, of all processes together.
        seed: 0 to 2**32 - 1.
        drop_last: leave out an incomplete last batch.
        rank: which part of each batch is yielded, from 0.
        num_replicas: parts of a batch, one per process. `batch_size` is a multiple of it.

    Raises:
        ValueError: when `batch_size` is less than 1 or larger than `length`, the seed is out of range, a batch has no
            `num_replicas` equal parts, or there is no part `rank`.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        drop_last: bool = True,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size > length:
            raise ValueError(f"batch_size {batch_size} is larger than the number of items, {length}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, got {seed}")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank must be from 0 to num_replicas - 1, got {rank} of {num_replicas}")
        if num_replicas > 1 and (batch_size % num_replicas or not drop_last):
            raise ValueError(
                f"with num_replicas {num_replicas}, batch_size must be a multiple of it and drop_last True, got"
                f" {batch_size} and {drop_last}"
            )
        self.rank, self.num_replicas = rank, num_replicas
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        self.batch = 0

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration yield the batches of `epoch` (from 0) from number `batch` (from 0) on.

        Raises:
            ValueError: when there is no such epoch or batch.
        """
        if not 0 <= epoch < 2**32:
            raise ValueError(f"epoch must be from 0 to 2**32 - 1, got {epoch}")
        if not 0 <= batch < len(self):
            raise ValueError(f"batch must be from 0 to {len(self) - 1} (an epoch has {len(self)} batches), got {batch}")
        self.epoch, self.batch = epoch, batch

    def __len__(self) -> int:
        """Number of batches of a whole epoch."""
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = self.epoch, self.batch
        order = np.random.RandomState([self.seed, epoch]).permutation(self.length)
        for batch in range(first, len(self)):
            whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            part = -(-len(whole) // self.num_replicas)
            yield whole[self.rank * part : (self.rank + 1) * part].tolist()
        if (self.epoch, self.batch) == (epoch, first):  # unless set_position was called meanwhile
            self.epoch, self.batch = epoch + 1, 0


def _content_digest(image: str | os.PathLike | np.ndarray, frame: int | None) -> bytes:
    """A hash of a file's bytes, or of an array, and the frame."""
    content = hashlib.blake2b(str(frame).encode(), digest_size=DIGEST_BYTES)
    if isinstance(image, np.ndarray):
        content.update(f"{image.dtype.str}{image.shape}".encode())
        content.update(np.ascontiguousarray(image).tobytes())
    else:
        with open(image, "rb") as file:  # a decoder reads the same bytes, then from the system's cache
            while block := file.read(1 << 20):
                content.update(block)
    return content.digest()


def _state(path: str | os.PathLike) -> tuple[int, ...]:
    """What changes when a file does.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_image`, when it cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
    except FileNotFoundError:
        raise FileNotFoundError(f"image file not found: {shown(path)}") from None
    except OSError as error:
        raise ValueError(f"cannot read image {shown(path)}: {error.strerror or error}") from None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _label(index: int, label: Any) -> int:
    if label is None:
        return -1
    try:
        value = operator.index(label)
    except TypeError:
        value = -1
    if value < 0:
        raise ValueError(f"the label of item {index} of data must be an integer >= 0 or None, got {label!r}")
    return value
