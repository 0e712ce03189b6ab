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

from .audit import audit, audit_page, format_audit
from .calibration import calibrate, graded
from .duplicates import duplicate_groups, merge_groups
from .embedding import central_part, embed, embed_levels
from .evaluate import FINE_TUNED, PROTOCOLS, Candidate, evaluate, untrained_encoders
from .fine_tuning import FineTuneSettings, paper_settings, predict_fine_tuned
from .folds import FoldPlan, complete_groups, make_folds, official_folds, plan_folds, split_parts, subsample
from .knn import knn_evaluation, knn_predictions
from .linear import check_folds, cumulative_labels, linear_evaluation, linear_predictions
from .metrics import metric_names
from .predictions import FoldPrediction, Predictions, class_probabilities, grades_from_probabilities
from .shortcut import color_features, shortcut_features
from .statistics import bootstrap, compare, compare_runs, interval, paired_differences, score
from .store import PredictionStore
from .table import format_table

__all__ = [
    "FINE_TUNED",
    "PROTOCOLS",
    "Candidate",
    "FineTuneSettings",
    "FoldPlan",
    "FoldPrediction",
    "PredictionStore",
    "Predictions",
    "audit",
    "audit_page",
    "bootstrap",
    "calibrate",
    "central_part",
    "check_folds",
    "class_probabilities",
    "color_features",
    "compare",
    "compare_runs",
    "complete_groups",
    "cumulative_labels",
    "duplicate_groups",
    "embed",
    "embed_levels",
    "evaluate",
    "format_audit",
    "format_table",
    "graded",
    "grades_from_probabilities",
    "interval",
    "knn_evaluation",
    "knn_predictions",
    "linear_evaluation",
    "linear_predictions",
    "make_folds",
    "merge_groups",
    "metric_names",
    "official_folds",
    "paired_differences",
    "paper_settings",
    "plan_folds",
    "predict_fine_tuned",
    "score",
    "shortcut_features",
    "split_parts",
    "subsample",
    "untrained_encoders",
]
