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
import platform
from pathlib import Path
from typing import Any

import monai
import pytest
import torch
from ignite.engine import Engine, Events

import conrec_monai
from conrec_monai.handlers import MetricsWriter

SETTINGS = {"image_size": 32, "features": [4, 8], "dataset_dir": "phantom", "amp": False, "section": None}


def make_engine(values: dict[int, dict[str, Any]], done: int = 0) -> Engine:
    """An engine of 3 iterations per epoch whose metrics are the values of each epoch, after ``done`` epochs."""
    engine = Engine(lambda engine, batch: None)
    engine.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    engine.autocast = False
    engine.state.device = torch.device("cpu")

    def start() -> None:
        engine.state.epoch, engine.state.iteration = done, 3 * done

    def set_metrics() -> None:
        engine.state.metrics = values[engine.state.epoch]
        engine.optimizer.param_groups[0]["lr"] = 0.5 / engine.state.epoch

    engine.add_event_handler(Events.STARTED, start)
    engine.add_event_handler(Events.EPOCH_COMPLETED, set_metrics)
    return engine


def write(path: Path, values: dict[int, dict[str, Any]], done: int = 0, **settings: Any) -> None:
    engine = make_engine(values, done)
    MetricsWriter(path, {**SETTINGS, **settings}).attach(engine)
    engine.run(range(3), max_epochs=max(values))


def read(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row.pop("seconds")) >= 0
    return rows


def test_a_row_per_epoch(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            1: {"loss": 2.5, "picture": torch.zeros(2), "note": "text"},
            2: {"loss": 2.25, "probe_qwk": 0.125},
            3: {"loss": 2.0},
        },
    )
    assert read(tmp_path) == [
        {"epoch": "1", "loss": "2.5", "learning_rate": "0.5", "probe_qwk": ""},
        {"epoch": "2", "loss": "2.25", "learning_rate": "0.25", "probe_qwk": "0.125"},
        {"epoch": "3", "loss": "2.0", "learning_rate": str(0.5 / 3), "probe_qwk": ""},
    ]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.csv", "metrics.json"]


def test_json(tmp_path: Path) -> None:
    write(tmp_path, {1: {"loss": 2.5}, 2: {"loss": 2.25, "probe_qwk": 0.5}})
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["metrics"].pop("seconds") >= 0
    assert content["machine"].pop("device")
    assert content == {
        "schema": 1,
        "epoch": 2,
        "metrics": {"epoch": 2, "loss": 2.25, "probe_qwk": 0.5, "learning_rate": 0.25},
        "settings": SETTINGS,
        "versions": {
            "conrec_monai": conrec_monai.__version__,
            "monai": monai.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "machine": {"threads": torch.get_num_threads(), "bfloat16": False},
    }


def test_resumed_run_keeps_earlier_rows_and_drops_later(tmp_path: Path) -> None:
    write(tmp_path, {1: {"loss": 4.0, "probe_qwk": 0.5}, 2: {"loss": 3.0}, 3: {"loss": 2.0}})
    before = read(tmp_path)
    # The checkpoint is that after epoch 2: epoch 3 is computed again, here with another result.
    write(tmp_path, {3: {"loss": 2.5, "extra": 1.0}, 4: {"loss": 1.5}}, done=2)
    rows = read(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["loss"] for row in rows] == ["4.0", "3.0", "2.5", "1.5"]
    assert [{**row, "extra": ""} for row in before[:2]] == rows[:2]
    assert rows[2]["extra"] == "1.0" and rows[0]["probe_qwk"] == "0.5"


def test_new_run_starts_a_new_table(tmp_path: Path) -> None:
    write(tmp_path, {1: {"loss": 4.0}, 2: {"loss": 3.0}})
    write(tmp_path, {1: {"loss": 5.0}})
    assert [row["loss"] for row in read(tmp_path)] == ["5.0"]


def test_resumed_run_without_table(tmp_path: Path) -> None:
    write(tmp_path, {3: {"loss": 2.5}}, done=2)
    assert [row["epoch"] for row in read(tmp_path)] == ["3"]


@pytest.mark.parametrize("text", ["loss\n1.0\n", "epoch,loss\n1,2.0\n\x00,\n", "epoch,loss\n2.0,1\n"])
def test_damaged_table(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(
        ValueError, match=r"metrics\.csv is damaged: expected a number in the column epoch of every row"
    ):
        write(tmp_path, {3: {"loss": 2.5}}, done=2)
    assert (tmp_path / "metrics.csv").read_text() == text


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    write(tmp_path, {1: {"loss": 4.0}})
    old = (tmp_path / "metrics.json").read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write(tmp_path, {1: {"loss": 5.0}}, device=torch.device("cpu"))
    assert (tmp_path / "metrics.json").read_bytes() == old
