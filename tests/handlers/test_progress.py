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

import io
import logging
import sys

import pytest
from ignite.engine import Engine, Events

from conrec_monai.handlers import ProgressHandler, progress

METRICS = {"loss": 12.5, "contrastive_loss": 2.25, "reconstruction_loss": 0.08, "contrastive_accuracy": 0.625}


class Clock:
    """Time that passes only where the test lets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.set_level(logging.INFO, "conrec_monai")
    return caplog.messages


def run(clock: Clock, seconds: float, max_epochs: int, done: int = 0, batch_size: int = 16) -> Engine:
    """Epochs of 4 iterations, each of which takes ``seconds``, after ``done`` iterations."""

    def iteration(engine: Engine, batch: int) -> None:
        clock.now += seconds

    engine = Engine(iteration)
    engine.running_metrics = lambda: METRICS

    def start() -> None:
        engine.state.epoch, engine.state.iteration = done // 4, done

    def finish() -> None:
        engine.state.metrics.update(METRICS)

    engine.add_event_handler(Events.STARTED, start)
    engine.add_event_handler(Events.EPOCH_COMPLETED, finish)
    ProgressHandler(batch_size).attach(engine)
    engine.run(range(4), max_epochs=max_epochs)
    return engine


def test_line_per_epoch(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    engine = run(clock, 2.0, 3)
    parts = "loss 12.500, contrastive 2.2500, reconstruction 0.08000, accuracy 0.625, 8.0 images/s"
    assert caplog.messages == [
        f"epoch 1/3: {parts}, 0 min 16 s left",
        f"epoch 2/3: {parts}, 0 min 08 s left",
        f"epoch 3/3: {parts}, 0 min 00 s left",
    ]
    assert {record.name for record in caplog.records} == {"conrec_monai"}
    assert engine.state.metrics["images_per_second"] == 8


def test_resumed_run_counts_its_own_time(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    # 7 of 40 iterations are done, the fourth of epoch 2 is the first: 1 iteration in 30 s, 32 are left.
    run(clock, 30.0, 10, done=7)
    assert caplog.messages[0].startswith("epoch 2/10: ") and caplog.messages[0].endswith(
        ", 0.5 images/s, 16 min 00 s left"
    )
    assert caplog.messages[1].endswith(", 0.5 images/s, 14 min 00 s left")
    assert len(caplog.messages) == 9


def test_no_bar_in_a_log(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    run(clock, 2.0, 2)
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    engine = run(clock, 2.0, 2, done=2)
    shown = terminal.getvalue()
    assert "epoch 2/2" in shown and "/128" in shown  # 2 epochs of 4 iterations of 16 images
    assert "loss 12.50, contrastive 2.250, reconstruction 0.0800" in shown
    assert engine.state.iteration == 8


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 min 00 s"),
        (59.4, "0 min 59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_duration(seconds: float, expected: str) -> None:
    assert progress._duration(seconds) == expected


def test_instant_epoch(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    assert run(clock, 0.0, 1).state.metrics["images_per_second"] > 0
    assert caplog.messages[0].endswith("0 min 00 s left")
