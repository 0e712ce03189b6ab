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

import pytest
from PIL import Image

from conrec_monai.data.phantom import fundus_phantom


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn photographs of three grades in APTOS's layout: "eyes", 60 and a copy of the first, and "others", 40."""
    folder = tmp_path_factory.mktemp("data")
    for dataset, seeds in (("eyes", [*range(60), 0]), ("others", [*range(100, 140)])):
        (folder / dataset / "train_images").mkdir(parents=True)
        rows = ["id_code,diagnosis"]
        for i in seeds:
            name = f"eye{i}" if len(rows) <= 60 else "copy"
            picture = fundus_phantom(i % 3, 32, i).transpose(1, 2, 0)
            Image.fromarray(picture).save(folder / dataset / f"train_images/{name}.png")
            rows.append(f"{name},{i % 3}")
        (folder / dataset / "train.csv").write_text("\n".join(rows) + "\n")
    return folder
