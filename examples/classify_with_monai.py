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

import sys

import torch
from ignite.metrics import Accuracy
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import StatsHandler, ValidationHandler, from_engine
from monai.transforms import Compose, Lambdad, RandFlipd, RandZoomd
from monai.utils import set_determinism

from conrec_monai import load_encoder, load_preprocessing
from conrec_monai.data import load_datalist
from conrec_monai.evaluation import complete_groups, split_parts
from conrec_monai.networks.nets import EncoderClassifier


def main(checkpoint: str, dataset: str, epochs: int = 5) -> float:
    """Trains on 4 of 5 parts of the data; the accuracy on the other one."""
    set_determinism(0)
    items = load_datalist(dataset)  # {"image": path, "label": int, ...}: whatever MONAI's Dataset takes
    labels = [item["label"] for item in items]
    groups = complete_groups([item["group"] for item in items])  # patients stay on one side
    parts = split_parts(labels, groups, [item["split"] for item in items], fold=None)
    classes = max(labels) + 1

    prepare = Lambdad("image", load_preprocessing(checkpoint))  # path -> float32 CHW in [0, 1], as the encoder saw it
    augment = [RandFlipd("image", prob=0.5, spatial_axis=1), RandZoomd("image", prob=0.5, min_zoom=0.85, max_zoom=1.15)]
    loaders = {}
    for part, transforms in (("train", [prepare, *augment]), ("validation", [prepare])):
        chosen = [{"image": items[i]["image"], "label": labels[i]} for i in range(len(items)) if parts[i] == part]
        # augmented pictures keep the size of the encoder's images
        loaders[part] = DataLoader(Dataset(chosen, Compose(transforms)), batch_size=16, shuffle=part == "train")

    network = EncoderClassifier(load_encoder(checkpoint), classes)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loaders["validation"],
        network=network,
        decollate=False,
        key_val_metric={"accuracy": Accuracy(output_transform=lambda batch: (batch["pred"], batch["label"]))},
    )
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
            ValidationHandler(1, evaluator),
            StatsHandler(tag_name="loss", output_transform=from_engine("loss", first=True)),
        ],
    )
    trainer.run()
    print(f"accuracy on {len(loaders['validation'].dataset)} other images: {evaluator.state.metrics['accuracy']:.3f}")
    return float(evaluator.state.metrics["accuracy"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:4]))
