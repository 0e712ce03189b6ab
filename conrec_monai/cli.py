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

"""The command line: `conrec-monai`, or `python -m conrec_monai`.

A command is a row of `COMMANDS`: its name, its help, a function that adds its arguments and one that runs it. Only the
latter imports what is heavy, so that `--help` answers at once. For a user's mistake it raises ValueError or OSError
with one clear line.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from conrec_monai.version import __version__

__all__ = ["main"]

# A line for each of `conrec_monai.data.prepare.DATA_SETS`, here since the help must not import it (a test compares).
DATA_SETS = {
    "aptos2019": "APTOS 2019 Blindness Detection: 3662 fundus photographs, grades 0-4",
    "idrid": "IDRiD disease grading: 413 + 103 fundus photographs, grades 0-4",
    "retinamnist": "RetinaMNIST of MedMNIST+: 1080 + 120 + 400 small fundus photographs, grades 0-4",
    "eyepacs": "EyePACS (Kaggle 2015): 35126 + 53576 fundus photographs, grades 0-4",
    "messidor2": "Messidor-2: 1748 fundus photographs, 1744 with adjudicated grades 0-4",
    "oxford_flowers102": "Oxford Flowers 102: 1020 + 1020 + 6149 photographs, 102 classes",
    "stanford_dogs": "Stanford Dogs: 12000 + 8580 photographs, 120 breeds",
}


class Command(NamedTuple):
    """A subcommand: `run` gets the parsed arguments."""

    name: str
    help: str
    description: str
    epilog: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the name of the program; those of the process by default.

    Returns:
        Exit code: 0, 1 after a user's mistake (one line on the standard error), 130 when interrupted, 141 when whoever
        reads the output went away.

    Raises:
        SystemExit: from argparse, with code 0 for --help and --version, 2 for wrong usage.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files and classes may hold what the terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    handler = _log_to_stderr()
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer goes nowhere, or Python complains about it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    finally:
        logging.getLogger("conrec_monai").removeHandler(handler)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conrec-monai",
        description="Self-supervised pretraining for retinal fundus photographs with MONAI: data and model files.\n"
        "Pretraining and evaluation are MONAI bundles: python -m monai.bundle run --config_file ...",
        epilog="'conrec-monai COMMAND --help' explains a command. 'python -m conrec_monai' is the same program.\n"
        "Exit codes: 0 done, 1 an error (one line says which), 2 wrong usage, 130 interrupted.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"conrec-monai {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.help,
            description=command.description,
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=command.run)
        command.add_arguments(sub)
    return parser


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.capitalize()}: " if record.levelno >= logging.WARNING else ""
        return prefix + record.getMessage()


def _log_to_stderr() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logger = logging.getLogger("conrec_monai")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler


# --- prepare ----------------------------------------------------------------------------------------------------------


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", choices=DATA_SETS, help="data set, one of those below")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="archive (.zip, .tar, .tar.gz) or folder, with the files unpacked or in archives as downloaded;"
        " for retinamnist a .npz file or its folder, or nothing: it is then downloaded",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write; new, or of an earlier run")
    parser.add_argument(
        "--size",
        metavar="PIXELS",
        type=int,
        help="shorter side of the images (default: 512); smaller images keep theirs."
        " retinamnist: 28, 64, 128 or 224 (default: that of SOURCE, 224 to download)",
    )
    parser.add_argument(
        "--format",
        choices=("jpg", "png"),
        help="of all images (default: JPEG images stay JPEG, quality 95; all others become PNG)",
    )
    parser.add_argument(
        "--workers", metavar="N", type=int, help="threads that resize (default: as many as there are processors)"
    )


def _run_prepare(options: argparse.Namespace) -> None:
    from conrec_monai.data.prepare import prepare

    try:
        done = prepare(options.name, options.source, options.output, options.size, options.format, options.workers)
    except KeyboardInterrupt:
        logging.getLogger("conrec_monai").info("The same command goes on from here.")
        raise
    kept = len(done.datalist) - done.written
    print(f"{options.name}: {done.written} images written" + (f", {kept} were there already" if kept else ""))
    _print_counts(done.datalist)
    print(f"to train or evaluate on it: --dataset_dir {shlex.quote(str(done.path))}")


# --- info -------------------------------------------------------------------------------------------------------------


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset", metavar="DATASET", help="file, folder, or drawn pictures such as phantom:n=600,size=64,seed=0"
    )
    parser.add_argument("--section", metavar="NAME", help="only this split (default: all)")
    parser.add_argument("--image-key", metavar="COLUMN", help="column of the image, in a table")
    parser.add_argument("--label-key", metavar="COLUMN", help="column of the label, in a table")
    parser.add_argument("--group-key", metavar="COLUMN", help="column of the group, such as the patient")
    parser.add_argument("--split-key", metavar="COLUMN", help="column of the split")
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        help="what becomes of images that are missing or damaged: an error, or left out (default: raise)",
    )


def _run_info(options: argparse.Namespace) -> None:
    from conrec_monai.data.datalist import load_datalist

    names = ("image_key", "label_key", "group_key", "split_key", "on_error")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    datalist = load_datalist(options.dataset, options.section, **given)
    info = datalist.info
    groups = [item["group"] for item in datalist if item["group"] is not None]
    print(f"{options.dataset}: {info.name}")
    print(f"images: {len(datalist)}, read as {'gray' if info.channels == 1 else 'color'}")
    if info.label_column is not None:
        print(f"labels: {info.label_column}" + (", ordered grades" if info.ordinal else ""))
    elif info.class_names is not None:
        print("labels: " + ("ordered grades" if info.ordinal else "classes"))
    else:
        print("labels: " + ("numbers" if any(item["label"] is not None for item in datalist) else "none"))
    if groups:
        print(f"groups: {len(set(groups))}, largest {max(Counter(groups).values())} images")
        if len(groups) < len(datalist):
            print(f"images without group: {len(datalist) - len(groups)}")
    else:
        print("groups: none")
    if datalist.skipped:
        print(f"left out: {len(datalist.skipped)} images, the first: {datalist.skipped[0]['reason']}")
    _print_counts(datalist)


def _print_counts(datalist: Any) -> None:
    """Print a table of images, a row per class and a column per split."""
    splits = list(dict.fromkeys(item["split"] for item in datalist))
    counts = Counter((item["label"], item["split"]) for item in datalist)
    labels = sorted({label for label, _ in counts if label is not None})
    names = datalist.info.class_names or []
    if names:  # classes without image count as well
        labels = list(range(len(names)))
    rows = [(f"{label} {names[label]}" if names else str(label), label) for label in labels]
    if (None, splits[0]) in counts or any(label is None for label, _ in counts):
        rows.append(("no label", None))
    table = [("images", *(split or "no split" for split in splits))]
    table += [(name, *(str(counts[label, split]) for split in splits)) for name, label in rows]
    table.append(("all", *(str(sum(counts[label, split] for _, label in rows)) for split in splits)))
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  " + "  ".join(cells).rstrip())


# --- import-keras -----------------------------------------------------------------------------------------------------


def _add_import_keras(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="model file (.hdf5) that the published code saved")
    parser.add_argument("target", metavar="TARGET", help="file to write (.pt); must not exist")


def _run_import_keras(options: argparse.Namespace) -> None:
    from conrec_monai.networks.keras import import_keras
    from conrec_monai.networks.utils import read_checkpoint

    network = import_keras(options.source, options.target)
    encoder, whole = (sum(p.numel() for p in module.parameters()) for module in (network.encoder, network))
    print(f"{options.source}: {type(network).__name__}")
    for key, value in {**network.config, **read_checkpoint(options.target)["preprocessing"]}.items():
        print(f"  {key}: {value}")
    print(f"parameters: {whole:,}, of which {encoder:,} in the encoder")
    print(f"written: {options.target}")


COMMANDS = (
    Command(
        "prepare",
        "bring a public data set into a small folder of resized images",
        "Brings a public data set, as its source offers it, into a folder of the same layout with images of a handy\n"
        "size. Aspect ratios, labels, patients and splits stay the same; images are turned upright, EXIF data is\n"
        "dropped. An interrupted run goes on when the command is given again.",
        "data sets:\n"
        + "\n".join(f"  {name:<18} {title}" for name, title in DATA_SETS.items())
        + "\n\nWhere to get them, their terms and their flaws: the data cards in datasets/.\n\n"
        "examples:\n"
        "  conrec-monai prepare aptos2019 aptos2019-blindness-detection.zip --output data/aptos2019\n"
        "  conrec-monai prepare oxford_flowers102 downloads/ --output data/flowers --size 256\n"
        "  conrec-monai prepare retinamnist --output data/retinamnist --size 64",
        _add_prepare,
        _run_prepare,
    ),
    Command(
        "info",
        "tell what a data set holds: layout, splits, classes, groups",
        "Tells what is recognized in a data set: layout, labels, groups, images per class and split. Images are only\n"
        "listed, not decoded.",
        "examples:\n"
        "  conrec-monai info data/aptos2019\n"
        "  conrec-monai info table.csv --image-key file --label-key grade --group-key patient\n\n"
        "The layouts that are recognized: docs/data.md.",
        _add_info,
        _run_info,
    ),
    Command(
        "import-keras",
        "bring a model of the published Keras implementation into this library",
        "Reads a model that the published implementation saved (Keras 2, HDF5), derives the network from its graph\n"
        "and writes it in the form that conrec_monai.load_encoder and load_model read. Nothing in it is executed.\n"
        'Needs h5py: pip install "conrec-monai[keras]".',
        "example:\n  conrec-monai import-keras model.hdf5 model.pt",
        _add_import_keras,
        _run_import_keras,
    ),
)
