"""Optical flow between two pictures: RAFT if its weights are there, else a weight-free estimator, or flow from other nodes.

One interface: `(target, source) -> flow`, (B, 3, H, W) in [0, 1] twice -> (B, 2, H, W), the displacement (dx, dy) in pixels
from each target pixel to its place in the source.

Legend: B pairs, H W pixels, T frames, N tracks, D width of a descriptor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .warp import softmax_splat, warp

FlowFunction = Callable[[Tensor, Tensor], Tensor]


class FlowError(ValueError):
    """A weights file, a flow or tracks cannot be used; the text says why."""


# ---- consistency -----------------------------------------------------------------------------------------------------


def inside(flow: Tensor) -> Tensor:
    """Whether each pixel's place lies inside the picture: (B, 2, H, W) -> (B, H, W)."""
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij")
    to_x, to_y = x + flow[:, 0], y + flow[:, 1]
    return (to_x >= -0.5) & (to_x <= width - 0.5) & (to_y >= -0.5) & (to_y <= height - 0.5)


def consistent(flow: Tensor, back: Tensor, relative: float = 0.01, absolute: float = 0.5) -> Tensor:
    """Whether following a flow and the flow back returns to the start (Sundaram and others 2010, equation 5).

    Args:
        flow: (B, 2, H, W) target to source.  back: (B, 2, H, W) source to target.
        relative, absolute: squared error allowed, in parts of the squared lengths and in square pixels.

    Returns:
        (B, H, W), False where the place lies outside the picture.
    """
    there = warp(back, flow)
    error = (flow + there).square().sum(1)
    allowed = relative * (flow.square().sum(1) + there.square().sum(1)) + absolute
    return (error < allowed) & inside(flow)


def inverse(flow: Tensor, importance: Tensor | None = None) -> Tensor:
    """The inverse flow: each vector is splatted to where it points. (B, 2, H, W) -> the same.

    Holes are filled with the surrounding vectors; the consistency check shows that these are not correspondences.

    Args:
        importance: (B, 1, H, W), see softmax_splat.
    """
    out = softmax_splat(-flow, flow, importance)
    return filled(out.image, out.cover.clamp_max(1))


def filled(values: Tensor, known: Tensor) -> Tensor:
    """Holes are filled with the weighted mean of their surroundings, over several sizes (Gortler and others 1996, push-pull).

    Args:
        values: (B, C, H, W).  known: (B, 1, H, W) in [0, 1].
    """
    if min(known.shape[-2:]) <= 1 or float(known.min()) >= 1:
        return values
    size = known.shape[-2:]
    weight = F.adaptive_avg_pool2d(known, tuple((s + 1) // 2 for s in size))
    mean = F.adaptive_avg_pool2d(values * known, weight.shape[-2:]) / weight.clamp_min(1e-6)
    coarse = filled(mean, (4 * weight).clamp_max(1))
    return torch.lerp(F.interpolate(coarse, size, mode="bilinear"), values, known.expand_as(values))


def chain(flows: Tensor) -> Tensor:
    """Chain (S, 2, H, W) consecutive flows: follow the first one's pixels through all of them -> (1, 2, H, W)."""
    total = flows[:1].clone()
    for step in flows[1:]:
        total = total + warp(step[None], total)
    return total
