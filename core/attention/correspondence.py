"""What matching attention looks at: heat maps, best matches and the flow they make (FramePainter, Fig. 8).

Legend: T target frames, L tokens (h*w, row-major), C channels, N heads, D channels a head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
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


def attention_matches(q: Tensor, k: Tensor, heads: int, chosen: int, chunk: int = 1024) -> Matches:
    """Softmax attention of target queries to source keys, without ever holding the L x L matrix.

    Args:
        q: (L, C) queries of one target frame.  k: (L, C) keys of the source frame.
        heads: N.  chosen: index of the target token whose heat map is wanted.
        chunk: target tokens at a time; bounds memory to chunk * L * N numbers.
    """
    length, width = q.shape
    depth = width // heads
    q = q.float().reshape(length, heads, depth).transpose(0, 1)  # (N, L, D)
    k = k.float().reshape(-1, heads, depth).permute(1, 2, 0)  # (N, D, L)
    best, confidence, heat = [], [], None
    for start in range(0, length, chunk):
        weights = (q[:, start:start + chunk] @ k / math.sqrt(depth)).softmax(-1).mean(0)  # (chunk, L)
        top = weights.max(-1)
        best.append(top.indices)
        confidence.append(top.values)
        if start <= chosen < start + chunk:
            heat = weights[chosen - start].clone()
    return Matches(heat, torch.cat(best), torch.cat(confidence))


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
