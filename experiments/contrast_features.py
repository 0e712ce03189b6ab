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

"""How much a linear model makes of colors, and of local contrasts, without any network.

Contrasts are differences of Gaussians inside the retina: means of their bright and dark part, deviation, and the
shares of pixels beyond 0.02, 0.05 and 0.1. Scored by cross-validation, or on another data set.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from common import interruptible
from torch import Tensor

from conrec_monai.data import CachedImages, load_datalist
from conrec_monai.evaluation import linear_evaluation, make_folds
from conrec_monai.evaluation.folds import complete_groups
from conrec_monai.transforms import gaussian_blur, unit_float
from conrec_monai.transforms.field_of_view import field_of_view_mask

SIGMAS = (0.7, 1.4, 2.8, 5.6, 11.2)  # pixels at 64 px
THRESHOLDS = (0.02, 0.05, 0.1)
BORDER = 9  # pixels of the mask's erosion: the rim is no contrast


def color_features(images: Tensor, mask: Tensor) -> Tensor:
    """Mean and deviation of each channel inside the mask: BCHW -> B[2C]."""
    pixels = images[:, :, mask]
    return torch.cat([pixels.mean(2), pixels.std(2)], dim=1)


def contrast_features(images: Tensor, mask: Tensor) -> Tensor:
    """Statistics of differences of Gaussians inside the mask: BCHW -> B[F]."""
    size = images.shape[-1]
    inner = -F.max_pool2d(-mask[None, None].float(), BORDER, 1, BORDER // 2)[0, 0] > 0
    before, features = images, []
    for sigma in (size / 64 * s for s in SIGMAS):
        blurred = gaussian_blur(images, torch.full((len(images),), sigma), min(int(6 * sigma) // 2 * 2 + 1, size - 1))
        difference = (before - blurred)[:, :, inner]
        for side in (difference, -difference):
            features += [side.clamp(min=0).mean(2), *((side > t).float().mean(2) for t in THRESHOLDS)]
        features.append(difference.square().mean(2).sqrt())
        before = blurred
    return torch.cat(features, dim=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see :func:`common.interruptible` for the exit code."""
    parser = argparse.ArgumentParser(
        prog="experiments/contrast_features.py", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("dataset", help="graded images, such as parts_....json of a sweep")
    parser.add_argument("--section", metavar="NAME", help="only this one, such as development (default: all)")
    parser.add_argument("--test", metavar="DATASET", help="fit on the first, score on this one (default: 5 folds)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="pixels (default: 64 128)")
    options = parser.parse_args(arguments)

    def work() -> None:
        data = [load_datalist(options.dataset, options.section)]
        if options.test is not None:
            data.append(load_datalist(options.test))
        items = [item for part in data for item in part]
        labels, groups = np.array([item["label"] for item in items]), complete_groups([item["group"] for item in items])
        train, test = np.split(np.arange(len(items)), [len(data[0])])
        folds = [(train, test)] if len(test) else make_folds(labels, groups, n_folds=5, seed=0)
        for size in options.sizes:
            threads = os.cpu_count() or 1
            cached = [CachedImages(part, size, num_workers=threads, field_of_view="normalize") for part in data]
            images = unit_float(torch.cat([part.load().images for part in cached]))
            mask = torch.from_numpy(field_of_view_mask(size))
            for name, features in (("colors", color_features), ("contrasts", contrast_features)):
                x = torch.cat([features(part, mask) for part in images.split(128)]).numpy()
                score = linear_evaluation(x, labels, folds, "diabetic", True, labels.max() + 1, groups)["qwk"]
                print(f"{size} px, {name}: {x.shape[1]} features, kappa {score['mean']:.3f}", flush=True)

    return interruptible(work)


if __name__ == "__main__":
    sys.exit(main())
