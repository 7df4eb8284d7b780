"""The value of the EDIT_SIGNAL socket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class EditSignal:
    """One picture's editing signal.

    kind: how the user touched the picture.
    control: sketch, coarse: (1, H, W, 3) in [0, 1], the picture that the control encoder reads, at the source picture's
        own size and aspect ratio. None for drag.
    area: coarse: (1, H, W) in [0, 1], what the edit touched, if known; at the control picture's size. None otherwise.
    points: drag: (1, K, 4) source x, y, target x, y as shares of the picture's width and height. None for the others.
    size: drag: (height, width) of that picture in pixels; None if it fills the network's canvas.
    """

    kind: Literal["sketch", "coarse", "drag"]
    control: Tensor | None = None
    points: Tensor | None = None
    area: Tensor | None = None
    size: tuple[int, int] | None = None
