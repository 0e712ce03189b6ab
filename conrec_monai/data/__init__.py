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

from .datalist import DR_GRADES, Datalist, DatalistInfo, load_datalist, write_manifest
from .dataset import CachedImages, EpochBatchSampler, batched
from .image_reader import count_frames, read_image
from .phantom import fundus_phantom, phantom_arrays
from .preprocessing import FitImage, ReadImage, image_preprocessing, load_preprocessing
from .stream import ImageStream, image_files
from .synthetic import circle_square_arrays, rectangle_triangle_arrays

__all__ = [
    "DR_GRADES",
    "CachedImages",
    "Datalist",
    "DatalistInfo",
    "EpochBatchSampler",
    "FitImage",
    "ImageStream",
    "ReadImage",
    "batched",
    "circle_square_arrays",
    "count_frames",
    "fundus_phantom",
    "image_files",
    "image_preprocessing",
    "load_datalist",
    "load_preprocessing",
    "phantom_arrays",
    "read_image",
    "rectangle_triangle_arrays",
    "write_manifest",
]
