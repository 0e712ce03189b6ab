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

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conrec_monai.bundle import (
    check_network,
    check_output_dir,
    check_training,
    decode,
    decode_training,
    pretraining_data,
    probe_data,
    recipe_values,
    training_settings,
)
from conrec_monai.bundle.training import PretrainingData
from conrec_monai.data import CachedImages, Datalist, load_datalist
from conrec_monai.engines import bfloat16_is_fast
from conrec_monai.handlers.checkpoint import data_fingerprint
from conrec_monai.networks.nets import ConRecUNet, DenseNetEncoder, SimCLRNet
from conrec_monai.networks.utils import save_checkpoint
from conrec_monai.transforms import TwoViews

CONFIG = json.loads((Path(__file__).resolve().parents[2] / "bundles/conrec_pretraining/configs/train.json").read_text())
VIEWS = ("jitter", "gray_prob", "blur_prob")


@pytest.fixture(scope="module")
def datalist() -> Datalist:
    return load_datalist("phantom:n=40,size=32")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Settings as a user gives them, none of them wrong."""
    return {
        "recipe": "paper",
        "dataset_dir": "phantom:n=40,size=32",
        "output_dir": str(tmp_path / "run"),
        "section": None,
        "validation_section": None,
        "image_key": None,
        "label_key": None,
        "group_key": None,
        "split_key": None,
        "on_error": "raise",
        "in_channels": 3,
        "image_size": 32,
        "cache_size": None,
        "cache_dir": None,
        "resize": "squash",
        "field_of_view": None,
        "features": [4, 4, 4, 8],
        "pooling": "attention",
        "upsample": "nontrainable",
        "skip_levels": None,
        "crop_scale": [0.08, 1.0],
        "rotate": False,
        "jitter": 1.0,
        "gray_prob": 0.2,
        "blur_prob": 0.5,
        "masked_views": 2,
        "masking_fill": "random",
        "decoder": True,
        "batch_size": 16,
        "max_epochs": 3,
        "optimizer": "lars",
        "learning_rate": None,
        "schedule": "constant",
        "alpha": 100.0,
        "temperature": 0.5,
        "amp": "auto",
        "channels_last": "auto",
        "compile": "auto",
        "gradient_checkpointing": False,
        "sync_batchnorm": False,
        "seed": 0,
        "num_workers": 2,
        "probe_every": 20,
        "probe_dir": None,
        "pictures_every": 20,
        "health_every": 1,
        "validate_every": 1,
        "early_stop_patience": 0,
        "checkpoint_every": 0,
        "encoder_half": False,
        "max_minutes": None,
        "resume": False,
    }


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_recipe_by_its_name() -> None:
    recipes = {"a": {"alpha": 1}, "b": {"alpha": 2}}
    assert recipe_values("b", recipes) == {"alpha": 2}
    for recipe in ("c", "", None, 2, ["a"], {"a": 1}):
        with pytest.raises(ValueError) as error:
            recipe_values(recipe, recipes)
        assert str(error.value) == f"recipe must be one of a, b, got {recipe!r}."


def test_recipe_of_the_publication() -> None:
    assert CONFIG["recipes"]["paper"] == {
        "image_size": 224,
        "cache_size": None,
        "features": [64, 128, 256, 512],
        "upsample": "nontrainable",
        "skip_levels": None,
        "field_of_view": None,
        "crop_scale": [0.08, 1.0],
        "rotate": False,
        "jitter": 1.0,
        "gray_prob": 0.2,
        "blur_prob": 0.5,
        "masked_views": 2,
        "masking_fill": "random",
        "alpha": 100,
        "temperature": 0.5,
        "batch_size": 16,
        "max_epochs": 1200,
        "optimizer": "lars",
        "learning_rate": None,
        "schedule": "constant",
    }


def test_recipe_of_the_publication_is_the_defaults_of_the_views() -> None:
    parameters = inspect.signature(TwoViews).parameters
    values = {**CONFIG["recipes"]["paper"], "crop_scale": tuple(CONFIG["recipes"]["paper"]["crop_scale"])}
    assert {name: parameters[name].default for name in TwoViews.OPTIONS} == {
        name: values[name] for name in TwoViews.OPTIONS
    }


def test_recipes_hold_the_values_of_settings() -> None:
    assert CONFIG["recipe"] in CONFIG["recipes"]
    keys = {name: list(values) for name, values in CONFIG["recipes"].items()}
    assert list(keys) == ["paper", "fundus"] and keys["paper"] == keys["fundus"]
    for key in keys["paper"]:
        assert CONFIG[key] == f"$@values['{key}']"
        assert CONFIG["settings"][key] == f"@{key}"
    taken = [key for key, value in CONFIG.items() if isinstance(value, str) and "@values" in value]
    assert sorted(taken) == sorted(keys["paper"])
    for part in ("train", "validate"):
        assert {**CONFIG[part]["views"], "_target_": 0} == {
            "_target_": 0,
            **{name: f"@{name}" for name in ("image_size", *TwoViews.OPTIONS)},
        }


@pytest.mark.parametrize("recipe", ["paper", "fundus"])
def test_recipes_pass_the_checks(recipe: str, settings: dict[str, Any]) -> None:
    check({**settings, **CONFIG["recipes"][recipe]}, load_datalist("phantom:n=64,size=32"), recipe=recipe)


# --- training_settings ------------------------------------------------------------------------------------------------


def test_defaults_are_filled_in(settings: dict[str, Any]) -> None:
    given = dict(settings)
    filled = training_settings(**settings)
    assert filled == {
        **given,
        "cache_size": 32,
        "learning_rate": 0.3,  # 0.075 * sqrt(16)
        "amp": bfloat16_is_fast(torch.device("cpu")),
        "channels_last": True,
        "compile": False,
    }
    assert training_settings(**{**settings, "optimizer": "adam"})["learning_rate"] == 1e-3


def test_device_is_checked_and_no_setting(settings: dict[str, Any]) -> None:
    cpu = training_settings(device="cpu", **settings)
    assert "device" not in cpu and cpu["amp"] is bfloat16_is_fast(torch.device("cpu"))
    for device in (7.5, None):
        with pytest.raises(ValueError, match=f"^device must be the name of one, such as cpu or cuda:0, got {device!r}"):
            training_settings(device=device, **settings)
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"^device {device!r} is not available: ") as error:
            training_settings(device=device, **settings)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["alpha", "temperature", "learning_rate", *VIEWS])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_not_finite(name: str, value: float, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be finite, got {value}\.$"):
        training_settings(**{**settings, name: value})


def test_auto_is_decided_for_the_machine(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, function in (
        ("amp", "bfloat16_is_fast"),
        ("channels_last", "channels_last_is_fast"),
        ("compile", "compilation_pays"),
    ):
        for answer in (True, False):
            monkeypatch.setattr(f"conrec_monai.bundle.training.{function}", lambda device, answer=answer: answer)
            monkeypatch.setattr("conrec_monai.bundle.training._why_not_compiled", lambda device: None)
            assert training_settings(**settings)[name] is answer
            for given in (True, False):
                assert training_settings(**{**settings, name: given})[name] is given
    # what recomputes its levels is not compiled, unless asked for
    monkeypatch.setattr("conrec_monai.bundle.training.compilation_pays", lambda device: True)
    assert training_settings(**{**settings, "gradient_checkpointing": True})["compile"] is False
    with pytest.raises(ValueError, match="^compile and gradient_checkpointing cannot both be True"):
        training_settings(**{**settings, "gradient_checkpointing": True, "compile": True})


def test_machine_that_cannot_compile(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: Any) -> Any:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr("torch.compile", fail)
    with pytest.raises(ValueError, match=r"^compile True: torch\.compile does not work on this machine: no C\+\+ comp"):
        training_settings(**{**settings, "compile": True})
    monkeypatch.setattr("conrec_monai.bundle.training.compilation_pays", lambda device: True)
    assert training_settings(**settings)["compile"] is False  # auto goes on without


def test_given_values_stay(settings: dict[str, Any], tmp_path: Path) -> None:
    given = {"cache_size": 48, "learning_rate": 1, "amp": True, "features": (4, 8), "dataset_dir": tmp_path}
    filled = training_settings(**{**settings, **given})
    assert {name: filled[name] for name in given} == {**given, "features": [4, 8], "dataset_dir": str(tmp_path)}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(
            (name, value, "a whole number")
            for name in ("image_size", "batch_size", "max_epochs", "seed", "num_workers", "probe_every")
            for value in ("many", 2.5, None, True)
        ),
        ("pictures_every", [1], "a whole number"),
        ("cache_size", 32.0, "a whole number"),
        ("alpha", "large", "a number"),
        ("alpha", None, "a number"),
        ("temperature", True, "a number"),
        ("learning_rate", "0.1x", "a number"),
        *((name, value, "a number") for name in VIEWS for value in ("much", None, True, [0.5])),
        *(("rotate", value, "True or False") for value in ("yes", 1, None)),
        ("decoder", 1, "True or False"),
        ("resume", None, "True or False"),
        ("amp", "bfloat16", "auto, True or False"),
        ("channels_last", None, "auto, True or False"),
        ("compile", 1, "auto, True or False"),
        ("gradient_checkpointing", "auto", "True or False"),
        ("encoder_half", None, "True or False"),
        ("cache_dir", 3, "a path"),
        ("features", 64, "a list of whole numbers, one per level"),
        ("features", "64,128", "a list of whole numbers, one per level"),
        ("features", [4, 8.0], "a list of whole numbers, one per level"),
        ("dataset_dir", 2019, "a path"),
        ("output_dir", 5, "a path"),
        ("output_dir", None, "a path"),
    ],
)
def test_wrong_type(name: str, value: Any, expected: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as error:
        training_settings(**{**settings, name: value})
    assert str(error.value) == f"{name} must be {expected}, got {value!r}."


# --- check_training ---------------------------------------------------------------------------------------------------


def check(settings: dict[str, Any], datalist: Datalist, **values: Any) -> None:
    check_training(training_settings(**{**settings, **values}), PretrainingData(datalist, None))


@pytest.mark.parametrize("view", [None, "normalize", "local_contrast"])
def test_fields_of_view(view: str | None, settings: dict[str, Any], datalist: Datalist) -> None:
    check(settings, datalist, field_of_view=view)


def test_right_settings(settings: dict[str, Any], datalist: Datalist, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "conrec_monai")
    check(settings, datalist, amp=False)
    check(settings, datalist, batch_size=40, amp=True)
    assert caplog.messages == [
        "recipe paper: 40 images (phantom) at 32 px, batch_size 16, max_epochs 3, lars with learning_rate 0.3, features"
        " [4, 4, 4, 8], float32 arithmetic, channels-last memory, not compiled",
        "recipe paper: 40 images (phantom) at 32 px, batch_size 40, max_epochs 3, lars with learning_rate 0.474342,"
        " features [4, 4, 4, 8], bfloat16 arithmetic, channels-last memory, not compiled",
    ]
    assert list(Path(settings["output_dir"]).iterdir()) == []


@pytest.mark.parametrize(
    "values",
    [
        {"image_size": 32, "features": [8] * 6},  # 1 px in the last level
        {"image_size": 24, "masked_views": 0},
        {"image_size": 26, "features": [4, 8]},
        {"crop_scale": [1, 1], "rotate": True, "jitter": 0, "gray_prob": 1, "blur_prob": 0, "masking_fill": "mean"},
        {"image_size": 32, "pooling": "flatten", "features": [4, 5], "decoder": False},
        {"cache_size": 40, "probe_every": 0, "pictures_every": 0, "alpha": 0},
    ],
)
def test_settings_at_the_edge(values: dict[str, Any], settings: dict[str, Any], datalist: Datalist) -> None:
    check(settings, datalist, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"image_size": 36},
            "image_size must be a multiple of 8 for 4 levels of features (for example 32 or 40), got 36.",
        ),
        ({"image_size": 32, "features": [8] * 7}, "image_size must be a multiple of 64 for 7 levels"),
        ({"image_size": 0}, "image_size must be at least 1, got 0."),
        ({"image_size": 5}, "image_size must be a multiple of 8 for 4 levels of features (for example 8), got 5."),
        ({"image_size": 24}, "views of image_size 24: maskings need images of at least 25 px a side, got 24 x 24."),
        (
            {"crop_scale": [0, 1]},
            "views of image_size 32: crop_scale must be two increasing numbers in (0, 1], got [0, 1].",
        ),
        (
            {"crop_scale": [0.5, 1.5]},
            "views of image_size 32: crop_scale must be two increasing numbers in (0, 1], got [0.5, 1.5].",
        ),
        *(
            ({name: value}, f"views of image_size 32: {name} must be in [0, 1], got {value}.")
            for name in ("gray_prob", "blur_prob")
            for value in (-0.1, 2)
        ),
        ({"upsample": "bilinear"}, "upsample must be one of"),
        ({"masked_views": 3}, "views of image_size 32: masked_views must be 0, 1 or 2, got 3."),
        ({"masked_views": -1}, "masked_views must be at least 0, got -1."),
        ({"batch_size": 41}, "batch_size 41 is larger than the data set: 40 images in phantom:n=40,size=32."),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1."),
        ({"batch_size": 0}, "batch_size must be at least 2, got 0."),
        ({"batch_size": -4}, "batch_size must be at least 2, got -4."),
        ({"max_epochs": 0}, "max_epochs must be at least 1, got 0."),
        ({"cache_size": 0}, "cache_size must be at least 1, got 0."),
        ({"cache_size": 24}, "cache_size must be at least image_size, 32, from which views are cut out, got 24"),
        ({"cache_size": 36}, "cache_size must be a multiple of 8 for 4 levels of features (for example 32 or 40), got"),
        ({"cache_size": 40, "pooling": "flatten"}, "pooling flatten takes images of one size: cache_size must be"),
        ({"seed": -1}, "seed must be at least 0, got -1."),
        ({"seed": 2**32}, "seed must be below 4294967296, got 4294967296."),
        ({"num_workers": 0}, "num_workers must be at least 1, got 0."),
        ({"probe_every": -1}, "probe_every must be at least 0, got -1."),
        ({"pictures_every": -1}, "pictures_every must be at least 0, got -1."),
        ({"health_every": -1}, "health_every must be at least 0, got -1."),
        ({"validate_every": 0}, "validate_every must be at least 1, got 0."),
        ({"early_stop_patience": -1}, "early_stop_patience must be at least 0, got -1."),
        ({"checkpoint_every": -1}, "checkpoint_every must be at least 0, got -1."),
        ({"max_minutes": 0}, "max_minutes must be positive, got 0."),
        ({"in_channels": 2}, "in_channels must be 1 (gray) or 3 (RGB), got 2."),
        ({"probe_dir": 3}, "probe_dir must be a path, got 3."),
        ({"resize": "stretch"}, "resize must be one of squash, pad, crop, got 'stretch'."),
        ({"field_of_view": "crop"}, "field_of_view must be null, normalize or local_contrast, got 'crop'."),
        ({"optimizer": "rmsprop"}, "optimizer must be one of lars, sgd, adam, adamw, got 'rmsprop'."),
        ({"schedule": "step"}, "schedule must be one of constant, warmup_cosine, got 'step'."),
        ({"schedule": None}, "schedule must be one of constant, warmup_cosine, got None."),
        ({"pooling": "max"}, "pooling must be one of ('attention', 'average', 'flatten'), got 'max'."),
        ({"features": []}, "features must be one positive number of channels per level"),
        ({"features": [8, 0]}, "features must be one positive number of channels per level"),
        ({"features": [4, 12]}, "attention pooling needs a positive multiple of 8 channels, got 12."),
        ({"learning_rate": 0}, "learning_rate must be positive, got 0."),
        ({"learning_rate": float("nan")}, "learning_rate must be finite, got nan."),
        ({"alpha": -1}, "alpha must not be negative, got -1."),
        ({"temperature": 0}, "temperature must be positive, got 0."),
    ],
)
def test_mistake(values: dict[str, Any], message: str, settings: dict[str, Any], datalist: Datalist) -> None:
    with pytest.raises(ValueError) as error:
        check(settings, datalist, **values)
    assert str(error.value).startswith(message)
    assert not Path(settings["output_dir"]).exists()  # nothing was begun


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"masking_fill": "blue"}, "fill must be one of random, mean, got 'blue'."),
        ({"masking_fill": None}, "fill must be one of random, mean, got None."),
        ({"masking_fill": ["mean"]}, "fill must be one of random, mean, got ['mean']."),
        ({"jitter": -1}, "must not be negative, got -1."),
    ],
)
def test_mistake_in_a_part_of_the_views(
    values: dict[str, Any], message: str, settings: dict[str, Any], datalist: Datalist
) -> None:
    with pytest.raises(ValueError) as error:
        check(settings, datalist, **values)
    assert str(error.value).startswith("views of image_size 32: ") and str(error.value).endswith(message)


@pytest.mark.parametrize("name", ["encoder.pt", "metrics.csv"])
def test_files_of_another_run(name: str, settings: dict[str, Any], datalist: Datalist) -> None:
    path = check_output_dir(settings["output_dir"])
    (path / name).touch()
    with pytest.raises(ValueError) as error:
        check(settings, datalist)
    message = f"output_dir {path} holds the {name} of another run; name another output_dir."
    assert str(error.value) == message
    if name == "metrics.csv":
        check(settings, datalist, resume=True)  # a run that ended before its first checkpoint starts again
    else:
        with pytest.raises(ValueError) as error:
            check(settings, datalist, resume=True)
        assert str(error.value) == message


def test_output_dir_that_cannot_be(settings: dict[str, Any], datalist: Datalist, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path / "notes.txt" / "run", tmp_path / "notes.txt"):
        with pytest.raises(
            ValueError,
            match=r"output_dir .*notes\.txt.* (is a file, expected a folder|cannot be written to: .*directory)",
        ):
            check(settings, datalist, output_dir=str(path))
    assert (tmp_path / "notes.txt").read_text() == "x"


def test_output_dir_is_made(tmp_path: Path) -> None:
    assert check_output_dir(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    (tmp_path / "a" / "b" / "file").touch()
    check_output_dir(tmp_path / "a" / "b")
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["file"]


# --- a run that exists ------------------------------------------------------------------------------------------------


@pytest.fixture
def earlier(settings: dict[str, Any]) -> Path:
    """The checkpoint of a run with these settings, after 2 epochs of 2 iterations."""
    filled = training_settings(**settings)
    path = check_output_dir(filled["output_dir"]) / "checkpoint.pt"
    training = {"iteration": 4, "epoch_length": 2, "settings": filled, "random": {}}
    save_checkpoint(path, ConRecUNet(features=filled["features"]), {"image_size": 32}, training=training)
    return path


def test_run_is_not_overwritten(settings: dict[str, Any], datalist: Datalist, earlier: Path) -> None:
    with pytest.raises(ValueError) as error:
        check(settings, datalist)
    assert str(error.value) == (
        f"{earlier} exists; it is not overwritten: go on with that run (--resume True) or name another output_dir."
    )


def test_run_goes_on(settings: dict[str, Any], datalist: Datalist, earlier: Path) -> None:
    check(settings, datalist, resume=True, max_epochs=2, probe_every=1)  # written whole, or done: both may be
    check(settings, datalist, resume=True, recipe="fundus")  # a name alone: the values are the same


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"features": [4, 8]}, "other settings: features [4, 4, 4, 8] then, [4, 8] now."),
        ({"crop_scale": [0.3, 1.0]}, "other settings: crop_scale [0.08, 1.0] then, [0.3, 1.0] now."),
        ({"masking_fill": "mean"}, "other settings: masking_fill 'random' then, 'mean' now."),
        ({"pooling": "average"}, "other settings: pooling 'attention' then, 'average' now."),
        ({"batch_size": 8}, "other settings: batch_size 16 then, 8 now, learning_rate 0.3 then, 0.2121"),
        ({"max_epochs": 1}, "checkpoint.pt is already after epoch 2, max_epochs is 1."),
    ],
)
def test_run_cannot_go_on(
    values: dict[str, Any], message: str, settings: dict[str, Any], datalist: Datalist, earlier: Path
) -> None:
    with pytest.raises(ValueError) as error:
        check(settings, datalist, resume=True, **values)
    assert message in str(error.value) and str(earlier) in str(error.value)


def test_run_cannot_go_on_with_more_images(settings: dict[str, Any], earlier: Path) -> None:
    more = load_datalist("phantom:n=50,size=32")
    with pytest.raises(ValueError) as error:
        check(settings, more, resume=True)
    assert str(error.value) == (
        f"the run cannot go on from {earlier}: its epochs have 2 iterations, this run's 3;"
        " the number of images changed."
    )


def test_run_cannot_go_on_with_other_images(settings: dict[str, Any], datalist: Datalist, earlier: Path) -> None:
    content = torch.load(earlier, weights_only=True)
    content["training"]["data"] = data_fingerprint(datalist)
    torch.save(content, earlier)
    check(settings, datalist, resume=True)
    renamed = Datalist([{**item, "id": f"other {item['id']}"} for item in datalist], datalist.info)
    with pytest.raises(ValueError) as error:
        check(settings, renamed, resume=True)
    assert str(error.value).startswith(
        f"the run cannot go on from {earlier}: its images were others than the 40 of this run: ids or their order"
    )


def test_checkpoint_that_is_none(settings: dict[str, Any], datalist: Datalist, earlier: Path) -> None:
    earlier.write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint\.pt (is not a ConRec checkpoint|cannot be read as a checkpoint)"):
        check(settings, datalist, resume=True)


def test_checkpoint_of_an_earlier_release(settings: dict[str, Any], datalist: Datalist, earlier: Path) -> None:
    content = torch.load(earlier, weights_only=True)
    content["training"]["views"] = [content["training"].pop("random")]
    torch.save(content, earlier)
    with pytest.raises(ValueError, match="is of an earlier release: its weights can be loaded"):
        check(settings, datalist, resume=True)


# --- check_network ----------------------------------------------------------------------------------------------------


def test_networks_that_fit(settings: dict[str, Any]) -> None:
    filled = training_settings(**settings)
    check_network(ConRecUNet(features=(4, 8)), filled)
    check_network(SimCLRNet(DenseNetEncoder()), filled)


def test_networks_that_do_not_fit(settings: dict[str, Any], earlier: Path) -> None:
    filled = training_settings(**settings)
    with pytest.raises(ValueError, match="network_def must be a ConRecUNet or a SimCLRNet, got a Linear"):
        check_network(torch.nn.Linear(2, 2), filled)
    with pytest.raises(ValueError, match="the images have in_channels 3, network_def takes 1"):
        check_network(ConRecUNet(1, features=(4, 8)), filled)
    with pytest.raises(ValueError, match="image_size must be a multiple of 64 for ConRecEncoder .for example 64., got"):
        check_network(ConRecUNet(features=[8] * 7), filled)
    foreign = torch.nn.Flatten()
    foreign.num_features = 3 * 32 * 32  # type: ignore[assignment]
    with pytest.raises(
        ValueError, match="encoder of network_def must be a ConRecEncoder or a DenseNetEncoder, got a Fl"
    ):
        check_network(SimCLRNet(foreign), filled)
    with pytest.raises(ValueError, match="image height and width must be at least 29, got 24 x 24"):
        check_network(SimCLRNet(DenseNetEncoder()), {**filled, "image_size": 24})
    with pytest.raises(ValueError, match=r"checkpoint\.pt does not fit ConRecUNet: weights"):
        check_network(ConRecUNet(features=(4, 8)), filled)


# --- images -----------------------------------------------------------------------------------------------------------


def split_folders(folder: Path) -> Path:
    for split in ("train", "val", "test"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / split / label / "x.png")
    return folder


def splits(datalist: Datalist | None) -> list[str | None]:
    assert datalist is not None
    return [item["split"] for item in datalist]


def test_test_images_are_left_out(tmp_path: Path) -> None:
    split_folders(tmp_path)
    data = pretraining_data(tmp_path)
    assert splits(data.training) == ["train", "train", "val", "val"] and data.validation is None
    assert data.training.info == load_datalist(tmp_path).info
    assert splits(pretraining_data(tmp_path, "test").training) == ["test", "test"]  # asked for


def test_validation_images_are_not_trained_on(tmp_path: Path) -> None:
    split_folders(tmp_path)
    for section in (None, "train"):
        data = pretraining_data(tmp_path, section, "val")
        assert splits(data.training) == ["train", "train"] and splits(data.validation) == ["val", "val"]
    with pytest.raises(ValueError, match="section and validation_section are both 'val': nothing would be held out"):
        pretraining_data(tmp_path, "val", "val")
    with pytest.raises(ValueError, match="has no section 'valid', available: train, val, test"):
        pretraining_data(tmp_path, None, "valid")


def test_patients_on_both_sides(tmp_path: Path) -> None:
    rows = [f"{i}.png,{'train' if i < 3 else 'val'},p{i % 3}\n" for i in range(5)]
    (tmp_path / "table.csv").write_text("image,split,group\n" + "".join(rows))
    for i in range(5):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="2 groups .patients. are in the training and in validation_section 'val' too"):
        pretraining_data(tmp_path / "table.csv", None, "val")


def test_validation_images_must_fill_a_batch(settings: dict[str, Any], datalist: Datalist) -> None:
    few = Datalist(datalist[:15], datalist.info)
    with pytest.raises(ValueError, match="batch_size 16 is larger than the validation section: 15 images in phantom"):
        check_training(training_settings(**settings), PretrainingData(datalist, few))


def test_test_images_alone_are_used(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "test" / label).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "test" / label / "x.png")
    assert len(pretraining_data(tmp_path).training) == 2


def test_data_set_without_splits() -> None:
    assert len(pretraining_data("phantom:n=5,size=32").training) == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"on_error": "ignore"}, "on_error must be raise or skip, got 'ignore'."),
        ({"label_key": 3}, "label_key must be the name of a column, got 3."),
        ({"validation_section": 3}, "section must be the name of one split, got 3."),
    ],
)
def test_mistakes_about_the_images(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        pretraining_data("phantom:n=5,size=32", **values)
    assert str(error.value) == message


def test_probe_on_a_data_set_of_its_own(tmp_path: Path) -> None:
    training = CachedImages(load_datalist("phantom:n=5,size=32"), 24, "pad", 1, progress=False)
    assert probe_data(None, training) is training
    probe = probe_data("phantom:n=7,size=32,seed=3", training)
    assert (len(probe), probe.size, probe.resize, probe.channels) == (7, 24, "pad", 1)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="holds 1 images without labels; a probe needs labels"):
        probe_data(tmp_path, training)


def test_what_is_left_out_is_written_down(tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "1.png").write_bytes(b"no picture")
    images = CachedImages(load_datalist(tmp_path / "photos"), 8, progress=False, on_error="skip")
    decode(tmp_path, images, images)
    assert images.ids == ["0.png", "2.png", "3.png"]
    lines = (tmp_path / "skipped.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id,image,reason" and len(lines) == 2 and lines[1].startswith("1.png,")
    filled = training_settings(**{**settings, "output_dir": str(tmp_path), "batch_size": 3})
    decode_training(filled, images)
    with pytest.raises(ValueError, match="batch_size 4 is larger than the 3 images that could be read"):
        decode_training({**filled, "batch_size": 4}, images)
    more = CachedImages(load_datalist("phantom:n=4,size=32"), 8, progress=False)
    with pytest.raises(ValueError, match="batch_size 4 is larger than the 3 images that could be read"):
        decode_training({**filled, "batch_size": 4}, more, images)
