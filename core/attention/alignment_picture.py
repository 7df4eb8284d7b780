"""An edit's words as a picture: the source's on the left, the edited prompt's on the right, lines from word to word."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .edit import Edit, Mark

WIDTH, ROW, TOP, BOX, MIDDLE = 760, 34, 70, 26, 150  # pixels; MIDDLE is what the lines have to cross
LEFT = 250  # right edge of the source's words
SIZE = 16
PAPER, INK, FAINT, AREA, AWAY = (255, 255, 255), (30, 30, 30), (120, 120, 120), (0, 90, 200), (150, 60, 160)
COLOURS = {"kept": (225, 225, 225), "swapped": (255, 205, 120), "added": (160, 220, 160), "removed": (240, 170, 165)}


def alignment_picture(edit: Edit) -> Tensor:
    """(1, H, 760, 3) in [0, 1]: colours for kept, swapped, added and removed words, blue frames where the edit may act."""
    rows = max(len(edit.source.words), len(edit.edited.words))
    picture = Image.new("RGB", (WIDTH, TOP + ROW * rows + 10), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(SIZE)
    _legend(pen, font)
    links = word_links(edit)
    taken = {i for i, _, _ in links}
    for i, j, state in links:
        start, end = (LEFT, _middle(i)), (LEFT + MIDDLE, _middle(j))
        pen.line((*start, *end), fill=FAINT if state == "kept" else COLOURS[state], width=2 if state == "kept" else 4)
    for i, (word, mark) in enumerate(zip(edit.source.words, edit.source_marks, strict=True)):
        width = pen.textlength(word, font) + 16
        _word(pen, font, word, (LEFT - width, _middle(i)), width, "kept" if i in taken else "removed", mark)
    for j, (word, mark) in enumerate(zip(edit.edited.words, edit.marks, strict=True)):
        width = pen.textlength(word, font) + 16
        _word(pen, font, word, (LEFT + MIDDLE, _middle(j)), width, mark.state, mark)
        pen.text((LEFT + MIDDLE + width + 12, _middle(j)), _remarks(mark), fill=INK, font=font, anchor="lm")
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0)[None]


def word_links(edit: Edit) -> list[tuple[int, int, str]]:
    """(source word, edited word, state) for every pair of words of which one lends its map to the other."""
    word_of = {p: i for i, positions in enumerate(edit.source.positions) for p in positions}
    out = []
    for j, (positions, mark) in enumerate(zip(edit.edited.positions, edit.marks, strict=True)):
        rows = edit.alignment.mapper[:, list(positions)].any(1).nonzero().flatten().tolist()
        out += [(i, j, mark.state) for i in sorted({word_of[p] for p in rows if p in word_of})]
    return out


def _middle(row: int) -> float:
    return TOP + ROW * row + ROW / 2


def _word(pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont, word: str, at: tuple[float, float], width: float, state: str,
          mark: Mark) -> None:
    x, y = at
    frame = AREA if mark.blend else AWAY if mark.away else None
    pen.rounded_rectangle((x, y - BOX / 2, x + width, y + BOX / 2), 6, COLOURS[state], frame, 3 if frame else 0)
    pen.text((x + width / 2, y), word, fill=INK, font=font, anchor="mm")


def _remarks(mark: Mark) -> str:
    remarks = [] if mark.weight == 1.0 else [f"x {mark.weight:g}"]
    if mark.steps is not None:
        remarks.append(f"steps {mark.steps[0]:g} to {mark.steps[1]:g}")
    return ", ".join(remarks)


def _legend(pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont) -> None:
    x = 12.0
    for name, colour in COLOURS.items():
        pen.rounded_rectangle((x, 10, x + 18, 28), 4, colour)
        pen.text((x + 24, 19), name, fill=INK, font=font, anchor="lm")
        x += 36 + pen.textlength(name, font) + 12
    for name, colour in (("edit acts here", AREA), ("not here", AWAY)):
        pen.rounded_rectangle((x, 10, x + 18, 28), 4, PAPER, colour, 3)
        pen.text((x + 24, 19), name, fill=INK, font=font, anchor="lm")
        x += 36 + pen.textlength(name, font) + 12
    pen.text((LEFT, 50), "source prompt", fill=FAINT, font=font, anchor="rm")
    pen.text((LEFT + MIDDLE, 50), "edited prompt", fill=FAINT, font=font, anchor="lm")
