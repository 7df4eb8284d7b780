"""A contact sheet of pictures with names: one row for each example, one column for each kind of picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor

SMALLEST, LARGEST = 128, 384  # pixels of a cell's longer side
GAP, LINE = 6, 20
INK, PAPER = (30, 30, 30), (255, 255, 255)


def fit(picture: Tensor, side: int) -> Tensor:
    """Scale to a longer side of `side` pixels: repeated pixels when small, averaged when large. (H, W, 3) -> the same."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    x = picture.movedim(-1, 0)[None].float()
    x = F.interpolate(x, size, mode="nearest-exact") if scale >= 1 else F.interpolate(x, size, mode="area")
    return x[0].movedim(0, -1)


def contact_sheet(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Tensor | None]]]) -> Tensor:
    """Lay pictures out.

    Args:
        columns: headings.
        rows: (name, a picture or None for each column), at least one.

    Returns:
        (1, height, width, 3) in [0, 1].
    """
    longest = max(max(p.shape[:2]) for _, pictures in rows for p in pictures if p is not None)
    side = min(max(longest, SMALLEST), LARGEST)
    cells = [[None if p is None else fit(torch.nan_to_num(p.float().cpu()), side) for p in pictures] for _, pictures in rows]
    width = max(c.shape[1] for row in cells for c in row if c is not None)
    heights = [max(c.shape[0] for c in row if c is not None) for row in cells]
    sheet = Image.new("RGB", (GAP + len(columns) * (width + GAP), LINE + sum(heights) + len(rows) * (LINE + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13) if features.check("freetype2") else ImageFont.load_default()
    for i, heading in enumerate(columns):
        draw.text((GAP + i * (width + GAP), 2), _shortened(heading, width, draw, font), INK, font)
    top = LINE
    for (name, _), row, height in zip(rows, cells, heights, strict=True):
        draw.text((GAP, top + 2), _shortened(name, sheet.width - 2 * GAP, draw, font), INK, font)
        for i, cell in enumerate(row):
            if cell is not None:
                pixels = (cell.clamp(0, 1) * 255).round().byte().numpy()
                sheet.paste(Image.fromarray(pixels), (GAP + i * (width + GAP), top + LINE))
        top += LINE + height + GAP
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None]


def _shortened(text: str, width: int, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont) -> str:
    """The text, cut so that it fits into a width in pixels. The plain built-in font knows Latin letters alone."""
    text = " ".join(text.split())  # a line break in a file's name cannot be measured
    text = text if features.check("freetype2") else text.encode("latin-1", "replace").decode("latin-1")
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text[:-2] + "…" if len(text) > 2 and features.check("freetype2") else text[:-1]
    return text
