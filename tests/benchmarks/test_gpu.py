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

"""The check of a machine with an NVIDIA card runs on the CPU; what it counts is counted by hand."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from torch import nn

from conrec_monai import __version__
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.optimizers import LARS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ARGUMENTS = "--device cpu --size 32 --features 8 --batches 2 4 --repeats 2 --seconds-per-case 0.05".split()
SECTIONS = [
    "correctness",
    "synchronization",
    "ceilings",
    "throughput",
    "roofline",
    "gradient_checkpointing",
    "compiled",
    "projection",
]


def _script() -> ModuleType:
    """The script, without its names in ``sys.modules``: there are other modules "common"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        for name in ("common", "gpu"):
            patch.delitem(sys.modules, name, raising=False)
        try:
            return importlib.import_module("gpu")
        finally:
            for name in ("common", "gpu"):
                sys.modules.pop(name, None)


gpu = _script()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the file of a run holds."""
    path = tmp_path_factory.mktemp("gpu") / "results" / "gpu.json"
    results = gpu.main([*ARGUMENTS, "--output", str(path)])
    text = path.read_text()
    assert str(path.parent) not in text and str(Path.home()) + "/" not in text
    found = json.loads(text)
    assert found["results"] == json.loads(json.dumps(results))
    return found


@pytest.fixture
def run() -> Any:
    args = argparse.Namespace(
        size=32, features=8, batches=[2, 4], repeats=1, seconds_per_case=0.01, limit=400.0, seed=0, compile=False
    )
    return gpu.Run(args, torch.device("cpu"))


def test_all_sections_are_there(content: Any) -> None:
    assert list(content["results"]) == ["device", *SECTIONS]
    assert not [name for name in SECTIONS if "failed" in content["results"][name]]
    assert content["benchmark"] == "gpu" and content["command"].endswith("--output gpu.json")
    assert "pytorch-ignite" in content["machine"]["versions"]
    assert content["settings"]["batches"] == [2, 4] and content["settings"]["device"] == "cpu"
    assert content["results"]["device"] == {"type": "cpu", "name": None, "reason": gpu.NO_CUDA}


def test_what_a_card_alone_has_is_null_with_a_reason(content: Any) -> None:
    results = content["results"]
    assert results["synchronization"] == {"passed": None, "error": None, "where": None, "reason": gpu.NO_CUDA}
    assert all(case["peak_memory_bytes"] is None for case in results["throughput"]["cases"])
    assert results["throughput"]["peak_memory_reason"] == gpu.NO_CUDA
    assert results["gradient_checkpointing"]["peak_memory_reason"] == gpu.NO_CUDA
    assert results["roofline"]["launch_seconds"] is None and results["roofline"]["launch_reason"] == gpu.NO_CUDA
    assert results["compiled"]["cases"] == [] and results["compiled"]["reason"].startswith(gpu.NO_CUDA)


def test_numbers_of_a_run_agree(content: Any) -> None:
    results = content["results"]
    ceilings, throughput, roofline = (results[name] for name in ("ceilings", "throughput", "roofline"))
    assert ceilings["flop_per_second"] == max(
        2 * int(n) ** 3 / product["seconds"]["median"] for n, product in ceilings["products"].items()
    )
    assert ceilings["bytes_per_second"] == 2 * ceilings["copy"]["bytes"] / ceilings["copy"]["seconds"]["median"]
    assert [case["batch"] for case in throughput["cases"]] == [2, 4] and throughput["note"] is None
    for case in throughput["cases"]:
        assert case["images_per_second"] == pytest.approx(case["batch"] / case["seconds"]["median"])
        assert 0 < case["views_seconds"]["low"] and case["views_share"] > 0
        expected = throughput["model_flop_per_image"] * case["images_per_second"] / ceilings["flop_per_second"]
        assert case["utilization"] == pytest.approx(expected) and expected > 0
    assert roofline["batch"] == 2 and roofline["operators"] > 100
    assert roofline["memory_seconds"] == pytest.approx(roofline["bytes"] / ceilings["bytes_per_second"])
    flop = 2 * throughput["model_flop_per_image"]
    assert roofline["matrix_seconds"] == pytest.approx(flop / ceilings["flop_per_second"])
    parts = sum(roofline[f"{name}_seconds"] for name in ("memory", "matrix", "views"))
    assert roofline["sum_over_step"] == pytest.approx(parts / roofline["step_seconds"])
    assert results["gradient_checkpointing"]["batch"] == 4
    best = max(case["images_per_second"] for case in throughput["cases"])
    assert results["projection"]["best"]["hours"] == pytest.approx(1200 * 3662 / best / 3600)
    assert results["projection"]["batch_2"]["batch"] == 2  # there is none of 16


# --- correctness ------------------------------------------------------------------------------------------------------


def test_correctness_passes(content: Any) -> None:
    found = content["results"]["correctness"]
    assert found["passed"] is True and found["checks"].keys() == gpu.TOLERANCES.keys()
    assert found["checks"]["gradient"]["relative"] > 0  # the other memory format rounds otherwise


@pytest.mark.parametrize("factor", [1.1, math.nan])
@pytest.mark.parametrize("wrong", ["projection", "gradient"])
def test_correctness_fails(run: Any, monkeypatch: pytest.MonkeyPatch, wrong: str, factor: float) -> None:
    one_step = gpu.one_step

    def other(network: Any, inputs: Any, targets: Any, device: Any, memory_format: Any) -> Any:
        found = one_step(network, inputs, targets, device, memory_format)
        if memory_format == torch.channels_last:  # the device
            found[wrong] = [factor * x for x in found[wrong]]
        return found

    monkeypatch.setattr(gpu, "one_step", other)
    allowed = torch.backends.cudnn.allow_tf32
    found = gpu.correctness(run)
    assert torch.backends.cudnn.allow_tf32 == allowed
    assert not found["passed"]
    assert {name for name, check in found["checks"].items() if not check["passed"]} == {wrong}
    json.dumps(gpu.plain(found), allow_nan=False)


def test_difference_by_hand() -> None:
    """(3, 4) and (0, 0) of norm 5 against a difference of (0, 0.5)."""
    found, expected = [torch.tensor([3.0, 4.5]), torch.zeros(2)], [torch.tensor([3.0, 4.0]), torch.zeros(2)]
    assert gpu.difference(found, expected) == {"relative": pytest.approx(0.1), "largest": 0.5}


# --- FLOP -------------------------------------------------------------------------------------------------------------


def test_flop_of_one_convolution_by_hand() -> None:
    """Each of 5 x 6 x 6 output values is 2 x 3 x 9 FLOP. Backward, the weights' gradient is as many products, and so is
    that of the input, which the images of a network do not need."""
    forward = 2 * 3 * 5 * 9 * 6 * 6

    class Sequence(nn.Sequential):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [super().forward(x)]

    one = Sequence(nn.Conv2d(3, 5, 3, padding=1))
    assert gpu.count_flop(one, torch.rand(7, 3, 6, 6)) == 7 * 2 * forward
    two = Sequence(*one, nn.Conv2d(5, 4, 3, padding=1))
    assert gpu.count_flop(two, torch.rand(1, 3, 6, 6)) == 2 * forward + 3 * (2 * 5 * 4 * 9 * 6 * 6)


def test_flop_of_a_network_by_hand() -> None:
    def layer(inputs: int, outputs: int, kernel: int, side: int) -> int:
        return 2 * inputs * outputs * kernel**2 * side**2

    first = layer(3, 8, 3, 8)  # without the gradient of the images
    others = [
        *(layer(8, 8, 3, 8), layer(8, 16, 3, 4), layer(16, 16, 3, 4)),  # encoder
        layer(16, 4, 1, 1),  # projection
        *(layer(8, 8, 1, 8), layer(16 + 8, 8, 3, 8), layer(8, 8, 3, 8), layer(8, 3, 1, 8)),  # decoder
    ]
    network = ConRecUNet(features=(8, 16), pooling="average", projection_dim=4, projection_layers=1)
    assert gpu.count_flop(network, torch.rand(2, 3, 8, 8)) == 2 * (2 * first + 3 * sum(others))


def test_flop_without_content_are_those_with_it() -> None:
    with_content = gpu.count_flop(gpu.build(8, 0), torch.rand(2, 3, 32, 32))
    assert gpu.flop_per_image(32, 8) == with_content  # of one image: two views


# --- roofline ---------------------------------------------------------------------------------------------------------


def test_traffic_by_hand() -> None:
    x = torch.ones(4, 8)  # 128 bytes

    def moved(function: Any) -> int:
        with gpu.Traffic() as traffic:
            function()
        return traffic.bytes

    assert moved(lambda: x + 1) == 256
    assert moved(lambda: x.clone().relu_()) == 512
    assert moved(lambda: x.to(torch.bfloat16)) == 128 + 64
    assert moved(lambda: x.view(32)) == moved(lambda: x.t()[1:]) == moved(lambda: x.split(2)) == 0
    assert moved(lambda: x.t().contiguous()) == 256
    assert moved(lambda: x.sum()) == 128 + 4
    assert moved(lambda: torch.empty_like(x)) == moved(lambda: torch.empty(3)) == 0
    assert moved(lambda: x.clone().fill_(0)) == 256 + 128
    assert moved(lambda: x.clone().copy_(x)) == 256 + 256
    assert moved(lambda: x[:1].expand(4, 8) + x) == 32 + 128 + 128
    assert moved(lambda: torch.add(x, x, out=torch.empty_like(x))) == 3 * 128
    assert moved(lambda: x @ x.t()) == 0
    convolution = nn.Conv2d(1, 1, 3)
    assert moved(lambda: convolution(x[None, None])) == 0


def test_traffic_of_a_backward_pass_by_hand() -> None:
    """Forward the product, 128 + 128, and its sum, 128 + 4; backward a one is written, 4, and its product with 3, for
    which it is expanded without being moved, is 4 + 128."""
    x = torch.ones(4, 8, requires_grad=True)
    with gpu.Traffic() as traffic:
        y = (x * 3).sum()
    assert traffic.bytes == 256 + 132
    with gpu.Traffic() as traffic:
        torch.autograd.grad(y, x, torch.ones(()))
    assert traffic.bytes == 4 + (4 + 128)
    assert traffic.of_operators == {"ones": 4, "mul": 132}


@pytest.mark.parametrize(
    ("memory", "matrix", "views", "launches", "expected"),
    [
        (
            0.06,
            0.02,
            0.01,
            0.01,
            "the most is memory traffic (memory traffic 60%, matrix products 20%, views 10%, what",
        ),
        (0.02, 0.06, 0.01, 0.01, "the most is matrix products"),
        (0.02, 0.02, 0.05, 0.01, "the most is views"),
        (0.01, 0.02, 0.01, 0.01, "the most is what neither ceiling explains (memory"),
        (0.01, 0.02, 0.01, None, "the most is launches, host and what else is left (memory"),
        (0.01, 0.02, 0.01, 0.095, "Launches and host hold it there: at 32 px the step takes 95.00 of 100.00 ms."),
    ],
)
def test_what_holds(memory: float, matrix: float, views: float, launches: float | None, expected: str) -> None:
    parts = {"memory traffic": memory, "matrix products": matrix, "views": views}
    assert expected in gpu.what_holds(0.1, parts, launches)


# --- on a card --------------------------------------------------------------------------------------------------------


@pytest.fixture
def card(run: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run that takes the CPU for a card, whose functions are called by their signatures and do nothing."""
    functions = {}
    for name in (
        "synchronize",
        "empty_cache",
        "reset_peak_memory_stats",
        "max_memory_allocated",
        "set_sync_debug_mode",
    ):
        functions[name] = create_autospec(getattr(torch.cuda, name), return_value=2**30)
        monkeypatch.setattr(torch.cuda, name, functions[name])
    images = gpu.random_images
    monkeypatch.setattr(gpu, "random_images", lambda batch, size, seed, pinned: images(batch, size, seed, False))
    monkeypatch.setattr(gpu.Run, "on_cuda", True)
    return functions


def test_synchronization(run: Any, card: Any, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"passed": True, "error": None, "where": None, "reason": None}
    assert gpu.synchronization(run) == expected
    assert [call.args for call in card["set_sync_debug_mode"].mock_calls] == [("error",), ("default",)]
    assert capsys.readouterr().out == "synchronization: passed\n"


def test_synchronization_that_waits(run: Any, card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the package, at the third step."""
    step, steps = LARS.step, []

    def waits(self: Any, closure: Any = None) -> Any:
        steps.append(closure)
        if len(steps) == 3:
            raise RuntimeError("called a synchronizing CUDA operation\nmore")
        return step(self, closure)

    monkeypatch.setattr(LARS, "step", waits)
    found = gpu.synchronization(run)
    assert found["passed"] is False and found["error"] == "RuntimeError: called a synchronizing CUDA operation"
    assert found["where"].startswith("trainer.py:")
    assert card["set_sync_debug_mode"].mock_calls[-1].args == ("default",)


def test_measures_of_a_card(run: Any, card: Any) -> None:
    run.results["ceilings"] = {"bytes_per_second": 1e9, "flop_per_second": 1e9}
    run.args.batches = [2]
    run.results["throughput"] = gpu.throughput(run)
    (case,) = run.results["throughput"]["cases"]
    assert case["peak_memory_bytes"] == 2**30 and run.results["throughput"]["peak_memory_reason"] is None
    assert card["reset_peak_memory_stats"].called and card["empty_cache"].called and card["synchronize"].called
    found = gpu.roofline(run)
    assert found["launch_seconds"] > 0 and found["launch_reason"] is None


def test_card(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = argparse.Namespace(total_memory=80, multi_processor_count=132)
    for name, value in {
        "get_device_properties": properties,
        "get_device_name": "NVIDIA H100",
        "get_device_capability": (9, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, create_autospec(getattr(torch.cuda, name), return_value=value))
    monkeypatch.setattr(gpu.subprocess, "run", lambda *args, **kwargs: argparse.Namespace(stdout="580.1\n580.1\n"))
    found = gpu.card(torch.device("cuda"))
    assert found["name"] == "NVIDIA H100" and found["memory_bytes"] == 80 and found["capability"] == [9, 0]
    assert found["driver"] == "580.1" and {"cuda", "cudnn"} < found.keys()
    json.dumps(found)

    def absent(*args: Any, **kwargs: Any) -> Any:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(gpu.subprocess, "run", absent)
    assert gpu.card(torch.device("cuda"))["driver"] is None


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_section_that_raises_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def raises(run: Any) -> Any:
        raise RuntimeError(f"\n{Path.home()}/x is broken\nand more")

    for name in ("correctness", "gradient_checkpointing"):
        monkeypatch.setitem(gpu.SECTIONS, name, lambda run: {"value": math.nan})
    monkeypatch.setitem(gpu.SECTIONS, "ceilings", raises)
    path = tmp_path / "gpu.json"
    gpu.main([*ARGUMENTS, "--batches", "2", "--output", str(path)])
    results = json.loads(path.read_text())["results"]
    assert list(results) == ["device", *SECTIONS]
    assert results["ceilings"] == {"failed": "RuntimeError: x is broken"}
    assert results["correctness"] == {"value": "nan"}
    (case,) = results["throughput"]["cases"]
    assert case["utilization"] is None and case["images_per_second"] > 0
    assert results["throughput"]["utilization_reason"] == "the ceilings were not measured"
    assert results["roofline"] == {"failed": "ValueError: needs the ceilings and the first step of throughput"}
    assert results["projection"]["best"]["hours"] > 0


def test_out_of_memory_ends_the_ladder(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, measure = [], gpu.measure

    def limited(run: Any, batch: int, *args: Any) -> Any:
        measured.append(batch)
        if batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
        return measure(run, batch, *args)

    monkeypatch.setattr(gpu, "measure", limited)
    run.args.batches = [2, 4, 8]
    found = gpu.throughput(run)
    assert [case["batch"] for case in found["cases"]] == [2] and measured == [2, 4]
    assert found["note"] == "batch 4: out of memory"


def test_a_broken_device_is_recorded(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(self: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu.Run, "free", broken)
    path = tmp_path / "gpu.json"
    gpu.main([*ARGUMENTS, "--output", str(path)])
    results = json.loads(path.read_text())["results"]
    assert [name for name in SECTIONS if "illegal memory access" in results[name]["failed"]] == SECTIONS


def test_nothing_begins_after_the_limit(run: Any) -> None:
    run.args.limit = -1.0
    found = gpu.throughput(run)
    assert found["cases"] == [] and found["note"] == "batch 2 and more: left out after -1 s"


def test_compiled_by_request(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(gpu, "ladder", lambda run, name, compile: asked.append((name, compile)) or {"cases": [1]})
    run.args.compile = True
    assert gpu.compiled(run) == {"cases": [1], "reason": None} and asked == [("compiled", True)]


def test_version_of_a_checkout() -> None:
    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    assert gpu.version("conrec-monai", none) == __version__
    with pytest.raises(PackageNotFoundError):
        gpu.version("torch", none)


def test_refuses_one_image(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--batches", "1"])
    assert "--batches must be at least 2" in capsys.readouterr().err
