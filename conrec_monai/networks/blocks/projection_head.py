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

from collections import OrderedDict

from torch import nn

__all__ = ["ProjectionHead"]


class ProjectionHead(nn.Sequential):
    """From the representation to the space of the contrastive loss: B[F] -> B[P].

    Linear layers without bias, each with batch norm (eps 1e-5, momentum 0.1); ReLU between them; the last batch norm
    has no shift. Weights start normal with standard deviation 0.01. Source: arXiv 2104.04323, published implementation.

    Args:
        in_features: F.
        hidden_features: width of the layers before the last.
        out_features: P.
        num_layers: number of linear layers.

    Raises:
        ValueError: when a width or the number of layers is not positive.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int, num_layers: int = 3) -> None:
        if out_features < 1 or num_layers < 1:
            raise ValueError(
                f"projection_dim and projection_layers must be positive, got {out_features} and {num_layers}."
            )
        if in_features < 1 or hidden_features < 1:
            raise ValueError(f"a projection head needs positive widths, got {in_features} and {hidden_features}.")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(num_layers - 1):
            layers[f"linear_{i}"] = nn.Linear(in_features, hidden_features, bias=False)
            layers[f"norm_{i}"] = nn.BatchNorm1d(hidden_features, eps=1e-5, momentum=0.1)
            layers[f"act_{i}"] = nn.ReLU()
            in_features = hidden_features
        layers[f"linear_{num_layers - 1}"] = nn.Linear(in_features, out_features, bias=False)
        last_norm = nn.BatchNorm1d(out_features, eps=1e-5, momentum=0.1)
        last_norm.register_parameter("bias", None)  # batch norm without a shift
        layers[f"norm_{num_layers - 1}"] = last_norm
        super().__init__(layers)
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
