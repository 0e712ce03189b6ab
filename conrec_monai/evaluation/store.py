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

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conrec_monai.networks.utils import write_in_one_step

from .predictions import FoldPrediction, Predictions

__all__ = ["FoldStore", "PredictionStore", "digest", "read_predictions"]


def digest(*values: Any) -> str:
    """A name for arrays and plain values: 24 hexadecimal digits of their SHA-256."""
    sha = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            sha.update(f"{value.dtype.str}{value.shape}".encode())
            sha.update(np.ascontiguousarray(value).tobytes())
        else:
            sha.update(json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
        sha.update(b"\0")
    return sha.hexdigest()[:24]


def read_predictions(path: str | os.PathLike) -> Predictions:
    """Reads a file of a :class:`PredictionStore`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            settings = json.loads(str(file["settings"]))
            count = sum(name.startswith("test_") for name in file.files)
            folds = [
                FoldPrediction(file[f"test_{i}"], file[f"probabilities_{i}"], file[f"predicted_{i}"])
                for i in range(count)
            ]
    except FileNotFoundError:
        raise FileNotFoundError(f"no predictions at {path}") from None
    except Exception:  # damaged bytes make numpy raise nearly anything
        raise ValueError(f"{path} cannot be read (truncated or damaged?)") from None
    return Predictions(folds, settings)


class PredictionStore:
    """Keeps predictions in a folder, so that an evaluation that was interrupted goes on where it stopped.

    A file is found by a digest of all that its numbers depend on; so nothing stale is ever taken. Files are .npz of
    plain arrays (``test_0``, ``probabilities_0``, ``predicted_0``, ..., one of each per fold, and ``settings``, JSON),
    written in one step. A file that cannot be read counts as absent.

    Args:
        folder: of the files; it is made with the first of them.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    def path(self, key: Mapping[str, Any]) -> Path:
        """The file of the predictions that depend on these values."""
        return self.folder / f"{digest(dict(key))}.npz"

    def get(self, key: Mapping[str, Any]) -> Predictions | None:
        """The predictions, or None where they are not there."""
        try:
            return read_predictions(self.path(key))
        except (OSError, ValueError):
            return None

    def put(self, key: Mapping[str, Any], predictions: Predictions) -> None:
        """Keeps the predictions."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, np.ndarray] = {"settings": np.array(json.dumps(predictions.settings))}
        for i, fold in enumerate(predictions.folds):
            arrays[f"test_{i}"] = np.asarray(fold.test)
            arrays[f"probabilities_{i}"] = np.asarray(fold.probabilities)
            arrays[f"predicted_{i}"] = np.asarray(fold.predicted)
        write_in_one_step(self.path(key), lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))

    def of_folds(self, key: Mapping[str, Any]) -> FoldStore:
        """What is kept of a training fold by fold, until the predictions of all folds are."""
        return FoldStore(self, key)


class FoldStore:
    """Keeps the predictions of the folds that are trained, and the state of the training under way (.pt beside them).

    Args:
        store: where the predictions are kept.
        key: what they depend on.
    """

    def __init__(self, store: PredictionStore, key: Mapping[str, Any]) -> None:
        self.store, self.key = store, dict(key)

    def _state_path(self, fold: int) -> Path:
        return self.store.path({**self.key, "fold": fold}).with_suffix(".pt")

    def prediction(self, fold: int) -> FoldPrediction | None:
        """The prediction of a fold, by its number from 0; None where it is not there."""
        found = self.store.get({**self.key, "fold": fold})
        return found.folds[0] if found is not None and len(found.folds) == 1 else None

    def put_prediction(self, fold: int, prediction: FoldPrediction) -> None:
        """Keeps the prediction of a fold, whose training is over."""
        self.store.put({**self.key, "fold": fold}, Predictions([prediction]))
        self._state_path(fold).unlink(missing_ok=True)

    def state(self, fold: int) -> dict[str, Any] | None:
        """The state of a fold's training; None where it is not there, or cannot be read."""
        try:
            found = torch.load(self._state_path(fold), map_location="cpu", weights_only=True)
        except Exception:  # damaged bytes make torch raise nearly anything
            return None
        return found if isinstance(found, dict) else None

    def put_state(self, fold: int, state: Mapping[str, Any]) -> None:
        """Keeps the state of a fold's training: tensors and plain values."""
        self.store.folder.mkdir(parents=True, exist_ok=True)
        write_in_one_step(self._state_path(fold), lambda file: torch.save(dict(state), file))
