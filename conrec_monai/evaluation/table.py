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

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["format_table"]

TITLES = {
    ("linear", "published"): "Linear, as published (raw representation, C = 1)",
    ("linear", "standardized"): "Linear, standardized (C chosen inside the training folds)",
    ("levels", None): "Linear, standardized, on average and maximum of every level",
    ("knn", None): "Nearest neighbors",
    ("frozen_head", None): "Head trained on the frozen encoder, with augmentation",
    ("fine_tune", None): "Fine-tuned as a whole, from the pretrained weights",
    ("supervised", None): "Trained as a whole, from random weights",
}
SHORT = {
    "accuracy": "acc.",
    "balanced_accuracy": "bal.acc.",
    "referable_sensitivity": "sens@90",
}


def format_table(result: Mapping[str, Any]) -> str:
    """The result of an evaluation (``metrics.json``, docs/evaluation.md) as text.

    A block for each protocol: the first metric with its 95 % interval, then the others, all means over folds. Below
    stand the label-efficiency curves, where there are some, and how each pretrained model differs from the others:
    clear where the 95 % interval of the paired difference leaves 0 out.
    """
    metrics, folds, dataset = result["metrics"], result["folds"], result["dataset"]
    images = f"{dataset['labelled']} labelled images"
    if folds["kind"] == "other data set":
        tested = sum(entry["test_count"] for entry in result["classes"])
        images = f"{dataset['labelled'] - tested} labelled images"
        plan = f"fitted on {folds['train'][0]} of them, scored on {folds['test'][0]} of {dataset['test_path']}"
    elif folds["kind"] == "official":
        plan = f"official split, fitted on {folds['train'][0]} of them, scored on {folds['test'][0]}"
    else:
        plan = f"{folds['n']} {folds['kind']} folds x {folds['repeats']}, seed {folds['seed']}"
    text = [
        f"{dataset['path']}: {images}, {len(result['classes'])} classes, {plan}"
        + (f"; {dataset['unlabelled']} unlabelled left out" if dataset["unlabelled"] else ""),
        f"{metrics[0]} with its 95 % interval; the others without",
    ]
    blocks: dict[tuple[str, str | None], list[Mapping[str, Any]]] = {}
    for entry in result["results"]:
        blocks.setdefault((entry["protocol"], entry["variant"]), []).append(entry)
    width = max(len(entry["model"]) for entry in result["results"])
    for block, entries in blocks.items():
        largest = max(entry["fraction"] for entry in entries)
        share = "" if largest == 1 else f", {100 * largest:g} % of the training labels"
        heads = [f"{SHORT.get(name, name):>8}" for name in metrics[1:]]
        text += ["", TITLES[block] + share, "  ".join([" " * width, f"{metrics[0]:>20}", *heads])]
        for entry in entries:
            if entry["fraction"] == largest:
                cells = [f"{_number(entry['metrics'][name]['mean']):>8}" for name in metrics[1:]]
                text.append(
                    "  ".join([f"{entry['model']:{width}}", f"{_cell(entry['metrics'][metrics[0]]):>20}", *cells])
                )
        fractions = sorted({entry["fraction"] for entry in entries})
        if len(fractions) > 1:
            text += ["", f"  {metrics[0]} by share of the training labels"]
            text.append("  ".join([" " * width, *(f"{100 * fraction:>6g} %" for fraction in fractions)]))
            for model in dict.fromkeys(entry["model"] for entry in entries):
                values = {e["fraction"]: e["metrics"][metrics[0]]["mean"] for e in entries if e["model"] == model}
                text.append("  ".join([f"{model:{width}}", *(f"{_number(values.get(f)):>8}" for f in fractions)]))
    text += _differences(result, blocks)
    if result["statements"]:
        text += ["", "To keep in mind:", *(f"  - {statement}" for statement in result["statements"])]
    return "\n".join(line.rstrip() for line in text)


def _differences(result: Mapping[str, Any], blocks: Mapping[tuple, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The differences of the first metric under the protocol that carries the claims; between methods, where one has
    several runs."""
    claims = ("linear", "standardized")
    block = claims if claims in blocks else next(iter(blocks))
    largest = max(entry["fraction"] for entry in blocks[block])
    several = any(entry["runs"] > 1 for entry in result.get("methods", ()))
    key = "method" if several else "model"
    chosen = [
        entry
        for entry in result["methods" if several else "comparisons"]
        if (entry["protocol"], entry["variant"]) == block and entry["fraction"] == largest
    ]
    if not chosen:
        return []
    metric = result["metrics"][0]
    same = "same folds" if result["folds"]["n"] > 1 else "same images"
    text = ["", f"Differences in {metric} on the {same}, with 95 % intervals: {TITLES[block]}"]
    text += ["Means over the runs of each method"] if several else []
    width = max(len(entry["other"]) for entry in chosen)
    for model in dict.fromkeys(entry[key] for entry in chosen):
        text.append(f"  {model} against")
        for entry in chosen:
            if entry[key] == model:
                found = entry["metrics"][metric]
                low, high = found["interval"]
                known = low is not None and high is not None
                verdict = "no clear difference" if not known or low <= 0 <= high else "better" if low > 0 else "worse"
                span = f"[{low:+.3f}, {high:+.3f}]" if known else "[no interval]"
                value = "none" if found["difference"] is None else f"{found['difference']:+.3f}"
                text.append(f"    {entry['other']:{width}}  {value} {span}  {verdict}")
    return text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cell(value: Mapping[str, Any]) -> str:
    low, high = value["interval"]
    return _number(value["mean"]) + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")
