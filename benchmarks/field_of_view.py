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
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conrec_monai.data import CachedImages, load_datalist
from conrec_monai.evaluation import linear_evaluation, make_folds, shortcut_features
from conrec_monai.transforms import NormalizeFieldOfView, find_field_of_view
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


def is_cut(image: np.ndarray) -> bool:
    """Whether a disc is cut off at the top or bottom, at less than 0.9 of its radius from its center."""
    found = find_field_of_view(image)
    return min(found.y, image.shape[1] - found.y) < 0.9 * found.radius_y


def local_deviation(images: torch.Tensor) -> np.ndarray:
    """Sharpness by place: log of the deviation in 3 x 3 pixels, averaged to 8 x 8, less its mean over the image."""
    gray = images.to(torch.float32).mean(dim=1, keepdim=True) / 255
    variance = F.avg_pool2d((gray - F.avg_pool2d(gray, 3, 1, 1)) ** 2, 3, 1)
    # Only where all of the 3 x 3 pixels are inside the mask that all images share, if they share one.
    masks = (images > 8).any(dim=1, keepdim=True).float()
    shared = (
        masks.amin(dim=0, keepdim=True) if torch.equal(masks.amin(0), masks.amax(0)) else torch.ones_like(masks[:1])
    )
    inside = (F.avg_pool2d(shared, 3, 1) > 0.999).float()
    weight = F.adaptive_avg_pool2d(inside, 8)
    mean = F.adaptive_avg_pool2d(variance * inside, 8) / weight.clamp(min=1e-3)
    logarithm = mean.flatten(1)[:, (weight > 0).flatten()].clamp(min=1e-7).log() / 2
    return (logarithm - logarithm.mean(dim=1, keepdim=True)).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="a data set with grades")
    data = load_datalist(parser.parse_args().data)
    full = CachedImages(data, 224).load()
    originals, labels = full.images, full.labels.numpy()
    shares = np.array([kept_share(image) for image in originals.numpy()])
    cut = np.array([is_cut(image) for image in originals.numpy()])
    print(f"share of the visible retina that is kept: mean {shares.mean():.3f}, least {shares.min():.3f}")
    print(f"{cut.sum()} of {len(cut)} discs are cut off")
    classes, folds = int(labels.max()) + 1, make_folds(labels, n_folds=5, seed=0)

    print("| images | different masks | mask | color | 8x8 thumbnail | local deviation | cut-off discs (AUC) |")
    print("|---|---|---|---|---|---|---|")
    for name, images in (
        ("as they are", CachedImages(data, SIZE).images),
        ("whole circle, filled by mirroring", NormalizeFieldOfView(SIZE, height=1.0).batch(originals)),
        ("normalized", NormalizeFieldOfView(SIZE).batch(originals)),
    ):
        different = len({mask.tobytes() for mask in (images > 8).any(dim=1).numpy()})
        shortcut, sharpness = shortcut_features(images), local_deviation(images)
        scores = []
        for features in (
            shortcut[:, :256],
            shortcut[:, 256:],
            F.adaptive_avg_pool2d(images.to(torch.float32) / 255, 8).flatten(1).numpy(),
            sharpness,
        ):
            scaled = StandardScaler().fit_transform(features)
            scores.append(linear_evaluation(scaled, labels, folds, "diabetic", False, classes)["qwk"]["mean"])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        plan = StratifiedKFold(5, shuffle=True, random_state=0)
        told = cross_val_predict(model, sharpness, cut, cv=plan, method="predict_proba")[:, 1]
        columns = " | ".join(f"{score:.2f}" for score in (*scores, roc_auc_score(cut, told)))
        print(f"| {name} | {different} | {columns} |", flush=True)


if __name__ == "__main__":
    main()
