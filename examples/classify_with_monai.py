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

"""The encoder in a classification pipeline of MONAI: python classify_with_monai.py ENCODER DATASET [EPOCHS]"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from ignite.metrics import Accuracy
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import StatsHandler, ValidationHandler, from_engine
from monai.transforms import Compose, RandFlipd, RandZoomd
from monai.utils import set_determinism

from conrec_monai import load_encoder, load_preprocessing
from conrec_monai.bundle import guarded
from conrec_monai.data import load_datalist
from conrec_monai.evaluation import complete_groups, split_parts
from conrec_monai.networks.nets import EncoderClassifier


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


def main(checkpoint: str, dataset: str, epochs: int = 5) -> float:
    """Trains on one part of the data, validates on another after each epoch; the accuracy on a third."""
    set_determinism(0)
    items = labelled_files(dataset)
    labels = [item["label"] for item in items]
    groups = complete_groups([item["group"] for item in items])  # patients stay on one side
    # the test part is the official one, or one of 5 folds
    parts = split_parts(labels, groups, [item["split"] for item in items], fold=0)
    classes = max(labels) + 1

    read, fit = load_preprocessing(checkpoint).transforms  # path -> array -> float32 CHW, as the encoder saw it
    # augmented pictures keep the size of the encoder's images
    augment = [RandFlipd("image", prob=0.5, spatial_axis=1), RandZoomd("image", prob=0.5, min_zoom=0.85, max_zoom=1.15)]
    loaders = {}
    for part, transforms in (("train", augment), ("validation", []), ("test", [])):
        chosen = [i for i in range(len(items)) if parts[i] == part]
        # read once, in memory; of many images put Lambdad("image", load_preprocessing(checkpoint)) before the others
        data = [{"image": fit(read(items[i]["image"])), "label": labels[i]} for i in chosen]
        loaders[part] = DataLoader(Dataset(data, Compose(transforms)), batch_size=16, shuffle=part == "train")

    network = EncoderClassifier(load_encoder(checkpoint), classes)
    evaluators = {
        part: SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=loaders[part],
            network=network,
            decollate=False,
            key_val_metric={"accuracy": Accuracy(output_transform=lambda batch: (batch["pred"], batch["label"]))},
        )
        for part in ("validation", "test")
    }
    StatsHandler(output_transform=lambda output: None).attach(evaluators["validation"])  # prints its accuracy
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loaders["train"],
        network=network,
        optimizer=torch.optim.AdamW(
            [{"params": network.encoder.parameters(), "lr": 1e-4}, {"params": network.head.parameters(), "lr": 1e-3}]
        ),
        loss_function=torch.nn.CrossEntropyLoss(),
        train_handlers=[
            ValidationHandler(1, evaluators["validation"]),
            StatsHandler(tag_name="loss", output_transform=from_engine("loss", first=True)),
        ],
    )
    trainer.run()
    evaluators["test"].run()
    accuracy = float(evaluators["test"].state.metrics["accuracy"])
    print(f"accuracy on {len(loaders['test'].dataset)} test images: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", metavar="ENCODER", help="encoder.pt of a pretraining")
    parser.add_argument("dataset", metavar="DATASET", help="photographs in class folders, or a table of them")
    parser.add_argument("epochs", metavar="EPOCHS", nargs="?", type=int, default=5)
    guarded(main, **vars(parser.parse_args()))  # a mistake ends in one line
