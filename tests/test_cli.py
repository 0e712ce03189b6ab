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

import argparse
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conrec_monai import __version__, bundle, cli, load_encoder, load_model
from conrec_monai.cli import main
from conrec_monai.data.prepare import DATA_SETS
from conrec_monai.networks.nets import ConRecEncoder
from conrec_monai.networks.utils import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tiny copy of APTOS."""
    folder = tmp_path / "source"
    (folder / "train_images").mkdir(parents=True)
    (folder / "train.csv").write_text("id_code,diagnosis\na,0\nb,4\nc,0\n")
    for name in "abc":
        Image.new("RGB", (30, 20), (200, 90, 30)).save(folder / "train_images" / f"{name}.png")
    return folder


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let `info` end with an error."""

    def set_error(error: BaseException) -> None:
        def run(_: argparse.Namespace) -> None:
            raise error

        commands = tuple(c._replace(run=run) if c.name == "info" else c for c in cli.COMMANDS)
        monkeypatch.setattr(cli, "COMMANDS", commands)

    return set_error


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "prepare" in err and "import-keras" in err and "Exit codes" in err


@pytest.mark.parametrize("command", [[], *([c.name] for c in cli.COMMANDS)])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: conrec-monai") and max(map(len, out.splitlines())) <= 120
    if command:
        assert "example" in out and "conrec-monai " + command[0] in out


def test_help_of_prepare_lists_the_data_sets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    out = capsys.readouterr().out
    for name, data_set in DATA_SETS.items():
        assert f"  {name} " in out and data_set.title in out
    assert cli.DATA_SETS == {name: data_set.title for name, data_set in DATA_SETS.items()}
    assert "default: 512" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"conrec-monai {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepares"], "invalid choice: 'prepares'"),
        (["prepare", "aptos", "x", "--output", "y"], "invalid choice: 'aptos' (choose from"),
        (["prepare", "aptos2019", "x"], "required: --output"),
        (["prepare", "aptos2019", "x", "--output", "y", "--size", "big"], "invalid int value: 'big'"),
        (["prepare", "aptos2019", "x", "--output", "y", "--format", "gif"], "invalid choice: 'gif'"),
        (["info"], "required: DATASET"),
        (["evaluate", "a", "--dataset", "b", "--output", "c", "--field-of-view", "crop"], "invalid choice: 'crop'"),
        (["report", "a"], "required: --output"),
        (["report", "a", "--output", "b", "--pictures", "some"], "invalid choice: 'some'"),
        (["import-keras", "a"], "required: TARGET"),
        (["export", "a"], "required: TARGET"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("view", [None, "normalize", "local_contrast"])
def test_field_of_view_of_evaluate(view: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(bundle, "evaluate_checkpoints", lambda *paths, **values: given.append((paths, values)))
    arguments = [] if view is None else ["--field-of-view", view]
    assert main(["evaluate", "a.pt", "--dataset", "b", "--output", "c", *arguments]) == 0
    ((paths, values),) = given
    assert paths == (["a.pt"], "b", "c") and values.get("field_of_view") == view


def test_prepare(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", "aptos2019", str(source), "--output", str(tmp_path / "the out"), "--size", "10"]
    assert main([*command, "--workers", "2", "--format", "jpg"]) == 0
    out, err = capsys.readouterr()
    assert err == "Warning: aptos2019: 3 train images, the whole data set has 3662\n"
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines == [
        "aptos2019: 3 images written",
        "images train",
        "0 No DR 2",
        "1 Mild 0",
        "2 Moderate 0",
        "3 Severe 0",
        "4 Proliferative DR 1",
        "all 3",
        f"to train or evaluate on it: --dataset_dir '{tmp_path}/the out'",
    ]
    with Image.open(tmp_path / "the out" / "train_images" / "a.jpg") as image:
        assert image.size == (15, 10)
    assert main([*command, "--format", "jpg"]) == 0
    assert capsys.readouterr().out.startswith("aptos2019: 0 images written, 3 were there already\n")
    assert main(command) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("Error: ")


def test_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for i, value in enumerate((10, 90, 90)):
        Image.linear_gradient("L").point(lambda v, value=value: (v * value) % 256).save(f"{i}.png")
    Path("list.csv").write_text("image,label,split\n0.png,0,train\n1.png,1,train\n2.png,0,test\n")
    assert main(["audit", "list.csv", "--output", "audit.json", "--page", "audit.html", "--workers", "1"]) == 1
    out, err = capsys.readouterr()
    assert err == "" and "Leak: 1 group of duplicates (2 images) lie on both sides of a split." in out
    assert out.endswith("written: audit.json\nwritten: audit.html\n")
    manifest = json.loads(Path("audit.json").read_text())
    assert manifest["exact"] == [["1.png", "2.png"]] and manifest["conflicting_labels"][0]["labels"] == [1, 0]
    assert Path("audit.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["audit", "list.csv", "--section", "train"]) == 0
    assert "There are no splits that could leak." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "no such folder"], "Error: data not found: no such folder"),
        (["audit", "x", "--output", "none/audit.json"], "Error: there is no folder none to write audit.json to"),
        (["audit", "x", "--page", "."], "Error: . is a folder, expected the name of a file to write"),
        (["audit", "x", "--page", "a", "--output", "./a"], "Error: --output and --page name the same file, a"),
        (["audit", "phantom:n=2,size=32", "--workers", "0"], "Error: num_workers must be a whole number of at least 1"),
    ],
)
def test_mistakes_of_audit(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "no such folder"], "Error: data not found: no such folder (neither a file nor a folder)"),
        (["info", "phantom:n=x"], "Error: phantom:n=x: n must be a whole number, got 'x'"),
        (["info", "phantom:n=2,size=32", "--section", "test"], "Error: phantom:n=2,size=32 has no section 'test', "),
        (["report", "none", "--output", "x"], "Error: no result of conrec-monai evaluate at none: no such folder."),
        (["report", ".", "--output", "x"], "Error: no result of conrec-monai evaluate at .: no metrics.json in it."),
        (["prepare", "idrid", "none.zip", "--output", "x"], "Error: source not found: none.zip (neither a "),
        (["prepare", "idrid", ".", "--output", "/x", "--size", "-1"], "Error: size must be at least 1 pixel, got -1"),
        (["prepare", "idrid", ".", "--output", "/x", "--workers", "0"], "Error: workers must be at least 1 thread"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(message) and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("two\nlines"), 1, "Error: two lines\n"),
        (FileNotFoundError("gone"), 1, "Error: gone\n"),
        (PermissionError(13, "Permission denied", "x"), 1, "Error: [Errno 13] Permission denied: 'x'\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_exit_codes(error: BaseException, code: int, message: str, failing: Any, capsys: Any) -> None:
    failing(error)
    assert main(["info", "x"]) == code
    assert capsys.readouterr() == ("", message)


def test_defects_keep_their_traceback(failing: Any) -> None:
    failing(TypeError("a defect"))
    with pytest.raises(TypeError, match="a defect"):
        main(["info", "x"])


def test_interrupted_prepare_says_how_to_go_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["conrec_monai.data.prepare"], "_shrink", interrupted)
    assert main(["prepare", "aptos2019", str(source), "--output", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.endswith("The same command goes on from here.\nInterrupted.\n")


def test_log_handler_is_taken_away(source: Path) -> None:
    before = list(logging.getLogger("conrec_monai").handlers)
    assert main(["info", str(source)]) == 0
    assert logging.getLogger("conrec_monai").handlers == before


def test_info(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        (source / "train_images" / f"{name}.png").write_bytes(b"")  # listed, not decoded
    assert main(["info", str(source)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith(f"{source}: APTOS")
    assert lines[1:4] == ["images: 3, read as color", "labels: diagnosis, ordered grades", "groups: none"]
    assert lines[4:] == [
        "images train",
        "0 No DR 2",
        "1 Mild 0",
        "2 Moderate 0",
        "3 Severe 0",
        "4 Proliferative DR 1",
        "all 3",
    ]


def test_info_of_splits_and_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c", "d"):
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    training = [{"image": "a.png", "label": 12, "group": "p"}, {"image": "b.png", "group": "p"}]
    content = {"training": training, "test": ["c.png", {"image": "d.png", "label": 3}]}
    (tmp_path / "data.json").write_text(json.dumps(content))
    assert main(["info", str(tmp_path / "data.json")]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == [
        "labels: label",
        "groups: 1, largest 2 images",
        "images without group: 2",
        "images training test",
        "3 0 1",
        "12 1 0",
        "no label 1 1",
        "all 2 2",
    ]
    assert main(["info", str(tmp_path / "data.json"), "--section", "test"]) == 0
    assert "images: 2" in capsys.readouterr().out


def test_info_of_gray_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "circle-square:train=3,test=1"]) == 0
    out = capsys.readouterr().out
    assert "images: 4, read as gray" in out and "labels: classes" in out
    assert [line.split() for line in out.splitlines()][-1] == ["all", "3", "1"]


def test_info_of_a_table(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.csv"
    table.write_text(
        "file,eye,grade,part\nsource/train_images/a.png,x,2,train\nsource/train_images/b.png,x,1,test\n", "utf-8"
    )
    keys = ["--image-key", "file", "--label-key", "grade", "--group-key", "eye", "--split-key", "part"]
    assert main(["info", str(table), *keys]) == 0
    out = capsys.readouterr().out
    assert "labels: grade" in out and "groups: 1, largest 2 images" in out
    assert main(["info", str(table), "--image-key", "nope"]) == 1
    assert "nope" in capsys.readouterr().err


def test_names_that_the_terminal_cannot_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("größe", "目"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "x.png")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["info", str(tmp_path)]) == 0
    terminal.seek(0)
    assert "gr\\xf6\\xdfe" in terminal.read()


# --- the program ------------------------------------------------------------------------------------------------------


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_program(tmp_path: Path) -> None:
    """`python -m conrec_monai` from another folder."""
    command = [sys.executable, "-m", "conrec_monai", "info"]
    done = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("usage: conrec-monai info") and "required: DATASET" in done.stderr


def _run(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the command line, but without what the package imports with it: that is slow."""
    light = (
        "import sys, types; package = types.ModuleType('conrec_monai')\n"
        f"package.__path__ = [{str(ROOT / 'conrec_monai')!r}]; sys.modules['conrec_monai'] = package\n"
        "import conrec_monai.cli as cli\n"
    )
    return subprocess.run([sys.executable, "-c", light + code], env=_environment(), capture_output=True, text=True)


def test_reader_that_goes_away_is_no_error() -> None:
    """`conrec-monai ... | head -1`: the pipe is closed before anything is written."""
    done = _run(
        "import os; reader, writer = os.pipe(); os.dup2(writer, 1)\n"
        "def run(options): os.close(reader); print('x' * 100000)\n"
        "cli.COMMANDS = tuple(c._replace(run=run) for c in cli.COMMANDS)\n"
        "sys.exit(cli.main(['info', 'x']))"
    )
    assert done.returncode == 141 and done.stderr == ""


def test_commands_import_nothing_heavy_before_they_run() -> None:
    """What the module itself imports is instant; whatever a command needs, it imports when it runs."""
    done = _run("cli.main([]); print(*(name for name in ('numpy', 'PIL', 'torch', 'monai') if name in sys.modules))")
    assert done.returncode == 0 and done.stdout == "\n" and "usage: conrec-monai" in done.stderr


def test_import_keras(oracles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py")
    source, target = str(oracles / "checkpoint_attention_gray_depth3.hdf5"), tmp_path / "model.pt"
    assert main(["import-keras", source, str(target)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    model = load_model(target)
    assert lines[0] == f"{source}: ConRecUNet" and "in_channels: 1" in lines and "pooling: attention" in lines
    assert f"features: {model.config['features']}" in lines and any(line.startswith("image_size: ") for line in lines)
    encoder = sum(parameter.numel() for parameter in load_encoder(target).parameters())
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert lines[-2:] == [f"parameters: {whole:,}, of which {encoder:,} in the encoder", f"written: {target}"]
    before = target.read_bytes()
    assert main(["import-keras", source, str(target)]) == 1
    assert capsys.readouterr().err.startswith("Error: ") and target.read_bytes() == before


def test_import_keras_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "x.hdf5").write_bytes(b"no")
    for name in ("x.hdf5", "none.hdf5"):
        assert main(["import-keras", str(tmp_path / name), str(tmp_path / "y.pt")]) == 1
        err = capsys.readouterr().err
        assert err.startswith("Error: ") and name in err and err.count("\n") == 1


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    source, target = tmp_path / "encoder.pt", tmp_path / "encoder.ts"
    save_checkpoint(source, ConRecEncoder(features=(4, 8)), {"image_size": 16})
    assert main(["export", str(source), str(target)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("input: name image, layout BCHW, channels RGB") and "image_size 16" in lines[0]
    assert lines[1] == "output: name output, meaning representation, size 8"
    assert lines[2] == f"written: {target}, which gives what PyTorch does, within 1e-4"
    plain = Path(__file__).parents[1] / "bundles" / "conrec_pretraining" / "models" / "model.pt"
    for arguments, message in (
        ([str(source), str(target)], f"{target} exists; it is not overwritten."),
        ([str(source), "encoder.h5"], "the target must end in .ts (TorchScript) or .onnx, got encoder.h5."),
        (
            [str(plain), "a.ts"],
            f"{plain} holds plain weights without architecture and preprocessing, as models/model.pt of a MONAI bundle"
            " does: its own configs and MONAI's ckpt_export and onnx_export take that. Expected: encoder.pt or model.pt"
            " of a run.",
        ),
        ([str(tmp_path / "none.pt"), "a.ts"], f"no checkpoint at {tmp_path / 'none.pt'}: no such file."),
    ):
        assert main(["export", *arguments]) == 1
        assert capsys.readouterr().err == f"Error: {message}\n"
