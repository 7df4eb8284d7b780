"""Read a picture of one plain shape back into words, from its pixels alone: how well a prompt was followed.

Legend: H = W = side pixels; see core/data/captions.py for the words.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..data.captions import COLOURS, GROUNDS, SHAPES, SIZES, SUBJECTS, coverage

BORDER = 4       # pixels of the frame that tells the ground's colour
FAINT = 0.15     # least distance in colour between a shape and its ground, of at most sqrt(3)
LEAST = 0.01     # least share of the picture that counts as a shape


class Reading(NamedTuple):
    """What a picture shows. agreement: intersection over union of what stands out and the ideal shape, in [0, 1]."""

    shape: str
    colour: str
    ground: str
    size: str
    agreement: float
    centre: tuple[float, float]
    radius: float


def _nearest(colour: Tensor, names: tuple[str, ...]) -> str:
    table = torch.tensor([COLOURS[name] for name in names])
    return names[int((table - colour).norm(dim=1).argmin())]


def read_picture(picture: Tensor) -> Reading | None:
    """Say what a picture (3, side, side) in [0, 1] shows; None if nothing stands out from the ground.

    The ground's colour is the median along the borders; what differs from it by more than half as much as the most
    different pixels is the shape, whose name is that of the best fitting shape of equal area and centre.
    """
    side = picture.shape[-1]
    inner = torch.zeros(side, side, dtype=torch.bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    ground = picture[:, ~inner].median(1).values
    distance = (picture - ground[:, None, None]).norm(dim=0)
    top = distance.flatten().kthvalue(int(distance.numel() * (1 - LEAST / 2))).values
    mask = distance > max(FAINT, float(top) / 2)
    if mask.float().mean() < LEAST:
        return None
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    area = float(mask.sum())
    centre = torch.tensor([float((mask * line).sum()), float((mask * line[:, None]).sum())]) / area
    radius = 2 / side * (area / torch.pi) ** 0.5
    kinds = torch.arange(len(SHAPES))
    ideal = coverage(kinds, centre.expand(len(kinds), 2), torch.full((len(kinds),), radius), side) > 0.5
    agreement = (ideal & mask).sum((1, 2)) / (ideal | mask).sum((1, 2))
    between = (list(SIZES.values())[0][1] + list(SIZES.values())[1][0]) / 2
    return Reading(SHAPES[int(agreement.argmax())], _nearest(picture[:, mask].median(1).values, SUBJECTS),
                   _nearest(ground, GROUNDS), list(SIZES)[int(radius > between)], float(agreement.max()),
                   (float(centre[0]), float(centre[1])), radius)
