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
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conrec_monai.bundle import check_overrides, guarded


def fail(error: BaseException) -> None:
    raise error


def test_result_and_arguments() -> None:
    assert guarded(divmod, 7, 2) == (3, 1)
    assert guarded("builtins.int", "12", base=3) == 5
    assert guarded("os.path.join", "a", "b") == os.path.join("a", "b")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("batch_size must be at least 2, got 1."), "Error: batch_size must be at least 2, got 1."),
        (ValueError("several\n  lines\tof it"), "Error: several lines of it"),
        (FileNotFoundError("no checkpoint at x.pt"), "Error: no checkpoint at x.pt"),
        (PermissionError(13, "Permission denied", "a.png"), "Error: [Errno 13] Permission denied: 'a.png'"),
    ],
)
def test_mistake_is_one_line(error: Exception, message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        guarded(fail, error)
    assert stop.value.code == message
    assert stop.value.__suppress_context__  # no traceback of the ValueError


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^Error: .*No such file or directory: '.*none\.txt'$"):
        guarded("builtins.open", str(tmp_path / "none.txt"))


@pytest.mark.parametrize("error", [TypeError("x"), RuntimeError("x"), KeyError("x"), KeyboardInterrupt()])
def test_other_errors_are_defects_and_keep_their_traceback(error: BaseException) -> None:
    with pytest.raises(type(error)):
        guarded(fail, error)


@pytest.mark.parametrize("name", ["conrec_monai.bundle.no_such_function", "no_such_module.f", "conrec_monai.bundle"])
def test_no_function(name: Any) -> None:
    with pytest.raises(ValueError, match=f"there is no function or class '{name}'"):
        guarded(name)


BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
TRAIN = str(BUNDLES / "fundus_dr_grading" / "configs" / "train.json")
MULTI = TRAIN.replace("train.json", "multi_gpu_train.json")
START = ["/anywhere/monai/bundle/__main__.py", "run"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config_file", TRAIN, "--learning_rat", "0.1"], f"--learning_rat is no key of {TRAIN}; did you mean --l"),
        (["--config_file", TRAIN, "-max_epoch", "3"], "did you mean --max_epochs?"),
        (["training", "--config-file", TRAIN, "--trian#trainer#amp", "1"], "did you mean --train?"),
        (["--seed", "1", "--config_file", f"['{TRAIN}','{MULTI}']", "--sed", "0"], "did you mean --seed?"),
        (["--config_file", TRAIN, "--learning_rat=1", "--seed", "@learning_rate"], "did you mean --learning_rate?"),
        (["--args_file", "a.json", "--seed", "1"], "--batchsize is no key of"),
        (
            ["--config_file", TRAIN, "--train#optimzer", "x"],
            "--train#optimzer: train has no optimzer; did you mean opt",
        ),
        (
            ["--config_file", TRAIN, "--train::trainer::max_epoch", "x"],
            "train#trainer has no max_epoch; did you mean m",
        ),
        (["--config_file", TRAIN, "--optimizer#lr", "3"], "--optimizer#lr: optimizer is 'adam', which has no parts."),
    ],
)
def test_misspelt_setting_is_told(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(json.dumps({"config_file": TRAIN, "batchsize": 3}))
    with pytest.raises(SystemExit, match=re.escape(message)):
        check_overrides([*START, *words])


@pytest.mark.parametrize(
    "words",
    [
        ["--learning_rate", "0.1", "--bundle-root", "x", "--run_id", "run", "--meta_file", "m", "--weight_decay", "-1"],
        ["--tracking=mlflow", "--experiment_name", "mine", "--tracking_uri", "x", "--run_name", "y"],
        ["--train#trainer#max_epochs", "3", "--train::sampler::seed", "3", "--_meta_#version", "1"],
        ["--train#trainer#key_train_metric", "3", "--train#handlers#0#every", "1", "--train#sampler#zzz#a", "1"],
        ["--classes", "{'a': 1}", "--classes#b", "2"],
        ["--noresume", "--workflow_type", "train", "--properties_path", "x", "--finalize", "[]"],
        ["--runs", "0.1", "--learning_rate", "@runs"],
        ["--runs", "0.1", "--learning_rate", "%runs"],
        ["--run_id", "runs", "--runs", "[]"],
        ["--seed", "1", "--", "--trace", "--sed"],
    ],
)
def test_settings_that_are_known_pass(words: list[str], caplog: pytest.LogCaptureFixture) -> None:
    check_overrides([*START, "--config_file", f"['{TRAIN}', '{MULTI}']", *words])
    check_overrides([*START, *(["runs"] if "--runs" in words else []), f"--config_file={TRAIN}", *words])
    check_overrides([*START, *words])  # without a config MONAI itself says what is missing
    assert not caplog.records


def test_setting_of_another_kind_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    check_overrides([*START, "--config_file", TRAIN, "--zzz", "1"])
    assert [record.message for record in caplog.records] == [f"--zzz is no key of {TRAIN}: nothing there reads it"]


@pytest.mark.parametrize("command", [["pytest", "run"], [START[0]], [START[0], "run_workflow"], []])
def test_other_programs_are_left_alone(command: list[str]) -> None:
    check_overrides([*command, "--config_file", TRAIN, "--sed", "1"])


@pytest.mark.parametrize(
    "path", sorted(BUNDLES.glob("*/configs/*.json")), ids=lambda path: f"{path.parts[-3]}/{path.name}"
)
def test_every_config_checks_its_overrides_first(path: Path) -> None:
    config = json.loads(path.read_text())
    if "run" in config:
        assert config["initialize"][0] == "$check_overrides()"


def test_command_with_a_misspelt_key(tmp_path: Path) -> None:
    command = ["-W", "ignore", "-m", "monai.bundle", "run", "--config_file", TRAIN, "--dataset_dirr", "x"]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    assert done.stderr.splitlines()[-1] == f"Error: --dataset_dirr is no key of {TRAIN}; did you mean --dataset_dir?"
