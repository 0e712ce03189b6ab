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

from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image

from conrec_monai.handlers import TripletHandler, picture_grid

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

    def output(engine: Engine, batch: int) -> dict[str, torch.Tensor | None]:
        image = torch.full((8, 3, 16, 16), engine.state.iteration / 16)
        return {"image": image, "pred": image + 0.25 if decoder else None, "label": image + 0.5}

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
