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

import os
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["TripletHandler", "picture_grid"]


def picture_grid(columns: dict[str, Tensor], side: int = 128) -> Image.Image:
    """A picture with a titled column per entry and a row per image.

    Args:
        columns: title -> images BCHW, 1 or 3 channels, values in [0, 1].
        side: each image is enlarged to at least this many pixels, by a whole factor and without smoothing.
    """
    pixels = []
    for images in columns.values():
        x = images.detach().float().cpu().clamp(0, 1)
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        factor = max(1, -(-side // x.shape[-1]))
        x = x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        x = torch.nn.functional.pad(x, (2, 2, 2, 2), value=1.0)
        pixels.append(torch.cat(list(x), dim=1))
    body = (torch.cat(pixels, dim=2) * 255).round().byte().permute(1, 2, 0).numpy()
    head = 20
    picture = Image.new("RGB", (body.shape[1], body.shape[0] + head), "white")
    picture.paste(Image.fromarray(np.ascontiguousarray(body)), (0, head))
    draw, font, left = ImageDraw.Draw(picture), ImageFont.load_default(size=13), 0
    for title, column in zip(columns, pixels, strict=True):
        draw.text((left + column.shape[2] // 2, head // 2), title, fill="black", font=font, anchor="mm")
        left += column.shape[2]
    return picture


class TripletHandler:
    """Saves pictures of input, reconstruction and target as ``epoch_0001.png``, ...

    After the first epoch, then every ``every`` epochs, and after the last; images of the last batch of the epoch.
    Without decoder the reconstruction is left out. Source: arXiv 2104.04323, Fig. 1.

    Args:
        output_dir: folder of the pictures; created.
        every: epochs between pictures, 0 for none.
        count: images in a picture.
    """

    def __init__(self, output_dir: str | os.PathLike, every: int = 20, count: int = 6) -> None:
        if every < 0 or count < 1:
            raise ValueError(f"every must not be negative and count positive, got {every} and {count}.")
        self.output_dir, self.every, self.count = Path(output_dir), every, count

    def attach(self, engine: Engine) -> None:
        if self.every:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _save(self, engine: Engine) -> None:
        state = engine.state
        if state.epoch not in (1, state.max_epochs) and state.epoch % self.every:
            return
        titles = {Keys.IMAGE: "input", Keys.PRED: "reconstruction", Keys.LABEL: "target"}
        columns = {t: state.output[k][: self.count] for k, t in titles.items() if state.output[k] is not None}
        self.output_dir.mkdir(parents=True, exist_ok=True)
        picture_grid(columns).save(self.output_dir / f"epoch_{state.epoch:04d}.png")
