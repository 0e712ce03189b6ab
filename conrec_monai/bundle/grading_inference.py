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

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from conrec_monai.bundle.grading import image_groups
from conrec_monai.bundle.inference import checked_preprocessing, plain_network, plain_state_dict
from conrec_monai.bundle.training import check_output_dir, checked_datalist, checked_device, decode
from conrec_monai.data import CachedImages, Datalist, FitImage, image_files
from conrec_monai.evaluation import (
    Predictions,
    bootstrap,
    graded,
    interval,
    metric_names,
    score,
)
from conrec_monai.evaluation.evaluate import plain_values
from conrec_monai.handlers.health import has_attention
from conrec_monai.handlers.metrics_writer import replaced
from conrec_monai.networks.nets import GradingNet
from conrec_monai.networks.utils import load_model, read_checkpoint
from conrec_monai.version import __version__

__all__ = ["Grader", "check_grading_inference", "evaluate_grader", "grading_files", "load_grader"]


class Grader(NamedTuple):
    """A grading network in evaluation mode, and what belongs to it.

    Attributes:
        network: from images BCHW to probabilities B[K].
        fitting: what brings an image to the network's size.
        classes: name of each grade.
        ordinal: whether they are ordered.
        about: of its training, plain values; empty for a plain state dictionary.
        seen: sorted hashes of the images that it was trained on with labels; None where that is not known.
        pretrained: the same of those that its encoder was pretrained on without labels.
    """

    network: GradingNet
    fitting: FitImage
    classes: list[str]
    ordinal: bool
    about: dict[str, Any]
    seen: Tensor | None
    pretrained: Tensor | None


def load_grader(
    checkpoint: str | os.PathLike,
    architecture: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    classes: Sequence[str],
) -> Grader:
    """A grading network, ready to be used.

    Args:
        checkpoint: ``model.pt`` of a fine-tuning, which brings all the rest; or a plain state dictionary, such as the
            ``models/model.pt`` of a MONAI bundle.
        architecture: the ``config`` of a :class:`conrec_monai.networks.nets.GradingNet`, for a plain state dictionary.
        preprocessing: ``image_size``, ``resize`` and ``field_of_view``, for a plain state dictionary.
        classes: name of each grade, for a plain state dictionary; they are taken for ordered ones, unless the task is
            "categorical".

    Raises:
        FileNotFoundError, ValueError: when the file cannot be read or does not fit.
    """
    if not isinstance(checkpoint, str | os.PathLike) or not os.fspath(checkpoint):
        raise ValueError(f"checkpoint must be a path, got {checkpoint!r}.")
    state_dict = plain_state_dict(checkpoint)
    about: dict[str, Any] = {}
    seen, pretrained = None, None
    if state_dict is None:
        content = read_checkpoint(checkpoint)
        grading = content.get("grading") or {}
        if content["kind"] != "GradingNet" or grading.get("validation") is None:
            if content["kind"] == "GradingNet":
                raise ValueError(f"{checkpoint} is not calibrated, expected the model.pt that ends a fine-tuning.")
            raise ValueError(
                f"{checkpoint} holds a {content['kind']}, expected the model.pt of a fine-tuning: an encoder grades"
                " nothing before train.json has trained it on grades."
            )
        network: Any = load_model(checkpoint)
        preprocessing, classes, ordinal = content["preprocessing"], grading["classes"], grading["ordinal"]
        about = {"epoch": grading["epoch"], "validation": grading["validation"], "settings": grading["settings"]}
        seen, pretrained = grading["image_hashes"], (content.get("pretraining") or {}).get("image_hashes")
    else:
        network = plain_network("GradingNet", architecture, preprocessing, state_dict, checkpoint)
        ordinal = network.task != "categorical"
    if len(classes) != network.num_classes:
        raise ValueError(f"classes must name {network.num_classes} grades, got {list(classes)}.")
    fitting = FitImage(*checked_preprocessing({"resize": "squash", **preprocessing}, network.encoder.divisor))
    return Grader(network, fitting, [str(name) for name in classes], bool(ordinal), about, seen, pretrained)


def grading_files(dataset_dir: Any) -> list[tuple[str, Path]]:
    """:func:`conrec_monai.data.image_files` of what a user typed.

    Raises:
        FileNotFoundError, ValueError: see there; and for another type, of it or of an entry.
    """
    if not isinstance(dataset_dir, str | os.PathLike | list | tuple) or not dataset_dir:
        raise ValueError(f"dataset_dir must be a folder, a file or a list of files, got {dataset_dir!r}.")
    return image_files(dataset_dir)


def check_grading_inference(
    grader: Grader,
    dataset_dir: Any,
    output_dir: str | os.PathLike,
    attention_maps: Any,
    device: torch.device | str,
) -> None:
    """Checks what an inference needs before any work starts.

    Args:
        grader: that grades.
        dataset_dir: of the images; the output must not be in it, or its pictures would be graded the next time.
        output_dir: folder to write to; created.
        attention_maps: whether attention maps are written; None where the encoder pools by attention.
        device: of the network.

    Raises:
        ValueError: naming the key, what was found and what was expected.
    """
    if attention_maps is not None and not isinstance(attention_maps, bool):
        raise ValueError(f"attention_maps must be True, False or null, got {attention_maps!r}.")
    if attention_maps and not has_attention(grader.network.encoder):
        raise ValueError("attention_maps needs an encoder that pools by attention; this one does not.")
    checked_device(device)
    if isinstance(dataset_dir, str | os.PathLike) and isinstance(output_dir, str | os.PathLike):
        source = Path(dataset_dir).expanduser().resolve()
        if source.is_dir() and Path(output_dir).expanduser().resolve().is_relative_to(source):
            raise ValueError(
                f"inference_dir {output_dir} lies in dataset_dir {dataset_dir}: its pictures would be taken for"
                " photographs the next time; name another output_dir."
            )
    check_output_dir(output_dir, "inference_dir")


def evaluate_grader(
    checkpoint: str | os.PathLike,
    dataset_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    architecture: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    classes: Sequence[str],
    section: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    batch_size: int = 64,
    num_workers: int = 2,
    group_duplicates: bool = True,
    device: torch.device | str = "cpu",
    on_error: str = "raise",
    **keys: str | None,
) -> dict[str, Any]:
    """Scores a grading network on graded images that it has not learned from; ``metrics.json``, ``predictions.csv``.

    Of an official split the test part is scored. Images that its training has learned from (its validation part
    included; by the content of the files) are left out and counted, and all of their groups: other images of their
    patients, and their duplicates. Another encoding of such an image is recognized as a duplicate where that image is
    in the data set too. Intervals are those of :func:`conrec_monai.evaluation.interval`, by a bootstrap over groups.

    Args:
        checkpoint, architecture, preprocessing, classes: see :func:`load_grader`.
        dataset_dir, section, on_error, **keys: see :func:`conrec_monai.data.load_datalist`.
        output_dir: folder of the results; created.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        batch_size: images per forward pass.
        num_workers: threads that decode.
        group_duplicates: find duplicates.
        device: of the network.

    Returns:
        The content of ``metrics.json``: ``{"schema", "dataset", "checkpoint", "images", "left_out", "statements",
        "metrics", "confusion", "classes", "model", "seed", "versions"}``; ``confusion[i][j]`` images of grade i were
        given grade j.

    Raises:
        ValueError, OSError: when an input cannot be used; before any image is read where that can be known.
    """
    for name, value, low in (
        ("replicates", replicates, 2),
        ("seed", seed, 0),
        ("batch_size", batch_size, 1),
        ("num_workers", num_workers, 1),
    ):
        if type(value) is not int or value < low:
            raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}.")
    device = checked_device(device)
    grader = load_grader(checkpoint, architecture, preprocessing, classes)
    if not isinstance(group_duplicates, bool):
        raise ValueError(f"group_duplicates must be True or False, got {group_duplicates!r}.")
    asked_for = checked_datalist(dataset_dir, section, on_error, **keys)
    # All of it: patients of what the network has learned from may be in another section, which may have its own faults.
    data = asked_for if section is None else checked_datalist(dataset_dir, None, "skip", **keys)
    data = Datalist([item for item in data if item["label"] is not None], data.info, data.skipped)
    splits = [item["split"] for item in data]
    official = section is None and "test" in splits and bool({"train", "training"} & set(splits))
    chosen = "test" if official else section
    wanted = {item["id"] for item in data if chosen is None or item["split"] == chosen}
    if not wanted:
        raise ValueError(f"{dataset_dir} holds no image with a label{f' in section {section}' if section else ''}.")
    used = {item["label"] for item in data if item["id"] in wanted}
    places = _places(data, used, grader.classes, dataset_dir)
    output = check_output_dir(output_dir, "evaluation_dir")
    fitting = grader.fitting
    config: Any = grader.network.encoder.config
    images = CachedImages(
        data,
        fitting.size,
        fitting.resize,
        config["in_channels"],
        num_workers,
        on_error=on_error if section is None else "skip",
        field_of_view=fitting.field_of_view,
    )
    for name in ("skipped", "unsure"):  # of an earlier evaluation
        (output / f"{name}.csv").unlink(missing_ok=True)
    decode(output, images)
    lost = [entry for entry in images.skipped if entry["id"] in wanted]
    if lost and on_error == "raise":
        raise ValueError(f"{len(lost)} of {len(wanted)} images cannot be loaded, the first: {lost[0]['reason']}")
    groups, _ = image_groups(images, group_duplicates)
    known = np.zeros(len(images), dtype=bool) if grader.seen is None else torch.isin(images.hashes, grader.seen).numpy()
    related = known if groups is None else np.isin(groups, groups[known])
    asked = np.array([name in wanted for name in images.ids])
    kept = np.flatnonzero(asked & ~related)
    if not len(kept):
        place = f"section {section} of {dataset_dir}" if section else dataset_dir
        raise ValueError(f"the network has learned from all {asked.sum()} images of {place}, or their patients.")
    network = grader.network.to(device)
    parts = []
    with torch.inference_mode():
        for index in np.array_split(kept, -(-len(kept) // batch_size)):
            parts.append(network(images.gather(index).to(device).float() / 255).cpu())
    probabilities = torch.cat(parts).double().numpy()
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = np.array(places)[images.labels.numpy()]
    said = graded(kept, probabilities, network.task)
    predictions, count = Predictions([said]), len(grader.classes)
    ordinal = grader.ordinal
    scores = score(labels, predictions, ordinal, count)
    drawn = bootstrap(labels, predictions, groups, ordinal, count, replicates, seed)
    metrics: dict[str, dict[str, Any]] = plain_values(
        {
            name: {
                "value": scores[name]["mean"],
                "interval": interval(name, scores[name]["mean"], drawn[name]),  # type: ignore[arg-type]
            }
            for name in metric_names(ordinal, count)
        }
    )
    confusion = np.zeros((count, count), dtype=int)
    np.add.at(confusion, (labels[kept], said.predicted), 1)
    with replaced(output / "predictions.csv") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "grade", *(f"p_{i}" for i in range(count))])
        for row, i in enumerate(kept):
            values = [f"{p:.4f}" for p in probabilities[row]]
            writer.writerow([images.ids[i], labels[i], said.predicted[row], *values])
    statements = [f"{len(kept)} images{' of the official test split' if official else ''} were scored."]
    for count_of, what in (
        (int((asked & known).sum()), "that the network has learned from, with their labels"),
        (int((asked & related & ~known).sum()), "of the same patients as those, or duplicates of them"),
    ):
        if count_of:
            statements.append(f"Left out: {count_of} images {what}.")
    if len(np.unique(said.predicted)) == 1:
        statements.append(f"All images were given the grade {grader.classes[said.predicted[0]]}: it tells none apart.")
    if grader.seen is None:
        statements.append("Which images the network has learned from is not known: they may be among those scored.")
    if grader.pretrained is not None:
        transductive = int(torch.isin(images.hashes[torch.from_numpy(kept)], grader.pretrained).sum())
        if transductive:
            statements.append(f"Transductive: the encoder was pretrained on {transductive} of them, without labels.")
    result = {
        "schema": 1,
        "dataset": {"path": str(dataset_dir), "section": section, "name": data.info.name},
        "checkpoint": str(checkpoint),
        "images": len(kept),
        "left_out": {
            "learned_from": int((asked & known).sum()),
            "related": int((asked & related & ~known).sum()),
            "unreadable": len(lost) + len(asked_for.skipped),
        },
        "statements": statements,
        "metrics": metrics,
        "confusion": confusion.tolist(),
        "classes": grader.classes,
        "model": grader.about,
        "seed": seed,
        "versions": {"conrec_monai": __version__, "torch": torch.__version__},
    }
    path = output / "metrics.json"
    with replaced(path) as file:
        file.write(json.dumps(result, indent=1, allow_nan=False) + "\n")
    lines = []
    for name, entry in metrics.items():
        value, bounds = entry["value"], entry["interval"]
        if value is not None:
            shown = "no interval" if None in bounds else f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"
            lines.append(f"{name}: {value:.3f} {shown}")
    print("\n".join([*lines, *(f"- {statement}" for statement in statements)]))
    print(f"Written to {path} and {output / 'predictions.csv'}")
    return result


def _places(data: Datalist, used: set[int], classes: Sequence[str], dataset_dir: str | os.PathLike) -> list[int]:
    """The grade of the network for each label of a data set, by its name: one that the network knows or, where none of
    these is a number, the number of a grade. That of a label which is not used may be -1."""
    names = data.info.class_names
    if names is None:
        names = [str(i) for i in range(1 + max(item["label"] for item in data))]
    known = {name.strip().casefold(): place for place, name in enumerate(classes)}
    if not any(name.isdecimal() for name in known):  # else a number is a name, not a place
        known |= {str(place): place for place in range(len(classes))}
    wrong = [name for label, name in enumerate(names) if label in used and name.strip().casefold() not in known]
    if wrong:
        raise ValueError(
            f"{dataset_dir} has the grades {', '.join(wrong[:5])}, which the network does not know; it knows"
            f" {', '.join(f'{place} ({name})' for place, name in enumerate(classes))}."
        )
    return [known.get(name.strip().casefold(), -1) for name in names]
