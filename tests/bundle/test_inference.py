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

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, verify_metadata, verify_net_in_out
from PIL import Image

from conrec_monai import load_encoder
from conrec_monai.bundle import load_for_inference
from conrec_monai.data import CachedImages, load_datalist
from conrec_monai.evaluation import embed
from conrec_monai.networks.nets import ConRecEncoder, ConRecUNet, DenseNetEncoder, SimCLRNet
from conrec_monai.networks.utils import save_checkpoint

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "conrec_pretraining"
CONFIGS = BUNDLE / "configs"
PREPROCESSING = {"image_size": 32, "resize": "pad"}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that is not the bundle's, with an encoder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(7)
    save_checkpoint("encoder.pt", ConRecUNet(features=(4, 8)).encoder, PREPROCESSING)
    return tmp_path


def workflow(**override: Any) -> ConfigWorkflow:
    values = {"checkpoint": "encoder.pt", "output_dir": "out", **override}
    return ConfigWorkflow(
        str(CONFIGS / "inference.json"), logging_file=False, workflow_type="infer", bundle_root=str(BUNDLE), **values
    )


def run(**override: Any) -> None:
    inference = workflow(**override)
    inference.initialize()
    inference.run()
    inference.finalize()


def mistake(**override: Any) -> str:
    with pytest.raises(SystemExit) as stop:
        run(**override)
    message = stop.value.code
    assert isinstance(message, str) and message.startswith("Error: ") and "\n" not in message
    return message.removeprefix("Error: ")


def photographs(folder: Path, count: int = 3) -> Path:
    (folder / "left eyes").mkdir(parents=True)
    (folder / "right eyes").mkdir()
    random = np.random.RandomState(0)
    for i in range(count):
        for side, suffix in (("left", "png"), ("right", "tif")):
            pixels = random.randint(0, 256, (40, 50, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{side} eyes" / f"{i}.{suffix}")
    return folder


def test_embeddings_and_attention_maps(outside: Path) -> None:
    path = photographs(outside / "photos")
    run(dataset_dir="photos", batch_size=4)
    data = load_datalist(path)
    images = CachedImages(data, 32, "pad", progress=False).images
    with np.load("out/inference/embeddings.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["embedding"], embed(load_encoder("encoder.pt"), images), atol=1e-6)
        assert file["id"].tolist() == [item["id"] for item in data]
        assert file["label"].tolist() == [0, 0, 0, 1, 1, 1]
        assert [Path(name).name for name in file["image"]] == ["0.png", "1.png", "2.png", "0.tif", "1.tif", "2.tif"]
    with open("out/inference/embeddings.csv", newline="") as table:
        assert len(list(csv.DictReader(table))) == 6
    pictures = sorted(str(p.relative_to("out/inference/attention_maps")) for p in Path("out").rglob("*.png"))
    assert pictures == [f"left eyes/{i}.png.png" for i in range(3)] + [f"right eyes/{i}.tif.png" for i in range(3)]


@pytest.mark.parametrize("view", ["normalize", "local_contrast"])
def test_field_of_view_of_the_checkpoint(view: str, outside: Path) -> None:
    save_checkpoint("seen.pt", load_encoder("encoder.pt"), {**PREPROCESSING, "field_of_view": view})
    run(dataset_dir="phantom:n=4,size=48", checkpoint="seen.pt", attention_maps=False)
    images = CachedImages(load_datalist("phantom:n=4,size=48"), 32, field_of_view=view, progress=False).images
    with np.load("out/inference/embeddings.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["embedding"], embed(load_encoder("seen.pt"), images), atol=1e-6)


def test_encoder_without_attention(outside: Path) -> None:
    photographs(outside / "photos")
    save_checkpoint("simclr.pt", SimCLRNet(DenseNetEncoder()), PREPROCESSING)
    run(dataset_dir="photos", checkpoint="simclr.pt")
    with np.load("out/inference/embeddings.npz", allow_pickle=False) as file:
        assert file["embedding"].shape == (6, 1024)
    assert not Path("out/inference/attention_maps").exists()
    message = mistake(dataset_dir="photos", checkpoint="simclr.pt", attention_maps=True)
    assert message == "attention_maps needs an encoder that pools by attention; this one has pooling None."


def test_unreadable_file(outside: Path) -> None:
    photographs(outside / "photos")
    Path("photos/left eyes/1.png").write_bytes(b"no picture")
    message = mistake(dataset_dir="photos")
    assert message.startswith("1 of 6 images cannot be loaded: cannot read image photos/left eyes/1.png")
    assert not list(Path("out").rglob("embeddings*"))
    run(dataset_dir="photos", on_error="skip")
    with np.load("out/inference/embeddings.npz", allow_pickle=False) as file:
        assert len(file["id"]) == 5
    assert Path("out/inference/skipped.csv").read_text().splitlines()[1].startswith("left eyes/1.png,")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"checkpoint": "nowhere.pt"}, "no checkpoint at nowhere.pt: no such file."),
        ({"checkpoint": 3}, "checkpoint must be a path, got 3."),
        ({"dataset_dir": "nowhere"}, "data not found: nowhere"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0."),
        ({"num_workers": "two"}, "num_workers must be a whole number of at least 1, got 'two'."),
        ({"attention_maps": "yes"}, "attention_maps must be True, False or null, got 'yes'."),
        ({"device": "gpu"}, "device 'gpu' is not available: "),
        ({"inference_dir": "encoder.pt/x"}, "inference_dir encoder.pt/x cannot be written to: "),
        ({"inference_dir": 3}, "inference_dir must be the path of a folder, got 3."),
        ({"attention_maps": 0}, "attention_maps must be True, False or null, got 0."),
        ({"on_error": "ignore"}, "on_error must be raise or skip, got 'ignore'."),
        ({"label_key": "grade"}, "phantom:n=4,size=32"),
    ],
)
def test_mistake(values: dict[str, Any], message: str, outside: Path) -> None:
    assert mistake(**{"dataset_dir": "phantom:n=4,size=32", **values}).startswith(message)


def test_plain_state_dictionary(tmp_path: Path) -> None:
    torch.manual_seed(3)
    encoder = ConRecEncoder(features=(4, 8))
    torch.save(encoder.state_dict(), tmp_path / "model.pt")
    loaded = load_for_inference(tmp_path / "model.pt", encoder.config, PREPROCESSING)
    assert (loaded.image_size, loaded.resize) == (32, "pad") and not loaded.encoder.training
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded.encoder(x), encoder.eval()(x))
    with pytest.raises(ValueError, match=r"model\.pt does not fit ConRecEncoder"):
        load_for_inference(tmp_path / "model.pt", {"features": (4, 16)}, PREPROCESSING)
    for values, message in (
        ({"architecture": 3}, "architecture must be a dictionary, got 3."),
        ({"architecture": {"channels": 3}}, "no valid ConRecEncoder configuration: .*channels"),
        ({"preprocessing": {"resize": "pad"}}, "preprocessing must hold image_size, a multiple of 2, found None."),
        ({"preprocessing": {"image_size": 33, "resize": "pad"}}, "a multiple of 2, found 33."),
        ({"preprocessing": {"image_size": 32, "resize": "fit"}}, "one of squash, pad, crop, found 'fit'."),
        (
            {"preprocessing": {**PREPROCESSING, "field_of_view": "contrast"}},
            "^preprocessing must hold field_of_view, null, normalize or local_contrast, found 'contrast'.$",
        ),
    ):
        arguments: dict[str, Any] = {"architecture": encoder.config, "preprocessing": PREPROCESSING, **values}
        with pytest.raises(ValueError, match=message):
            load_for_inference(tmp_path / "model.pt", **arguments)
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is not a ConRec checkpoint"):
        load_for_inference(tmp_path / "other.pt", encoder.config, PREPROCESSING)


# --- what MONAI asks of a bundle --------------------------------------------------------------------------------------


def test_inference_has_all_properties(outside: Path) -> None:
    inference = workflow(dataset_dir="phantom:n=4,size=32")
    inference.initialize()
    assert inference.check_properties() == []


def test_training_has_all_properties(outside: Path) -> None:
    values = {"dataset_dir": "phantom:n=80,size=32", "output_dir": "run", "image_size": 32, "features": [4, 8]}
    path = str(CONFIGS / "train.json")
    training = ConfigWorkflow(path, logging_file=False, workflow_type="train", bundle_root=str(BUNDLE), **values)
    training.initialize()
    assert training.check_properties() == []
    assert type(training.evaluator).__name__ == "ConRecEvaluator"


def test_metadata_fits_the_schema(tmp_path: Path) -> None:
    schema = Path(__file__).parent / "metadata_schema.json"
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema))
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    del metadata["network_data_format"]["outputs"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="'outputs' is a required property"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(schema))


def test_network_takes_and_gives_what_the_metadata_says(outside: Path) -> None:
    values = {"net_id": "network_def", "meta_file": str(CONFIGS / "metadata.json"), "device": "cpu", "n": 4}
    verify_net_in_out(**values, config_file=str(CONFIGS / "inference.json"), bundle_root=str(BUNDLE))
    with pytest.raises(ValueError, match="output channel number `8` doesn't match: `128`"):
        verify_net_in_out(**values, config_file=str(CONFIGS / "inference.json"), checkpoint="encoder.pt")


def test_example_weights_are_a_plain_state_dictionary_of_the_network() -> None:
    weights = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    config = json.loads((CONFIGS / "inference.json").read_text())
    encoder = ConRecEncoder(**config["architecture"])
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in encoder.state_dict().items()
    }


def test_several_processes(tmp_path: Path) -> None:
    """Two processes on the CPU train what one does, one of them writes, and the run goes on, in two or in one."""
    several = str([str(CONFIGS / "train.json"), str(CONFIGS / "multi_gpu_train.json")])

    def run(processes: int, **override: Any) -> str:
        values = {"dataset_dir": "phantom:n=40,size=32", "output_dir": "out", "image_size": 32, "features": "[4,8]"}
        values |= {
            "recipe": "paper",
            "batch_size": 8,
            "probe_every": 1,
            "amp": False,
            "bundle_root": BUNDLE,
            **override,
        }
        arguments = [text for name, value in values.items() for text in (f"--{name}", str(value))]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
        config = several if processes == 2 else str(CONFIGS / "train.json")
        result = subprocess.run(
            [sys.executable, *launcher, "-m", "monai.bundle", "run", "--config_file", config, *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=250,
        )
        return result.stdout + result.stderr if result.returncode == 0 else f"failed: {result.stderr[-3000:]}"

    def rows(folder: str) -> list[dict[str, str]]:
        with (tmp_path / folder / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    # average pooling: attention has dropout, which is drawn by each process for itself
    alike = {"pooling": "average", "max_epochs": 2, "probe_every": 0, "optimizer": "sgd", "learning_rate": 0.001}
    alike |= {"masked_views": 1, "masking_fill": "mean", "rotate": True, "upsample": "deconv"}
    assert "epoch 2/2" in run(2, sync_batchnorm=True, output_dir="two", **alike)
    assert "epoch 2/2" in run(1, output_dir="one", **alike)
    for ours, expected in zip(rows("two"), rows("one"), strict=True):
        for name in ("loss", "contrastive_loss", "reconstruction_loss"):
            # small steps, in which float32 rounding grows little; tests/engines has the proof in double precision
            assert float(ours[name]) == pytest.approx(float(expected[name]), rel=1e-3), name
    assert len(list((tmp_path / "two" / "cache").glob("*.images"))) == 1  # which the two have shared

    held_out = {"dataset_dir": "circle-square:train=24,test=16", "validation_section": "test", "output_dir": "other"}
    text = run(2, max_epochs=2, early_stop_patience=1, **held_out)
    losses = re.findall(r"validation: loss ([0-9.]+)", text)
    assert len(losses) == 4 and losses[0::2] == losses[1::2], text  # both processes see one number

    assert "epoch 1/1" in run(2, max_epochs=1)
    first = load_encoder(tmp_path / "out" / "encoder.pt").state_dict()
    for processes, epochs in ((2, 2), (1, 3)):
        text = run(processes, max_epochs=epochs, resume=True)
        assert f"epoch {epochs}/{epochs}" in text and f"epoch {epochs - 1}/{epochs}" not in text, text
    assert [row["epoch"] for row in rows("out")] == ["1", "2", "3"]
    last = load_encoder(tmp_path / "out" / "encoder.pt").state_dict()
    assert not all(torch.equal(value, last[name]) for name, value in first.items())
