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

from .attention_maps import AttentionMapHandler
from .checkpoint import RunCheckpoint, check_resume
from .embeddings import EmbeddingWriter
from .grading import GradingCheckpoint, GradingScores
from .health import HealthMonitor
from .metrics_writer import MetricsWriter
from .pictures import TripletHandler, attention_overlay, picture_grid
from .predictions import PredictionWriter
from .probe import OnlineProbe
from .progress import ProgressHandler
from .validation import EarlyStop, ValidationHandler

__all__ = [
    "AttentionMapHandler",
    "EarlyStop",
    "EmbeddingWriter",
    "GradingCheckpoint",
    "GradingScores",
    "HealthMonitor",
    "MetricsWriter",
    "OnlineProbe",
    "PredictionWriter",
    "ProgressHandler",
    "RunCheckpoint",
    "TripletHandler",
    "ValidationHandler",
    "attention_overlay",
    "check_resume",
    "picture_grid",
]
