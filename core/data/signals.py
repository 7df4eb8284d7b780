"""Editing signals and token correspondences from the motion between two frames (FramePainter, section 3.3).

Legend: B pairs, H W pixels, h w tokens of an attention map, L = h*w. Flow is (dx, dy) in pixels from each target pixel to
its place in the source, `visible` whether that place shows the same thing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def flow_edges(flow: Tensor) -> Tensor:
    """Sobel gradient length of a flow field, (B, 2, H, W) -> (B, H, W), in pixels of motion a pixel.

    The kernel is scaled so that a unit ramp gives 1; borders repeat, so a uniform motion has no edge at the frame.
    """
    kernel = torch.tensor(SOBEL, dtype=flow.dtype, device=flow.device) / 8.0
    kernels = torch.stack([kernel, kernel.T])[:, None]  # (2, 1, 3, 3)
    padded = F.pad(flow.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    gradients = F.conv2d(padded, kernels)  # (B*2, 2, H, W)
    return gradients.reshape(flow.shape[0], 4, *flow.shape[-2:]).norm(dim=1)


def sketch_from_flow(flow: Tensor, low: float = 0.75, high: float = 1.5) -> Tensor:
    """The training sketch: edges of the motion as white strokes on black, (B, 2, H, W) -> (B, 3, H, W) in [0, 1].

    Args:
        low, high: edge strength (pixels of motion a pixel) that begins to show, and that is fully white. Rotation
            inside an object has strength 2.8 sin(angle / 2), so up to 30 degrees stay under the default `low`.
    """
    strokes = ((flow_edges(flow) - low) / (high - low)).clamp(0, 1)
    return strokes[:, None].expand(-1, 3, -1, -1)


class DragPoints(NamedTuple):
    """source, target: (B, K, 2) as (x, y) pixel centres; valid: (B, K), False where a pair has no moving visible pixel."""

    source: Tensor
    target: Tensor
    valid: Tensor


def drag_points(flow: Tensor, visible: Tensor, count: int, generator: torch.Generator) -> DragPoints:
    """Draw K = count target points with probability proportional to the flow's length, and follow them to the source.

    Only visible pixels are drawn, as an invisible one has no source to drag from (after LightningDrag).
    """
    pairs, _, _, width = flow.shape
    weight = (flow.norm(dim=1) * visible).flatten(1)
    moving = weight.sum(1) > 0
    weight = torch.where(moving[:, None], weight, torch.ones_like(weight))
    chosen = torch.multinomial(weight, count, replacement=True, generator=generator)  # (B, K)
    target = torch.stack([chosen % width, torch.div(chosen, width, rounding_mode="floor")], -1).to(flow)
    step = flow.flatten(2).gather(2, chosen[:, None].expand(-1, 2, -1)).movedim(1, -1)  # (B, K, 2)
    return DragPoints(target + step, target, moving[:, None].expand(pairs, count))


class TokenMatches(NamedTuple):
    """C and M of equations 5 to 7 at one attention resolution.

    index: (B, L) source token that each target token corresponds to.
    visible: (B, L) bool, whether it has one.
    """

    index: Tensor
    visible: Tensor


def token_matches(flow: Tensor, visible: Tensor, height: int, width: int) -> TokenMatches:
    """Correspondence of tokens from that of pixels.

    A token follows the mean motion of the visible pixels in its cell; it counts as visible if most of them are.

    Args:
        flow: (B, 2, H, W).  visible: (B, H, W).  height, width: h, w; they divide H and W.
    """
    rows, columns = flow.shape[-2] // height, flow.shape[-1] // width
    mask = visible[:, None].to(flow)
    share = F.avg_pool2d(mask, (rows, columns))
    motion = F.avg_pool2d(flow * mask, (rows, columns)) / share.clamp_min(1e-6)  # (B, 2, h, w) pixels
    y, x = torch.meshgrid(torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij")
    # From the middle of the target token's cell, along the motion, to the cell it lands in.
    column = torch.floor(x + 0.5 + motion[:, 0] / columns).long()
    row = torch.floor(y + 0.5 + motion[:, 1] / rows).long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    return TokenMatches(index.flatten(1), (inside & (share[:, 0] > 0.5)).flatten(1))
