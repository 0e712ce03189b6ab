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

"""The fast paths train as the plain ones do: bfloat16, compilation, gradient checkpointing, memory format."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from ignite.engine import Events
from torch.utils.data import DataLoader

from conrec_monai.data import CachedImages, EpochBatchSampler, batched, phantom_arrays
from conrec_monai.engines import ConRecTrainer
from conrec_monai.losses import ConRecLoss
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.optimizers import build_optimizer
from conrec_monai.transforms import TwoViews

PARTS = ("contrastive_loss", "reconstruction_loss")


@pytest.fixture(scope="module")
def images() -> CachedImages:
    return CachedImages([{"image": array} for array in phantom_arrays(80, 32)[0]], 32).load()


def curve(
    images: CachedImages,
    steps: int,
    seed: int = 0,
    features: tuple[int, ...] = (8, 16),
    checkpointing: bool = False,
    **trainer: Any,
) -> torch.Tensor:
    """Contrastive and reconstruction loss of every iteration: steps x 2."""
    torch.manual_seed(seed)
    network = ConRecUNet(features=features, gradient_checkpointing=checkpointing)
    loader = DataLoader(images, batch_sampler=EpochBatchSampler(len(images), 16, seed=1), collate_fn=batched)
    engine = ConRecTrainer(
        "cpu",
        steps // len(loader),
        loader,
        network,
        build_optimizer("adam", network, 3e-3),
        ConRecLoss(),
        TwoViews(32).set_random_state(seed),
        **{"amp": False, **trainer},
    )
    losses: list[torch.Tensor] = []
    engine.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: losses.append(torch.stack([engine.state.output[0][name] for name in PARTS])),
    )
    engine.run()
    return torch.stack(losses)


def test_bfloat16_trains_as_float32_does(images: CachedImages) -> None:
    """Over 50 steps, which take the reconstruction loss to a third: no further off than float32 sums in another order.

    The projection starts with weights of 0.01 and batch norm: what differs by rounding soon differs by percents.
    """
    exact, rounded = curve(images, 50), curve(images, 50, amp=True)
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert exact[-10:, 1].mean() < 0.4 * exact[:5, 1].mean()
    torch.testing.assert_close(rounded[0], exact[0], rtol=0.01, atol=0)
    difference, order, seed = (
        (curve_ / exact - 1).abs().mean(0)
        for curve_ in (rounded, curve(images, 50, channels_last=False), curve(images, 50, seed=1))
    )
    assert (difference < 2 * order).all() and (difference < 0.05).all() and (2 * difference < seed).all()
    means = [x.view(5, 10, 2).mean(1) for x in (exact, rounded)]
    torch.testing.assert_close(means[1], means[0], rtol=0.05, atol=0)


def test_memory_format_is_rounding(images: CachedImages) -> None:
    plain, fast = (curve(images, 5, channels_last=value) for value in (False, True))
    torch.testing.assert_close(fast[:2, 1], plain[:2, 1], rtol=2e-3, atol=0)
    torch.testing.assert_close(fast[0], plain[0], rtol=1e-2, atol=0)


def test_gradient_checkpointing_trains_alike(images: CachedImages) -> None:
    assert torch.equal(curve(images, 10, checkpointing=True), curve(images, 10))


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_trains_as_eager(images: CachedImages) -> None:
    plain, fast = (curve(images, 5, features=(8,), compile=value) for value in (False, True))
    torch.testing.assert_close(fast[:2, 1], plain[:2, 1], rtol=2e-3, atol=0)
    torch.testing.assert_close(fast[0], plain[0], rtol=1e-2, atol=0)
    torch.testing.assert_close(fast.mean(0), plain.mean(0), rtol=0.05, atol=0)


def test_what_recomputes_is_not_compiled(images: CachedImages) -> None:
    with pytest.raises(ValueError, match="^a network with gradient_checkpointing cannot be compiled"):
        curve(images, 5, checkpointing=True, compile=True)
