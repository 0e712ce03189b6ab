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

import torch
from torch import Tensor

from conrec_monai.losses.nt_xent import nt_xent_logits

__all__ = ["contrastive_accuracy_entropy"]


@torch.no_grad()
def contrastive_accuracy_entropy(input: Tensor, target: Tensor, temperature: float = 0.5) -> tuple[Tensor, Tensor]:
    """How often, and how surely, a first view finds its second view among the B second views of the batch.

    Args:
        input: embeddings of the first view, shape B[F].
        target: embeddings of the second view, shape B[F].
        temperature: divisor of the cosine similarities.

    Returns:
        Scalars: the share of first views whose most similar second view is their own, in [0, 1] (chance: 1 / B), and
        the mean entropy in nats of the softmax over the B second views, in [0, log B].
    """
    batch = len(input)
    log_probabilities = nt_xent_logits(input, target, temperature)[:batch, batch:].log_softmax(dim=1)
    own = torch.arange(batch, device=log_probabilities.device)
    accuracy = (log_probabilities.argmax(dim=1) == own).float().mean()
    return accuracy, -(log_probabilities.exp() * log_probabilities).sum(dim=1).mean()
