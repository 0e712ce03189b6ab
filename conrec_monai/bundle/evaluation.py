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

import json
import os
from typing import Any

import torch

from conrec_monai.bundle.training import check_output_dir, checked_datalist, checked_device, decode
from conrec_monai.data import CachedImages
from conrec_monai.evaluation import central_part, evaluate, format_table, untrained_encoders
from conrec_monai.networks.utils import load_encoder, read_checkpoint, untrained_like

__all__ = ["evaluate_checkpoint"]


def evaluate_checkpoint(
    checkpoint: str | os.PathLike,
    dataset_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    section: str | None = None,
    n_folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    untrained_seeds: tuple[int, ...] = (0, 1, 2),
    center_crop: float | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
    device: torch.device | str = "cpu",
    on_error: str = "raise",
    **keys: str | None,
) -> dict[str, Any]:
    """Scores the frozen encoder of a checkpoint on labeled images, prints the table, writes ``metrics.json``.

    Beside it stand encoders of the same architecture with random weights and the shortcut baseline, on the same folds;
    see :func:`conrec_monai.evaluation.evaluate`.

    Args:
        checkpoint: ``encoder.pt`` or ``checkpoint.pt``.
        dataset_dir: see :func:`conrec_monai.data.load_datalist`.
        output_dir: folder of ``metrics.json``; created.
        section: split to use; all by default.
        n_folds: of the cross-validation; a data set with official "train" and "test" splits is not cross-validated.
        repeats: of the cross-validation.
        seed: of the folds.
        untrained_seeds: of the encoders with random weights.
        center_crop: central part of the image that is seen; by default 0.875 for Oxford Flowers and Stanford Dogs, as
            published, and all of it for any other data set.
        batch_size: images per forward pass.
        num_workers: threads that decode.
        device: of the encoders.
        on_error: see :func:`conrec_monai.data.load_datalist`; what is left out is listed in ``skipped.csv``.
        **keys: ``image_key``, ``label_key``, ``group_key``, ``split_key``.

    Raises:
        ValueError, OSError: when an input cannot be used; before any image is read where that can be known.
    """
    for name, value, low in (
        ("n_folds", n_folds, 2),
        ("repeats", repeats, 1),
        ("seed", seed, 0),
        ("batch_size", batch_size, 1),
        ("num_workers", num_workers, 1),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}.")
    if seed >= 2**32:
        raise ValueError(f"seed must be below {2**32}, got {seed}.")
    if not isinstance(untrained_seeds, list | tuple) or not all(
        type(s) is int and 0 <= s < 2**32 for s in untrained_seeds
    ):
        raise ValueError(
            f"untrained_seeds must be a list of whole numbers from 0 to 2**32 - 1, got {untrained_seeds!r}."
        )
    if len(set(untrained_seeds)) < len(untrained_seeds):
        raise ValueError(f"untrained_seeds must be different numbers, got {untrained_seeds!r}.")
    if not isinstance(checkpoint, str | os.PathLike):
        raise ValueError(f"checkpoint must be a path, got {checkpoint!r}.")
    device = checked_device(device)
    if center_crop is not None and not (type(center_crop) in (int, float) and 0 < center_crop <= 1):
        raise ValueError(f"center_crop must be in (0, 1], got {center_crop!r}.")
    content = read_checkpoint(checkpoint)
    encoder = load_encoder(checkpoint)
    preprocessing = content["preprocessing"]
    datalist = checked_datalist(dataset_dir, section, on_error, **keys)
    labels = [-1 if item["label"] is None else item["label"] for item in datalist]
    if max(labels) < 0:
        raise ValueError(f"{dataset_dir} holds {len(datalist)} images without labels; an evaluation needs labels.")
    path = check_output_dir(output_dir) / "metrics.json"
    ordinal = datalist.info.ordinal
    if center_crop is None:
        center_crop = datalist.info.center_crop
    size = preprocessing["image_size"]
    # Brought in so that the central part has the size that the encoder was trained on.
    whole = CachedImages(
        datalist,
        round(size / center_crop),
        preprocessing["resize"],
        encoder.config["in_channels"],
        num_workers,
        on_error=on_error,
    )
    decode(output_dir, whole)
    images = central_part(whole.images, size)
    labels, groups = whole.labels.tolist(), whole.groups
    splits = [item["split"] for item in whole.data]
    encoders: dict[str, torch.nn.Module] = {"pretrained": encoder}
    encoders.update(untrained_encoders(lambda: untrained_like(encoder), untrained_seeds))
    result = evaluate(
        encoders,
        images,
        labels,
        ordinal=ordinal,
        class_names=datalist.info.class_names,
        groups=groups,
        splits=splits if all(s is not None for s in splits) else None,
        n_folds=n_folds,
        repeats=repeats,
        seed=seed,
        batch_size=batch_size,
        device=device,
    )
    result = {
        "checkpoint": str(checkpoint),
        "dataset": str(dataset_dir),
        "section": section,
        "center_crop": center_crop,
        **result,
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(format_table(result))
    print(f"\nWritten to {path}")
    return result
