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

"""A grading operator in the manner of MONAI Deploy, without it: python deploy_operator.py MODEL IMAGE ...

In an application of MONAI Deploy the class derives from ``monai.deploy.core.Operator``; ``setup`` and ``compute`` stay
as they are, for they use nothing but ``spec.input``, ``spec.output``, ``receive`` and ``emit``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from conrec_monai import load_model, load_preprocessing
from conrec_monai.bundle import guarded
from conrec_monai.evaluation import graded
from conrec_monai.networks.utils import read_checkpoint


class GradingOperator:
    """The path of a photograph, DICOM or any other format, on port ``image`` -> its grade on port ``grade``.

    Args:
        model_path: ``model.pt`` of a fine-tuning; weights alone are loaded, nothing is unpickled.
    """

    def __init__(self, model_path: str | Path) -> None:
        self.network = load_model(model_path)
        self.read, self.fit = load_preprocessing(model_path).transforms  # path -> array -> float32 CHW in [0, 1]
        grading = read_checkpoint(model_path).get("grading") or {}
        if not grading.get("validation"):
            raise ValueError(f"{model_path} is no calibrated model.pt of a fine-tuning.")
        self.classes = grading["classes"]

    def setup(self, spec: Any) -> None:
        spec.input("image")
        spec.output("grade")

    def compute(self, op_input: Any, op_output: Any, context: Any = None) -> None:
        image = self.fit(self.read(op_input.receive("image")))
        with torch.inference_mode():
            probabilities = self.network(image[None]).numpy()
        grade = int(graded([0], probabilities, self.network.task).predicted[0])
        result = {"grade": grade, "name": self.classes[grade], "probabilities": probabilities[0].round(4).tolist()}
        op_output.emit(result, "grade")


def main(model: str, *images: str) -> list[dict[str, Any]]:
    """Runs the operator on each image as an application would; the results of those that can be read."""
    operator = GradingOperator(model)
    results: list[dict[str, Any]] = []
    for image in images:
        try:
            operator.compute(
                SimpleNamespace(receive=lambda port, image=image: image),
                SimpleNamespace(emit=lambda value, port: results.append(value)),
            )
        except (ValueError, OSError) as error:  # the others are graded all the same
            print(f"Error: {error}", file=sys.stderr)
        else:
            print(image, results[-1])
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="model.pt of a fine-tuning")
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    options = parser.parse_args()
    results = guarded(main, options.model, *options.images)  # a mistake ends in one line
    sys.exit(0 if len(results) == len(options.images) else 1)
