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

"""What field-of-view normalization leaves of a data set, and what can still be told without the retina.

python benchmarks/field_of_view.py --data /path/to/aptos2019
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.preprocessing import StandardScaler

from conrec_monai.data import CachedImages, load_datalist
from conrec_monai.evaluation import linear_evaluation, make_folds, shortcut_features
from conrec_monai.transforms import find_field_of_view
from conrec_monai.transforms.field_of_view import HEIGHT, RADIUS

SIZE = 64


def kept_share(image: np.ndarray) -> float:
    """Share of a disc's visible pixels (in the ellipse and any channel above 8 of 255) that normalization keeps."""
    found = find_field_of_view(image)
    y = (np.arange(image.shape[1])[:, None] + 0.5 - found.y) / found.radius_y
    x = (np.arange(image.shape[2]) + 0.5 - found.x) / found.radius_x
    visible = (image > 8).any(axis=0) & (y**2 + x**2 <= 1)
    kept = visible & (y**2 + x**2 <= RADIUS**2) & (np.abs(y) <= HEIGHT)
    return kept.sum() / max(visible.sum(), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="a data set with grades")
    data = load_datalist(parser.parse_args().data)
    full = CachedImages(data, 224).images.numpy()
    shares = np.array([kept_share(image) for image in full])
    print(f"share of the visible retina that is kept: mean {shares.mean():.3f}, least {shares.min():.3f}")

    print("| images | different masks | mask | color | 8x8 thumbnail |\n|---|---|---|---|---|")
    for name, field_of_view in (("as they are", None), ("normalized", "normalize")):
        cached = CachedImages(data, SIZE, field_of_view=field_of_view).load()
        images, labels = cached.images, cached.labels.numpy()
        classes, folds = int(labels.max()) + 1, make_folds(labels, n_folds=5, seed=0)
        different = len({mask.tobytes() for mask in (images > 8).any(dim=1).numpy()})
        shortcut = shortcut_features(images)
        scores = []
        for features in (
            shortcut[:, :256],
            shortcut[:, 256:],
            F.adaptive_avg_pool2d(images.to(torch.float32) / 255, 8).flatten(1).numpy(),
        ):
            scaled = StandardScaler().fit_transform(features)
            scores.append(linear_evaluation(scaled, labels, folds, "diabetic", False, classes)["qwk"]["mean"])
        print(f"| {name} | {different} | {scores[0]:.2f} | {scores[1]:.2f} | {scores[2]:.2f} |", flush=True)
        if field_of_view:
            print(f"{len(cached.unsure)} of {len(cached)} images in which no retina was found")


if __name__ == "__main__":
    main()
