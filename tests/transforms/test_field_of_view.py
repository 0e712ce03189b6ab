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

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from PIL import Image

from conrec_monai.bundle import decode, load_for_inference, probe_data
from conrec_monai.data import CachedImages, fundus_phantom, load_datalist
from conrec_monai.handlers.checkpoint import check_resume
from conrec_monai.networks.nets import ConRecEncoder, ConRecUNet
from conrec_monai.networks.utils import read_checkpoint, save_checkpoint
from conrec_monai.transforms import (
    NormalizeFieldOfView,
    NormalizeFieldOfViewd,
    field_of_view_mask,
    find_field_of_view,
)
from conrec_monai.transforms.field_of_view import FIELDS_OF_VIEW

MASK = field_of_view_mask(64)


def _disc(
    shape: tuple[int, int],
    center: tuple[float, float],
    radius: tuple[float, float],
    brightness: float = 120.0,
    surround: float = 2.0,
    channels: int = 3,
    seed: int = 0,
) -> np.ndarray:
    """A textured ellipse (y, x) with a soft border on noise, CHW uint8; cut off where it reaches beyond the image."""
    random = np.random.RandomState(seed)
    y = (np.arange(shape[0])[:, None] + 0.5 - center[0]) / radius[0]
    x = (np.arange(shape[1]) + 0.5 - center[1]) / radius[1]
    r = np.hypot(y, x)
    cover = np.clip((1 - r) * min(radius) + 0.5, 0, 1)
    texture = 1 + 0.15 * np.sin(9 * x + 3 * y) + random.normal(0, 0.05, shape) - 0.3 * r**2
    tint = np.array([1.0, 0.6, 0.3])[:channels, None, None]
    image = tint * brightness * texture * cover + surround * random.random((channels, *shape))
    return image.clip(0, 255).astype(np.uint8)


def _seen(image: np.ndarray | torch.Tensor) -> np.ndarray:
    return (np.asarray(image) > 8).any(axis=-3)


def _like_disc(found, center: tuple[float, float], radius: tuple[float, float], tolerance: float) -> None:
    assert found.reason == ""
    np.testing.assert_allclose(found[:4], (*center, *radius), atol=tolerance)


# --- find_field_of_view -----------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    st.integers(140, 224),
    st.integers(140, 224),
    st.floats(-0.05, 0.05),
    st.floats(0.33, 0.47),
    st.floats(0.33, 0.47),
    st.floats(50, 230),
    st.integers(0, 99),
)
def test_whole_disc(height, width, shift, across, down, brightness, seed):
    center, radius = ((0.5 + shift / 2) * height, (0.5 - shift / 2) * width), (down * height, across * width)
    _like_disc(find_field_of_view(_disc((height, width), center, radius, brightness, seed=seed)), center, radius, 1.5)


@settings(max_examples=10, deadline=None)
@given(
    st.floats(1.0, 1.5), st.floats(0.68, 0.95), st.floats(-5, 5), st.floats(50, 230), st.booleans(), st.integers(0, 99)
)
def test_cut_off_at_two_sides(ratio, visible, shift, brightness, sides, seed):
    # an ellipse of which `visible` of the half axis is within the image, at top and bottom or left and right
    radius, center = (112 / visible, 112 / visible / ratio), (112 + shift, 112.0)
    if radius[1] > 108:
        radius = (radius[0], 108.0)
    image = _disc((224, 224), center, radius, brightness, seed=seed)
    if sides:
        image, center, radius = image.transpose(0, 2, 1), center[::-1], radius[::-1]
    _like_disc(find_field_of_view(image), center, radius, 3)


def test_cut_off_within_the_image_and_a_bright_surround():
    image = _disc((224, 224), (112, 112), (140, 100), surround=14)
    image[:, :6], image[:, -9:] = 0, 0  # black stripes: part of the border that is none of the disc's
    image[:, 100:112, 211:215] = 90  # a notch
    _like_disc(find_field_of_view(image), (112, 112), (140, 100), 3)


def test_full_resolution_16_bit_floats_and_gray():
    center, radius = (700.0, 1090.0), (770.0, 770.0)
    image = _disc((1424, 2144), center, radius)
    _like_disc(find_field_of_view(image), center, radius, 8)
    assert find_field_of_view(image.astype(np.uint16) * 257)[:4] == pytest.approx(
        find_field_of_view(image)[:4], abs=1e-3
    )
    small = _disc((200, 220), (100, 110), (80, 85), channels=1)
    _like_disc(find_field_of_view(small), (100, 110), (80, 85), 1.5)
    assert find_field_of_view(small / np.float32(255))[:4] == pytest.approx(find_field_of_view(small)[:4], abs=0.01)


@pytest.mark.parametrize("size", [64, 128, 200])
def test_phantoms(size):
    found = [find_field_of_view(fundus_phantom(seed % 5, size, seed)) for seed in range(20)]
    assert not [one.reason for one in found if one.reason]
    assert all(abs(one.radius_y / one.radius_x - 1) < 0.06 for one in found)  # phantoms are not squashed


def test_reasons():
    random = np.random.RandomState(0)
    for image, reason in (
        (np.zeros((3, 60, 80), np.uint8), "nearly all of it is dark"),
        (random.randint(60, 255, (3, 60, 80)).astype(np.uint8), "it has no dark border"),
        (np.full((1, 1, 1), 200, np.uint8), "it has no dark border"),
    ):
        height, width = image.shape[1:]
        assert find_field_of_view(image) == (height / 2, width / 2, height / 2, width / 2, reason)
    square = np.zeros((3, 90, 90), np.uint8)
    square[:, 20:70, 20:70] = 200
    assert find_field_of_view(square).reason
    assert find_field_of_view((random.random((3, 64, 64)) > 0.7).astype(np.uint8) * 255).reason  # specks all over


# --- NormalizeFieldOfView ---------------------------------------------------------------------------------------------


def test_mask_is_a_circle_cut_off():
    mask = field_of_view_mask(100)
    assert mask[50].all() and (mask == mask[::-1]).all() and (mask == mask[:, ::-1]).all()
    # 0.72 of the disc's radius is 0.75 of the circle's
    assert not mask[:12].any() and mask[13].any()
    share = 2 / np.pi * (np.arcsin(0.75) + 0.75 * np.sqrt(1 - 0.75**2))
    assert mask.mean() == pytest.approx(np.pi / 4 * share, abs=0.01)
    whole = field_of_view_mask(100, height=1)
    assert whole.mean() == pytest.approx(np.pi / 4, abs=0.005) and (whole == whole.T).all()


def test_the_same_mask_for_all():
    images = [fundus_phantom(seed % 5, 96, seed) for seed in range(12)]
    images += [_disc((224, 224), (112, 112), (150, 100)), _disc((300, 200), (150, 100), (95, 97), 12)]
    images += [np.zeros((3, 50, 40), np.uint8), np.full((3, 28, 28), 255, np.uint8)]
    normalize = NormalizeFieldOfView(64).normalize
    for image in images:
        before = image.copy()
        result, _ = normalize(image)
        assert result.dtype == np.uint8 and result.shape == (3, 64, 64)
        assert (_seen(result) == MASK).all() and not result[:, ~MASK].any()
        assert (image == before).all()


def test_a_squashed_cut_disc_becomes_that_of_a_whole_one():
    # the same retina: whole, and squashed to an ellipse that top and bottom cut off
    def retina(height: int, width: int, center: tuple[float, float], radius: tuple[float, float]) -> np.ndarray:
        y = (np.arange(height)[:, None] + 0.5 - center[0]) / radius[0]
        x = (np.arange(width) + 0.5 - center[1]) / radius[1]
        spots = 60 * np.exp(-((x - 0.3) ** 2 + (y + 0.4) ** 2) / 0.02) - 50 * np.exp(-((x + 0.5) ** 2 + y**2) / 0.03)
        image = np.where(np.hypot(y, x) <= 1, 120 + spots, 0)
        return np.stack([image, 0.6 * image, 0.3 * image]).astype(np.uint8)

    normalize = NormalizeFieldOfView(64)
    whole = normalize(retina(240, 300, (118, 152), (110, 110))).astype(int)
    cut = normalize(retina(224, 224, (110, 113), (145, 100))).astype(int)
    inner = field_of_view_mask(64, 0.6)
    assert np.abs(whole - cut)[:, inner].mean() < 1 and np.abs(whole - cut)[:, MASK].max() < 40
    y, x = np.unravel_index(whole[0].argmax(), MASK.shape)  # the spot is where it was: (0.3, -0.4) of the radius
    assert ((x + 0.5) / 32 - 1, (y + 0.5) / 32 - 1) == pytest.approx((0.3 / 0.96, -0.4 / 0.96), abs=0.04)


def test_constant_retina_stays_constant_whatever_the_scale():
    for side in (40, 64, 150, 1200):  # enlarged, reduced, averaged first
        image = np.zeros((3, side, side), np.uint8)
        center = np.arange(side) + 0.5 - side / 2
        image[:, np.hypot(center[:, None], center) <= side * 0.47] = 77
        result, found = NormalizeFieldOfView(48).normalize(image)
        assert found.reason == "" and (result[:, 10:-10, 10:-10] == 77).all()


def test_types_and_batches(caplog):
    images = torch.from_numpy(np.stack([fundus_phantom(seed % 5, 64, seed) for seed in range(4)]))
    images = torch.cat([images, torch.zeros(1, 3, 64, 64, dtype=torch.uint8)])
    before = images.clone()
    transform = NormalizeFieldOfView()
    with caplog.at_level(logging.WARNING, "conrec_monai"):
        batch = transform.batch(images)
    assert (
        len(caplog.messages) == 1 and "no retina was found in 1 of 5 images (nearly all of it is dark)" in caplog.text
    )
    assert torch.equal(images, before) and batch.dtype == torch.uint8 and batch.shape == images.shape
    for image, expected in zip(images, batch, strict=True):
        assert torch.equal(transform(image), expected)
        assert (transform(image.numpy()) == expected.numpy()).all()
    floats = transform.batch(images / 255)
    assert floats.dtype == torch.float32 and (floats * 255 - batch.float()).abs().max() < 0.51
    assert (_seen(floats * 255) == MASK).all()
    half = transform(images[0].double() / 255)
    assert half.dtype == torch.float64
    wide = transform.normalize(images[0].numpy().astype(np.uint16) * 257)[0]
    assert wide.dtype == np.uint16 and np.abs(wide / 257 - batch[0].numpy()).max() < 0.51
    assert isinstance(transform(MetaTensor(images[0])), MetaTensor)
    result = NormalizeFieldOfViewd(["a", "b"], 32)({"a": images[0], "b": images[4], "c": 1})
    assert result["a"].shape == (3, 32, 32) and result["a_unsure"] == "" and result["c"] == 1
    assert result["b_unsure"] == "nearly all of it is dark"


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 3, 4]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 255), st.integers(0, 9))
def test_any_image_is_taken(channels, height, width, high, seed):
    image = np.random.RandomState(seed).randint(0, high + 1, (channels, height, width)).astype(np.uint8)
    result, found = NormalizeFieldOfView(16).normalize(image)
    assert (_seen(result) == field_of_view_mask(16)).all() and all(np.isfinite(found[:4]))


@pytest.mark.parametrize("shape", [(3, 1, 3000), (1, 3000, 2), (3, 1, 1)])
def test_long_and_narrow_images_are_taken(shape):
    result, found = NormalizeFieldOfView(16).normalize(np.full(shape, 200, dtype=np.uint8))
    assert (_seen(result) == field_of_view_mask(16)).all() and found.reason


def test_mistakes():
    for size in (0, 2.5, True):
        with pytest.raises(ValueError, match="^size must be at least 1 pixel, or None, got"):
            NormalizeFieldOfView(size)
    for height in (0, 1.1):
        with pytest.raises(ValueError, match=r"^height must be in \(0, 1\], got"):
            NormalizeFieldOfView(height=height)
    transform = NormalizeFieldOfView()
    for image, message in (
        (np.zeros((8, 8), np.uint8), r"must be of shape CHW, got \(8, 8\)"),
        (np.zeros((3, 0, 8), np.uint8), r"must be of shape CHW, got \(3, 0, 8\)"),
        (np.zeros((3, 8, 8), np.int64), "must be uint8, uint16 or floating point in .* got int64"),
        (np.full((3, 8, 8), 1.5), r"values in \[0, 1\], found 1.5 to 1.5"),
        (np.full((3, 8, 8), np.nan), r"values in \[0, 1\], found nan to nan"),
    ):
        with pytest.raises(ValueError, match=message):
            transform(image)
    for images in (np.zeros((3, 8, 8), np.uint8), np.zeros((0, 3, 8, 8), np.uint8)):
        with pytest.raises(ValueError, match="must be of shape BCHW, got"):
            transform.batch(images)


# --- its users --------------------------------------------------------------------------------------------------------


def _photographs(folder: Path) -> Path:
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(fundus_phantom(seed, 64, seed).transpose(1, 2, 0).copy()).save(folder / f"eye_{seed}.png")
    Image.new("RGB", (40, 30)).save(folder / "night é.png")
    return folder


def test_cached_images_and_their_manifest(tmp_path, caplog):
    data = load_datalist(_photographs(tmp_path / "photographs"))
    cached = CachedImages(data, 32, "pad", field_of_view="normalize", progress=False)
    with caplog.at_level(logging.WARNING, "conrec_monai"):
        decode(tmp_path, cached, probe_data(None, cached))
    mask = field_of_view_mask(32)
    assert (_seen(cached.images) == mask).all() and len(cached) == 4
    assert [entry["reason"] for entry in cached.unsure] == ["nearly all of it is dark"]
    assert len([m for m in caplog.messages if "no retina was found in 1 of 4 images" in m]) == 1
    with (tmp_path / "unsure.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == cached.unsure and rows[0]["image"].endswith("night é.png")
    assert not (tmp_path / "skipped.csv").exists()
    first = NormalizeFieldOfView(32)(np.asarray(Image.open(data[0]["image"])).transpose(2, 0, 1))
    assert (cached.images[0].numpy() == first).all()
    assert CachedImages(data, 32).load().unsure == []
    with pytest.raises(ValueError, match="field_of_view must be None, 'normalize' or 'local_contrast', got 'crop'"):
        CachedImages(data, 32, field_of_view="crop")


def test_probe_data_follow_the_training(tmp_path):
    training = CachedImages(load_datalist("phantom:n=20,size=32"), 32, field_of_view="normalize")
    probe = probe_data("phantom:n=20,size=48,seed=1", training)
    assert probe.field_of_view == "normalize" and (_seen(probe.images) == field_of_view_mask(32)).all()


def test_checkpoints(tmp_path):
    path, network = tmp_path / "encoder.pt", ConRecEncoder(features=(4, 8))
    base = {"image_size": 32, "resize": "squash"}
    for written, read in (({}, None), *(({"field_of_view": view}, view) for view in FIELDS_OF_VIEW)):
        save_checkpoint(path, network, {**base, **written})
        assert read_checkpoint(path)["preprocessing"]["field_of_view"] == read
        assert load_for_inference(path, {}, {}).field_of_view == read
    save_checkpoint(path, network, {**base, "field_of_view": 1})
    words = r"must hold field_of_view as one of \(None, 'normalize', 'local_contrast'\), found 1\.$"
    with pytest.raises(ValueError, match=words):
        read_checkpoint(path)
    torch.save(network.state_dict(), path)
    for given_value, read in (({}, None), *(({"field_of_view": view}, view) for view in FIELDS_OF_VIEW)):
        assert load_for_inference(path, network.config, {**base, **given_value}).field_of_view == read
    with pytest.raises(ValueError, match="field_of_view, null, normalize or local_contrast, found 'crop'"):
        load_for_inference(path, network.config, {**base, "field_of_view": "crop"})


def test_a_run_does_not_go_on_with_another(tmp_path):
    path, training = tmp_path / "checkpoint.pt", {"random": {}, "settings": {"seed": 0}}  # written before there was one
    save_checkpoint(path, ConRecUNet(features=(4, 8)), {"image_size": 32}, training=training)
    check_resume(path, {"seed": 0, "field_of_view": None})
    with pytest.raises(ValueError, match="other settings: field_of_view None then, 'normalize' now"):
        check_resume(path, {"seed": 0, "field_of_view": "normalize"})
