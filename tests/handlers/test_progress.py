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
from collections.abc import Iterator

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


def run(
    clock: Clock,
    seconds: float,
    max_epochs: int,
    done: int = 0,
    load: Iterator | None = None,
    evaluate: float = 0.0,
) -> Engine:
    """Epochs of 4 iterations of ``seconds`` with 16 images, after ``done`` iterations; each ends with ``evaluate``."""

    def iteration(engine: Engine, batch: int) -> None:
        clock.now += seconds

    engine = Engine(iteration)
    recent = iter([None, None])  # nothing has arrived from the device at first
    engine.recent_metrics, engine.parts = lambda: next(recent, METRICS), tuple(METRICS)

    def start() -> None:
        engine.state.epoch, engine.state.iteration = done // 4, done

    def finish() -> None:
        engine.state.metrics.update(METRICS)
        clock.now += evaluate

    engine.add_event_handler(Events.STARTED, start)
    engine.add_event_handler(Events.EPOCH_COMPLETED, finish)
    ProgressHandler(16).attach(engine)
    engine.run(range(4) if load is None else load, max_epochs=max_epochs, epoch_length=4)
    return engine


def test_line_per_epoch(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    engine = run(clock, 2.0, 3)
    parts = (
        "loss 12.500, contrastive 2.2500, reconstruction 0.08000, accuracy 0.625, 8.0 images/s, 0.0% waiting for data"
    )
    assert caplog.messages == [
        f"epoch 1/3: {parts}, 0 min 16 s left",
        f"epoch 2/3: {parts}, 0 min 08 s left",
        f"epoch 3/3: {parts}, 0 min 00 s left",
    ]
    assert {record.name for record in caplog.records} == {"conrec_monai"}
    assert engine.state.metrics["images_per_second"] == 8 and engine.state.metrics["data_wait"] == 0


def test_share_of_time_spent_waiting(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def load() -> Iterator[float]:
        for seconds in (1.0, 0.0, 2.0, 0.0, 3.0, 1.0, 3.0, 0.0):
            clock.now += seconds
            yield seconds

    engine = run(clock, 5.0, 2, load=load(), evaluate=100.0)  # which is no part of the time
    assert engine.state.metrics["data_wait"] == pytest.approx(7 / 27)
    assert ", 13.0% waiting for data, " in caplog.messages[0] and ", 25.9% waiting for data, " in caplog.messages[1]


def test_resumed_run_counts_its_own_time(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    # 7 of 40 iterations are done, the fourth of epoch 2 is the first: 1 iteration in 30 s, 32 are left.
    run(clock, 30.0, 10, done=7)
    assert caplog.messages[0].startswith("epoch 2/10: ") and caplog.messages[0].endswith(
        ", 0.5 images/s, 0.0% waiting for data, 16 min 00 s left"
    )
    assert caplog.messages[1].endswith(", 0.5 images/s, 0.0% waiting for data, 14 min 00 s left")
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
    assert "loss 12.500, contrastive 2.2500, reconstruction 0.08000, accuracy 0.625, 0% waiting for data" in shown
    assert engine.state.iteration == 8


class Bar:
    """Keeps what is shown after the metrics."""

    disable = False

    def __init__(self) -> None:
        self.shown: list[str] = []

    def set_postfix_str(self, text: str) -> None:
        self.shown.append(text.rsplit(", ", 1)[1])

    def nothing(self, *args: object, **kwargs: object) -> None:
        pass

    update = set_description = clear = close = nothing


def test_bar_tells_of_waiting_once_metrics_have_arrived(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> Iterator[float]:
        for seconds in (3.0, 1.0, 0.0, 0.0):
            clock.now += seconds
            yield seconds

    bar = Bar()
    monkeypatch.setattr(progress, "progress_bar", lambda **options: bar)
    run(clock, 2.0, 1, load=load())
    # Nothing has arrived in the first two iterations; then 4 of 10 s, and 4 of 12 s.
    assert bar.shown == ["40% waiting for data", "33% waiting for data"]


def test_bar_of_an_iteration_within_a_tick_of_the_clock(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    bar = Bar()
    monkeypatch.setattr(progress, "progress_bar", lambda **options: bar)
    # Drawn in the first iteration of each epoch, long after the last time.
    run(clock, 0.0, 4, evaluate=5.0)
    assert bar.shown == ["0% waiting for data"] * 2


def test_instant_epoch(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    assert run(clock, 0.0, 1).state.metrics["images_per_second"] > 0
    assert caplog.messages[0].endswith("0 min 00 s left")
