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

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["duration", "progress_bar"]

SECONDS_BETWEEN_LINES = 10


def duration(seconds: float) -> str:
    """A span of time in words: ``3 min 05 s``, or ``2 h 07 min``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


class _NoBar:
    disable = True

    def __init__(
        self, iterable: Iterable | None, desc: str = "", total: int | None = None, lines: bool = False
    ) -> None:
        self.iterable, self.desc, self.total, self.lines = iterable, desc, total, lines

    def __iter__(self) -> Iterator:
        start = written = time.monotonic()
        for done, item in enumerate(self.iterable or (), 1):
            yield item
            now = time.monotonic()
            if self.lines and self.total and done < self.total and now - written >= SECONDS_BETWEEN_LINES:
                written, rate = now, done / (now - start)
                left = duration((self.total - done) / rate)
                logging.getLogger("conrec_monai").info(
                    f"{self.desc}: {done} of {self.total}, {rate:.1f}/s, {left} left"
                )

    def nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    update = set_description = set_description_str = set_postfix_str = refresh = clear = close = nothing


def progress_bar(iterable: Iterable | None = None, shown: bool = True, lines: bool = False, **options: Any) -> Any:
    """A bar of tqdm where errors go to a terminal; elsewhere, and without tqdm, an object that shows nothing, or lines.

    Args:
        iterable: what is iterated over; None for a bar that is moved by ``update``.
        shown: False for none on a terminal either.
        lines: whether there is a log line every ten seconds where there is no bar, while it is iterated over.
        **options: of tqdm, such as ``desc``, ``total`` and ``unit``.
    """
    if shown and sys.stderr.isatty():
        try:
            from tqdm import tqdm
        except ImportError:
            pass  # a machine that has no more than the training needs
        else:
            return tqdm(iterable, **options)
    return _NoBar(iterable, options.get("desc", ""), options.get("total"), shown and lines)
