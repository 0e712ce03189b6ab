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
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor
from torch.utils.data import DataLoader

from conrec_monai.data import CachedImages, EpochBatchSampler, batched, load_datalist
from conrec_monai.engines import ConRecTrainer, bfloat16_is_fast
from conrec_monai.losses import ConRecLoss
from conrec_monai.metrics import contrastive_accuracy_entropy
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.optimizers import build_optimizer, build_schedule
from conrec_monai.transforms import TwoViews

PARTS = ("loss", "contrastive_loss", "reconstruction_loss", "contrastive_accuracy")
EPOCH = 5  # iterations: 40 images in batches of 8


@pytest.fixture(scope="module")
def images() -> CachedImages:
    return CachedImages(load_datalist("phantom:n=40,size=32"), 32, progress=False).load()


def make_trainer(
    images: CachedImages,
    *,
    seed: int = 0,
    batch_size: int = 8,
    max_epochs: int = 3,
    optimizer: str = "lars",
    masked_views: int = 2,
    decoder: bool = True,
    amp: bool | None = False,
    loader: Any = None,
    loss_function: Callable | None = None,
    handlers: Any = None,
) -> ConRecTrainer:
    torch.manual_seed(seed)
    network = ConRecUNet(features=(4, 8), decoder=decoder)
    if loader is None:
        sampler = EpochBatchSampler(len(images), batch_size, seed)
        loader = DataLoader(images, batch_sampler=sampler, collate_fn=batched)
    return ConRecTrainer(
        "cpu",
        max_epochs,
        loader,
        network,
        build_optimizer(optimizer, network, 0.01 if optimizer == "adam" else 0.3),
        loss_function or ConRecLoss(),
        TwoViews(32, masked_views).set_random_state(seed),
        amp,
        handlers,
    )


def losses_of(trainer: ConRecTrainer) -> list[tuple[float, ...]]:
    """Collects the parts of the loss of every iteration of the coming run."""
    found: list[tuple[float, ...]] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: found.append(tuple(engine.state.output[0][p].item() for p in PARTS))
    )
    return found


def metrics_of(trainer: ConRecTrainer) -> dict[int, dict[str, float]]:
    """Collects the metrics of every epoch of the coming run."""
    found: dict[int, dict[str, float]] = {}
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: found.update({engine.state.epoch: dict(engine.state.metrics)})
    )
    return found


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


# --- the same run again -----------------------------------------------------------------------------------------------


def test_one_seed_one_run(images: CachedImages) -> None:
    first, again, other = (make_trainer(images, seed=seed, max_epochs=2) for seed in (0, 0, 1))
    losses = [losses_of(trainer) for trainer in (first, again, other)]
    for trainer in (first, again, other):
        trainer.run()
    assert len(losses[0]) == 2 * EPOCH and losses[0] == losses[1]
    assert_same(first.network.state_dict(), again.network.state_dict())
    assert first.state.metrics == again.state.metrics
    assert losses[0] != losses[2]


def test_run_depends_on_no_global_generator_and_no_mode(images: CachedImages) -> None:
    class Disturb:
        """As a handler may: draws random numbers and leaves the network in evaluation mode."""

        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.EPOCH_STARTED | Events.ITERATION_COMPLETED, self._draw)

        def _draw(self, engine: Any) -> None:
            torch.rand(3)
            np.random.rand(3)
            engine.network.eval()

    plain = make_trainer(images, max_epochs=2)
    plain.run()
    disturbed = make_trainer(images, max_epochs=2, handlers=[Disturb()])
    torch.manual_seed(1234)
    disturbed.run()
    assert_same(plain.network.state_dict(), disturbed.network.state_dict())


@pytest.mark.parametrize("optimizer", ["lars", "adam"])
@pytest.mark.parametrize("stop", [2, 5, 8], ids=["mid_first_epoch", "epoch_end", "mid_second_epoch"])
def test_resumed_run_is_the_uninterrupted_run(images: CachedImages, stop: int, optimizer: str) -> None:
    whole = make_trainer(images, optimizer=optimizer)
    expected_metrics, expected_losses = metrics_of(whole), losses_of(whole)
    whole.run()

    class Stop(Exception):
        pass

    def interrupt(engine: Engine) -> None:
        if engine.state.iteration == stop:
            torch.save({"network": first.network.state_dict(), "training": first.training_state()}, file)
            raise Stop

    file = io.BytesIO()
    first = make_trainer(images, optimizer=optimizer)
    first.add_event_handler(Events.EPOCH_COMPLETED if stop % EPOCH == 0 else Events.ITERATION_COMPLETED, interrupt)
    with pytest.raises(Stop):
        first.run()
    file.seek(0)
    content = torch.load(file, weights_only=True)

    # Another seed: whatever the state does not hold, weights and views of the new run, shows.
    second = make_trainer(images, seed=7, optimizer=optimizer)
    second.data_loader.batch_sampler.seed = 0  # a setting, no state
    second.network.load_state_dict(content["network"])
    second.load_training_state(content["training"])
    assert second.state.iteration == stop
    metrics, losses = metrics_of(second), losses_of(second)
    torch.manual_seed(4321)
    np.random.seed(4321)
    second.run()

    assert losses == expected_losses[stop:]
    assert metrics == {epoch: m for epoch, m in expected_metrics.items() if epoch > stop // EPOCH}
    assert_same(second.network.state_dict(), whole.network.state_dict())
    assert_same(second.optimizer.state_dict(), whole.optimizer.state_dict())
    assert_same(second.training_state(), whole.training_state())


def test_training_state_is_a_snapshot(images: CachedImages) -> None:
    trainer = make_trainer(images, max_epochs=1)
    states: list[dict[str, Any]] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: states.append(trainer.training_state()))
    at_two = losses_of(trainer)
    trainer.run()
    assert (states[0]["iteration"], states[0]["counted"], states[0]["epoch_length"]) == (2, 2, EPOCH)
    np.testing.assert_allclose(states[0]["totals"], np.sum(at_two[:2], axis=0), rtol=1e-6)  # not those of the end


def test_other_epoch_length_is_refused(images: CachedImages) -> None:
    state = make_trainer(images).training_state()
    other = make_trainer(images, batch_size=16)
    with pytest.raises(ValueError, match="epochs have 5 iterations, this run's 2: the number of images or the batch"):
        other.load_training_state(state)
    assert other.state.iteration == 0


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_metrics_are_means_over_the_epoch(images: CachedImages) -> None:
    trainer = make_trainer(images, max_epochs=2)
    losses, metrics = losses_of(trainer), metrics_of(trainer)
    running: list[dict[str, float]] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=7), lambda: running.append(trainer.running_metrics()))
    trainer.run()
    values = np.array(losses)
    for epoch in (1, 2):
        mean = values[(epoch - 1) * EPOCH : epoch * EPOCH].mean(axis=0)
        np.testing.assert_allclose([metrics[epoch][p] for p in PARTS], mean, rtol=1e-6)
    np.testing.assert_allclose([running[0][p] for p in PARTS], values[5:7].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(values[:, 0], 2 * values[:, 1] + 100 * values[:, 2], rtol=1e-6)
    assert values[:, 2].min() > 0


def test_running_metrics_before_the_first_iteration(images: CachedImages) -> None:
    assert make_trainer(images).running_metrics() == dict.fromkeys(PARTS, 0.0)


def test_output_is_what_the_loss_saw(images: CachedImages) -> None:
    seen = []

    def loss_function(projection: Tensor, reconstruction: Tensor, target: Tensor) -> Any:
        seen.append((projection.detach().clone(), reconstruction.detach().clone(), target.clone()))
        return ConRecLoss()(projection, reconstruction, target)

    trainer = make_trainer(images, max_epochs=1, loss_function=loss_function)
    trainer.run()
    (output,) = trainer.state.output
    projection, reconstruction, target = seen[-1]
    assert len(seen) == EPOCH and projection.shape == (16, 128)
    for name in ("image", "label", "pred"):  # two views of each of 8 images
        assert output[name].shape == (16, 3, 32, 32) and output[name].dtype == torch.float32
        assert not output[name].requires_grad and 0 <= output[name].min() and output[name].max() <= 1
    assert torch.equal(output["label"], target) and torch.equal(output["pred"], reconstruction)
    assert not torch.equal(output["image"], output["label"])  # masked
    losses = ConRecLoss()(projection, reconstruction, target)
    assert [output[p].item() for p in PARTS[:3]] == [losses.loss, losses.contrastive, losses.reconstruction]
    assert output["contrastive_accuracy"] == contrastive_accuracy_entropy(*projection.chunk(2))[0]
    assert all(output[p].shape == () and not output[p].requires_grad for p in PARTS)


def test_simclr(images: CachedImages) -> None:
    trainer = make_trainer(images, max_epochs=1, decoder=False, masked_views=0)
    losses = losses_of(trainer)
    before = {name: value.clone() for name, value in trainer.network.named_parameters()}
    trainer.run()
    assert trainer.state.output[0]["pred"] is None
    assert torch.equal(trainer.state.output[0]["image"], trainer.state.output[0]["label"])
    for loss, contrastive, reconstruction, _ in losses:
        assert reconstruction == 0 and loss == pytest.approx(2 * contrastive) and contrastive > 0
    assert all(not torch.equal(value, before[name]) for name, value in trainer.network.named_parameters())


@pytest.mark.parametrize(("masked_views", "first"), [(2, 0), (1, 8), (0, 0)])
def test_masked_views_are_restored(images: CachedImages, masked_views: int, first: int) -> None:
    """Both views or the second ones; all are where none is masked."""
    trainer = make_trainer(images, max_epochs=1, masked_views=masked_views, loader=[{"image": images.images[:8]}])
    trainer.run()
    (output,) = trainer.state.output
    inputs, targets, restored = (output[name] for name in ("image", "label", "pred"))
    assert len(inputs) == len(targets) == 16 and len(restored) == 16 - first
    same = (inputs == targets).flatten(1).all(1)
    assert same[:8].all() == (masked_views < 2) and same[8:].all() == (masked_views == 0)
    expected = (restored - targets[first:]).square().mean().item()
    assert output["reconstruction_loss"].item() == pytest.approx(expected, rel=1e-5) and expected > 0
    total = 2 * output["contrastive_loss"].item() + 100 * expected
    assert output["loss"].item() == pytest.approx(total, rel=1e-5)


def test_views_and_batches_of_the_sampler(images: CachedImages) -> None:
    trainer = make_trainer(images, batch_size=16, max_epochs=2)
    batches: list[Tensor] = []
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, lambda: batches.append(trainer.state.batch["image"].clone()))
    trainer.run()
    orders = [np.random.RandomState([0, epoch]).permutation(40)[:32].reshape(2, 16) for epoch in (0, 1)]
    assert_same(batches, [images.images[torch.from_numpy(indices)] for order in orders for indices in order])


# --- one iteration ----------------------------------------------------------------------------------------------------


def test_batch_is_not_changed(images: CachedImages) -> None:
    batch = images.images[:8].clone()
    trainer = make_trainer(images, max_epochs=2, loader=[{"image": batch}])
    trainer.run()
    assert trainer.state.iteration == 2
    assert batch.dtype == torch.uint8 and torch.equal(batch, images.images[:8])


def test_no_batch_is_an_error(images: CachedImages) -> None:
    trainer = make_trainer(images)
    with pytest.raises(ValueError, match="Must provide batch data"):
        trainer._iteration(trainer, None)  # type: ignore[arg-type]


def test_iteration_events(images: CachedImages) -> None:
    trainer = make_trainer(images, max_epochs=1, loader=[{"image": images.images[:8]}])
    weight = trainer.network.encoder.levels[0].conv_0.conv.weight
    before, events = weight.detach().clone(), []
    for event in IterationEvents:
        trainer.add_event_handler(
            event,
            lambda engine, event: events.append((event, weight.grad is not None, torch.equal(weight, before))),
            event,
        )
    trainer.run()
    assert events == [
        (IterationEvents.FORWARD_COMPLETED, False, True),
        (IterationEvents.LOSS_COMPLETED, False, True),
        (IterationEvents.BACKWARD_COMPLETED, True, True),
        (IterationEvents.MODEL_COMPLETED, True, False),
    ]


@pytest.mark.parametrize(("amp", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast(images: CachedImages, amp: bool, dtype: torch.dtype) -> None:
    dtypes: list[torch.dtype] = []
    trainer = make_trainer(images, max_epochs=2, amp=amp, loader=[{"image": images.images[:8]}])
    trainer.network.encoder.levels[1].conv_0.conv.register_forward_hook(
        lambda m, i, output: dtypes.append(output.dtype)
    )
    trainer.run()
    assert trainer.autocast is amp and dtypes == [dtype] * 2
    assert all(trainer.state.output[0][name].dtype == torch.float32 for name in (*PARTS, "image", "label", "pred"))
    assert all(np.isfinite(trainer.state.metrics[name]) for name in PARTS)
    assert all(p.dtype == torch.float32 == p.grad.dtype for p in trainer.network.parameters())
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_by_default_where_it_is_fast(images: CachedImages) -> None:
    assert make_trainer(images, amp=None).autocast is bfloat16_is_fast(torch.device("cpu"))
    assert bfloat16_is_fast(torch.device("meta")) is False


def test_channels_last(images: CachedImages) -> None:
    trainer = make_trainer(images, max_epochs=1, loader=[{"image": images.images[:8]}])
    formats = []
    trainer.network.register_forward_pre_hook(
        lambda network, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    trainer.run()
    assert formats == [True]
    weight = trainer.network.encoder.levels[1].conv_0.conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_schedule_steps_every_iteration(images: CachedImages) -> None:
    from monai.handlers import LrScheduleHandler

    trainer = make_trainer(images, max_epochs=2)
    schedule = build_schedule("warmup_cosine", trainer.optimizer, EPOCH, 2)
    LrScheduleHandler(schedule, print_lr=False, epoch_level=False).attach(trainer)
    rates: list[float] = []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    trainer.run()
    # 10 iterations, 1 of warm-up: 0 at first, the full rate next, then half a cosine.
    expected = [0.0, *(0.3 * 0.5 * (1 + np.cos(np.pi * i / 9)) for i in range(9))]
    np.testing.assert_allclose(rates, expected, atol=1e-9)


# --- what the progress line shows -------------------------------------------------------------------------------------


def test_recent_metrics(images: CachedImages) -> None:
    """Those up to the iteration in which they were asked for before; nothing at first."""
    trainer = make_trainer(images, max_epochs=1)
    recent: list[dict[str, float] | None] = []
    running: list[dict[str, float]] = []

    def ask(engine: ConRecTrainer) -> None:
        recent.append(engine.recent_metrics())
        running.append(engine.running_metrics())

    trainer.add_event_handler(Events.ITERATION_COMPLETED, ask)
    trainer.run()
    assert recent == [None, *running[:-1]]
