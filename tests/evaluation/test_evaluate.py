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

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conrec_monai.evaluation import evaluate, format_table, linear_evaluation, make_folds, untrained_encoders


def make_encoder() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Brightness(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def brightness_data(n: int = 60, classes: int = 3) -> tuple[torch.Tensor, np.ndarray]:
    """Noise images whose mean tells the class."""
    labels = np.arange(n) % classes
    noise = torch.randint(0, 60, (n, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return noise + torch.from_numpy(labels * (180 // classes)).to(torch.uint8)[:, None, None, None], labels


def run(**kwargs: Any) -> dict[str, Any]:
    images, labels = brightness_data()
    arguments: dict[str, Any] = {
        "encoders": {"mine": Brightness()},
        "images": images,
        "labels": labels,
        "ordinal": True,
        "n_folds": 3,
    }
    return evaluate(**(arguments | {"progress": False} | kwargs))


def test_result_holds_what_the_documentation_says() -> None:
    labels = np.concatenate([[-1, -1], brightness_data()[1][2:]])
    result = run(labels=labels, class_names=["none", "mild", "severe"], repeats=2, seed=5)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["schema"] == 1 and result["protocol"] == "diabetic"
    assert result["folds"] == {"n": 3, "repeats": 2, "seed": 5, "kind": "stratified"}
    assert result["images"] == {"labelled": 58, "unlabelled": 2, "size": [1, 16, 16]}
    assert [c["name"] for c in result["classes"]] == ["none", "mild", "severe"]
    assert [c["count"] for c in result["classes"]] == [19, 19, 20]
    assert [(row["name"], row["features"]) for row in result["rows"]] == [("mine", 1), ("shortcut baseline", 258)]
    assert len(result["rows"][0]["standardized"]["qwk"]["folds"]) == 6
    assert result["rows"][0]["standardized"]["qwk"]["mean"] > 0.9
    assert set(result["versions"]) == {"python", "torch", "scikit-learn", "numpy"}


def test_rows_are_linear_evaluations_on_the_same_folds() -> None:
    images, labels = brightness_data()
    groups = np.arange(60) // 2
    result = run(groups=groups, encoders={"a": Brightness(), "b": Brightness()}, seed=2)
    assert result["folds"]["kind"] == "grouped"
    a, b, _ = result["rows"]
    assert a["published"] == b["published"] and a["standardized"] == b["standardized"]
    features = images.float().div(255).mean(dim=(2, 3)).numpy()
    folds = make_folds(labels, groups, 3, seed=2)
    for name, standardized in (("published", False), ("standardized", True)):
        assert a[name] == linear_evaluation(features, labels, folds, "diabetic", standardized, 3, groups, seed=2)


def test_official_split_is_taken_where_train_and_test_exist() -> None:
    splits = np.repeat(["train", "validation", "test"], 20)
    result = run(ordinal=False, splits=splits.tolist())
    assert result["folds"] == {"n": 1, "repeats": 1, "seed": 0, "kind": "official"}
    assert result["protocol"] == "categorical"
    assert len(result["rows"][0]["published"]["top1"]["folds"]) == 1
    assert run(splits=["train"] * 60)["folds"]["kind"] == "stratified"
    # Where a split is unlabelled, as that of a competition, it is as if it were not there.
    labels = np.where(splits == "test", -1, brightness_data()[1])
    assert run(labels=labels, splits=splits.tolist())["folds"]["kind"] == "stratified"


def test_untrained_encoders_leave_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    encoders = untrained_encoders(make_encoder)
    assert torch.equal(torch.rand(3), expected)
    assert list(encoders) == ["untrained, seed 0", "untrained, seed 1", "untrained, seed 2"]
    again = untrained_encoders(make_encoder, seeds=(1,))["untrained, seed 1"]
    weights = [encoder[0].weight for encoder in encoders.values()]  # type: ignore[index]
    assert torch.equal(again[0].weight, weights[1])  # type: ignore[index]
    assert not torch.equal(weights[0], weights[1])


def test_mistakes_are_named() -> None:
    labels = brightness_data()[1]
    with pytest.raises(ValueError, match="label of image 2 is 2, expected 0..1 for 2 classes"):
        run(class_names=["no", "yes"])
    with pytest.raises(ValueError, match="one of labels per image, got 59 for 60 images"):
        run(labels=labels[1:])
    with pytest.raises(ValueError, match="one of groups per image, got 2 for 60 images"):
        run(groups=[1, 2])
    with pytest.raises(ValueError, match="one of splits per image, got 1 for 60 images"):
        run(splits=["train"])
    with pytest.raises(ValueError, match="none of the 60 images has a label"):
        run(labels=np.full(60, -1))
    with pytest.raises(ValueError, match="of integers"):
        run(labels=labels / 2)
    with pytest.raises(ValueError, match="'shortcut baseline'"):
        run(encoders={"shortcut baseline": Brightness()})


def scores(metric: str, *folds: float) -> dict:
    block = {"mean": float(np.mean(folds)), "std": float(np.std(folds)), "folds": list(folds)}
    return {metric: block, "accuracy": block, "C": [1.0] * len(folds)}


def result_of(**rows: tuple[float, ...]) -> dict:
    names = {"seed0": "untrained, seed 0", "seed1": "untrained, seed 1", "baseline": "shortcut baseline"}
    return {
        "protocol": "diabetic",
        "folds": {"n": 2, "repeats": 1, "seed": 0, "kind": "stratified"},
        "images": {"labelled": 10, "unlabelled": 3},
        "classes": [{"name": "0", "count": 5}, {"name": "1", "count": 5}],
        "rows": [
            {
                "name": names.get(name, name),
                "features": 8,
                "published": scores("qwk", *values),
                "standardized": scores("qwk", *values),
            }
            for name, values in rows.items()
        ],
    }


def test_table_by_hand() -> None:
    result = result_of(mine=(0.8, 0.9), seed0=(0.5, 0.6), seed1=(0.52, 0.62), baseline=(0.9, 0.8))
    assert format_table(result).splitlines() == [
        "Linear evaluation, diabetic protocol, 2 classes, 2 stratified folds x 1, seed 0",
        "10 labelled images; 3 unlabelled left out",
        "",
        "                                   published              standardized",
        "encoder                 dim           qwk  accuracy           qwk  accuracy",
        "mine                      8   0.850±0.050     0.850   0.850±0.050     0.850",
        "untrained, seed 0         8   0.550±0.050     0.550   0.550±0.050     0.550",
        "untrained, seed 1         8   0.570±0.050     0.570   0.570±0.050     0.570",
        "untrained, mean of 2      8   0.560±0.010     0.560   0.560±0.010     0.560",
        "shortcut baseline         8   0.850±0.050     0.850   0.850±0.050     0.850",
        "",
        "mine, standardized qwk on the same folds:",
        "  +0.290 (spread 0.010, ahead in 4 of 4): better than the untrained encoders",
        "  +0.000 (spread 0.100, ahead in 1 of 2): no clear difference from the shortcut baseline",
    ]


def test_table_says_worse_and_does_not_judge_a_single_split() -> None:
    text = format_table(result_of(mine=(0.4, 0.5), baseline=(0.7, 0.8)))
    assert "-0.300 (spread 0.000, ahead in 0 of 2): worse than the shortcut baseline" in text
    assert "untrained" not in text
    text = format_table(result_of(mine=(0.9,), seed0=(0.5,), baseline=(0.7,)))
    assert "+0.400 against the untrained encoders (one split: no spread over folds to judge it by)" in text
    assert "±" not in text


def test_widest_table_fits_100_columns() -> None:
    images, labels = brightness_data(72, 12)
    encoders = {
        "an encoder with quite a long name that says everything": Brightness(),
        **untrained_encoders(make_encoder),
    }
    result = run(images=images, labels=labels, encoders=encoders, ordinal=False)
    before = copy.deepcopy(result)
    lines = format_table(result).splitlines()
    assert "top10" in lines[4]
    assert max(len(line) for line in lines[:-4]) <= 100
    assert any(line.startswith("untrained, mean of 3") for line in lines)
    assert result == before
