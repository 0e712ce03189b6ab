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

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Optional folders with real photographs and with arrays of the published implementation; tests skip without.
SHARED = Path(os.environ.get("CONREC_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def _folder(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"{name} folder not found at {path} (set CONREC_SHARED to the folder that holds it)")
    return path


@pytest.fixture(scope="session")
def oracles() -> Path:
    """Folder of arrays that the published implementation produced."""
    return _folder("oracles")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets."""
    return _folder("data")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The networks of the tests are tiny: a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
