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

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


with pytest.MonkeyPatch.context() as path:  # scripts, no package
    path.syspath_prepend(str(EXPERIMENTS))
    view_pictures = importlib.import_module("view_pictures")


@pytest.mark.parametrize("recipe", ["paper", "fundus"])
def test_a_picture_of_each_recipe(tmp_path: Path, recipe: str) -> None:
    written = [tmp_path / f"{name}.png" for name in ("a", "b")]
    for path in written:
        arguments = [recipe, "phantom:n=2,size=40", str(path), "--size", "40", "--count", "2"]
        assert view_pictures.main(arguments) == 0
    with Image.open(written[0]) as file:
        assert file.format == "PNG"
        picture = np.asarray(file.convert("RGB"))
    # Four columns and two rows of squares; none of it is empty.
    assert 1.7 * picture.shape[0] < picture.shape[1] < 2.1 * picture.shape[0]
    for rows in np.array_split(picture, 2):
        for cell in np.array_split(rows, 4, axis=1):
            assert len(np.unique(cell.reshape(-1, 3), axis=0)) > 50
    assert written[0].read_bytes() == written[1].read_bytes()  # what is random is seeded


def test_count_is_that_of_the_images(tmp_path: Path) -> None:
    shapes = []
    for count in ("1", "2", "9"):  # of two
        assert view_pictures.main(["paper", "phantom:n=2,size=40", str(tmp_path / "a.png"), "--count", count]) == 0
        with Image.open(tmp_path / "a.png") as file:
            shapes.append(file.size)
    assert shapes[0][1] < shapes[1][1] and shapes[1] == shapes[2]


@pytest.mark.parametrize(
    ("recipe", "dataset", "message"),
    [
        ("papers", "phantom:n=2,size=40", "recipe must be one of paper, fundus, got 'papers'."),
        ("fundus", "nowhere", "data not found: "),
    ],
)
def test_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, dataset: str, message: str) -> None:
    dataset = dataset if ":" in dataset else str(tmp_path / dataset)
    assert view_pictures.main([recipe, dataset, str(tmp_path / "a.png")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {message}") and error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()
