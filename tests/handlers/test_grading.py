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

import logging
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch.utils.data import DataLoader, Subset

from conrec_monai.data import CachedImages, EpochBatchSampler, batched, load_datalist
from conrec_monai.engines import FineTuner, PrepareUnitBatch
from conrec_monai.evaluation import calibrate, graded
from conrec_monai.evaluation.metrics import METRICS
from conrec_monai.handlers import EarlyStop, GradingCheckpoint, GradingScores, ValidationHandler
from conrec_monai.losses import CumulativeBCELoss, GradeRegressionLoss
from conrec_monai.networks.nets import ConRecEncoder, GradingNet
from conrec_monai.networks.nets.grading_net import TASKS
from conrec_monai.networks.utils import load_encoder, load_model, read_checkpoint
from conrec_monai.optimizers import build_optimizer

PREPROCESSING = {"image_size": 32, "resize": "squash", "field_of_view": None}
SETTINGS = {"schedule": "constant", "seed": 0}
CLASSES = ["none", "mild", "moderate", "severe", "proliferative"]
EPOCH = 3  # iterations: 24 images in batches of 8
FILES = ["best.pt", "checkpoint.pt", "model.pt"]


@pytest.fixture(scope="module")
def images() -> CachedImages:
    """The first 24 are trained on, the other 12 are the validation part."""
    return CachedImages(load_datalist("phantom:n=36,size=32"), 32, progress=False).load()


class Scores:
    """Sets a metric of each epoch to a given value, as a validation would; None for an epoch without."""

    def __init__(self, *values: float | None, metric: str = "val_qwk") -> None:
        self.values, self.metric = values, metric

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._set)

    def _set(self, engine: Engine) -> None:
        engine.state.metrics.pop(self.metric, None)
        value = self.values[engine.state.epoch - 1]
        if value is not None:
            engine.state.metrics[self.metric] = value


class At:
    """Calls a function after an iteration of the run."""

    def __init__(self, iteration: int, function: Callable[[], Any]) -> None:
        self.iteration, self.function = iteration, function

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._call)

    def _call(self, engine: Engine) -> None:
        if engine.state.iteration == self.iteration:
            self.function()


def weights(network: torch.nn.Module, scale: bool = False) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items() if scale or name != "scale"}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []


def validation_loader(images: CachedImages) -> DataLoader:
    return DataLoader(Subset(images, range(24, 36)), batch_size=5, collate_fn=batched)


def make_run(
    images: CachedImages,
    output_dir: Path,
    *handlers: Any,
    max_epochs: int = 4,
    task: str = "ordinal",
    resume: bool = False,
    seed: int = 0,
    **options: Any,
) -> FineTuner:
    torch.manual_seed(seed)
    network = GradingNet(ConRecEncoder(features=(4, 8)), 5, task)
    loss = {"ordinal": CumulativeBCELoss(), "regression": GradeRegressionLoss(5)}.get(task, torch.nn.CrossEntropyLoss())
    sampler = EpochBatchSampler(24, 8, 0)
    checkpoint = GradingCheckpoint(
        output_dir, network, PREPROCESSING, SETTINGS, validation_loader(images), CLASSES, resume=resume, **options
    )
    return FineTuner(
        "cpu",
        max_epochs,
        DataLoader(Subset(images, range(24)), batch_sampler=sampler, collate_fn=batched),
        network,
        build_optimizer("adam", network, 0.01, head="head"),
        loss,
        amp=False,
        train_handlers=[checkpoint, *handlers],
    )


def collect(tuner: FineTuner) -> dict[int, dict[str, torch.Tensor]]:
    """The weights after each epoch of a run that is to come."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    tuner.add_event_handler(Events.EPOCH_COMPLETED, lambda e: found.update({e.state.epoch: weights(e.network)}))
    return found


# --- GradingScores ----------------------------------------------------------------------------------------------------


def scores_of(task: str, *batches: tuple[Any, list[int]]) -> dict[str, float]:
    engine = Engine(lambda _, batch: {"pred": torch.tensor(batch[0]), "label": torch.tensor(batch[1])})
    GradingScores(task).attach(engine)
    engine.run(batches[:1])
    engine.run(batches[:1] + batches)  # anew
    engine.run(batches)
    return engine.state.metrics


def test_scores_by_hand() -> None:
    found = scores_of(
        "ordinal",
        ([[0.7, 0.2, 0.1], [0.3, 0.25, 0.45], [0.2, 0.6, 0.2]], [0, 1, 2]),
        ([[0.0, 0.0, 1.0]], [2]),
    )
    # Grades 0, 1, 1, 2 are said, the median; the mean squared error is 1/4, that of independent ones 9/4 - 5/2 + 3/2.
    assert found["accuracy"] == 0.75
    assert found["qwk"] == pytest.approx(1 - 0.25 / 1.25)
    assert found["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.25) + math.log(0.2)) / 4, rel=1e-6)


def test_classes_are_scored_by_the_most_probable_one() -> None:
    batch = ([[0.3, 0.25, 0.45], [0.0, 1.0, 0.0]], [2, 0])
    assert scores_of("categorical", batch)["accuracy"] == 0.5
    assert scores_of("regression", batch)["accuracy"] == 0
    # What was held for impossible costs much, not infinitely much.
    assert scores_of("categorical", batch)["nll"] == pytest.approx(-(math.log(0.45) + math.log(1e-7)) / 2, rel=1e-6)


def test_scores_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="probabilities are not finite: the training has diverged; try a smaller"):
        scores_of("ordinal", ([[math.nan, 0.0]], [0]))


@pytest.mark.parametrize("task", TASKS)
def test_scores_of_an_evaluator(task: str, images: CachedImages) -> None:
    torch.manual_seed(1)
    network = GradingNet(ConRecEncoder(features=(4, 8)), 5, task)
    network.head.weight.data *= 100
    evaluator = SupervisedEvaluator(
        "cpu",
        validation_loader(images),
        network,
        prepare_batch=PrepareUnitBatch(),
        decollate=False,
        val_handlers=[GradingScores(task)],
    )
    evaluator.run()
    part = images.gather(range(24, 36)).float() / 255
    with torch.no_grad():
        probabilities = network.eval()(part).numpy()
    labels = images.labels[24:].numpy()
    said = graded(np.arange(12), probabilities, task)
    assert evaluator.state.metrics["accuracy"] == (said.predicted == labels).mean()
    assert evaluator.state.metrics["qwk"] == pytest.approx(METRICS["qwk"](labels, said.predicted, said.probabilities))
    likely = probabilities[np.arange(12), labels].astype(np.float64).clip(1e-7)
    assert evaluator.state.metrics["nll"] == pytest.approx(-np.log(likely).mean(), rel=1e-5)


# --- GradingCheckpoint: what a run leaves -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_best_epoch_is_kept_and_calibrated(
    task: str, images: CachedImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuner = make_run(images, tmp_path, Scores(0.1, 0.5, 0.3, 0.5), task=task)
    epochs = collect(tuner)
    with caplog.at_level(logging.INFO, "conrec_monai"):
        tuner.run()
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES
    model, best = load_model(tmp_path / "model.pt"), load_model(tmp_path / "best.pt")
    assert isinstance(model, GradingNet) and isinstance(best, GradingNet)
    assert_same(weights(model), epochs[2])  # the first of equal ones
    assert_same(weights(best), epochs[2])
    assert_same(weights(load_model(tmp_path / "checkpoint.pt")), epochs[4])
    assert any(not torch.equal(value, epochs[4][name]) for name, value in epochs[2].items())
    assert best.scale.item() == 1

    # The scale is that of the validation part, and so are the scores, of calibrated probabilities.
    with torch.no_grad():
        outputs = model.outputs(images.gather(range(24, 36)).float() / 255)
        labels = images.labels[24:].numpy()
        expected = calibrate(best, outputs, labels)
        probabilities = best.probabilities(outputs).numpy()
    assert model.scale.item() == pytest.approx(expected, rel=1e-3) and model.scale.item() != 1
    said = graded(np.arange(12), probabilities, task)
    grading = read_checkpoint(tmp_path / "model.pt")["grading"]
    assert list(grading["validation"]) == ["qwk", "accuracy", "ece", "brier"]
    for name, value in grading["validation"].items():
        assert value == pytest.approx(METRICS[name](labels, said.predicted, said.probabilities), abs=1e-3)
    assert {name: grading[name] for name in ("settings", "classes", "ordinal", "epoch", "image_hashes")} == {
        "settings": SETTINGS,
        "classes": CLASSES,
        "ordinal": True,
        "epoch": 2,
        "image_hashes": None,
    }
    assert read_checkpoint(tmp_path / "model.pt")["preprocessing"] == PREPROCESSING
    assert f"model.pt written: epoch 2 of 4, scale {model.scale.item():.3f}, validation qwk " in caplog.text
    assert_same(weights(load_encoder(tmp_path / "model.pt")), weights(model.encoder))


def test_hashes_are_sorted_and_single(images: CachedImages, tmp_path: Path) -> None:
    hashes = torch.tensor([5, 3, 5, -7])
    make_run(images, tmp_path, Scores(0.1), max_epochs=1, hashes=lambda: hashes, ordinal=False).run()
    grading = read_checkpoint(tmp_path / "model.pt")["grading"]
    assert grading["image_hashes"].tolist() == [-7, 3, 5] and grading["ordinal"] is False


@pytest.mark.parametrize(
    ("values", "best"),
    [((None, -0.2, None, -0.3), 2), ((0.4, 0.3, 0.2, 0.1), 1), ((0.0, 0.1, 0.2, 0.3), 4), ((math.nan, 0.1, 0, 0), 2)],
)
def test_which_epoch_is_best(values: tuple[float | None, ...], best: int, images: CachedImages, tmp_path: Path) -> None:
    tuner = make_run(images, tmp_path, Scores(*values, metric="val_accuracy"), metric="val_accuracy")
    epochs = collect(tuner)
    tuner.run()
    assert read_checkpoint(tmp_path / "model.pt")["grading"]["epoch"] == best
    assert_same(weights(load_model(tmp_path / "model.pt")), epochs[best])


def test_no_epoch_was_validated(images: CachedImages, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_run(images, tmp_path, Scores(None), max_epochs=1).run()
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert "no epoch was validated: there is no model.pt" in caplog.text


def test_real_validation(images: CachedImages, tmp_path: Path) -> None:
    validator = SupervisedEvaluator(
        "cpu",
        validation_loader(images),
        torch.nn.Identity(),
        prepare_batch=PrepareUnitBatch(),
        decollate=False,
        val_handlers=[GradingScores("ordinal")],
    )
    tuner = make_run(images, tmp_path, ValidationHandler(1, validator), EarlyStop(2, "val_nll"), metric="val_qwk")
    validator.network = tuner.network  # as a bundle shares it
    found: list[float] = []
    tuner.add_event_handler(Events.EPOCH_COMPLETED, lambda e: found.append(e.state.metrics["val_qwk"]))
    tuner.run()
    grading = read_checkpoint(tmp_path / "model.pt")["grading"]
    assert grading["epoch"] == 1 + int(np.argmax(found))
    assert grading["validation"]["qwk"] == pytest.approx(max(found))  # a calibration changes no grade


# --- GradingCheckpoint: going on --------------------------------------------------------------------------------------

VALUES = (0.1, 0.5, 0.3, 0.4)


@pytest.fixture(scope="module")
def whole(images: CachedImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    make_run(images, path, Scores(*VALUES)).run()
    return path


def assert_same_files(path: Path, other: Path) -> None:
    for name in FILES:
        found, expected = read_checkpoint(path / name), read_checkpoint(other / name)
        assert_same(found["state_dict"], expected["state_dict"])
        assert found.get("grading") == expected.get("grading")
    found, expected = (read_checkpoint(folder / "checkpoint.pt")["training"] for folder in (path, other))
    assert found["iteration"] == expected["iteration"] and found["stateful"] == expected["stateful"]


@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_a_run_that_goes_on_keeps_the_best(done: int, images: CachedImages, whole: Path, tmp_path: Path) -> None:
    make_run(images, tmp_path, Scores(*VALUES), max_epochs=done).run()
    assert read_checkpoint(tmp_path / "checkpoint.pt")["training"]["stateful"]["best"] == {
        "score": [max(VALUES[:done]), 0],
        "epoch": min(done, 2),
    }
    make_run(images, tmp_path, Scores(*VALUES), resume=True, seed=5).run()
    assert_same_files(tmp_path, whole)


@pytest.mark.parametrize("iteration", [4, 6, 8])
def test_interrupted_run_goes_on(iteration: int, images: CachedImages, whole: Path, tmp_path: Path) -> None:
    stop = At(iteration, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit, match=r"Interrupted after . of 3 iterations of epoch .*--resume True"):
        make_run(images, tmp_path, Scores(*VALUES), stop).run()
    assert not (tmp_path / "model.pt").exists()
    make_run(images, tmp_path, Scores(*VALUES), resume=True, seed=5).run()
    assert_same_files(tmp_path, whole)


def test_settings_of_a_run_that_goes_on(images: CachedImages, tmp_path: Path) -> None:
    make_run(images, tmp_path, Scores(0.1), max_epochs=1).run()
    tuner = make_run(images, tmp_path, Scores(0.1, 0.2), max_epochs=2, resume=True, data=[{"id": "a"}])
    tuner.run()  # a checkpoint that does not know its images takes any
    with pytest.raises(ValueError, match="its images were others than the 1 of this run"):
        make_run(images, tmp_path, Scores(0.1, 0.2), max_epochs=2, resume=True, data=[{"id": "b"}]).run()


def test_evaluation_leaves_the_modes_alone(images: CachedImages, tmp_path: Path) -> None:
    tuner = make_run(images, tmp_path, Scores(0.1), max_epochs=1)
    tuner.run()
    assert tuner.network.training and tuner.network.encoder.training


def test_time_limit(images: CachedImages, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_minutes must be positive, got 0"):
        make_run(images, tmp_path, max_minutes=0)
