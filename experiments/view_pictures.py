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

"""Draws what a recipe of the bundle shows to the network: image, both views, and what is masked of the second one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common import BUNDLE, interruptible, read_json

from conrec_monai.bundle import recipe_values
from conrec_monai.data import CachedImages, load_datalist
from conrec_monai.evaluation.figures import photographs, to_png
from conrec_monai.transforms import TwoViews, unit_float


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see :func:`common.interruptible` for the exit code."""
    parser = argparse.ArgumentParser(prog="experiments/view_pictures.py", description=__doc__)
    parser.add_argument("recipe", help="its name, such as fundus")
    parser.add_argument("dataset", help="photographs, such as phantom:n=3,size=128")
    parser.add_argument("output", type=Path, help="picture (.png) to write")
    parser.add_argument("--size", type=int, default=128, help="side of the views in pixels (default: 128)")
    parser.add_argument("--count", type=int, default=3, help="images to show (default: 3)")
    options = parser.parse_args(arguments)

    def work() -> None:
        config = read_json(BUNDLE / "configs" / "train.json")
        assert config is not None
        values = recipe_values(options.recipe, config["recipes"])
        images = CachedImages(
            load_datalist(options.dataset), options.size, field_of_view=values["field_of_view"]
        ).load()
        shown = unit_float(images.images[: options.count])
        views = TwoViews(options.size, **{option: values[option] for option in TwoViews.OPTIONS})
        drawn = views.set_random_state(0).batch(shown)
        columns = [("image", shown), *zip(("first view", "second view"), drawn.target.chunk(2), strict=True)]
        columns.append(("masked", drawn.input.chunk(2)[1]))
        options.output.write_bytes(to_png(photographs(columns), dpi=100))

    return interruptible(work)


if __name__ == "__main__":
    sys.exit(main())
