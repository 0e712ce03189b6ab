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

"""The benchmarks of speed run at tiny sizes; how long they take is not tested."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from monai.data import get_track_meta, set_track_meta
from PIL import Image

from conrec_monai.data import phantom_arrays

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = ("common", "data", "embedding", "grading", "lars", "nt_xent", "options", "step", "table", "views")


def _scripts() -> dict[str, ModuleType]:
    """The scripts, which are no package, without their names in ``sys.modules``: there are other modules "common"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        for name in SCRIPTS:
            patch.delitem(sys.modules, name, raising=False)
        try:
            return {name: importlib.import_module(name) for name in SCRIPTS}
        finally:
            for name in SCRIPTS:
                sys.modules.pop(name, None)


scripts = _scripts()
common, data, lars, nt_xent, step, table, views = (
    scripts[name] for name in ("common", "data", "lars", "nt_xent", "step", "table", "views")
)


def run(name: str, tmp_path: Path, *arguments: str) -> Any:
    """The results of a script, out of its file."""
    path = tmp_path / "results" / f"{name}.json"
    given = ["--repeats", "2", "--threads", "1", "--output", str(path), *arguments]
    scripts[name].main(given)
    text = path.read_text()
    content = json.loads(text)
    assert list(content) == ["schema", "benchmark", "command", "machine", "settings", "results"]
    assert content["schema"] == 1 and content["benchmark"] == name
    # The whole command, and nothing of this machine's folders.
    assert content["command"] == f"python benchmarks/{name}.py " + " ".join(
        argument if argument != str(path) else f"{name}.json" for argument in given
    )
    assert str(tmp_path) not in text and str(Path.home()) + "/" not in text
    assert content["machine"]["threads"] == 1 and content["machine"]["processor"]
    assert {"python", "conrec_monai", "torch", "monai", "numpy"} <= content["machine"]["versions"].keys()
    assert content["settings"]["repeats"] == 2 and content["settings"]["seed"] == 0
    return content["results"]


def assert_spread(value: dict[str, float]) -> None:
    assert list(value) == ["median", "low", "high"]
    assert 0 < value["low"] <= value["median"] <= value["high"]


# --- common -----------------------------------------------------------------------------------------------------------


def test_interleaved_rotates_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []

    def function(name: str, seconds: Sequence[float]) -> Any:
        durations = iter(seconds)

        def call() -> None:
            calls.append(name)
            clock[0] += next(durations)

        return call

    monkeypatch.setattr(common.time, "perf_counter", lambda: clock[0])
    functions = {"a": function("a", [9, 1, 2, 3]), "b": function("b", [9, 4, 8, 4]), "c": function("c", [9, 5, 5, 5])}
    times = common.interleaved(functions, repeats=3)
    assert times == {"a": [1, 2, 3], "b": [4, 8, 4], "c": [5, 5, 5]}
    assert "".join(calls[3:]) == "abc" + "bca" + "cab" and sorted(calls[:3]) == ["a", "b", "c"]


def test_interleaved_refuses_no_rounds() -> None:
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        common.interleaved({"a": list}, repeats=0)


def test_ratio_is_taken_round_by_round() -> None:
    # 8 / 2, 2 / 4 and 3 / 1; the ratio of the medians would be 3 / 2.
    assert common.ratio({"a": [8.0, 2.0, 3.0], "b": [2.0, 4.0, 1.0]}, "a", "b") == {
        "median": 3.0,
        "low": 0.5,
        "high": 4.0,
    }
    assert common.spread([1.0, 2.0, 3.0, 10.0]) == {"median": 2.5, "low": 1.0, "high": 10.0}


def test_no_file_without_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    common.write(None, "lars", [], {}, [])
    assert not list(tmp_path.iterdir())


def test_absolute_paths_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    common.write(str(path), "lars", [f"--output={path}", "--seed", "1", "out/y.json"], {"output": str(path)}, [])
    content = json.loads(path.read_text())
    assert content["command"] == "python benchmarks/lars.py --output=x.json --seed 1 out/y.json"
    assert content["settings"] == {}


# --- views ------------------------------------------------------------------------------------------------------------


def assert_views(name: str, results: list[dict[str, Any]]) -> None:
    assert [(r["size"], r["masking"]) for r in results] == [(32, False), (32, True)]
    for result in results:
        assert_spread(result[name]["milliseconds_per_view"])
        # 2 images, 4 views
        per_view = result[name]["milliseconds_per_view"]["median"]
        assert result[name]["views_per_second"] == pytest.approx(1000 / per_view)
        assert result[name]["images_per_second"] == pytest.approx(500 / per_view)
        if name != "conrec_monai":
            assert_spread(result[f"{name}_over_conrec_monai"])


def test_views(tmp_path: Path) -> None:
    tracked = get_track_meta()
    results = run("views", tmp_path, "--sizes", "32", "--batch", "2")
    assert get_track_meta() == tracked
    for name in ("conrec_monai", *(["monai", "monai_untracked", "kornia"] if find_spec("kornia") else [])):
        assert_views(name, results)


def test_views_without_kornia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "find_spec", lambda name: None)
    results = run("views", tmp_path, "--sizes", "32", "--batch", "2")
    assert_views("conrec_monai", results)
    for name in ("monai", "monai_untracked", "kornia"):
        assert all(r[name] is None and r[f"{name}_over_conrec_monai"] is None for r in results)


@pytest.mark.parametrize("name", ["conrec_monai", "monai", "kornia"])
def test_chains(name: str) -> None:
    """Two views of each image, the first ones first; a masking changes what the network sees and not the target."""
    if name != "conrec_monai":
        pytest.importorskip("kornia", reason="kornia is not installed (pip install -e .[bench])")
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    images[:4] = 128  # gray: jitter, crop and blur leave it even, and above 0 by far
    before = images.clone()
    tracked = get_track_meta()
    set_track_meta(False)
    try:
        plain, masked = (views.CHAINS[name](32, masking, 0)(images) for masking in (False, True))
    finally:
        set_track_meta(tracked)
    assert torch.equal(images, before)
    for result in (plain, masked):
        for batch in result:
            assert type(batch) is torch.Tensor and batch.dtype == torch.float32 and batch.shape == (16, 3, 32, 32)
        bright = result.target.mean(dim=(1, 2, 3)) > 0.01
        assert bright.tolist() == ([True] * 4 + [False] * 4) * 2
        if name != "monai":  # whose blur darkens the border
            assert (result.target.amax(dim=(1, 2, 3)) - result.target.amin(dim=(1, 2, 3))).max() < 1e-4
    assert torch.equal(plain.input, plain.target) and not torch.equal(masked.input, masked.target)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_nt_xent(tmp_path: Path) -> None:
    results = run("nt_xent", tmp_path, "--sizes", "256")
    assert [r["views"] for r in results] == [256] and results[0]["monai_left_out"] is None
    for name in ("conrec_monai", "monai"):
        assert_spread(results[0]["seconds"][name])
    # (2B)^2 F numbers of 4 bytes are 32 MiB, and the loss of MONAI holds some of such arrays; ours holds none.
    assert results[0]["bytes"]["monai"] > 2**25 > results[0]["bytes"]["conrec_monai"] >= 0
    assert_spread(results[0]["monai_over_conrec_monai"]["seconds"])
    assert results[0]["monai_over_conrec_monai"]["bytes"] > 1


def test_nt_xent_leaves_out_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**18}  # 1 GiB: 6 x 256^2 x 128 x 4 bytes fit, 16 times that do not
    monkeypatch.setattr(nt_xent.os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(nt_xent, "memory_of", lambda *args: 10)
    assert nt_xent.reason_against(256) is None
    assert nt_xent.reason_against(1024) == "needs about 3.0 GiB, more than 75% of 1.0 GiB"
    result = nt_xent.measure(1024, repeats=1, seed=0, threads=1)
    assert result["seconds"]["monai"] is None and result["bytes"] == {"conrec_monai": 10, "monai": None}
    assert result["monai_over_conrec_monai"] is None and result["monai_left_out"].startswith("needs about")
    assert_spread(result["seconds"]["conrec_monai"])


@pytest.mark.parametrize("sizes", [["2"], ["256", "7"]])
def test_nt_xent_refuses_sizes(sizes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        nt_xent.main(["--sizes", *sizes])
    assert "must be even and at least 4" in capsys.readouterr().err


# --- optimizer --------------------------------------------------------------------------------------------------------


def test_lars(tmp_path: Path) -> None:
    (result,) = run("lars", tmp_path, "--features", "2")
    assert result["features"] == 2 and result["tensors"] > 0 and result["parameters"] > 0
    for name in ("lars", "plain", "sgd"):
        assert_spread(result["seconds"][name])
    for name in ("plain_over_lars", "lars_over_sgd"):
        assert_spread(result[name])


def test_plain_loop_is_lars(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lars.check(2, seed=1) < 1e-6
    monkeypatch.setattr(lars, "TRUST", 0.002)  # of both
    assert lars.check(2, seed=1) < 1e-6
    step = lars.PlainLARS.step
    monkeypatch.setattr(lars.PlainLARS, "step", lambda self: (step(self), step(self)))
    with pytest.raises(AssertionError):
        lars.check(2, seed=1)


def test_plain_loop_by_hand() -> None:
    """g = 0.3 + 0.1 x 2 = 0.5; ratio = 0.001 x 2 / 0.5 = 0.004; v = 10 x 0.004 x 0.5 = 0.02, then 0.9 v + ..."""
    weight = torch.nn.Parameter(torch.tensor([[2.0]]))
    bias = torch.nn.Parameter(torch.tensor([1.0]))
    unused = torch.nn.Parameter(torch.tensor([[5.0]]))
    weight.grad, bias.grad = torch.tensor([[0.3]]), torch.tensor([0.5])
    groups = [{"params": [weight, unused]}, {"params": [bias], "weight_decay": 0.0, "trust_coefficient": None}]
    optimizer = lars.PlainLARS(groups, lr=10.0, momentum=0.9, weight_decay=0.1)
    optimizer.step()
    assert weight.item() == pytest.approx(1.98) and bias.item() == pytest.approx(1 - 5) and unused.item() == 5
    # lr x ratio x |g| = lr x 0.001 x |w| = 0.0198; v = 0.018 + 0.0198
    optimizer.step()
    assert weight.item() == pytest.approx(1.98 - 0.0378) and bias.item() == pytest.approx(-4 - 9.5)


# --- embedding --------------------------------------------------------------------------------------------------------


def test_embedding(tmp_path: Path) -> None:
    results = run("embedding", tmp_path, "--images", "60", "--size", "32", "--features", "4", "8")
    phases = ["embed", "linear, published", "linear, standardized"]
    assert list(results["seconds"]) == [*phases, "one by one", "total"]
    for name, value in results["seconds"].items():
        assert_spread(value)
        assert results["images_per_second"][name] == pytest.approx(60 / value["median"])
    assert list(results["share"]) == phases and all(0 < share < 1 for share in results["share"].values())
    assert_spread(results["one_by_one_over_embed"])


# --- grading ----------------------------------------------------------------------------------------------------------


def test_grading(tmp_path: Path) -> None:
    results = run("grading", tmp_path, "--images", "5", "--size", "160")
    assert results["files"] == 5 and results["kilobytes_per_file"] > 1
    assert_spread(results["images_per_second"])
    parts = ["decode", "preprocess", "warnings", "network"]
    assert list(results["milliseconds_per_image"]) == list(results["share"]) == parts
    assert sum(share["median"] for share in results["share"].values()) == pytest.approx(1, abs=0.2)
    once, more = results["peak_mebibytes"].values()
    assert 100 < once < 4000 and 100 < more < 4000
    text = table.page({"grading": json.loads((tmp_path / "results" / "grading.json").read_text())})
    assert "## Grading of files" in text and "5 JPEG files" in text and "| decode |" in text


# --- training ---------------------------------------------------------------------------------------------------------


def test_step(tmp_path: Path) -> None:
    (result,) = run("step", tmp_path, "--cases", "32:8", "--batch", "4", "--workers", "0")
    assert (result["size"], result["features"], result["batch"]) == (32, 8, 4)
    names = ["conrec_monai", "bare", "convolutions", *(["plain", "plain_amp"] if find_spec("kornia") else [])]
    for name in names:
        assert_spread(result[name]["seconds"])
        assert result[name]["images_per_second"] == pytest.approx(4 / result[name]["seconds"]["median"])
    assert_spread(result["conrec_monai_over_bare"])
    assert ("plain" in names) == (result["plain_over_conrec_monai"] is not None)


def test_the_floor_is_every_convolution_of_the_network() -> None:
    """As many passes as there are convolutions, in the given arithmetic."""
    network = step.build(8, 0)
    expected = sum(isinstance(module, torch.nn.Conv2d) for module in network.modules())
    floor = step.convolutions(32, 8, 2, 0, False)
    with torch.profiler.profile() as profile:
        floor()
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::conv2d"] == calls["aten::convolution_backward"] == expected == 22


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network: network)  # tests/engines compiles
    result = run("options", tmp_path, "--size", "32", "--features", "8", "--batch", "2")
    for name in ("eager", "compiled", "recomputed"):
        assert_spread(result["seconds"][name])
    assert 0 < result["kept_bytes"]["recomputed"] < 0.6 * result["kept_bytes"]["eager"]
    assert_spread(result["recomputed_over_eager"])


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "LARGE", (640, 480))
    monkeypatch.setattr(data, "measure_large", lambda *args: large(*args, pixels=(640, 480)))
    for i, array in enumerate(phantom_arrays(8, 48)[0]):
        (tmp_path / "photographs").mkdir(exist_ok=True)
        Image.fromarray(array.transpose(1, 2, 0)).save(tmp_path / "photographs" / f"{i}.jpg")
    arguments = ["--data", "photographs", "--size", "32", "--features", "8", "--batch", "4", "--workers", "1"]
    monkeypatch.chdir(tmp_path)
    decode, wait, sizes = run("data", tmp_path, *arguments)
    assert decode["images"] == 8 and set(decode["images_per_second"]) == {"memory", "empty_cache", "full_cache"}
    for found in wait["found"].values():
        assert 0 < found["data_wait"] < 1 and found["images_per_second"] > 0
    assert set(wait["found"]) == {"memory", "cache", "monai"}
    assert sizes["pixels"] == [640, 480] and set(sizes["images_per_second"]) == {"full_1", "reduced_1"}


large = data.measure_large


def test_growth(tmp_path: Path) -> None:
    """In a process of its own: it starts others. Known data give their exponent."""
    pytest.importorskip("matplotlib")
    few = {"images": "16 32", "side": "32 64", "features": "8 16", "batch": "4 8", "processes": "1 2"}
    options = [text for name, values in few.items() for text in (f"--{name}", *values.split())]
    output, plot = tmp_path / "growth.json", tmp_path / "growth.png"
    program = (
        "import growth\nif __name__ == '__main__':\n    growth.main("
        + repr([*options, "--repeats", "1", "--output", str(output), "--plot", str(plot)])
        + ")\n"
        "    known = growth.fitted('side', {2: [12.0], 4: [48.0], 8: [192.0]})\n"
        "    assert abs(known['exponent'] - 2) < 1e-9 and abs(known['factor'] - 3) < 1e-9, known\n"
        "    assert known['largest_residual'] < 1e-9\n"
    )
    (tmp_path / "main.py").write_text(program)
    subprocess.run(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=200,
    )
    results = json.loads(output.read_text())["results"]
    assert [r["curve"] for r in results] == list(few)
    for result in results:
        assert list(result["seconds"]) == few[result["curve"]].split()
        for spread in result["seconds"].values():
            assert_spread(spread)
    with Image.open(plot) as image:
        assert min(image.size) > 300


# --- the page ---------------------------------------------------------------------------------------------------------


def test_targets_are_judged_by_the_numbers() -> None:
    def spread(value: float) -> dict[str, float]:
        return {"median": value, "low": value - 0.01, "high": value + 0.01}

    def case(features: int, over_bare: float, plain: float) -> dict[str, Any]:
        ratios = {"conrec_monai_over_bare": spread(over_bare), "plain_over_conrec_monai": spread(plain)}
        return {"size": 64, "features": features, "batch": 16, **ratios}

    rows = table.targets({"step": {"results": [case(16, 1.25, 2.0), case(64, 1.11, 2.9)]}})
    assert [row[-1] for row in rows] == ["yes", "**no**", "**no**"]
    assert rows[1][2] == "1.11 (1.10-1.12)"
    waits = {"memory": {"data_wait": 0.001}, "cache": {"data_wait": 0.03}}
    rows = table.targets(
        {
            "views": {"results": [{"size": 64, "masking": True, "monai_over_conrec_monai": spread(5.0)}]},
            "nt_xent": {"results": [{"views": 2048, "monai_over_conrec_monai": {"bytes": 20.0}}]},
            "data": {"results": [{"section": "wait", "size": 224, "features": 16, "found": waits}]},
        }
    )
    assert [row[-1] for row in rows] == ["yes", "**no**", "**no**"]


def test_page(tmp_path: Path) -> None:
    for name in ("lars", "embedding"):
        path = tmp_path / f"{name}.json"
        extra = ["--features", "8"] if name == "lars" else ["--images", "40", "--size", "32"]
        scripts[name].main(["--repeats", "1", "--threads", "1", "--output", str(path), *extra])
    table.main([str(tmp_path)])
    text = (tmp_path / "tables.md").read_text()
    assert "## LARS step" in text and "## Embedding" in text and "## Views" not in text and "## Targets" not in text
    assert "| features 8 |" in text and "`python benchmarks/lars.py --repeats 1" in text
