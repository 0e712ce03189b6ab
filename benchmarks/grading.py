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

"""Grading of image files, end to end, and what share of the time each part takes.

    python benchmarks/grading.py --output grading.json [--data FOLDER]

The inference of the bundle fundus_dr_grading with its example weights: files are read, brought to the network's input,
looked at for warnings, graded and written as rows, without attention maps. Without --data: drawn fundus photographs as
JPEG files. The parts are timed in one thread, image by image (the network in batches of 64); "end to end" is the whole,
with --threads threads that decode and as many for PyTorch. The memory is the peak of a process of its own that grades
the files once, and four times as many.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import parser, spread, write
from monai.bundle import ConfigWorkflow
from PIL import Image

from conrec_monai.data import image_files, phantom_arrays, read_image
from conrec_monai.transforms import quality_warnings

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "fundus_dr_grading"
PARTS = ("decode", "preprocess", "warnings", "network")
PEAK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from grading import infer
infer(sys.argv[2], sys.argv[3], int(sys.argv[4]))
# Not ru_maxrss, which begins with the peak of the process that started this one.
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def workflow(source: str, output: str, workers: int) -> ConfigWorkflow:
    values = {"dataset_dir": source, "output_dir": output, "num_workers": workers, "attention_maps": False}
    path = str(BUNDLE / "configs" / "inference.json")
    inference = ConfigWorkflow(path, logging_file=False, bundle_root=str(BUNDLE), device="cpu", **values)
    inference.initialize()
    return inference


def infer(source: str, output: str, workers: int) -> float:
    """Seconds that the grading of a folder or list of files takes."""
    inference = workflow(source, output, workers)
    start = time.perf_counter()
    inference.run()
    return time.perf_counter() - start


def drawn(folder: Path, count: int, size: int, seed: int) -> None:
    for i, image in enumerate(phantom_arrays(count, size, seed)[0]):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i:04d}.jpg", quality=90)


def seconds_of_parts(files: Sequence[Path], output: str) -> dict[str, float]:
    """Of all files, in one thread; the network in one batch for each 64."""
    grader = workflow(str(files[0]), output, 1).parser.get_parsed_content("grader")
    taken = dict.fromkeys(PARTS, 0.0)
    images = []
    for file in files:
        start = time.perf_counter()
        array = read_image(file, min_side=grader.fitting.size)
        decoded = time.perf_counter()
        image = grader.fitting.fit(array)
        images.append(image.image)
        fitted = time.perf_counter()
        quality_warnings(array, grader.fitting.size, image.found)
        end = time.perf_counter()
        for name, value in zip(PARTS, (decoded - start, fitted - decoded, end - fitted), strict=False):
            taken[name] += value
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in torch.stack(images).split(64):
            grader.network(batch.float() / 255)
    taken["network"] = time.perf_counter() - start
    return taken


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(__doc__, repeats=3)
    options.add_argument("--images", type=int, default=200, help="number of files (default %(default)s)")
    options.add_argument("--size", type=int, default=1024, help="pixels a side of drawn ones (default %(default)s)")
    options.add_argument("--data", help="folder of photographs; drawn ones without")
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = folder / "pictures"
        pictures.mkdir()
        if args.data is None:
            drawn(pictures, args.images, args.size, args.seed)
        found = [path for _, path in image_files(args.data or pictures)]
        chosen = np.random.RandomState(args.seed).permutation(len(found))[: args.images]
        files = [found[i].absolute() for i in sorted(chosen)]
        lists = {}
        for times in (1, 4):
            lists[times] = folder / f"{times}.txt"
            lists[times].write_text("\n".join(str(file) for file in files * times) + "\n")
        output = str(folder / "out")
        whole, parts = [], []
        for _ in range(args.repeats + 1):  # the first round reads the files from disk
            whole.append(infer(str(lists[1]), output, args.threads))
            torch.set_num_threads(1)
            parts.append(seconds_of_parts(files, output))
            torch.set_num_threads(args.threads)
        command = [sys.executable, "-W", "ignore", "-c", PEAK, str(Path(__file__).parent)]
        peaks = {
            times: float(
                subprocess.run(
                    [*command, str(path), output, str(args.threads)], check=True, capture_output=True, text=True
                ).stdout.split()[-1]
            )
            for times, path in lists.items()
        }
        bytes_of_files = sum(file.stat().st_size for file in files) / len(files)
    totals = [sum(taken.values()) for taken in parts[1:]]
    results = {
        "files": len(files),
        "kilobytes_per_file": bytes_of_files / 1000,
        "images_per_second": spread([len(files) / seconds for seconds in whole[1:]]),
        "milliseconds_per_image": {n: 1000 * spread([t[n] for t in parts[1:]])["median"] / len(files) for n in PARTS},
        "share": {n: spread([t[n] / total for t, total in zip(parts[1:], totals, strict=True)]) for n in PARTS},
        "peak_mebibytes": {"once": peaks[1], "four times as many": peaks[4]},
    }
    print(f"end to end: {results['images_per_second']['median']:.1f} images/s", flush=True)  # type: ignore[index]
    for part in PARTS:
        print(f"{part}: {results['milliseconds_per_image'][part]:.2f} ms an image")  # type: ignore[index]
    print(f"peak memory: {peaks[1]:.0f} MiB, with four times as many files {peaks[4]:.0f} MiB")
    write(args.output, "grading", arguments, vars(args), results)
    return results


if __name__ == "__main__":
    main()
