"""Softmax splatting: push a picture forward along a flow (Niklaus and Liu 2020, equation 13).

FramePainter's coarse edits are the source frame splatted to the target (section 3.3). Torch only, CPU and GPU,
differentiable in the picture, the flow and the importance.

Legend: B batch, C channels, H W pixels. Flow is (dx, dy) in pixels, from each source pixel to its place in the target.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Look an image up along a flow: (B, C, H, W), (B, 2, H, W) -> (B, C, H, W), bilinear, borders repeated."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij")
    grid = torch.stack([(x + flow[:, 0] + 0.5) / width, (y + flow[:, 1] + 0.5) / height], -1) * 2 - 1
    return F.grid_sample(image, grid.to(image), mode="bilinear", padding_mode="border", align_corners=False)


class Splat(NamedTuple):
    """image: (B, C, H, W), zero where nothing landed.  cover: (B, 1, H, W) bilinear weight that landed, 1 in a plain shift."""

    image: Tensor
    cover: Tensor


def softmax_splat(image: Tensor, flow: Tensor, importance: Tensor | None = None) -> Splat:
    """Splat (B, C, H, W) along (B, 2, H, W); where pixels meet, softmax of their importance decides.

    Args:
        importance: (B, 1, H, W), larger wins; None averages. Only differences at one target pixel matter.
    """
    count, channels, height, width = image.shape
    if importance is None:
        importance = torch.zeros_like(image[:, :1])
    # A common factor cancels in the ratio; taking the largest out keeps exp in range.
    strength = (importance - importance.detach().amax((1, 2, 3), keepdim=True)).clamp_min(-60.0).exp()
    payload = torch.cat([image * strength, strength, torch.ones_like(strength)], 1).flatten(2)  # (B, C + 2, H*W)

    y, x = torch.meshgrid(torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij")
    to_x, to_y = x + flow[:, 0], y + flow[:, 1]  # (B, H, W)
    left, top = to_x.detach().floor(), to_y.detach().floor()
    out = torch.zeros(count, channels + 2, height * width, dtype=payload.dtype, device=payload.device)
    for column, weight_x in ((left, left + 1 - to_x), (left + 1, to_x - left)):
        for row, weight_y in ((top, top + 1 - to_y), (top + 1, to_y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (weight_x * weight_y * inside).flatten(1)[:, None]
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long().flatten(1)[:, None]
            out = out.scatter_add(2, index.expand_as(payload), payload * weight)
    out = out.reshape(count, channels + 2, height, width)
    total = out[:, channels:channels + 1]
    landed = total > 1e-30
    return Splat(torch.where(landed, out[:, :channels] / total.masked_fill(~landed, 1.0), 0.0), out[:, channels + 1:])
