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

import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from conrec_monai.data import CachedImages, Datalist, EpochBatchSampler, batched, dataset, image_cache, load_datalist
from conrec_monai.data.datalist import DatalistInfo
from conrec_monai.data.phantom import fundus_phantom
from conrec_monai.transforms import LocalContrast, NormalizeFieldOfView

KINDS = ((np.uint8, 1), (np.uint16, 257))


def _noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (channels, height, width), dtype=np.uint8)


def _one(array: np.ndarray, size: int, resize: str = "squash", channels: int = 3) -> np.ndarray:
    return CachedImages([{"image": array}], size, resize, channels).images[0].numpy()


def _pil(array: np.ndarray, width: int, height: int) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1).astype(int)


# --- CachedImages -----------------------------------------------------------------------------------------------------


def test_files_and_arrays(tmp_path: Path) -> None:
    images = [_noise(16, 16, seed=seed) for seed in range(3)]
    Image.fromarray(images[1].transpose(1, 2, 0).copy()).save(tmp_path / "a.png")
    data = [
        {"image": images[0], "label": 3, "group": "g", "id": "x"},
        {"image": str(tmp_path / "a.png"), "label": None},
        {"image": images[2], "label": np.int64(1), "id": "z"},
    ]
    cached = CachedImages(data, 16)
    assert len(cached) == 3 and cached.data is data
    assert cached.images.shape == (3, 3, 16, 16) and cached.images.dtype == torch.uint8
    np.testing.assert_array_equal(cached.images.numpy(), np.stack(images))  # the right size passes through bit by bit
    assert cached.labels.tolist() == [3, -1, 1] and cached.labels.dtype == torch.int64
    assert cached.ids == ["x", "1", "z"] and cached.groups == ["g", None, None]
    item = cached[2]
    assert (
        torch.equal(item["image"], cached.images[2])
        and item["label"].item() == 1
        and item["label"].dtype == torch.int64
    )
    assert cached[-1]["id"] == "z" and torch.equal(cached[-3]["image"], cached.images[0])
    for beyond in (3, -4):
        with pytest.raises(IndexError):
            cached[beyond]


def test_batch_is_one_gather() -> None:
    cached = CachedImages([{"image": _noise(8, 8, seed=seed), "label": seed} for seed in range(5)], 8)
    batch = cached.__getitems__([4, 0, 4])
    assert torch.equal(batch["image"], cached.images[[4, 0, 4]]) and batch["label"].tolist() == [4, 0, 4]


def test_items_and_batches_are_copies() -> None:
    cached = CachedImages([{"image": _noise(8, 8)}], 8)
    before = cached.images.clone()
    for part in (cached[0], cached.__getitems__([0])):
        part["image"].zero_()
        part["label"].zero_()
    assert torch.equal(cached.images, before) and cached.labels.tolist() == [-1]


def test_data_loader_with_sampler() -> None:
    cached = CachedImages([{"image": _noise(8, 8, seed=seed), "label": seed} for seed in range(7)], 8)
    sampler = EpochBatchSampler(len(cached), 3, seed=1)
    loader = DataLoader(cached, batch_sampler=sampler, collate_fn=batched)
    seen = []
    for batch in loader:
        assert batch["image"].shape == (3, 3, 8, 8)
        assert torch.equal(batch["image"], cached.images[batch["label"]])
        seen += batch["label"].tolist()
    assert len(loader) == 2 and len(set(seen)) == 6
    sampler.set_position(0)
    assert [batch["label"].tolist() for batch in loader] == [seen[:3], seen[3:]]


@pytest.mark.parametrize(("height", "width"), [(100, 60), (33, 97), (20, 15)])
def test_squash_is_antialiased_bicubic(height: int, width: int) -> None:
    array = _noise(height, width)
    difference = np.abs(_one(array, 24).astype(int) - _pil(array, 24, 24))
    assert difference.max() <= 1  # rounding


def test_pad_fits_inside_and_centers() -> None:
    array = _noise(50, 100)
    image = _one(array, 20, "pad")
    assert not image[:, :5].any() and not image[:, 15:].any()
    assert np.abs(image[:, 5:15].astype(int) - _pil(array, 20, 10)).max() <= 1
    tall = _one(array.transpose(0, 2, 1), 20, "pad")
    assert np.abs(tall.astype(int) - image.transpose(0, 2, 1)).max() <= 1
    only_padded = _one(_noise(20, 7), 20, "pad")  # 13 columns are black: 6 left, 7 right
    np.testing.assert_array_equal(only_padded[:, :, 6:13], _noise(20, 7))
    assert only_padded[:, :, :6].sum() + only_padded[:, :, 13:].sum() == 0
    assert _one(np.full((1, 1, 500), 255, np.uint8), 9, "pad", 1).sum() == 9 * 255  # at least one pixel is left


def test_crop_fills() -> None:
    array = _noise(50, 101)
    image = _one(array, 20, "crop")
    assert np.abs(image.astype(int) - _pil(array[:, :, 25:75], 20, 20)).max() <= 1
    np.testing.assert_array_equal(_one(array, 50, "crop"), array[:, :, 25:75])
    tall = _noise(90, 50)
    np.testing.assert_array_equal(_one(tall, 50, "crop"), tall[:, 20:70])


@given(height=st.integers(1, 40), width=st.integers(1, 40), resize=st.sampled_from(["squash", "pad", "crop"]))
@settings(max_examples=25, deadline=None)
def test_constant_stays_constant(height: int, width: int, resize: str) -> None:
    for array, value in (
        (np.full((1, height, width), 77, np.uint8), 77),
        (np.full((1, height, width), 77 * 257, np.uint16), 77),
        (np.full((1, height, width), 77 / 255, np.float32), 77),
    ):
        image = _one(array, 13, resize, 1)
        assert image.shape == (1, 13, 13)
        assert set(np.unique(image)) - ({0} if resize == "pad" else set()) == {value}


def test_sixteen_bit_and_float_are_scaled_and_rounded() -> None:
    deep = np.array([[0, 128, 129, 257, 65535, 65406, 65407, 32896, 1000]], dtype=np.uint16).reshape(1, 3, 3)
    # 128 / 257 = 0.498, 129 / 257 = 0.502, 65406 / 257 = 254.498, 1000 / 257 = 3.89
    assert _one(deep, 3, channels=1).ravel().tolist() == [0, 0, 1, 1, 255, 254, 255, 128, 4]
    floating = np.array([0, 0.001, 0.0021, 0.5, 1], dtype=np.float64)
    assert _one(floating.repeat(5).reshape(1, 5, 5), 5, channels=1)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_overshoot_is_clipped() -> None:
    for white in (np.uint8(255), np.uint16(65535), np.float32(1)):
        step = np.zeros((1, 6, 6), dtype=white.dtype)
        step[:, :, 3:] = white
        image = _one(step, 24, channels=1)[
            0, 12
        ]  # bicubic overshoots beside an edge; wrapped it would be 0 beside white
        assert (np.diff(image.astype(int)) >= -8).all() and image[0] == 0 and image[-1] == 255
        assert image[:10].max() < 20 and image[14:].min() > 235


def test_sixteen_bit_is_resampled_at_full_depth(tmp_path: Path) -> None:
    deep = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    Image.fromarray(deep).save(tmp_path / "a.png")
    image = CachedImages([{"image": tmp_path / "a.png"}], 16, channels=1).images[0, 0].numpy()
    expected = np.asarray(Image.fromarray(deep.astype(np.float32)).resize((16, 16), Image.Resampling.BICUBIC)) / 257
    assert np.abs(image - expected).max() <= 0.51


def test_channels() -> None:
    assert _one(_noise(9, 9, channels=1), 9).shape == (3, 9, 9)
    gray = CachedImages([{"image": _noise(9, 9)}], 5, channels=1)
    assert gray.images.shape == (1, 1, 5, 5) and gray[0]["image"].shape == (1, 5, 5)


def test_unusual_memory_layouts() -> None:
    array = _noise(9, 9)
    np.testing.assert_array_equal(_one(array[:, ::-1, ::-1], 9), array[:, ::-1, ::-1])
    array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that it must not write to
        np.testing.assert_array_equal(_one(array, 9), array)


def test_decoding_is_lazy_and_happens_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    calls = []
    real = dataset.read_image
    monkeypatch.setattr(
        dataset,
        "read_image",
        lambda *args, **more: calls.append(threading.current_thread().name) or real(*args, **more),
    )
    cached = CachedImages([{"image": tmp_path / "a.png"}] * 4, 8)
    assert len(cached) == 4 and cached.labels.tolist() == [-1] * 4 and calls == []
    cached[0]
    assert len(calls) == 4 and threading.main_thread().name not in calls
    assert cached.load() is cached.load()
    cached.__getitems__([1, 2])
    assert len(calls) == 4


def test_unreadable_images_are_collected(tmp_path: Path) -> None:
    data: list[dict[str, object]] = [{"image": tmp_path / f"none{i}.png"} for i in range(5)]
    (tmp_path / "text.png").write_text("no image")
    data += [{"image": _noise(8, 8)}, {"image": tmp_path / "text.png"}, {"image": np.zeros((8, 8)), "id": "flat"}]
    cached = CachedImages(data, 8)
    with pytest.raises(
        ValueError, match=r"^7 of 8 images cannot be loaded: .*none0.png; .*none4.png; and 2 more$"
    ) as error:
        cached.load()
    assert "\n" not in str(error.value) and "text.png" not in str(error.value)
    with pytest.raises(ValueError, match=r"text.png: not a PNG.* file; item flat: an image array must be CHW"):
        CachedImages(data[5:], 8).load()
    with pytest.raises(ValueError, match="7 of 8"):  # a failed load leaves nothing half filled behind
        cached[5]


def test_skipping_unreadable_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [_noise(8, 8, seed=seed) for seed in range(6)]
    for index in (0, 2, 5):
        Image.fromarray(images[index].transpose(1, 2, 0).copy()).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_text("no image")
    data: list[dict[str, Any]] = [
        {"image": str(tmp_path / f"{i}.png"), "label": i, "group": f"g{i}", "id": f"id{i}"} for i in range(6)
    ]
    data[4]["image"] = np.zeros((8, 8))  # 1 is damaged, 3 is missing, 4 is no CHW array
    earlier = [{"id": "x", "image": "x.png", "reason": "gone"}]
    datalist = Datalist(data, DatalistInfo("folder", "flat folder", "here"), earlier)
    cached = CachedImages(datalist, 8, on_error="skip")
    assert len(cached) == 6 and cached.skipped == earlier
    assert cached.load() is cached
    assert len(cached) == 3 and cached.ids == ["id0", "id2", "id5"] and cached.groups == ["g0", "g2", "g5"]
    assert cached.labels.tolist() == [0, 2, 5] and cached.labels.dtype == torch.int64
    np.testing.assert_array_equal(cached.images.numpy(), np.stack([images[i] for i in (0, 2, 5)]))
    assert torch.equal(cached[2]["image"], cached.images[2]) and cached[2]["label"] == 5
    assert cached.__getitems__([1, 2])["label"].tolist() == [2, 5]
    assert isinstance(cached.data, Datalist) and cached.data == [data[0], data[2], data[5]]
    assert cached.data.info == datalist.info and cached.data.skipped == cached.skipped
    assert [entry["id"] for entry in cached.skipped] == ["x", "id1", "id3", "id4"]
    assert [entry["image"] for entry in cached.skipped[1:]] == [data[1]["image"], data[3]["image"], "array"]
    for entry, reason in zip(cached.skipped[1:], ("1.png", "image file not found", "item id4: .*CHW"), strict=True):
        assert re.search(reason, entry["reason"])
    assert len(datalist) == 6 and datalist.skipped == earlier  # what was given stays as it is
    assert caplog.messages == ["3 of 6 images cannot be read and are left out: id1, id3, id4"]
    cached.load()
    assert len(caplog.messages) == 1 and len(cached.skipped) == 4
    plain = CachedImages(data[:2], 8, on_error="skip").load()
    assert isinstance(plain.data, list) and plain.data == data[:1] and len(plain.skipped) == 1
    with pytest.raises(ValueError, match=r"^2 of 2 images cannot be loaded: .*1\.png"):
        CachedImages([data[1], data[3]], 8, on_error="skip").load()


def test_skipping_nothing() -> None:
    data = [{"image": _noise(8, 8)}]
    cached = CachedImages(data, 8, on_error="skip").load()
    assert cached.data is data and cached.skipped == []


def test_frame_and_hint_reach_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def record(path: str, channels: int, frame: int | None, min_side: int | None) -> np.ndarray:
        calls.append((path, channels, frame, min_side))
        return _noise(8, 8)

    monkeypatch.setattr(dataset, "read_image", record)
    a, b = str(tmp_path / "a.tif"), str(tmp_path / "b.png")
    for path in (a, b):
        Path(path).write_bytes(b"")
    CachedImages([{"image": a, "frame": 2}, {"image": b}], 5, num_workers=1).load()
    assert calls == [(a, 3, 2, 5), (b, 3, None, 5)]


def test_hashes_are_those_of_the_content(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        Image.fromarray(np.random.RandomState(seed).randint(0, 255, (9, 9, 3), np.uint8)).save(tmp_path / f"{name}.png")
    files = [{"image": str(tmp_path / f"{name}.png")} for name in "abc"]
    hashes = CachedImages(files, 8).hashes
    assert hashes.dtype == torch.int64 and hashes[0] == hashes[2] != hashes[1]
    assert torch.equal(CachedImages(files[::-1], 4, "pad", 1).hashes, hashes.flip(0))  # whatever becomes of them
    array = _noise(8, 8)
    arrays = CachedImages([{"image": array}, {"image": array.copy()}, {"image": array[::-1]}], 8).hashes
    assert arrays[0] == arrays[1] != arrays[2]
    (tmp_path / "b.png").write_bytes(b"no picture")
    left = CachedImages(files, 8, on_error="skip")
    assert torch.equal(left.hashes, hashes[[0, 2]])


def test_frames_of_a_file(tmp_path: Path) -> None:
    pages = [Image.new("L", (6, 6), value) for value in (10, 20, 30)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    path = str(tmp_path / "a.tif")
    cached = CachedImages([{"image": path, "frame": frame} for frame in (2, 0)], 6, channels=1)
    assert cached.images[:, 0, 0, 0].tolist() == [30, 10]
    with pytest.raises(ValueError, match=r"2 of 2 images cannot be loaded: .*a\.tif"):
        CachedImages([{"image": path}, {"image": path, "frame": 3}], 6).load()


def test_no_progress_bar_in_logs(capfd: pytest.CaptureFixture[str]) -> None:
    for progress in (True, False):
        CachedImages([{"image": _noise(8, 8)}], 8, progress=progress).load()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": []}, "data holds no items"),
        ({"size": 0}, "size must be at least 1 pixel, got 0"),
        ({"resize": "stretch"}, "resize must be one of squash, pad, crop, got 'stretch'"),
        ({"channels": 2}, r"channels must be 1 \(gray\) or 3 \(RGB\), got 2"),
        ({"num_workers": 0}, "num_workers must be at least 1 thread, got 0"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', got 'ignore'"),
        ({"data": [{"label": 1}]}, r"item 0 of data has no 'image', only \['label'\]"),
        ({"data": [{"image": 3}]}, "the image of item 0 of data must be a path or a numpy array, got int"),
        (
            {"data": [{"image": "a.png", "label": -1}]},
            "label of item 0 of data must be an integer >= 0 or None, got -1",
        ),
        ({"data": [{"image": "a.png", "label": 1.0}]}, "must be an integer >= 0 or None, got 1.0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CachedImages(**{"data": [{"image": "a.png"}], "size": 8, **arguments})  # type: ignore[arg-type]


def test_real_photographs(shared_data: Path) -> None:
    cached = CachedImages(load_datalist(shared_data / "aptos2019")[:8], 64)
    red, green, blue = cached.images.double().mean(dim=(0, 2, 3)).tolist()
    assert cached.images.shape == (8, 3, 64, 64) and red > green > blue


@pytest.mark.parametrize("channels", [3, 1])
def test_local_contrast(channels: int) -> None:
    photographs = [fundus_phantom(seed, 96, seed)[:channels] for seed in range(4)]
    data = [{"image": array.astype(kind) * kind(factor)} for kind, factor in KINDS for array in photographs]
    cached = CachedImages(data, 48, "pad", channels, field_of_view="local_contrast")
    assert cached.images.shape == (8, channels, 48, 48) and cached.images.dtype == torch.uint8 and not cached.unsure
    for array, images in zip(photographs, cached.images.reshape(2, 4, channels, 48, 48).transpose(0, 1), strict=True):
        normalized = NormalizeFieldOfView(48)(array / np.float32(255))
        expected = LocalContrast()(normalized)
        assert np.abs(images.numpy() / 255 - expected).max() < 1 / 255
        assert np.abs(LocalContrast()(normalized.round(2)) - expected).max() > 1 / 255  # what rounding before would do


def test_local_contrast_is_not_that_of_a_cached_normalized_image(tmp_path: Path) -> None:
    data = [{"image": fundus_phantom(seed, 64, seed)} for seed in range(3)] + [{"image": np.zeros((3, 9, 9), np.uint8)}]
    for view in ("normalize", "local_contrast", None, "local_contrast", "normalize"):
        cached = CachedImages(data, 32, field_of_view=view, cache_dir=tmp_path)
        expected = CachedImages(data, 32, field_of_view=view)
        assert torch.equal(cached.images, expected.images)
        assert cached.unsure == expected.unsure and [entry["id"] for entry in cached.unsure] == ["3"] * bool(view)
    assert len(list(tmp_path.glob("*.images"))) == 3
    with pytest.raises(ValueError) as error:
        CachedImages(data, 32, field_of_view="contrast")
    assert str(error.value) == "field_of_view must be None, 'normalize' or 'local_contrast', got 'contrast'"


# --- CachedImages with a cache_dir ------------------------------------------------------------------------------------


def _save(path: Path, array: np.ndarray) -> str:
    Image.fromarray(array.squeeze(0) if len(array) == 1 else array.transpose(1, 2, 0).copy()).save(path)
    return str(path)


def _mixture(folder: Path) -> list[dict[str, Any]]:
    """Files and arrays of all kinds; the last three cannot be read."""
    pages = [Image.fromarray(_noise(30, 20, seed=seed).transpose(1, 2, 0).copy()) for seed in range(3)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    (folder / "damaged.png").write_bytes(Path(_save(folder / "whole.png", _noise(20, 20))).read_bytes()[:200])
    drawn = load_datalist("phantom:n=1,size=64")[0]["image"]  # a retina: field_of_view finds it
    return [
        {"image": _save(folder / "a.png", _noise(40, 50, seed=1)), "label": 1, "id": "a", "group": "g"},
        {"image": _save(folder / "b.jpg", _noise(90, 70, seed=2)), "label": 0},
        {"image": Path(_save(folder / "gray.png", _noise(33, 21, channels=1)))},
        *({"image": str(folder / "pages.tif"), "frame": frame, "id": f"page {frame}"} for frame in (2, 0)),
        {"image": _noise(16, 16, seed=3)},
        {"image": np.random.RandomState(4).randint(0, 65536, (1, 25, 30), dtype=np.uint16)},
        {"image": np.random.RandomState(5).rand(3, 20, 24)},
        {"image": drawn},
        {"image": _save(folder / "drawn.png", np.asarray(drawn)), "id": "drawn"},
        {"image": str(folder / "pages.tif"), "id": "no frame"},
        {"image": str(folder / "damaged.png"), "id": "damaged"},
        {"image": str(folder / "absent.png"), "id": "absent"},
    ]


def _assert_same(cached: CachedImages, expected: CachedImages) -> None:
    assert torch.equal(cached.images, expected.images) and torch.equal(cached.hashes, expected.hashes)
    assert torch.equal(cached.labels, expected.labels) and len(cached) == len(expected) == len(cached.images)
    for name in ("ids", "groups", "skipped", "unsure", "data"):
        assert getattr(cached, name) == getattr(expected, name), name
    some = torch.arange(len(cached)).flip(0)[::2]
    assert torch.equal(cached.gather(some), expected.images[some])
    assert torch.equal(cached.gather(some.tolist()), expected.images[some])
    assert torch.equal(cached.__getitems__([1, 0, 1])["image"], expected.images[[1, 0, 1]])
    assert torch.equal(cached[-1]["image"], expected.images[-1]) and cached[-1]["id"] == expected.ids[-1]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded."""
    names: list[str] = []
    real = dataset.read_image
    monkeypatch.setattr(
        dataset, "read_image", lambda path, *args, **more: names.append(Path(path).name) or real(path, *args, **more)
    )
    return names


SETTINGS: list[dict[str, Any]] = [
    {"resize": "squash"},
    {"resize": "pad"},
    {"resize": "crop"},
    {"resize": "squash", "channels": 1},
    {"resize": "squash", "field_of_view": "normalize"},
    {"resize": "squash", "field_of_view": "normalize", "channels": 1},
    {"resize": "squash", "field_of_view": "local_contrast"},
]


def test_cache_changes_nothing(tmp_path: Path, decoded: list[str]) -> None:
    data = _mixture(tmp_path)
    seen = []
    for setting in SETTINGS:  # in one folder: none is served to another one
        expected = CachedImages(list(data), 16, on_error="skip", **setting).load()
        assert len(expected) == 10 and [entry["id"] for entry in expected.skipped] == ["no frame", "damaged", "absent"]
        for size in (16, 16):
            cached = CachedImages(list(data), size, on_error="skip", cache_dir=tmp_path / "cache", **setting)
            _assert_same(cached, expected)
        # What can be decoded was decoded twice: without the cache, and for the cache.
        assert {name: decoded.count(name) for name in decoded} == {
            **dict.fromkeys(["a.png", "b.jpg", "gray.png", "drawn.png"], 2),
            "damaged.png": 3,
            "pages.tif": 2 + 2 + 3,
        }
        decoded.clear()
        seen.append(cached.images)
        unsure = [entry["id"] for entry in cached.unsure]
        assert ("a" in unsure and "drawn" not in unsure) if "field_of_view" in setting else not unsure
    assert len(list((tmp_path / "cache").glob("*.images"))) == len(SETTINGS)
    with pytest.raises(ValueError, match="^3 of 13 images cannot be loaded: .*holds 3 frames.*damaged.png"):
        CachedImages(data, 16, cache_dir=tmp_path / "cache").load()


def test_other_sizes_and_decoders_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [{"image": _save(tmp_path / f"{seed}.png", _noise(20, 20, seed=seed))} for seed in range(3)]
    for size in (8, 16, 20):
        cached = CachedImages(data, size, cache_dir=tmp_path / "cache")
        assert torch.equal(cached.images, CachedImages(data, size).images)
    monkeypatch.setattr(image_cache, "_version", lambda package: "0")
    monkeypatch.setattr(dataset, "read_image", lambda *args, **more: np.zeros((3, 20, 20), np.uint8))
    assert not CachedImages(data, 20, cache_dir=tmp_path / "cache").images.any()


def test_second_dataset_decodes_nothing(tmp_path: Path, decoded: list[str]) -> None:
    data = [{"image": _save(tmp_path / f"{seed}.png", _noise(20, 20, seed=seed))} for seed in range(5)]
    first = CachedImages(data, 20, cache_dir=tmp_path / "cache", num_workers=3)
    assert len(first.images) == 5 and sorted(decoded) == [f"{seed}.png" for seed in range(5)]
    for name in ("0.png", "renamed.png"):
        os.replace(data[0]["image"], tmp_path / name)
        data[0] = {"image": str(tmp_path / name)}
        again = CachedImages(data, 20, cache_dir=str(tmp_path / "cache"))
        assert torch.equal(again.images, first.images) and torch.equal(again.hashes, first.hashes)
    assert len(decoded) == 5


def test_changed_file_is_decoded_anew(tmp_path: Path, decoded: list[str]) -> None:
    data = [{"image": _save(tmp_path / f"{seed}.bmp", _noise(20, 20, seed=seed))} for seed in range(4)]
    first = CachedImages(data, 20, cache_dir=tmp_path / "cache").load()
    path = tmp_path / "2.bmp"
    before = path.stat()
    _save(path, _noise(20, 20, seed=9))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns, path.stat().st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )
    decoded.clear()
    second = CachedImages(data, 20, cache_dir=tmp_path / "cache").load()
    assert decoded == ["2.bmp"]
    np.testing.assert_array_equal(second.images.numpy(), np.stack([_noise(20, 20, seed=seed) for seed in (0, 1, 9, 3)]))
    np.testing.assert_array_equal(first.images.numpy(), np.stack([_noise(20, 20, seed=seed) for seed in range(4)]))
    assert (first.hashes == second.hashes).tolist() == [True, True, False, True]


def test_added_photograph_is_decoded_alone_and_order_does_not_matter(tmp_path: Path, decoded: list[str]) -> None:
    arrays = [_noise(20, 20, seed=seed) for seed in range(8)]
    data = [{"image": _save(tmp_path / f"{seed}.png", array), "label": seed} for seed, array in enumerate(arrays)]
    CachedImages(data[:6], 20, cache_dir=tmp_path / "cache", num_workers=1).load()
    decoded.clear()
    added = CachedImages(data[:7], 20, cache_dir=tmp_path / "cache").load()
    assert decoded == ["6.png"] and len(added.images) == 7
    for order in ([2, 3, 4], [5, 0, 3], [6, 5, 4, 3, 2, 1, 0], [4, 4, 1], [3]):
        part = CachedImages([data[i] for i in order], 20, cache_dir=tmp_path / "cache")
        np.testing.assert_array_equal(part.images.numpy(), np.stack([arrays[i] for i in order]))
        np.testing.assert_array_equal(
            part.gather(np.array([0, -1])).numpy(), np.stack([arrays[i] for i in order])[[0, -1]]
        )
        assert part[-1]["label"] == order[-1] and torch.equal(part[-1]["image"], part.images[-1])
        loader = DataLoader(part, batch_sampler=EpochBatchSampler(len(order), 1, 0), collate_fn=batched)
        for batch in loader:
            np.testing.assert_array_equal(batch["image"][0].numpy(), arrays[batch["label"].item()])
    assert decoded == ["6.png"]


def test_same_content_several_times(tmp_path: Path, decoded: list[str]) -> None:
    for name in "abc":
        _save(tmp_path / f"{name}.png", _noise(20, 20, seed=int(name == "c")))
    data = [{"image": str(tmp_path / f"{name}.png")} for name in "abcab"]
    expected = CachedImages(data, 20).images
    for _ in range(2):
        assert torch.equal(CachedImages(data, 20, cache_dir=tmp_path / "cache").images, expected)
    decoded.clear()
    assert torch.equal(CachedImages(data[::-1], 20, cache_dir=tmp_path / "cache").images, expected.flip(0))
    assert decoded == []


def test_items_of_a_cache_are_copies(tmp_path: Path) -> None:
    cached = CachedImages([{"image": _noise(8, 8)}], 8, cache_dir=tmp_path)
    before = cached.images.clone()
    for part in (cached[0]["image"], cached.__getitems__([0])["image"], cached.gather([0])):
        part.zero_()
    assert torch.equal(cached.images, before)
    cached.images.zero_()  # a mistake, but it stays within this process
    assert torch.equal(CachedImages([{"image": _noise(8, 8)}], 8, cache_dir=tmp_path).images, before)


@pytest.mark.parametrize("restore", [False, True], ids=["changed", "changed_and_back"])
def test_file_that_changes_while_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restore: bool) -> None:
    data = [{"image": _save(tmp_path / f"{seed}.png", _noise(20, 20, seed=seed))} for seed in range(3)]
    content = (tmp_path / "1.png").read_bytes()
    real = dataset.read_image

    def read_image(path: str, *args: Any, **more: Any) -> np.ndarray:
        if Path(path).name == "1.png":
            _save(Path(path), _noise(20, 21, seed=7))
        array = real(path, *args, **more)
        if restore and Path(path).name == "1.png":
            Path(path).write_bytes(content)
        return array

    for cache_dir in (None, tmp_path / "cache"):
        with monkeypatch.context() as patch:
            patch.setattr(dataset, "read_image", read_image)
            with pytest.raises(ValueError, match=r"^1 of 3 images .*cannot read image .*1\.png: it is being changed$"):
                CachedImages(data, 20, cache_dir=cache_dir).load()
            (tmp_path / "1.png").write_bytes(content)
            left = CachedImages(data, 20, on_error="skip", cache_dir=cache_dir).load()
        assert left.ids == ["0", "2"] and left.skipped[0]["reason"].endswith("1.png: it is being changed")
        np.testing.assert_array_equal(left.images.numpy(), np.stack([_noise(20, 20, seed=seed) for seed in (0, 2)]))
        (tmp_path / "1.png").write_bytes(content)
    assert next((tmp_path / "cache").glob("*.images")).stat().st_size == 2 * 3 * 20 * 20
    cached = CachedImages(data, 20, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(cached.images.numpy(), np.stack([_noise(20, 20, seed=seed) for seed in range(3)]))


def test_file_that_is_replaced_while_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new photograph, in the end: once is no reason to leave it out."""
    path, times = _save(tmp_path / "0.png", _noise(20, 20)), []
    real = dataset.read_image

    def read_image(path: str, *args: Any, **more: Any) -> np.ndarray:
        array = real(path, *args, **more)
        times.append(path)
        if len(times) == 1:
            _save(Path(path), _noise(20, 20, seed=7))
        return array

    monkeypatch.setattr(dataset, "read_image", read_image)
    cached = CachedImages([{"image": path}], 20, cache_dir=tmp_path / "cache").load()
    np.testing.assert_array_equal(cached.images[0].numpy(), _noise(20, 20, seed=7))
    assert len(times) == 2


def test_file_that_vanishes_while_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [{"image": _save(tmp_path / f"{seed}.png", _noise(20, 20, seed=seed))} for seed in range(2)]
    real = dataset.read_image

    def read_image(path: str, *args: Any, **more: Any) -> np.ndarray:
        array = real(path, *args, **more)
        if Path(path).name == "0.png":
            Path(path).unlink()
        return array

    monkeypatch.setattr(dataset, "read_image", read_image)
    with pytest.raises(ValueError, match=r"^1 of 2 images cannot be loaded: image file not found: .*0\.png$"):
        CachedImages(data, 20, cache_dir=tmp_path / "cache").load()


def test_full_disk_ends_the_load_and_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    data = [{"image": _save(tmp_path / f"{seed}.png", _noise(20, 20, seed=seed))} for seed in range(4)]
    real = image_cache._write

    def write(file: Any, path: Path, position: int, content: memoryview) -> None:
        if path.suffix == ".images" and position >= 2 * 1200:
            raise OSError(28, "No space left on device", str(path))
        real(file, path, position, content)

    expected = CachedImages(data, 20).images
    cached = CachedImages(data, 20, cache_dir=tmp_path / "cache", num_workers=1, on_error="skip")
    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "_write", write)
        with pytest.raises(OSError, match=r"No space left on device: .*\.images"):
            cached.load()
    decoded.clear()
    assert torch.equal(cached.images, expected)  # once there is space
    assert decoded == ["2.png", "3.png"]


# A fresh process that makes others, which begin at once: none of the test's threads is in them.
INTERRUPTED = """
import os, random, signal, sys
import torch
from conrec_monai.data import CachedImages, image_cache

def die_in_write(number, random):
    real, writes = image_cache._write, iter(range(10**6))
    def write(file, path, position, content):
        if next(writes) == number:
            if random.random() < 0.3:  # at any time from now on
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + random.random() * 2e-3)
            else:  # with a part of it written
                real(file, path, position, content[: random.randint(0, len(content))])
                os.kill(os.getpid(), signal.SIGKILL)
        real(file, path, position, content)
    image_cache._write = write

torch.set_num_threads(1)
data = [{"image": f"{sys.argv[1]}/{index}.jpg"} for index in range(60)]
for seed in range(8):
    child = os.fork()
    if not child:
        die_in_write(random.Random(seed).randint(1, 14), random.Random(seed + 100))
        CachedImages(data, 16, num_workers=3, cache_dir=sys.argv[2], progress=False).load()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

TOGETHER = """
import os, sys
import torch
from conrec_monai.data import CachedImages, dataset

torch.set_num_threads(1)
data = [{"image": f"{sys.argv[1]}/{index}.jpg"} for index in range(60)]
start, go = os.pipe()
children = []
for number in range(3):
    children.append(os.fork())
    if not children[-1]:
        decoded, real = [], dataset.read_image
        dataset.read_image = lambda path, *args, **more: decoded.append(path) or real(path, *args, **more)
        os.read(start, 1)
        cached = CachedImages(data, 16, cache_dir=sys.argv[2], progress=False).load()
        torch.save({"images": cached.images.clone(), "decoded": len(decoded)}, f"{sys.argv[2]}/{number}.pt")
        os._exit(0)
os.write(go, b"123")
print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("photographs")
    return [{"image": _save(folder / f"{seed}.jpg", _noise(40, 50, seed=seed))} for seed in range(60)]


def _run(script: str, photographs: list[dict[str, Any]], cache: Path) -> list[int]:
    arguments = [sys.executable, "-c", script, str(Path(photographs[0]["image"]).parent), str(cache)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [int(code) for code in done.stdout.split()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_killed_while_writing(photographs: list[dict[str, Any]], tmp_path: Path, decoded: list[str]) -> None:
    codes = _run(INTERRUPTED, photographs, tmp_path)
    assert len(codes) == 8 and set(codes) <= {-9, -14, 0} and codes.count(-9) >= 3  # killed; by the alarm; in time
    cached = CachedImages(photographs, 16, cache_dir=tmp_path).load()
    count = len(decoded)
    assert 0 < count < 60  # the interrupted work is used
    assert torch.equal(cached.images, CachedImages(photographs, 16).images)
    again = CachedImages(photographs, 16, cache_dir=tmp_path).load()
    assert len(decoded) == count + 60 and torch.equal(again.images, cached.images)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_processes_share_the_work(photographs: list[dict[str, Any]], tmp_path: Path) -> None:
    assert _run(TOGETHER, photographs, tmp_path) == [0, 0, 0]
    results = [torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(3)]
    expected = CachedImages(photographs, 16).images
    assert all(torch.equal(result["images"], expected) for result in results)
    assert sorted(result["decoded"] for result in results) == [0, 0, 60]
    assert next(tmp_path.glob("*.images")).stat().st_size == 60 * 3 * 16 * 16
    assert next(tmp_path.glob("*.index")).stat().st_size == 60 * (32 + 220 + 4)


# --- EpochBatchSampler ------------------------------------------------------------------------------------------------


def test_order_is_a_function_of_seed_and_epoch() -> None:
    sampler = EpochBatchSampler(10, 3, seed=5)
    first, second = list(sampler), list(sampler)
    assert (sampler.epoch, sampler.batch) == (2, 0)
    expected = np.random.RandomState([5, 0]).permutation(10)
    assert first == [expected[:3].tolist(), expected[3:6].tolist(), expected[6:9].tolist()]
    assert first != second and all(type(index) is int for batch in first for index in batch)
    assert list(EpochBatchSampler(10, 3, seed=5)) == first
    assert list(EpochBatchSampler(10, 3, seed=6)) != first
    sampler.set_position(1)
    assert list(sampler) == second


@given(
    length=st.integers(1, 30),
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
    drop_last=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_resuming_anywhere_continues_the_run(
    length: int, data: st.DataObject, seed: int, epoch: int, drop_last: bool
) -> None:
    batch_size = data.draw(st.integers(1, length))
    straight = EpochBatchSampler(length, batch_size, seed, drop_last)
    straight.set_position(epoch)
    run = list(straight) + list(straight)
    assert len(run) == 2 * len(straight)
    one_epoch = sorted(index for batch in run[: len(straight)] for index in batch)
    assert one_epoch == list(range(length)) if not drop_last else len(set(one_epoch)) == len(straight) * batch_size
    done = data.draw(st.integers(0, 2 * len(straight) - 1))
    resumed = EpochBatchSampler(length, batch_size, seed, drop_last)
    epochs, batch = divmod(done, len(resumed))
    resumed.set_position(epoch + epochs, batch)
    rest = list(resumed)
    while resumed.epoch < epoch + 2:
        rest += list(resumed)
    assert rest == run[done:]


def test_last_batch() -> None:
    assert [len(batch) for batch in EpochBatchSampler(10, 4, 0)] == [4, 4]
    sampler = EpochBatchSampler(10, 4, 0, drop_last=False)
    assert len(sampler) == 3 and [len(batch) for batch in sampler] == [4, 4, 2]


def test_abandoned_iteration_stays_and_new_position_wins() -> None:
    sampler = EpochBatchSampler(6, 2, 0)
    sampler.set_position(3, 1)
    next(iter(sampler))
    assert (sampler.epoch, sampler.batch) == (3, 1)
    for _ in sampler:
        sampler.set_position(8, 2)
    assert (sampler.epoch, sampler.batch) == (8, 2)
    assert len(sampler) == 3 and len(list(sampler)) == 1 and sampler.epoch == 9


def test_sampler_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="^batch_size 16 is larger than the number of items, 10$"):
        EpochBatchSampler(10, 16, 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        EpochBatchSampler(10, 0, 0)
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match="seed must be from 0"):
            EpochBatchSampler(10, 2, seed)
    sampler = EpochBatchSampler(10, 3, 0)
    with pytest.raises(ValueError, match=r"batch must be from 0 to 2 \(an epoch has 3 batches\), got 3"):
        sampler.set_position(0, 3)
    with pytest.raises(ValueError, match="epoch must be from 0"):
        sampler.set_position(-1)
