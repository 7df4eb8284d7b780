"""Where words look, as masks and pictures.

Legend: F frames, K words, h w cells of a map, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .difference import colours
from .prompt import relative_map

SHOWN_FRAMES = 8  # columns of a sheet; longer clips are shown at even distances
CELL, LABEL, GAP, HEAD = 96, 130, 4, 24  # pixels
PAPER, INK = (255, 255, 255), (30, 30, 30)


def word_mask(maps: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """(F, h, w) -> (F, H, W), 1 where a word looks by the rule of local blend, else 0."""
    return (relative_map(maps, size) > threshold).float()


def heat(maps: Tensor, size: tuple[int, int], frames: Tensor | None = None) -> Tensor:
    """(F, h, w) -> (F, H, W, 3): black, red, yellow, white; each frame's largest value is white.

    Args:
        frames: (F, H, W, 3) in [0, 1] to lay the colours over, None for none.
    """
    largest = maps.amax((-2, -1), keepdim=True)
    relative = torch.where(largest > 0, maps / largest, 0.0)
    out = colours(F.interpolate(relative[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0].clamp(0, 1))
    return out if frames is None else 0.5 * out + 0.5 * frames


def word_sheet(maps: Tensor, words: Sequence[str]) -> Tensor:
    """A picture of every word's maps, a row for each: (F, K, h, w) -> (1, H, W, 3) in [0, 1]."""
    chosen = torch.linspace(0, len(maps) - 1, min(SHOWN_FRAMES, len(maps))).round().long().tolist()
    height, width = _cell(maps.shape[-2:])
    rows, columns = len(words), len(chosen)
    sheet = Image.new("RGB", (LABEL + columns * (width + GAP), HEAD + rows * (height + GAP)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, frame in enumerate(chosen):
        pen.text((LABEL + column * (width + GAP) + width / 2, HEAD / 2), f"{frame}", fill=INK, font=font, anchor="mm")
    for row, word in enumerate(words):
        y = HEAD + row * (height + GAP)
        pen.text((LABEL - 8, y + height / 2), word, fill=INK, font=font, anchor="rm")
        for column, picture in enumerate(heat(maps[chosen, row], (height, width))):
            cell = Image.fromarray((picture.cpu().numpy() * 255).round().astype(np.uint8))
            sheet.paste(cell, (LABEL + column * (width + GAP), y))
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255.0)[None]


def _cell(size: tuple[int, int]) -> tuple[int, int]:
    longest = max(size)
    return tuple(max(1, round(CELL * side / longest)) for side in size)
