"""Drags as users write them -> tensors."""

from __future__ import annotations

import json
import math

import torch
from torch import Tensor

EXAMPLE = "Write each drag as [source x, source y, target x, target y], such as [[40, 30, 80, 30]]."


def parse_drags(text: str, height: int, width: int) -> Tensor:
    """Read drags between pixels of a picture.

    Args:
        text: a JSON list of lists of four numbers: source x, y, target x, y in pixels, 0 the picture's left or upper
            border, width or height the other one.
        height, width: of the picture.

    Returns:
        (1, K, 4) as shares of width and height.

    Raises:
        ValueError: no such list, no drag in it, or a point outside the picture; the text names the drag and its value.
    """
    try:
        drags = json.loads(text or "[]")
    except ValueError as error:
        raise ValueError(f"Drag Signal: points cannot be read as JSON ({error}). {EXAMPLE}") from None
    if not isinstance(drags, list) or not drags:
        raise ValueError(f"Drag Signal: points has no drags. {EXAMPLE}")
    limits = width, height, width, height
    for number, drag in enumerate(drags, 1):
        if not isinstance(drag, list) or len(drag) != 4 or not all(_is_number(v) for v in drag):
            raise ValueError(f"Drag Signal: drag {number} of points is {json.dumps(drag)}. {EXAMPLE}")
        if not all(0 <= value <= limit for value, limit in zip(drag, limits, strict=True)):
            raise ValueError(f"Drag Signal: drag {number} of points, {json.dumps(drag)}, leaves the picture, which is "
                             f"{width} x {height}. Move its points inside.")
    return torch.tensor([drags], dtype=torch.float32) / torch.tensor(limits)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
