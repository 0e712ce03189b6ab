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

"""Representations as features of a scikit-learn pipeline: python embed_with_sklearn.py ENCODER DATASET"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conrec_monai import load_encoder, load_preprocessing
from conrec_monai.bundle import guarded
from conrec_monai.data import load_datalist


class Embedding(TransformerMixin, BaseEstimator):
    """Image files -> representations [N, F]; it learns nothing, the encoder is frozen.

    Args:
        checkpoint: ``encoder.pt``.
        batch_size: images per forward pass.
    """

    def __init__(self, checkpoint: str, batch_size: int = 64) -> None:
        self.checkpoint, self.batch_size = checkpoint, batch_size

    def fit(self, paths, labels=None):
        return self

    def transform(self, paths) -> np.ndarray:
        encoder = load_encoder(self.checkpoint)
        read, fit = load_preprocessing(self.checkpoint).transforms  # path -> array -> float32 CHW in [0, 1]
        parts = []
        with torch.inference_mode():
            for start in range(0, len(paths), self.batch_size):
                images = torch.stack([fit(read(path)) for path in paths[start : start + self.batch_size]])
                parts.append(encoder(images).numpy())
        return np.concatenate(parts)


def labelled_files(dataset: str) -> list[dict]:
    """The items of a data set that have a label: {"image": path, "label": int, "group": ..., "split": ...}."""
    items = load_datalist(dataset)
    chosen = [item for item in items if item["label"] is not None]
    if len({item["label"] for item in chosen}) < 2:
        raise ValueError(f"{dataset}: {len(chosen)} of {len(items)} images have a label; 2 classes are needed.")
    if any(isinstance(item["image"], np.ndarray) or "frame" in item for item in chosen):
        raise ValueError(f"{dataset}: this example reads files of one picture each, no arrays and no frames.")
    if len(chosen) < len(items):
        print(f"{len(items) - len(chosen)} of {len(items)} images have no label and are left out")
    return chosen


def main(checkpoint: str, dataset: str) -> float:
    """Mean balanced accuracy of a logistic regression on frozen representations, over 5 folds."""
    items = labelled_files(dataset)
    paths, labels = [item["image"] for item in items], [item["label"] for item in items]
    features = Embedding(checkpoint).fit_transform(paths)  # once: the folds do not change it
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=10_000, class_weight="balanced"))
    groups = [item["group"] or item["id"] for item in items]  # patients stay on one side
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    scores = cross_val_score(classifier, features, labels, groups=groups, cv=folds, scoring="balanced_accuracy")
    print(f"balanced accuracy, 5 folds: {scores.mean():.3f} (+- {scores.std():.3f})")
    return float(scores.mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", metavar="ENCODER", help="encoder.pt of a pretraining")
    parser.add_argument("dataset", metavar="DATASET", help="photographs in class folders, or a table of them")
    guarded(main, **vars(parser.parse_args()))  # a mistake ends in one line
