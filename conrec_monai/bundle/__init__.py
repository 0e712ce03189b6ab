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

from .evaluation import evaluate_checkpoints
from .grading import (
    check_grading,
    grade_names,
    grading_data,
    grading_loss,
    grading_settings,
    grading_split,
    load_start,
)
from .grading_inference import Grader, check_grading_inference, evaluate_grader, grading_files, load_grader
from .inference import InferenceEncoder, check_inference, load_for_inference
from .training import (
    check_network,
    check_output_dir,
    check_training,
    checked_datalist,
    decode,
    decode_training,
    pretraining_data,
    probe_data,
    recipe_values,
    training_settings,
)
from .user_errors import check_overrides, guarded

__all__ = [
    "Grader",
    "InferenceEncoder",
    "check_grading",
    "check_grading_inference",
    "check_inference",
    "check_network",
    "check_output_dir",
    "check_overrides",
    "check_training",
    "checked_datalist",
    "decode",
    "decode_training",
    "evaluate_checkpoints",
    "evaluate_grader",
    "grade_names",
    "grading_data",
    "grading_files",
    "grading_loss",
    "grading_settings",
    "grading_split",
    "guarded",
    "load_for_inference",
    "load_grader",
    "load_start",
    "pretraining_data",
    "probe_data",
    "recipe_values",
    "training_settings",
]
