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


"""Decoding, the cache of decoded images, and how long a training waits for data.

    python benchmarks/data.py --threads 2 --data /path/to/aptos2019 --output data.json

- decode: images a second into memory, into an empty cache, and from a cache that is full, --data at --size.
- wait: the share of the second epoch of a training (--images photographs, --features in the first level) that goes by
  until the next batch is there: from memory, from the cache, and by MONAI's ``LoadImaged`` and ``Resized`` in its
  ``DataLoader`` with --workers processes, which decode in every epoch.
- large: images a second of drawn JPEG photographs of 4288 x 2848 pixels (quality 95, with noise) in full size, and
  with ``min_side``, which lets a JPEG be decoded at a part of it; on one thread each, and on --workers threads.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import interleaved, parser, ratio, spread, write
from monai.data import DataLoader, Dataset, set_track_meta
from monai.transforms import Compose, Lambdad, LoadImaged, Resized
from PIL import Image
from step import build, make_trainer

from conrec_monai.data import CachedImages, load_datalist, phantom_arrays, read_image
from conrec_monai.engines import ConRecTrainer
from conrec_monai.handlers import ProgressHandler

LARGE = (4288, 2848)


def load(items: list[dict[str, Any]], size: int, workers: int, cache_dir: str | None = None) -> CachedImages:
    return CachedImages(items, size, num_workers=workers, progress=False, cache_dir=cache_dir).load()


def measure_decoding(items: list[dict[str, Any]], size: int, workers: int, repeats: int) -> dict[str, Any]:
    """Images a second into memory, into an empty cache and from a full one."""
    with tempfile.TemporaryDirectory() as full:
        load(items, size, workers, full)

        def into_empty() -> None:
            with tempfile.TemporaryDirectory() as empty:
                load(items, size, workers, empty)

        times = interleaved(
            {
                "memory": lambda: load(items, size, workers),
                "empty_cache": into_empty,
                "full_cache": lambda: load(items, size, workers, full),
            },
            repeats,
        )
    rates = {name: spread([len(items) / s for s in seconds]) for name, seconds in times.items()}
    return {
        "section": "decode",
        "images": len(items),
        "images_per_second": rates,
        "memory_over_full_cache": ratio(times, "memory", "full_cache"),
    }


def wait_of(trainer: ConRecTrainer, batch: int) -> dict[str, float]:
    """The share of the second epoch that is spent waiting, and its images a second."""
    ProgressHandler(batch).attach(trainer)
    trainer.run()
    return {name: trainer.state.metrics[name] for name in ("data_wait", "images_per_second")}


def measure_wait(
    items: list[dict[str, Any]], size: int, features: int, batch: int, workers: int, seed: int
) -> dict[str, Any]:
    """Waiting for data in the second epoch."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, cache_dir in (("memory", None), ("cache", folder)):
            images = load(items, size, workers, cache_dir)
            trainer = make_trainer(build(features, seed), images, size, batch, seed)
            trainer.state.max_epochs = 2
            found[name] = wait_of(trainer, batch)
    steps = Compose(
        [
            LoadImaged("image", reader="PILReader", image_only=True, ensure_channel_first=True, reverse_indexing=False),
            Resized("image", (size, size), mode="bicubic", anti_aliasing=True),
            Lambdad("image", lambda image: image.clamp(0, 255) / 255),
        ]
    )
    set_track_meta(False)
    loader = DataLoader(
        Dataset([{"image": item["image"]} for item in items], steps),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    trainer = make_trainer(build(features, seed), images, size, batch, seed)
    trainer.state.max_epochs = 2
    trainer.state.dataloader = loader
    trainer.data_loader = loader
    found["monai"] = wait_of(trainer, batch)
    set_track_meta(True)
    return {"section": "wait", "images": len(items), "size": size, "features": features, "epoch": 2, "found": found}


def measure_large(size: int, workers: int, repeats: int, seed: int, pixels: tuple[int, int] = LARGE) -> dict[str, Any]:
    """Images a second of large photographs."""
    folder = tempfile.TemporaryDirectory()
    rng = np.random.RandomState(seed)
    paths = [Path(folder.name) / f"{i}.jpg" for i in range(4)]
    for path, array in zip(paths, phantom_arrays(len(paths), 512, seed)[0], strict=True):
        image = np.asarray(Image.fromarray(array.transpose(1, 2, 0)).resize(pixels, Image.Resampling.BICUBIC), np.int16)
        noisy = image + rng.normal(0, 4, image.shape).astype(np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=95)

    def read(count: int, min_side: int | None) -> None:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(partial(read_image, min_side=min_side), paths))

    cases: dict[str, Callable[[], object]] = {
        f"{name}_{count}": partial(read, count, min_side)
        for name, min_side in (("full", None), ("reduced", size))
        for count in dict.fromkeys((1, workers))
    }
    times = interleaved(cases, repeats)
    folder.cleanup()
    return {
        "section": "large",
        "images": len(paths),
        "pixels": list(pixels),
        "images_per_second": {name: spread([len(paths) / s for s in seconds]) for name, seconds in times.items()},
        "full_over_reduced": ratio(times, "full_1", "reduced_1"),
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(__doc__, repeats=3)
    options.add_argument("--data", required=True, help="data set, as load_datalist knows it")
    options.add_argument("--size", type=int, default=224, help="pixels a side (default %(default)s)")
    options.add_argument("--features", type=int, default=16, help="of the first level (default %(default)s)")
    options.add_argument("--batch", type=int, default=16, help="images of a step (default %(default)s)")
    options.add_argument("--images", type=int, default=480, help="photographs, at most (default %(default)s)")
    options.add_argument("--workers", type=int, default=2, help="that decode (default %(default)s)")
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)

    try:
        datalist = load_datalist(args.data)
    except (ValueError, OSError) as error:
        options.error(str(error))
    items = [dict(datalist[i]) for i in np.random.RandomState(args.seed).permutation(len(datalist))[: args.images]]
    results = [measure_decoding(items, args.size, args.workers, args.repeats)]
    rates = {name: round(rate["median"]) for name, rate in results[0]["images_per_second"].items()}
    print(f"decoding {len(items)} images to {args.size} px, images/s: {rates}", flush=True)
    start = time.perf_counter()
    results.append(measure_wait(items, args.size, args.features, args.batch, args.workers, args.seed))
    waits = {name: f"{found['data_wait']:.2%}" for name, found in results[-1]["found"].items()}
    print(f"waiting for data in the second epoch: {waits} ({time.perf_counter() - start:.0f} s)", flush=True)
    results.append(measure_large(args.size, args.workers, args.repeats, args.seed))
    rates = {name: round(rate["median"], 1) for name, rate in results[-1]["images_per_second"].items()}
    print(f"photographs of {LARGE[0]} x {LARGE[1]} pixels, images/s: {rates}", flush=True)
    write(args.output, "data", arguments, {**vars(args), "data": Path(args.data).name}, results)
    return results


if __name__ == "__main__":
    main()
