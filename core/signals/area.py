"""Where an edit is: masks from what the user did.

Legend: B batch, H W pixels. Masks (B, H, W) in [0, 1].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, avg_pool2d, interpolate, max_pool2d, pad, unfold

from ..attention.correspondence import matches_to_flow
from .edit_signal import EditSignal
from .raster import cover_line, cover_polygon

FLOOD_SIDE = 256  # what a sketch encloses is looked for on a grid of at most this side
# Largest difference of a channel: under the first a pixel counts as the same (JPEG leaves about 0.05), from the second on
# as changed.
SAME, OTHER = 0.04, 0.12


def changed_area(edited: Tensor, picture: Tensor) -> Tensor:
    """How much two pictures (B, H, W, 3) differ: (B, H, W), 0 the same, 1 clearly another colour."""
    difference = (edited.float() - picture.float()).abs().amax(-1)
    return ((difference - SAME) / (OTHER - SAME)).clamp(0.0, 1.0)


def signal_area(signal: EditSignal, height: int, width: int, radius: float) -> Tensor:
    """What an editing signal itself says about where the edit is: (1, H, W).

    A sketch: its strokes and what they enclose; it does not tell where things were before. Drags: a band of `radius` pixels
    around each, and the hulls of sources and of targets. A coarse edit: what it left, removed or laid over.

    Raises:
        ValueError: a coarse edit that came without its source picture.
    """
    if signal.kind == "drag":
        return torch.from_numpy(_drag_area(signal.points[0], height, width, radius)).float()[None]
    if signal.kind == "sketch":
        return _enclosed(signal.control.amax(-1), height, width)
    if signal.area is None:
        raise ValueError("the coarse edit of 'signal' came as a finished picture without its source, so its area is "
                         "unknown. Connect the source to 'picture' of Coarse Edit Signal.")
    return _resized(signal.area, height, width)


def _resized(mask: Tensor, height: int, width: int) -> Tensor:
    if mask.shape[-2:] == (height, width):
        return mask.float()
    return interpolate(mask[:, None].float(), size=(height, width), mode="bilinear", antialias=True)[:, 0].clamp(0, 1)


def _drag_area(points: Tensor, height: int, width: int, radius: float) -> np.ndarray:
    canvas = np.zeros((height, width))
    ends = points.double().numpy() * (width, height, width, height)
    for drag in ends:
        cover_line(canvas, drag.reshape(2, 2), 2 * radius)
    for places in (ends[:, :2], ends[:, 2:]):
        corners = convex_hull(places)
        if len(corners) >= 3:
            window, cover = cover_polygon(corners, height, width)
            canvas[window] = np.maximum(canvas[window], cover)
            cover_line(canvas, np.concatenate([corners, corners[:1]]), 2 * radius)
    return canvas


def convex_hull(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull of (N, 2), in order (Andrew 1979); two or one if all lie on a line or in a point."""
    ordered = sorted(set(map(tuple, points.tolist())))
    if len(ordered) < 3:
        return np.array(ordered).reshape(-1, 2)

    def half(sequence: list) -> list:
        chain: list = []
        for p in sequence:
            while len(chain) > 1 and ((chain[-1][0] - chain[-2][0]) * (p[1] - chain[-2][1])
                                      - (chain[-1][1] - chain[-2][1]) * (p[0] - chain[-2][0])) <= 0:
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return np.array(half(ordered) + half(ordered[::-1])).reshape(-1, 2)


def _enclosed(strokes: Tensor, height: int, width: int) -> Tensor:
    """Strokes (1, h, w) and all that cannot be reached from the picture's border without crossing one: (1, H, W)."""
    size = [max(1, round(side * min(1.0, FLOOD_SIDE / max(strokes.shape[-2:])))) for side in strokes.shape[-2:]]
    wall = adaptive_max_pool2d(strokes[:, None].float(), size) > 0.25
    open_ground = ~pad(wall, (1, 1, 1, 1), value=False)
    reached = torch.zeros_like(open_ground)
    reached[..., 0, :] = reached[..., -1, :] = reached[..., 0] = reached[..., -1] = True
    while True:
        # Four neighbours, not eight: a diagonal line one pixel thick is a wall.
        spread = max_pool2d(reached.float(), (3, 1), 1, (1, 0)).maximum(max_pool2d(reached.float(), (1, 3), 1, (0, 1)))
        spread = (spread > 0) & open_ground
        if torch.equal(spread, reached):
            break
        reached = spread
    inside = ~reached[..., 1:-1, 1:-1]
    return interpolate(inside.float(), size=(height, width), mode="bilinear")[:, 0]


def difference_area(edited: Tensor, before: Tensor, threshold: float) -> Tensor:
    """Where two pictures (B, h, w, 3) of one size differ by more than a threshold, without single specks: (B, h, w)."""
    difference = (edited.float() - before.float()).abs().amax(-1)[:, None]
    around = unfold(pad(difference, (1, 1, 1, 1), mode="replicate"), 3)  # (B, 9, h*w)
    area = (around.median(1).values.reshape(difference.shape) > threshold).float()
    opened = max_pool2d(-max_pool2d(-area, 3, 1, 1), 3, 1, 1)
    return opened[:, 0]


def moved_area(best: Tensor, height: int, width: int, least: float = 1.5) -> Tensor:
    """Tokens that moved, by the matching attention's best matches, at their new and at their old place: (h, w).

    Args:
        best: (L,) for each token of the edit the source token that it comes from.
        least: shortest displacement in tokens that counts. One token is the noise of the read-out.

    A token counts if most of the 3 x 3 around it moved: single matches jump in plain areas.
    """
    dx, dy = matches_to_flow(best, height, width)
    moved = (torch.hypot(dx, dy) > least).float()[None, None]
    votes = avg_pool2d(moved, 3, 1, 1, count_include_pad=False)
    there = ((moved > 0) & (votes > 0.5)).flatten()
    out = there.clone()
    out[best[there]] = True
    return out.reshape(height, width).float()
