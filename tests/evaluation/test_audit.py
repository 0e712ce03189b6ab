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
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conrec_monai.data import Datalist, load_datalist, phantom_arrays
from conrec_monai.data.datalist import DatalistInfo
from conrec_monai.evaluation import audit, audit_page, format_audit
from conrec_monai.evaluation.audit import _ellipse, _field_of_view


def disc(height: int, width: int, x: float, y: float, a: float, b: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] + 0.5
    return ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 <= 1


def save(path: Path, image: np.ndarray, **options: Any) -> None:
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(path, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with one of each flaw."""
    folder = tmp_path_factory.mktemp("data")
    images = phantom_arrays(7, 128, 5)[0]
    for i, image in enumerate(images):
        save(folder / f"p{i}.png", image)
    save(folder / "same.bmp", images[0])  # the same pixels in another file
    save(folder / "again.jpg", images[1], quality=70)
    save(folder / "turned.png", np.rot90(images[1], 1, (1, 2)))
    save(folder / "black.png", np.zeros((3, 128, 128), np.uint8))
    gray = np.random.default_rng(0).normal(90, 3, (3, 128, 128)).round().astype(np.uint8)
    save(folder / "gray.png", gray)
    save(folder / "cut <b>.jpg", images[6], quality=90)
    content = (folder / "cut <b>.jpg").read_bytes()
    (folder / "cut <b>.jpg").write_bytes(content[: len(content) * 9 // 10])
    rows = [
        ("p0.png", 0, "train", "a"),
        ("p1.png", 1, "train", "b"),
        ("p2.png", 0, "train", "c"),
        ("p3.png", 1, "train", "d"),
        ("p4.png", 0, "test", "d"),
        ("p5.png", 2, "test", ""),
        ("same.bmp", 0, "test", ""),
        ("again.jpg", 2, "train", ""),
        ("turned.png", "", "train", ""),
        ("black.png", 0, "train", ""),
        ("gray.png", 0, "test", ""),
        ("cut <b>.jpg", 0, "train", ""),
        ("gone.png", 0, "train", ""),
    ]
    lines = ["image,grade,split,group", *(",".join(map(str, row)) for row in rows)]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict[str, Any]:
    return audit(load_datalist(folder / "list.csv", label_key="grade", on_error="skip"), progress=False)


def test_what_is_found(folder: Path, manifest: dict[str, Any]) -> None:
    def paths(*names: str) -> list[str]:
        return [str(folder / name) for name in names]

    assert manifest["schema"] == 1 and manifest["images"] == 12
    assert manifest["exact"] == [paths("p0.png", "same.bmp")]
    assert manifest["near"] == [paths("p1.png", "again.jpg", "turned.png")]
    assert manifest["groups"] == manifest["exact"] + manifest["near"]
    assert manifest["conflicting_labels"] == [
        {"images": paths("p1.png", "again.jpg", "turned.png"), "labels": [1, 2, None]}
    ]
    assert manifest["splits_crossed"] == [
        {"kind": "duplicates", "group": None, "splits": ["train", "test"], "images": paths("p0.png", "same.bmp")},
        {"kind": "group", "group": "d", "splits": ["train", "test"], "images": paths("p3.png", "p4.png")},
    ]
    assert manifest["own_groups"] == {"groups": 4, "images": 5}
    (unreadable,) = manifest["unreadable"]
    assert unreadable["image"] == str(folder / "cut <b>.jpg") and "truncated" in unreadable["reason"]
    (missing,) = manifest["missing"]
    assert missing["image"].endswith("gone.png")
    assert manifest["blank"] == paths("black.png", "gray.png") and manifest["black"] == paths("black.png")
    assert manifest["sizes"] == {"0": {"128x128": 6}, "1": {"128x128": 2}, "2": {"128x128": 2}, "none": {"128x128": 1}}
    assert [(row["label"], row["images"], row["splits"]) for row in manifest["classes"]] == [
        (0, 7, {"train": 4, "test": 3}),
        (1, 2, {"train": 2, "test": 0}),
        (2, 2, {"train": 1, "test": 1}),
        (None, 1, {"train": 1, "test": 0}),
    ]
    assert {label: row["images"] for label, row in manifest["field_of_view"].items()} == {
        "0": 6,
        "1": 2,
        "2": 2,
        "none": 1,
    }


def test_the_manifest_is_json_and_the_same_again(folder: Path, manifest: dict[str, Any]) -> None:
    datalist = load_datalist(folder / "list.csv", label_key="grade", on_error="skip")
    assert json.loads(json.dumps(manifest)) == manifest == audit(datalist, num_workers=1, progress=False)


def test_text(manifest: dict[str, Any]) -> None:
    text = format_audit(manifest)
    assert "Leak: 1 group of duplicates and 1 group of the data set (4 images) lie on both sides of a split." in text
    assert re.search(r"exact duplicates: +1 group, 2 images", text)
    assert re.search(r"near duplicates: +1 group, 3 images", text)
    assert re.search(r"blank: +2, of which 1 all black", text)
    assert max(map(len, text.splitlines())) < 200


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags[tag] += 1
        assert not {"src", "href", "onclick"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page(folder: Path, manifest: dict[str, Any]) -> None:
    text = audit_page(manifest)
    page = _Page(text)
    assert page.open == [] and page.tags["table"] == 4 and not page.tags["b"] and not page.tags["img"]
    assert "cut <b>.jpg" in page.text and "Leak: 1 group of duplicates" in page.text
    assert "http" not in text and "viewport" in text and "@media print" in text


def test_images_in_memory_go_by_their_id() -> None:
    items = list(load_datalist("phantom:n=6,size=64,seed=2"))
    extra = {**items[4], "id": "copy", "image": items[4]["image"][:, ::-1].copy(), "split": "test"}
    items = [{**item, "split": "train"} for item in items]
    info = DatalistInfo("phantom", "drawn", "here", ordinal=True)
    found = audit(Datalist([*items, extra], info), progress=False)
    assert found["near"] == found["groups"] == [["phantom-00004", "copy"]] and found["exact"] == []
    assert [entry["kind"] for entry in found["splits_crossed"]] == ["duplicates"]
    shallow = [{**item, "image": item["image"].astype(np.uint16) * 257} for item in items]
    deep = audit(Datalist(shallow, info), progress=False)
    assert (
        deep["groups"] == deep["blank"] == []
        and deep["field_of_view"] == audit(Datalist(items, info), progress=False)["field_of_view"]
    )


def test_retinamnist_and_shapes_have_no_false_groups(shared_data: Path) -> None:
    found = audit(load_datalist("circle-square:train=60,test=30"), progress=False)
    assert found["near"] == [] and found["blank"] == [] and "No leak across splits" in format_audit(found)
    small = load_datalist(shared_data / "retinamnist" / "retinamnist.npz", "val")
    found = audit(small, progress=False)
    assert found["images"] == 120 and found["near"] == [] and found["sizes"]["0"] == {"28x28": 54}


def test_idrid(shared_data: Path) -> None:
    datalist = load_datalist(shared_data / "idrid", "train")
    kept = [12, 20, *range(40, 80), 390, 396]
    found = audit(Datalist([datalist[i] for i in kept], datalist.info), progress=False)
    names = [[Path(image).stem for image in group] for group in found["groups"]]
    assert names == [["IDRiD_013", "IDRiD_397"], ["IDRiD_021", "IDRiD_391"]]
    assert len(found["exact"]) == len(found["near"]) == 1
    assert sum(row["shapes"].get("cut at top or bottom", 0) for row in found["field_of_view"].values()) > 40


@pytest.mark.parametrize(
    ("mask", "shape", "axes"),
    [
        (disc(200, 200, 100, 100, 90, 90), "full disc", (0.45, 0.45)),
        (disc(200, 200, 100, 98, 80, 95), "full disc", (0.40, 0.475)),
        (disc(200, 240, 120, 100, 110, 130), "cut at top or bottom", (110 / 240, 0.65)),
        (disc(200, 200, 100, 120, 95, 95), "cut at top or bottom", (0.475, 0.475)),
        (disc(240, 200, 100, 120, 130, 110), "cut at left or right", (0.65, 110 / 240)),
        (disc(200, 200, 100, 100, 115, 115), "cut both ways", (0.575, 0.575)),
    ],
)
def test_field_of_view(mask: np.ndarray, shape: str, axes: tuple[float, float]) -> None:
    mask = mask.copy()
    mask[95:105, 196:] = True  # a scrap of text
    field = _field_of_view(mask)
    assert field.shape == shape and field.half_axes == pytest.approx(axes, abs=0.01)


def test_what_is_no_disc() -> None:
    assert _field_of_view(np.ones((80, 90), bool)) == ("no dark border", None)
    assert _field_of_view(np.zeros((80, 90), bool)) == ("no disc", None)
    two = disc(120, 120, 35, 60, 25, 25) | disc(120, 120, 90, 60, 20, 20)
    assert _field_of_view(two).shape == "no disc"
    assert _ellipse(disc(3, 3, 1.5, 1.5, 1, 1)) is None


def test_the_shortcut_is_told() -> None:
    """The grade follows the shape of the field of view: guessed right from the other images of that shape."""
    noise = np.random.default_rng(0).integers(60, 200, (12, 3, 96, 96), dtype=np.uint8)
    full, cut = disc(96, 96, 48, 48, 44, 44), disc(96, 96, 48, 48, 44, 70)
    items = [
        {"image": noise[i] * (cut if i % 2 else full), "label": i % 2, "group": None, "split": None, "id": str(i)}
        for i in range(12)
    ]
    found = audit(Datalist(items, DatalistInfo("x", "x", "x")), progress=False)
    # With the image itself left out, 5 of the 11 others have its label: the most common one is always the other.
    assert found["shortcut"] == {"most_common_label": 0.0, "field_of_view": 1.0, "size": 0.0}
    assert found["field_of_view"]["1"]["shapes"] == {"cut at top or bottom": 6}
    assert found["field_of_view"]["1"]["half_axes_pixels"] == pytest.approx([44, 70], abs=1.5)
    assert "There are no splits" in format_audit(found)


def test_mistakes(folder: Path) -> None:
    datalist = load_datalist("phantom:n=2,size=64")
    with pytest.raises(ValueError, match="num_workers must be a whole number of at least 1, got 0"):
        audit(datalist, num_workers=0)
    with pytest.raises(ValueError, match="no images to audit"):
        audit(Datalist([], datalist.info))


def test_only_damaged_images(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n no more")
    found = audit(load_datalist(tmp_path, on_error="skip"), progress=False)
    assert len(found["unreadable"]) == 2 and found["groups"] == [] and found["field_of_view"] == {}
    assert "unreadable or truncated:  2" in format_audit(found) and audit_page(found)
