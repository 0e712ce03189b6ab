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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conrec_monai.bundle import evaluate_checkpoints
from conrec_monai.data import CachedImages, load_datalist
from conrec_monai.data.datalist import DR_GRADES
from conrec_monai.data.phantom import phantom_arrays
from conrec_monai.evaluation import FoldPlan, central_part, embed, linear_predictions, report, score
from conrec_monai.networks.nets import ConRecUNet, EncoderClassifier
from conrec_monai.networks.utils import load_encoder, save_checkpoint

PREPROCESSING = {"image_size": 32, "resize": "squash"}
PHANTOM = "phantom:n=40,size=32"


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    torch.manual_seed(7)
    save_checkpoint(tmp_path / "encoder.pt", ConRecUNet(features=(4, 8)).encoder, PREPROCESSING)
    return tmp_path / "encoder.pt"


def class_folder(path: Path, classes: int = 3, count: int = 6) -> Path:
    """Images of any size whose color tells the class."""
    random = np.random.RandomState(0)
    for label in range(classes):
        folder = path / f"class {label}"
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = random.randint(0, 60, (40, 50, 3)) + 60 * np.eye(3, dtype=int)[label % 3]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of a quick evaluation."""
    return {"protocols": ["linear"], "untrained_seeds": [], "replicates": 100, "group_duplicates": False}


def found(result: dict[str, Any], model: str, protocol: str = "linear", variant: str | None = "standardized") -> Any:
    (entry,) = [e for e in result["results"] if (e["model"], e["protocol"], e["variant"]) == (model, protocol, variant)]
    return entry["metrics"]


def test_grades(encoder_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output_dir = tmp_path / "a" / "b"
    arguments: dict[str, Any] = {"n_folds": 2, "repeats": 2, "seed": 4, "untrained_seeds": (5,), "replicates": 100}
    result = evaluate_checkpoints(encoder_file, PHANTOM, output_dir, **arguments, command="evaluate it")
    assert json.loads((output_dir / "metrics.json").read_text()) == result
    assert result["schema"] == 2 and result["command"] == "evaluate it" and result["ordinal"] is True
    assert result["dataset"]["path"] == PHANTOM and result["dataset"]["labelled"] == 40
    counts = np.bincount([item["label"] for item in load_datalist(PHANTOM)], minlength=5).tolist()
    assert result["classes"] == [
        {"name": n, "count": c, "test_name": None, "test_count": None} for n, c in zip(DR_GRADES, counts, strict=True)
    ]
    kept = {name: result["folds"][name] for name in ("kind", "n", "repeats", "seed", "left_out", "file", "test")}
    assert kept == {
        "kind": "stratified",
        "n": 2,
        "repeats": 2,
        "seed": 4,
        "left_out": 0,
        "file": "folds.json",
        "test": [20] * 4,
    }
    model = result["models"][0]
    assert model["checkpoint"] == str(encoder_file) and len(model["sha256"]) == 64
    assert model["architecture"] == "U-net 4-8, attention pooling" and model["transductive"] is None
    assert [m["name"] for m in result["models"]] == [
        "pretrained",
        "untrained, seed 5",
        "shortcut baseline",
        "color baseline",
    ]
    printed = capsys.readouterr().out
    assert "pretrained" in printed and printed.endswith(f"\n\nWritten to {output_dir / 'metrics.json'}\n")

    data = load_datalist(PHANTOM)
    labels = np.array([item["label"] for item in data])
    plan = FoldPlan.load(output_dir / "folds.json", [item["id"] for item in data])
    features = embed(load_encoder(encoder_file), CachedImages(data, 32, progress=False).images)
    expected = score(labels, linear_predictions(features, labels, plan.folds, "diabetic", True, 5, None, 4), True, 5)
    assert found(result, "pretrained")["qwk"]["folds"] == expected["qwk"]["folds"]

    # The same command again computes nothing; the folds can be used again, by other settings too.
    again = evaluate_checkpoints(encoder_file, PHANTOM, output_dir, **arguments, command="evaluate it")
    assert again == result
    reused = evaluate_checkpoints(
        encoder_file,
        PHANTOM,
        tmp_path / "c",
        folds=output_dir / "folds.json",
        seed=4,
        untrained_seeds=[],
        replicates=100,
    )
    assert reused["folds"]["seed"] == 4 and found(reused, "pretrained") == found(result, "pretrained")
    (output_dir / "folds.json").write_text("{}")
    with pytest.raises(ValueError, match=r"folds\.json is no file of folds"):
        evaluate_checkpoints(encoder_file, PHANTOM, tmp_path / "d", folds=output_dir / "folds.json")
    with pytest.raises(ValueError, match="has folds of other images: 20 of its 40 are not among the 20"):
        evaluate_checkpoints(encoder_file, "phantom:n=20,size=32", tmp_path / "d", folds=tmp_path / "c" / "folds.json")


def test_several_checkpoints(tmp_path: Path, few: dict[str, Any]) -> None:
    paths = []
    for name, pooling, size in (("one", "attention", 32), ("two", "average", 24)):
        (tmp_path / name).mkdir()
        network = ConRecUNet(features=(4, 8), pooling=pooling)
        save_checkpoint(tmp_path / name / "encoder.pt", network.encoder, {"image_size": size, "resize": "squash"})
        paths.append(str(tmp_path / name / "encoder.pt"))
    few = {**few, "n_folds": 2, "untrained_seeds": [0]}
    result = evaluate_checkpoints(paths, PHANTOM, tmp_path, **few)
    # Each way to prepare the images has untrained encoders and baselines of its own, and is compared with these alone.
    one, two = "32 px, squash, color", "24 px, squash, color"
    assert [m["name"] for m in result["models"]] == [
        "one",
        "two",
        f"untrained U-net 4-8, attention pooling, {one}, seed 0",
        f"untrained U-net 4-8, average pooling, {two}, seed 0",
        f"shortcut baseline, {one}",
        f"color baseline, {one}",
        f"shortcut baseline, {two}",
        f"color baseline, {two}",
    ]
    pairs = {(c["model"], c["other"]) for c in result["comparisons"]}
    assert ("one", "two") in pairs and ("two", f"color baseline, {two}") in pairs
    assert not any(other.endswith(one) or f", {one}," in other for model, other in pairs if model == "two")
    by_name = evaluate_checkpoints({"A": paths[0], "B": paths[1]}, PHANTOM, tmp_path, **few)
    assert found(by_name, "B") == found(result, "two")
    same = evaluate_checkpoints([f"A={paths[0]}", f"B={paths[1]}"], PHANTOM, tmp_path, **few)
    assert [m["name"] for m in same["models"]] == [m["name"] for m in by_name["models"]]
    with pytest.raises(ValueError, match="two checkpoints are named 'one'"):
        evaluate_checkpoints([paths[0], paths[0]], PHANTOM, tmp_path, **few)


def test_runs_of_a_method(tmp_path: Path, few: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    paths = {}
    for number, name in enumerate(("conrec@0", "conrec@1", "b@c@7", "@2")):
        torch.manual_seed(number)
        paths[name] = tmp_path / f"{number}.pt"
        save_checkpoint(paths[name], ConRecUNet(features=(4, 8)).encoder, PREPROCESSING)
    few = {**few, "protocols": ["knn"], "n_folds": 2, "untrained_seeds": [0, 5]}
    result = evaluate_checkpoints(paths, PHANTOM, tmp_path / "result", **few)
    assert [(m["name"], m["method"]) for m in result["models"]] == [
        ("conrec@0", "conrec"),
        ("conrec@1", "conrec"),
        ("b@c@7", "b@c"),
        ("@2", "@2"),
        ("untrained, seed 0", "untrained"),
        ("untrained, seed 5", "untrained"),
        ("shortcut baseline", "shortcut baseline"),
        ("color baseline", "color baseline"),
    ]
    assert json.loads((tmp_path / "result/metrics.json").read_text())["methods"] == result["methods"]
    runs = {(e["method"], e["other"]): (e["runs"], e["other_runs"]) for e in result["methods"]}
    assert runs["conrec", "b@c"] == (2, 1) and runs["conrec", "untrained"] == (2, 2)
    assert runs["b@c", "@2"] == (1, 1) and ("conrec", "conrec") not in runs
    (entry,) = [e for e in result["methods"] if (e["method"], e["other"]) == ("conrec", "untrained")]
    names = ("conrec@0", "conrec@1", "untrained, seed 0", "untrained, seed 5")
    values = [found(result, name, "knn", None)["qwk"]["mean"] for name in names]
    assert entry["metrics"]["qwk"]["a"] == pytest.approx(np.mean(values[:2]))
    assert entry["metrics"]["qwk"]["b"] == pytest.approx(np.mean(values[2:]))
    printed = capsys.readouterr().out
    assert "Means over the runs of each method\n  conrec against\n" in printed and "  @2 against\n" in printed
    # Several untrained encoders alone are no reason.
    evaluate_checkpoints(paths["@2"], PHANTOM, tmp_path / "one", **few)
    printed = capsys.readouterr().out
    assert "Means over the runs" not in printed and "untrained, seed 5  " in printed


def test_dogs_see_the_central_part(tmp_path: Path, few: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = ConRecUNet(in_channels=1, features=(4, 8))
    save_checkpoint(tmp_path / "checkpoint.pt", network, {"image_size": 28, "resize": "crop"})
    path, lists = tmp_path / "data", {"train": range(4), "test": range(4, 6)}
    class_folder(path / "Images")
    for label in range(3):
        (path / "Images" / f"class {label}").rename(path / "Images" / f"n0000000{label}-breed_{label}")
    for split, numbers in lists.items():
        rows = [f"n0000000{label}-breed_{label}/{i}.png\n" for label in range(3) for i in numbers]
        (path / f"{split}_list.txt").write_text("".join(rows))
    result = evaluate_checkpoints(str(tmp_path / "checkpoint.pt"), str(path), str(tmp_path), **few)
    assert result["ordinal"] is False and result["settings"]["center_crop"] == 0.875
    assert result["folds"]["kind"] == "official" and result["metrics"][0] == "top1"
    data = load_datalist(path)
    images = central_part(CachedImages(data, 32, "crop", 1, progress=False).images, 28)  # 28 / 0.875
    labels = np.array([item["label"] for item in data])
    splits = np.array([item["split"] for item in data])
    fold = [(np.flatnonzero(splits == "train"), np.flatnonzero(splits == "test"))]
    predictions = linear_predictions(embed(network.encoder, images), labels, fold, "categorical", True, 3)
    assert found(result, "pretrained")["top1"]["folds"] == score(labels, predictions, False, 3)["top1"]["folds"]


def test_an_official_split_with_an_image_of_none(encoder_file: Path, tmp_path: Path, few: dict[str, Any]) -> None:
    class_folder(tmp_path / "data")
    splits = ["train"] * 3 + ["test"] * 2 + [""]
    rows = [f"class {label}/{i},{label},{splits[i]}\n" for label in range(3) for i in range(6)]
    (tmp_path / "data.csv").write_text("image,label,split\n" + "".join(rows))
    (tmp_path / "data.csv").rename(tmp_path / "data" / "list.csv")
    result = evaluate_checkpoints(encoder_file, tmp_path / "data" / "list.csv", tmp_path, **few)
    assert result["folds"]["kind"] == "official"
    assert (result["folds"]["train"], result["folds"]["test"]) == ([9], [6])


def test_grades_without_names_in_another_data_set(encoder_file: Path, tmp_path: Path, few: dict[str, Any]) -> None:
    class_folder(tmp_path / "data", classes=4)
    for name, classes in (("four", 4), ("three", 3)):
        items = [{"image": f"data/class {c}/{i}.png", "label": c} for c in range(classes) for i in range(6)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"ordinal": True, "all": items}))
    few = {**few, "test_dir": tmp_path / "three.json"}
    result = evaluate_checkpoints(encoder_file, tmp_path / "four.json", tmp_path, **few)
    assert [entry["test_count"] for entry in result["classes"]] == [6, 6, 6, 0]
    few["test_dir"] = tmp_path / "four.json"
    message = r"the 4 grades of .*four\.json \(0, 1, 2, 3\) do not match the 3 of .*three\.json \(0, 1, 2\)"
    with pytest.raises(ValueError, match=message):
        evaluate_checkpoints(encoder_file, tmp_path / "three.json", tmp_path, **few)


def test_columns_and_grades_of_another_data_set(
    encoder_file: Path, tmp_path: Path, few: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    """Grades of other names are matched by their order, which is said; the columns of either table can be named."""
    class_folder(tmp_path / "data")
    rows = [f"class {label}/{i},{label},{2 - label}\n" for label in range(3) for i in range(6)]
    (tmp_path / "data" / "list.csv").write_text("file,grade,reversed_grade\n" + "".join(rows))
    items = [{"image": f"data/class {c}/{i}.png", "label": c} for c in range(3) for i in range(6)]
    labels = {"0": "none", "1": "some", "2": "much"}
    (tmp_path / "named.json").write_text(json.dumps({"ordinal": True, "labels": labels, "all": items}))
    train, test = tmp_path / "named.json", tmp_path / "data" / "list.csv"
    keys = {"test_image_key": "file", "test_label_key": "grade"}
    result = evaluate_checkpoints(encoder_file, train, tmp_path, test_dir=test, **few, **keys)
    assert result["dataset"]["keys"] == {} and result["dataset"]["test_keys"] == {
        "image_key": "file",
        "label_key": "grade",
    }
    assert [entry["test_name"] for entry in result["classes"]] == ["0", "1", "2"]
    assert found(result, "color baseline")["accuracy"]["mean"] == 1
    said = [
        text for text in result["statements"] if "matched by their order: 0 for none, 1 for some, 2 for much." in text
    ]
    assert len(said) == 1 and said[0] in capsys.readouterr().out
    keys["test_label_key"] = "reversed_grade"
    turned = evaluate_checkpoints(encoder_file, train, tmp_path, test_dir=test, **few, **keys)
    assert found(turned, "color baseline")["accuracy"]["mean"] < 0.5
    with pytest.raises(
        ValueError, match="test_label_key is 'reversed_grade', but there is no other data set to test on"
    ):
        evaluate_checkpoints(encoder_file, train, tmp_path, test_label_key="reversed_grade", **few)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["none", "mild", "severe"], ["none", "severe", "most"], r"3 grades .*most\) do not match the 3"),
        (["none", "mild", "severe"], ["none", "mild", "mild"], "several classes of the name 'mild'"),
        (["2", "1", "0"], None, "do not match"),
        (["none", "mild", "severe"], ["mild", "none"], "do not match"),
        (["none", "mild", "severe"], ["x", "y"], "the 2 grades"),
        (["none", "mild", "severe"], ["none", "severe"], ["none", None, "severe"]),
        (["none", "mild", "severe"], ["no", "mild", "bad"], ["no", "mild", "bad"]),
        (["none", "mild", "severe"], None, ["0", "1", "2"]),
    ],
)
def test_which_grade_is_which(
    train: list[str], test: list[str] | None, message: Any, encoder_file: Path, tmp_path: Path, few: dict[str, Any]
) -> None:
    """Matched by name, else by order; never so that a name would mean another grade. The report reads it likewise."""
    class_folder(tmp_path / "data")
    for file, names in (("train", train), ("test", test)):
        items = [
            {"image": f"data/class {label}/{i}.png", "label": label}
            for label in range(3 if names is None else len(names))
            for i in range(6)
        ]
        named = {} if names is None else {"labels": {str(i): name for i, name in enumerate(names)}}
        (tmp_path / f"{file}.json").write_text(json.dumps({"ordinal": True, **named, "all": items}))
    arguments = (encoder_file, tmp_path / "train.json", tmp_path / "out")
    if isinstance(message, str):
        with pytest.raises(ValueError, match=message):
            evaluate_checkpoints(*arguments, test_dir=tmp_path / "test.json", **few)
        return
    result = evaluate_checkpoints(*arguments, test_dir=tmp_path / "test.json", **few)
    assert [entry["test_name"] for entry in result["classes"]] == message
    assert [entry["test_count"] for entry in result["classes"]] == [6 * (name is not None) for name in message]
    data = report._load_data(tmp_path / "out", result, tmp_path / "train.json", {})
    expected = [place for place, name in enumerate(message) if name is not None]
    assert data.labels[18:].tolist() == np.repeat(expected, 6).tolist()


def test_copies_in_another_data_set_are_left_out(encoder_file: Path, tmp_path: Path, few: dict[str, Any]) -> None:
    """Arrays and files of other sizes: copies are found across both and within each, whatever is unlabelled."""
    train = phantom_arrays(30, 32, 3)[0]
    labels = np.arange(30) % 5
    splits = {"train": (train[:20], labels[:20]), "val": (train[20:], labels[20:]), "test": (train[:0], labels[:0])}
    arrays = {f"{name}_images": images.transpose(0, 2, 3, 1) for name, (images, _) in splits.items()}
    arrays |= {f"{name}_labels": values[:, None] for name, (_, values) in splits.items()}
    np.savez(tmp_path / "retinamnist.npz", **arrays)
    (tmp_path / "test").mkdir()
    big = phantom_arrays(12, 96, 4)[0]
    for i, image in enumerate([*big, np.rot90(big[2], axes=(1, 2)), train[7], train[8]]):
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(tmp_path / "test" / f"{i:02}.png")
    rows = [f"{i:02}.png,{'' if i == 0 else i % 5}" for i in range(15)]
    (tmp_path / "test" / "list.csv").write_text("\n".join(["image,grade", *rows]))
    few = {**few, "group_duplicates": True, "test_label_key": "grade"}
    test = tmp_path / "test" / "list.csv"
    result = evaluate_checkpoints(encoder_file, tmp_path / "retinamnist.npz", tmp_path, test_dir=test, **few)
    assert result["dataset"]["duplicate_groups"] == 3 and result["folds"]["left_out"] == 2
    assert (result["folds"]["train"], result["folds"]["test"]) == ([28], [14])
    ids, fold = (json.loads((tmp_path / "folds.json").read_text())[name] for name in ("ids", "folds"))
    left_out = set(range(len(ids))) - set(fold[0]["train"]) - set(fold[0]["test"])
    assert sorted(left_out) == [7, 8]
    few["test_label_key"] = "garde"
    with pytest.raises(
        ValueError, match=r"must have the column garde, found image, grade \(test_label_key names another"
    ):
        evaluate_checkpoints(encoder_file, tmp_path / "retinamnist.npz", tmp_path, test_dir=test, **few)


def test_another_data_set_to_test_on(
    encoder_file: Path, tmp_path: Path, few: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    other = "phantom:n=20,size=32,seed=1"
    result = evaluate_checkpoints(encoder_file, PHANTOM, tmp_path, test_dir=other, **few)
    text = capsys.readouterr().out
    assert f"{PHANTOM}: 40 labelled images, 5 classes, fitted on 40 of them, scored on 20 of {other}" in text
    assert f"Patients are not known in {PHANTOM} and {other}: a patient who is in both" in text
    assert "on the same images, with 95 % intervals" in text and "every fold" not in text
    assert result["folds"]["kind"] == "other data set" and result["dataset"]["test_path"] == other
    assert result["folds"]["train"] == [40] and result["folds"]["test"] == [20]
    sets = [load_datalist(path) for path in (PHANTOM, other)]
    images = torch.cat([CachedImages(data, 32, progress=False).images for data in sets])
    labels = np.array([item["label"] for data in sets for item in data])
    fold = [(np.arange(40), np.arange(40, 60))]
    predictions = linear_predictions(embed(load_encoder(encoder_file), images), labels, fold, "diabetic", True, 5)
    assert found(result, "pretrained")["qwk"]["folds"] == score(labels, predictions, True, 5)["qwk"]["folds"]
    # Classes are matched by name, whatever their numbers.
    class_folder(tmp_path / "abc")
    class_folder(tmp_path / "bc")
    for image in (tmp_path / "bc" / "class 0").iterdir():
        image.unlink()
    (tmp_path / "bc" / "class 0").rmdir()
    matched = evaluate_checkpoints(encoder_file, tmp_path / "abc", tmp_path, test_dir=tmp_path / "bc", **few)
    assert found(matched, "color baseline")["top1"]["mean"] == 1
    assert [entry["count"] for entry in matched["classes"]] == [6, 12, 12]
    assert [entry["test_count"] for entry in matched["classes"]] == [0, 6, 6]
    with pytest.raises(
        ValueError, match=r"3 classes of .*abc \(class 0, .*\) do not match the 2 of .*bc \(class 1, class 2"
    ):
        evaluate_checkpoints(encoder_file, tmp_path / "bc", tmp_path, test_dir=tmp_path / "abc", **few)
    with pytest.raises(ValueError, match="are grades, those of .*abc are classes without order"):
        evaluate_checkpoints(encoder_file, PHANTOM, tmp_path, test_dir=tmp_path / "abc", **few)


def test_pretraining_is_stated(tmp_path: Path, few: dict[str, Any]) -> None:
    network = ConRecUNet(features=(4, 8)).encoder
    hashes = CachedImages(load_datalist(PHANTOM), 32, progress=False).hashes

    def statements(**pretraining: Any) -> tuple[str, dict[str, Any]]:
        save_checkpoint(tmp_path / "encoder.pt", network, PREPROCESSING, pretraining=pretraining)
        result = evaluate_checkpoints(tmp_path / "encoder.pt", PHANTOM, tmp_path, n_folds=2, **few)
        return " ".join(result["statements"]), result["models"][0]

    text, model = statements(image_hashes=hashes[:30].unique(), epoch=4, settings={"max_epochs": 4})
    assert "transductive, it was pretrained on 30 of the 40 test images, without labels" in text
    assert model["transductive"] is True and model["test_images_seen"] == 30
    assert model["pretraining"] == {"epoch": 4, "settings": {"max_epochs": 4}}
    text, model = statements(image_hashes=hashes[:0], epoch=2, settings={"max_epochs": 4})
    assert "other encodings of the same photographs are not recognized" in text
    assert "transductive" not in text and model["transductive"] is False
    assert "a checkpoint of epoch 2 of 4: the training was not finished." in text
    text, _ = statements(image_hashes=hashes[:0], epoch=0, settings={"max_epochs": 4})
    assert "saved before the first of its 4 epochs ended: it is as good as untrained" in text
    text, model = statements(images=hashes[:30].unique(), epoch=4, settings={"max_epochs": 4})  # of an earlier release
    assert "does not say which images it was pretrained on" in text and model["transductive"] is None
    classifier = EncoderClassifier(network, 5)
    save_checkpoint(tmp_path / "encoder.pt", classifier, PREPROCESSING, pretraining={"image_hashes": hashes})
    result = evaluate_checkpoints(tmp_path / "encoder.pt", PHANTOM, tmp_path, n_folds=2, **few)
    assert any("40 test images with their labels: the score is no test" in text for text in result["statements"])


def test_duplicates_stay_on_one_side(encoder_file: Path, tmp_path: Path, few: dict[str, Any]) -> None:
    path = tmp_path / "data"
    class_folder(path)
    for label in (0, 1):  # copies: of each of the first two classes one image, in another class
        image = Image.open(path / f"class {label}" / "0.png")
        image.save(path / "class 2" / f"copy {label}.png")
    few = {**few, "group_duplicates": True, "n_folds": 3}
    result = evaluate_checkpoints(encoder_file, path, tmp_path, **few)
    assert result["folds"]["kind"] == "grouped" and result["dataset"]["duplicate_groups"] == 2
    assert any(
        text.startswith("4 of 20 images are in 2 groups of duplicates") and "the labels differ in 2 of them" in text
        for text in result["statements"]
    )
    content = json.loads((tmp_path / "folds.json").read_text())
    copies = [content["ids"].index(name) for name in ("class 0/0.png", "class 2/copy 0.png")]
    assert all(len({i in fold["test"] for i in copies}) == 1 for fold in content["folds"])
    few["group_duplicates"] = False
    small = ConRecUNet(features=(4, 8)).encoder
    save_checkpoint(tmp_path / "small.pt", small, {"image_size": 16, "resize": "pad"})
    # The folds are those of the data, whatever the encoder takes.
    evaluate_checkpoints(tmp_path / "small.pt", path, tmp_path / "small", **{**few, "group_duplicates": True})
    assert (tmp_path / "small" / "folds.json").read_text() == (tmp_path / "folds.json").read_text()
    loose = evaluate_checkpoints(encoder_file, path, tmp_path / "loose", **few)
    assert loose["folds"]["kind"] == "stratified" and "Duplicates were not searched for" in loose["statements"][0]
    tight = {**few, "group_duplicates": True}
    split = {"kind": "grouped", "n": 1, "repeats": 1, "seed": 0, "left_out": 0, "ids": content["ids"]}
    rest = [i for i in range(20) if i != copies[0]]
    (tmp_path / "bad.json").write_text(json.dumps({**split, "folds": [{"train": rest, "test": copies[:1]}]}))
    with pytest.raises(ValueError, match=r"fold 1 of .*bad\.json has images of one group"):
        evaluate_checkpoints(encoder_file, path, tmp_path / "x", folds=tmp_path / "bad.json", **tight)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("view", ["normalize", "local_contrast"])
def test_field_of_view(view: str, told: bool, encoder_file: Path, tmp_path: Path, few: dict[str, Any]) -> None:
    """As the caller says, or else as the checkpoint was trained."""
    trained = ({"normalize", "local_contrast"} - {view}).pop() if told else view
    save_checkpoint(encoder_file, load_encoder(encoder_file), {**PREPROCESSING, "field_of_view": trained})
    few = {**few, "n_folds": 2, "field_of_view": view if told else None}
    result = evaluate_checkpoints(encoder_file, PHANTOM, tmp_path, **few)
    assert result["settings"]["field_of_view"] == (view if told else None)
    assert any(text.startswith("The shape of a normalized field of view") for text in result["statements"])
    data = load_datalist(PHANTOM)
    images = CachedImages(data, 32, field_of_view=view, progress=False).images
    labels = np.array([item["label"] for item in data])
    plan = FoldPlan.load(tmp_path / "folds.json", [item["id"] for item in data])
    predictions = linear_predictions(embed(load_encoder(encoder_file), images), labels, plan.folds, "diabetic", True, 5)
    assert found(result, "pretrained")["qwk"]["folds"] == score(labels, predictions, True, 5)["qwk"]["folds"]


def test_fields_of_view_side_by_side(tmp_path: Path, few: dict[str, Any]) -> None:
    paths, encoder = [], ConRecUNet(features=(4, 8)).encoder
    for name, view in (("raw", None), ("circle", "normalize"), ("gray", "local_contrast")):
        (tmp_path / name).mkdir()
        save_checkpoint(tmp_path / name / "encoder.pt", encoder, {**PREPROCESSING, "field_of_view": view})
        paths.append(tmp_path / name / "encoder.pt")
    result = evaluate_checkpoints(paths, PHANTOM, tmp_path, n_folds=2, **few)
    views = ("", ", normalized field of view", ", local contrast")
    baselines = [
        f"{name}, 32 px, squash, color{view}" for view in views for name in ("shortcut baseline", "color baseline")
    ]
    assert [model["name"] for model in result["models"]] == ["raw", "circle", "gray", *baselines]


def test_trained_networks(encoder_file: Path, tmp_path: Path, few: dict[str, Any]) -> None:
    few = {**few, "protocols": ["fine_tune", "supervised"], "n_folds": 2}
    result = evaluate_checkpoints(
        encoder_file, PHANTOM, tmp_path, densenet="random", fine_tuning={"epochs": 1, "batch_size": 8}, **few
    )
    assert [(e["model"], e["protocol"]) for e in result["results"]] == [
        ("pretrained", "fine_tune"),
        ("random U-net 4-8, attention pooling", "supervised"),
        ("random DenseNet121", "supervised"),
    ]
    used = result["settings"]["fine_tuning"]
    assert used["fine_tune"]["learning_rate"] == 5e-5 and used["supervised"]["epochs"] == 1
    assert used["supervised"]["init"] == "scratch"


def test_other_categories_see_all(tmp_path: Path, encoder_file: Path, few: dict[str, Any]) -> None:
    path = class_folder(tmp_path / "data")
    result = evaluate_checkpoints(encoder_file, path, tmp_path, n_folds=2, **few)
    assert result["ordinal"] is False and result["settings"]["center_crop"] == 1.0


def test_unreadable_images_are_left_out_when_asked(tmp_path: Path, encoder_file: Path, few: dict[str, Any]) -> None:
    path = class_folder(tmp_path / "data")
    (path / "class 1" / "2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="1 of 18 images cannot be loaded"):
        evaluate_checkpoints(encoder_file, path, tmp_path, n_folds=2, **few)
    result = evaluate_checkpoints(encoder_file, path, tmp_path, n_folds=2, on_error="skip", **few)
    assert [entry["count"] for entry in result["classes"]] == [6, 5, 6]
    assert (tmp_path / "skipped.csv").read_text().splitlines()[1].startswith("class 1/2.png,")


def test_columns_are_named(tmp_path: Path, encoder_file: Path, few: dict[str, Any]) -> None:
    class_folder(tmp_path / "data")
    rows = [f"class {label}/{i},{i % 2},{label}\n" for label in range(3) for i in range(6)]
    (tmp_path / "data" / "grades.csv").write_text("file,level,eye\n" + "".join(rows))
    keys = {"image_key": "file", "label_key": "level", "group_key": "eye"}
    result = evaluate_checkpoints(encoder_file, tmp_path / "data" / "grades.csv", tmp_path, n_folds=3, **few, **keys)
    assert result["ordinal"] is True and result["folds"]["kind"] == "grouped"


def test_whole_image_when_asked(encoder_file: Path, tmp_path: Path, few: dict[str, Any]) -> None:
    path = class_folder(tmp_path / "data")
    result = evaluate_checkpoints(encoder_file, path, tmp_path, n_folds=2, center_crop=1, **few)
    assert result["settings"]["center_crop"] == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_folds": 1}, "n_folds must be a whole number of at least 2, got 1."),
        ({"n_folds": "five"}, "n_folds must be a whole number of at least 2, got 'five'."),
        ({"repeats": 0}, "repeats must be a whole number of at least 1, got 0."),
        ({"seed": 2**32}, "seed must be below 4294967296, got 4294967296."),
        ({"untrained_seeds": [True]}, "untrained_seeds must be a list of whole numbers from 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1."),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0."),
        ({"batch_size": 2.5}, "batch_size must be a whole number of at least 1, got 2.5."),
        ({"num_workers": True}, "num_workers must be a whole number of at least 1, got True."),
        ({"untrained_seeds": 3}, "untrained_seeds must be a list of whole numbers from 0 to 2**32 - 1, got 3."),
        ({"untrained_seeds": ["a"]}, "untrained_seeds must be a list of whole numbers from 0 to 2**32 - 1, got ['a']."),
        ({"center_crop": 0}, "center_crop must be in (0, 1], got 0."),
        ({"center_crop": 1.5}, "center_crop must be in (0, 1], got 1.5."),
        ({"center_crop": "half"}, "center_crop must be in (0, 1], got 'half'."),
        ({"section": "test"}, f"{PHANTOM} has no section 'test'"),
        ({"protocols": ["magic"]}, "protocols must be some of linear, levels, knn,"),
        ({"protocols": []}, "protocols and fractions must be lists of at least one"),
        ({"protocols": 3}, "protocols must be a list of names, got 3."),
        ({"fractions": [0.5, 2]}, "fractions must be in (0, 1], got 2."),
        ({"fractions": [0.5, 0.5]}, "protocols and fractions must be lists of at least one, each named once."),
        ({"fraction_repeats": 0}, "fraction_repeats must be a whole number of at least 1, got 0."),
        ({"replicates": 10}, "replicates must be a whole number of at least 100, got 10."),
        ({"fine_tuning": {"speed": 3}}, "fine_tuning must hold some of optimizer,"),
        ({"fine_tuning": {"epochs": 0}}, "epochs must be a whole number of at least 1, got 0."),
        ({"densenet": 3}, "densenet must be random, imagenet or the path of weights, got 3."),
        ({"field_of_view": "crop"}, "field_of_view must be None, normalize or local_contrast, got 'crop'."),
        ({"group_duplicates": "no"}, "group_duplicates must be True or False, got 'no'."),
        ({"test_dir": "nowhere"}, "data not found: nowhere"),
        ({"folds": "nowhere.json"}, "no folds at nowhere.json: no such file."),
        ({"checkpoint": []}, "checkpoint must be a path, a list of paths or a dictionary of them, got []."),
        ({"n_folds": 41}, "41 folds need at least 41 labelled images, got 40"),
    ],
)
def test_mistake(values: dict[str, Any], message: str, encoder_file: Path, tmp_path: Path) -> None:
    arguments = {"checkpoint": encoder_file, "dataset_dir": PHANTOM, "output_dir": tmp_path / "result"}
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        evaluate_checkpoints(**{**arguments, **values})
    assert str(error.value).startswith(message)
    assert not (tmp_path / "result" / "metrics.json").exists()


def test_files_that_are_no_encoder(encoder_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.pt: no such file"):
        evaluate_checkpoints(tmp_path / "none.pt", PHANTOM, tmp_path / "result")
    content = torch.load(encoder_file, weights_only=True)
    content["config"]["features"] = [4, 16]
    torch.save(content, encoder_file)
    with pytest.raises(ValueError, match=r"encoder\.pt does not fit ConRecEncoder: weights .* of another shape"):
        evaluate_checkpoints(encoder_file, PHANTOM, tmp_path / "result")
    encoder_file.write_text("text")
    with pytest.raises(ValueError, match=r"encoder\.pt (is not a ConRec checkpoint|cannot be read as a checkpoint)"):
        evaluate_checkpoints(encoder_file, PHANTOM, tmp_path / "result")
    assert not (tmp_path / "result").exists()


def test_data_that_cannot_be_scored(encoder_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data not found: .*none"):
        evaluate_checkpoints(encoder_file, tmp_path / "none", tmp_path / "result")
    (tmp_path / "flat").mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "flat" / f"{name}.png")
    with pytest.raises(ValueError, match="flat holds 2 images without labels; an evaluation needs labels"):
        evaluate_checkpoints(encoder_file, tmp_path / "flat", tmp_path / "result")
    path = class_folder(tmp_path / "data")
    (path / "class 1" / "3.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"1 of 18 images cannot be loaded: .*class 1/3\.png"):
        evaluate_checkpoints(encoder_file, path, tmp_path / "result", n_folds=2)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="output_dir .*file is a file, expected a folder to write to"):
        evaluate_checkpoints(encoder_file, PHANTOM, tmp_path / "file")
