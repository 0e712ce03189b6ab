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

from .batch_trainer import BatchTrainer, bfloat16_is_fast, channels_last_is_fast, compilation_pays, memory_format_of
from .evaluator import ConRecEvaluator
from .fine_tuner import FineTuner
from .prepare_batch import PrepareUnitBatch
from .trainer import ConRecTrainer

__all__ = [
    "BatchTrainer",
    "ConRecEvaluator",
    "ConRecTrainer",
    "FineTuner",
    "PrepareUnitBatch",
    "bfloat16_is_fast",
    "channels_last_is_fast",
    "compilation_pays",
    "memory_format_of",
]
