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

import numpy as np
import pytest
import torch
from ignite.engine import Events
from torch.utils.data import DataLoader

from conrec_monai.data import CachedImages, batched, load_datalist
from conrec_monai.engines import ConRecEvaluator, PrepareUnitBatch
from conrec_monai.losses import ConRecLoss
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.transforms import TwoViews


@pytest.fixture(scope="module")
def images() -> CachedImages:
    return CachedImages(load_datalist("phantom:n=16,size=32"), 32, progress=False).load()


def make(images: CachedImages, **values: Any) -> ConRecEvaluator:
    torch.manual_seed(0)
    loader = DataLoader(images, batch_size=8, drop_last=True, collate_fn=batched)
    views = TwoViews(32, values.pop("masked_views", 2))
    arguments = {"seed": 4, "amp": False, **values}
    return ConRecEvaluator("cpu", loader, ConRecUNet(features=(4, 8)), ConRecLoss(), views, **arguments)


def test_metrics_are_the_means_of_the_losses_of_the_network_in_evaluation_mode(images: CachedImages) -> None:
    evaluator = make(images)
    evaluator.run()

    network, views = evaluator.network.eval(), TwoViews(32).set_random_state(4)
    totals, contrastive, restored = [], [], []
    for part in images.images.split(8):
        inputs, targets = views.batch(part)
        with torch.no_grad():
            output = network(inputs)
            losses = ConRecLoss()(output.projection, output.reconstruction, targets)
        totals.append(losses.loss.item())
        contrastive.append(losses.contrastive.item())
        restored.append(losses.reconstruction.item())
    metrics = evaluator.state.metrics
    assert metrics["loss"] == pytest.approx(np.mean(totals), rel=1e-5)
    assert metrics["contrastive_loss"] == pytest.approx(np.mean(contrastive), rel=1e-5)
    assert metrics["reconstruction_loss"] == pytest.approx(np.mean(restored), rel=1e-5)
    assert 0 <= metrics["contrastive_accuracy"] <= 1


@pytest.mark.parametrize(("masked_views", "first"), [(1, 8), (0, 0)])
def test_masked_views_are_restored(images: CachedImages, masked_views: int, first: int) -> None:
    """The second ones alone; all are where none is masked."""
    evaluator = make(images, masked_views=masked_views)
    outputs: list[Any] = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: outputs.append(evaluator.state.output[0]))
    evaluator.run()
    losses = []
    for output in outputs:
        inputs, targets, restored = (output[name] for name in ("image", "label", "pred"))
        assert len(inputs) == len(targets) == 16 and len(restored) == 16 - first
        assert torch.equal(inputs[:8], targets[:8]) and torch.equal(inputs, targets) == (masked_views == 0)
        with torch.no_grad():
            whole = evaluator.network.eval()(inputs).reconstruction
        torch.testing.assert_close(restored, whole[first:], rtol=0, atol=1e-6)
        losses.append((restored - targets[first:]).square().mean().item())
    assert len(losses) == 2
    assert evaluator.state.metrics["reconstruction_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_second_run_gives_the_same_numbers_and_leaves_the_network_alone(images: CachedImages) -> None:
    evaluator = make(images)
    evaluator.network.train()
    weights = {name: value.clone() for name, value in evaluator.network.state_dict().items()}
    evaluator.run(1)
    first = dict(evaluator.state.metrics)
    evaluator.run(2)
    assert evaluator.state.metrics == first
    assert evaluator.network.training
    assert all(torch.equal(value, weights[name]) for name, value in evaluator.network.state_dict().items())
    assert all(parameter.grad is None for parameter in evaluator.network.parameters())


def test_the_seed_draws_the_views(images: CachedImages) -> None:
    metrics = []
    for seed in (4, 5):
        evaluator = make(images, seed=seed)
        evaluator.run()
        metrics.append(evaluator.state.metrics["loss"])
    assert metrics[0] != metrics[1]


def test_unit_batch() -> None:
    prepare = PrepareUnitBatch()
    image, label = prepare({"image": torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8), "label": torch.tensor([2])})
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, torch.tensor([[[[0.0, 0.2, 1.0]]]]))
    assert label is not None and label.tolist() == [2]
    image, label = prepare({"image": torch.tensor([[[[0.25]]]], dtype=torch.float64)}, "cpu")
    assert image.dtype == torch.float32 and image.item() == 0.25
    assert label is None
    image, _ = prepare({"image": torch.tensor([[[[65535]]]], dtype=torch.uint16)})
    assert image.item() == 1
    with pytest.raises(ValueError, match="images must be uint8, uint16 or floating point in .0, 1., got torch.int16"):
        prepare({"image": torch.zeros(1, 1, 1, 1, dtype=torch.int16)})
