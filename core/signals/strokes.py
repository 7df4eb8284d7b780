"""The sketch editor's strokes -> coverage, as docs/editor_state.md defines it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .editor_state import check_state, drawn_size, is_number, items, load_json, shown, size_ratios
from .raster import cover_line

NAME = "strokes"
EXAMPLE = ("Draw in the node's editor, leave it empty, or write it as in docs/editor_state.md, such as "
           '{"version": 1, "width": 512, "height": 512, "strokes": [{"tool": "brush", "size": 6, "points": [5, 5, 90, 40]}]}.')
MAX_STROKES, MAX_POINTS = 10_000, 500_000


class Stroke(NamedTuple):
    """points: (N, 2) x, y in pixels of the picture drawn on.  size: diameter in pixels."""

    tool: str
    size: float
    points: np.ndarray


class Strokes(NamedTuple):
    """The contents of a sketch editor's state. state: the JSON object, for its sizes.  notes: what was left out, for a warning."""

    state: dict
    strokes: tuple[Stroke, ...]
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the picture drawn on."""
        return drawn_size(self.state, NAME)


def read_strokes(text: str | None) -> Strokes:
    """Read a sketch editor's text.

    Raises:
        ValueError: naming the node, the input, what is wrong and what to do.
    """
    state = check_state(load_json(text, NAME, EXAMPLE), NAME, EXAMPLE)
    strokes, notes, total = [], [], 0
    for number, entry in enumerate(items(state, "strokes", MAX_STROKES, NAME), 1):
        where = f"stroke {number} of {NAME}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where} is {shown(entry)}, not an object. {EXAMPLE}")
        tool, size, points = entry.get("tool", "brush"), entry.get("size", 1), entry.get("points", [])
        if tool not in ("brush", "eraser"):
            raise ValueError(f"{where} has the tool {shown(tool)}; it must be 'brush' or 'eraser'.")
        if not is_number(size) or size < 1:
            raise ValueError(f"{where} has the size {shown(size)}; it must be a diameter of at least 1 pixel.")
        if not isinstance(points, list) or not all(is_number(v) for v in points):
            wrong = points if not isinstance(points, list) else next(v for v in points if not is_number(v))
            raise ValueError(f"{where} has {shown(wrong)} in its points; they must be finite numbers x, y, x, y ...")
        if len(points) % 2:
            raise ValueError(f"{where} has {len(points)} coordinates; they must come in pairs x, y. Remove or add one.")
        total += len(points) // 2
        if total > MAX_POINTS:
            raise ValueError(f"{NAME} has more than {MAX_POINTS} points. Draw with fewer.")
        if points:
            strokes.append(Stroke(tool, float(size), np.array(points, np.float64).reshape(-1, 2)))
        else:
            notes.append(f"stroke {number} has no points and was left out")
    if strokes:
        drawn_size(state, NAME)
    return Strokes(state, tuple(strokes), tuple(notes))


def draw_strokes(strokes: Strokes, height: int, width: int, stretch: bool = False) -> Tensor:
    """Draw strokes on a picture of height x width pixels, in their order.

    Args:
        stretch: also if the picture drawn on has another aspect ratio.

    Returns:
        (H, W) float32, 1 on strokes, 0 elsewhere, edges one pixel soft.

    Raises:
        ValueError: another aspect ratio.
    """
    canvas = np.zeros((height, width))
    if strokes.strokes:
        ratios = size_ratios(strokes.state, height, width, stretch, NAME)
        for tool, size, points in strokes.strokes:
            cover_line(canvas, points * ratios, size * float(np.sqrt(ratios[0] * ratios[1])), tool == "eraser")
    return torch.from_numpy(canvas).float()
