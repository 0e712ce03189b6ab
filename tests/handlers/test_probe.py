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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

from conrec_monai.data import CachedImages, EpochBatchSampler, batched, load_datalist
from conrec_monai.engines import ConRecTrainer
from conrec_monai.evaluation import complete_groups, embed, knn_evaluation, linear_evaluation, make_folds
from conrec_monai.handlers import OnlineProbe
from conrec_monai.losses import ConRecLoss
from conrec_monai.networks.nets import ConRecEncoder, ConRecUNet
from conrec_monai.optimizers import build_optimizer
from conrec_monai.transforms import TwoViews


@pytest.fixture(scope="module")
def items() -> list[dict[str, Any]]:
    return list(load_datalist("phantom:n=60,size=32"))


@pytest.fixture
def encoder() -> ConRecEncoder:
    torch.manual_seed(0)
    return ConRecEncoder(features=(4, 8)).train()


def run(probe: OnlineProbe, max_epochs: int) -> dict[int, dict[str, Any]]:
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
    found = run(OnlineProbe(encoder, dataset, 32, True, every=2, seed=3), 3)

    folds = make_folds(labels, None, 3, 1, 3)
    result = linear_evaluation(embed(encoder, dataset.images), labels, folds, "diabetic", True, 5)
    nearest = knn_evaluation(embed(encoder, dataset.images), labels, folds, "diabetic", 5, 20, 0.07)
    expected = {
        "probe_qwk": result["qwk"]["mean"],
        "probe_accuracy": result["accuracy"]["mean"],
        "probe_knn_qwk": nearest["qwk"]["mean"],
        "probe_knn_accuracy": nearest["accuracy"]["mean"],
    }
    assert found == {1: {}, 2: expected, 3: {}}  # not the metrics of an earlier epoch
    assert caplog.messages == [
        f"online probe (60 images, 3 folds): linear qwk {expected['probe_qwk']:.3f}, accuracy"
        f" {expected['probe_accuracy']:.3f}; 20 nearest neighbors qwk {expected['probe_knn_qwk']:.3f}, accuracy"
        f" {expected['probe_knn_accuracy']:.3f}"
    ]
    # The training does not notice.
    assert encoder.training and all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_categories_among_unlabeled_images_of_another_size(
    items: list[dict[str, Any]], encoder: ConRecEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "conrec_monai")
    labels = [i % 3 if i < 30 else None for i in range(60)]
    dataset = relabeled(items, labels)
    found = run(OnlineProbe(encoder, dataset, 16, False, every=1, n_folds=2, k=50), 1)

    images = F.interpolate(dataset.images[:30], (16, 16), mode="bicubic", antialias=True, align_corners=False)
    some = np.array(labels[:30])
    features, folds = embed(encoder, images), make_folds(some, None, 2)
    result = linear_evaluation(features, some, folds, "categorical", True, 3)
    nearest = knn_evaluation(features, some, folds, "categorical", 3, 50)
    expected = {"probe_accuracy": result["top1"]["mean"], "probe_knn_accuracy": nearest["top1"]["mean"]}
    assert found == {1: expected}
    assert caplog.messages == [  # 15 images are all of the training part
        f"online probe (30 images, 2 folds): linear accuracy {expected['probe_accuracy']:.3f};"
        f" 15 nearest neighbors accuracy {expected['probe_knn_accuracy']:.3f}"
    ]


def test_groups_are_kept_together(items: list[dict[str, Any]], encoder: ConRecEncoder) -> None:
    labels = [i // 4 % 2 for i in range(60)]
    y = np.array(labels)
    for groups in ([f"patient {i // 4}" for i in range(60)], [None, *(f"patient {i // 4}" for i in range(1, 60))]):
        dataset = relabeled(items, labels, group=groups)
        found = run(OnlineProbe(encoder, dataset, 32, False, every=1), 1)
        known = complete_groups(groups)  # the image without a group is alone in its own
        folds = make_folds(y, known, 3)
        features = embed(encoder, dataset.images)
        result = linear_evaluation(features, y, folds, "categorical", True, 2, known)
        nearest = knn_evaluation(features, y, folds, "categorical", 2)
        expected = {"probe_accuracy": result["top1"]["mean"], "probe_knn_accuracy": nearest["top1"]["mean"]}
        assert found == {1: expected}


@pytest.mark.parametrize(
    "labels",
    [[None] * 60, [0] * 60, [0] * 58 + [1] * 2, [None] * 57 + [0, 1, 1]],
    ids=["none", "one class", "a class of two", "three labels"],
)
def test_too_few_labels(
    labels: list, items: list[dict[str, Any]], encoder: ConRecEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "conrec_monai")
    assert run(OnlineProbe(encoder, relabeled(items, labels), 32, False, every=1), 2) == {1: {}, 2: {}}
    assert caplog.messages == ["no online probe: it needs at least two labeled classes of 3 images"]


def test_too_few_groups_do_not_stop_the_training(
    items: list[dict[str, Any]], encoder: ConRecEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = relabeled(items, [i % 2 for i in range(60)], group=["left" if i < 30 else "right" for i in range(60)])
    assert run(OnlineProbe(encoder, dataset, 32, False, every=1), 2) == {1: {}, 2: {}}
    assert caplog.messages[0] == "no online probe: 3 folds need at least 3 groups, got 2; use a smaller n_folds"


def test_fold_without_a_class_does_not_stop_the_training(
    items: list[dict[str, Any]], encoder: ConRecEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    groups = ["one patient" if i < 20 else f"patient {i}" for i in range(60)]
    dataset = relabeled(items, [int(i < 20) for i in range(60)], group=groups)  # all of class 1 is one patient
    assert run(OnlineProbe(encoder, dataset, 32, False, every=1), 1) == {1: {}}
    assert "no online probe: " in caplog.messages[0] and "holds no training image of class 1" in caplog.messages[0]


def test_never(items: list[dict[str, Any]], encoder: ConRecEncoder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "conrec_monai")
    assert run(OnlineProbe(encoder, relabeled(items, [None] * 60), 32, False, every=0), 2) == {1: {}, 2: {}}
    assert not caplog.messages


def test_mistakes(items: list[dict[str, Any]], encoder: ConRecEncoder) -> None:
    dataset = relabeled(items, [None] * 60)
    for every, k in ((-1, 20), (1, 0)):
        with pytest.raises(
            ValueError, match=f"every must not be negative, k and count positive, got {every}, {k} and 4000"
        ):
            OnlineProbe(encoder, dataset, 32, False, every=every, k=k)
    gray = CachedImages(items, 32, channels=1, progress=False)
    with pytest.raises(ValueError, match="OnlineProbe: the network takes 3 channels, the images of dataset have 1"):
        OnlineProbe(encoder, gray, 32, True)


def test_images_that_cannot_be_read_are_found_before_the_training(encoder: ConRecEncoder, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    dataset = CachedImages([{"image": tmp_path / "a.png", "label": i % 2} for i in range(8)], 32, progress=False)
    with pytest.raises(ValueError, match="8 of 8 images cannot be loaded"):
        OnlineProbe(encoder, dataset, 32, False).attach(Engine(lambda engine, batch: None))


def test_training_does_not_depend_on_it(items: list[dict[str, Any]]) -> None:
    """Labeled images other than those of the training, which have no labels."""
    training = relabeled(items[:32], [None] * 32)
    states = []
    for attached in (False, True):
        torch.manual_seed(0)
        network = ConRecUNet(features=(4, 8))
        handlers = [OnlineProbe(network.encoder, relabeled(items[32:], [0, 1] * 14), 32, True, 1)]
        sampler = EpochBatchSampler(32, 16, 0)
        trainer = ConRecTrainer(
            "cpu",
            2,
            DataLoader(training, batch_sampler=sampler, collate_fn=batched),
            network,
            build_optimizer("lars", network, 0.3),
            ConRecLoss(),
            TwoViews(32).set_random_state(0),
            False,
            train_handlers=handlers if attached else [],
        )
        trainer.run()
        assert attached == ("probe_knn_qwk" in trainer.state.metrics)
        states.append((network.state_dict(), torch.get_rng_state()))
    assert all(torch.equal(value, states[1][0][name]) for name, value in states[0][0].items())
    assert torch.equal(states[0][1], states[1][1])
