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

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from conrec_monai.networks.layers import SyncBatchNorm, synchronize_batch_norm
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.utils import end_processes

WORLD = 2
PARTS = (slice(0, 5), slice(5, 7))  # unequal: 5 and 2 images
SHAPES = {"B[C]": (7, 3), "BC[W]": (7, 3, 6), "BC[H][W]": (7, 3, 4, 5)}
STEPS = 2


def _batch(shape: tuple[int, ...], step: int) -> tuple[Tensor, Tensor]:
    """Images far from zero, and what the output is multiplied by for the loss."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 10
    return x, torch.randn(shape, generator=generator, dtype=torch.float64)


def _norm(kind: type, **arguments: Any) -> nn.Module:
    norm = kind(3, **arguments).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
        if norm.bias is not None:
            norm.bias.copy_(torch.tensor([0.25, -3.0, 1.0]))
    return norm


def _results(norm: nn.Module, shape: tuple[int, ...], part: slice) -> dict[str, Any]:
    """Of training steps with a part of each batch; the loss is a sum over images, of cubes too."""
    found: dict[str, Any] = {}
    for step in range(STEPS):
        whole, factor = _batch(shape, step)
        x = whole[part].clone().requires_grad_()
        y = norm(x)
        (factor[part] * y + y**3).sum().backward()
        found[f"output {step}"], found[f"input gradient {step}"] = y.detach(), x.grad
    found["gradients"] = {name: p.grad for name, p in norm.named_parameters()}
    found["state"] = norm.state_dict()
    norm.eval()
    x = _batch(shape, 9)[0][part]
    found["evaluated"] = norm(x).detach()
    return found


ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cumulative": {"momentum": None},
    "other": {"momentum": 0.3, "eps": 0.1},
}


def _network() -> ConRecUNet:
    torch.manual_seed(4)
    return ConRecUNet(features=(4, 8), pooling="average", projection_dim=6, gradient_checkpointing=True)


def _network_results(network: nn.Module, part: slice, world: int) -> dict[str, Any]:
    x = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(6))[part]
    output = network(x)
    # DistributedDataParallel takes the mean of the processes' gradients.
    (world * (output.projection.square().sum() + (output.reconstruction - x).square().sum())).backward()
    return {
        "output": [value.detach() for value in output],
        "gradients": [p.grad for p in network.parameters()],
        "buffers": list(network.buffers()),
    }


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    found: dict[str, Any] = {}
    for shape in SHAPES:
        for name, arguments in ARGUMENTS.items():
            found[f"{shape} {name}"] = _results(_norm(SyncBatchNorm, **arguments), SHAPES[shape], PARTS[rank])
    whole = _batch(SHAPES["BC[H][W]"], 0)[0]
    untracked = SyncBatchNorm(3, affine=False, track_running_stats=False).double()
    found["untracked"] = untracked(whole[PARTS[rank]])
    half = SyncBatchNorm(3)(whole[PARTS[rank]].bfloat16())
    found["bfloat16"] = half.detach()
    with torch.autocast("cpu", torch.bfloat16):
        found["autocast"] = SyncBatchNorm(3)(whole[PARTS[rank]].bfloat16()).detach()
    network = synchronize_batch_norm(_network(), "cpu")
    found["network"] = _network_results(nn.parallel.DistributedDataParallel(network), PARTS[rank], WORLD)
    torch.save(found, f"{folder}/{rank}.pt")
    end_processes()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(_work, (str(folder),), WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def _plain(shape: str) -> type:
    return nn.BatchNorm2d if shape == "BC[H][W]" else nn.BatchNorm1d


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_processes_give_batch_norm_of_the_whole_batch(processes: list, shape: str, name: str) -> None:
    results = [result[f"{shape} {name}"] for result in processes]
    expected = _results(_norm(_plain(shape), **ARGUMENTS[name]), SHAPES[shape], slice(None))

    def close(actual: Any, wanted: Any) -> None:
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)

    for key in expected.keys() - {"gradients", "state"}:
        close(torch.cat([result[key] for result in results]), expected[key])
    for parameter, gradient in expected["gradients"].items():
        close(sum(result["gradients"][parameter] for result in results), gradient)
    for result in results:
        close(result["state"], expected["state"])
        assert result["state"]["num_batches_tracked"] == STEPS


def test_processes_without_parameters_and_statistics(processes: list) -> None:
    expected = nn.functional.batch_norm(_batch(SHAPES["BC[H][W]"], 0)[0], None, None, training=True)
    torch.testing.assert_close(torch.cat([result["untracked"] for result in processes]), expected)


def test_processes_compute_bfloat16_in_float32(processes: list) -> None:
    x = _batch(SHAPES["BC[H][W]"], 0)[0].bfloat16().float()
    expected = nn.functional.batch_norm(x, None, None, training=True).bfloat16()
    for key in ("bfloat16", "autocast"):
        actual = torch.cat([result[key] for result in processes])
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual, expected, rtol=2**-7, atol=1e-6)  # one unit in the last place


def test_processes_train_a_recomputing_network_as_one(processes: list) -> None:
    results = [result["network"] for result in processes]
    expected = _network_results(_network(), slice(None), 1)
    for index, output in enumerate(expected["output"]):
        actual = torch.cat([result["output"][index] for result in results])
        torch.testing.assert_close(actual, output, rtol=1e-4, atol=1e-5)
    for result in results:
        torch.testing.assert_close(result["gradients"], expected["gradients"], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(result["buffers"], expected["buffers"], rtol=1e-4, atol=1e-5)
        assert {int(b) for b in result["buffers"] if b.dtype == torch.int64} == {1}


# --- one process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_single_process_is_plain_batch_norm(shape: str) -> None:
    expected = _results(_norm(_plain(shape)), SHAPES[shape], slice(None))
    torch.testing.assert_close(_results(_norm(SyncBatchNorm), SHAPES[shape], slice(None)), expected, rtol=0, atol=0)
    assert SyncBatchNorm(3)(torch.rand(SHAPES[shape], dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("training", [True, False])
def test_wrong_dimension(training: bool) -> None:
    with pytest.raises(ValueError, match=r"expected an input of shape B\[C\] or BC\[H\]\[W\], got \(3,\)"):
        SyncBatchNorm(3).train(training)(torch.rand(3))


def test_all_norms_of_a_network_are_replaced() -> None:
    torch.manual_seed(0)
    network = ConRecUNet(features=(4, 8, 8), projection_dim=6)
    x = torch.rand(4, 3, 16, 16)
    for _ in range(2):
        network(x)
    network.projection.norm_2.weight.requires_grad_(False)
    network.encoder.levels[0].eval()  # a frozen part
    before = copy.deepcopy(network)
    parameters = dict(network.named_parameters())

    assert synchronize_batch_norm(network, "cpu") is network
    names = [name for name, m in before.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert names == [name for name, m in network.named_modules() if type(m) is SyncBatchNorm]
    assert len(names) == 3 + 6 + 4 + 2 + 3  # attention, encoder, decoder, skip paths, projection
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in network.modules())
    for name, old in before.named_modules():
        new = network.get_submodule(name)
        assert new.training == old.training
        if name in names:
            assert (new.eps, new.momentum, new.num_features) == (old.eps, old.momentum, old.num_features)
    assert network.projection.norm_2.bias is None and not network.projection.norm_2.weight.requires_grad
    assert list(network.state_dict()) == list(before.state_dict())
    torch.testing.assert_close(dict(network.state_dict()), dict(before.state_dict()), rtol=0, atol=0)
    assert all(p is parameters[name] for name, p in network.named_parameters())  # an optimizer may hold them already
    for training in (False, True):
        outputs = []
        for net in (network, before):
            torch.manual_seed(1)  # for the dropout of the attention
            outputs.append(list(net.train(training)(x)))
        torch.testing.assert_close(*outputs, rtol=0, atol=0)
    before.load_state_dict(network.state_dict())  # a checkpoint of one is one of the other


def test_norms_without_statistics_or_parameters() -> None:
    network = nn.Sequential(
        nn.BatchNorm2d(3, affine=False, momentum=None), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()
    )
    before = copy.deepcopy(network)
    synchronize_batch_norm(network, "cpu")
    assert list(network.state_dict()) == list(before.state_dict())
    x = torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(network(x), before(x), rtol=0, atol=0)
    torch.testing.assert_close(network.eval()(x), before.eval()(x), rtol=0, atol=0)


def test_on_cuda_those_of_torch() -> None:
    network = synchronize_batch_norm(nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm1d(4))), "cuda")
    assert type(network[0]) is type(network[1][0]) is nn.SyncBatchNorm
