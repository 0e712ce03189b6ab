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
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys

from conrec_monai.evaluation.calibration import graded
from conrec_monai.evaluation.metrics import REFERABLE_GRADE
from conrec_monai.handlers.metrics_writer import replaced
from conrec_monai.utils import duration, progress_bar
from conrec_monai.utils.progress import SECONDS_BETWEEN_LINES

__all__ = ["PredictionWriter"]


class PredictionWriter:
    """Writes what a :class:`conrec_monai.networks.nets.GradingNet` says of images: ``predictions.csv`` and
    ``predictions.json``.

    On a :class:`monai.engines.SupervisedEvaluator` that does not decollate, with batches of
    :class:`conrec_monai.data.ImageStream`. A row for each image: ``image`` (its name), ``frame`` (from 0; empty where a
    file has one), ``status`` ("ok" or "error"), ``reason`` (of an error), ``grade``, ``p_0`` .. ``p_<K - 1>``
    (calibrated probabilities, 4 digits), ``referable`` (the probability of grade 2 or higher; empty where there is no
    such grade, or the classes are not ordered), ``confidence`` (the probability of ``grade``) and ``warnings`` (texts
    joined by "; "). The JSON file holds ``{"schema", "classes", "model", "predictions"}``, a prediction for each row
    with empty values as null, ``probabilities`` and ``warnings`` as lists. Of nothing but names and pixels anything is
    written: no file's metadata.

    Rows are written batch by batch, so that an interruption loses none of them; the memory does not grow. The JSON file
    is made of the table at the end. A run in which no image could be read ends, after both, in an error (SystemExit).

    Args:
        output_dir: folder of the files; it exists.
        task: of the network.
        classes: name of each grade.
        ordinal: whether they are ordered.
        model: what is said of the network in the JSON file, plain values.
        total: number of files, for the time left; None where it is not known.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        task: str,
        classes: Sequence[str],
        ordinal: bool = True,
        model: Mapping[str, Any] | None = None,
        total: int | None = None,
    ) -> None:
        self.output_dir, self.task, self.classes = Path(output_dir), task, list(classes)
        self.has_referable = ordinal and len(classes) > REFERABLE_GRADE
        self.model, self.total = dict(model or {}), total
        json.dumps(self.model, allow_nan=False)  # a mistake is known before the work
        self.columns = ["image", "frame", "status", "reason", "grade", *(f"p_{i}" for i in range(len(classes)))]
        self.columns += ["referable", "confidence", "warnings"]
        self.logger = logging.getLogger("conrec_monai")
        self._file: Any = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Engine) -> None:
        self._path = self.output_dir / "predictions.csv"
        self._path.with_suffix(".json").unlink(missing_ok=True)
        self._file = self._path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        self._rows = csv.writer(self._file)
        self._rows.writerow(self.columns)
        self._files = self._done = self._errors = self._warned = 0
        self._began = self._said = time.monotonic()
        self._bar = progress_bar(total=self.total, unit=" files", dynamic_ncols=True)

    def _write(self, engine: Engine) -> None:
        batch = engine.state.batch
        probabilities = engine.state.output[Keys.PRED].float().cpu().numpy()
        ok = np.array([status == "ok" for status in batch["status"]])
        if not np.isfinite(probabilities[ok]).all():
            raise ValueError("probabilities are not finite: the weights of the network are damaged.")
        said = graded(np.arange(len(ok)), probabilities, self.task)
        before = self._files
        for i, name in enumerate(batch["name"]):
            p, grade = probabilities[i], int(said.predicted[i])
            values: list[Any] = ["", *[""] * len(p), "", ""]
            if ok[i]:
                referable = f"{p[REFERABLE_GRADE:].sum():.4f}" if self.has_referable else ""
                values = [grade, *(f"{value:.4f}" for value in p), referable, f"{p[grade]:.4f}"]
            frame = "" if batch["frame"][i] is None else batch["frame"][i]
            row = [name, frame, batch["status"][i], batch["reason"][i], *values, "; ".join(batch["warnings"][i])]
            self._rows.writerow(row)
        self._files = batch["file"][-1] + 1
        self._file.flush()
        self._done += len(ok)
        self._errors += int((~ok).sum())
        self._warned += sum(map(bool, batch["warnings"]))
        self._say(self._files - before)

    def _say(self, files: int) -> None:
        self._bar.update(files)
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            rate = self._files / (now - self._began)
            left = f", {duration((self.total - self._files) / rate)} left" if self.total and rate else ""
            self._bar.clear()
            self.logger.info(f"{self._files} files done, {rate:.1f} files/s{left}")

    def _finish(self, engine: Engine) -> None:
        self._close()
        seconds = max(time.monotonic() - self._began, 1e-9)
        path = self._path.with_suffix(".json")
        head = json.dumps({"schema": 1, "classes": self.classes, "model": self.model}, indent=1, allow_nan=False)
        with (
            self._path.open(newline="", encoding="utf-8", errors="surrogateescape") as table,
            replaced(path) as file,
        ):
            file.write(head[:-2] + ',\n "predictions": [')
            for number, row in enumerate(csv.DictReader(table)):
                file.write((",\n  " if number else "\n  ") + json.dumps(self._entry(row)))
            file.write("\n ]\n}\n")
        self.logger.info(
            f"{self._done - self._errors} of {self._done} images ({self._files} files) graded in {duration(seconds)},"
            f" {self._done / seconds:.1f} images/s, {self._warned} with warnings, {self._errors} could not be read;"
            f" written to {self._path} and {path.name}"
        )
        if self._errors == self._done > 0:
            raise SystemExit(f"Error: none of the {self._done} images could be read; {self._path} says why.")

    def _entry(self, row: Mapping[str, str]) -> dict[str, Any]:
        def number(name: str) -> float | None:
            return float(row[name]) if row[name] else None

        ok = row["status"] == "ok"
        return {
            "image": row["image"],
            "frame": int(row["frame"]) if row["frame"] else None,
            "status": row["status"],
            "reason": row["reason"] or None,
            "grade": int(row["grade"]) if ok else None,
            "probabilities": [number(f"p_{i}") for i in range(len(self.classes))] if ok else None,
            "referable": number("referable"),
            "confidence": number("confidence"),
            "warnings": row["warnings"].split("; ") if row["warnings"] else [],
        }

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._close()
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(f"Interrupted. {self._path} holds the {self._done} images that were done.") from None
        raise error

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self._bar.close()
