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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from conrec_monai.data.phantom import phantom_arrays
from conrec_monai.evaluation import FoldPrediction, Predictions, PredictionStore, fine_tuning, make_folds
from conrec_monai.evaluation.fine_tuning import PROTOCOLS, FineTuneSettings, paper_settings, predict_fine_tuned
from conrec_monai.networks.nets import ConRecEncoder

QUICK = FineTuneSettings("adam", 0.01, 8, 2, "zoom_flip")


def make_encoder() -> nn.Module:
    """With batch norm and dropout, and always the same weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return ConRecEncoder(features=(4, 8))


class Colors(nn.Module):
    """The mean color: what tells the classes below apart."""

    num_features = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[..., 8:24, 8:24].mean(dim=(2, 3)) - 0.4) * 20


@pytest.fixture(scope="module")
def phantoms() -> tuple[torch.Tensor, np.ndarray]:
    """60 phantoms in two classes: how much green their center has."""
    images = phantom_arrays(60, 32, 0)[0]
    green = images[:, 1, 8:24, 8:24].mean((1, 2))
    return torch.from_numpy(images), (green > np.median(green)).astype(np.int64)


def predict(phantoms: tuple[torch.Tensor, np.ndarray], **kwargs: Any) -> Predictions:
    images, labels = phantoms
    arguments = {
        "make_encoder": make_encoder,
        "images": images,
        "labels": labels,
        "folds": make_folds(labels, None, 3),
        "ordinal": True,
        "num_classes": 2,
        "settings": QUICK,
        "progress": False,
    }
    return predict_fine_tuned(**(arguments | kwargs))


def assert_same(a: Predictions, b: Predictions) -> None:
    assert len(a.folds) == len(b.folds)
    for x, y in zip(a.folds, b.folds, strict=True):
        for name in ("test", "probabilities", "predicted"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))


def accuracy(predictions: Predictions, labels: np.ndarray) -> float:
    return float(np.mean(np.concatenate([fold.predicted == labels[fold.test] for fold in predictions.folds])))


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (("frozen_head", "flowers102", False), ("sgd", 0.1, 64, 400, "crop_flip", 0.0, True, "pretrained")),
        (("frozen_head", "dogs", False), ("sgd", 0.01, 64, 500, "crop_flip", 0.0, True, "pretrained")),
        (("frozen_head", "aptos", True), ("sgd", 0.1, 64, 140, "zoom_flip", 0.0, True, "pretrained")),
        (("fine_tune", "aptos", True), ("adam", 5e-5, 32, 25, "zoom_flip", 0.0, False, "pretrained")),
        (("fine_tune", "idrid", True), ("adam", 5e-5, 32, 25, "zoom_flip", 0.0, False, "pretrained")),
        (("fine_tune", "flowers102", False), ("adam", 5e-5, 32, 25, "crop_flip", 0.0, False, "pretrained")),
        (("supervised", "flowers102", False), ("lars", 0.3, 16, 1000, "crop_flip", 5e-4, False, "scratch")),
        (("supervised", "dogs", False), ("lars", 0.3, 16, 500, "crop_flip", 1e-4, False, "scratch")),
        (("supervised", "aptos", True), ("adam", 5e-5, 32, 25, "zoom_flip", 0.0, False, "scratch")),
    ],
)
def test_paper_settings(case: tuple[str, str, bool], expected: tuple) -> None:
    assert paper_settings(*case) == FineTuneSettings(*expected)


def test_every_protocol_has_settings_for_any_source() -> None:
    assert all(
        paper_settings(protocol, "folder", ordinal).epochs for protocol in PROTOCOLS for ordinal in (True, False)
    )
    with pytest.raises(ValueError, match="protocol must be one of frozen_head, fine_tune, supervised, got 'linear'"):
        paper_settings("linear", "aptos", True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "rmsprop"}, "optimizer must be one of lars, sgd, adam, adamw, got 'rmsprop'"),
        ({"augmentation": "flip"}, "augmentation must be one of zoom_flip, crop_flip, None, got 'flip'"),
        ({"init": "random"}, "init must be one of pretrained, scratch, got 'random'"),
        ({"schedule": "cosine"}, "schedule must be one of constant, warmup_cosine, got 'cosine'"),
        ({"batch_size": 1}, "batch_size must be a whole number of at least 2, got 1"),
        ({"batch_size": 8.0}, "batch_size"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": True}, "epochs"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number that is not negative, got nan"),
        ({"learning_rate": "0.1"}, "learning_rate"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"freeze": "yes"}, "freeze must be True or False, got 'yes'"),
    ],
)
def test_settings_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **change)


# --- it learns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordinal", [True, False])
def test_fine_tuning_learns(phantoms: tuple, ordinal: bool) -> None:
    settings = replace(QUICK, epochs=15)
    predictions = predict(phantoms, settings=settings, ordinal=ordinal, folds=make_folds(phantoms[1], None, 2))
    assert accuracy(predictions, phantoms[1]) > 0.75  # by chance 0.5, with a standard deviation of 0.065
    for fold in predictions.folds:
        np.testing.assert_allclose(fold.probabilities.sum(axis=1), 1)
        assert fold.probabilities.shape == (30, 2) and fold.probabilities.min() >= 0


def test_head_on_a_frozen_encoder_learns(phantoms: tuple) -> None:
    settings = FineTuneSettings("sgd", 0.3, 8, 12, "zoom_flip", freeze=True)
    predictions = predict(phantoms, make_encoder=Colors, settings=settings)
    assert accuracy(predictions, phantoms[1]) > 0.85
    shuffled = np.random.RandomState(0).permutation(phantoms[1])  # labels that mean nothing
    wrong = predict(phantoms, make_encoder=Colors, settings=settings, labels=shuffled)
    assert accuracy(wrong, shuffled) < 0.75


def test_test_images_are_neither_augmented_nor_learned_from(phantoms: tuple) -> None:
    images, labels = phantoms
    train, test = make_folds(labels, None, 3)[0]
    changed = labels.copy()
    changed[test] = labels[train][: len(test)]  # other labels of test images
    arguments = {"folds": [(train, test)]}
    first = predict(phantoms, **arguments)
    assert_same(first, predict((images, changed), **arguments))
    # Two equal test images get one prediction, whatever stands beside them.
    again = images.clone()
    again[test[0]] = again[test[-1]]
    probabilities = predict((again, labels), **arguments).folds[0].probabilities
    np.testing.assert_allclose(probabilities[0], probabilities[-1], atol=1e-6)
    np.testing.assert_allclose(probabilities[1:], first.folds[0].probabilities[1:], atol=1e-6)


# --- folds, seeds, going on -------------------------------------------------------------------------------------------


# 5 epochs of 2 iterations: a tenth of them, the first, warms up from 0, then half a cosine.
COSINE = [0.0, *(0.5 * (1 + math.cos(math.pi * step / 9)) for step in range(9))]


@pytest.mark.parametrize(("schedule", "factors"), [("constant", [1.0] * 10), ("warmup_cosine", COSINE)])
def test_learning_rate_of_every_iteration(
    phantoms: tuple, monkeypatch: pytest.MonkeyPatch, schedule: str, factors: list[float]
) -> None:
    settings = FineTuneSettings("sgd", 0.01, 16, 5, None, schedule=schedule)
    folds = [(np.arange(32), np.arange(32, 60))]
    rates: list[list[float]] = []
    step = torch.optim.SGD.step

    def recorded(self: torch.optim.SGD, *args: Any) -> None:
        rates.append([group["lr"] for group in self.param_groups])
        step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    predict(phantoms, folds=folds, settings=settings)
    assert np.ptp(rates, axis=1).max() == 0  # encoder and head
    assert [rate[0] for rate in rates] == pytest.approx([0.01 * factor for factor in factors])


@pytest.mark.parametrize("schedule", ["constant", "warmup_cosine"])
def test_going_on_gives_the_same_numbers(
    phantoms: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    """Interrupted within its second fold, a run takes the first from the store and finishes the second."""
    settings = replace(QUICK, init="scratch", epochs=4, schedule=schedule)
    whole = predict(phantoms, settings=settings, seed=3)
    other = predict(phantoms, settings=settings, seed=4).folds[0]
    assert not np.array_equal(other.probabilities, whole.folds[0].probabilities)

    class Interrupt(Exception):
        pass

    monkeypatch.setattr(fine_tuning, "SECONDS_BETWEEN_STATES", 0.0)
    store = PredictionStore(tmp_path).of_folds({"model": "a"})
    keep = store.put_state

    def interrupted(fold: int, state: dict) -> None:
        keep(fold, state)
        if (fold, state["training"]["iteration"] // state["training"]["epoch_length"]) == (1, 2):
            raise Interrupt

    monkeypatch.setattr(store, "put_state", interrupted)
    with pytest.raises(Interrupt):
        predict(phantoms, settings=settings, seed=3, store=store)
    assert store.prediction(0) is not None and store.state(0) is None
    assert store.prediction(1) is None and store.state(1) is not None
    torch.rand(5)  # the state of the global generator is no part of it

    monkeypatch.setattr(store, "put_state", keep)
    trained: list[int] = []
    iteration = fine_tuning._FoldProgress._iteration

    def count(self: fine_tuning._FoldProgress, engine: Engine) -> None:
        trained.append(self.number)
        iteration(self, engine)

    monkeypatch.setattr(fine_tuning._FoldProgress, "_iteration", count)
    iterations = math.ceil(len(make_folds(phantoms[1], None, 3)[1][0]) / settings.batch_size)
    assert_same(whole, predict(phantoms, settings=settings, seed=3, store=store, progress=True))
    assert (trained.count(0), trained.count(1)) == (0, 2 * iterations)
    assert not list(tmp_path.glob("*.pt"))  # what is no longer needed

    trained.clear()
    assert_same(whole, predict(phantoms, settings=settings, seed=3, store=store, progress=True))
    assert not trained


def test_a_damaged_state_starts_the_fold_anew(phantoms: tuple, tmp_path: Path) -> None:
    store = PredictionStore(tmp_path).of_folds({"model": "a"})
    whole = predict(phantoms)
    for other in ({}, {"network": {}}, {"network": {"x": torch.zeros(2)}, "training": {}}, {"network": 3}):
        store.put_state(1, other)
        assert_same(whole, predict(phantoms, store=store))
        for path in tmp_path.iterdir():
            path.unlink()
    store.put_state(0, {"network": {}})
    (path,) = tmp_path.glob("*.pt")
    path.write_bytes(path.read_bytes()[:100])
    assert store.state(0) is None
    assert_same(whole, predict(phantoms, store=store))


def test_caller_keeps_encoder_and_generator(phantoms: tuple) -> None:
    encoder = make_encoder().eval().requires_grad_(False)  # as one for inference
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = predict(phantoms, make_encoder=lambda: encoder)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    assert_same(first, predict(phantoms))  # each fold starts anew, and trains the whole copy
    frozen = predict(phantoms, settings=replace(QUICK, freeze=True))
    assert not np.array_equal(frozen.folds[0].probabilities, first.folds[0].probabilities)


def test_random_weights_differ_by_fold_and_from_the_pretrained(phantoms: tuple) -> None:
    images, labels = phantoms
    fold = make_folds(labels, None, 3)[0]
    still = replace(QUICK, learning_rate=0.0, epochs=1, freeze=True)  # the head stays random, the encoder too
    scratch = predict(phantoms, folds=[fold, fold], settings=replace(still, init="scratch"))
    pretrained = predict(phantoms, folds=[fold, fold], settings=still)
    values = [fold.probabilities for p in (scratch, pretrained) for fold in p.folds]
    assert all(not np.array_equal(a, b) for i, a in enumerate(values) for b in values[:i])


@pytest.mark.parametrize(
    ("n", "batch_size", "batches"),
    [(20, 8, [8, 8, 4]), (17, 8, [8, 8]), (16, 8, [8, 8]), (5, 8, [5]), (2, 8, [2]), (3, 2, [2])],
)
def test_batches(phantoms: tuple, n: int, batch_size: int, batches: list[int]) -> None:
    images, labels = phantoms
    order = np.argsort(np.arange(60) // 2 + 0.1 * labels, kind="stable")
    train = np.concatenate([np.flatnonzero(labels == 0)[: n // 2], np.flatnonzero(labels == 1)[: n - n // 2]])
    test = np.setdiff1d(order, train)[:4]
    seen: list[int] = []

    class Watched(Colors):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled():
                seen.append(len(x))
            return super().forward(x)

    predict(
        phantoms,
        make_encoder=Watched,
        folds=[(train, test)],
        settings=replace(QUICK, batch_size=batch_size, epochs=1),
    )
    assert seen == batches


def test_progress_in_log_lines(phantoms: tuple, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "conrec_monai"):
        predict(phantoms, make_encoder=Colors, progress=True)
        predict(phantoms, make_encoder=Colors, progress=False)
    lines = [record.getMessage() for record in caplog.records if record.name == "conrec_monai"]
    assert [line.split(":")[0] for line in lines] == [f"fold {i}/3, epoch 2/2" for i in (1, 2, 3)]
    assert all("loss 0." in line and "images/s, " in line for line in lines) and lines[-1].endswith("0 min 00 s left")


# --- mistakes ---------------------------------------------------------------------------------------------------------


class Wide(nn.Module):
    num_features = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


class Broken(Colors):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * float("nan")


def test_mistakes_before_any_training(phantoms: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = phantoms
    zeros, ones = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    good = make_folds(labels, None, 3)
    store = PredictionStore(tmp_path)
    second, third = store.of_folds({"model": "b"}), store.of_folds({"model": "c"})
    for kept, fold in ((second, 1), (third, 2)):
        kept.put_prediction(fold, FoldPrediction.of_cumulative(good[1][1], np.ones((20, 2))))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"images": images.float()}, r"uint8 images NCHW, got torch.float32 of shape \[60, 3, 32, 32\]"),
        ({"labels": labels[:-1], "folds": good}, "one label per image, got 59 labels for 60 images"),
        ({"labels": labels - 1, "folds": good}, "label of image .* is -1, expected 0..1"),
        ({"folds": []}, "at least one fold"),
        ({"folds": [good[0], (zeros[:9], zeros[9:12])]}, "fold 2 of 2 has training images of class 0 alone"),
        ({"folds": [good[0], (zeros[:9], ones[:9])]}, "fold 2 of 2 holds no training image of class 1"),
        ({"folds": [(good[0][0], good[0][0][:3])]}, "fold 1 of 1 has 3 images both in training and in test"),
        ({"seed": -1}, "seed must be a whole number that is not negative, got -1"),
        ({"make_encoder": nn.Flatten}, "encoder must have num_features"),
        ({"make_encoder": Wide}, r"Wide gives shape \[1, 3\] for an image of shape \[3, 32, 32\], expected \[1, 4\]"),
        ({"make_encoder": Broken}, "Broken gives a representation that is not finite"),
        (
            {"make_encoder": lambda: ConRecEncoder(1, (4, 8))},
            r"ConRecEncoder cannot take images of shape \[3, 32, 32\]",
        ),
        ({"images": images[..., :31]}, r"cannot take images of shape \[3, 32, 31\]: .* multiples of 2"),
        (
            {"images": images[..., :30], "settings": replace(QUICK, augmentation="crop_flip")},
            "crop_flip makes square images; these are of 32 x 30 pixels",
        ),
        ({"store": third}, "saved prediction of fold 3 of 3 is one of other test images"),
        ({"store": second, "num_classes": 3}, r"fold 2 of 3 has probabilities \[20, 2\], not \[20, 3\]"),
    ]

    def no_training(*args: object, **kwargs: object) -> None:
        raise AssertionError("a fold was trained")

    monkeypatch.setattr(fine_tuning, "FineTuner", no_training)
    for change, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            predict(phantoms, **change)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("epochs", [1, 3])
def test_diverged_training_names_the_fold(phantoms: tuple, epochs: int) -> None:
    # One step is enough to ruin the weights; the loss shows it in the next one only.
    settings = replace(QUICK, optimizer="sgd", learning_rate=1e30, epochs=epochs, batch_size=64)
    with pytest.raises(ValueError, match="fold 1 of 3: .* a smaller learning rate is needed"):
        predict(phantoms, settings=settings)
