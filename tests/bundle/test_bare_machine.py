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

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

from conrec_monai import load_encoder
from conrec_monai.data import phantom_arrays

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "conrec_pretraining"
THERE = ("torch", "numpy", "scikit-learn", "scikit-image", "monai", "pytorch-ignite")


def closure(names: tuple[str, ...]) -> set[str]:
    """The packages that pip would install for these, and no more."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            requirements = [Requirement(text) for text in distribution(name).requires or ()]
            todo += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to the packages of a bare machine."""
    folder = tmp_path_factory.mktemp("packages")
    for name in closure(THERE):
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / top
            if not link.exists():
                link.symlink_to(distribution(name).locate_file(top))
    return folder


def test_the_bundle_trains_where_little_is_installed(packages: Path, tmp_path: Path) -> None:
    """On files, with masking, probe, pictures, health and half precision; and what is not there is not there."""
    for index, array in enumerate(phantom_arrays(40, 32)[0]):
        folder = tmp_path / "data" / ("odd" if index % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.transpose(1, 2, 0)).save(folder / f"{index}.png")
    program = f"""
import importlib.util
for name in ("tqdm", "fire", "nibabel", "pydicom", "mlflow", "tensorboard", "matplotlib", "h5py", "pandas"):
    assert importlib.util.find_spec(name) is None, name
from monai.bundle import run
run(config_file={str(BUNDLE / "configs" / "train.json")!r}, bundle_root={str(BUNDLE)!r},
    dataset_dir={str(tmp_path / "data")!r}, output_dir={str(tmp_path / "out")!r}, cache_dir={str(tmp_path / "cache")!r},
    image_size=32, features=[8, 16], batch_size=8, max_epochs=1, probe_every=1, pictures_every=1, encoder_half=True)
"""
    result = subprocess.run(
        [sys.executable, "-S", "-c", program],  # -S: without the packages of this environment
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "epoch 1/1" in result.stdout + result.stderr and "online probe" in result.stdout + result.stderr
    assert load_encoder(tmp_path / "out" / "encoder.pt").num_features == 16
