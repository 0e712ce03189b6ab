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
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events

from conrec_monai.data import CachedImages, load_datalist
from conrec_monai.evaluation import complete_groups, embed, linear_evaluation, make_folds
from conrec_monai.handlers import LinearProbe
from conrec_monai.networks.nets import ConRecEncoder


@pytest.fixture(scope="module")
def items() -> list[dict[str, Any]]:
    return list(load_datalist("phantom:n=60,size=32"))


@pytest.fixture
def encoder() -> ConRecEncoder:
    torch.manual_seed(0)
    return ConRecEncoder(features=(4, 8)).train()


def run(probe: LinearProbe, max_epochs: int) -> dict[int, dict[str, Any]]:
    """The metrics of each epoch of an engine to which the probe is attached."""
    engine = Engine(lambda engine, batch: None)
    probe.attach(engine)
    found = {}
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: found.update({engine.state.epoch: dict(engine.state.metrics)})
    )
    engine.run(range(1), max_epochs=max_epochs)
    return found


def relabeled(items: list[dict[str, Any]], labels: list[int | None], **more: list) -> CachedImages:
    entries = [{**item, "label": label} for item, label in zip(items, labels, strict=True)]
    for name, values in more.items():
        entries = [{**item, name: value} for item, value in zip(entries, values, strict=True)]
    return CachedImages(entries, 32, progress=False)


def test_grades(items: list[dict[str, Any]], encoder: ConRecEncoder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "conrec_monai")
    dataset = CachedImages(items, 32, progress=False)
    labels = dataset.labels.numpy()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = run(LinearProbe(encoder, dataset, 32, True, every=2, seed=3), 3)

    folds = make_folds(labels, None, 3, 1, 3)
    result = linear_evaluation(embed(encoder, dataset.images), labels, folds, "diabetic", True, 5)
    expected = {"probe_qwk": result["qwk"]["mean"], "probe_accuracy": result["accuracy"]["mean"]}
    assert found == {1: {}, 2: expected, 3: {}}  # not the metrics of an earlier epoch
    assert caplog.messages == [
        f"linear probe (standardized, 3 folds): qwk {expected['probe_qwk']:.3f},"
        f" accuracy {expected['probe_accuracy']:.3f}"
    ]
    # The training does not notice.
    assert encoder.training and all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_categories_among_unlabeled_images_of_another_size(items: list[dict[str, Any]], encoder: ConRecEncoder) -> None:
    labels = [i % 3 if i < 30 else None for i in range(60)]
    dataset = relabeled(items, labels)
    found = run(LinearProbe(encoder, dataset, 16, False, every=1, n_folds=2), 1)

    images = F.interpolate(dataset.images[:30], (16, 16), mode="bicubic", antialias=True, align_corners=False)
    some = np.array(labels[:30])
    result = linear_evaluation(embed(encoder, images), some, make_folds(some, None, 2), "categorical", True, 3)
    assert found == {1: {"probe_accuracy": result["top1"]["mean"]}}


def test_groups_are_kept_together(items: list[dict[str, Any]], encoder: ConRecEncoder) -> None:
    labels = [i // 4 % 2 for i in range(60)]
    y = np.array(labels)
    for groups in ([f"patient {i // 4}" for i in range(60)], [None, *(f"patient {i // 4}" for i in range(1, 60))]):
        dataset = relabeled(items, labels, group=groups)
        found = run(LinearProbe(encoder, dataset, 32, False, every=1), 1)
        known = complete_groups(groups)  # the image without a group is alone in its own
        folds = make_folds(y, known, 3)
        result = linear_evaluation(embed(encoder, dataset.images), y, folds, "categorical", True, 2, known)
        assert found == {1: {"probe_accuracy": result["top1"]["mean"]}}


@pytest.mark.parametrize(
    "labels",
    [[None] * 60, [0] * 60, [0] * 58 + [1] * 2, [None] * 57 + [0, 1, 1]],
    ids=["none", "one class", "a class of two", "three labels"],
)
def test_too_few_labels(
    labels: list, items: list[dict[str, Any]], encoder: ConRecEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "conrec_monai")
    assert run(LinearProbe(encoder, relabeled(items, labels), 32, False, every=1), 2) == {1: {}, 2: {}}
    assert caplog.messages == ["no linear probe: it needs at least two labeled classes of 3 images"]


def test_too_few_groups_do_not_stop_the_training(
    items: list[dict[str, Any]], encoder: ConRecEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = relabeled(items, [i % 2 for i in range(60)], group=["left" if i < 30 else "right" for i in range(60)])
    assert run(LinearProbe(encoder, dataset, 32, False, every=1), 2) == {1: {}, 2: {}}
    assert caplog.messages[0] == "no linear probe: 3 folds need at least 3 groups, got 2; use fewer folds"


def test_fold_without_a_class_does_not_stop_the_training(
    items: list[dict[str, Any]], encoder: ConRecEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    groups = ["one patient" if i < 20 else f"patient {i}" for i in range(60)]
    dataset = relabeled(items, [int(i < 20) for i in range(60)], group=groups)  # all of class 1 is one patient
    assert run(LinearProbe(encoder, dataset, 32, False, every=1), 1) == {1: {}}
    assert "no linear probe: " in caplog.messages[0] and "holds no training image of class 1" in caplog.messages[0]


def test_never(items: list[dict[str, Any]], encoder: ConRecEncoder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "conrec_monai")
    assert run(LinearProbe(encoder, relabeled(items, [None] * 60), 32, False, every=0), 2) == {1: {}, 2: {}}
    assert not caplog.messages
    with pytest.raises(ValueError, match="every must not be negative, got -1"):
        LinearProbe(encoder, relabeled(items, [None] * 60), 32, False, every=-1)
