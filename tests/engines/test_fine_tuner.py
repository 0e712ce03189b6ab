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

import io
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from torch.utils.data import DataLoader

from conrec_monai.data import CachedImages, EpochBatchSampler, batched, load_datalist
from conrec_monai.engines import FineTuner, bfloat16_is_fast
from conrec_monai.handlers import EarlyStop
from conrec_monai.losses import CumulativeBCELoss
from conrec_monai.networks.nets import ConRecEncoder, EncoderClassifier
from conrec_monai.optimizers import build_optimizer
from conrec_monai.transforms import RandZoomFlip

EPOCH = 5  # iterations: 36 images in batches of 8, the last one of 4


@pytest.fixture(scope="module")
def images() -> CachedImages:
    return CachedImages(load_datalist("phantom:n=36,size=32"), 32, progress=False).load()


def make_tuner(
    images: CachedImages,
    *,
    seed: int = 0,
    max_epochs: int = 2,
    freeze: bool = False,
    optimizer: str = "adam",
    rate: float = 0.01,
    loader: Any = None,
    loss_function: Any = None,
    augmented: bool = True,
    amp: bool | None = False,
    handlers: Any = None,
) -> FineTuner:
    torch.manual_seed(seed)
    network = EncoderClassifier(ConRecEncoder(features=(4, 8)), 5, freeze)
    if loader is None:
        sampler = EpochBatchSampler(len(images), 8, seed, drop_last=False)
        loader = DataLoader(images, batch_sampler=sampler, collate_fn=batched)
    return FineTuner(
        "cpu",
        max_epochs,
        loader,
        network,
        build_optimizer(optimizer, network, rate, head="head"),
        loss_function or CumulativeBCELoss(),
        RandZoomFlip() if augmented else None,
        seed,
        amp,
        handlers,
    )


def assert_same(a: Any, b: Any) -> None:
    """Bit for bit, through dictionaries and lists."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert a == b


def test_one_step_by_hand(images: CachedImages) -> None:
    batch = images.__getitems__(range(8))
    tuner = make_tuner(images, max_epochs=1, loader=[batch], optimizer="sgd", rate=0.5, freeze=True, augmented=False)
    network = tuner.network
    weight, bias = network.head.weight.detach().clone(), network.head.bias.detach().clone()
    with torch.no_grad():
        h = network.encoder(batch["image"].float() / 255)
    tuner.run()
    output = tuner.state.output[0]
    assert len(tuner.state.output) == 1 and list(output) == ["image", "label", "pred", "loss"]
    torch.testing.assert_close(output["image"], batch["image"].float() / 255)
    torch.testing.assert_close(output["pred"], h @ weight.T + bias)
    # The gradient of the mean cross-entropy, and the first step of Nesterov's momentum 0.9.
    labels = (batch["label"][:, None] >= torch.arange(5)).float()
    residual = ((h @ weight.T + bias).sigmoid() - labels) / 40
    torch.testing.assert_close(network.head.weight, weight - 0.5 * 1.9 * residual.T @ h)
    torch.testing.assert_close(network.head.bias, bias - 0.5 * 1.9 * residual.sum(0))
    assert not output["pred"].requires_grad and not output["loss"].requires_grad


def test_mean_loss_counts_images_and_epochs_differ(images: CachedImages) -> None:
    losses: list[tuple[float, int]] = []
    means: list[float] = []
    tuner = make_tuner(images)
    tuner.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda e: losses.append((e.state.output[0]["loss"].item(), len(e.state.output[0]["image"]))),
    )
    tuner.add_event_handler(Events.EPOCH_COMPLETED, lambda e: means.append(e.state.metrics["loss"]))
    tuner.run()
    assert [n for _, n in losses] == [8, 8, 8, 8, 4] * 2
    for epoch, mean in enumerate(means):
        assert mean == pytest.approx(sum(loss * n for loss, n in losses[epoch * 5 : epoch * 5 + 5]) / 36, rel=1e-6)
    assert tuner.running_metrics() == {"loss": means[1]}


def test_run_depends_on_its_seed_alone(images: CachedImages) -> None:
    class Disturb:
        """As a handler may: draws random numbers and leaves the network in evaluation mode."""

        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.EPOCH_STARTED | Events.ITERATION_COMPLETED, self._draw)

        def _draw(self, engine: Any) -> None:
            torch.rand(3)
            np.random.rand(3)
            engine.network.eval()

    plain, other = make_tuner(images), make_tuner(images)
    other.R.seed(1)
    disturbed = make_tuner(images, handlers=[Disturb()])
    torch.manual_seed(1234)
    for tuner in (disturbed, plain, other):
        tuner.run()
    assert_same(plain.network.state_dict(), disturbed.network.state_dict())
    assert not torch.equal(plain.network.head.weight, other.network.head.weight)


def test_images_are_augmented_anew_in_each_epoch(images: CachedImages) -> None:
    seen: list[Tensor] = []
    batch = images.__getitems__(range(4))
    tuner = make_tuner(images, loader=[batch])
    tuner.add_event_handler(IterationEvents.FORWARD_COMPLETED, lambda e: seen.append(e.state.output[0]["image"]))
    tuner.run()
    expected = RandZoomFlip()
    expected.set_random_state(0)
    torch.testing.assert_close(seen[0], expected.batch(batch["image"]))
    assert seen[0].dtype == torch.float32 and not torch.equal(seen[0], seen[1])


def test_frozen_encoder_stays_as_it_is(images: CachedImages) -> None:
    frozen, free = make_tuner(images, freeze=True), make_tuner(images)
    for tuner in (frozen, free):
        before = {name: value.clone() for name, value in tuner.network.state_dict().items()}
        tuner.run()
        changed = {n for n, v in tuner.network.state_dict().items() if not torch.equal(v, before[n])}
        if tuner is frozen:
            assert changed == {"head.weight", "head.bias"}
        else:
            assert changed == set(before)


@pytest.mark.parametrize("optimizer", ["lars", "adam"])
@pytest.mark.parametrize("stop", [2, 5, 8], ids=["mid_first_epoch", "epoch_end", "mid_second_epoch"])
def test_resumed_run_is_the_uninterrupted_run(images: CachedImages, stop: int, optimizer: str) -> None:
    whole = make_tuner(images, optimizer=optimizer)
    whole.run()

    class Stop(Exception):
        pass

    def interrupt(engine: Engine) -> None:
        if engine.state.iteration == stop:
            torch.save({"network": first.network.state_dict(), "training": first.training_state()}, file)
            raise Stop

    file = io.BytesIO()
    first = make_tuner(images, optimizer=optimizer)
    first.add_event_handler(Events.EPOCH_COMPLETED if stop % EPOCH == 0 else Events.ITERATION_COMPLETED, interrupt)
    with pytest.raises(Stop):
        first.run()
    file.seek(0)
    content = torch.load(file, weights_only=True)

    second = make_tuner(images, seed=7, optimizer=optimizer)
    second.data_loader.batch_sampler.seed = 0  # a setting, no state
    second.network.load_state_dict(content["network"])
    second.load_training_state(content["training"])
    second.run()
    assert second.state.metrics == whole.state.metrics
    assert_same(second.network.state_dict(), whole.network.state_dict())
    assert_same(second.training_state(), whole.training_state())


def test_other_epoch_length_is_refused(images: CachedImages) -> None:
    other = make_tuner(images, loader=[images.__getitems__(range(8))])
    with pytest.raises(ValueError, match="epochs have 5 iterations, this run's 1: the number of images or the batch"):
        other.load_training_state(make_tuner(images).training_state())


def test_events_and_handlers(images: CachedImages) -> None:
    fired: list[str] = []
    tuner = make_tuner(images, max_epochs=9, optimizer="sgd", rate=0.0, handlers=[EarlyStop(2)], augmented=False)
    tuner.network.encoder.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # no dropout
    for event in IterationEvents.__members__.values():
        if event.value not in ("inner_iteration_started", "inner_iteration_completed"):
            tuner.add_event_handler(event, lambda e, name=event.value: fired.append(name))
    losses: list[float] = []
    tuner.add_event_handler(Events.EPOCH_COMPLETED, lambda e: losses.append(e.state.metrics["loss"]))
    tuner.run()
    assert fired[:4] == ["forward_completed", "loss_completed", "backward_completed", "model_completed"]
    assert 3 <= len(losses) < 9  # it learns nothing at a rate of 0


def test_autocast(images: CachedImages) -> None:
    tuner = make_tuner(images, max_epochs=1, amp=True, loader=[images.__getitems__(range(8))])
    dtypes: list[torch.dtype] = []
    tuner.network.head.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    tuner.run()
    assert dtypes == [torch.bfloat16] and tuner.state.output[0]["pred"].dtype == torch.float32
    assert all(p.dtype == torch.float32 == p.grad.dtype for p in tuner.network.parameters())
    assert make_tuner(images, amp=None).autocast is bfloat16_is_fast(torch.device("cpu"))


def test_channels_last(images: CachedImages) -> None:
    tuner = make_tuner(images, max_epochs=1, loader=[images.__getitems__(range(8))])
    formats: list[bool] = []
    tuner.network.register_forward_pre_hook(
        lambda network, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    tuner.run()
    assert formats == [True]


def test_floats_and_bytes_are_the_same_images(images: CachedImages) -> None:
    batch = images.__getitems__(range(8))
    networks = []
    for image in (batch["image"], batch["image"].float() / 255):
        tuner = make_tuner(images, max_epochs=1, loader=[{**batch, "image": image}])
        tuner.run()
        networks.append(tuner.network.state_dict())
    assert_same(*networks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.ones(8, 3, 32, 32) * 255}, r"values in \[0, 1\], found 255 to 255"),
        ({"image": torch.ones(8, 3, 32, 32, dtype=torch.int64)}, "uint8, uint16 or floating point .* got torch.int64"),
        ({"image": torch.ones(3, 32, 32)}, r"must hold 'image', BCHW, found \[3, 32, 32\]"),
        ({"label": None}, r"must hold 'label', one per image \(8\), found NoneType"),
        ({"label": torch.zeros(7, dtype=torch.int64)}, r"must hold 'label', one per image \(8\), found \[7\]"),
        ({"label": torch.full((8,), -1)}, r"grades must be in 0\.\.4, found -1 to -1"),
    ],
)
def test_batch_errors(images: CachedImages, change: dict[str, Any], message: str) -> None:
    tuner = make_tuner(images, loader=[{**images.__getitems__(range(8)), **change}])
    with pytest.raises(ValueError, match=message):
        tuner.run()


def test_diverged_run_says_so(images: CachedImages) -> None:
    reached: list[int] = []
    tuner = make_tuner(images, max_epochs=5, optimizer="sgd", rate=1e30)
    tuner.add_event_handler(Events.EPOCH_COMPLETED, lambda e: reached.append(e.state.epoch))
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) in epoch 1: .* smaller learning rate"):
        tuner.run()
    assert not reached  # no handler saves such a network
