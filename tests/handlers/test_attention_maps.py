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

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from conrec_monai.engines import PrepareUnitBatch
from conrec_monai.handlers import AttentionMapHandler, attention_overlay, picture_grid
from conrec_monai.handlers.attention_maps import safe_name
from conrec_monai.networks.nets import ConRecEncoder


class Items(Dataset):
    """Random images, uint8 or in [0, 1], each with an id."""

    def __init__(self, ids: list[str], dtype: torch.dtype = torch.float32, channels: int = 3) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (len(ids), channels, 16, 16), generator=generator, dtype=torch.uint8)
        self.images = images if dtype == torch.uint8 else images.to(dtype) / 255
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "id": self.ids[index], "label": torch.tensor(0)}


@pytest.fixture
def encoder() -> ConRecEncoder:
    torch.manual_seed(0)
    return ConRecEncoder(features=(4, 8))


def infer(data: Any, handler: AttentionMapHandler, encoder: torch.nn.Module, **arguments: Any) -> None:
    loader = DataLoader(data, batch_size=2) if isinstance(data, Dataset) else data
    SupervisedEvaluator("cpu", loader, encoder, val_handlers=[handler], **arguments).run()


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "arguments"),
    [(torch.float32, {}), (torch.uint8, {"prepare_batch": PrepareUnitBatch(), "decollate": False})],
    ids=["default evaluator", "decoded images"],
)
def test_a_picture_of_each_image(dtype: torch.dtype, arguments: dict, encoder: ConRecEncoder, tmp_path: Path) -> None:
    data = Items(["a", "left/b#2.png", "ü"], dtype)
    encoder.levels[0].eval()
    modes = [module.training for module in encoder.modules()]
    handler = AttentionMapHandler(tmp_path / "maps", encoder)
    assert [module.training for module in encoder.modules()] == modes
    infer(data, handler, encoder, **arguments)
    assert files(tmp_path) == ["maps/a.png", "maps/left/b#2.png.png", "maps/ü.png"]
    images = data.images.float() / (255 if dtype == torch.uint8 else 1)
    with torch.no_grad():
        overlays = attention_overlay(images, encoder.eval().attention_map(images))
    for i, name in enumerate(data.ids):
        found = np.asarray(Image.open(tmp_path / "maps" / f"{name}.png")).astype(int)
        assert found.shape == (20 + 260, 2 * 260, 3)  # a title, 256 pixels and a frame
        expected = picture_grid({"image": images[i][None], "attention": overlays[i][None]}, 256)
        assert np.abs(found - np.asarray(expected)).max() <= 1  # another batch rounds differently


def test_gray_metatensors_and_a_scripted_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = ConRecEncoder(1, (4, 8)).eval()
    data = Items(["a", "b"], channels=1)
    batch = {"image": MetaTensor(data.images), "id": data.ids, "label": torch.zeros(2)}
    infer([batch], AttentionMapHandler(tmp_path / "plain", encoder, side=32), encoder, decollate=False)
    scripted = torch.jit.script(encoder)
    infer([batch], AttentionMapHandler(tmp_path / "scripted", scripted, side=32), scripted, decollate=False)
    for name in ("a.png", "b.png"):
        pictures = [np.asarray(Image.open(tmp_path / kind / name)) for kind in ("plain", "scripted")]
        assert pictures[0].shape == (20 + 36, 2 * 36, 3)
        np.testing.assert_array_equal(*pictures)


def test_modes_are_as_before(encoder: ConRecEncoder, tmp_path: Path) -> None:
    encoder.train().levels[0].eval()
    modes = [module.training for module in encoder.modules()]
    handler = AttentionMapHandler(tmp_path, encoder)

    class Engine:
        class state:
            output, batch = {"image": torch.rand(1, 3, 16, 16)}, {"id": ["a"]}

    state = torch.get_rng_state()
    handler._write(Engine())  # type: ignore[arg-type]
    assert [module.training for module in encoder.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state) and files(tmp_path) == ["a.png"]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "left/b", "scan.tif#3", "Öl 1 (2).png", ".hidden", "a..b/c", "眼底"])
def test_safe_names_stay(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("../a", "_/a"),
        ("a/../../b", "a/_/_/b"),
        ("/etc/passwd", "_/etc/passwd"),
        ("a//b/", "a/_/b/_"),
        ("..", "_"),
        ("C:\\x", "C__x"),
        ("a?b*c", "a_b_c"),
        ("a\nb", "a_b"),
        ("a. ", "a"),
        ("x" * 300 + "/" + "é" * 300, "x" * 200 + "/" + "é" * 100),
        ("a\udcff", "a_"),
    ],
)
def test_unsafe_names_are_changed_and_marked(identifier: str, expected: str) -> None:
    assert re.fullmatch(re.escape(expected) + "-[0-9a-f]{10}", safe_name(identifier))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(st.sampled_from("a./\\#: \x00_é\ud800"), min_size=1, max_size=6), min_size=2, unique=True))
def test_no_name_leaves_its_folder_and_no_two_are_the_same(identifiers: list[str]) -> None:
    names = [safe_name(identifier) for identifier in identifiers]
    assert len(set(names)) == len(names)
    for name in names:
        path = Path("/folder") / f"{name}.png"
        assert path.parts[:2] == ("/", "folder") and ".." not in path.parts and len(path.parts) > 2
        name.encode()


def test_ids_that_would_overwrite_each_other(encoder: ConRecEncoder, tmp_path: Path) -> None:
    infer(Items(["a:b", "a?b", "../a", "./a"]), AttentionMapHandler(tmp_path / "maps", encoder), encoder)
    assert len(files(tmp_path / "maps")) == len(files(tmp_path)) == 4


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_encoder_without_attention(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the encoder has pooling 'average': leave the handler out"):
        AttentionMapHandler(tmp_path, ConRecEncoder(features=(4, 8), pooling="average"))
    with pytest.raises(ValueError, match="pools by attention, Linear has none: leave the handler out"):
        AttentionMapHandler(tmp_path, torch.nn.Linear(1, 1))


def test_side(encoder: ConRecEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="side must be positive, got 0"):
        AttentionMapHandler(tmp_path, encoder, side=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, r"needs an 'id' per image in each batch, found \['image', 'label'\]"),
        ({"id": "ab"}, "needs one text as 'id' per image of a batch, found 'ab'"),
        ({"id": ["a"]}, r"per image of a batch, found \['a'\]"),
        ({"id": ["a", 3]}, r"per image of a batch, found \['a', 3\]"),
        ({"id": ["a", ""]}, "expected an identifier, got an empty text"),
        ({"id": ["a", "a"]}, "the id 'a' occurs twice"),
        ({"image": torch.rand(2, 3, 16, 16) * 255 + 1}, r"images BCHW in \[0, 1\], found torch.float32 of shape"),
        ({"image": torch.full((2, 3, 16, 16), float("nan"))}, "nan to nan"),
    ],
)
def test_batches_that_are_wrong(change: dict, message: str, encoder: ConRecEncoder, tmp_path: Path) -> None:
    batch = {"image": torch.rand(2, 3, 16, 16), "id": ["a", "b"], "label": torch.zeros(2), **change}
    batch = {key: value for key, value in batch.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        infer([batch], AttentionMapHandler(tmp_path, encoder), encoder, decollate=False)


def test_second_run_writes_again(encoder: ConRecEncoder, tmp_path: Path) -> None:
    handler = AttentionMapHandler(tmp_path, encoder)
    for _ in range(2):
        infer(Items(["a", "b"]), handler, encoder)
    assert files(tmp_path) == ["a.png", "b.png"]


def test_pictures_of_an_earlier_run_are_removed_and_nothing_else(encoder: ConRecEncoder, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    infer(Items(["a", "left/b", "left/deep/c", "right/d"]), AttentionMapHandler(maps, encoder), encoder)
    (maps / "empty").mkdir()
    (maps / "right" / "notes.txt").write_text("mine")
    (maps / "damaged.png").write_text("no picture")
    Image.new("RGB", (4, 4)).save(maps / "photograph.png")
    (tmp_path / "outside.png").write_bytes((maps / "a.png").read_bytes())
    infer(Items(["x"]), AttentionMapHandler(maps, encoder), encoder)
    assert files(maps) == ["damaged.png", "photograph.png", "right/notes.txt", "x.png"]
    assert not (maps / "left").exists() and (maps / "empty").is_dir() and (tmp_path / "outside.png").exists()
