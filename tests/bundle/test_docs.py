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

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "conrec_pretraining"


def documented(section: str) -> dict[str, str]:
    """Keys and defaults of the table in a section of the bundle's page."""
    text = (BUNDLE / "docs" / "README.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE))


def test_every_setting_is_documented_with_its_default():
    config = json.loads((BUNDLE / "configs" / "train.json").read_text())
    recipes = config["recipes"]
    settings = {k for k in config["settings"] if not k.startswith("_") and k not in ("function", "device")}
    settings -= set(recipes["paper"])
    rows = documented("Train")
    assert settings == set(rows)
    words = {"recipe", "resize", "pooling", "on_error", "amp", "channels_last", "compile"}
    for name in settings - {"dataset_dir", "output_dir", "in_channels"}:
        assert (rows[name] if name in words else json.loads(rows[name])) == config[name], name


def test_recipes_are_documented():
    config = json.loads((BUNDLE / "configs" / "train.json").read_text())
    text = (BUNDLE / "docs" / "README.md").read_text().split("## Recipes\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", text, re.MULTILINE)
    shown = {recipe: {row[0]: row[place] for row in rows} for place, recipe in ((1, "fundus"), (2, "paper"))}
    expected = {
        recipe: {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
        for recipe, values in config["recipes"].items()
    }
    assert shown == expected


def test_every_setting_of_the_evaluation_is_documented_with_its_default():
    config = json.loads((BUNDLE / "configs" / "evaluate.json").read_text())
    rows = documented("Evaluate")
    settings = set(config["evaluation"]) - {"_target_", "function", "output_dir"}
    assert set(rows) == settings - {"device"}
    for name in settings - {"checkpoint", "dataset_dir", "device"}:
        assert (rows[name] if name == "on_error" else json.loads(rows[name])) == config[name], name


def test_metadata_fits_the_tested_versions():
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    assert metadata["version"] in metadata["changelog"]
    for name in ("monai", "pytorch", "numpy"):
        assert metadata[f"{name}_version"] == tested["torch" if name == "pytorch" else name]
    for name, version in metadata["required_packages_version"].items():
        assert name == "conrec-monai" or tested[name] == version, name
