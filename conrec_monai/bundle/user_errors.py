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
import pydoc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai.bundle
from monai.bundle import ConfigParser

__all__ = ["check_overrides", "guarded"]


def check_overrides(command: Sequence[str] | None = None) -> None:
    """Checks that each ``--key value`` of ``python -m monai.bundle run`` is a key of the config.

    MONAI adds a key that it does not know to the config, where nothing reads it: a misspelt setting has no effect. A
    key that another value of the command line refers to (``--rate 0.1 --learning_rate @rate``) may be new.

    Args:
        command: the command line; by default that of this process, if it is one of MONAI's.

    Raises:
        SystemExit: naming an unknown key, and what it may have meant.
    """
    if command is None:
        command = sys.argv
    if len(command) < 2 or Path(command[0]).parts[-2:] != ("bundle", "__main__.py") or command[1] != "run":
        return
    given: dict[str, str] = {}
    for word, after in zip(command[2:], [*command[3:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            given[name.replace("-", "_")] = value if equals else after
    if "config_file" not in given or "args_file" in given:
        return
    arguments = set(inspect.signature(monai.bundle.run).parameters)
    files = given["config_file"]
    config = ConfigParser.load_config_files(_paths(files))
    known = {key.split("#")[0].split("::")[0] for key in config} | {"_meta_"}
    for name in given.keys() - arguments:
        root = name.split("#")[0].split("::")[0]
        if root not in known and not any(f"@{root}" in value for value in given.values()):
            near = difflib.get_close_matches(root, known, 1)
            meant = f"; did you mean --{near[0]}?" if near else "."
            raise SystemExit(f"Error: --{name} is no key of {files}{meant}")


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


def _paths(text: str) -> list[str]:
    """The files of ``--config_file``: one, or a list as Python writes it."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [text]
    return [str(path) for path in found] if isinstance(found, list | tuple) else [text]
