"""Drag points as a picture for display; the network does not see it (see core/attention/drag.py).

A green disc where a point should end, a red one where it is now, a white line between them, on black.
Legend: K points, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

LINE, SOURCE, TARGET = (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
RADIUS, THICKNESS = 1 / 64, 1 / 192  # of the shorter side; at least 2 and 0.75 pixels


def draw_drag(source: Tensor, target: Tensor, height: int, width: int) -> Tensor:
    """Draw K drags, edges one pixel soft.

    Args:
        source, target: (K, 2) as (x, y) in pixels, 0 the middle of the first pixel; may lie outside the picture.
        height, width: H, W.

    Returns:
        (3, H, W) in [0, 1]. Discs lie over lines, targets over sources; K = 0 is black.

    Raises:
        ValueError: source and target are not two equal lists of points.
    """
    if source.shape != target.shape or source.ndim != 2 or source.shape[-1] != 2:
        raise ValueError(f"drag points must be two (K, 2) lists; got source {tuple(source.shape)}, target "
                         f"{tuple(target.shape)}")
    device = source.device
    out = torch.zeros(3, height, width, device=device)
    if not len(source):
        return out
    source, target = source.float(), target.float()
    radius = max(2.0, RADIUS * min(height, width))
    half = max(0.75, THICKNESS * min(height, width))
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    points = torch.stack([x, y], -1).float()

    def paint(distance: Tensor, size: float, colour: tuple[float, float, float]) -> None:
        cover = (size + 0.5 - distance).clamp(0, 1)[None]
        out.lerp_(torch.tensor(colour, device=device)[:, None, None].expand_as(out), cover.expand_as(out))

    for a, b in zip(source, target, strict=True):
        step = b - a
        along = ((points - a) @ step / step.square().sum().clamp_min(1e-9)).clamp(0, 1)  # nearest place of the line
        paint((points - a - along[..., None] * step).norm(dim=-1), half, LINE)
    for places, colour in ((source, SOURCE), (target, TARGET)):
        for place in places:
            paint((points - place).norm(dim=-1), radius, colour)
    return out
