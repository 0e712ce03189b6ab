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

"""The report: one HTML file of what an evaluation found, which needs nothing but itself."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conrec_monai.data import CachedImages, load_datalist
from conrec_monai.handlers.health import evaluating, has_attention
from conrec_monai.handlers.pictures import attention_overlay
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.networks.utils import load_encoder, load_model, read_checkpoint, untrained_like
from conrec_monai.transforms import TwoViews

from . import figures as draw
from .audit import SCHEMA as AUDIT_SCHEMA
from .audit import audit_tables
from .embedding import central_part, embed
from .evaluate import untrained_encoders
from .metrics import higher_is_better
from .predictions import Predictions
from .store import read_predictions
from .table import TITLES

__all__ = ["write_report"]

SCHEMA = 2
CLAIMS = ("linear", "standardized")  # the protocol that carries the claims
MAPPED_IMAGES = 1000  # at most, in the map of the representations
TRIPLETS = 5
EXAMPLES = 2  # of each class, in the pictures of the attention
SHOWN_CLASSES = 8
SEED = 0
VIEWS = {"normalize": "field of view normalized", "local_contrast": "local contrast"}
KEYS = ("image_key", "label_key", "group_key", "split_key")

METRICS = {
    "qwk": "QWK",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "auroc": "AUROC",
    "referable_sensitivity": "Sensitivity, referable",
    "ece": "ECE",
    "brier": "Brier score",
    "top1": "Top-1 accuracy",
    "top3": "Top-3 accuracy",
    "top5": "Top-5 accuracy",
    "top10": "Top-10 accuracy",
}
METRIC_NOTES = {
    "qwk": "QWK: quadratic weighted kappa, 0 is chance and 1 full agreement.",
    "auroc": "AUROC: area under the ROC curve, each class against the rest, averaged.",
    "referable_sensitivity": "Sensitivity, referable: for grade 2 and above, at 90 % specificity.",
    "ece": "ECE: expected calibration error, 15 bins; lower is better.",
    "brier": "Brier score: squared error of the probabilities, 0 to 2; lower is better.",
}
KINDS = {
    "checkpoint": "Pretrained",
    "imagenet": "ImageNet weights",
    "random": "Trained from random weights",
    "untrained": "Untrained encoders: random weights",
    "baseline": "Baselines that see no content",
}
CURVES = {
    "loss": "loss",
    "contrastive_loss": "contrastive loss",
    "reconstruction_loss": "reconstruction loss (mean squared error)",
    "val_loss": "loss on the validation images",
    "contrastive_accuracy": "contrastive accuracy: share of views that find their twin",
    "effective_rank": "effective rank of the representation",
    "probe_linear_qwk": "linear probe during training, QWK",
    "probe_linear_accuracy": "linear probe during training, accuracy",
}


def write_report(
    results: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    dataset: str | os.PathLike | None = None,
    pictures: str = "all",
    audit: str | os.PathLike | None = None,
    figures: str | os.PathLike | None = None,
    credit: str | None = None,
    **keys: str | None,
) -> Path:
    """Writes a page about one or more evaluations: one HTML file that opens offline, without scripts.

    The same input gives the same bytes. What cannot be shown, since the data set or a checkpoint is not there any more,
    is left out, and the page says so.

    Args:
        results: folders that :func:`conrec_monai.bundle.evaluate_checkpoints` wrote, with ``metrics.json``,
            ``predictions`` and ``folds.json``.
        output: file to write; its folder is created.
        dataset: where the images of the evaluation are; by default the path that ``metrics.json`` names.
        pictures: "all", or "none" for a page without photographs.
        audit: JSON of ``conrec-monai audit``.
        figures: folder to which each figure goes as PNG and SVG too; created.
        credit: whose photographs these are, and under which license they are shown; at the top of the page.
        **keys: ``image_key``, ``label_key``, ``group_key``, ``split_key``; see
            :func:`conrec_monai.data.load_datalist`.

    Returns:
        The path of the page.

    Raises:
        ValueError, OSError: when a folder holds no result, an older one or a damaged one; when the data set that is
            named is not that of the results; or when matplotlib is missing.
    """
    draw.check_matplotlib()
    if pictures not in ("all", "none"):
        raise ValueError(f"pictures must be all or none, got {pictures!r}.")
    for name in keys:
        if name not in KEYS:
            raise ValueError(f"unexpected argument {name}.")
    folders = [results] if isinstance(results, str | os.PathLike) else list(results)
    if not folders:
        raise ValueError("expected at least one folder of results.")
    loaded = [_read_result(Path(folder)) for folder in folders]
    paths = sorted({result["dataset"]["path"] for _, result in loaded})
    if dataset is not None and len(paths) > 1:
        raise ValueError(f"a data set can be named for results of one alone, these are of {' and '.join(paths)}.")
    found = None if audit is None else _read_audit(Path(audit))
    output = Path(output)
    if output.is_dir():
        raise ValueError(f"{output} is a folder, expected the file to write.")
    if figures is not None and Path(figures).is_file():
        raise ValueError(f"{figures} is a file, expected a folder for the figures.")

    given = {name: value for name, value in keys.items() if value is not None}
    titles = _titles([result for _, result in loaded], [folder for folder, _ in loaded])
    page = _Figures(None if figures is None else Path(figures))
    evaluations = []
    for number, ((folder, content), title) in enumerate(zip(loaded, titles, strict=True), 1):
        data, note = _find_data(folder, content, dataset, given)
        evaluations.append(_Evaluation(number, title, folder, content, data, note, pictures == "all", page))
    body = _page(evaluations, found, page, credit)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.tmp")
    temporary.write_text(body, encoding="utf-8")
    os.replace(temporary, output)
    return output


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_json(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}: {'a folder' if path.is_dir() else 'no such file'}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} cannot be read as JSON (truncated or damaged?).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no {what}: expected a JSON object, found a {type(content).__name__}.")
    return content


def _read_result(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / "metrics.json"
    if not folder.is_dir() or not path.is_file():
        reason = "no metrics.json in it" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"no result of conrec-monai evaluate at {folder}: {reason}.")
    content = _read_json(path, "result")
    if "results" not in content and "settings" in content and "epoch" in content:
        raise ValueError(f"{path} is that of a training, expected one that conrec-monai evaluate wrote.")
    if content.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has schema {content.get('schema', 1)!r}, this release reads {SCHEMA}: evaluate once more."
        )
    try:
        _check_result(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is damaged or incomplete: {reason}.") from None
    return folder, content


def _check_result(content: Mapping[str, Any]) -> None:
    """Raises a KeyError, TypeError or ValueError when an entry that the page reads is not as documented."""
    names = content["metrics"]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("metrics must be a list of names")
    for name in ("path", "section", "name", "test_path", "test_section", "labelled", "unlabelled"):
        content["dataset"][name]
    kinds = {model["name"]: model["kind"] for model in content["models"]}
    if not content["results"]:
        raise ValueError("results is empty")
    for entry in content["results"]:
        if entry["model"] not in kinds:
            raise ValueError(f"results has the model {entry['model']!r}, which models lacks")
        for key in ("protocol", "variant", "predictions"):
            entry[key]
        if not 0 < float(entry["fraction"]) <= 1:
            raise ValueError(f"fraction must be in (0, 1], found {entry['fraction']!r}")
        for name in names:
            _check_value(entry["metrics"][name]["mean"], entry["metrics"][name]["interval"])
    for entry in content["comparisons"]:
        for key in ("model", "other", "other_kind", "protocol", "variant", "fraction"):
            entry[key]
        for name in names:
            _check_value(entry["metrics"][name]["difference"], entry["metrics"][name]["interval"])
            _check_value(entry["metrics"][name]["p"], (None, None))
    for entry in content["classes"]:
        entry["name"], int(entry["count"])
    for key in ("kind", "n", "repeats", "seed", "left_out", "train", "test"):
        content["folds"][key]
    for key in ("ordinal", "command", "settings", "versions", "machine"):
        content[key]
    if not all(isinstance(statement, str) for statement in content["statements"]):
        raise ValueError("statements must be a list of sentences")


def _check_value(value: Any, interval: Any) -> None:
    low, high = interval
    for number in (value, low, high):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise ValueError(f"expected a number or null, found {number!r}")


def _titles(results: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> list[str]:
    """A heading for each evaluation; where they would be equal the folder is named, all of it where need be."""
    titles = []
    for result in results:
        dataset, settings = result["dataset"], result["settings"]
        title = _data_name(dataset) + (f", {dataset['section']}" if dataset["section"] else "")
        if dataset["test_path"]:
            title += f", tested on {Path(dataset['test_path']).name}"
        if settings.get("field_of_view"):
            title += f", {VIEWS[settings['field_of_view']]}"
        titles.append(title)
    for names in ([folder.name for folder in folders], [str(folder) for folder in folders]):
        longer = [
            title if titles.count(title) == 1 else f"{title} ({name})"
            for title, name in zip(titles, names, strict=True)
        ]
        if len(set(longer)) == len(longer):
            break
    return longer


def _data_name(dataset: Mapping[str, Any]) -> str:
    """The last part of its path, which is shorter than what its layout is called."""
    return Path(dataset["path"]).name or str(dataset["path"])


@dataclass
class _Data:
    """The labelled images of an evaluation, in the order of the ``ids`` of its folds."""

    items: list[dict[str, Any]]
    labels: np.ndarray
    tested: np.ndarray  # positions of the images of any test part


def _find_data(
    folder: Path, result: Mapping[str, Any], dataset: str | os.PathLike | None, keys: Mapping[str, str]
) -> tuple[_Data | None, str]:
    """The data set, or why it cannot be used; an error only where the user named one that is not the right one."""
    place = result["dataset"]["path"] if dataset is None else dataset
    try:
        return _load_data(folder, result, place, keys), ""
    except (ValueError, OSError) as error:
        if dataset is not None or keys:
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        logging.getLogger("conrec_monai").warning(f"{folder}: pictures are left out: {reason}")
        return None, f"The data set could not be used: {reason}. With --dataset the report finds it elsewhere."


def _load_data(folder: Path, result: Mapping[str, Any], place: Any, keys: Mapping[str, str]) -> _Data:
    content = _read_json(folder / "folds.json", "folds")
    try:
        ids = [str(i) for i in content["ids"]]
        tested = np.unique(np.concatenate([np.asarray(fold["test"], dtype=np.int64) for fold in content["folds"]]))
        if tested.min() < 0 or tested.max() >= len(ids):
            raise IndexError
    except (KeyError, TypeError, ValueError, IndexError):
        raise ValueError(f"{folder / 'folds.json'} is no file of folds.") from None
    about, test_names = result["dataset"], [entry.get("test_name", entry["name"]) for entry in result["classes"]]
    train = load_datalist(place, about["section"], on_error="skip", **{**about.get("keys", {}), **keys})
    by_id = {str(item["id"]): item for item in train}
    if about["test_path"] is not None:
        test = load_datalist(about["test_path"], about["test_section"], on_error="skip", **about.get("test_keys", {}))
        number = {i: test_names.index(n) for i, n in enumerate(test.info.class_names or []) if n in test_names}
        by_id = {f"train/{i}": item for i, item in by_id.items()}
        for item in test:
            label = item["label"]
            by_id[f"test/{item['id']}"] = {**item, "label": number.get(label, label)}
    missing = [i for i in ids if i not in by_id or by_id[i]["label"] is None]
    if missing:
        raise ValueError(
            f"{place} is not the data set of {folder}: {len(missing)} of its {len(ids)} labelled images are not in it,"
            f" such as {missing[0]!r}."
        )
    items = [dict(by_id[i]) for i in ids]
    labels = np.array([item["label"] for item in items], dtype=np.int64)
    counts = [int(entry["count"]) for entry in result["classes"]]
    if labels.max() >= len(counts) or np.bincount(labels, minlength=len(counts)).tolist() != counts:
        raise ValueError(f"{place} has other labels than those that {folder} was evaluated with.")
    return _Data(items, labels, tested)


def _read_predictions(folder: Path, name: Any, data: _Data) -> Predictions:
    """Raises a ValueError or OSError that says why it cannot be used."""
    path = folder / str(name)
    predictions = read_predictions(path)
    for fold in predictions.folds:
        shape = (len(fold.test), fold.probabilities.shape[-1])
        if not len(fold.test) or fold.test.max() >= len(data.labels) or fold.probabilities.shape != shape:
            raise ValueError(f"{path} does not fit folds.json")
    if not predictions.folds:
        raise ValueError(f"{path} holds no predictions")
    return predictions


# --- one evaluation ---------------------------------------------------------------------------------------------------


class _Figures:
    """Numbers the figures, and writes them to a folder where one is given."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.count = folder, 0

    def add(self, figure: Any, name: str, title: str, caption: str, alt: str, photographs: bool = False) -> str:
        """HTML of a figure: ``alt`` is what those hear who cannot see it; ``caption`` is plain text."""
        self.count += 1
        vector = None if photographs and self.folder is None else draw.to_svg(figure)
        pixels = None if not photographs and self.folder is None else draw.to_png(figure)
        if photographs and pixels is not None:
            source = base64.b64encode(pixels).decode("ascii")
            picture = f'<img src="data:image/png;base64,{source}" alt="{_text(alt)}">'
        elif vector is not None:
            picture = f'<div role="img" aria-label="{_text(alt)}">{draw.inline_svg(vector, f"f{self.count}")}</div>'
        if self.folder is not None and pixels is not None and vector is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self.count:02d}_{_slug(name)}"
            path.with_suffix(".png").write_bytes(pixels)
            path.with_suffix(".svg").write_text(vector, encoding="utf-8")
        return (
            f"<figure>{picture}<figcaption><strong>Figure {self.count}. {_text(title)}</strong> {_text(caption)}"
            "</figcaption></figure>\n"
        )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60] or "figure"


class _Evaluation:
    """The sections about one evaluation."""

    def __init__(
        self,
        number: int,
        title: str,
        folder: Path,
        result: dict[str, Any],
        data: _Data | None,
        note: str,
        photographs: bool,
        figures: _Figures,
    ) -> None:
        self.number, self.title, self.folder, self.result = number, title, folder, result
        self.data, self.note, self.photographs, self.figures = data, note, photographs, figures
        self.metrics: list[str] = result["metrics"]
        self.primary = self.metrics[0]
        self.kinds = {model["name"]: model["kind"] for model in result["models"]}
        self.classes = [str(entry["name"]) for entry in result["classes"]]
        self.blocks: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
        for entry in result["results"]:
            self.blocks.setdefault((entry["protocol"], entry["variant"]), []).append(entry)
        self.headline = CLAIMS if CLAIMS in self.blocks else next(iter(self.blocks))
        # What the encoders see: evaluations that share it share the pictures.
        encoders = [(m["name"], m.get("sha256"), m.get("seed")) for m in result["models"]]
        places = [result["dataset"].get(name) for name in ("path", "section", "test_path", "test_section")]
        self.seen = (encoders, places, result["settings"].get("field_of_view"), result["settings"].get("center_crop"))
        self._networks: dict[str, tuple[nn.Module, dict[str, Any]] | str] = {}
        self._pictures: dict[tuple, Tensor] = {}

    def largest(self, block: tuple[str, str | None]) -> list[dict[str, Any]]:
        """The results of a block with the largest share of the labels, the kinds in the order of the page."""
        most = max(entry["fraction"] for entry in self.blocks[block])
        order = list(KINDS)
        entries = [entry for entry in self.blocks[block] if entry["fraction"] == most]
        kinds = self.kinds
        return sorted(
            entries, key=lambda e: order.index(kinds[e["model"]]) if kinds[e["model"]] in order else len(order)
        )

    def differences(self, block: tuple[str, str | None]) -> list[dict[str, Any]]:
        most = max(entry["fraction"] for entry in self.blocks[block])
        return [
            entry
            for entry in self.result["comparisons"]
            if (entry["protocol"], entry["variant"]) == block and entry["fraction"] == most
        ]

    # what is compared

    def head(self) -> str:
        result = self.result
        dataset, folds = result["dataset"], result["folds"]
        plan = {
            "official": f"official split: {_count(folds['train'])} training and {_count(folds['test'])} test images",
            "other data set": f"fitted on {_count(folds['train'])} images, scored on {_count(folds['test'])} of"
            f" {dataset['test_path']}",
        }.get(
            folds["kind"],
            f"{folds['n']} {folds['kind']} folds, repeated {folds['repeats']}×" if folds["repeats"] != 1 else
            f"{folds['n']} {folds['kind']} folds",
        )  # fmt: skip
        if folds["left_out"]:
            plan += f"; {folds['left_out']} training images left out"
        groups = dataset.get("groups")
        duplicates = dataset.get("duplicate_groups")
        facts = [
            ("Data set", f"{dataset['name']} ({dataset['path']})"),
            (
                "Images",
                f"{dataset['labelled']} labelled"
                + (f", {dataset['unlabelled']} unlabelled left out" if dataset["unlabelled"] else ""),
            ),
            ("Classes", _class_counts(result["classes"])),
            ("Split", f"{plan}, seed {folds['seed']}"),
            ("Groups", "none known: every image stands alone" if groups is None else f"{groups}, kept on one side"),
            (
                "Duplicates",
                "not searched for"
                if duplicates is None
                else f"{duplicates} group{'' if duplicates == 1 else 's'} found",
            ),
            ("Field of view", VIEWS.get(result["settings"].get("field_of_view"), "as the models were trained")),
        ]
        rows = "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in facts)
        statements = ""
        if result["statements"]:
            entries = "".join(f"<li>{_text(statement)}</li>" for statement in result["statements"])
            statements = f'<aside class="notice"><h4>Know before you read the numbers</h4><ul>{entries}</ul></aside>'
        return f'<dl class="facts">{rows}</dl>\n{statements}\n{self._models()}'

    def _models(self) -> str:
        rows = []
        for model in self.result["models"]:
            if model["kind"] not in ("checkpoint", "imagenet", "random"):
                continue
            pretraining = model.get("pretraining") or {}
            seen = model.get("transductive")
            known = model["kind"] == "checkpoint"
            cells = [
                KINDS[model["kind"]],
                model.get("architecture", ""),
                f"{model['parameters']:,}" if isinstance(model.get("parameters"), int) else "",
                str(pretraining.get("epoch", "not known")) if known else "",
                ("not known" if seen is None else f"yes, {model.get('test_images_seen')}" if seen else "no")
                if known
                else "",
            ]
            rows.append(_row(model["name"], [_text(cell) for cell in cells]))
        heads = ["Kind", "Architecture", "Parameters", "Epochs", "Pretrained on test images"]
        return _table("The models", ["Model", *heads], [("", rows)], "text") if rows else ""

    # scores

    def cards(self) -> str:
        """The headline of each pretrained model, and how it stands against the strongest of each kind."""
        entries = {entry["model"]: entry for entry in self.largest(self.headline)}
        better = max if higher_is_better(self.primary) else min
        cards = []
        for name, entry in entries.items():
            if self.kinds[name] not in ("checkpoint", "imagenet"):
                continue
            against: dict[str, list[tuple[str, dict[str, Any]]]] = {}
            for found in self.differences(self.headline):
                value = found["metrics"][self.primary]
                if found["model"] == name:
                    against.setdefault(found["other_kind"], []).append((found["other"], value))
                elif found["other"] == name:
                    kind = self.kinds.get(found["model"], "checkpoint")
                    against.setdefault(kind, []).append((found["model"], _turned(value)))
            lines = []
            for kind in KINDS:
                rivals = against.get(kind, [])
                if kind in ("untrained", "baseline"):
                    scored = [
                        (entries[rival]["metrics"][self.primary]["mean"], i)
                        for i, (rival, _) in enumerate(rivals)
                        if rival in entries and entries[rival]["metrics"][self.primary]["mean"] is not None
                    ]
                    rivals = [rivals[better(scored)[1]]] if scored else rivals[:1]
                for rival, value in rivals:
                    verdict = _verdict(value, self.primary)
                    lines.append(
                        f'<li><span class="rival">against {_text(rival)}</span> {_difference(value)}'
                        f' <span class="verdict {verdict.split()[0]}">{verdict}</span></li>'
                    )
            score = entry["metrics"][self.primary]
            cards.append(
                f'<article class="card"><h4>{_text(name)}</h4><p class="score">{_number(score["mean"])}'
                f" <small>{_span(score['interval'])}</small></p><ul>{''.join(lines)}</ul></article>"
            )
        if not cards:
            return ""
        most = max(entry["fraction"] for entry in self.blocks[self.headline])
        share = "" if most == 1 else f", {100 * most:g} % of the training labels"
        return (
            f'<p class="lead">{METRICS.get(self.primary, self.primary)} of the frozen or fine-tuned models under the'
            f" protocol <em>{_text(_block_title(self.headline))}</em>{share}, with 95 % intervals; of the untrained"
            " encoders and of the baselines the strongest one is named.</p>"
            f'<div class="cards">{"".join(cards)}</div>'
        )

    def scores(self) -> str:
        parts = []
        metric = METRICS.get(self.primary, self.primary)
        charts = []
        for block in self.blocks:
            values = [
                draw.Interval(
                    e["model"],
                    self.kinds[e["model"]],
                    e["metrics"][self.primary]["mean"],
                    *e["metrics"][self.primary]["interval"],
                )
                for e in self.largest(block)
            ]
            summary = "; ".join(
                f"{v.name} {_number(v.mean)}" + ("" if v.low is None else f", {_number(v.low)} to {_number(v.high)}")
                for v in values
            )
            charts.append(
                self.figures.add(
                    draw.interval_chart(values, metric),
                    f"scores {block[0]} {block[1] or ''} {self.number if self.number > 1 else ''}",
                    _block_title(block) + ".",
                    f"{metric}, a row for each model: dot = mean over the folds, bar = 95 % interval. Hollow circles"
                    " are untrained encoders, hollow squares baselines; the dashed line is the best baseline. What"
                    " does not stand clear of it may have learned no more than the camera.",
                    f"{metric} with 95 % intervals. {summary}",
                )
            )
        parts.append(_grid(charts))
        for block in self.blocks:
            title, scores, differences = _block_title(block), self._scores_of(block), self._differences_of(block)
            if block == self.headline:
                parts.append(f"<h4>{_text(title)}</h4>{scores}{_folded('Paired differences', differences)}")
            else:
                parts.append(
                    _folded(
                        f"{title}: all scores{' and paired differences' if differences else ''}", scores + differences
                    )
                )
        notes = " ".join(METRIC_NOTES[name] for name in self.metrics if name in METRIC_NOTES)
        parts.append(
            '<p class="note">Means over the folds, below them 95 % intervals from a bootstrap over groups (images that'
            f" are alone count as a group each). {notes} A difference is paired: both models on the same images of the"
            " same folds; it is called better or worse where its interval leaves 0 out. p is two-sided and not"
            " corrected for the number of comparisons.</p>"
        )
        return "".join(parts)

    def _heads(self) -> list[str]:
        return [
            METRICS.get(name, name) + ("" if higher_is_better(name) else " (lower is better)") for name in self.metrics
        ]

    def _scores_of(self, block: tuple[str, str | None]) -> str:
        groups: dict[str, list[str]] = {}
        for entry in self.largest(block):
            cells = [
                f"<b>{_number(entry['metrics'][name]['mean'])}</b>"
                f"<small>{_span(entry['metrics'][name]['interval'])}</small>"
                for name in self.metrics
            ]
            groups.setdefault(self.kinds[entry["model"]], []).append(_row(entry["model"], cells))
        most = max(entry["fraction"] for entry in self.blocks[block])
        share = "" if most == 1 else f" ({100 * most:g} % of the training labels)"
        body = [(kind, rows) for kind, rows in groups.items()]
        return _table(f"Scores{share}", ["Model", *self._heads()], body, "scores")

    def _differences_of(self, block: tuple[str, str | None]) -> str:
        found = self.differences(block)
        if not found:
            return ""
        groups: dict[str, list[str]] = {}
        for entry in found:
            value = entry["metrics"][self.primary]
            verdict = _verdict(value, self.primary)
            p = _p_value(value["p"])
            cells = [f'<span class="verdict {verdict.split()[0]}">{verdict}</span> <small>{p}</small>']
            cells += [_difference(entry["metrics"][name], stacked=True) for name in self.metrics]
            title = f"{entry['model']} − {entry['other']}"
            if entry.get("other_protocol", entry["protocol"]) != entry["protocol"]:
                title += f" ({str(entry['other_protocol']).replace('_', ' ')})"
            groups.setdefault(entry["other_kind"], []).append(_row(title, cells))
        metric = METRICS.get(self.primary, self.primary)
        heads = ["Difference", f"In {metric}", *self._heads()]
        body = [(kind, groups[kind]) for kind in [*KINDS, *(k for k in groups if k not in KINDS)] if kind in groups]
        return _table("Paired differences", heads, body, "scores")

    def label_efficiency(self) -> str:
        metric = METRICS.get(self.primary, self.primary)
        charts, tables = [], []
        for block, entries in self.blocks.items():
            shares = sorted({entry["fraction"] for entry in entries})
            if len(shares) < 2:
                continue
            curves, groups = [], dict[str, list[str]]()
            for model in dict.fromkeys(entry["model"] for entry in entries):
                own = sorted((e for e in entries if e["model"] == model), key=lambda e: e["fraction"])
                values = [e["metrics"][self.primary] for e in own]
                columns = [
                    [np.nan if v is None else v for v in column]
                    for column in (
                        [v["mean"] for v in values],
                        [v["interval"][0] for v in values],
                        [v["interval"][1] for v in values],
                    )
                ]
                curves.append(draw.Curve(model, self.kinds[model], [e["fraction"] for e in own], *columns))
                by_share = {e["fraction"]: e["metrics"][self.primary] for e in own}
                cells = [
                    f"<b>{_number(by_share[s]['mean'])}</b><small>{_span(by_share[s]['interval'])}</small>"
                    if s in by_share
                    else ""
                    for s in shares
                ]
                groups.setdefault(self.kinds[model], []).append(_row(model, cells))
            ends = "; ".join(
                f"{c.name} from {_number(c.mean[0])} at {100 * c.x[0]:g} % to {_number(c.mean[-1])} at"
                f" {100 * c.x[-1]:g} %"
                for c in curves
                if len(c.x) > 1
            )
            charts.append(
                self.figures.add(
                    draw.label_curves(curves, metric),
                    f"label efficiency {block[0]} {block[1] or ''} {self.number if self.number > 1 else ''}",
                    f"Label efficiency: {_block_title(block)}.",
                    f"{metric} over the share of the training labels (logarithmic); bands are 95 % intervals over the"
                    " test images, and do not cover the draw of the labels: the draws of a share are averaged. One"
                    " image per class at least is kept, so the smallest shares can be the same images. Gray"
                    " lines are untrained encoders, dashed ones baselines: a representation earns its name where it"
                    " stands above them with few labels.",
                    f"{metric} by share of labels. {ends}",
                )
            )
            numbers = {e["fraction"]: e["train_images"] for e in entries if e.get("train_images") is not None}
            heads = ["Model"]
            for share in shares:
                heads.append(f"{100 * share:g} %" + (f" ({numbers[share]:.0f} images)" if share in numbers else ""))
            body = [(kind, groups[kind]) for kind in KINDS if kind in groups]
            tables.append(_table(f"{metric} by share of the labels: {_block_title(block)}", heads, body, "scores"))
        if not charts:
            return _note("Only one share of the training labels was evaluated; --fractions adds others.")
        return _grid(charts) + "".join(tables)

    # predictions

    def predictions(self) -> tuple[str, str]:
        """Confusion matrices and reliability diagrams of the pretrained models."""
        confusions, diagrams, notes = [], [], []
        title = _block_title(self.headline)
        for entry in self.largest(self.headline):
            name = entry["model"]
            if self.kinds[name] not in ("checkpoint", "imagenet", "random"):
                continue
            if self.data is None:
                notes.append(self.note)
                break
            if entry["predictions"] is None:
                notes.append(f"{name}: the predictions were not kept.")
                continue
            try:
                found = _read_predictions(self.folder, entry["predictions"], self.data)
                self._check_labels(found, entry)
            except (ValueError, OSError) as error:
                notes.append(f"{name}: {error}.")
                continue
            test = np.concatenate([fold.test for fold in found.folds])
            predicted = np.concatenate([fold.predicted for fold in found.folds])
            probabilities = np.concatenate([fold.probabilities for fold in found.folds])
            labels, size = self.data.labels[test], len(self.classes)
            counts = np.zeros((size, size), dtype=np.int64)
            np.add.at(counts, (labels, predicted), 1)
            right = int((labels == predicted).sum())
            number = self.number if self.number > 1 else ""
            repeated = "" if len(np.unique(test)) == len(test) else " Images that are tested several times count so."
            confusions.append(
                (
                    draw.confusion_chart(counts, self.classes),
                    f"confusion {name} {number}",
                    f"Confusion matrix: {name}.",
                    f"{title}. Rows are the labels, columns the predictions, over all test images; a number is a count,"
                    f" below it its share of the row, which the color shows too. {_confused(counts, self.classes)}"
                    f"{repeated}",
                    f"Confusion matrix of {name}: {right} of {len(test)} on the diagonal. "
                    + _confused(counts, self.classes),
                )
            )
            confidence = probabilities[np.arange(len(test)), predicted]
            ece = entry["metrics"]["ece"]["mean"] if "ece" in self.metrics else None
            stated = "" if ece is None else f" Expected calibration error {ece:.3f} (mean over the folds)."
            diagrams.append(
                (
                    draw.reliability_chart(confidence, labels == predicted),
                    f"reliability {name} {number}",
                    f"Reliability: {name}.{'' if ece is None else f' ECE {ece:.3f}.'}",
                    f"{title}. The share of predictions that are right, by how sure the model was of them, all test"
                    " images together; on the dashed line stated and true certainty agree, bars below it mean"
                    " overconfidence. Hatched: the gap. Bars of few images (below) say little.",
                    f"Reliability diagram of {name}: mean confidence {confidence.mean():.3f}, share right"
                    f" {right / len(test):.3f}.{stated}",
                )
            )
        note = "".join(_note(text) for text in notes)
        # Numbered in the order of the page: first the ones, then the others.
        both = [_grid([self.figures.add(*chart) for chart in charts]) for charts in (confusions, diagrams)]
        if not confusions and not note:
            note = _note("No pretrained model was evaluated.")
        return both[0] + note, both[1] + note

    def _check_labels(self, found: Predictions, entry: Mapping[str, Any]) -> None:
        """The labels of the data set are those of the evaluation only if they give its accuracy."""
        assert self.data is not None
        # The same share by two names, for grades and for classes: top1 counts the first of equally probable classes,
        # which is the one predicted.
        name = next((name for name in ("accuracy", "top1") if name in self.metrics), None)
        if name is None:
            raise ValueError("the result has neither accuracy nor top1, which tell whether the labels are the same")
        mean = entry["metrics"][name]["mean"]
        shares = [float((self.data.labels[fold.test] == fold.predicted).mean()) for fold in found.folds]
        if mean is None or abs(np.mean(shares) - mean) > 1e-6:
            raise ValueError("the labels of the data set do not give the accuracy of the result: they have changed")

    # pictures

    def _checkpoints(self) -> list[dict[str, Any]]:
        return [model for model in self.result["models"] if model["kind"] == "checkpoint" and model.get("checkpoint")]

    def _network(self, model: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
        """The encoder of a checkpoint and its preprocessing.

        Raises:
            ValueError, OSError: when it is not there, or not the one that was evaluated.
        """
        name = model["name"]
        if name not in self._networks:
            path = Path(model["checkpoint"])
            try:
                content = read_checkpoint(path)
                if model.get("sha256") not in (None, hashlib.sha256(path.read_bytes()).hexdigest()):
                    raise ValueError(f"{path} has changed since the evaluation")
                self._networks[name] = (load_encoder(path), content["preprocessing"])
            except (ValueError, OSError) as error:
                self._networks[name] = str(error).rstrip(".")
        found = self._networks[name]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def _images(self, positions: np.ndarray, encoder: nn.Module, preprocessing: Mapping[str, Any]) -> Tensor:
        """Images as the encoder takes them: uint8 NCHW, all that are shown decoded at once."""
        assert self.data is not None
        size, settings = preprocessing["image_size"], self.result["settings"]
        crop = settings.get("center_crop") or 1
        view = settings.get("field_of_view") or preprocessing.get("field_of_view")
        channels: int = encoder.config["in_channels"]  # type: ignore[index,assignment]
        key = (size, preprocessing["resize"], channels, view, positions.tobytes())
        if key not in self._pictures:
            cached = CachedImages(
                [self.data.items[i] for i in positions],
                round(size / crop),
                preprocessing["resize"],
                channels,
                **({} if view is None else {"field_of_view": view}),
            )
            self._pictures[key] = central_part(cached.images, size)
        return self._pictures[key]

    def _examples(self, count: int) -> tuple[np.ndarray, list[int]]:
        """Positions of ``count`` test images of each class, drawn by a seed, class by class; and the classes."""
        assert self.data is not None
        labels = self.data.labels[self.data.tested]
        order = np.argsort(-np.bincount(labels, minlength=len(self.classes)), kind="stable")
        shown = sorted(int(c) for c in order[:SHOWN_CLASSES] if (labels == c).sum() >= count)
        generator = np.random.RandomState(SEED)
        picks = [generator.permutation(self.data.tested[labels == c])[:count] for c in shown]
        return np.concatenate(picks) if picks else np.empty(0, dtype=np.int64), shown

    def _for_each(self, draw_one: Any, photographs: bool, none: str) -> str:
        """The figures of each checkpoint, or why there are none."""
        if photographs and not self.photographs:
            return _note("Photographs are left out of this page (--pictures none).")
        if self.data is None:
            return _note(self.note)
        parts, notes = [], []
        for model in self._checkpoints():
            try:
                parts += draw_one(model)
            except (ValueError, OSError) as error:
                notes.append(f"{model['name']}: {' '.join(str(error).split()).rstrip('.')}.")
        if not parts and not notes:
            notes.append(none)
        return _grid(parts) + "".join(_note(text) for text in notes)

    def reconstructions(self) -> str:
        return self._for_each(self._triplets, True, "No checkpoint was evaluated.")

    def _triplets(self, model: Mapping[str, Any]) -> list[str]:
        encoder, preprocessing = self._network(model)
        path = Path(model["checkpoint"])
        if read_checkpoint(path)["kind"] in ("ConRecEncoder", "DenseNetEncoder"):
            path = path.with_name("checkpoint.pt")
            if not path.is_file():
                raise ValueError("reconstructions need the run's checkpoint.pt beside encoder.pt, which is not there")
        network = load_model(path)
        if not isinstance(network, ConRecUNet) or network.decoder is None:
            raise ValueError("it was trained without reconstruction: there is no decoder")
        same, own = encoder.state_dict(), network.encoder.state_dict()
        if same.keys() != own.keys() or not all(torch.equal(value, own[name]) for name, value in same.items()):
            raise ValueError(f"{path} holds another state of the training than the encoder that was evaluated")
        positions, _ = self._examples(1)
        images = self._images(positions[:TRIPLETS], encoder, preprocessing).float() / 255
        settings = read_checkpoint(path).get("pretraining", {}).get("settings", {})
        # an earlier release knew the published views alone
        own = {name: settings[name] for name in TwoViews.OPTIONS if name in settings}
        views = TwoViews(preprocessing["image_size"], **{**own, "masked_views": 2})
        views.set_random_state(seed=SEED)
        drawn = views.apply(images, views.randomize(len(images), images.shape[1:]))
        shown, target = drawn.input[: len(images)], drawn.target[: len(images)]
        with evaluating(network):
            output = network(shown).reconstruction
        error = float(((output - target) ** 2).mean())
        return [
            self.figures.add(
                draw.photographs([("masked input", shown), ("reconstruction", output), ("target", target)]),
                f"reconstructions {model['name']} {self.number if self.number > 1 else ''}",
                f"What {model['name']} reconstructs.",
                "Left what the network sees: an augmented view of an image, with pixels shuffled, windows painted over,"
                " or all but windows painted over. Middle its reconstruction, right what it should be. Views drawn with"
                f" seed {SEED}; mean squared error of these {error:.4f}.",
                f"{len(images)} rows of three photographs: masked input, reconstruction by {model['name']}, target.",
                photographs=True,
            )
        ]

    def attention(self) -> str:
        return self._for_each(self._attention, True, "No checkpoint was evaluated.")

    def _attention(self, model: Mapping[str, Any]) -> list[str]:
        encoder, preprocessing = self._network(model)
        if not has_attention(encoder):
            raise ValueError("its encoder does not pool by attention, so that there is no map")
        positions, shown = self._examples(EXAMPLES)
        if not shown:
            raise ValueError(f"no class has {EXAMPLES} test images")
        images = self._images(positions, encoder, preprocessing).float() / 255
        with evaluating(encoder):
            overlay = attention_overlay(images, encoder.attention_map(images))  # type: ignore[operator]
        columns = []
        for example in range(EXAMPLES):
            columns += [("image", images[example::EXAMPLES]), ("attention", overlay[example::EXAMPLES])]
        names = [draw._numbered(label, self.classes[label]) for label in shown]
        left_out = len(self.classes) - len(shown)
        return [
            self.figures.add(
                draw.photographs(columns, names),
                f"attention {model['name']} {self.number if self.number > 1 else ''}",
                f"Where {model['name']} looks.",
                f"{EXAMPLES} test images of each class, drawn with seed {SEED}; beside each its attention map over the"
                " image in gray. The lighter, the more a place weighs in the representation; each map is scaled to its"
                " own maximum, so that two maps do not compare. A map says where the network looks, not that it sees"
                " disease there." + (f" {left_out} classes are not shown." if left_out else ""),
                f"{len(shown)} rows, one for each class, each with {EXAMPLES} photographs beside their attention maps.",
                photographs=True,
            )
        ]

    def embedding(self) -> str:
        return self._for_each(self._maps, False, "No checkpoint was evaluated.")

    def _maps(self, model: Mapping[str, Any]) -> list[str]:
        assert self.data is not None
        encoder, preprocessing = self._network(model)
        positions = self.data.tested
        if len(positions) > MAPPED_IMAGES:
            positions = np.sort(np.random.RandomState(SEED).permutation(positions)[:MAPPED_IMAGES])
        if len(positions) < 5:
            raise ValueError("a map needs at least 5 test images")
        images = self._images(positions, encoder, preprocessing)
        seeds = [
            m["seed"]
            for m in self.result["models"]
            if m["kind"] == "untrained" and m.get("architecture") == model.get("architecture") and "seed" in m
        ]
        seed: int = seeds[0] if seeds else SEED
        untrained = next(iter(untrained_encoders(lambda: untrained_like(encoder), [seed]).values()))
        parts = []
        labels = self.data.labels[positions]
        for name, network in ((model["name"], encoder), (f"untrained encoder, seed {seed}", untrained)):
            points = _tsne(embed(network, images))
            agreement = _neighbor_agreement(points, labels)
            parts.append(
                self.figures.add(
                    draw.map_chart(points, labels, self.classes, bool(self.result["ordinal"])),
                    f"map {model['name']} {'' if network is encoder else 'untrained'}"
                    f" {self.number if self.number > 1 else ''}",
                    f"Map of the representations: {name}.",
                    f"{len(positions)} test images, t-SNE of the standardized representation (perplexity"
                    f" {_perplexity(len(positions)):g}, seed {SEED}), colored by their label. Near points are images"
                    " that the encoder finds alike; distances between clusters and the axes mean nothing. Of the"
                    f" nearest neighbors here {100 * agreement:.0f} % share the label."
                    + ("" if network is encoder else " The same architecture without any training."),
                    f"Scatter plot of {len(positions)} images by t-SNE of the representation of {name};"
                    f" {100 * agreement:.0f} % of nearest neighbors share their label.",
                )
            )
        return parts

    # how it was made

    def provenance(self) -> str:
        result = self.result
        parts = [
            f"<h4>Command</h4>{_code(result['command'])}",
            "<h4>Settings and seeds</h4>" + _code(json.dumps(result["settings"], indent=1, ensure_ascii=False)),
        ]
        folds = {k: v for k, v in result["folds"].items() if k not in ("train", "test")}
        rows = [
            _row(str(name), [_text(value)])
            for name, value in (
                *((f"folds: {k.replace('_', ' ')}", v) for k, v in folds.items()),
                *((f"version: {k}", v) for k, v in result["versions"].items()),
                *((f"machine: {k}", v) for k, v in result["machine"].items()),
            )
        ]
        parts.append(_table("Folds, versions, machine", ["What", "Value"], [("", rows)], "text"))
        rows = [
            _row(m["name"], [f"<code>{_text(m['checkpoint'])}</code>", f"<code>{_text(m.get('sha256', ''))}</code>"])
            for m in self._checkpoints()
        ]
        if rows:
            parts.append(_table("Checkpoints", ["Model", "File", "SHA-256"], [("", rows)], "text"))
        for model in self._checkpoints():
            if model.get("pretraining"):
                parts.append(
                    f"<h4>Pretraining of {_text(model['name'])}</h4>"
                    + _code(json.dumps(model["pretraining"], indent=1, ensure_ascii=False))
                )
        return "".join(parts)


def _perplexity(count: int) -> float:
    return float(min(30, (count - 1) // 3))


def _tsne(features: np.ndarray) -> np.ndarray:
    """[n, F] -> [n, 2], seeded."""
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    x = StandardScaler().fit_transform(features.astype(np.float64))
    points: np.ndarray = TSNE(
        2, perplexity=max(1.0, _perplexity(len(x))), init="pca", random_state=SEED, n_jobs=1
    ).fit_transform(x)
    return points


def _neighbor_agreement(points: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points, return_distance=False)[:, 1]
    return float((labels[nearest] == labels).mean())


def _confused(counts: np.ndarray, classes: Sequence[str]) -> str:
    """A sentence about the most frequent confusion."""
    wrong = counts - np.diag(np.diag(counts))
    if not wrong.any():
        return "Nothing is confused."
    label, predicted = divmod(int(wrong.argmax()), wrong.shape[1])
    return (
        f"Most often confused: {classes[label]} taken for {classes[predicted]}"
        f" ({counts[label, predicted]} of {counts[label].sum()})."
    )


# --- sections of the whole page ---------------------------------------------------------------------------------------


def _across(evaluations: Sequence[_Evaluation]) -> str:
    """The headline of every model, a column for each evaluation."""
    kinds: dict[str, str] = {}
    cells: dict[tuple[str, int], str] = {}
    for e in evaluations:
        for entry in e.largest(e.headline):
            kinds.setdefault(entry["model"], e.kinds[entry["model"]])
            value = entry["metrics"][e.primary]
            cells[entry["model"], e.number] = (
                f"<b>{_number(value['mean'])}</b><small>{_span(value['interval'])}</small>"
            )
    groups: dict[str, list[str]] = {}
    for kind in [*KINDS, *sorted(set(kinds.values()) - set(KINDS))]:
        for name in (n for n, k in kinds.items() if k == kind):
            row = [cells.get((name, e.number), "–") for e in evaluations]
            groups.setdefault(kind, []).append(_row(name, row))
    heads = [f"{e.title}: {METRICS.get(e.primary, e.primary)}, {_block_title(e.headline)}" for e in evaluations]
    return _table("All evaluations side by side", ["Model", *heads], list(groups.items()), "scores") + (
        '<p class="note">Columns of different data do not compare with each other. Of raw and normalized images of one'
        " data set, the difference shows how much a score owed to the shape of the photograph.</p>"
    )


def _training(evaluations: Sequence[_Evaluation], figures: _Figures) -> str:
    runs: dict[str, Path] = {}
    for e in evaluations:
        for model in e._checkpoints():
            path = Path(model["checkpoint"]).with_name("metrics.csv")
            if path in runs.values():
                continue
            name = model["name"]
            runs[f"{name} ({e.title})" if name in runs else name] = path
    rows_of: dict[str, list[dict[str, Any]]] = {}
    notes = []
    for name, path in runs.items():
        if not path.is_file():
            notes.append(f"{name}: there is no metrics.csv beside the checkpoint.")
            continue
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows_of[name] = [{**row, "epoch": int(row["epoch"] or "")} for row in csv.DictReader(file)]
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            notes.append(f"{name}: {path} is damaged.")
    charts = []
    for column, title in CURVES.items():
        lines: dict[str, tuple[list[float], list[float]]] = {}
        for name, rows in rows_of.items():
            points = [(row["epoch"], _float(row.get(column))) for row in rows]
            points = [(x, y) for x, y in points if y is not None]
            # Without decoder the reconstruction loss is 0 throughout: nothing to see.
            seen = len(points) > 1 and any(y for _, y in points)
            lines[name] = ([x for x, _ in points], [y for _, y in points if y is not None]) if seen else ([], [])
        if not any(x for x, _ in lines.values()):
            continue
        ends = "; ".join(f"{name} from {y[0]:.3g} to {y[-1]:.3g}" for name, (_, y) in lines.items() if y)
        charts.append(
            figures.add(
                draw.line_chart(lines, title),
                f"training {column}",
                f"{title[0].upper()}{title[1:]}.",
                f"One point per epoch. {ends[0].upper()}{ends[1:]}.",
                f"Line chart, {title} over the epochs: {ends}",
            )
        )
    if not charts and not notes:
        notes.append("No checkpoint was evaluated.")
    return _grid(charts) + "".join(_note(text) for text in notes)


def _float(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def _audit(manifest: dict[str, Any] | None) -> str:
    if manifest is None:
        return _note("No audit was given; conrec-monai audit DATASET --output audit.json makes one for --audit.")
    parts = [_note(f"Of {manifest['dataset']['path']}.")]
    for title, text, (heads, *rows) in audit_tables(manifest):
        if text:
            warn = title == "What was found" and (manifest["splits_crossed"] or manifest["conflicting_labels"])
            parts.append(f'<aside class="notice"><p>{_text(text)}</p></aside>' if warn else f"<p>{_text(text)}</p>")
        parts.append(_table(title, heads, [("", [_row(row[0], map(_text, row[1:])) for row in rows])], "text"))
    return "".join(parts)


def _read_audit(path: Path) -> dict[str, Any]:
    content = _read_json(path, "audit")
    if content.get("schema") != AUDIT_SCHEMA:
        raise ValueError(f"{path} is no audit.json of conrec-monai audit (schema {AUDIT_SCHEMA}).")
    try:
        _audit(content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is damaged or incomplete: {reason}.") from None
    return content


def _page(
    evaluations: Sequence[_Evaluation], audit: dict[str, Any] | None, figures: _Figures, credit: str | None
) -> str:
    several = len(evaluations) > 1
    pretrained = ("checkpoint", "imagenet")
    models = list(dict.fromkeys(m for e in evaluations for m, kind in e.kinds.items() if kind in pretrained))
    log = logging.getLogger("conrec_monai")
    sections: list[tuple[str, str, str]] = []
    if several:
        sections.append(("overview", "Side by side", _across(evaluations)))
    for e in evaluations:
        log.info(f"report: {e.title}")
        parts = [("data", "What was compared, on what data", e.head()), ("scores", "Scores", e.cards() + e.scores())]
        parts.append(("labels", "Label efficiency", e.label_efficiency()))
        confusion, reliability = e.predictions()
        parts += [("confusion", "Confusion", confusion), ("reliability", "Calibration", reliability)]
        first = next(other for other in evaluations if other.seen == e.seen)
        if first is e:
            parts += [
                ("reconstructions", "Masked input, reconstruction, target", e.reconstructions()),
                ("attention", "Where the representation looks", e.attention()),
                ("map", "Map of the representations", e.embedding()),
            ]
        else:
            text = f"Of the same encoders and images as those of {first.title}, where they stand."
            parts.append(("encoders", "Reconstructions, attention, map of the representations", _note(text)))
        body = "".join(
            f'<section id="{name}-{e.number}"><h3>{title}</h3>\n{content}</section>\n' for name, title, content in parts
        )
        sections.append((f"evaluation-{e.number}", e.title, body))
    sections.append(("training", "Training curves", _training(evaluations, figures)))
    sections.append(("audit", "Audit of the data", _audit(audit)))
    provenance = "".join(f"<h3>{_text(e.title)}</h3>{e.provenance()}" for e in evaluations)
    sections.append(("provenance", "Commands, seeds, versions", provenance))
    links = "".join(f'<li><a href="#{name}">{_text(title)}</a></li>' for name, title, _ in sections)
    data = list(dict.fromkeys(_data_name(e.result["dataset"]) for e in evaluations))
    lead = f"{_listing(models) or 'Baselines'} on {_listing(data)}"
    body = "".join(
        f'<section id="{name}"><h2>{_text(title)}</h2>\n{content}</section>\n' for name, title, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Whatever a name may hold: this page loads nothing and runs nothing.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline';"
        ' img-src data:">\n'
        f'<link rel="icon" href="data:,">\n<title>{_text(lead)}: evaluation report</title>\n<style>{CSS}</style>\n'
        f'</head>\n<body>\n<header><p class="kind">Evaluation report</p><h1>{_text(lead)}</h1>\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>{_note(credit) if credit else ""}</header>\n'
        f"<main>\n{body}</main>\n"
        "<footer><p>Made by ConRec for MONAI. Everything on this page is inside this file.</p></footer>\n"
        "</body>\n</html>\n"
    )


# --- pieces of HTML ---------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    return html.escape(draw.plain_text(value), quote=True)


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


def _code(text: Any) -> str:
    # Line breaks stay.
    lines = "\n".join(_text(line) for line in str(text).split("\n"))
    return f'<pre tabindex="0"><code>{lines}</code></pre>'


def _grid(figures: Sequence[str]) -> str:
    return f'<div class="figures">{"".join(figures)}</div>' if figures else ""


def _folded(title: str, content: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{_text(title)}</summary>{content}</details>" if content else ""


def _row(name: str, cells: Iterable[str]) -> str:
    """A row of a table; ``name`` is plain text, the cells are HTML."""
    return f'<tr><th scope="row">{_text(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _table(caption: str, heads: Sequence[str], body: Sequence[tuple[str, Sequence[str]]], style: str) -> str:
    """A table that scrolls in its box; rows come in groups by kind, which are titled."""
    top = "".join(f'<th scope="col">{_text(head)}</th>' for head in heads)
    groups = []
    for kind, rows in body:
        title = (
            f'<tr class="kind"><th scope="rowgroup" colspan="{len(heads)}"><span>{_text(KINDS.get(kind, kind))}</span>'
            "</th></tr>"
            if kind
            else ""
        )
        groups.append(f'<tbody class="{_slug(kind)}">{title}{"".join(rows)}</tbody>')
    label = _text(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="{style}">'
        f"<caption>{label}</caption><thead><tr>{top}</tr></thead>{''.join(groups)}</table></div>\n"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def _signed(value: float) -> str:
    text = f"{value:+.3f}"
    return "+0.000" if text == "-0.000" else text.replace("-", "−")


def _span(interval: Sequence[float | None]) -> str:
    low, high = interval
    return "" if low is None or high is None else f"[{_number(low)}, {_number(high)}]"


def _difference(value: Mapping[str, Any], stacked: bool = False) -> str:
    if value["difference"] is None:
        return "–"
    low, high = value["interval"]
    span = "" if low is None or high is None else f"[{_signed(low)}, {_signed(high)}]"
    return f"<b>{_signed(value['difference'])}</b>{'' if stacked else ' '}<small>{span}</small>"


def _turned(value: Mapping[str, Any]) -> dict[str, Any]:
    """The difference the other way round."""
    low, high = (None if bound is None else -bound for bound in value["interval"])
    difference = value["difference"]
    return {**value, "difference": None if difference is None else -difference, "interval": [high, low]}


def _verdict(value: Mapping[str, Any], metric: str) -> str:
    low, high = value["interval"]
    if low is None or high is None or low <= 0 <= high:
        return "no clear difference"
    return "better" if (low > 0) == higher_is_better(metric) else "worse"


def _p_value(value: float | None) -> str:
    return "" if value is None else "p &lt; 0.001" if value < 0.001 else f"p = {value:.3f}"


def _block_title(block: tuple[str, str | None]) -> str:
    return TITLES.get(block, " ".join(part for part in block if part).replace("_", " "))


def _class_counts(classes: Sequence[Mapping[str, Any]]) -> str:
    if len(classes) > 12:
        counts = [int(entry["count"]) for entry in classes]
        return f"{len(classes)}, of {min(counts)} to {max(counts)} images"
    return ", ".join(f"{draw._numbered(i, str(c['name']))}: {c['count']}" for i, c in enumerate(classes))


def _count(values: Any) -> str:
    values = values if isinstance(values, list) else [values]
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)} to {max(values)}"


def _listing(names: Sequence[str], most: int = 4) -> str:
    names = list(names[:most]) + ([f"{len(names) - most} more"] if len(names) > most else [])
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


CSS = """
:root { --ink: #1b2733; --soft: #5b6875; --rule: #d9dfe5; --wash: #f5f7f9; --accent: #00629b; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff; line-height: 1.55; font-size: 1rem;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
header, main, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 4rem; }
.kind { margin: 0; }
header .kind { color: var(--accent); font-weight: 600; letter-spacing: .04em; font-size: .9rem; }
h1 { font-size: clamp(1.7rem, 1.2rem + 2.4vw, 2.6rem); line-height: 1.15; margin: .4rem 0 1.6rem; font-weight: 650;
  letter-spacing: -.015em; overflow-wrap: anywhere; text-wrap: balance; }
h2 { font-size: 1.55rem; line-height: 1.25; margin: 4.5rem 0 1.2rem; padding-top: 1.1rem; font-weight: 650;
  border-top: 3px solid var(--accent); letter-spacing: -.01em; overflow-wrap: anywhere; }
h3 { font-size: 1.2rem; margin: 3rem 0 .9rem; font-weight: 650; }
h4 { font-size: 1rem; margin: 2rem 0 .6rem; font-weight: 650; }
p { max-width: 42rem; margin: .6rem 0 1rem; }
a { color: var(--accent); text-underline-offset: .18em; }
nav ul { list-style: none; margin: 0; padding: .9rem 0; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem;
  border-top: 1px solid var(--rule); border-bottom: 1px solid var(--rule); font-size: .92rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.lead { color: var(--soft); }
.note { color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.6rem; margin: 0 0 1.6rem; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.notice { background: #fdf6e7; border-left: 4px solid #b97f00; padding: .9rem 1.2rem; margin: 1.6rem 0;
  border-radius: 0 6px 6px 0; }
.notice h3, .notice h4 { font-size: 1rem; margin: 0 0 .4rem; }
.notice ul { margin: 0; padding-left: 1.1rem; }
.notice li { margin: .25rem 0; max-width: 52rem; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem;
  margin: 1.4rem 0 2.4rem; }
.card { border: 1px solid var(--rule); border-radius: 8px; padding: 1.1rem 1.3rem; }
.card h4 { margin: 0; overflow-wrap: anywhere; }
.card .score { font-size: 2.5rem; font-weight: 650; line-height: 1.15; margin: .2rem 0 .8rem; color: var(--accent);
  font-variant-numeric: tabular-nums; letter-spacing: -.02em; }
.card .score small { font-size: .9rem; font-weight: 400; color: var(--soft); letter-spacing: 0; white-space: nowrap; }
.card ul { list-style: none; margin: 0; padding: 0; font-size: .88rem; }
.card li { border-top: 1px solid var(--rule); padding: .45rem 0; font-variant-numeric: tabular-nums; }
.card .rival { display: block; color: var(--soft); overflow-wrap: anywhere; }
.card li small { color: var(--soft); }
.verdict { font-size: .78rem; padding: .08rem .5rem; border-radius: 1rem; background: #e9edf1; white-space: nowrap;
  color: var(--ink); }
.verdict.better { background: #d9ebf6; color: #004a75; font-weight: 600; }
.verdict.worse { background: #fae3d3; color: #8a3300; font-weight: 600; }
details { border-top: 1px solid var(--rule); }
details + p, details + section { border-top: 1px solid var(--rule); padding-top: 1rem; }
summary { cursor: pointer; padding: .6rem 0; font-weight: 600; font-size: .95rem; }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.scroll { overflow-x: auto; margin: 1rem 0 1.8rem; }
.scroll:focus-visible, pre:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; min-width: 100%; }
caption { text-align: left; font-weight: 650; padding: 0 0 .5rem; }
th, td { text-align: left; padding: .45rem .65rem; vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; border-bottom: 2px solid var(--ink); vertical-align: bottom;
  line-height: 1.3; }
tbody th { font-weight: 500; background: #fff; }
table.scores tbody th[scope=row], table.scores thead th:first-child { position: sticky; left: 0; background: #fff;
  min-width: 11rem; max-width: 15rem; overflow-wrap: anywhere; }
table.text td { overflow-wrap: break-word; }
table.text code { overflow-wrap: anywhere; }
tbody tr + tr th, tbody tr + tr td { border-top: 1px solid var(--rule); }
tr.kind th { color: var(--accent); font-weight: 600; font-size: .8rem; padding-top: 1.1rem; letter-spacing: .01em; }
tr.kind span { position: sticky; left: .8rem; }
tbody td b { font-weight: 600; display: block; }
table.scores td { white-space: nowrap; }
table.scores td > small { display: block; }
tbody td small { color: var(--soft); font-size: .78rem; white-space: nowrap; }
table.scores tbody.baseline th, table.scores tbody.baseline td, table.scores tbody.untrained th,
table.scores tbody.untrained td { background: var(--wash); color: #3d4954; }
table.scores tbody.baseline b, table.scores tbody.untrained b { font-weight: 400; }
table.scores tbody.baseline { border-top: 2px solid var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 2.6rem 3rem;
  margin: 1.4rem 0; align-items: start; }
figure { margin: 0; max-width: 30rem; }
figure svg, figure img { display: block; width: 100%; max-width: 30rem; height: auto; }
figcaption { font-size: .85rem; line-height: 1.5; color: var(--soft); margin-top: .7rem; overflow-wrap: anywhere; }
figcaption strong { color: var(--ink); font-weight: 650; }
pre { background: var(--wash); border-radius: 6px; padding: .9rem 1.1rem; overflow-x: auto; font-size: .82rem;
  line-height: 1.5; max-height: 26rem; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size: .92em; }
footer { margin-top: 5rem; padding-bottom: 3rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 40rem) {
  header { padding-top: 2.2rem; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: .7rem; }
  h2 { margin-top: 3.2rem; }
  table.scores tbody th[scope=row], table.scores thead th:first-child { min-width: 6.5rem; max-width: 8.5rem; }
  th, td { padding: .4rem .6rem; }
}
@media print {
  @page { margin: 16mm 14mm; }
  body { font-size: 9.5pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  header, main, footer { max-width: none; padding: 0; }
  header { padding-top: 0; }
  nav { display: none; }
  h2 { margin-top: 2rem; }
  h2, h3, h4, caption { break-after: avoid; }
  section[id^=evaluation] + section[id^=evaluation] { break-before: page; }
  figure, .card, .notice, tbody tr { break-inside: avoid; }
  .figures { grid-template-columns: 1fr 1fr; gap: 1.4rem; }
  details:not([open]) { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; min-width: 0; width: 100%; }
  th, td { padding: .25rem .35rem; }
  tbody td small { font-size: 6.3pt; }
  table.scores tbody th[scope=row], table.scores thead th:first-child { position: static; min-width: 0; }
  .verdict { font-size: 6.5pt; padding: .05rem .3rem; }
  pre { max-height: none; }
}
"""
