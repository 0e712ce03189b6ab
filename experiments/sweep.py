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

"""Settings of the pretraining against each other, in equal minutes, on a development part of a graded data set.

All images are pretrained on, without labels. The grades of the development part choose among the settings; those of the
rest (the report part) are not looked at here. Runs are made one at a time; the same command goes on where it was
stopped. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import (
    BUNDLE,
    bundle_command,
    interruptible,
    last_line,
    read_json,
    run_child,
    save_untrained,
    write_json,
    write_text,
)

from conrec_monai import load_encoder
from conrec_monai.bundle import recipe_values
from conrec_monai.data import CachedImages, Datalist, load_datalist
from conrec_monai.evaluation import (
    compare_runs,
    duplicate_groups,
    embed,
    embed_levels,
    linear_predictions,
    make_folds,
    score,
)
from conrec_monai.evaluation.duplicates import merge_groups
from conrec_monai.evaluation.evaluate import untrained_encoders
from conrec_monai.evaluation.folds import complete_groups
from conrec_monai.evaluation.predictions import Predictions
from conrec_monai.evaluation.store import PredictionStore, digest
from conrec_monai.handlers.checkpoint import ENCODER
from conrec_monai.networks.utils import read_checkpoint, untrained_like

__all__ = ["PARTS", "REPRESENTATIONS", "UNTRAINED", "Sweep", "shown_machine", "shown_settings", "write_parts"]

PARTS = ("development", "report")
DEVELOPMENT_FOLDS = 2  # of 5
DUPLICATES_SIZE = 224
REPRESENTATIONS = {"h": embed, "levels": embed_levels}
UNTRAINED = "untrained"
# Settings that weights and images of an untrained encoder depend on.
ARCHITECTURE = (
    "recipe",
    "image_size",
    "cache_size",
    "features",
    "pooling",
    "field_of_view",
    "resize",
    "in_channels",
    "network_def",
)
# Settings that a step's time does not depend on.
TIMELESS = {"recipe", "alpha", "temperature", "learning_rate", "schedule", "max_epochs"}
KEYS = {"about", "dataset", "minutes", "seeds", "settings", "variants"}


def write_parts(dataset: str, path: Path) -> None:
    """Splits a graded data set into a development and a report part, and writes both as a MONAI datalist.

    The development part is the test part of the first two of 5 stratified folds (seed 0); duplicates and patients are
    on one side.

    Args:
        dataset: see :func:`conrec_monai.data.load_datalist`.
        path: of the datalist, .json.

    Raises:
        ValueError: when the data set has no grades.
    """
    datalist = load_datalist(dataset)
    if not datalist.info.ordinal or any(item["label"] is None for item in datalist):
        raise ValueError(f"{dataset} holds images without grades; a sweep needs the grade of each.")
    images = CachedImages(datalist, DUPLICATES_SIZE, "squash", 3, os.cpu_count() or 1).load()
    declared = [item["group"] for item in datalist]
    groups = complete_groups(merge_groups(declared, duplicate_groups(images.images)))
    labels = np.array([item["label"] for item in datalist])
    folds = make_folds(labels, groups, n_folds=5, seed=0)
    development = {int(i) for _, test in folds[:DEVELOPMENT_FOLDS] for i in test}
    entries: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for i, item in enumerate(datalist):
        entry = {"image": str(Path(item["image"]).resolve()), "label": int(labels[i])}
        if groups is not None:
            entry["group"] = f"group {groups[i]}"
        entries[PARTS[i not in development]].append(entry)
    names = datalist.info.class_names or [str(i) for i in range(labels.max() + 1)]
    write_json(path, {"labels": {str(i): name for i, name in enumerate(names)}, "ordinal": True, **entries})


class _Run(NamedTuple):
    """One training, or one encoder with random weights."""

    variant: str
    seed: int
    settings: dict[str, Any]


class Sweep:
    """Runs what a configuration asks for.

    Args:
        config: of a .json file: "about" (a sentence), "dataset" (below ``data``), "minutes" (of each training),
            "seeds", "settings" (of train.json, of all runs) and "variants" (name: settings that differ; the first is
            the one that all others are compared with). A variant ``{"untrained": true}`` has random weights.
        name: of the results.
        data: folder of the data sets.
        results: folder of the results; created.
        progress: prints a line.

    Raises:
        ValueError: when the configuration is wrong.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        name: str,
        data: Path,
        results: Path,
        progress: Callable[[str], None] = print,
    ) -> None:
        _check(config, name)
        self.config, self.name, self.results, self.progress = config, name, results, progress
        self.dataset = str(data / config["dataset"])
        self.parts = results / f"parts_{config['dataset'].replace('/', '_')}.json"
        self.store = PredictionStore(results / "predictions")
        self._development: dict[tuple, CachedImages] = {}

    def runs(self) -> list[_Run]:
        """All runs, seed by seed."""
        return [
            _Run(variant, seed, {**self.config["settings"], **changes})
            for seed in self.config["seeds"]
            for variant, changes in self.config["variants"].items()
        ]

    def run(self) -> None:
        """Makes the runs that are not there yet; writes a line of ``<name>.jsonl`` after each, and the table."""
        if not self.parts.is_file():
            self.progress(f"splitting {self.dataset} into {' and '.join(PARTS)} part")
            write_parts(self.dataset, self.parts)
        scored = {self._key(run) for run in self.runs() if self._is_scored(run)}
        lines = [line for line in self.lines() if line["key"] in scored]
        for number, run in enumerate(self.runs(), 1):
            key = self._key(run)
            if any(line["key"] == key for line in lines):
                continue
            self.progress(f"{self.name} {number}/{len(self.runs())}: {run.variant}, seed {run.seed}")
            line = {"variant": run.variant, "seed": run.seed, "key": key, **self._line(run)}
            shown = ", ".join(f"{name} {line[name]:.4f}" for name in REPRESENTATIONS)
            self.progress(f"  {line['epochs']} epochs in {line['minutes']:.1f} minutes; kappa {shown}")
            lines.append(line)
            text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in lines)
            write_text(self.results / f"{self.name}.jsonl", text)
            write_text(self.results / f"{self.name}.md", self.table(lines))
        write_text(self.results / f"{self.name}.md", self.table(lines))

    def lines(self) -> list[dict[str, Any]]:
        """What was written for the runs of this configuration.

        Raises:
            ValueError: when the file is damaged.
        """
        path = self.results / f"{self.name}.jsonl"
        wanted = {self._key(run) for run in self.runs()}
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return [line for line in lines if line["key"] in wanted]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it: what was trained is used again.") from None

    def _key(self, run: _Run) -> str:
        settings, minutes = _values(run.settings), self.config["minutes"]
        if settings.get(UNTRAINED):  # random weights of an architecture, whatever it would be trained with
            trained, minutes = _values(self._trained(run.seed).settings), 0
            settings = {name: trained[name] for name in ARCHITECTURE if name in trained} | {UNTRAINED: True}
        return digest(settings, run.seed, minutes, self.config["dataset"])

    def _trained(self, seed: int) -> _Run:
        """The run of the first variant that is trained."""
        return next(run for run in self.runs() if run.seed == seed and not run.settings.get(UNTRAINED))

    def _line(self, run: _Run) -> dict[str, Any]:
        path = self.encoder(run)
        about = {"epochs": 0, "minutes": 0.0} if run.settings.get(UNTRAINED) else _training(path.parent)
        scores = self._score(load_encoder(path), read_checkpoint(path)["preprocessing"], run)
        return {"settings": run.settings, **about, **scores}

    # --- training ----------------------------------------------------------------------------------------------------

    def encoder(self, run: _Run) -> Path:
        """The file of a run's encoder, which is trained where it is not there yet.

        One with random weights has the architecture of the first variant that is trained.
        """
        if not run.settings.get(UNTRAINED):
            return self._train(run) / ENCODER
        path = self._folder(run) / ENCODER
        if not path.is_file():
            first = self.encoder(self._trained(run.seed))
            trained = load_encoder(first)  # before the seed is set: building it draws numbers too
            network = untrained_encoders(lambda: untrained_like(trained), [run.seed])[run.seed]
            save_untrained(path, network, read_checkpoint(first)["preprocessing"])
        return path

    def _folder(self, run: _Run) -> Path:
        return self.results / "runs" / self._key(run)

    def _command(self, run: _Run, dataset: str, output: Path, **others: Any) -> list[str]:
        options = {"dataset_dir": dataset, "output_dir": output, "probe_every": 0, "pictures_every": 0, **run.settings}
        return [sys.executable, *bundle_command({**options, **others})]

    def _train(self, run: _Run) -> Path:
        """Trains for the minutes that the configuration gives; at once when it was done before."""
        folder = self._folder(run)
        if (folder / ENCODER).is_file():
            return folder
        epochs = (read_json(folder / "sweep.json") or {}).get("epochs") or self._epochs(run)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "sweep.json", {"variant": run.variant, "seed": run.seed, "epochs": epochs, **run.settings})
        self.progress(f"  {epochs} epochs")
        cache = self.results / "cache"
        more = {"max_epochs": epochs, "seed": run.seed, "cache_dir": cache, "resume": True}
        self._bundle(self._command(run, self.dataset, folder, **more), folder / "train.log")
        if not (folder / ENCODER).is_file():
            raise ValueError(f"the training in {folder} ended without an {ENCODER}, see train.log")
        return folder

    def _epochs(self, run: _Run) -> int:
        """How many epochs fit into the minutes, as measured on drawn images: a schedule must know its end, and must
        not depend on what else the machine does. All seeds of a variant get the same number, and so do variants that
        differ in settings which take no time."""
        values = _values(run.settings)
        folder = self._rate_folder(run)
        record = read_json(folder / "rate.json")
        if record is None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            n, size = 8 * values["batch_size"], values.get("cache_size") or values["image_size"]
            more = {"max_epochs": 3, "seed": 0, "health_every": 0}
            command = self._command(run, f"phantom:n={n},size={size}", folder / "run", **more)
            self._bundle(command, folder / "rate.log")
            with (folder / "run" / "metrics.csv").open(newline="", encoding="utf-8") as file:
                rates = [float(line["images_per_second"]) for line in csv.DictReader(file)]
            machine = (read_json(folder / "run" / "metrics.json") or {}).get("machine")
            record = {"images_per_second": max(rates), "machine": machine}
            shutil.rmtree(folder / "run")
            write_json(folder / "rate.json", record)
        images = len(load_datalist(self.dataset))
        return max(1, round(record["images_per_second"] * 60 * self.config["minutes"] / images))

    def _rate_folder(self, run: _Run) -> Path:
        timed = {name: value for name, value in _values(run.settings).items() if name not in TIMELESS}
        return self.results / "rates" / digest(timed)

    def rated_on(self) -> list[str]:
        """The machines whose speed the numbers of epochs come from."""
        records = [read_json(self._rate_folder(run) / "rate.json") or {} for run in self.runs()]
        return sorted({shown_machine(record["machine"]) for record in records if record.get("machine")})

    @staticmethod
    def _bundle(command: Sequence[str], log: Path) -> None:
        with log.open("a", encoding="utf-8") as file:
            status = run_child(command, file)
        if status:
            raise ValueError(f"a training failed, {log} ends with: {last_line(log)}")

    # --- scores ------------------------------------------------------------------------------------------------------

    def _images(self, preprocessing: Mapping[str, Any], channels: int) -> CachedImages:
        options = (preprocessing["image_size"], preprocessing["resize"], channels)
        view = preprocessing.get("field_of_view")
        if (*options, view) not in self._development:
            datalist = load_datalist(self.parts, PARTS[0])
            images = CachedImages(datalist, *options, os.cpu_count() or 1, field_of_view=view)
            self._development[(*options, view)] = images.load()
        return self._development[(*options, view)]

    def _score(self, encoder: torch.nn.Module, preprocessing: Mapping[str, Any], run: _Run) -> dict[str, float]:
        """Kappa of the standardized linear model on 5 grouped folds of the development part."""
        images = self._images(preprocessing, encoder.config["in_channels"])  # type: ignore[index,arg-type]
        labels, groups, folds = self._plan(images.data)  # type: ignore[arg-type]
        result = {}
        for name, function in REPRESENTATIONS.items():
            features = function(encoder, images.images)
            predictions = linear_predictions(features, labels, folds, "diabetic", True, labels.max() + 1, groups)
            self.store.put({"run": self._key(run), "features": name}, predictions)
            result[name] = score(labels, predictions, True, labels.max() + 1)["qwk"]["mean"]
        return result  # type: ignore[return-value]

    @staticmethod
    def _plan(data: Datalist) -> tuple[np.ndarray, np.ndarray | None, list]:
        labels = np.array([item["label"] for item in data])
        groups = complete_groups([item["group"] for item in data])
        return labels, groups, make_folds(labels, groups, n_folds=5, seed=0)

    def _predictions(self, run: _Run, name: str) -> Predictions | None:
        return self.store.get({"run": self._key(run), "features": name})

    def _is_scored(self, run: _Run) -> bool:
        return all(self._predictions(run, name) is not None for name in REPRESENTATIONS)

    def table(self, lines: Sequence[Mapping[str, Any]]) -> str:
        """The means over the seeds, and the differences to the first variant, as Markdown."""
        labels, groups, _ = self._plan(load_datalist(self.parts, PARTS[0]))
        seeds = self.config["seeds"]
        by_key = {line["key"]: line for line in lines}
        finished = [run for run in self.runs() if self._key(run) in by_key]
        found: dict[str, dict[str, list[Predictions]]] = {}
        for run in finished:
            for name in REPRESENTATIONS:
                predictions = self._predictions(run, name)
                assert predictions is not None
                found.setdefault(run.variant, {}).setdefault(name, []).append(predictions)
        first = next(iter(self.config["variants"]))
        text = [
            f"# {self.name}",
            "",
            f"{self.config['about']}",
            "",
            f"Common settings: {shown_settings(self.config['settings'])}. {self.config['minutes']:g} minutes of"
            f" training each, seeds {', '.join(map(str, seeds))}. Quadratic weighted kappa x 100, standardized linear"
            f" model, 5 grouped folds of the development part ({len(labels)} images), mean over the seeds and (in"
            " parentheses) each; differences to the first row with 95 % intervals over images and seeds.",
            "",
            "| variant | epochs | contrastive loss | h | difference | all levels | difference |",
            "|---|---|---|---|---|---|---|",
        ]
        for variant, changes in self.config["variants"].items():
            own = [by_key[self._key(run)] for run in finished if run.variant == variant]
            if not own:
                continue
            losses = [line["contrastive_loss"] for line in own if "contrastive_loss" in line]
            cells = [_title(variant, changes), " / ".join(sorted({str(line["epochs"]) for line in own}))]
            cells.append(f"{np.mean(losses):.2f}" if losses else "")
            for name in REPRESENTATIONS:
                values = [100 * line[name] for line in own]
                each = f" ({', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.1f}{each}")
                cells.append("")
                if variant != first and first in found:
                    arguments = (labels, found[variant][name], found[first][name], groups, True, int(labels.max()) + 1)
                    compared = compare_runs(*arguments)["qwk"]
                    low, high = compared["interval"]  # type: ignore[misc]
                    cells[-1] = f"{100 * compared['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            text.append(f"| {' | '.join(cells)} |")
        return "\n".join(text) + "\n"


def _values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the values of their recipe: what a training depends on."""
    config = read_json(BUNDLE / "configs" / "train.json")
    assert config is not None
    return {**recipe_values(settings.get("recipe", config["recipe"]), config["recipes"]), **settings}


def _check(config: Mapping[str, Any], name: str) -> None:
    """Checks the content of a configuration."""
    if set(config) != KEYS:
        raise ValueError(f"{name}: expected the keys {', '.join(sorted(KEYS))}, got {', '.join(sorted(config))}.")
    minutes, seeds, settings, variants = (config[key] for key in ("minutes", "seeds", "settings", "variants"))
    if not isinstance(config["dataset"], str) or not config["dataset"]:
        raise ValueError(f"{name}: dataset must be a path below that of the data sets, got {config['dataset']!r}.")
    if not isinstance(minutes, int | float) or not 0 < minutes < float("inf"):
        raise ValueError(f"{name}: minutes must be a positive number, got {minutes!r}.")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError(f"{name}: seeds must be a list of whole numbers, got {seeds!r}.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{name}: seeds must differ, got {seeds!r}.")
    if not isinstance(settings, dict) or not isinstance(variants, dict) or not variants:
        raise ValueError(f"{name}: settings and variants must be objects, got {settings!r} and {variants!r}.")
    if UNTRAINED in settings:
        raise ValueError(f"{name}: {UNTRAINED} is for a variant, not for the settings of all.")
    known: dict[str, str] = {}
    for variant, changes in variants.items():
        if not variant.strip() or set(variant) & set("=@|"):
            raise ValueError(f"{name}: the name of a variant must be free of =, @ and |, got {variant!r}.")
        if not isinstance(changes, dict):
            raise ValueError(f"{name}: the variant {variant!r} must be an object of settings, got {changes!r}.")
        if UNTRAINED in changes and (changes[UNTRAINED] is not True or len(changes) > 1):
            raise ValueError(
                f'{name}: random weights are {{"{UNTRAINED}": true}} alone, the variant {variant!r} is {changes!r}.'
            )
        other = known.setdefault(digest(_values({**settings, **changes})), variant)
        if other != variant:
            raise ValueError(f"{name}: the variants {other!r} and {variant!r} have the same settings.")
    if all(changes.get(UNTRAINED) for changes in variants.values()):
        raise ValueError(f"{name}: expected at least one variant that is trained.")


def shown_settings(settings: Mapping[str, Any]) -> str:
    """Settings as Markdown."""
    return ", ".join(f"`{name} {str(value).replace(' ', '')}`" for name, value in settings.items()) or "none"


def shown_machine(machine: Mapping[str, Any]) -> str:
    """A machine as a run's ``metrics.json`` has it, in words."""
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    return f"{machine['device']}, {threads}, {'bfloat16' if machine['bfloat16'] else 'float32'}"


def _title(variant: str, changes: Mapping[str, Any]) -> str:
    return f"{variant}: {shown_settings(changes)}" if changes and UNTRAINED not in changes else variant


def _training(folder: Path) -> dict[str, Any]:
    """What a run of the bundle wrote about itself."""
    record = read_json(folder / "metrics.json")
    assert record is not None
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    last = rows[-1]
    return {
        "epochs": int(record["epoch"]),
        "minutes": round(sum(float(row["seconds"]) for row in rows) / 60, 2),
        "images_per_second": float(np.median([float(row["images_per_second"]) for row in rows])),
        "contrastive_loss": float(last["contrastive_loss"]),
        "reconstruction_loss": float(last["reconstruction_loss"]),
        "versions": record["versions"],
        "machine": record["machine"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments/sweep.py", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="a .json file, such as those in experiments/sweeps")
    parser.add_argument(
        "--data", metavar="DIR", type=Path, default="../data", help="of the data sets (default: ../data)"
    )
    parser.add_argument("--results", metavar="DIR", type=Path, default="output/sweep", help="(default: output/sweep)")
    options = parser.parse_args(arguments)

    def work() -> None:
        config = read_json(options.config)
        if config is None:
            raise FileNotFoundError(f"there is no configuration {options.config}.")
        Sweep(config, options.config.stem, options.data, options.results, lambda line: print(line, flush=True)).run()

    return interruptible(work)


if __name__ == "__main__":
    sys.exit(main())
