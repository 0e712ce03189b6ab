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

import pydoc
from collections.abc import Callable
from typing import Any

__all__ = ["guarded"]


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
