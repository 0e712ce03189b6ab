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
import sys
from typing import Any

import pytest
from tqdm import tqdm

from conrec_monai.utils import duration, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 min 00 s"),
        (59.4, "0 min 59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (3600, "1 h 00 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def use_as_tqdm(bar: Any) -> None:
    """All that the package does with a bar."""
    bar.set_description("epoch 1/2", refresh=False)
    bar.set_description_str("epoch")
    bar.set_postfix_str("loss 1.00")
    bar.update(3)
    bar.update()
    bar.refresh()
    bar.clear()
    bar.close()


def test_nothing_is_shown_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(range(3), desc="reading", total=3, unit="image")) == [0, 1, 2]
    assert list(progress_bar(iter("ab"))) == ["a", "b"] and list(progress_bar()) == []
    bar = progress_bar(total=4, initial=1)
    use_as_tqdm(bar)
    assert bar.disable and not isinstance(bar, tqdm)
    assert capsys.readouterr() == ("", "")


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    bar = progress_bar(range(3), desc="reading", unit="image")
    assert isinstance(bar, tqdm) and not bar.disable and list(bar) == [0, 1, 2]
    assert "reading" in terminal.getvalue() and "3/3" in terminal.getvalue()
    use_as_tqdm(progress_bar(total=4))
    assert "epoch" in terminal.getvalue() and "/4" in terminal.getvalue()


def test_not_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    bar = progress_bar(range(3), shown=False, desc="reading")
    assert list(bar) == [0, 1, 2] and bar.disable
    assert terminal.getvalue() == ""


def test_terminal_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm", None)  # an import of it fails
    bar = progress_bar(range(3), desc="reading")
    assert list(bar) == [0, 1, 2]
    use_as_tqdm(bar)
    assert bar.disable and terminal.getvalue() == ""


def test_lines_where_there_is_no_bar(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Every ten seconds, not at the end, and only where they are wanted."""
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("conrec_monai.utils.progress.time.monotonic", lambda: float(next(clock)))
    caplog.set_level("INFO", "conrec_monai")
    assert list(progress_bar(range(6), lines=True, desc="Loading", total=6)) == list(range(6))
    assert caplog.messages == ["Loading: 3 of 6, 0.2/s, 0 min 12 s left"]
    for options in ({"lines": True, "shown": False}, {}):
        assert list(progress_bar(range(6), desc="Loading", total=6, **options)) == list(range(6))
    assert len(caplog.messages) == 1
