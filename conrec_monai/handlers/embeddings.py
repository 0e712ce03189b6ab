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
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys

__all__ = ["EmbeddingWriter"]


class EmbeddingWriter:
    """Writes the representations that an evaluator computes: ``embeddings.npz`` and ``embeddings.csv``.

    The npz holds ``embedding`` (float32, N x F), ``id`` and ``image`` (text) and ``label`` (int64, -1 where unknown),
    in the order of the data; it is read with ``numpy.load(path, allow_pickle=False)``. The CSV has the columns id,
    image, label, h_0 .. h_(F - 1). ``image`` is the path, or empty for an image that came in memory.

    Args:
        output_dir: folder of the files; it exists.
        data: items of the data set, in the order in which the evaluator sees them.

    Raises:
        ValueError: at the end, when the evaluator did not give one finite representation B[F] per item; nothing is then
            written.
    """

    def __init__(self, output_dir: str | os.PathLike, data: Sequence[Mapping[str, Any]]) -> None:
        self.output_dir, self.data = Path(output_dir), data
        self._parts: list[np.ndarray] = []

    def attach(self, engine: Engine) -> None:
        """Attaches to a :class:`monai.engines.SupervisedEvaluator` that does not decollate."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._parts = []

    def _collect(self, engine: Engine) -> None:
        self._parts.append(engine.state.output[Keys.PRED].float().cpu().numpy())

    def _write(self, engine: Engine) -> None:
        embedding = np.concatenate(self._parts)
        if embedding.ndim != 2 or len(embedding) != len(self.data):
            raise ValueError(f"expected {len(self.data)} representations B[F], got {embedding.shape}.")
        wrong = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
        if len(wrong):
            raise ValueError(f"{len(wrong)} representations are not finite, first {self.data[wrong[0]]['id']}.")
        labels = [-1 if item.get("label") is None else item["label"] for item in self.data]
        images = ["" if isinstance(item["image"], np.ndarray) else str(item["image"]) for item in self.data]
        ids = [str(item["id"]) for item in self.data]
        npz, table = self.output_dir / "embeddings.npz", self.output_dir / "embeddings.csv"
        np.savez(npz, embedding=embedding, id=np.array(ids), image=np.array(images), label=np.array(labels))
        with table.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "image", "label", *(f"h_{i}" for i in range(embedding.shape[1]))])
            for row, image, label, h in zip(ids, images, labels, embedding, strict=True):
                writer.writerow([row, image, "" if label < 0 else label, *(f"{value:.9g}" for value in h)])
        logging.getLogger("conrec_monai").info(
            f"{len(embedding)} representations of {embedding.shape[1]} numbers written to {npz} and {table.name}"
        )
