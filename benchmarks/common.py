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

"""What the benchmarks of speed share: timing in turns, ratios, the machine, the file of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from conrec_monai.engines import bfloat16_is_fast
from conrec_monai.handlers.metrics_writer import _device_name

ROOT = Path(__file__).resolve().parents[1]


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Times functions in turns, so that what else the machine does meets all of them alike.

    Args:
        functions: by name; each is called once in every round. The first of a round is the second of the round before.
        repeats: rounds, at least 1.
        warmup: further rounds before them that are not timed.

    Returns:
        The seconds of each round by name.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}.")
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, repeats):
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            functions[name]()
            seconds = time.perf_counter() - start
            if number >= 0:
                times[name].append(seconds)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of some values."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratio(times: Mapping[str, Sequence[float]], a: str, b: str) -> dict[str, float]:
    """How many times as long as b a takes: median, least and greatest of a / b over the rounds."""
    return spread([x / y for x, y in zip(times[a], times[b], strict=True)])


def machine(*libraries: str) -> dict[str, Any]:
    """What a time depends on, without the name of the machine: processor, threads, versions, also of ``libraries``."""
    names = ("torch", "monai", "numpy", *libraries)
    return {
        "processor": _device_name(torch.device("cpu")),
        "architecture": platform.machine(),
        "logical_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16": bfloat16_is_fast(torch.device("cpu")),
        "versions": {
            "python": platform.python_version(),
            "conrec_monai": version("conrec-monai"),
            **{name: version(name) for name in names},
        },
    }


def parser(doc: str | None, repeats: int = 20) -> argparse.ArgumentParser:
    """Options of every benchmark; its description is the first line of the script's docstring."""
    result = argparse.ArgumentParser(description=(doc or "").splitlines()[0].replace("%", "%%"))
    result.add_argument("--output", metavar="FILE", help="JSON file of the results (default: none is written)")
    result.add_argument("--repeats", type=int, default=repeats, help="timed rounds (default %(default)s)")
    result.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default %(default)s)")
    result.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    return result


def write(
    path: str | None,
    benchmark: str,
    arguments: Sequence[str],
    settings: Mapping[str, Any],
    results: Any,
    libraries: Sequence[str] = (),
) -> None:
    """Writes the results as JSON: ``{"schema", "benchmark", "command", "machine", "settings", "results"}``.

    Args:
        path: file; None writes nothing.
        benchmark: name of the script.
        arguments: of its command line; absolute paths are cut to their names.
        settings: plain values.
        results: plain values.
        libraries: whose versions belong to the machine.
    """
    if path is None:
        return
    content = {
        "schema": 1,
        "benchmark": benchmark,
        "command": shlex.join(["python", f"benchmarks/{benchmark}.py", *map(_without_folder, arguments)]),
        "machine": machine(*libraries),
        "settings": {name: value for name, value in settings.items() if name != "output"},
        "results": results,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _without_folder(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name if Path(value).is_absolute() else value)
