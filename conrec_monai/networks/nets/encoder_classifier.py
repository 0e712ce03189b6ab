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

from conrec_monai.networks.nets.encoders import check_encoder, encoder_config

__all__ = ["EncoderClassifier"]


class EncoderClassifier(nn.Module):
    """An encoder with a linear head, for fine-tuning: images BCHW -> logits B[K].

    The head's weights start normal with standard deviation 0.01 and zero bias. Scriptable when the encoder is; a
    frozen classifier is scripted for inference, as TorchScript's ``train()`` reaches its encoder.
    Source: fine-tuning of arXiv 2104.04323.

    Args:
        encoder: from images BCHW to B[F], with an attribute ``num_features``, F.
        num_classes: K.
        freeze: the encoder is not trained: its parameters need no gradient, and it stays in evaluation mode whatever
            mode the classifier is in, so that batch norm does not drift and nothing is dropped.

    Attributes:
        encoder: the encoder.
        head: the linear layer.
        config: the architecture as plain values, for :func:`conrec_monai.networks.utils.build_network`; of an encoder
            without ``config`` it holds the name alone, and no checkpoint can be written.

    Raises:
        ValueError: when an argument is out of its range.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, freeze: bool = False) -> None:
        super().__init__()
        width = check_encoder(encoder)
        if type(num_classes) is not int or num_classes < 1:
            raise ValueError(f"num_classes must be a positive whole number, got {num_classes!r}.")
        if not isinstance(freeze, bool):
            raise ValueError(f"freeze must be True or False, got {freeze!r}.")
        self.config = {
            "encoder": encoder_config(encoder),
            "num_classes": num_classes,
            "freeze": freeze,
        }
        self.freeze = freeze
        self.encoder = encoder
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        if freeze:
            self.encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EncoderClassifier:
        """Sets the mode of the head, and of the encoder unless it is frozen."""
        super().train(mode)
        if self.freeze:
            self.encoder.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images BCHW with values in [0, 1] -> logits B[K]."""
        logits: Tensor = self.head(self.encoder(x))
        return logits
