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

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import convert_to_dst_type
from torch import Tensor

__all__ = ["BatchRandTransform", "BatchRandTransformd", "Params", "unit_float"]

# Random parameters: arrays whose first dimension is the sample, or such dictionaries, nested.
Params = dict[str, Any]

_SCALES = {torch.uint8: 255.0, torch.uint16: 65535.0}


def unit_float(images: Tensor) -> Tensor:
    """Images as float32 with values in [0, 1]: uint8 and uint16 are divided by their maximum, floats are kept.

    Raises:
        ValueError: when the dtype is another one.
    """
    if images.is_floating_point():
        return images.float()
    if images.dtype not in _SCALES:
        raise ValueError(f"images must be uint8, uint16 or floating point in [0, 1], got {images.dtype}.")
    return images.float() / _SCALES[images.dtype]


def _unit_sample(image: NdarrayOrTensor) -> Tensor:
    """One image CHW as a plain float32 tensor in [0, 1]."""
    # monai's convert_to_tensor would turn uint16 into int32, and its range is then lost
    plain = image if isinstance(image, Tensor) else torch.from_numpy(np.ascontiguousarray(image))
    x = unit_float(plain.as_tensor() if isinstance(plain, MetaTensor) else plain)
    if x.ndim != 3:
        raise ValueError(f"the image must be of shape CHW, got {tuple(x.shape)}.")
    low, high = x.amin().item(), x.amax().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"floating point images must have values in [0, 1], found {low:g} to {high:g}.")
    return x


class BatchRandTransform(Randomizable, Transform):
    """A random transform of a whole batch with parameters of their own for every sample.

    :meth:`randomize` draws the parameters on the host from ``self.R``; :meth:`apply` is a pure function of images and
    parameters that runs batched on the images' device. Noise per pixel comes from a counter-based generator whose
    seeds are parameters as well, so the state of ``self.R`` is all there is to save. Calling the transform treats one
    image CHW (integers of 8 or 16 bits, or floats in [0, 1]; returned as float32 of the same array type) by the same
    code with one sample. No input array is ever changed; where nothing is drawn the result may be the input itself.
    """

    @abstractmethod
    def randomize(self, n: int, shape: Sequence[int]) -> Params:
        """Draws the parameters of ``n`` images of the given shape (C, H, W)."""

    @abstractmethod
    def apply(self, batch: Tensor, params: Params) -> Any:
        """Transforms images BCHW, float32 in [0, 1], with parameters of B samples."""

    def batch(self, images: Tensor, rank: int = 0, num_replicas: int = 1) -> Any:
        """Draws and applies: images BCHW, uint8, uint16 or floats in [0, 1].

        Args:
            images: the batch, or in several processes one of ``num_replicas`` parts of it, all of B images.
            rank: which part. From equal states of ``R`` all processes draw the parameters of the whole batch, so that
                each part is transformed as in one process, and their states stay equal.
            num_replicas: parts of the batch.
        """
        images = unit_float(images)
        params = self.randomize(num_replicas * len(images), images.shape[1:])
        if num_replicas > 1:
            params = take(params, self._samples(len(images), rank, num_replicas))
        return self.apply(images, params)

    def _samples(self, n: int, rank: int, num_replicas: int) -> np.ndarray:
        """Which of the drawn samples are those of a part of n images."""
        return np.arange(rank * n, (rank + 1) * n)

    def __call__(self, img: NdarrayOrTensor) -> Any:
        """Transforms one image CHW.

        Raises:
            ValueError: when the shape is not CHW, or the dtype or value range is another one.
        """
        x = _unit_sample(img)[None]
        return convert_to_dst_type(self.apply(x, self.randomize(1, x.shape[1:]))[0], img, dtype=torch.float32)[0]


class BatchRandTransformd(Randomizable, MapTransform):
    """Dictionary twin of a :class:`BatchRandTransform`: the images under all keys get the same random parameters.

    Args:
        keys: keys of the images, each CHW.
        transform: the array transform.
        allow_missing_keys: whether a missing key is passed over.
    """

    def __init__(self, keys: KeysCollection, transform: BatchRandTransform, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.transform = transform

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> BatchRandTransformd:
        self.transform.set_random_state(seed, state)
        return self

    def randomize(self, data: Any = None) -> None:
        """The array transform draws."""

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        result = dict(data)
        params: Params | None = None
        shapes: dict[Hashable, tuple[int, ...]] = {}
        for key in self.key_iterator(result):
            x = _unit_sample(result[key])[None]
            shapes[key] = tuple(x.shape[1:])
            if params is None:
                params = self.transform.randomize(1, x.shape[1:])
            elif len(set(shapes.values())) > 1:
                raise ValueError(f"images that share random parameters must have one shape CHW, got {shapes}.")
            self._store(result, key, self.transform.apply(x, params))
        return result

    def _store(self, result: dict[Hashable, NdarrayOrTensor], key: Hashable, output: Any) -> None:
        result[key] = convert_to_dst_type(output[0], result[key], dtype=torch.float32)[0]


def on_device(values: np.ndarray, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Parameters on the images' device; neither waits for the other."""
    x = torch.as_tensor(values, dtype=dtype)
    if like.is_cuda:
        x = x.pin_memory()  # from other memory CUDA copies only after all that it was given before
    return x.to(like.device, non_blocking=True)


def column(values: np.ndarray, like: Tensor) -> Tensor:
    """Parameters of shape B[...] on the images' device, as float32 of shape B[...]11 that broadcasts over BCHW."""
    x = on_device(values, like, torch.float32)
    return x.reshape(*x.shape, *[1] * (4 - x.ndim))


def update_where(
    batch: Tensor, chosen: np.ndarray, function: Callable[[Tensor, np.ndarray], Tensor], in_place: bool = False
) -> Tensor:
    """The batch, or a new one, with the chosen samples (bool, shape B) replaced by ``function(samples, indices)``."""
    indices = np.flatnonzero(chosen)
    if not len(indices):
        return batch
    if len(indices) == len(batch):
        return function(batch, indices)
    where = on_device(indices, batch)
    update = batch.index_copy_ if in_place else batch.index_copy
    return update(0, where, function(batch.index_select(0, where), indices))


def separable(batch: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Applies a linear map per sample along the height and along the width.

    Args:
        batch: BCHW.
        rows: B[h][H].
        columns: B[w][W].

    Returns:
        BChw.
    """
    return rows[:, None] @ (batch @ columns[:, None].transpose(-1, -2))


def take(params: Params, indices: Any) -> Params:
    """The parameters of some of the samples."""
    return {k: take(v, indices) if isinstance(v, dict) else v[indices] for k, v in params.items()}
