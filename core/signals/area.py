"""Where an edit is: masks from what the user did.

Legend: B batch, H W pixels. Masks (B, H, W) in [0, 1].
"""

from __future__ import annotations

from torch import Tensor

# Largest difference of a channel: under the first a pixel counts as the same (JPEG leaves about 0.05), from the second on
# as changed.
SAME, OTHER = 0.04, 0.12


def changed_area(edited: Tensor, picture: Tensor) -> Tensor:
    """How much two pictures (B, H, W, 3) differ: (B, H, W), 0 the same, 1 clearly another colour."""
    difference = (edited.float() - picture.float()).abs().amax(-1)
    return ((difference - SAME) / (OTHER - SAME)).clamp(0.0, 1.0)
