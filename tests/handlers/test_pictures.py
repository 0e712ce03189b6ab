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
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image
from skimage.color import rgb2lab
from torch.utils.data import DataLoader

from conrec_monai.data import CachedImages, EpochBatchSampler, batched, load_datalist
from conrec_monai.engines import ConRecTrainer
from conrec_monai.handlers import TripletHandler, attention_overlay, picture_grid
from conrec_monai.handlers.pictures import heat_colors
from conrec_monai.losses import ConRecLoss
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.optimizers import build_optimizer
from conrec_monai.transforms import TwoViews

HEAD, FRAME = 20, 2


def cell(picture: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    """The pixels of an image in the grid, and a check that its frame is white."""
    top, left = HEAD + row * (side + 2 * FRAME), column * (side + 2 * FRAME)
    framed = picture[top : top + side + 2 * FRAME, left : left + side + 2 * FRAME]
    inside = np.zeros(framed.shape[:2], dtype=bool)
    inside[FRAME:-FRAME, FRAME:-FRAME] = True
    assert (framed[~inside] == 255).all()
    return framed[inside].reshape(side, side, 3)


def run(handler: TripletHandler, max_epochs: int, *, decoder: bool = True) -> list[Engine]:
    """Epochs of two batches, whose images hold the number of the iteration / 16."""

    def output(engine: Engine, batch: int) -> list[dict[str, torch.Tensor | None]]:
        image = torch.full((8, 3, 16, 16), engine.state.iteration / 16)
        return [{"image": image, "pred": image + 0.25 if decoder else None, "label": image + 0.5}]

    engine = Engine(output)
    handler.attach(engine)
    engine.run(range(2), max_epochs=max_epochs)
    return engine


def test_grid_of_known_pixels() -> None:
    color = torch.tensor([[[0.0, 1.0], [0.5, 0.25]], [[1.0, 0.0], [0.5, 0.75]], [[0.0, 0.0], [0.5, 0.125]]])
    gray = torch.tensor([[[0.0, 0.2], [0.4, 1.0]]])
    picture = np.asarray(
        picture_grid({"a": torch.stack([color, 1 - color]), "b": torch.stack([gray, gray / 2])}, side=3)
    )
    assert picture.shape == (HEAD + 2 * 8, 2 * 8, 3) and picture.dtype == np.uint8  # 2 px, twice enlarged, framed

    def enlarged(values: list) -> np.ndarray:
        return np.array(values, dtype=np.uint8).repeat(2, 0).repeat(2, 1)

    np.testing.assert_array_equal(
        cell(picture, 0, 0, 4), enlarged([[[0, 255, 0], [255, 0, 0]], [[128, 128, 128], [64, 191, 32]]])
    )
    np.testing.assert_array_equal(
        cell(picture, 1, 0, 4), enlarged([[[255, 0, 255], [0, 255, 255]], [[128, 128, 128], [191, 64, 223]]])
    )
    np.testing.assert_array_equal(cell(picture, 0, 1, 4), enlarged([[[0] * 3, [51] * 3], [[102] * 3, [255] * 3]]))
    np.testing.assert_array_equal(cell(picture, 1, 1, 4), enlarged([[[0] * 3, [26] * 3], [[51] * 3, [128] * 3]]))


def test_grid_has_a_title_above_each_column() -> None:
    images = torch.zeros(1, 3, 64, 64)
    picture = np.asarray(picture_grid({"input": images, "target": images, "": images}))
    assert picture.shape == (HEAD + 132, 3 * 132, 3)
    dark = (picture[:HEAD] < 128).all(axis=2).reshape(HEAD, 3, 132)
    assert dark[:, 0].any() and dark[:, 1].any() and not dark[:, 2].any()
    assert not dark[:, :, :30].any() and not dark[:, :, -30:].any()  # centered


def test_grid_of_large_and_out_of_range_images() -> None:
    images = torch.full((1, 3, 200, 200), -0.5, dtype=torch.bfloat16, requires_grad=True)
    picture = np.asarray(picture_grid({"a": images, "b": torch.full((1, 3, 200, 200), 1.5)}))
    assert (cell(picture, 0, 0, 200) == 0).all() and (cell(picture, 0, 1, 200) == 255).all()


# --- attention --------------------------------------------------------------------------------------------------------


def test_heat_grows_lighter_evenly() -> None:
    colors = heat_colors(torch.linspace(0, 1, 256).reshape(1, 1, 1, 256))
    assert colors.shape == (1, 3, 1, 256) and colors.min() >= 0 and colors.max() <= 1
    lightness = rgb2lab(colors[0].permute(1, 2, 0).double().numpy())[0, :, 0]
    np.testing.assert_allclose(lightness, np.linspace(10, 90, 256), atol=0.1)
    outside = heat_colors(torch.tensor([[[[-1.0, 2.0]]]]))
    assert torch.equal(outside, colors[..., [0, 255]])


def test_overlay_by_hand() -> None:
    images = torch.tensor([[[[1.0, 0.5]], [[0.0, 0.5]], [[0.0, 0.5]]], [[[0.0, 0.0]]] * 3])  # 2 x 3 x 1 x 2
    maps = torch.tensor([[[[0.2, 0.05]]], [[[0.01, 0.04]]]])
    heat = heat_colors(torch.tensor([[[[1.0, 0.25]]], [[[0.25, 1.0]]]]))  # of its own maximum
    gray = torch.tensor([[[[0.299, 0.5]]], [[[0.0, 0.0]]]])
    torch.testing.assert_close(attention_overlay(images, maps, 0.25), 0.75 * gray + 0.25 * heat)
    torch.testing.assert_close(attention_overlay(images[:, :1], maps, 1.0), heat)
    torch.testing.assert_close(attention_overlay(images[:1, :1], maps[:1], 0.0), images[:1, :1].expand(1, 3, 1, 2))


def test_overlay_enlarges_the_map_smoothly() -> None:
    maps = torch.tensor([[[[0.0, 1.0]]]])
    overlay = attention_overlay(torch.zeros(1, 1, 4, 8), maps, 1.0)
    expected = torch.tensor([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])  # bilinear between the centers
    torch.testing.assert_close(overlay, heat_colors(expected.expand(1, 1, 4, 8)))
    assert torch.isfinite(attention_overlay(torch.zeros(1, 1, 4, 8), 0 * maps)).all()


@pytest.mark.parametrize(
    ("images", "maps"),
    [
        ((3, 8, 8), (3, 1, 2, 2)),
        ((2, 4, 8, 8), (2, 1, 2, 2)),
        ((2, 3, 8, 8), (2, 3, 2, 2)),
        ((2, 3, 8, 8), (1, 1, 2, 2)),
    ],
)
def test_overlay_of_other_shapes(images: tuple, maps: tuple) -> None:
    with pytest.raises(ValueError, match="expected images BCHW of 1 or 3 channels and maps B1hw"):
        attention_overlay(torch.zeros(images), torch.zeros(maps))


def trained(tmp_path: Path, pooling: str, masked_views: int = 2, **more: Any) -> ConRecTrainer:
    images = CachedImages(load_datalist("phantom:n=32,size=32"), 32, progress=False)
    torch.manual_seed(0)
    network = ConRecUNet(features=(4, 8), pooling=pooling)
    network.encoder.levels[0].eval()
    handler = TripletHandler(tmp_path, 1, count=2, encoder=network.encoder, **more)
    trainer = ConRecTrainer(
        "cpu",
        2,
        DataLoader(images, batch_sampler=EpochBatchSampler(32, 16, 0), collate_fn=batched),
        network,
        build_optimizer("lars", network, 0.3),
        ConRecLoss(),
        TwoViews(32, masked_views).set_random_state(0),
        False,
        train_handlers=[handler],
    )
    trainer.run()
    return trainer


@pytest.mark.parametrize(("masked_views", "first"), [(2, 0), (1, 16)])
def test_attention_column_of_a_training(tmp_path: Path, masked_views: int, first: int) -> None:
    """Inputs beside their own targets: the second views where these alone are restored."""
    trainer = trained(tmp_path, "attention", masked_views)
    assert trainer.network.training and trainer.network.encoder.pool.training
    picture = np.asarray(Image.open(tmp_path / "epoch_0002.png"))
    assert picture.shape == (HEAD + 2 * 132, 4 * 132, 3)
    (output,) = trainer.state.output
    shown, target = output["image"][first:][:2], output["label"][first:][:2]
    assert len(output["pred"]) == 32 - first and not torch.equal(shown, target)
    with torch.no_grad():
        maps = trainer.network.encoder.eval().attention_map(shown)
    columns = [shown, attention_overlay(shown, maps), output["pred"], target]
    for column, x in enumerate(columns):
        for row in range(2):
            expected = (x[row].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy().repeat(4, 0).repeat(4, 1)
            found = cell(picture, row, column, 128).astype(int)
            assert np.abs(found - expected).max() <= 1, (row, column)


def test_no_attention_column_for_another_pooling(tmp_path: Path) -> None:
    trained(tmp_path, "average")
    assert np.asarray(Image.open(tmp_path / "epoch_0001.png")).shape == (HEAD + 2 * 132, 3 * 132, 3)


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def logged(folder: Path) -> dict[int, np.ndarray]:
    """The pictures of a TensorBoard folder by their step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["pictures"]
    return {
        event.step: np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        for event in events.Images("pictures")
    }


def test_same_pictures_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    handler = TripletHandler(tmp_path / "pictures", 2, count=2, log_dir=tmp_path / "tensorboard")
    assert not (tmp_path / "tensorboard").exists()
    run(handler, 5)
    found = logged(tmp_path / "tensorboard")
    assert list(found) == [1, 2, 4, 5]
    for epoch, picture in found.items():
        np.testing.assert_array_equal(picture, Image.open(tmp_path / "pictures" / f"epoch_{epoch:04d}.png"))


def test_own_summary_writer_stays_open(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(str(tmp_path / "log")) as writer:
        run(TripletHandler(tmp_path / "pictures", 1, summary_writer=writer), 1)
        assert writer.file_writer is not None
    assert list(logged(tmp_path / "log")) == [1]


def test_tensorboard_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ValueError, match=r'log_dir needs TensorBoard: pip install "conrec-monai\[tracking\]"'):
        TripletHandler(tmp_path, log_dir=tmp_path)
    TripletHandler(tmp_path)
    with pytest.raises(ValueError, match="one of log_dir and summary_writer, got both"):
        TripletHandler(tmp_path, log_dir=tmp_path, summary_writer=object())


# --- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "max_epochs", "expected"),
    [(3, 8, [1, 3, 6, 8]), (1, 3, [1, 2, 3]), (20, 1, [1]), (2, 4, [1, 2, 4]), (20, 5, [1, 5])],
)
def test_epochs_with_a_picture(every: int, max_epochs: int, expected: list[int], tmp_path: Path) -> None:
    run(TripletHandler(tmp_path / "deep" / "pictures", every, count=1), max_epochs)
    files = sorted(file.name for file in (tmp_path / "deep" / "pictures").iterdir())
    assert files == [f"epoch_{epoch:04d}.png" for epoch in expected]


def test_picture_shows_the_last_batch(tmp_path: Path) -> None:
    run(TripletHandler(tmp_path, 1, count=3), 2)
    for epoch in (1, 2):
        picture = np.asarray(Image.open(tmp_path / f"epoch_{epoch:04d}.png"))
        assert picture.shape == (HEAD + 3 * 132, 3 * 132, 3)
        for column in range(3):  # input, reconstruction, target
            value = round(255 * (2 * epoch / 16 + column / 4))
            for row in range(3):
                assert (cell(picture, row, column, 128) == value).all(), (epoch, row, column)


def test_restored_second_views_beside_their_targets(tmp_path: Path) -> None:
    def output(engine: Engine, batch: int) -> list[dict[str, torch.Tensor]]:
        image = torch.arange(8).reshape(8, 1, 1, 1).expand(8, 3, 16, 16) / 32
        return [{"image": image, "pred": image[4:] + 0.25, "label": image + 0.5}]

    engine = Engine(output)
    TripletHandler(tmp_path, count=6).attach(engine)
    engine.run(range(1), max_epochs=1)
    picture = np.asarray(Image.open(tmp_path / "epoch_0001.png"))
    assert picture.shape == (HEAD + 4 * 132, 3 * 132, 3)  # no more than there are
    for column in range(3):
        for row in range(4):
            value = round(255 * ((4 + row) / 32 + column / 4))
            assert (cell(picture, row, column, 128) == value).all(), (row, column)


def test_without_decoder_two_columns(tmp_path: Path) -> None:
    run(TripletHandler(tmp_path), 1, decoder=False)
    picture = np.asarray(Image.open(tmp_path / "epoch_0001.png"))
    assert picture.shape == (HEAD + 6 * 132, 2 * 132, 3)
    assert (cell(picture, 5, 0, 128) == round(255 * 2 / 16)).all()
    assert (cell(picture, 5, 1, 128) == round(255 * (2 / 16 + 0.5))).all()


def test_none(tmp_path: Path) -> None:
    run(TripletHandler(tmp_path / "pictures", every=0), 3)
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(("every", "count"), [(-1, 6), (1, 0)])
def test_values_out_of_range(every: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"got {every} and {count}"):
        TripletHandler("pictures", every, count)
