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
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai
import torch
from ignite.engine import Engine, Events

from conrec_monai.version import __version__

__all__ = ["MetricsWriter", "replaced"]


class MetricsWriter:
    """Writes ``metrics.csv``, a row per epoch with every scalar of ``engine.state.metrics``, and ``metrics.json``.

    ``metrics.json`` holds the settings of the run, the versions, the machine and the metrics of the last epoch. Both
    are replaced as a whole after each epoch. A resumed run keeps the rows of the epochs before it.

    Args:
        output_dir: folder of the files; it exists.
        settings: of the run, plain values.
    """

    def __init__(self, output_dir: str | os.PathLike, settings: Mapping[str, Any]) -> None:
        self.output_dir = Path(output_dir)
        self.settings = dict(settings)
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach it after the handlers whose metrics it writes."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish_epoch)

    def _start(self, engine: Engine) -> None:
        path = self.output_dir / "metrics.csv"
        if engine.state.iteration and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            if not all((row.get("epoch") or "").isdigit() for row in rows):
                raise ValueError(f"{path} is damaged: expected a number in the column epoch of every row.")
            self.rows = [row for row in rows if int(row["epoch"]) <= engine.state.epoch]

    def _start_epoch(self, engine: Engine) -> None:
        self._started = time.monotonic()

    def _finish_epoch(self, engine: Engine) -> None:
        metrics = {k: v for k, v in engine.state.metrics.items() if isinstance(v, int | float)}
        row = {
            "epoch": engine.state.epoch,
            **metrics,
            "learning_rate": engine.optimizer.param_groups[0]["lr"],
            "seconds": round(time.monotonic() - self._started, 3),
        }
        self.rows.append(row)
        names = list(dict.fromkeys(name for r in self.rows for name in r))
        with replaced(self.output_dir / "metrics.csv") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        content = {
            "schema": 1,
            "epoch": engine.state.epoch,
            "metrics": row,
            "settings": self.settings,
            "versions": {
                "conrec_monai": __version__,
                "monai": monai.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "machine": {
                "device": _device_name(engine.state.device),
                "threads": torch.get_num_threads(),
                "bfloat16": engine.autocast,
            },
        }
        with replaced(self.output_dir / "metrics.json") as file:
            json.dump(content, file, indent=2)
            file.write("\n")


class replaced:
    """A text file that takes the place of the old one when it is complete."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> Any:
        self.file = self.temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        return self.file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.file.close()
        if kind is None:
            os.replace(self.temporary, self.path)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
