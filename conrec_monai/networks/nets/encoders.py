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

from typing import Any

from torch import nn

__all__ = ["check_encoder", "encoder_config"]


def check_encoder(encoder: Any) -> int:
    """The width F of an encoder's representation, its ``num_features``.

    Raises:
        ValueError: when it is no module, or has no positive whole number ``num_features``.
    """
    if not isinstance(encoder, nn.Module):
        raise ValueError(f"encoder must be a torch module, got {encoder!r}.")
    width = getattr(encoder, "num_features", None)
    if type(width) is not int or width < 1:
        raise ValueError(
            f"encoder must have num_features, the width of its representation; {type(encoder).__name__} has {width!r}."
        )
    return width


def encoder_config(encoder: nn.Module) -> dict[str, Any]:
    """``{"kind", "config"}`` of an encoder as part of another network's ``config``."""
    return {"kind": type(encoder).__name__, "config": getattr(encoder, "config", None)}
