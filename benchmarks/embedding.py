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

"""Embedding of images and linear evaluation, from images in memory to the scores, and what share each takes.

    python benchmarks/embedding.py --output embedding.json

Drawn fundus photographs and an encoder with random weights: the same arithmetic as with trained ones, except that the
number of iterations of the logistic regressions depends on the representation. The linear evaluation runs as published
and standardized, on 5 folds. "one by one" embeds the same images in the plainest way, in batches of one, in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from common import interleaved, parser, ratio, spread, write
from torch import nn

from conrec_monai.data import phantom_arrays
from conrec_monai.evaluation import embed, linear_evaluation, make_folds
from conrec_monai.networks.nets import ConRecEncoder

CLASSES = 5
PHASES = ("embed", "linear, published", "linear, standardized")


def one_by_one(encoder: nn.Module, images: torch.Tensor) -> np.ndarray:
    """Representations [N, F] of uint8 images NCHW, an image at a time."""
    encoder.eval()
    with torch.inference_mode():
        return torch.cat([encoder(image[None].float() / 255) for image in images]).numpy()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(__doc__, repeats=5)
    options.add_argument("--images", type=int, default=512, help="number of images (default %(default)s)")
    options.add_argument("--size", type=int, default=64, help="pixels a side (default %(default)s)")
    options.add_argument(
        "--features",
        type=int,
        nargs="+",
        default=[16, 32, 64, 128],
        help="channels of the levels (default %(default)s)",
    )
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    arrays, labels = phantom_arrays(args.images, args.size, args.seed)
    images = torch.from_numpy(arrays)
    torch.manual_seed(args.seed)
    encoder = ConRecEncoder(features=args.features)
    folds = make_folds(labels, seed=args.seed)
    representation = embed(encoder, images)
    np.testing.assert_allclose(representation, one_by_one(encoder, images), rtol=1e-3, atol=1e-4)
    linear = partial(linear_evaluation, representation, labels, folds, "diabetic", num_classes=CLASSES)
    times = interleaved(
        {
            "embed": lambda: embed(encoder, images),
            "linear, published": lambda: linear(standardized=False),
            "linear, standardized": lambda: linear(standardized=True),
            "one by one": lambda: one_by_one(encoder, images),
        },
        args.repeats,
    )
    seconds = {name: spread(values) for name, values in times.items()}
    total = [sum(phases) for phases in zip(*(times[name] for name in PHASES), strict=True)]
    results = {
        "seconds": {**seconds, "total": spread(total)},
        "images_per_second": {name: args.images / value["median"] for name, value in seconds.items()}
        | {"total": args.images / spread(total)["median"]},
        "share": {name: spread([x / y for x, y in zip(times[name], total, strict=True)])["median"] for name in PHASES},
        "one_by_one_over_embed": ratio(times, "one by one", "embed"),
    }
    for name, value in results["images_per_second"].items():
        share = f", {results['share'][name]:.0%} of the total" if name in PHASES else ""
        print(f"{name}: {value:.0f} images/s{share}", flush=True)
    write(args.output, "embedding", arguments, vars(args), results)
    return results


if __name__ == "__main__":
    main()
