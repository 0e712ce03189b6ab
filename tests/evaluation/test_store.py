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

from conrec_monai.evaluation import FoldPrediction, Predictions, PredictionStore
from conrec_monai.evaluation.store import digest


def predictions() -> Predictions:
    generator = np.random.default_rng(0)
    folds = [FoldPrediction.of_classes(np.arange(i, i + 4), generator.dirichlet(np.ones(3), 4)) for i in range(12)]
    return Predictions(folds, {"C": [0.1] * 12, "name": ["ä"]})


def test_predictions_come_back_bit_by_bit(tmp_path: Path) -> None:
    store, key = PredictionStore(tmp_path / "new"), {"model": "a", "fold": 0}
    assert store.get(key) is None and not (tmp_path / "new").exists()
    kept = predictions()
    store.put(key, kept)
    found = store.get(dict(reversed(key.items())))
    assert found is not None and found.settings == kept.settings and len(found.folds) == 12
    for a, b in zip(kept.folds, found.folds, strict=True):
        for name in ("test", "probabilities", "predicted"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert store.get({**key, "fold": 1}) is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == [store.path(key).name]


def test_what_cannot_be_read_is_not_there(tmp_path: Path) -> None:
    store, key = PredictionStore(tmp_path), {"model": "a"}
    store.put(key, predictions())
    whole = store.path(key).read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        store.path(key).write_bytes(content)
        assert store.get(key) is None
    np.savez(store.path(key), settings=np.array("{"))
    assert store.get(key) is None
    store.put(key, predictions())
    assert store.get(key) is not None


def test_digest_tells_apart_what_differs() -> None:
    values = [
        (np.arange(4),),
        (np.arange(4.0),),
        (np.arange(4).reshape(2, 2),),
        (np.arange(2), np.arange(2, 4)),
        ({"a": 1},),
        ({"a": 1.5},),
        ({"a": None},),
        ("a", "b"),
        ("ab",),
    ]
    digests = [digest(*value) for value in values]
    assert len(set(digests)) == len(values) and all(len(d) == 24 for d in digests)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
