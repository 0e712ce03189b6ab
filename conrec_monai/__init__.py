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

"""Self-supervised pretraining for retinal fundus photographs with MONAI."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from conrec_monai.version import __version__

if TYPE_CHECKING:
    from conrec_monai.data.preprocessing import load_preprocessing
    from conrec_monai.networks.keras import import_keras
    from conrec_monai.networks.utils import load_encoder, load_model

__all__ = ["__version__", "import_keras", "load_encoder", "load_model", "load_preprocessing"]


def __getattr__(name: str) -> Any:
    """Imports torch and MONAI when they are needed: the command line answers --help without them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = {"import_keras": "conrec_monai.networks.keras", "load_preprocessing": "conrec_monai.data.preprocessing"}
    return getattr(import_module(homes.get(name, "conrec_monai.networks.utils")), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
