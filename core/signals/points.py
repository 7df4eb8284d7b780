"""Drags as users and the drag editor write them -> tensors (docs/editor_state.md)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .editor_state import check_state, drawn_size, is_number, items, load_json, shown, size_ratios, stretch_notes

NAME = "points"
EXAMPLE = "Write each drag as [source x, source y, target x, target y], such as [[40, 30, 80, 30]]."
MAX_DRAGS = 2_000  # the network's tokens are fewer, and finding drags that meet costs the square


class Drags(NamedTuple):
    """points: (1, K, 4) source x, y, target x, y as shares of width and height.  notes: what was left out, for a warning."""

    points: Tensor
    notes: tuple[str, ...]


def read_drags(text: str | None, height: int, width: int, stretch: bool = False) -> Drags:
    """Read drags between pixels of a picture. One whose two points are the same is left out, with a note.

    Args:
        text: the drag editor's JSON, or a JSON list of lists of four numbers: source x, y, target x, y in pixels, 0 the
            picture's left or upper border, width or height the other one.
        height, width: of the connected picture.
        stretch: also if the picture drawn on has another aspect ratio.

    Raises:
        ValueError: not such a text, no drag in it, a point outside the picture, or another aspect ratio; the message
            names the drag and its value.
    """
    value = load_json(text, NAME, EXAMPLE)
    state = check_state({"drags": value} if isinstance(value, list) else value, NAME, EXAMPLE)
    drags = items(state, "drags", MAX_DRAGS, NAME)
    if not drags:
        raise ValueError(f"{NAME} has no drags. Draw one in the node's editor (press Drag points). {EXAMPLE}")
    size_ratios(state, height, width, stretch, NAME)
    stretched = stretch_notes(state, height, width, NAME)
    height, width = drawn_size(state, NAME) or (height, width)
    limits = width, height, width, height
    kept, notes = [], stretched
    for number, drag in enumerate(drags, 1):
        if not isinstance(drag, list) or len(drag) != 4 or not all(is_number(v) for v in drag):
            raise ValueError(f"drag {number} of {NAME} is {shown(drag)}. {EXAMPLE}")
        if not all(0 <= value <= limit for value, limit in zip(drag, limits, strict=True)):
            raise ValueError(f"drag {number} of {NAME}, {shown(drag)}, leaves the picture, which is "
                             f"{width} x {height}. Move its points inside.")
        if drag[:2] == drag[2:]:
            notes.append(f"drag {number}, {shown(drag)}, goes nowhere and was left out")
        else:
            kept.append(drag)
    if not kept:
        raise ValueError(f"{NAME} has no drag that goes anywhere; the {len(drags)} in it start and end at the same "
                         "point. Drag their targets elsewhere.")
    return Drags(torch.tensor([kept], dtype=torch.float32) / torch.tensor(limits), tuple(notes))
