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

from typing import NamedTuple

import torch
from monai.losses import SSIMLoss
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from conrec_monai.losses.nt_xent import NTXentLoss

__all__ = ["ConRecLoss", "ConRecLossOutput"]

RECONSTRUCTION_LOSSES = ("mse", "ssim", "huber")


class ConRecLossOutput(NamedTuple):
    """The total and its parts, unweighted: loss = contrastive_weight * contrastive + alpha * reconstruction."""

    loss: Tensor
    contrastive: Tensor
    reconstruction: Tensor


class ConRecLoss(_Loss):
    """Contrastive plus reconstruction loss of ConRec: ``contrastive_weight * L_c + alpha * L_r``.

    L_c is :class:`NTXentLoss` on the projections of the two views, L_r compares the reconstruction with the unmasked
    view. The publication *sums* the two directions of L_c, hence the default ``contrastive_weight`` of 2 on the mean.
    Source: Dippel et al., arXiv 2104.04323.

    Args:
        alpha: weight of the reconstruction.
        contrastive_weight: weight of the mean NT-Xent loss.
        temperature: of the NT-Xent loss.
        reconstruction: "mse", "ssim" (1 - SSIM, :class:`monai.losses.SSIMLoss`) or "huber".
        gather: see :class:`NTXentLoss`.

    Raises:
        ValueError: when a weight is negative or ``reconstruction`` is unknown.
    """

    def __init__(
        self,
        alpha: float = 100.0,
        contrastive_weight: float = 2.0,
        temperature: float = 0.5,
        reconstruction: str = "mse",
        gather: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("contrastive_weight", contrastive_weight)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        if reconstruction not in RECONSTRUCTION_LOSSES:
            raise ValueError(f"reconstruction must be one of {RECONSTRUCTION_LOSSES}, got {reconstruction!r}.")
        self.alpha = float(alpha)
        self.contrastive_weight = float(contrastive_weight)
        self.contrastive_loss = NTXentLoss(temperature, gather)
        self.reconstruction_loss: nn.Module
        if reconstruction == "mse":
            self.reconstruction_loss = nn.MSELoss()
        elif reconstruction == "ssim":
            self.reconstruction_loss = SSIMLoss(spatial_dims=2, data_range=1.0)
        else:
            self.reconstruction_loss = nn.HuberLoss()

    def forward(
        self, projection: Tensor, reconstruction: Tensor | None = None, target: Tensor | None = None
    ) -> ConRecLossOutput:
        """
        Args:
            projection: shape 2B[F], the B first views and then the B second views of the same images.
            reconstruction: shape 2BCHW, values in [0, 1]; None for SimCLR (its part is then 0).
            target: the unmasked views, shape 2BCHW, values in [0, 1].

        Returns:
            Scalars in float32: the weighted total, L_c and L_r.

        Raises:
            ValueError: when 2B is odd, or the reconstruction and its target differ in shape.
        """
        if len(projection) % 2:
            raise ValueError(f"projection must hold two views of each image, got an odd number of {len(projection)}.")
        with torch.autocast(projection.device.type, enabled=False):
            contrastive = self.contrastive_loss(*projection.chunk(2))
            if reconstruction is None:
                return ConRecLossOutput(self.contrastive_weight * contrastive, contrastive, contrastive.new_zeros(()))
            if target is None or reconstruction.shape != target.shape:
                found = None if target is None else tuple(target.shape)
                raise ValueError(f"target must have the reconstruction's shape {tuple(reconstruction.shape)}: {found}.")
            restored = self.reconstruction_loss(reconstruction.float(), target.float())
            loss = self.contrastive_weight * contrastive + self.alpha * restored
        return ConRecLossOutput(loss, contrastive, restored)
