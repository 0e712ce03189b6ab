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

from .embedding import central_part, embed
from .evaluate import evaluate, format_table, untrained_encoders
from .folds import complete_groups, make_folds, official_folds
from .knn import knn_evaluation, knn_predictions
from .linear import cumulative_labels, linear_evaluation, linear_predictions
from .predictions import FoldPrediction, Predictions, class_probabilities, grades_from_probabilities
from .shortcut import shortcut_features

__all__ = [
    "central_part",
    "complete_groups",
    "FoldPrediction",
    "Predictions",
    "class_probabilities",
    "cumulative_labels",
    "embed",
    "evaluate",
    "format_table",
    "grades_from_probabilities",
    "knn_evaluation",
    "knn_predictions",
    "linear_evaluation",
    "linear_predictions",
    "make_folds",
    "official_folds",
    "shortcut_features",
    "untrained_encoders",
]
