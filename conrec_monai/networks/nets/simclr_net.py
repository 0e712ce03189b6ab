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

from torch import Tensor, nn

from conrec_monai.networks.blocks import ProjectionHead
from conrec_monai.networks.nets.conrec_unet import ConRecOutput
from conrec_monai.networks.nets.encoders import check_encoder, encoder_config

__all__ = ["SimCLRNet"]


class SimCLRNet(nn.Module):
    """Contrastive pretraining of any encoder: encoder -> representation -> projection, no reconstruction.

    For :class:`conrec_monai.engines.ConRecTrainer` with :class:`conrec_monai.losses.ConRecLoss`. Scriptable when the
    encoder is. Source: SimCLR, arXiv 2002.05709; the head is that of arXiv 2104.04323.

    Args:
        encoder: from images BCHW to B[F], with an attribute ``num_features``, F.
        projection_dim: P, width of the projection.
        projection_layers: linear layers of the projection head; the hidden ones are as wide as the representation.

    Attributes:
        encoder: the encoder.
        config: the architecture as plain values, for :func:`conrec_monai.networks.utils.build_network`; of an encoder
            without ``config`` it holds the name alone, and no checkpoint can be written.

    Raises:
        ValueError: when an argument is out of its range.
    """

    def __init__(self, encoder: nn.Module, projection_dim: int = 128, projection_layers: int = 3) -> None:
        super().__init__()
        width = check_encoder(encoder)
        self.config = {
            "encoder": encoder_config(encoder),
            "projection_dim": projection_dim,
            "projection_layers": projection_layers,
        }
        self.encoder = encoder
        self.projection = ProjectionHead(width, width, projection_dim, projection_layers)

    def forward(self, x: Tensor, first: int = 0) -> ConRecOutput:
        """Images BCHW with values in [0, 1] -> :class:`ConRecOutput` without reconstruction, float32.

        ``first`` is that of :class:`ConRecUNet` and has no effect: nothing is reconstructed.
        """
        representation: Tensor = self.encoder(x)
        projection: Tensor = self.projection(representation)
        return ConRecOutput(None, projection.float(), representation)
