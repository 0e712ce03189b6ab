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

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from PIL.PngImagePlugin import PngImageFile, PngInfo
from torch import Tensor

from .health import evaluating, has_attention
from .pictures import attention_overlay, picture_grid

__all__ = ["AttentionMapHandler", "safe_name"]

REFUSED = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f\ud800-\udfff]')
LONGEST = 200  # bytes of a folder or file; most file systems allow 255
MARK = "conrec_monai.handlers.AttentionMapHandler"  # the "Software" of the pictures, by which they are known again


def safe_name(identifier: str) -> str:
    """A relative path for any identifier, without suffix: different ones for different identifiers.

    "/" makes folders. An identifier that is not a safe path (it would leave its folder, as by "..", or has characters
    that some file system refuses) is changed, and a hash of it is appended.

    Raises:
        ValueError: for an empty identifier.
    """
    if not identifier:
        raise ValueError("expected an identifier, got an empty text")
    parts = [REFUSED.sub("_", part).encode()[:LONGEST].decode(errors="ignore") for part in identifier.split("/")]
    name = "/".join(part.rstrip(". ") or "_" for part in parts)
    if name == identifier:
        return name
    digest = hashlib.sha256(identifier.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name}-{digest[:10]}"


class AttentionMapHandler:
    """Writes a picture ``<id>.png`` of each image beside its attention map, see :func:`attention_overlay`.

    For inference, on any MONAI evaluator: of the images that its network takes, BCHW with values in [0, 1]; its
    batches have an ``"id"`` too, one text per image. An id may hold "/", which makes folders; see :func:`safe_name`.
    Images whose ``"status"`` in the batch, if it has one, is not "ok" are passed over. The maps take one more pass
    through the encoder. At the start the pictures of an earlier run are removed from the folder and those below it,
    with folders that are empty then; they are known by a mark in them, so that no other file is ever removed.

    Args:
        output_dir: folder of the pictures; created.
        encoder: that pools by attention.
        side: images are enlarged, by a whole factor, to at least this many pixels a side.

    Raises:
        ValueError: for an encoder without attention, or a ``side`` below 1. While running: for a batch without ids,
            images that are not floating point in [0, 1], or an id that a run has twice.
    """

    def __init__(self, output_dir: str | os.PathLike, encoder: Any, side: int = 256) -> None:
        if not has_attention(encoder):
            pooling = (getattr(encoder, "config", None) or {}).get("pooling")
            has = f"{type(encoder).__name__} has none" if pooling is None else f"the encoder has pooling {pooling!r}"
            raise ValueError(f"attention maps need an encoder that pools by attention, {has}: leave the handler out.")
        if side < 1:
            raise ValueError(f"side must be positive, got {side}.")
        self.output_dir, self.encoder, self.side = Path(output_dir), encoder, side
        self._written: set[str] = set()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        # The images are on the device then, as the network took them, and the batch is not taken apart yet.
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._written.clear()
        try:
            for path in list(self.output_dir.rglob("*.png")):
                if _is_map(path):
                    path.unlink()
                    for folder in path.parents:
                        if folder == self.output_dir or any(folder.iterdir()):
                            break
                        folder.rmdir()
        except OSError as error:
            logging.getLogger("conrec_monai").warning(f"pictures of an earlier run stay in {self.output_dir}: {error}")

    def _write(self, engine: Engine) -> None:
        images, ids = _checked(engine.state.output[Keys.IMAGE], engine.state.batch)
        if "status" in engine.state.batch:
            there = [i for i, status in enumerate(engine.state.batch["status"]) if status == "ok"]
            images, ids = images[there], [ids[i] for i in there]
            if not there:
                return
        with evaluating(self.encoder):
            overlays = attention_overlay(images, self.encoder.attention_map(images))
        for image, overlay, identifier in zip(images, overlays, ids, strict=True):
            if identifier in self._written:
                raise ValueError(f"the id {identifier!r} occurs twice: its picture would be overwritten.")
            self._written.add(identifier)
            path = self.output_dir / f"{safe_name(identifier)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            info = PngInfo()
            info.add_text("Software", MARK)
            picture_grid({"image": image[None], "attention": overlay[None]}, self.side).save(path, pnginfo=info)


def _is_map(path: Path) -> bool:
    """Whether this handler wrote a picture."""
    try:
        with PngImageFile(path) as picture:
            return picture.info.get("Software") == MARK
    except Exception:  # a damaged one, a folder or anything else
        return False


def _checked(images: Any, batch: Any) -> tuple[Tensor, list[str]]:
    images = images.as_tensor() if isinstance(images, MetaTensor) else images
    if images.ndim != 4 or not images.is_floating_point() or not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"AttentionMapHandler needs floating point images BCHW in [0, 1], found {images.dtype} of shape"
            f" {list(images.shape)}, {images.min().item():g} to {images.max().item():g}."
        )
    if not isinstance(batch, Mapping) or "id" not in batch:
        found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"AttentionMapHandler needs an 'id' per image in each batch, found {found}.")
    ids = batch["id"]
    if isinstance(ids, str) or len(ids) != len(images) or not all(isinstance(i, str) for i in ids):
        raise ValueError(f"AttentionMapHandler needs one text as 'id' per image of a batch, found {ids!r}.")
    return images, list(ids)
