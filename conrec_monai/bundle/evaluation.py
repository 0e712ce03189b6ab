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

import dataclasses
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conrec_monai.bundle.training import check_output_dir, checked_datalist, checked_device, decode
from conrec_monai.data import CachedImages, Datalist, write_manifest
from conrec_monai.engines import bfloat16_is_fast
from conrec_monai.evaluation import (
    FINE_TUNED,
    PROTOCOLS,
    Candidate,
    FoldPlan,
    PredictionStore,
    central_part,
    check_folds,
    complete_groups,
    duplicate_groups,
    evaluate,
    format_table,
    merge_groups,
    paper_settings,
    plan_folds,
    untrained_encoders,
)
from conrec_monai.evaluation.duplicates import linked
from conrec_monai.evaluation.table import TITLES
from conrec_monai.networks.nets import DenseNetEncoder
from conrec_monai.networks.utils import load_encoder, read_checkpoint, untrained_like
from conrec_monai.transforms.field_of_view import FIELDS_OF_VIEW
from conrec_monai.version import __version__

__all__ = ["evaluate_checkpoints"]

DUPLICATES_SIZE = 64  # pixels at which duplicates are searched for
DEFAULT_PROTOCOLS = ("linear", "levels", "knn")
KEYS = ("image_key", "label_key", "group_key", "split_key")
TEST = "test_"  # begins the names of those of the data set to test on
# Of the fine-tuning, what a user may change.
TUNABLE = ("optimizer", "learning_rate", "schedule", "weight_decay", "batch_size", "epochs", "augmentation")


def evaluate_checkpoints(
    checkpoint: str | os.PathLike | Sequence[str | os.PathLike] | Mapping[str, str | os.PathLike],
    dataset_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    section: str | None = None,
    test_dir: str | os.PathLike | None = None,
    test_section: str | None = None,
    protocols: Sequence[str] = DEFAULT_PROTOCOLS,
    fractions: Sequence[float] = (1.0,),
    fraction_repeats: int = 3,
    fine_tuning: Mapping[str, Any] | None = None,
    densenet: str | None = None,
    untrained_seeds: Sequence[int] = (0, 1, 2),
    field_of_view: str | None = None,
    center_crop: float | None = None,
    group_duplicates: bool = True,
    folds: str | os.PathLike | None = None,
    n_folds: int = 5,
    repeats: int = 1,
    replicates: int = 1000,
    seed: int = 0,
    batch_size: int = 64,
    num_workers: int = 2,
    device: torch.device | str = "cpu",
    on_error: str = "raise",
    command: str | None = None,
    **keys: str | None,
) -> dict[str, Any]:
    """Evaluates the encoders of checkpoints on labeled images: prints tables, writes ``metrics.json``.

    Both ``python -m conrec_monai evaluate`` and the bundle's ``evaluate.json`` are this function. Beside the encoders
    stand ones of the same architecture with random weights and two baselines that see no content; all on the same
    folds, which are written down (``folds.json``). Near and exact duplicates are kept on one side of a fold. The
    predictions are kept (``predictions/``), so that the same command goes on after an interruption.
    See :func:`conrec_monai.evaluation.evaluate` for the protocols, docs/evaluation.md for the result.

    Args:
        checkpoint: ``encoder.pt`` or ``checkpoint.pt``; several in a list (each as PATH or NAME=PATH) or by name.
        dataset_dir: see :func:`conrec_monai.data.load_datalist`.
        output_dir: folder of the results; created.
        section: split to use; all by default.
        test_dir: another data set: everything is fitted on ``dataset_dir`` and scored on this one.
        test_section: split of ``test_dir`` to use; all by default.
        protocols: some of "linear", "levels", "knn", "frozen_head", "fine_tune", "supervised".
        fractions: shares of the training labels, for label-efficiency curves.
        fraction_repeats: draws of each share below 1, per fold.
        fine_tuning: what differs from the publication's settings in the last three protocols: some of optimizer,
            learning_rate, schedule, weight_decay, batch_size, epochs, augmentation.
        densenet: adds a DenseNet121: "random", "imagenet" (downloaded once) or the file of its weights.
        untrained_seeds: of the encoders with random weights.
        field_of_view: None as each checkpoint was trained, or "normalize" or "local_contrast"; see
            :class:`conrec_monai.transforms.NormalizeFieldOfView` and
            :class:`conrec_monai.transforms.LocalContrast`.
        center_crop: central part of the image that is seen; by default 0.875 for Oxford Flowers and Stanford Dogs, as
            published, and all of it for any other data set.
        group_duplicates: find duplicates and keep them on one side of a fold.
        folds: ``folds.json`` of another evaluation of the same images, to be used again.
        n_folds: of the cross-validation; a data set with official "train" and "test" splits is not cross-validated.
        repeats: of the cross-validation.
        replicates: of the bootstrap.
        seed: of everything that is random.
        batch_size: images per forward pass.
        num_workers: threads that decode.
        device: of the encoders.
        on_error: see :func:`conrec_monai.data.load_datalist`; what is left out is listed in ``skipped.csv``.
        command: the command line, to be written down; by default that of a bundle, or null.
        **keys: columns: ``image_key``, ``label_key``, ``group_key``, ``split_key`` of ``dataset_dir``, and with "test_"
            before these names those of ``test_dir``.

    Returns:
        The content of ``metrics.json``.

    Raises:
        ValueError, OSError: when an input cannot be used; before any image is read where that can be known.
    """
    _check_numbers(n_folds, repeats, replicates, seed, batch_size, num_workers, fraction_repeats, untrained_seeds)
    protocols = _list("protocols", protocols, str)
    fractions = _list("fractions", fractions, float)
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocols must be some of {', '.join(PROTOCOLS)}, got {protocol!r}.")
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise ValueError(f"fractions must be in (0, 1], got {fraction!r}.")
    if not protocols or not fractions or len(set(protocols)) < len(protocols) or len(set(fractions)) < len(fractions):
        raise ValueError("protocols and fractions must be lists of at least one, each named once.")
    if center_crop is not None and not (type(center_crop) in (int, float) and 0 < center_crop <= 1):
        raise ValueError(f"center_crop must be in (0, 1], got {center_crop!r}.")
    if field_of_view not in FIELDS_OF_VIEW:
        raise ValueError(f"field_of_view must be None, normalize or local_contrast, got {field_of_view!r}.")
    if not isinstance(group_duplicates, bool):
        raise ValueError(f"group_duplicates must be True or False, got {group_duplicates!r}.")
    train_keys, test_keys = _keys(keys, test_dir)
    device = checked_device(device)
    changes = _changes(fine_tuning)

    datalist = checked_datalist(dataset_dir, section, on_error, **train_keys)
    _check_labels(datalist, dataset_dir)
    test = None if test_dir is None else _test_datalist(test_dir, test_section, on_error, test_keys)
    classes, places = _classes(datalist, test, dataset_dir, test_dir)
    test_classes = _test_names(classes, places, test)
    if folds is not None and test is None:
        FoldPlan.load(folds, [item["id"] for item in datalist if item["label"] is not None])
    elif test is None:
        _check_folds_fit(datalist, n_folds, repeats, seed)
    loaded = _load(checkpoint, densenet)
    settings = {
        protocol: dataclasses.replace(paper_settings(protocol, datalist.info.source, datalist.info.ordinal), **changes)
        for protocol in protocols
        if protocol in FINE_TUNED
    }
    output = check_output_dir(output_dir)

    crop = datalist.info.center_crop if center_crop is None else center_crop
    decoded = _Decoded(datalist, test, places, crop, num_workers, on_error, field_of_view, output)
    candidates = _candidates(loaded, decoded, untrained_seeds, protocols)
    statements = [*_mapping_statement(classes, test_classes, test_dir), *_unsure(decoded, output)]
    labelled = np.flatnonzero(decoded.labels >= 0)
    labels, ids = decoded.labels[labelled], [decoded.ids[i] for i in labelled]
    chosen = {id(c.images): c.images[torch.from_numpy(labelled)] for c in candidates}
    for candidate in candidates:
        candidate.images = chosen[id(candidate.images)]
    declared = [decoded.groups[i] for i in labelled]
    found = decoded.duplicates(labelled) if group_duplicates else []
    groups = complete_groups(merge_groups(declared, found))
    splits = [decoded.splits[i] for i in labelled]
    if folds is not None:
        plan = FoldPlan.load(folds, ids)
        _check_groups(plan, groups, folds)
    else:
        plan = plan_folds(labels, groups, splits, n_folds, repeats, seed)
    plan.save(output / "folds.json", ids)
    statements += _data_statements(plan, labels, found, group_duplicates)
    statements += _patient_statements(datalist, dataset_dir, test, test_dir)
    if {field_of_view, *(entry["preprocessing"].get("field_of_view") for entry in loaded)} - {None}:
        statements.append(
            "The shape of a normalized field of view tells nothing: the shortcut baseline knows color alone."
        )
    for candidate in candidates:
        statements += _pretraining_statements(candidate.name, candidate.about, decoded, plan, labelled)

    num_classes = len(classes)
    result = evaluate(
        candidates,
        labels,
        plan,
        ordinal=datalist.info.ordinal,
        num_classes=num_classes,
        groups=groups,
        protocols=protocols,
        fine_tuning=settings,
        fractions=fractions,
        fraction_repeats=fraction_repeats,
        replicates=replicates,
        seed=seed,
        batch_size=batch_size,
        device=device,
        amp=bfloat16_is_fast(device),
        store=PredictionStore(output / "predictions"),
    )
    statements += _one_class_statements(result["results"])
    counts = np.bincount(labels, minlength=num_classes).tolist()
    in_test = [split == "test" for split in splits]
    test_counts = np.bincount(labels[in_test], minlength=num_classes).tolist()
    result = {
        "schema": 2,
        "command": _bundle_command() if command is None else command,
        "dataset": {
            "path": str(dataset_dir),
            "section": section,
            "name": datalist.info.name,
            "source": datalist.info.source,
            "keys": train_keys,
            "test_path": None if test_dir is None else str(test_dir),
            "test_section": test_section,
            "test_keys": test_keys,
            "labelled": len(labels),
            "unlabelled": int((decoded.labels < 0).sum()),
            "groups": None if groups is None else len(np.unique(groups)),
            "duplicate_groups": len(found) if group_duplicates else None,
        },
        "classes": [
            {"name": name, "count": count, "test_name": other, "test_count": None if test is None else tested}
            for name, other, count, tested in zip(classes, test_classes, counts, test_counts, strict=True)
        ],
        "ordinal": datalist.info.ordinal,
        "folds": {
            "kind": plan.kind if test is None else "other data set",
            "n": plan.n,
            "repeats": plan.repeats,
            "seed": plan.seed,
            "left_out": plan.left_out,
            "file": "folds.json",
            "train": [len(train) for train, _ in plan.folds],
            "test": [len(part) for _, part in plan.folds],
        },
        "settings": {
            "protocols": list(protocols),
            "fractions": list(fractions),
            "fraction_repeats": fraction_repeats,
            "center_crop": crop,
            "field_of_view": field_of_view,
            "replicates": replicates,
            "seed": seed,
            "fine_tuning": {name: dataclasses.asdict(value) for name, value in settings.items()},
        },
        "statements": statements,
        **result,
        "machine": {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "device": str(device),
            "system": platform.system(),
        },
    }
    result["versions"]["conrec_monai"] = __version__
    (output / "metrics.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(format_table(result))
    print(f"\nWritten to {output / 'metrics.json'}")
    return result


def _check_numbers(
    n_folds: Any,
    repeats: Any,
    replicates: Any,
    seed: Any,
    batch_size: Any,
    num_workers: Any,
    fraction_repeats: Any,
    untrained_seeds: Any,
) -> None:
    for name, value, low in (
        ("n_folds", n_folds, 2),
        ("repeats", repeats, 1),
        ("replicates", replicates, 100),
        ("seed", seed, 0),
        ("batch_size", batch_size, 1),
        ("num_workers", num_workers, 1),
        ("fraction_repeats", fraction_repeats, 1),
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


def _list(name: str, values: Any, kind: type) -> list[Any]:
    """A list, or one value of it."""
    if isinstance(values, kind) or kind is float and type(values) is int:
        values = [values]
    if not isinstance(values, list | tuple) or not all(
        isinstance(value, kind) or kind is float and type(value) is int for value in values
    ):
        what = "names" if kind is str else "numbers"
        raise ValueError(f"{name} must be a list of {what}, got {values!r}.")
    return list(values)


def _changes(fine_tuning: Any) -> dict[str, Any]:
    if fine_tuning is None:
        return {}
    if not isinstance(fine_tuning, Mapping):
        raise ValueError(f"fine_tuning must be a dictionary of some of {', '.join(TUNABLE)}, got {fine_tuning!r}.")
    for name in fine_tuning:
        if name not in TUNABLE:
            raise ValueError(f"fine_tuning must hold some of {', '.join(TUNABLE)}, got {name!r}.")
    # A wrong value is told now, whatever the protocol.
    dataclasses.replace(paper_settings("fine_tune", "aptos", True), **fine_tuning)
    return dict(fine_tuning)


def _check_labels(datalist: Datalist, path: Any) -> None:
    if all(item["label"] is None for item in datalist):
        raise ValueError(f"{path} holds {len(datalist)} images without labels; an evaluation needs labels.")


def _check_folds_fit(datalist: Datalist, n_folds: int, repeats: int, seed: int) -> None:
    """Makes folds of the labels alone: what is wrong with them is told before any image is read."""
    items = [item for item in datalist if item["label"] is not None]
    labels = np.array([item["label"] for item in items])
    groups = complete_groups([item["group"] for item in items])
    check_folds(labels, plan_folds(labels, groups, [item["split"] for item in items], n_folds, repeats, seed).folds)


def _keys(keys: Mapping[str, str | None], test_dir: Any) -> tuple[dict[str, str], dict[str, str]]:
    """The columns that are named, of both data sets."""
    for name, value in keys.items():
        if name.removeprefix(TEST) not in KEYS:
            raise ValueError(f"unexpected argument {name}.")
        if name.startswith(TEST) and value is not None and test_dir is None:
            raise ValueError(f"{name} is {value!r}, but there is no other data set to test on (test_dir).")
    given = {name: value for name, value in keys.items() if value is not None}
    train = {name: value for name, value in given.items() if name in KEYS}
    return train, {name.removeprefix(TEST): value for name, value in given.items() if name not in KEYS}


def _test_datalist(path: Any, section: str | None, on_error: str, keys: Mapping[str, str]) -> Datalist:
    try:
        return checked_datalist(path, section, on_error, **keys)
    except ValueError as error:  # its columns have other names here
        raise ValueError(re.sub(r"\b(image|label|group|split)_key\b", rf"{TEST}\g<0>", str(error))) from None


def _classes(train: Datalist, test: Datalist | None, train_path: Any, test_path: Any) -> tuple[list[str], list[int]]:
    """The names of the classes; and of each label of the data set to test on its place among them.

    Classes are matched by name. Where names of grades differ (or are numbers), they are matched by their order.
    """

    def names_of(datalist: Datalist, path: Any) -> list[str]:
        highest = max(item["label"] for item in datalist if item["label"] is not None)
        names = list(datalist.info.class_names or [str(i) for i in range(highest + 1)])
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{path} has several classes of the name {repeated[0]!r}; each needs one of its own.")
        return names

    names = names_of(train, train_path)
    if test is None:
        return names, []
    _check_labels(test, test_path)
    other, ordinal = names_of(test, test_path), train.info.ordinal
    if ordinal != test.info.ordinal:
        ordered, other_kind = ("grades", "classes without order")[:: 1 if ordinal else -1]
        raise ValueError(f"the labels of {train_path} are {ordered}, those of {test_path} are {other_kind}.")
    places = [names.index(name) if name in names else -1 for name in other]
    if -1 not in places and (not ordinal or places == sorted(places)):
        return names, places
    # By order, but no grade becomes another one that has its name. Of grades without names the highest may be missing:
    # in the images to test on, not in those to learn from.
    whole = len(other) == len(names) or test.info.class_names is None and len(other) < len(names)
    if ordinal and whole and all(place in (-1, i) for i, place in enumerate(places)):
        return names, list(range(len(other)))
    raise ValueError(
        f"the {len(other)} {'grades' if ordinal else 'classes'} of {test_path} ({', '.join(other[:12])}) do not match"
        f" the {len(names)} of {train_path} ({', '.join(names[:12])})."
    )


def _test_names(classes: Sequence[str], places: Sequence[int], test: Datalist | None) -> list[str | None]:
    """What the data set to test on calls each class; None where it has none of it."""
    names: list[str | None] = [None] * len(classes)
    for label, place in enumerate(places):
        names[place] = test.info.class_names[label] if test is not None and test.info.class_names else str(label)
    return names


def _mapping_statement(classes: Sequence[str], test_classes: Sequence[str | None], test_dir: Any) -> list[str]:
    """Says which grades of another data set were taken for which, where their names differ."""
    pairs = [(name, other) for name, other in zip(classes, test_classes, strict=True) if other is not None]
    if all(name == other for name, other in pairs):
        return []
    mapped = ", ".join(f"{other} for {name}" for name, other in pairs)
    return [f"The grades of {test_dir} have other names, and were matched by their order: {mapped}."]


def _load(checkpoint: Any, densenet: Any) -> list[dict[str, Any]]:
    """Reads the checkpoints: name, encoder, preprocessing and what is known of the pretraining."""
    if isinstance(checkpoint, Mapping):
        paths = dict(checkpoint)
    else:
        given = [checkpoint] if isinstance(checkpoint, str | os.PathLike) else checkpoint
        if not isinstance(given, list | tuple) or not given:
            raise ValueError(f"checkpoint must be a path, a list of paths or a dictionary of them, got {checkpoint!r}.")
        paths = {}
        for entry in given:
            if not isinstance(entry, str | os.PathLike):
                raise ValueError(f"checkpoint must be a path, got {entry!r}.")
            name, equals, path = os.fspath(entry).partition("=")
            if not equals or Path(entry).exists():
                name, path = _short_name(Path(entry), len(given)), os.fspath(entry)
            if name in paths:
                raise ValueError(f"two checkpoints are named {name!r}; name them as NAME=PATH.")
            paths[name] = path
    loaded = []
    for name, path in paths.items():
        if not isinstance(path, str | os.PathLike) or not isinstance(name, str) or not name.strip():
            raise ValueError(f"checkpoint must be a path, or paths by name, got {name!r}: {path!r}.")
        content = read_checkpoint(path)
        pretraining = content.get("pretraining") or {}
        graded = content.get("grading") or {}  # of a fine-tuning, whose labels count for more
        loaded.append(
            {
                "name": name,
                "kind": "checkpoint",
                "encoder": load_encoder(path),
                "preprocessing": content["preprocessing"],
                "images": graded.get("image_hashes", pretraining.get("image_hashes")),
                "about": {
                    "checkpoint": str(path),
                    "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
                    "trained_with_labels": content["kind"] in ("EncoderClassifier", "GradingNet"),
                    "pretraining": _without_images(pretraining) or None,
                },
            }
        )
    if densenet is not None:
        if not isinstance(densenet, str | os.PathLike):
            raise ValueError(f"densenet must be random, imagenet or the path of weights, got {densenet!r}.")
        channels = loaded[0]["encoder"].config["in_channels"]
        random = densenet == "random"
        loaded.append(
            {
                "name": "DenseNet121" if random else "DenseNet121, ImageNet",
                "kind": "random" if random else "imagenet",
                "encoder": DenseNetEncoder(channels, None if random else densenet),
                "preprocessing": loaded[0]["preprocessing"],
                "images": None,
                "about": {} if random else {"weights": str(densenet), "trained_with_labels": True},
            }
        )
    return loaded


def _short_name(path: Path, count: int) -> str:
    """ "pretrained" when it is alone; else its folder, which says which run it is of."""
    return "pretrained" if count == 1 else path.absolute().parent.name or path.stem


class _Decoded:
    """The images of both data sets, decoded once for each preprocessing that is asked for."""

    def __init__(
        self,
        train: Datalist,
        test: Datalist | None,
        places: list[int],
        crop: float,
        num_workers: int,
        on_error: str,
        field_of_view: str | None,
        output: Path,
    ) -> None:
        self.train, self.test, self.places, self.crop = train, test, places, crop
        self.num_workers, self.on_error, self.output = num_workers, on_error, output
        self.field_of_view = field_of_view
        self.sets: list[CachedImages] = []
        self._images: dict[tuple, torch.Tensor] = {}
        self.unsure: dict[str, dict[str, str]] = {}

    def images(self, encoder: torch.nn.Module, preprocessing: Mapping[str, Any]) -> tuple[torch.Tensor, str]:
        """uint8 NCHW of both data sets, the central part, as a checkpoint's preprocessing says; and that in words."""
        view = self.field_of_view or preprocessing.get("field_of_view")
        config: dict[str, Any] = encoder.config  # type: ignore[assignment]
        size, channels = preprocessing["image_size"], config["in_channels"]
        key = (size, preprocessing["resize"], channels, view)
        if key not in self._images:
            # Brought in so that the central part has the size that the encoder was trained on.
            whole = [
                CachedImages(
                    datalist,
                    round(size / self.crop),
                    preprocessing["resize"],
                    channels,
                    self.num_workers,
                    on_error=self.on_error,
                    field_of_view=view,
                )
                for datalist in (self.train, self.test)
                if datalist is not None
            ]
            decode(self.output, *whole)
            self.unsure.update({entry["image"] + entry["id"]: entry for part in whole for entry in part.unsure})
            if not self.sets:
                self.sets = whole
                self._collect(whole)
            elif [i for part in whole for i in part.ids] != [i for part in self.sets for i in part.ids]:
                raise ValueError("images that one checkpoint's size can be read at cannot be read at another's.")
            self._images[key] = torch.cat([central_part(part.images, size) for part in whole])
        normalized = f", {'normalized field of view' if view == 'normalize' else 'local contrast'}" if view else ""
        words = f"{size} px, {preprocessing['resize']}, {'gray' if channels == 1 else 'color'}{normalized}"
        return self._images[key], words

    def duplicates(self, chosen: np.ndarray) -> list[list[int]]:
        """Groups of duplicates among the images at these positions, as positions among them.

        The whole images are compared, those of each data set at one size, whatever the encoders take: groups and folds
        are those of the data. Arrays that are smaller keep their size, since enlarged they would seem to show what they
        do not; those of the other set are then compared with them at that size.
        """
        logging.getLogger("conrec_monai").info(f"searching {len(chosen)} images for duplicates")
        sizes = [duplicates_size(part.data) for part in self.sets]
        groups = duplicate_groups(*self._whole(sizes, chosen))
        if len(set(sizes)) > 1:
            groups += duplicate_groups(*self._whole([min(sizes)] * len(sizes), chosen))
        return linked(len(chosen), groups)

    def _whole(self, sizes: Sequence[int], chosen: np.ndarray) -> list[torch.Tensor]:
        """The images at these positions, a tensor for each data set."""
        parts, start = [], 0
        for part, size in zip(self.sets, sizes, strict=True):
            end = start + len(part)
            images = self._images.get((size, "squash", 3, None))
            if images is not None and round(size / self.crop) == size:  # an encoder takes just these
                images = images[start:end]
            else:
                again = CachedImages(part.data, size, "squash", 3, self.num_workers, on_error=self.on_error)
                if len(again) != len(part):
                    raise ValueError("images that could be read at one size cannot be read at another.")
                images = again.images
            parts.append(images[torch.from_numpy(chosen[(chosen >= start) & (chosen < end)] - start)])
            start = end
        return parts

    def _collect(self, parts: Sequence[CachedImages]) -> None:
        self.ids = [i for part in parts for i in part.ids]
        self.hashes = torch.cat([part.hashes for part in parts])
        self.groups = list(parts[0].groups)
        labels = [parts[0].labels]
        self.splits: list[str | None] = [item.get("split") for item in parts[0].data]
        if len(parts) == 2:
            self.ids = [f"train/{i}" for i in parts[0].ids] + [f"test/{i}" for i in parts[1].ids]
            # Numbers of the first data set; patients of two data sets are never the same one.
            labels.append(torch.tensor([-1 if i < 0 else self.places[i] for i in parts[1].labels.tolist()]))
            self.groups += [None if group is None else f"test/{group}" for group in parts[1].groups]
            self.splits = [*["train"] * len(parts[0]), *["test"] * len(parts[1])]
        self.labels = torch.cat(labels).numpy()


def duplicates_size(data: Iterable[Mapping[str, Any]]) -> int:
    """Side in pixels at which duplicates are searched for among these images: 64, or that of the smallest array."""
    arrays = (item["image"] for item in data if isinstance(item["image"], np.ndarray))
    return min([DUPLICATES_SIZE, *(min(array.shape[1:]) for array in arrays)])


def _candidates(
    loaded: Sequence[Mapping[str, Any]], decoded: _Decoded, untrained_seeds: Sequence[int], protocols: Sequence[str]
) -> list[Candidate]:
    prepared = [decoded.images(entry["encoder"], entry["preprocessing"]) for entry in loaded]
    several = len({words for _, words in prepared}) > 1
    candidates, untrained, random = [], [], []
    architectures: dict[tuple[str, str], tuple[torch.nn.Module, torch.Tensor]] = {}
    for entry, (images, words) in zip(loaded, prepared, strict=True):
        encoder, view = entry["encoder"], words if several else ""
        about = {
            **entry["about"],
            "architecture": _architecture(encoder),
            "parameters": sum(p.numel() for p in encoder.parameters()),
            "preprocessing": dict(entry["preprocessing"]),
            "images": entry["images"],
        }
        if entry["kind"] != "random":
            name, run = entry["name"], entry["name"].rpartition("@")
            candidates.append(Candidate(name, entry["kind"], encoder, images, about, view, run[0] or name))
        if entry["kind"] != "imagenet":
            architectures.setdefault((_architecture(encoder), view), (encoder, images))
    names = {architecture for architecture, _ in architectures}
    for (architecture, view), (encoder, images) in architectures.items():
        suffix = (f" {architecture}" if len(names) > 1 else "") + (f", {view}" if view else "")
        about = {"architecture": architecture, "parameters": sum(p.numel() for p in encoder.parameters())}

        def make(encoder: torch.nn.Module = encoder) -> torch.nn.Module:
            return untrained_like(encoder)

        for seed, network in untrained_encoders(make, untrained_seeds).items():
            name = f"untrained{suffix}"
            about_it = {**about, "seed": seed}
            untrained.append(Candidate(f"{name}, seed {seed}", "untrained", network, images, about_it, view, name))
        if "supervised" in protocols:
            random.append(Candidate(f"random{suffix}", "random", encoder, images, about, view))
    return [*candidates, *untrained, *random]


def _architecture(encoder: torch.nn.Module) -> str:
    config: dict[str, Any] = encoder.config  # type: ignore[assignment]
    if isinstance(encoder, DenseNetEncoder):
        return "DenseNet121"
    return f"U-net {'-'.join(map(str, config['features']))}, {config['pooling']} pooling"


def _unsure(decoded: _Decoded, output: Path) -> list[str]:
    """What is said of images without a retina; ``unsure.csv`` lists those of all checkpoints."""
    if not decoded.unsure:
        (output / "unsure.csv").unlink(missing_ok=True)
        return []
    write_manifest(output / "unsure.csv", decoded.unsure.values())
    return [
        f"In {len(decoded.unsure)} of {len(decoded.ids)} images no retina was found for sure; unsure.csv lists them."
    ]


def _check_groups(plan: FoldPlan, groups: np.ndarray | None, path: Any) -> None:
    for number, (train, test) in enumerate(plan.folds, 1):
        if groups is not None and np.isin(groups[train], groups[test]).any():
            raise ValueError(
                f"fold {number} of {path} has images of one group (a patient, or duplicates) on both sides; make new"
                " folds, or give group_duplicates False if only duplicates are meant."
            )


def _data_statements(
    plan: FoldPlan,
    labels: np.ndarray,
    found: Sequence[Sequence[int]],
    searched: bool,
) -> list[str]:
    statements = []
    cross_validated = plan.kind not in ("official", "other data set")
    if not searched:
        statements.append("Duplicates were not searched for: copies of an image may lie on both sides of a fold.")
    elif found:
        conflicting = sum(len({int(labels[i]) for i in group}) > 1 for group in found)
        groups = "1 group" if len(found) == 1 else f"{len(found)} groups"
        statements.append(
            f"{sum(map(len, found))} of {len(labels)} images are in {groups} of duplicates"
            + (", kept on one side of every fold" if cross_validated else "")
            + f"; the labels differ in {conflicting or 'none'} of them."
        )
    if plan.left_out:
        what = "1 training image was" if plan.left_out == 1 else f"{plan.left_out} training images were"
        statements.append(f"{what} left out: a copy, or another one of the patient, is in the test part.")
    return statements


def _one_class_statements(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which models predict nothing but one class, so that nobody takes their narrow intervals for certainty."""
    by_block: dict[tuple[str, str | None], list[str]] = {}
    for entry in results:
        if entry["one_class"] and entry["fraction"] == max(e["fraction"] for e in results):
            by_block.setdefault((entry["protocol"], entry["variant"]), []).append(entry["model"])
    return [
        f"{TITLES[block]}: one class is predicted for all images by {'; '.join(models)}."
        for block, models in by_block.items()
    ]


def _patient_statements(train: Datalist, train_path: Any, test: Datalist | None, test_path: Any) -> list[str]:
    """Grades are of patients (other classes have none), who are known or not, in each data set."""
    if not train.info.ordinal:
        return []
    unknown = [
        str(path)
        for datalist, path in ((train, train_path), (test, test_path))
        if datalist is not None and all(item["group"] is None for item in datalist if item["label"] is not None)
    ]
    if test is None:
        return ["Patients are not known: the eyes of one may lie on both sides of a fold."] if unknown else []
    if not unknown:
        return ["A patient who is in both data sets is not recognized."]
    return [f"Patients are not known in {' and '.join(unknown)}: a patient who is in both data sets is not recognized."]


def _without_images(pretraining: Mapping[str, Any]) -> dict[str, Any]:
    """Without the hashes of images, which are called "images" in files of earlier releases, and others then."""
    return {name: value for name, value in pretraining.items() if not isinstance(value, torch.Tensor)}


def _pretraining_statements(
    name: str, about: dict[str, Any], decoded: _Decoded, plan: FoldPlan, labelled: np.ndarray
) -> list[str]:
    """What a reader must know of how a checkpoint came about; ``about`` gets "transductive"."""
    seen = about.pop("images", None)
    if "checkpoint" not in about:
        return []
    statements = []
    tested = labelled[np.unique(np.concatenate([test for _, test in plan.folds]))]
    if seen is None:
        about["transductive"] = None
        statements.append(f"{name}: the checkpoint does not say which images it was pretrained on.")
    else:
        count = int(torch.isin(decoded.hashes[torch.from_numpy(tested)], seen).sum())
        about["transductive"] = count > 0
        about["test_images_seen"] = count
        if not count:
            statements.append(
                f"{name}: none of the test images is a file of its pretraining; other encodings of the same photographs"
                " are not recognized."
            )
        if count:
            statements.append(
                f"{name}: transductive, it was pretrained on {count} of the {len(tested)} test images"
                + (" with their labels: the score is no test." if about["trained_with_labels"] else ", without labels.")
            )
    if about["trained_with_labels"] and not about.get("transductive"):
        statements.append(f"{name}: was trained with labels.")
    pretraining = about["pretraining"] or {}
    epoch, last = pretraining.get("epoch"), (pretraining.get("settings") or {}).get("max_epochs")
    if epoch == 0 and last:
        statements.insert(
            0, f"{name}: was saved before the first of its {last} epochs ended: it is as good as untrained."
        )
    elif epoch is not None and last is not None and epoch < last:
        statements.insert(
            0,
            f"{name}: a checkpoint of epoch {epoch} of {last}: the training was not finished. If this epoch was chosen"
            " by its score on these labels, the score is too good.",
        )
    return statements


def _bundle_command() -> str | None:
    """The command line of a MONAI bundle that runs in this process."""
    if not sys.argv[0].endswith(os.path.join("monai", "bundle", "__main__.py")):
        return None
    return shlex.join(["python", "-m", "monai.bundle", *sys.argv[1:]])


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = Counter(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        return names.most_common(1)[0][0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
