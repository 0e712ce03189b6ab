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
import math
import re
from pathlib import Path

import pytest
import torch

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


with pytest.MonkeyPatch.context() as path:  # scripts, no package
    path.syspath_prepend(str(EXPERIMENTS))
    sweep, contrast_features = (importlib.import_module(name) for name in ("sweep", "contrast_features"))


@pytest.fixture
def mask() -> torch.Tensor:
    """A square of 32 x 32 of 64 x 64 pixels, of which 24 x 24 are left without its rim."""
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:48, 16:48] = True
    return mask


def contrasts(images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """By image, scale, statistic (mean, three shares of the bright and of the dark part, deviation) and channel."""
    return contrast_features.contrast_features(images, mask).view(len(images), 5, 9, images.shape[1])


def test_flat_images(mask: torch.Tensor) -> None:
    colors = torch.tensor([[0.25, 0.5, 0.75], [1.0, 0.0, 0.125]])
    images = colors[:, :, None, None].expand(2, 3, 64, 64)
    found = contrast_features.color_features(images, mask)
    assert torch.equal(found, torch.cat([colors, torch.zeros(2, 3)], dim=1))
    found = contrasts(images, mask)
    assert torch.allclose(found, torch.zeros(2, 5, 9, 3), atol=1e-6)
    assert not found[:, :, [1, 2, 3, 5, 6, 7]].any()  # no pixel is beyond a threshold


def test_colors_of_two_halves(mask: torch.Tensor) -> None:
    images = torch.full((1, 2, 64, 64), 0.9)  # outside the mask
    images[:, 0, 16:48, 16:48], images[:, 1, 16:48, 16:48] = 0.25, 0.5
    images[:, 0, 16:32, 16:48] = 0.75
    deviation = 0.25 * math.sqrt(1024 / 1023)
    expected = torch.tensor([[0.5, 0.5, deviation, 0.0]])
    assert torch.allclose(contrast_features.color_features(images, mask), expected, atol=1e-6)


def test_a_bright_spot(mask: torch.Tensor) -> None:
    images = torch.zeros(2, 3, 64, 64)
    images[0, 1, 30, 33] = 1
    images[1] = 1 - images[0]  # a dark one
    weights = [math.exp(-(d**2) / (2 * 0.7**2)) for d in (0, 1, 2)]  # 5 pixels wide
    center, near, far = (weight / (weights[0] + 2 * weights[1] + 2 * weights[2]) for weight in weights)
    # The spot, its 4 neighbors, the 4 at its corners; those two pixels away differ by less than the least threshold.
    assert 1 - center**2 > 0.1 and center * near > 0.1 and 0.02 < near**2 < 0.05 and center * far < 0.02
    spread = (center**2 + 2 * near**2 + 2 * far**2) ** 2 - center**4  # of the squares of all others
    bright = [(1 - center**2) / 576, 1 / 576, 1 / 576, 1 / 576]
    dark = [(1 - center**2) / 576, 8 / 576, 4 / 576, 4 / 576]
    found, deviation = contrasts(images, mask)[:, 0], math.sqrt(((1 - center**2) ** 2 + spread) / 576)
    assert found[0, :, 1].tolist() == pytest.approx([*bright, *dark, deviation], rel=1e-4)
    assert found[1, :, 1].tolist() == pytest.approx([*dark, *bright, deviation], rel=1e-4)
    assert torch.allclose(found[:, :, [0, 2]], torch.zeros(2, 9, 2), atol=1e-6)  # the other channels


def test_what_lies_outside_the_mask(mask: torch.Tensor) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    others = torch.where(mask, images, torch.rand(2, 3, 64, 64))
    color = contrast_features.color_features
    assert torch.equal(color(images, mask), color(others, mask))
    # The blurs of the first two scales reach 2 and 4 pixels, no farther than the mask's erosion; the next does.
    found, changed = contrasts(images, mask), contrasts(others, mask)
    assert torch.allclose(found[:, :2], changed[:, :2], atol=1e-6)
    assert (found[:, 2:, 8] - changed[:, 2:, 8]).abs().min() > 1e-6


def test_scales_grow_with_the_image(mask: torch.Tensor) -> None:
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(1, 1, 8, 8), (64, 64), mode="bilinear")
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    full = torch.ones(128, 128, dtype=torch.bool)
    found, grown = contrasts(images, full[:64, :64]), contrasts(large, full)
    assert torch.allclose(found[:, 2:4, 8], grown[:, 2:4, 8], rtol=0.1)


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = tmp_path / "parts_eyes.json"
    sweep.write_parts(str(data / "eyes"), parts)
    assert contrast_features.main([str(parts), "--section", "report", "--sizes", "32", "48"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line.partition(", kappa ")[0] for line in lines]
    assert heads == [f"{size} px, {what} features" for size in (32, 48) for what in ("colors: 6", "contrasts: 135")]
    for line in lines:
        kappa = re.fullmatch(r".*, kappa (-?\d\.\d{3})", line)
        assert kappa and -1 <= float(kappa[1]) <= 1


def test_another_data_set(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted, scored = str(data / "eyes"), str(data / "others")
    assert contrast_features.main([fitted, "--test", fitted, "--sizes", "32"]) == 0
    known = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert contrast_features.main([fitted, "--test", scored, "--sizes", "32"]) == 0
    unknown = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert known[1] > 0.9 and known[1] > unknown[1]  # 135 features fit the images that they are scored on


def test_missing_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert contrast_features.main([str(tmp_path / "parts.json")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: data not found: ") and error.count("\n") == 1
