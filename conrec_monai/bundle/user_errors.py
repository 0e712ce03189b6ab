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

import ast
import difflib
import inspect
import logging
import pydoc
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai.bundle
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

__all__ = ["check_overrides", "guarded"]

MONAI_KEYS = ("initialize", "run", "finalize")  # that a config may have


def check_overrides(command: Sequence[str] | None = None) -> None:
    """Tells a misspelt ``--key value`` of ``python -m monai.bundle run``.

    MONAI adds a key that it does not know to the config, where nothing reads it: the setting has no effect. Keys of
    an ``args_file`` are looked at too; MONAI's own arguments, and keys that another value refers to (``--rate 0.1
    --learning_rate @rate``), may be there.

    Args:
        command: the command line; by default that of this process, if it is one of MONAI's.

    Raises:
        SystemExit: when an unknown key resembles a known one, or leads into a value that has no parts. Of any other on
            the top level a warning is logged.
    """
    if command is None:
        command = sys.argv
    if len(command) < 2 or Path(command[0]).parts[-2:] != ("bundle", "__main__.py") or command[1] != "run":
        return
    given = _given(command[2:])
    files = given.get("config_file")
    if files is None:
        return
    config = ConfigParser.load_config_files(_paths(files))
    known = {_root(key) for key in config} | {"_meta_", *MONAI_KEYS, *DEFAULT_MLFLOW_SETTINGS["configs"]}
    for function in (monai.bundle.run, monai.bundle.create_workflow, ConfigWorkflow.__init__):
        known |= set(inspect.signature(function).parameters)
    known |= {given.get(name, "") for name in ("run_id", "init_id", "final_id")} | set(command[2:3])
    for name in given:
        root = _root(name)
        if root in config and root not in given:
            _check_part(config, name)
        if root in known or any(re.search(rf"[@%]{re.escape(root)}\b", value) for value in given.values()):
            continue
        near = difflib.get_close_matches(root, known, 1, 0.75)
        if near:
            raise SystemExit(f"Error: --{name} is no key of {files}; did you mean --{near[0]}?")
        logging.getLogger("conrec_monai").warning(f"--{name} is no key of {files}: nothing there reads it")


def _given(words: Sequence[str]) -> dict[str, str]:
    """The keys of a command line and its ``args_file``, and the texts of their values."""
    given: dict[str, str] = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == "--":  # what follows is for Fire
            break
        key = re.fullmatch(r"--?([A-Za-z_][^=]*)(?:=(.*))?", word, re.DOTALL)
        if key:
            name = key[1].replace("-", "_")
            alone = key[2] is None and (not after or after.startswith("--"))
            # --noresume is --resume False
            given[name.removeprefix("no") if alone else name] = after if key[2] is None else key[2]
    if "args_file" in given:
        file = ConfigParser.load_config_file(given["args_file"])
        given = {**{name: str(value) for name, value in file.items()}, **given}
    return given


def _check_part(config: Any, name: str) -> None:
    """Checks a key that leads into a part of the config, such as ``train#optimizer#name``."""
    place = ""
    for part in re.split("#|::", name.lstrip("+~")):
        if isinstance(config, dict):
            near = [] if part in config else difflib.get_close_matches(part, config, 1, 0.75)
            if near:
                raise SystemExit(f"Error: --{name}: {place} has no {part}; did you mean {near[0]}?")
            config = config.get(part)
        elif isinstance(config, list):
            config = config[int(part)] if part.isdecimal() and int(part) < len(config) else None
        elif config is not None:
            raise SystemExit(f"Error: --{name}: {place} is {config!r}, which has no parts.")
        place = f"{place}#{part}".lstrip("#")


def _root(key: str) -> str:
    return re.split("#|::", key)[0].lstrip("+~")


def _paths(text: str) -> list[str]:
    """The files of ``--config_file``: one, or a list as Python writes it."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [text]
    return [str(path) for path in found] if isinstance(found, list | tuple) else [text]


def guarded(function: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function in a bundle's config so that a user's mistake ends in one line.

    MONAI wraps an exception that is raised while a config is built into a long traceback that ends in "Failed to
    instantiate component"; a SystemExit passes through and its message is the last line. For whatever touches what
    the user gave: paths, files, names.

    Args:
        function: to call, or its dotted name.
        *args: its arguments.
        **kwargs: its arguments.

    Raises:
        SystemExit: in place of a ValueError or OSError (FileNotFoundError, PermissionError), with its message.
    """
    if isinstance(function, str):
        found = pydoc.locate(function)
        if not callable(found):
            raise ValueError(f"there is no function or class {function!r}.")
        function = found
    try:
        return function(*args, **kwargs)
    except (ValueError, OSError) as error:
        raise SystemExit(f"Error: {' '.join(str(error).split())}") from None
