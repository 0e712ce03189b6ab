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

"""What the table and the figure share: data sets, models, presets, and jobs that go on where they were stopped."""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch

from conrec_monai.bundle.training import pretraining_data
from conrec_monai.data import load_datalist
from conrec_monai.handlers.checkpoint import CHECKPOINT, ENCODER, FREE_SETTINGS, data_fingerprint
from conrec_monai.networks.nets import ConRecEncoder, DenseNetEncoder
from conrec_monai.networks.nets.densenet import WEIGHTS_URL
from conrec_monai.networks.utils import read_checkpoint, save_checkpoint

__all__ = [
    "COLUMNS",
    "PRESETS",
    "PRETRAINED",
    "ROWS",
    "Column",
    "Job",
    "Lab",
    "Preset",
    "Row",
    "bundle_command",
    "chosen",
    "command_line",
    "interruptible",
    "last_line",
    "read_json",
    "run_child",
    "save_untrained",
    "write_json",
    "write_text",
]

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "conrec_pretraining"
WEIGHTS = WEIGHTS_URL.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Column:
    """A data set as one column shows it.

    Attributes:
        key: names its files.
        title: names it to a reader.
        source: key of the column whose encoders it uses; its own but for another view of the same images.
        data: path below the data folder, or the specification of drawn pictures.
        drawn: whether it is the latter.
        published_classes: number of classes in the publication; None when it has no such column.
        field_of_view: of the evaluation; see docs/evaluation.md.
    """

    key: str
    title: str
    source: str
    data: str
    drawn: bool = False
    published_classes: int | None = None
    field_of_view: str | None = None


@dataclass(frozen=True)
class Row:
    """A model.

    Attributes:
        key: names its files.
        title: names it to a reader, as in Table 1 of arXiv 2104.04323.
        kind: "pretrained" here, "imagenet" or "supervised".
        options: of train.json, where they are not those of ConRec.
        parameters: as the publication counts them.
        published: the publication's scores by column, in percent, as it prints them.
    """

    key: str
    title: str
    kind: str
    parameters: str
    published: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)


# fmt: off
COLUMNS = (
    Column("aptos", "APTOS", "aptos", "aptos2019", published_classes=5),
    Column("aptos-normalized", "APTOS, normalized", "aptos", "aptos2019", field_of_view="normalize"),
    Column("flowers", "Flowers", "flowers", "oxford_flowers102", published_classes=102),
    Column("dogs", "Dogs", "dogs", "stanford_dogs", published_classes=120),
    Column("retinamnist", "RetinaMNIST", "retinamnist", "retinamnist/retinamnist.npz"),
    Column("circle-square", "circle-square", "circle-square", "circle-square", drawn=True),
    Column("rectangle-triangle", "rectangle-triangle", "rectangle-triangle", "rectangle-triangle", drawn=True),
)

SIMCLR = {"decoder": False, "masked_views": 0}
ROWS = (
    Row("simclr", "SimCLR U-net", "pretrained", "4.693M", {"aptos": "85.72", "flowers": "86.01", "dogs": "43.96"},
        {**SIMCLR, "pooling": "average"}),
    Row("simclr-attention", "SimCLR Attention U-net", "pretrained", "4.867M",
        {"aptos": "86.06", "flowers": "88.37", "dogs": "50.31"}, {**SIMCLR, "pooling": "attention"}),
    Row("conrec", "ConRec U-net", "pretrained", "4.867M", {"aptos": "89.44", "flowers": "90.29", "dogs": "49.57"}),
    Row("densenet-imagenet", "DenseNet121 (ImageNet)", "imagenet", "8.062M",
        {"aptos": "86.70", "flowers": "(92.97)", "dogs": "(88.07)"}),
    Row("unet-supervised", "U-net (random, supervised)", "supervised", "4.693M",
        {"aptos": "82.11", "flowers": "81.54", "dogs": "55.2"}),
    Row("densenet-supervised", "DenseNet121 (random, supervised)", "supervised", "8.062M",
        {"aptos": "64.53", "flowers": "82.03", "dogs": "57.63"}),
)
# fmt: on
# ConRec first: the differences are those of ConRec to the others.
PRETRAINED = tuple(sorted((row for row in ROWS if row.kind == "pretrained"), key=lambda row: row.key))


@dataclass(frozen=True)
class Preset:
    """Sizes and settings of all runs; mappings without a row are by the ``source`` of a column.

    Attributes:
        name: of the preset.
        features: channels of the levels of the U-nets.
        image_size: pixels.
        epochs: of the pretraining.
        training: options of train.json that differ from its defaults.
        supervised: what differs from the publication's settings in the supervised training, by row and source.
        evaluation: further options of ``python -m conrec_monai evaluate``.
        datasets: data sets that stand in for the columns' own.
    """

    name: str
    features: tuple[int, ...]
    image_size: Mapping[str, int]
    epochs: Mapping[str, int]
    training: Mapping[str, Any]
    supervised: Mapping[str, Mapping[str, Mapping[str, Any]]]
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)


SOURCES = tuple(dict.fromkeys(column.source for column in COLUMNS))
ADAM = {"optimizer": "adam", "learning_rate": 0.001, "batch_size": 32}
# Epochs of the supervised training in the cpu preset: what 20 minutes on 2 cores allow. A DenseNet121 takes six
# times as long per image as the small U-net.
CPU_SUPERVISED = {
    "unet-supervised": {**dict.fromkeys(SOURCES, 40), "aptos": 10},
    "densenet-supervised": {**dict.fromkeys(SOURCES, 15), "flowers": 40, "aptos": 3},
}
PRESETS = {
    "cpu": Preset(
        name="cpu",
        features=(16, 32, 64, 128),
        image_size={**dict.fromkeys(SOURCES, 64), "retinamnist": 32},
        epochs={
            "aptos": 16,
            "flowers": 60,
            "dogs": 40,
            "retinamnist": 30,
            "circle-square": 30,
            "rectangle-triangle": 30,
        },
        training={
            "batch_size": 32,
            "optimizer": "adamw",
            "schedule": "warmup_cosine",
            "probe_every": 0,
            "pictures_every": 0,
        },
        supervised={
            row: {source: {**ADAM, "epochs": epochs[source]} for source in SOURCES}
            for row, epochs in CPU_SUPERVISED.items()
        },
    ),
    # The publication's settings are the defaults of train.json and of the protocol "supervised".
    "gpu": Preset(
        name="gpu",
        features=(64, 128, 256, 512),
        image_size={**dict.fromkeys(SOURCES, 224), "circle-square": 128, "rectangle-triangle": 128},
        epochs={
            "aptos": 1200,
            "flowers": 2700,
            "dogs": 1200,
            "retinamnist": 1200,
            "circle-square": 1000,
            "rectangle-triangle": 1000,
        },
        training={"probe_every": 0},
        supervised={row: {source: {} for source in SOURCES} for row in CPU_SUPERVISED},
        evaluation={"repeats": 5},
    ),
}


class _Facts(NamedTuple):
    """What the jobs need to know of a data set: fingerprints of all images and of those of the pretraining."""

    images: str
    pretraining: str
    pretraining_images: int
    sees_test_images: bool
    channels: int


@cache
def _facts(dataset: str) -> _Facts:
    datalist = load_datalist(dataset)
    training = pretraining_data(dataset).training
    described = json.dumps([[item["id"], item["label"], item["split"]] for item in datalist])
    return _Facts(
        hashlib.sha256(described.encode()).hexdigest()[:24],
        data_fingerprint(training),
        len(training),
        len(training) == len(datalist),
        datalist.info.channels,
    )


class Job(NamedTuple):
    """A piece of work that is done at once when it was done before."""

    title: str
    done: Callable[[], bool]
    run: Callable[[], None]


class Lab:
    """A folder of results: runs jobs in it and says how they were run.

    ``pretrained/<source>/<row>/`` holds the pretrainings, ``architectures/`` networks with random weights for the
    supervised rows, ``evaluations/<column>/<name>/`` the evaluations.

    Args:
        preset: sizes and settings.
        data: folder of the data sets.
        results: folder of the results; created.
        epochs: of all pretrainings, in place of those of the preset.
        densenet: file of the ImageNet weights; by default the one that torch.hub keeps, where it has one.
        command: that started it, to be written down.
        progress: prints a line.
        supervised_epochs: of all supervised trainings, in place of those of the preset.

    Raises:
        ValueError, FileNotFoundError: when an argument cannot be used.
    """

    def __init__(
        self,
        preset: Preset,
        data: str | os.PathLike,
        results: str | os.PathLike,
        epochs: int | None = None,
        densenet: str | os.PathLike | None = None,
        command: str = "",
        progress: Callable[[str], None] = print,
        supervised_epochs: int | None = None,
    ) -> None:
        for name, number in (("epochs", epochs), ("supervised_epochs", supervised_epochs)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        if densenet is not None and not Path(densenet).is_file():
            raise FileNotFoundError(f"no ImageNet weights at {densenet}: no such file.")
        cached = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
        self.densenet = Path(densenet) if densenet is not None else cached if cached.is_file() else None
        self.preset, self.data, self.results = preset, Path(data), Path(results)
        self.epochs, self.command, self.progress = epochs, command, progress
        self.supervised_epochs = supervised_epochs
        self.results.mkdir(parents=True, exist_ok=True)

    # --- what there is -----------------------------------------------------------------------------------------------

    def dataset(self, column: Column) -> str | None:
        """What ``load_datalist`` reads; None where the data set is absent."""
        if column.source in self.preset.datasets:
            return self.preset.datasets[column.source]
        if column.drawn:
            return column.data
        path = self.data / column.data
        return str(path) if path.exists() else None

    def present(self, column: Column) -> str:
        """:meth:`dataset` of a column that is not absent."""
        dataset = self.dataset(column)
        assert dataset is not None
        return dataset

    def absence(self, column: Column) -> str:
        """Why a column is absent."""
        return f"{column.data} is not in the data folder"

    def folder(self, column: Column, row: Row) -> Path:
        """Folder of a pretraining."""
        return self.results / "pretrained" / column.source / row.key

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs what is not done, with a line for each job."""
        for number, job in enumerate(jobs, 1):
            line = f"[{number}/{len(jobs)}] {job.title}"
            if job.done():
                self.progress(f"{line}: done before")
                continue
            self.progress(f"{line} ...")
            started = time.monotonic()
            job.run()
            self.progress(f"{line}: done in {(time.monotonic() - started) / 60:.1f} min")

    # --- pretraining -------------------------------------------------------------------------------------------------

    def pretraining_job(self, column: Column, row: Row) -> Job:
        """Pretrains the encoder of a row on the images of a column, without their labels."""
        return Job(
            f"{column.source}, {row.title}: pretraining",
            lambda: self.is_pretrained(column, row),
            lambda: self._pretrain(column, row),
        )

    def max_epochs(self, column: Column) -> int:
        """Epochs of the pretraining."""
        return self.epochs or self.preset.epochs[column.source]

    def fine_tuning(self, column: Column, row: Row) -> dict[str, Any]:
        """What differs from the publication's settings in the supervised training of a row."""
        changes = dict(self.preset.supervised[row.key][column.source])
        return changes if self.supervised_epochs is None else {**changes, "epochs": self.supervised_epochs}

    def _options(self, column: Column, row: Row) -> dict[str, Any]:
        return {
            "recipe": "paper",
            "image_size": self.preset.image_size[column.source],
            "features": list(self.preset.features),
            "max_epochs": self.max_epochs(column),
            **self.preset.training,
            "seed": 0,
            "resume": True,
            **row.options,
        }

    def pretraining_command(self, column: Column, row: Row) -> list[str]:
        """The command line of a pretraining, without the interpreter."""
        paths = {"dataset_dir": self.present(column), "output_dir": self.folder(column, row)}
        return bundle_command({**paths, **self._options(column, row)})

    def is_pretrained(self, column: Column, row: Row) -> bool:
        """Whether the encoder is there, trained to the end.

        Raises:
            ValueError: when it was trained with other settings or on other images than it would be now.
        """
        folder = self.folder(column, row)
        record = read_json(folder / "metrics.json")
        if record is None or not (folder / ENCODER).is_file() or record["epoch"] < self.max_epochs(column):
            return False
        wanted = {"pooling": "attention", "decoder": True, "masked_views": 2, **self._options(column, row)}
        found = record["settings"]
        wrong = [name for name in wanted if name not in FREE_SETTINGS and found.get(name) != wanted[name]]
        if wrong:
            differences = ", ".join(f"{name} {found.get(name)!r} then, {wanted[name]!r} now" for name in wrong)
            raise ValueError(f"{folder} was pretrained with other settings: {differences}; choose other results.")
        if (folder / CHECKPOINT).is_file():
            images = read_checkpoint(folder / CHECKPOINT).get("training", {}).get("data")
            if images not in (None, _facts(self.present(column)).pretraining):
                raise ValueError(f"{folder} was pretrained on other images than {self.dataset(column)} holds now.")
        return True

    def _pretrain(self, column: Column, row: Row) -> None:
        folder = self.folder(column, row)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "train.log"
        with log.open("a", encoding="utf-8") as file:
            status = run_child([sys.executable, *self.pretraining_command(column, row)], file)
        if status or not self.is_pretrained(column, row):
            raise ValueError(f"the pretraining in {folder} failed, {log.name} ends with: {last_line(log)}")

    def describe_pretraining(self, column: Column, row: Row) -> dict[str, Any]:
        """How an encoder came about: command, settings, time, machine."""
        folder = self.folder(column, row)
        record = read_json(folder / "metrics.json")
        assert record is not None
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            seconds = sum(float(line["seconds"]) for line in csv.DictReader(file))
        facts = _facts(self.present(column))
        free = {"dataset_dir", "output_dir", "resume"}
        return self.portable(
            {
                "job": "pretraining",
                "command": shlex.join(["python", *self.pretraining_command(column, row)]),
                "seconds": round(seconds, 1),
                "epochs": record["epoch"],
                "images": facts.pretraining_images,
                "sees_test_images": facts.sees_test_images,
                "settings": {name: value for name, value in record["settings"].items() if name not in free},
                "versions": record["versions"],
                "machine": record["machine"],
            }
        )

    # --- evaluation --------------------------------------------------------------------------------------------------

    def evaluation(self, column: Column, name: str) -> Path:
        """Folder of an evaluation."""
        return self.results / "evaluations" / column.key / name

    def arguments(self, column: Column, **others: Any) -> dict[str, Any]:
        """Options of ``python -m conrec_monai evaluate`` for a column; those that are None are left out."""
        options = {
            "dataset": self.present(column),
            "field_of_view": column.field_of_view,
            "seed": 0,
            **self.preset.evaluation,
            **others,
        }
        return {name: value for name, value in options.items() if value is not None}

    def evaluation_command(
        self, folder: Path, checkpoints: Mapping[str, Path], arguments: Mapping[str, Any]
    ) -> list[str]:
        """The command line of an evaluation, without the interpreter."""
        command = ["-W", "ignore", "-m", "conrec_monai", "evaluate"]
        command += [f"{name}={path}" for name, path in checkpoints.items()]
        for name, value in {**arguments, "output": folder}.items():
            values = value if isinstance(value, list | tuple) else [value]
            if isinstance(value, Mapping):
                values = [f"{key}={entry}" for key, entry in value.items()]
            command += [f"--{name.replace('_', '-')}", *map(str, values)]
        return command

    def _key(self, checkpoints: Mapping[str, Path], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """All that the numbers of an evaluation depend on; given folds are compared by themselves, with those used."""
        key = {**arguments, "images": _facts(arguments["dataset"]).images}
        key.pop("folds", None)
        if "densenet" in key:
            key["densenet"] = _sha256(Path(key["densenet"]))
        if "test" in arguments:
            key["test_images"] = _facts(arguments["test"]).images
        key["checkpoints"] = {name: _sha256(path) for name, path in checkpoints.items()}
        return json.loads(json.dumps(key))

    def evaluated(self, folder: Path, checkpoints: Mapping[str, Path], arguments: Mapping[str, Any]) -> bool:
        """Whether this very evaluation is complete, on the folds that are given, if any."""
        job = read_json(folder / "job.json") or {}
        complete = job.get("done") and (folder / "metrics.json").is_file()
        if not complete or job.get("key") != self._key(checkpoints, arguments):
            return False
        return "folds" not in arguments or read_json(folder / "folds.json") == read_json(Path(arguments["folds"]))

    def evaluate(self, folder: Path, checkpoints: Mapping[str, Path], arguments: Mapping[str, Any]) -> None:
        """Evaluates encoders; what an interrupted evaluation computed is used again.

        What it prints goes to ``evaluate.log`` in its folder; ``job.json`` says when it is complete, and how long it
        took, in all.
        """
        folder.mkdir(parents=True, exist_ok=True)
        key, earlier = self._key(checkpoints, arguments), read_json(folder / "job.json") or {}
        before = earlier["seconds"] if earlier.get("key") == key else 0  # of this very job
        command = self.evaluation_command(folder, checkpoints, arguments)
        shown = self.portable(shlex.join(["python", *command]))
        job = {"key": key, "done": False, "command": shown, "seconds": before}
        log, started = folder / "evaluate.log", time.monotonic()
        try:
            with log.open("a", encoding="utf-8") as file:
                status = run_child([sys.executable, *command], file)
            if status:
                raise ValueError(f"the evaluation in {folder} failed, {log.name} ends with: {last_line(log)}")
            job["done"] = True
        finally:
            job["seconds"] = round(before + time.monotonic() - started, 1)
            write_json(folder / "job.json", job)

    def describe_evaluation(self, folder: Path) -> dict[str, Any]:
        """How the numbers of an evaluation came about: command, time, settings, machine."""
        job, metrics = read_json(folder / "job.json"), read_json(folder / "metrics.json")
        assert job is not None and metrics is not None
        return self.portable(
            {
                "job": "evaluation",
                "command": job["command"],
                "seconds": job["seconds"],
                "settings": metrics["settings"],
                "versions": metrics["versions"],
                "machine": metrics["machine"],
            }
        )

    def encoders(self, column: Column) -> dict[str, Path]:
        """The encoders that are trained to the end, by the title of their row; ConRec first."""
        return {row.title: self.folder(column, row) / ENCODER for row in PRETRAINED if self.is_pretrained(column, row)}

    def architecture(self, column: Column, row: Row) -> Path:
        """File of a network with random weights, which says what a supervised row trains."""
        path = self.results / "architectures" / column.source / f"{row.key}.pt"
        channels = _facts(self.present(column)).channels
        network: torch.nn.Module
        if row.key.startswith("densenet"):
            network = DenseNetEncoder(channels)
        else:
            network = ConRecEncoder(channels, self.preset.features, "average")
        size = self.preset.image_size[column.source]
        if path.is_file():
            found = read_checkpoint(path)
            if (found["config"], found["preprocessing"]["image_size"]) != (network.config, size):
                raise ValueError(f"{path} is of other settings than those of the preset; choose other results.")
            return path
        save_untrained(path, network, {"image_size": size, "resize": "squash"})
        return path

    # --- what is written ---------------------------------------------------------------------------------------------

    def portable(self, value: Any) -> Any:
        """The same without paths of this machine: those in the repository are relative to it, others are named."""
        if isinstance(value, Mapping):
            return {self.portable(key): self.portable(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.portable(entry) for entry in value]
        if isinstance(value, str):
            for path, shown in self._names():
                value = value.replace(path, shown)
        return value

    def _names(self) -> Iterator[tuple[str, str]]:
        for path, name in ((self.results, "RESULTS"), (self.data, "DATA")):
            if path.is_absolute():
                inside = path.is_relative_to(ROOT)
                yield str(path), str(path.relative_to(ROOT)) if inside else name
        if self.densenet is not None:
            yield str(self.densenet), self.densenet.name
        yield f"{ROOT}/", ""


def bundle_command(options: Mapping[str, Any]) -> list[str]:
    """The command line of a pretraining with these options of train.json, without the interpreter."""
    bundle = str(BUNDLE.relative_to(ROOT) if Path.cwd() == ROOT else BUNDLE)
    command = ["-W", "ignore", "-m", "monai.bundle", "run", "--config_file", f"{bundle}/configs/train.json"]
    command += ["--bundle_root", bundle]
    for name, value in options.items():
        text = str(value) if isinstance(value, str | Path) else str(value).replace(" ", "")
        command += [f"--{name}", "$None" if value is None else text]  # MONAI passes over a plain None
    return command


def save_untrained(path: Path, network: torch.nn.Module, preprocessing: Mapping[str, Any]) -> None:
    """Writes the checkpoint of a network that was trained on no images at all."""
    nothing = {"settings": {"max_epochs": 0}, "epoch": 0, "image_hashes": torch.empty(0, dtype=torch.int64)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, network, preprocessing, pretraining=nothing)


def run_child(command: Sequence[str], log: TextIO) -> int:
    """Runs a command; an interruption is handed on once, and waited for, so that it can save where it is."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=0)
    try:
        return child.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGINT)
        try:
            child.wait()
        except KeyboardInterrupt:
            child.kill()
            child.wait()
        raise


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file that was written here; None where there is none.

    Raises:
        ValueError: when it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, and it is made anew.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (no JSON object); remove it, and it is made anew.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file in one step; see :func:`write_text`."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step; one that holds the text already is left alone."""
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def chosen(what: str, names: Iterable[str] | None, known: Sequence[Any]) -> list[Any]:
    """The entries with these keys, in the order in which they are known; all by default.

    Raises:
        ValueError: for a name that is none of their keys.
    """
    wanted = [entry.key for entry in known] if names is None else list(names)
    for name in wanted:
        if name not in [entry.key for entry in known]:
            raise ValueError(f"{what} must be some of {', '.join(entry.key for entry in known)}, got {name!r}.")
    return [entry for entry in known if entry.key in wanted]


def command_line(
    run: Callable[[Lab, list[Column], list[Row]], None],
    name: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
    description: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """The command line of an experiment: reads the arguments, runs it.

    Returns:
        Exit code: 0, 1 after a user's mistake (one line says which), 130 when interrupted.
    """
    parser = argparse.ArgumentParser(prog=f"experiments/{name}.py", description=description)
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="sizes and settings (default: cpu)")
    parser.add_argument("--data", metavar="DIR", default="../data", help="folder of the data sets (default: ../data)")
    parser.add_argument(
        "--results", metavar="DIR", default="output/table1", help="folder of the results (default: output/table1)"
    )
    parser.add_argument(
        "--columns", nargs="+", metavar="NAME", help=f"some of {', '.join(c.key for c in columns)} (default: all)"
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="NAME", help=f"some of {', '.join(r.key for r in rows)} (default: all)"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="of every pretraining (default: those of the preset)")
    parser.add_argument(
        "--supervised-epochs",
        type=int,
        metavar="N",
        help="of every supervised training (default: those of the preset)",
    )
    parser.add_argument(
        "--densenet", metavar="FILE", help=f"ImageNet weights, {WEIGHTS} of torchvision; nothing is downloaded"
    )
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)

    def work() -> None:
        lab = Lab(
            PRESETS[options.preset],
            options.data,
            options.results,
            options.epochs,
            options.densenet,
            shlex.join(["python", f"experiments/{name}.py", *given]),
            lambda line: print(line, flush=True),
            options.supervised_epochs,
        )
        if options.preset == "gpu" and not torch.cuda.is_available():
            lab.progress("Warning: no GPU is found; on a CPU the preset gpu takes weeks.")
        run(lab, chosen("columns", options.columns, columns), chosen("rows", options.rows, rows))

    return interruptible(work)


def interruptible(work: Callable[[], None]) -> int:
    """Runs the work of a command; SIGTERM interrupts it as Ctrl-C does.

    Returns:
        Exit code: 0, 1 after a user's mistake (one line says which), 130 when interrupted.
    """

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        work()
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0
