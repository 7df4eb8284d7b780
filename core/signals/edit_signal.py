"""What travels on the EDIT_SIGNAL socket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class EditSignal:
    """One picture's editing signal.

    kind: how the user touched the picture.
    control: (1, H, W, 3) in [0, 1], light strokes on black, at the picture's own size and aspect ratio.
    """

    kind: Literal["sketch"]
    control: Tensor
