"""The differences that attention injection found, as a mask (I2VEdit, Appendix B.1, Fig. 15)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .sites import Site

LAYERS: dict[str, Callable[[Site], bool]] = {
    "all": lambda site: True,
    "down": lambda site: site.stage == "down",
    "middle": lambda site: site.stage == "mid",
    "up": lambda site: site.stage == "up",
    "third on the way down": lambda site: site.stage == "down" and site.position == 2,
}
VALUES = {"difference": 0, "weight": 1}


def average(found: Sequence[tuple[Tensor, Tensor, int, tuple[int, int], Site]], layers: str, values: str, height: int,
            width: int) -> Tensor | None:
    """Mean over steps, then over layers, each enlarged to the picture: (T, H, W) in [0, 1].

    Args:
        found: a layer's sum of differences (T, L), sum of weights (T, L), count of steps, map (h, w), site.
        layers: one of LAYERS.  values: one of VALUES.

    Returns:
        None if there is no such layer.
    """
    chosen = [entry for entry in found if LAYERS[layers](entry[4])]
    if not chosen:
        return None
    total = torch.zeros(())
    for entry in chosen:
        tokens = (entry[VALUES[values]].float().cpu() / entry[2]).unflatten(1, entry[3])[:, None]
        total = total + F.interpolate(tokens, size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    return (total / len(chosen)).clamp(0.0, 1.0)


def colours(mask: Tensor) -> Tensor:
    """(T, H, W) in [0, 1] as black, red, yellow, white: (T, H, W, 3)."""
    return torch.stack([mask * 3, mask * 3 - 1, mask * 3 - 2], -1).clamp(0.0, 1.0)
