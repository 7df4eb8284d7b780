"""Read-outs of matching attention: heat maps, best matches and the flow that they form (FramePainter, Fig. 8).

Legend: T target frames, L tokens (h*w, row-major), C channels, N heads, D channels a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Matches(NamedTuple):
    """Attention of target tokens to source tokens, averaged over heads.

    heat: (L,) one chosen target token's weights, summing to 1.
    best: (L,) for each target token the source token it attends to most.
    confidence: (L,) that token's weight.
    """

    heat: Tensor
    best: Tensor
    confidence: Tensor


class SiteAttention(NamedTuple):
    """One block's queries of the target frame (L, C), keys of the source frame (L, C), heads, and map (h, w)."""

    q: Tensor
    k: Tensor
    heads: int
    size: tuple[int, int]


def attention_matches(sites: Sequence[SiteAttention], chosen: int, chunk: int = 1024) -> Matches:
    """Softmax attention of target queries to source keys, averaged over heads and blocks, without an L x L matrix.

    Args:
        sites: blocks with maps of one size.
        chosen: index of the target token whose heat map is wanted.
        chunk: target tokens at a time; bounds memory to chunk * L * N numbers.
    """
    length = sites[0].q.shape[0]
    best, confidence, heat = [], [], None
    for start in range(0, length, chunk):
        weights = sum(_weights(site, start, start + chunk) for site in sites) / len(sites)  # (chunk, L)
        top = weights.max(-1)
        best.append(top.indices)
        confidence.append(top.values)
        if start <= chosen < start + chunk:
            heat = weights[chosen - start].clone()
    return Matches(heat, torch.cat(best), torch.cat(confidence))


def _weights(site: SiteAttention, start: int, stop: int) -> Tensor:
    """Attention of target tokens start:stop to all source tokens, mean over heads: (stop - start, L)."""
    depth = site.q.shape[-1] // site.heads
    q = site.q[start:stop].float().reshape(-1, site.heads, depth).transpose(0, 1)  # (N, chunk, D)
    k = site.k.float().reshape(-1, site.heads, depth).permute(1, 2, 0)  # (N, D, L)
    return (q @ k / math.sqrt(depth)).softmax(-1).mean(0)


def token_at(x: float, y: float, height: int, width: int) -> int:
    """Index of the token under a point; x, y in [0, 1] from the top left, the map height x width tokens."""
    column = min(int(x * width), width - 1)
    row = min(int(y * height), height - 1)
    return row * width + column


def matches_to_flow(best: Tensor, height: int, width: int) -> Tensor:
    """Best matches (L,) -> displacement from each target token to its source token, (2, h, w) as (dx, dy) in tokens."""
    index = torch.arange(height * width, device=best.device)
    dx = (best % width) - (index % width)
    dy = torch.div(best, width, rounding_mode="floor") - torch.div(index, width, rounding_mode="floor")
    return torch.stack([dx, dy]).reshape(2, height, width).float()


def flow_to_image(flow: Tensor, largest: float | None = None) -> Tensor:
    """Colour a flow field: hue is direction, saturation is length, white is no motion.

    Args:
        flow: (2, h, w) as (dx, dy).
        largest: the length drawn at full saturation; the field's own largest if None.

    Returns:
        (h, w, 3) in [0, 1].
    """
    dx, dy = flow.float()
    length = torch.hypot(dx, dy)
    top = float(length.max()) if largest is None else largest
    saturation = (length / top).clamp(0, 1) if top > 0 else torch.zeros_like(length)
    hue = (torch.atan2(dy, dx) / (2 * math.pi)) % 1.0 * 6.0
    # HSV to RGB at value 1: each channel is a trapezoid over the hue circle, two sixths of a turn apart.
    channels = [((hue + shift) % 6.0 - 3.0).abs().sub(1.0).clamp(0.0, 1.0) for shift in (0.0, 4.0, 2.0)]
    return 1.0 - saturation[..., None] * (1.0 - torch.stack(channels, dim=-1))


def overlay_heat(picture: Tensor, heat: Tensor, size: tuple[int, int]) -> Tensor:
    """Lay a heat map over a darkened picture; (1, H, W, 3) and (L,) -> (1, H, W, 3). Black to red to yellow to white."""
    height, width = picture.shape[1:3]
    low, high = heat.min(), heat.max()
    level = ((heat - low) / (high - low).clamp_min(1e-12)).reshape(1, 1, *size)
    level = F.interpolate(level, size=(height, width), mode="bilinear", align_corners=False)[:, 0, :, :, None]
    colour = torch.cat([(level * 3 - i).clamp(0, 1) for i in range(3)], dim=-1).to(picture)
    grey = picture[..., :3].mean(-1, keepdim=True) * 0.6
    level = level.to(picture)
    return grey * (1 - level) + colour * level


def draw_cross(picture: Tensor, x: float, y: float, colour: tuple[float, float, float]) -> Tensor:
    """A copy of (1, H, W, 3) with a cross, dark-edged so that it shows on any ground, at x, y in [0, 1]."""
    height, width = picture.shape[1:3]
    out = picture[..., :3].clone()
    row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
    arm, thick = max(3, min(height, width) // 25), max(1, min(height, width) // 250)
    for grow, paint in ((thick, (0.0, 0.0, 0.0)), (0, colour)):
        value = torch.tensor(paint, dtype=out.dtype, device=out.device)
        for dy, dx in ((arm, thick), (thick, arm)):
            top, bottom = max(row - dy - grow, 0), row + dy + grow + 1
            left, right = max(column - dx - grow, 0), column + dx + grow + 1
            out[:, top:bottom, left:right] = value
    return out


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
