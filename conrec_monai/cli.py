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
import json
import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
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


# Keyword arguments of `load_datalist` that name columns of a table, and what each column holds.
COLUMNS = {
    "image_key": "column of the image, in a table",
    "label_key": "column of the label, in a table",
    "group_key": "column of the group, such as the patient",
    "split_key": "column of the split",
}


class Command(NamedTuple):
    """A subcommand: `run` gets the parsed arguments and may return an exit code."""

    name: str
    help: str
    description: str
    epilog: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the name of the program; those of the process by default.

    Returns:
        Exit code: 0, 1 after a user's mistake (one line on the standard error) or when an audit found a leak, 130 when
        interrupted, 141 when whoever reads the output went away.

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
        code = options.run(options)
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
    return code or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conrec-monai",
        description="Self-supervised pretraining for retinal fundus photographs with MONAI: data and model files.\n"
        "Pretraining is a MONAI bundle: python -m monai.bundle run --config_file ...",
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


def _add_columns(parser: argparse.ArgumentParser) -> None:
    for name, text in COLUMNS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="COLUMN", help=text)


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
    _add_columns(parser)
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        help="what becomes of images that are missing or damaged: an error, or left out (default: raise)",
    )


def _run_info(options: argparse.Namespace) -> None:
    from conrec_monai.data.datalist import load_datalist

    names = (*COLUMNS, "on_error")
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


# --- audit ------------------------------------------------------------------------------------------------------------


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="file or folder, see conrec-monai info")
    parser.add_argument("--section", metavar="NAME", help="only this split (default: all)")
    _add_columns(parser)
    parser.add_argument("--output", metavar="FILE", help="JSON file to write, such as audit.json")
    parser.add_argument("--page", metavar="FILE", help="page to write, such as audit.html")
    parser.add_argument("--workers", metavar="N", type=int, default=2, help="threads that decode (default: 2)")


def _run_audit(options: argparse.Namespace) -> int:
    from conrec_monai.data.datalist import load_datalist
    from conrec_monai.evaluation.audit import audit, audit_page, format_audit

    outputs = [Path(path) for path in (options.output, options.page) if path is not None]
    for path in outputs:  # before the work, not after it
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, expected the name of a file to write")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    if len(outputs) == 2 and outputs[0].resolve() == outputs[1].resolve():
        raise ValueError(f"--output and --page name the same file, {outputs[0]}")
    given = {name: getattr(options, name) for name in COLUMNS if getattr(options, name) is not None}
    datalist = load_datalist(options.dataset, options.section, on_error="skip", **given)
    manifest = audit(datalist, options.workers)
    if options.output is not None:
        Path(options.output).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    if options.page is not None:
        Path(options.page).write_text(audit_page(manifest), encoding="utf-8")
    print(format_audit(manifest))
    for path in outputs:
        print(f"written: {path}")
    return 1 if manifest["splits_crossed"] else 0


# --- evaluate ---------------------------------------------------------------------------------------------------------


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", nargs="+", help="encoder.pt or checkpoint.pt, several as NAME=PATH"
    )
    parser.add_argument(
        "--dataset", "--train", metavar="DATASET", required=True, help="labeled images, see conrec-monai info"
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="folder of the results")
    parser.add_argument("--section", metavar="NAME", help="only this split (default: all)")
    parser.add_argument("--test", metavar="DATASET", help="fit on --dataset, score on this one")
    parser.add_argument("--test-section", metavar="NAME", help="only this split of --test")
    parser.add_argument(
        "--protocols",
        metavar="NAME",
        nargs="+",
        help="some of linear, levels, knn, frozen_head, fine_tune, supervised (default: the first three)",
    )
    parser.add_argument(
        "--fractions", metavar="SHARE", type=float, nargs="+", help="shares of the training labels (default: 1)"
    )
    parser.add_argument("--fraction-repeats", metavar="N", type=int, help="draws of each share, per fold (default: 3)")
    parser.add_argument(
        "--fine-tuning",
        metavar="KEY=VALUE",
        nargs="+",
        help="what differs from the published settings of the last three protocols: optimizer, learning_rate,"
        " schedule, weight_decay, batch_size, epochs, augmentation",
    )
    parser.add_argument("--densenet", metavar="WEIGHTS", help="add a DenseNet121: random, imagenet or a file")
    parser.add_argument(
        "--untrained-seeds", metavar="SEED", type=int, nargs="*", help="encoders with random weights (default: 0 1 2)"
    )
    parser.add_argument(
        "--field-of-view",
        choices=("normalize", "local_contrast"),
        help="bring every retina to the same circle; and subtract the mean color around each pixel (default: as the"
        " models were trained)",
    )
    parser.add_argument("--center-crop", metavar="SHARE", type=float, help="central part of the image that is seen")
    parser.add_argument(
        "--no-group-duplicates",
        dest="group_duplicates",
        action="store_const",
        const=False,
        help="do not search for duplicates, which are kept on one side of a fold",
    )
    parser.add_argument("--folds", metavar="FILE", help="folds.json of another evaluation, to use its folds")
    parser.add_argument("--n-folds", metavar="N", type=int, help="folds of the cross-validation (default: 5)")
    parser.add_argument("--repeats", metavar="N", type=int, help="repetitions of the cross-validation (default: 1)")
    parser.add_argument("--replicates", metavar="N", type=int, help="of the bootstrap (default: 1000)")
    parser.add_argument("--seed", metavar="N", type=int, help="of everything that is random (default: 0)")
    parser.add_argument("--batch-size", metavar="N", type=int, help="images per forward pass (default: 64)")
    parser.add_argument("--workers", dest="num_workers", metavar="N", type=int, help="threads that decode (default: 2)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: cuda where there is one)")
    _add_columns(parser)
    for name, text in COLUMNS.items():
        what = text.partition(", ")[0]
        parser.add_argument(f"--test-{name.replace('_', '-')}", metavar="COLUMN", help=f"{what} of --test")
    parser.add_argument("--on-error", choices=("raise", "skip"), help="what becomes of images that cannot be read")


def _run_evaluate(options: argparse.Namespace) -> None:
    import torch

    from conrec_monai.bundle import evaluate_checkpoints

    apart = ("checkpoint", "dataset", "output", "test", "fine_tuning", "command", "run")
    given = {name: value for name, value in vars(options).items() if value is not None and name not in apart}
    given.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
    if options.fine_tuning is not None:
        given["fine_tuning"] = dict(_assignment(text) for text in options.fine_tuning)
    try:
        evaluate_checkpoints(
            options.checkpoint,
            options.dataset,
            options.output,
            test_dir=options.test,
            command=shlex.join(["conrec-monai", *sys.argv[1:]]),
            **given,
        )
    except KeyboardInterrupt:
        logging.getLogger("conrec_monai").info("What is computed is kept; the same command goes on from here.")
        raise


def _assignment(text: str) -> tuple[str, Any]:
    """KEY=VALUE: a number, null, or a word."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"--fine-tuning expects KEY=VALUE, such as epochs=8, got {text!r}.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


# --- report -----------------------------------------------------------------------------------------------------------


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="RESULT_DIR", nargs="+", help="folder that conrec-monai evaluate wrote")
    parser.add_argument("--output", metavar="FILE", required=True, help="page to write, such as report.html")
    parser.add_argument(
        "--dataset", metavar="DATASET", help="where the images are (default: the path in RESULT_DIR/metrics.json)"
    )
    _add_columns(parser)
    parser.add_argument(
        "--pictures",
        choices=("all", "none"),
        default="all",
        help="none: no photographs, for a page that is passed on (default: all)",
    )
    parser.add_argument("--audit", metavar="FILE", help="audit.json of conrec-monai audit")
    parser.add_argument("--figures", metavar="DIR", help="folder to which each figure goes as PNG and SVG too")
    parser.add_argument("--credit", metavar="TEXT", help="whose photographs these are, under which license")


def _run_report(options: argparse.Namespace) -> None:
    from conrec_monai.evaluation.report import write_report

    names = ("dataset", *COLUMNS, "pictures", "audit", "figures", "credit")
    path = write_report(options.results, options.output, **{name: getattr(options, name) for name in names})
    print(f"written: {path}")


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


# --- export -----------------------------------------------------------------------------------------------------------


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="checkpoint: model.pt of a fine-tuning, or encoder.pt")
    parser.add_argument(
        "target", metavar="TARGET", help="file to write (.onnx, or .ts for TorchScript); must not exist"
    )


def _run_export(options: argparse.Namespace) -> None:
    from conrec_monai.networks.export import export_network

    description = export_network(options.source, options.target)
    for key in ("input", "output"):
        print(f"{key}: " + ", ".join(f"{name} {value}" for name, value in description[key].items()))
    if description["classes"]:
        print("classes: " + ", ".join(description["classes"]))
    print(f"written: {options.target}, which gives what PyTorch does, within 1e-4")


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
        "audit",
        "look for duplicates, leaks across splits, damaged images and shortcuts, before any score",
        "Decodes every image and tells which show the same photograph (exactly, or encoded again, resized, turned,\n"
        "brighter or darker), which of those have different labels or lie on both sides of a split, which are damaged\n"
        "or blank, and how much image size and field of view tell about the label.\n"
        "Exit code 1 when groups lie on both sides of a split.",
        "examples:\n"
        "  conrec-monai audit data/aptos2019 --output audit.json --page audit.html\n"
        "  conrec-monai audit table.csv --group-key patient --split-key fold\n\n"
        "What is found and how surely: docs/audit.md.",
        _add_audit,
        _run_audit,
    ),
    Command(
        "evaluate",
        "score encoders on labeled images, with intervals, beside untrained encoders and baselines",
        "Scores the encoders of checkpoints on labeled images, beside encoders with random weights and two\n"
        "baselines that see no content, all on the same folds, with 95 % intervals and paired differences. Prints\n"
        "tables and writes metrics.json. An interrupted evaluation goes on when the command is given again.",
        "examples:\n"
        "  conrec-monai evaluate run/encoder.pt --dataset data/aptos2019 --output run/evaluation\n"
        "  conrec-monai evaluate A=a/encoder.pt B=b/encoder.pt --dataset data/idrid --output comparison\n"
        "  conrec-monai evaluate run/encoder.pt --train data/aptos2019 --test data/idrid --output transfer\n\n"
        "What it computes and writes: docs/evaluation.md.",
        _add_evaluate,
        _run_evaluate,
    ),
    Command(
        "report",
        "make one page of what an evaluation found: tables, figures, commands",
        "Makes one HTML file of one or more results of conrec-monai evaluate. It opens offline, on a phone too, and\n"
        "can be printed. Pictures are drawn from the data set and the checkpoints where they still are.\n"
        'Needs matplotlib: pip install "conrec-monai[plots]".',
        "examples:\n"
        "  conrec-monai report run/evaluation --output report.html\n"
        "  conrec-monai report raw normalized --output report.html --audit audit.json --figures figures\n"
        "  conrec-monai report run/evaluation --output public.html --pictures none",
        _add_report,
        _run_report,
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
    Command(
        "export",
        "write a network as ONNX or TorchScript, for programs without this library",
        "Writes the grading network of a fine-tuning, or an encoder, as one file with all weights and a description\n"
        "(JSON) of its input, its output and its classes. The result is compared with PyTorch's before it is written.\n"
        'ONNX needs onnx, onnxscript and onnxruntime: pip install "conrec-monai[export]".',
        "examples:\n  conrec-monai export run/model.pt model.onnx\n  conrec-monai export run/encoder.pt encoder.ts",
        _add_export,
        _run_export,
    ),
)
