"""How much of an edit a video's pixels show, one frame at a time, at the video's size.

Legend: H W the video's size, h w the working size. Values in [0, 1].
"""

from __future__ import annotations

from torch import Tensor

from ..signals.area import OTHER, difference_area
from ..video.geometry import Fit, from_working
from .distance import feathered, grown
from .paste import blend_weights

CELL = 8  # pixels of the working size in a latent cell, over which the edge fades
GROW = 4  # pixels of the working size by which a difference is enlarged: its faint edge is the edit's


def weights_of_mask(mask: Tensor, fit: Fit) -> Tensor:
    """A change mask of any size as the edit's weights (H, W): 1 in it, fading to 0 over a latent cell beyond it."""
    return blend_weights(mask, fit.height, fit.width, max(1, round(CELL * fit.padded[0] / fit.working[0])), True)


def weights_of_difference(edited: Tensor, source: Tensor, fit: Fit) -> Tensor:
    """Where an edited frame differs from its source, both (h, w, 3), by more than a VAE's own error, as weights (H, W)."""
    area = grown(difference_area(edited[None], source[None], OTHER)[0] > 0, GROW)
    return from_working(feathered(area, CELL, True)[None, ..., None], fit)[0, ..., 0]
