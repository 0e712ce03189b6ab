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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.utils.data import DataLoader

from conrec_monai.data import CachedImages, batched
from conrec_monai.engines import PrepareUnitBatch
from conrec_monai.handlers import EmbeddingWriter

ITEMS: list[dict[str, Any]] = [
    {"image": np.full((3, 8, 8), 51 * i, np.uint8), "label": None if i == 1 else i, "id": f"Ä {i}, left"}
    for i in range(5)
]


class Means(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(2, 3))
        return torch.stack([mean[:, 0], 2 * mean[:, 1]], dim=1)


def run(data: list[dict[str, Any]], network: nn.Module, output_dir: Path, seen: int | None = None) -> None:
    images = CachedImages(data[:seen], 8, progress=False)
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(images, batch_size=2, collate_fn=batched),
        network=network,
        prepare_batch=PrepareUnitBatch(),
        decollate=False,
        val_handlers=[EmbeddingWriter(output_dir, data)],
    ).run()


def test_both_files_hold_every_item(tmp_path: Path) -> None:
    run(ITEMS, Means(), tmp_path)
    expected = np.array([[i / 5, 2 * i / 5] for i in range(5)])
    with np.load(tmp_path / "embeddings.npz", allow_pickle=False) as file:
        assert file["embedding"].dtype == np.float32
        np.testing.assert_allclose(file["embedding"], expected, rtol=1e-6)
        assert file["id"].tolist() == [f"Ä {i}, left" for i in range(5)]
        assert file["label"].tolist() == [0, -1, 2, 3, 4]
        assert file["image"].tolist() == [""] * 5
    with (tmp_path / "embeddings.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0]) == ["id", "image", "label", "h_0", "h_1"]
    assert [row["label"] for row in rows] == ["0", "", "2", "3", "4"]
    np.testing.assert_allclose([[float(row["h_0"]), float(row["h_1"])] for row in rows], expected, rtol=1e-6)


def test_representation_that_is_not_finite(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = x.mean(dim=(2, 3))
            return torch.where((mean - 0.4).abs() < 0.01, torch.inf, mean)

    with pytest.raises(ValueError, match="1 representations are not finite, first Ä 2, left"):
        run(ITEMS, Broken(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_number_of_items(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected 5 representations B\[F\], got \(3, 2\)"):
        run(ITEMS, Means(), tmp_path, seen=3)
    assert not list(tmp_path.iterdir())
