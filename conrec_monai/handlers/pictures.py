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
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from PIL import Image, ImageDraw, ImageFont
from skimage.color import lab2rgb
from torch import Tensor, nn

from .health import evaluating, has_attention

__all__ = ["TripletHandler", "attention_overlay", "heat_colors", "picture_grid"]


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


@lru_cache(maxsize=1)
def _heat_table() -> Tensor:
    """256 colors from dark blue over red to light yellow: CIELAB lightness 10 to 90 in equal steps, hue 300 to 90
    degrees, chroma up to 70, all within sRGB. Lighter is more, in gray print and for the color-blind too."""
    t = np.linspace(0, 1, 256)
    hue, chroma = np.deg2rad(300 + 150 * t), 70 * np.sin(np.pi * (0.12 + 0.7 * t))
    lab = np.stack([10 + 80 * t, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    return torch.from_numpy(lab2rgb(lab[None])[0]).float()


def heat_colors(values: Tensor) -> Tensor:
    """Values in [0, 1], B1HW -> colors B3HW: dark blue for 0, red, light yellow for 1, lightness growing evenly."""
    index = (values.detach().float().clamp(0, 1) * 255).round().long()
    return _heat_table().to(values.device)[index[:, 0]].permute(0, 3, 1, 2)


def attention_overlay(images: Tensor, maps: Tensor, opacity: float = 0.5) -> Tensor:
    """Attention maps laid over their images, which are shown in gray, as the color of heat.

    Each map is enlarged bilinearly and divided by its own maximum: the lightest color is where the representation looks
    most, black-blue where it does not look at all, and a map that is the same everywhere is light everywhere. Colors
    of two images do not compare.

    Args:
        images: BCHW, 1 or 3 channels, values in [0, 1].
        maps: B1hw, not negative.
        opacity: of the colors, 0 to 1.

    Returns:
        B3HW, values in [0, 1], on the device of the images.

    Raises:
        ValueError: for other shapes.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or maps.ndim != 4 or maps.shape[:2] != (len(images), 1):
        raise ValueError(
            f"expected images BCHW of 1 or 3 channels and maps B1hw, got {list(images.shape)} and {list(maps.shape)}"
        )
    x, heat = images.detach().float(), maps.detach().to(images.device).float()
    heat = nn.functional.interpolate(heat, x.shape[2:], mode="bilinear", align_corners=False)
    heat = heat / heat.amax(dim=(2, 3), keepdim=True).clamp(min=1e-30)
    if x.shape[1] == 3:
        x = (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)  # luma, ITU-R BT.601
    return (1 - opacity) * x.clamp(0, 1) + opacity * heat_colors(heat)


class TripletHandler:
    """Saves pictures of input, attention, reconstruction and target as ``epoch_0001.png``, ...

    After the first epoch, then every ``every`` epochs, and after the last; images of the last batch of the epoch.
    Without decoder the reconstruction is left out, without an encoder that pools by attention the attention, see
    :func:`attention_overlay`. Source: arXiv 2104.04323, Fig. 1.

    Args:
        output_dir: folder of the pictures; created.
        every: epochs between pictures, 0 for none.
        count: images in a picture.
        encoder: that is trained, for its attention.
        log_dir: TensorBoard folder, to which the same pictures go as ``pictures``; None for none.
        summary_writer: in place of ``log_dir``.

    Raises:
        ValueError: for numbers out of range, both of ``log_dir`` and ``summary_writer``, or missing TensorBoard.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        every: int = 20,
        count: int = 6,
        encoder: Any = None,
        log_dir: str | os.PathLike | None = None,
        summary_writer: Any = None,
    ) -> None:
        if every < 0 or count < 1:
            raise ValueError(f"every must not be negative and count positive, got {every} and {count}.")
        if log_dir is not None and summary_writer is not None:
            raise ValueError("expected one of log_dir and summary_writer, got both.")
        if log_dir is not None and find_spec("tensorboard") is None:
            raise ValueError('log_dir needs TensorBoard: pip install "conrec-monai[tracking]", or leave log_dir out.')
        self.output_dir, self.every, self.count, self.encoder = Path(output_dir), every, count, encoder
        self.log_dir, self.writer = log_dir, summary_writer

    def attach(self, engine: Engine) -> None:
        if self.every:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)
            engine.add_event_handler(Events.COMPLETED, self._close)

    def _save(self, engine: Engine) -> None:
        state = engine.state
        if state.epoch not in (1, state.max_epochs) and state.epoch % self.every:
            return
        titles = {Keys.IMAGE: "input", Keys.PRED: "reconstruction", Keys.LABEL: "target"}
        output = state.output[0]
        shown = len(output[Keys.IMAGE if output[Keys.PRED] is None else Keys.PRED])  # the last ones are restored
        columns = {t: output[k][-shown:][: self.count] for k, t in titles.items() if output[k] is not None}
        if self.encoder is not None and has_attention(self.encoder):
            with evaluating(self.encoder):
                overlay = attention_overlay(columns["input"], self.encoder.attention_map(columns["input"]))
            columns = {"input": columns.pop("input"), "attention": overlay, **columns}
        picture = picture_grid(columns)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        picture.save(self.output_dir / f"epoch_{state.epoch:04d}.png")
        if self.writer is None and self.log_dir is not None:  # not before: a run that fails at once leaves no log
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.log_dir))
        if self.writer is not None:
            self.writer.add_image("pictures", np.asarray(picture), state.epoch, dataformats="HWC")
            self.writer.flush()

    def _close(self, engine: Engine) -> None:
        if self.writer is not None and self.log_dir is not None:  # its own
            self.writer.close()
