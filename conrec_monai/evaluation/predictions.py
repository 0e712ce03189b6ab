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

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["FoldPrediction", "Predictions", "class_probabilities", "grades_from_probabilities"]


def grades_from_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Grades from cumulative probabilities: the number of probabilities above 0.5, less one, and never below grade 0.

    Args:
        probabilities: [N, K] probabilities of grade >= 0, ..., grade >= K - 1.

    Returns:
        [N] grades in 0 .. K - 1.
    """
    return np.maximum((np.asarray(probabilities) > 0.5).sum(axis=1) - 1, 0)


def class_probabilities(cumulative: np.ndarray) -> np.ndarray:
    """Class probabilities from cumulative ones, which binary models fitted one by one need not give in falling order.

    Each cumulative probability is lowered to the smallest before it, so that no class gets less than 0; the first is
    taken as 1.

    Args:
        cumulative: [N, K] probabilities of grade >= 0, ..., grade >= K - 1.

    Returns:
        [N, K] probabilities of the grades; a row sums to 1.
    """
    falling = np.minimum.accumulate(np.asarray(cumulative, dtype=np.float64), axis=1)
    falling[:, 0] = 1
    return falling - np.concatenate([falling[:, 1:], np.zeros((len(falling), 1))], axis=1)


@dataclass(frozen=True)
class FoldPrediction:
    """What a model that was fitted on the training part of a fold says of its test part.

    Attributes:
        test: [n] positions of the test images.
        probabilities: [n, K] class probabilities; a row sums to 1.
        predicted: [n] predicted class: for grades the one of :func:`grades_from_probabilities`, which need not be the
            most probable one.
    """

    test: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of_cumulative(cls, test: np.ndarray, cumulative: np.ndarray) -> FoldPrediction:
        """From cumulative probabilities [n, K] of grades."""
        return cls(test, class_probabilities(cumulative), grades_from_probabilities(cumulative))

    @classmethod
    def of_classes(cls, test: np.ndarray, probabilities: np.ndarray) -> FoldPrediction:
        """From class probabilities [n, K]; the most probable class is predicted, the first of equal ones."""
        return cls(test, probabilities, probabilities.argmax(axis=1))


@dataclass(frozen=True)
class Predictions:
    """Predictions of one model under one protocol, a :class:`FoldPrediction` for each fold, in the order of the folds.

    Attributes:
        folds: the predictions.
        settings: what was chosen in each fold, such as ``{"C": [1.0, 0.1, ...]}``; values that JSON can hold.
    """

    folds: Sequence[FoldPrediction]
    settings: dict[str, list] = field(default_factory=dict)
