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
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from conrec_monai.data import load_datalist
from conrec_monai.evaluation import FoldPrediction, untrained_encoders
from conrec_monai.evaluation.audit import audit
from conrec_monai.evaluation.figures import calibration, confusion_chart, plain_text
from conrec_monai.evaluation.metrics import METRICS, metric_names
from conrec_monai.evaluation.report import write_report
from conrec_monai.networks.nets import ConRecUNet
from conrec_monai.networks.utils import save_checkpoint

DATA = "phantom:n=60,size=32,seed=0"
EVIL = '<script>alert("x")</script> & $a$'
VOID = {"meta", "link", "img", "br", "hr", "input"}
SECTIONS = ("data", "scores", "labels", "confusion", "reliability", "reconstructions", "attention", "map")


def make_run(folder: Path, decoder: bool = True, pooling: str = "attention") -> Path:
    """The files of a pretraining; the path of its encoder."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network = ConRecUNet(features=(4, 8), pooling=pooling, decoder=decoder)
    preprocessing = {"image_size": 32, "resize": "squash"}
    save_checkpoint(folder / "checkpoint.pt", network, preprocessing)
    save_checkpoint(folder / "encoder.pt", network.encoder, preprocessing)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "loss", "contrastive_loss", "reconstruction_loss"])
        writer.writerows([e, 10 / e, 4 / e, 0.1 / e if decoder else 0] for e in (1, 2, 3))
    return folder / "encoder.pt"


def make_result(
    folder: Path, encoders: dict[str, Path], fractions: tuple[float, ...] = (1.0,), ordinal: bool = True
) -> dict[str, Any]:
    """A result as docs/evaluation.md documents it, of two official folds and made-up predictions."""
    (folder / "predictions").mkdir(parents=True)
    datalist = load_datalist(DATA)
    labels = np.array([item["label"] for item in datalist])
    parts = np.arange(len(labels)) % 2
    folds = [(np.flatnonzero(parts == i), np.flatnonzero(parts != i)) for i in (0, 1)]
    ids = [item["id"] for item in datalist]
    content = {"schema": 1, "kind": "stratified", "n": 2, "repeats": 1, "seed": 0, "left_out": 0, "ids": ids}
    content["folds"] = [{"train": a.tolist(), "test": b.tolist()} for a, b in folds]
    (folder / "folds.json").write_text(json.dumps(content))
    models: list[dict[str, Any]] = [
        {
            "name": name,
            "kind": "checkpoint",
            "architecture": "U-net 4-8, attention pooling",
            "parameters": 1000,
            "checkpoint": str(path),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "0",
            "pretraining": {"epoch": 3, "settings": {"max_epochs": 3}},
            "transductive": True,
            "test_images_seen": 60,
            "trained_with_labels": False,
        }
        for name, path in encoders.items()
    ]
    about = {"architecture": "U-net 4-8, attention pooling", "parameters": 1000, "seed": 0}
    models.append({"name": "untrained, seed 0", "kind": "untrained", **about})
    models += [{"name": f"{word} baseline", "kind": "baseline"} for word in ("shortcut", "color")]
    names, generator = metric_names(ordinal, 5), np.random.RandomState(0)
    results = []
    for number, model in enumerate(models):
        for protocol, variant in (("knn", None), ("linear", "standardized")):
            for fraction in fractions:
                found, arrays = [], {}
                for i, (_, test) in enumerate(folds):
                    p = generator.dirichlet(np.ones(5), len(test)) + (1 + number) * np.eye(5)[labels[test]] / 4
                    found.append(FoldPrediction.of_classes(test, p / p.sum(1, keepdims=True)))
                    arrays |= {f"test_{i}": test, f"probabilities_{i}": found[i].probabilities}
                    arrays[f"predicted_{i}"] = found[i].predicted
                file = f"predictions/{len(results)}.npz"
                np.savez(folder / file, settings=np.array("{}"), **arrays)
                metrics = {}
                for name in names:
                    values = [METRICS[name](labels[f.test], f.predicted, f.probabilities) for f in found]
                    mean = float(np.mean(values))
                    interval = [mean - 0.05, mean + 0.05]
                    metrics[name] = {"mean": mean, "std": float(np.std(values)), "folds": values, "interval": interval}
                results.append(
                    {
                        **{"model": model["name"], "protocol": protocol, "variant": variant, "fraction": fraction},
                        **{"features": 8, "train_images": 30 * fraction},
                        **{"metrics": metrics, "settings": {"C": [1.0, 1.0]}, "predictions": file},
                    }
                )
    comparisons = []
    for number, other in enumerate(models[1:]):
        for a in results:
            if a["model"] == models[0]["name"]:
                value = {"difference": 0.1 * number - 0.1, "interval": [0.1 * number - 0.15, 0.1 * number - 0.05]}
                entry = {"model": a["model"], "other": other["name"], "other_kind": other["kind"]}
                entry |= {"protocol": a["protocol"], "other_protocol": a["protocol"], "variant": a["variant"]}
                entry |= {"fraction": a["fraction"], "metrics": {name: {**value, "p": 0.0123} for name in names}}
                comparisons.append(entry)
    counts = np.bincount(labels, minlength=5).tolist()
    result = {
        "schema": 2,
        "command": "python -m conrec_monai evaluate 'a & b.pt'",
        "dataset": {
            **{"path": DATA, "section": None, "name": "drawn eyes", "source": "phantom", "test_path": None},
            **{"test_section": None, "labelled": 60, "unlabelled": 0, "groups": None, "duplicate_groups": 0},
        },
        "classes": [{"name": n, "count": c} for n, c in zip(["No DR", "<b>Mild", "2", "3", "4"], counts, strict=True)],
        "ordinal": ordinal,
        "folds": {
            **{"kind": "stratified", "n": 2, "repeats": 1, "seed": 7, "left_out": 0, "file": "folds.json"},
            **{"train": [30, 30], "test": [30, 30]},
        },
        "settings": {
            **{"protocols": ["linear", "knn"], "fractions": list(fractions), "fraction_repeats": 3},
            **{"center_crop": 1.0, "field_of_view": None, "replicates": 1000, "seed": 4711, "fine_tuning": {}},
        },
        "statements": ["ConRec: transductive, it was pretrained on 60 of the 60 test images, without labels."],
        "models": models,
        "metrics": list(names),
        "results": results,
        "comparisons": comparisons,
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "machine": {"processor": "a processor", "threads": 2, "device": "cpu", "system": "Linux"},
    }
    (folder / "metrics.json").write_text(json.dumps(result))
    return result


class Page(HTMLParser):
    """Checks that what opens is closed, and collects what a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th") and self.cells:
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.cells[-1][-1] += data

    def ids(self) -> list[str]:
        return [i for _, attributes in self.tags if (i := attributes.get("id"))]

    def figures(self) -> list[str]:
        return [tag for tag, _ in self.tags if tag in ("img", "figure")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any], str]:
    """Folder, result folder, result and the page of a whole report, with all figures as files."""
    folder = tmp_path_factory.mktemp("report")
    encoders = {"ConRec": make_run(folder / "a"), EVIL: make_run(folder / "b", decoder=False, pooling="average")}
    result = make_result(folder / "result", encoders, (0.1, 1.0))
    manifest = audit(load_datalist(DATA), progress=False)
    manifest["dataset"]["path"] = "<i>b.png"
    (folder / "audit.json").write_text(json.dumps(manifest))
    page = write_report(
        folder / "result", folder / "report.html", audit=folder / "audit.json", figures=folder / "figures"
    )
    return folder, folder / "result", result, page.read_text(encoding="utf-8")


def test_page_is_well_formed_and_whole(made: Any) -> None:
    page = Page(made[3])
    ids = page.ids()
    assert len(ids) == len(set(ids))
    for name in [f"{section}-1" for section in SECTIONS] + ["training", "audit", "provenance"]:
        assert name in ids
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert links and all(link and link[1:] in ids for link in links)
    for tag, attributes in page.tags:
        if tag == "img" or attributes.get("role") == "img":
            assert attributes.get("alt") or attributes.get("aria-label")
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(headings, headings[1:], strict=False))


def test_page_loads_nothing(made: Any) -> None:
    text = made[3]
    page = Page(text)
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert "http://" not in text and "https://" not in text and "@import" not in text
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "poster", "data"):
                assert value is not None and value.startswith(("#", "data:"))
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", text))
    # Every reference inside a figure leads to something in the page.
    ids = set(page.ids())
    assert set(re.findall(r"url\(#(.*?)\)", text)) | set(re.findall(r'href="#(.*?)"', text)) <= ids


def test_names_are_escaped(made: Any) -> None:
    text = made[3]
    assert "<script" not in text and "<b>Mild" not in text and "<i>b.png" not in text
    words = "".join(Page(text).words)
    assert EVIL in words and "<b>Mild" in words and "<i>b.png" in words and "'a & b.pt'" in words


def test_tables_hold_the_numbers_of_the_result(made: Any) -> None:
    _, _, result, text = made
    rows = Page(text).cells
    for entry in result["results"]:
        if entry["fraction"] < 1:
            continue
        cells = []
        for name in result["metrics"]:
            value = entry["metrics"][name]
            low, high = value["interval"]
            cells.append(f"{value['mean']:.3f}[{low:.3f}, {high:.3f}]".replace("-", "−"))
        assert [entry["model"], *cells] in rows, entry["model"]
    expected = {EVIL: ("worse", "−0.100"), "untrained, seed 0": ("no", "+0.000"), "color baseline": ("better", "+0.2")}
    for other, (verdict, difference) in expected.items():
        found = [row for row in rows if row[0] == f"ConRec − {other}"]
        assert len(found) == 2
        assert all(
            r[1].startswith(verdict) and r[1].endswith("p = 0.012") and r[2].startswith(difference) for r in found
        )
    assert any(row[:1] == ["ConRec"] and len(row) == 3 for row in rows)  # by share of the labels
    assert "(30 images)" in text and "do not cover the draw of the labels" in text


def test_page_says_what_must_be_known(made: Any) -> None:
    words = "".join(Page(made[3]).words)
    for text in ("transductive, it was pretrained on 60 of the 60", "4711", "seed 7", "3.11.9", "a processor"):
        assert text in words
    assert "There are no splits that could leak." in words and "it was trained without reconstruction" in words
    assert "does not pool by attention" in words
    ece = next(
        e["metrics"]["ece"]["mean"]
        for e in made[2]["results"]
        if (e["model"], e["variant"], e["fraction"]) == ("ConRec", "standardized", 1)
    )
    assert f"Reliability: ConRec. ECE {ece:.3f}." in words


def test_confusion_counts(made: Any) -> None:
    folder, results, result, text = made
    entry = next(e for e in result["results"] if e["variant"] == "standardized" and e["fraction"] == 1)
    labels = np.array([item["label"] for item in load_datalist(DATA)])
    with np.load(results / entry["predictions"]) as file:
        right = sum(int((labels[file[f"test_{i}"]] == file[f"predicted_{i}"]).sum()) for i in (0, 1))
    assert f"Confusion matrix of ConRec: {right} of 60 on the diagonal." in text


def test_figures_are_files_too(made: Any) -> None:
    folder, _, _, text = made
    page = Page(text)
    names = sorted(path.name for path in (folder / "figures").iterdir())
    assert len(names) == 2 * page.figures().count("figure") and page.figures().count("img") == 2
    for path in (folder / "figures").iterdir():
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert any("confusion_conrec" in name for name in names) and any("reconstructions_conrec" in n for n in names)


def test_same_input_same_bytes_and_no_photographs_on_request(made: Any) -> None:
    folder, results, _, text = made
    write_report(results, folder / "again.html", audit=folder / "audit.json", figures=folder / "again")
    assert (folder / "again.html").read_text(encoding="utf-8") == text
    for path in (folder / "figures").iterdir():
        assert (folder / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    write_report(results, folder / "none.html", pictures="none", credit="from <the> clinic, CC BY 4.0")
    page = Page((folder / "none.html").read_text(encoding="utf-8"))
    assert "from <the> clinic, CC BY 4.0" in "".join(page.words)
    assert "img" not in page.figures() and "image" not in {tag for tag, _ in page.tags}
    assert "data:image" not in (folder / "none.html").read_text(encoding="utf-8")
    assert "confusion-1" in page.ids() and "Photographs are left out" in "".join(page.words)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are left empty: what is tested is what the page says."""
    monkeypatch.setattr("conrec_monai.evaluation.figures.to_svg", lambda figure: '<svg viewBox="0 0 9 9"></svg>')
    monkeypatch.setattr("conrec_monai.evaluation.figures.to_png", lambda figure: b"")
    monkeypatch.setattr("conrec_monai.evaluation.report._tsne", lambda features: features[:, :2])


@pytest.mark.usefixtures("undrawn")
def test_several_results(tmp_path: Path) -> None:
    encoder = make_run(tmp_path / "a")
    raw = make_result(tmp_path / "raw", {"ConRec": encoder})
    other = make_result(tmp_path / "other", {"ConRec": encoder})
    write_report([tmp_path / "raw", tmp_path / "other"], tmp_path / "new" / "r.html", pictures="none")
    assert "<h2>phantom:n=60,size=32,seed=0 (other)</h2>" in (tmp_path / "new" / "r.html").read_text(encoding="utf-8")
    page = Page((tmp_path / "new" / "r.html").read_text(encoding="utf-8"))
    assert {"overview", "evaluation-1", "evaluation-2", "map-1", "encoders-2"} <= set(page.ids())
    assert "map-2" not in page.ids()  # the same encoders on the same images
    value = raw["results"][1]["metrics"]["qwk"]["mean"]  # linear, standardized
    row = next(row for row in page.cells if row[0] == "ConRec" and len(row) == 3 and row[1] == row[2])
    assert row[1].startswith(f"{value:.3f}")
    assert "".join(page.words).count("One point per epoch") == 3  # one run, whatever the number of results
    other["settings"]["field_of_view"] = "normalize"
    (tmp_path / "other" / "metrics.json").write_text(json.dumps(other))
    write_report([tmp_path / "raw", tmp_path / "other"], tmp_path / "new" / "r.html", pictures="none")
    assert "map-2" in Page((tmp_path / "new" / "r.html").read_text(encoding="utf-8")).ids()
    other["dataset"]["path"] = "phantom:n=61,size=32,seed=0"
    (tmp_path / "other" / "metrics.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="for results of one alone"):
        write_report([tmp_path / "raw", tmp_path / "other"], tmp_path / "r.html", dataset=DATA)


@pytest.mark.usefixtures("undrawn")
def test_what_is_gone_is_left_out_with_a_note(tmp_path: Path) -> None:
    result = make_result(tmp_path / "r", {"ConRec": make_run(tmp_path / "a")})

    def words(**changes: Any) -> str:
        (tmp_path / "r" / "metrics.json").write_text(json.dumps({**result, **changes}))
        page = Page(write_report(tmp_path / "r", tmp_path / "r.html").read_text(encoding="utf-8"))
        assert {f"{section}-1" for section in SECTIONS} <= set(page.ids())
        return "".join(page.words)

    gone = words(dataset={**result["dataset"], "path": "gone"})
    assert gone.count("The data set could not be used: data not found: gone") == 5
    assert "is not the data set of" in words(dataset={**result["dataset"], "path": "phantom:n=20,size=32,seed=0"})
    assert "has other labels" in words(classes=[*result["classes"][:4], {"name": "4", "count": 1}])
    # The same number of images per class, but not of the same images.
    (tmp_path / "a" / "encoder.pt").write_bytes((tmp_path / "a" / "checkpoint.pt").read_bytes())
    assert "encoder.pt has changed since the evaluation" in words()
    (tmp_path / "a" / "encoder.pt").unlink()
    (tmp_path / "a" / "metrics.csv").unlink()
    text = words()
    assert f"no checkpoint at {tmp_path / 'a' / 'encoder.pt'}" in text and "no metrics.csv beside" in text
    assert "Confusion matrix: ConRec." in text
    (tmp_path / "r" / result["results"][1]["predictions"]).write_bytes(b"no")
    assert "cannot be read (truncated or damaged?)" in words()
    (tmp_path / "r" / result["results"][1]["predictions"]).unlink()
    assert "no predictions at" in words()
    (tmp_path / "r" / "folds.json").write_text("{}")
    assert "is no file of folds" in words()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("ordinal", [True, False])
def test_other_labels_than_the_evaluation_saw(tmp_path: Path, ordinal: bool) -> None:
    """The right number of images of each class, but of others: the accuracy, or top1, tells."""
    make_result(tmp_path / "r", {"ConRec": make_run(tmp_path / "a")}, ordinal=ordinal)

    def words() -> str:
        return "".join(Page(write_report(tmp_path / "r", tmp_path / "r.html").read_text(encoding="utf-8")).words)

    message = "do not give the accuracy of the result"
    assert message not in words()
    content = json.loads((tmp_path / "r" / "folds.json").read_text())
    content["ids"] = content["ids"][1:] + content["ids"][:1]
    (tmp_path / "r" / "folds.json").write_text(json.dumps(content))
    assert message in words()


def test_mistakes(tmp_path: Path) -> None:
    result = make_result(tmp_path / "r", {"ConRec": make_run(tmp_path / "a")})
    (tmp_path / "empty").mkdir()
    output = tmp_path / "report.html"
    for folder, message in (("none", "none: no such folder"), ("empty", "empty: no metrics.json in it")):
        with pytest.raises(FileNotFoundError, match=message):
            write_report(tmp_path / folder, output)

    def change(message: str, **changes: Any) -> None:
        path = tmp_path / "r" / "metrics.json"
        path.write_text(json.dumps({k: v for k, v in {**result, **changes}.items() if v is not None}))
        with pytest.raises(ValueError, match=message):
            write_report(tmp_path / "r", output)

    change("metrics.json has schema 1, this release reads 2", schema=None)
    change("metrics.json has schema 3, this release reads 2", schema=3)
    change("damaged or incomplete: 'comparisons' is missing", comparisons=None)
    change("results is empty", results=[])
    change("results has the model 'ConRec', which models lacks", models=result["models"][1:])
    change("expected a number or null, found 'x'", results=[_with(result["results"][0], "x")])
    (tmp_path / "r" / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        write_report(tmp_path / "r", output)
    (tmp_path / "r" / "metrics.json").write_text(json.dumps({"schema": 1, "settings": {}, "epoch": 3}))
    with pytest.raises(ValueError, match="is that of a training"):
        write_report(tmp_path / "r", output)

    (tmp_path / "r" / "metrics.json").write_text(json.dumps(result))
    (tmp_path / "half.json").write_text(json.dumps({"schema": 1, "dataset": {"path": "x"}}))
    for arguments, message in (
        ({"dataset": "gone"}, "data not found: gone"),
        ({"dataset": "phantom:n=20,size=32,seed=0"}, "is not the data set of"),
        ({"pictures": "some"}, "pictures must be all or none"),
        ({"audit": tmp_path / "no.json"}, "no audit at"),
        ({"audit": tmp_path / "r" / "metrics.json"}, "metrics.json is no audit.json of conrec-monai audit"),
        ({"audit": tmp_path / "half.json"}, "half.json is damaged or incomplete: 'shortcut' is missing"),
        ({"figures": tmp_path / "r" / "metrics.json"}, "is a file, expected a folder"),
        ({"color": "x"}, "unexpected argument color"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            write_report(tmp_path / "r", output, **arguments)
    with pytest.raises(ValueError, match="is a folder"):
        write_report(tmp_path / "r", tmp_path)
    with pytest.raises(ValueError, match="at least one folder"):
        write_report([], output)
    assert not output.exists()


def _with(entry: dict[str, Any], mean: Any) -> dict[str, Any]:
    qwk = {**entry["metrics"]["qwk"], "mean": mean}
    return {**entry, "metrics": {**entry["metrics"], "qwk": qwk}}


@pytest.mark.usefixtures("undrawn")
def test_unknown_numbers(tmp_path: Path) -> None:
    result = make_result(tmp_path / "r", {"ConRec": make_run(tmp_path / "a")})
    for entry in result["results"]:
        entry["metrics"]["auroc"] = {"mean": None, "std": None, "folds": [None], "interval": [None, None]}
        entry["metrics"]["qwk"]["interval"] = [None, None]
    for entry in result["comparisons"]:
        entry["metrics"]["qwk"] = {"difference": None, "interval": [None, None], "p": None}
    (tmp_path / "r" / "metrics.json").write_text(json.dumps(result))
    page = Page(write_report(tmp_path / "r", tmp_path / "r.html", pictures="none").read_text(encoding="utf-8"))
    row = next(row for row in page.cells if row[0] == "ConRec" and len(row) == 8)
    assert row[result["metrics"].index("auroc") + 1] == "–"
    row = next(row for row in page.cells if row[0] == "ConRec − untrained, seed 0")
    assert row[1:3] == ["no clear difference ", "–"]


def test_missing_matplotlib_says_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r'pip install "conrec-monai\[plots\]"'):
        write_report(tmp_path, tmp_path / "r.html")


def test_calibration_adds_up_to_the_metric() -> None:
    generator = np.random.RandomState(0)
    probabilities = generator.dirichlet(np.ones(4), 200)
    predicted, labels = probabilities.argmax(1), generator.randint(0, 4, 200)
    counts, mean, share = calibration(probabilities.max(1), predicted == labels)
    gaps = np.where(counts > 0, np.abs(np.nan_to_num(mean) - np.nan_to_num(share)) * counts, 0).sum() / 200
    assert counts.sum() == 200 and gaps == pytest.approx(METRICS["ece"](labels, predicted, probabilities))
    # 0.2 is the upper edge of the third of 15 bins.
    counts, mean, share = calibration(np.array([0.2, 0.21, 1.0, 1.0]), np.array([True, False, True, False]))
    assert np.flatnonzero(counts).tolist() == [2, 3, 14] and counts.max() == 2
    assert share[[2, 3, 14]].tolist() == [1, 0, 0.5] and mean[14] == 1


def test_plain_text_holds_nothing_that_breaks_a_page() -> None:
    assert plain_text("a\x00b\ud800c\x1b目") == "a\ufffdb\ufffdc\ufffd目"


def test_untrained_encoders_are_those_of_the_evaluation() -> None:
    """The report draws them again by their seed."""
    first, second = (
        next(iter(untrained_encoders(lambda: ConRecUNet(features=(4, 8)).encoder, [0]).values())) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_in_chromium(made: Any, tmp_path: Path) -> None:
    """The page as a browser shows it: nothing is asked of the network, no complaint, all pictures are there."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    # A script of the test reads what the browser made of it; the policy of the page would forbid it.
    policy = re.search(r"<meta http-equiv=[^>]*>", made[3])
    assert policy
    script = (
        "<script>window.onload = () => { const box = [...document.querySelectorAll('figure img, figure svg')];"
        "document.title = 'sizes ' + box.map(e => e.naturalWidth ?? e.getBoundingClientRect().width).join(' ')"
        " + ' page ' + document.documentElement.scrollWidth + ' of ' + innerWidth"
        " + ' loads ' + performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length;"
        "}</script></body>"
    )
    (tmp_path / "page.html").write_text(
        made[3].replace(policy[0], "").replace("</body>", script), encoding="utf-8"
    )  # fmt: skip
    shutil.copy(made[0] / "report.html", tmp_path / "strict.html")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        " --disable-component-update --disable-sync --enable-logging=stderr --window-size=500,900 --dump-dom"
    ).split()
    for name in ("page", "strict"):
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [chromium, *flags, profile, (tmp_path / f"{name}.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
        assert "http://" not in done.stdout and "https://" not in done.stdout
        if name == "page":
            title = re.search(r"<title>sizes (.*?) page (\d+) of (\d+) loads (\d+)</title>", done.stdout)
            assert title, done.stdout[:500]
            sizes = [float(size) for size in title[1].split()]
            assert len(sizes) == Page(made[3]).figures().count("figure") and min(sizes) > 100
            assert int(title[2]) <= int(title[3])  # nothing is wider than a phone
            assert title[4] == "0"


def test_confusion_of_many_classes_has_whole_ticks() -> None:
    figure = confusion_chart(np.eye(20, dtype=int), [f"class {i}" for i in range(20)])
    figure.canvas.draw()
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert all(float(tick).is_integer() for tick in axis.get_majorticklocs())
