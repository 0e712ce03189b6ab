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

"""Images per second of the two random, masked views that ConRec learns from, on one thread.

    pip install -c constraints.txt -e ".[bench]"
    python benchmarks/views.py --output views.json

A call makes two views each of 16 uint8 images and leaves float32 batches: crop resized by bicubic interpolation without
antialiasing, horizontal flip (0.5), jitter of brightness, contrast, saturation and hue (0.8, 0.8, 0.8, 0.2; probability
0.8), gray (0.2), Gaussian blur (0.5); then one of three maskings, of which the target is kept unmasked. All chains are
timed without the maskings, where they do the same work but for the details below, and with the nearest maskings that
each library has:

- conrec_monai: ``TwoViews.batch``, batched, with parameters of its own for each view.
- monai: dictionary transforms in a ``Compose``, view by view; the views are stacked at the end. As they are by default,
  with meta data, and (monai_untracked) after ``monai.data.set_track_meta(False)``. MONAI has no color jitter and no
  grayscale: the functions of kornia do these on one view, in ``Lambdad``; they take a little less time than those of
  torchvision. Height and width of the crop are drawn apart, the blur reaches 4 standard deviations and darkens the
  border. ``RandCoarseShuffled`` shuffles each channel on its
  own; ``RandCoarseDropoutd`` fills with one constant, its fastest way, and keeps the windows with
  ``dropout_holes=False``.
- kornia: batched. It does not clip after the crop, and its jitter has one order of the four steps in a batch. It has
  neither pixel shuffling nor out-painting: ``RandomErasing`` blackens one small window in a third of the views and one
  large window in another third, which is less work than the maskings of the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from common import interleaved, parser, ratio, spread, write
from monai.data import get_track_meta, set_track_meta
from monai.transforms import (
    Compose,
    CopyItemsd,
    Lambdad,
    OneOf,
    RandCoarseDropoutd,
    RandCoarseShuffled,
    RandFlipd,
    RandGaussianSmoothd,
    RandSpatialCropd,
    Resized,
)
from torch import Tensor

from conrec_monai.transforms import TwoViews, Views, unit_float
from conrec_monai.transforms.base import take

Chain = Callable[[Tensor], Views]
SIGMA = (0.1, 2.0)


def conrec_chain(size: int, masking: bool, seed: int) -> Chain:
    """The chain of this library."""
    return TwoViews(size, 2 * masking).set_random_state(seed).batch


def monai_compose(size: int, masking: bool, seed: int) -> Compose:
    """One view of {"image"}, uint8 CHW, by MONAI's transforms; with masking its target is "target"."""
    from kornia import color, enhance

    rng = np.random.RandomState(seed)
    adjust = (
        enhance.adjust_brightness_accumulative,
        enhance.adjust_contrast,
        enhance.adjust_saturation,
        enhance.adjust_hue,
    )

    def jitter(image: Tensor) -> Tensor:
        if rng.uniform() >= 0.8:
            return image
        brightness, contrast, saturation = rng.uniform(-0.8, 0.8, 3)
        hue = rng.uniform(-0.2, 0.2) * 2 * np.pi
        factors = (1 + brightness, 1 + contrast, 1 + saturation, hue)
        for step in rng.permutation(len(adjust)):
            image = adjust[step](image, factors[step])
        return image.clamp(0, 1)

    def gray(image: Tensor) -> Tensor:
        return color.rgb_to_grayscale(image).expand(3, -1, -1) if rng.uniform() < 0.2 else image

    smallest = max(1, round(0.1**0.5 * size))
    steps: list[Any] = [
        RandSpatialCropd("image", smallest, max_roi_size=size, random_size=True),
        Lambdad("image", unit_float),
        Resized("image", (size, size), mode="bicubic"),
        Lambdad("image", lambda image: image.clamp_(0, 1)),
        RandFlipd("image", prob=0.5, spatial_axis=1),
        Lambdad("image", jitter),
        Lambdad("image", gray),
        RandGaussianSmoothd("image", sigma_x=SIGMA, sigma_y=SIGMA, prob=0.5),
    ]
    if masking:
        small: dict[str, Any] = {"spatial_size": int(0.14 * size), "max_spatial_size": int(0.2 * size) - 1}
        large: dict[str, Any] = {"spatial_size": size - (3 * size // 7 - 1), "max_spatial_size": size - 2 * size // 7}
        maskings = [
            RandCoarseShuffled("image", 15, spatial_size=1, max_spatial_size=int(0.2 * size) - 1, prob=1),
            RandCoarseDropoutd("image", 5, **small, fill_value=0.5, prob=1),
            RandCoarseDropoutd("image", 5, **large, dropout_holes=False, fill_value=0.5, prob=1),
        ]
        steps += [CopyItemsd("image", names="target"), OneOf(maskings)]
    return Compose(steps).set_random_state(seed)


def monai_chain(size: int, masking: bool, seed: int) -> Chain:
    """The chain of MONAI's transforms."""
    compose = monai_compose(size, masking, seed)

    def run(images: Tensor) -> Views:
        views = [compose({"image": image}) for _ in range(2) for image in images]
        inputs = torch.stack([view["image"] for view in views])
        return Views(inputs, torch.stack([view["target"] for view in views]) if masking else inputs)

    return run


def kornia_chain(size: int, masking: bool, seed: int) -> Chain:
    """The chain of kornia, which draws from PyTorch's own random state."""
    import kornia.augmentation as K

    torch.manual_seed(seed)
    kernel = size // 10 // 2 * 2 + 1
    augment = torch.nn.Sequential(
        K.RandomResizedCrop((size, size), scale=(0.1, 1.0), resample="bicubic", align_corners=False),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((kernel, kernel), SIGMA, p=0.5),
    )
    mask = torch.nn.Sequential(
        K.RandomErasing(scale=(0.14**2, 0.2**2), ratio=(0.7, 1 / 0.7), p=1 / 3),
        K.RandomErasing(scale=(0.3, 0.5), ratio=(0.7, 1 / 0.7), p=1 / 3),
    )

    def run(images: Tensor) -> Views:
        images = unit_float(images)
        target = augment(torch.cat([images, images]))
        return Views(mask(target) if masking else target, target)

    return run


CHAINS = {
    "conrec_monai": conrec_chain,
    "monai": monai_chain,
    "monai_untracked": monai_chain,
    "kornia": kornia_chain,
}


def run_untracked(chain: Chain, images: Tensor) -> Views:
    """A chain of MONAI without its meta data."""
    tracked = get_track_meta()
    set_track_meta(False)
    try:
        return chain(images)
    finally:
        set_track_meta(tracked)


def steps(size: int, batch: int, repeats: int, seed: int) -> dict[str, float]:
    """Milliseconds a view of each step of this library's chain, one view at a time."""
    views = TwoViews(size).set_random_state(seed)
    images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))
    seconds: dict[str, float] = {}
    for _ in range(repeats):
        params = views.randomize(batch, images.shape[1:])
        for place in range(2 * batch):
            own = take(params, np.array([place]))
            view = images[place % batch][None]
            for name, step in {**views._steps(3), "mask": views.mask}.items():
                start = time.perf_counter()
                view = step.apply(view, own[name])
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
    return {name: 1e3 * total / (2 * batch * repeats) for name, total in seconds.items()}


def measure(size: int, masking: bool, batch: int, repeats: int, seed: int) -> dict[str, Any]:
    """What the views of one size take."""
    images = torch.randint(256, (batch, 3, size, size), generator=torch.Generator().manual_seed(seed)).byte()
    chains: dict[str, Callable[[], Views]] = {}
    for name, make in CHAINS.items():
        if name == "conrec_monai" or find_spec("kornia"):
            chain = make(size, masking, seed)
            chains[name] = partial(run_untracked, chain, images) if "untracked" in name else partial(chain, images)
    times = interleaved(chains, repeats)
    views = 2 * batch
    result: dict[str, Any] = {"size": size, "masking": masking}
    for name in CHAINS:
        found = spread(times[name]) if name in times else None
        result[name] = found and {
            "milliseconds_per_view": {key: 1e3 * value / views for key, value in found.items()},
            "views_per_second": views / found["median"],
            "images_per_second": batch / found["median"],
        }
    if masking:
        result["milliseconds_of_steps"] = steps(size, batch, repeats, seed)
    for name in ("monai", "monai_untracked", "kornia"):
        result[f"{name}_over_conrec_monai"] = ratio(times, name, "conrec_monai") if name in times else None
    return result


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(__doc__)
    options.add_argument("--sizes", type=int, nargs="+", default=[64, 224], help="pixels a side (default %(default)s)")
    options.add_argument("--batch", type=int, default=16, help="images of a call (default %(default)s)")
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    results = []
    for size in args.sizes:
        for masking in (False, True):
            result = measure(size, masking, args.batch, args.repeats, args.seed)
            results.append(result)
            shown = [
                f"{name} {result[name]['milliseconds_per_view']['median']:.3f}" if result[name] else f"{name} absent"
                for name in CHAINS
            ]
            print(f"{size} px, {'masked' if masking else 'not masked'}, ms a view: {', '.join(shown)}", flush=True)
    libraries = ["kornia"] if find_spec("kornia") else []
    write(args.output, "views", arguments, vars(args), results, libraries)
    return results


if __name__ == "__main__":
    main()
