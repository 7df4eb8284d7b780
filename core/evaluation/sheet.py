"""Colours of an evaluation sheet: errors as heat, areas as tints.

Legend: H W pixels of a picture; pictures are (H, W, 3) in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .metrics import Areas

ERROR_TOP = 0.5  # error drawn white; fixed, so that sheets can be compared
GREEN, RED = (0.1, 0.8, 0.2), (0.9, 0.2, 0.2)


def heat(error: Tensor) -> Tensor:
    """Errors (H, W) in colour: 0 black, then red and yellow to white at ERROR_TOP. -> (H, W, 3)."""
    level = error / ERROR_TOP * 3
    return torch.stack([(level - i).clamp(0, 1) for i in range(3)], -1)


def tint(picture: Tensor, areas: Areas) -> Tensor:
    """The picture in grey, moved area green, disoccluded area red. (H, W, 3), areas of one picture -> (H, W, 3)."""
    out = picture.mean(-1, keepdim=True).expand(-1, -1, 3).clone()
    for area, colour in ((areas.moved, GREEN), (areas.disoccluded, RED)):
        if area is not None:
            out[area[0]] = 0.4 * out[area[0]] + 0.6 * torch.tensor(colour).to(out)
    return out
