"""Editing signals and token correspondences from the motion between two frames (FramePainter, section 3.3).

Legend: B pairs, H W pixels, h w tokens of an attention map, L = h*w. Flow is (dx, dy) in pixels from each target pixel to
its place in the source, `visible` whether that place shows the same thing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow.warp import softmax_splat, warp
from .motion import Motion, agree, still_length

HOLES = ("black", "source")
IMPORTANCE = 20.0  # of splatted pixels, by colour error in [0, 1] and by inconsistency


def coarse_edit(source: Tensor, target: Tensor, motion: Motion, holes: str = "black",
                importance: Tensor | None = None) -> Tensor:
    """The source splatted to the target: (1, 3, H, W).

    Where pixels meet, those win whose colour fits the target and whose motion is consistent (after Niklaus and Liu 2020,
    equation 14).

    Args:
        holes: what shows where nothing landed.  importance: (1, 1, H, W) instead.
    """
    trusted = agree(motion.back, motion.flow)
    if importance is None:
        error = (warp(target, motion.back) - source).abs().mean(1, keepdim=True)
        importance = -IMPORTANCE * (error + (~trusted)[:, None].float())
    out = softmax_splat(source, motion.back, importance)
    # Pixels that the target hides point anywhere. Alone they would sprinkle what has come into view.
    outside = torch.full_like(motion.back, 4.0 * max(source.shape[-2:]))
    sure = softmax_splat(source[:, :1], torch.where(trusted[:, None], motion.back, outside)).cover > 0.5
    landed = (out.cover > 0) & (sure | motion.visible[:, None])
    return torch.where(landed, out.image, source if holes == "source" else torch.zeros_like(source))


def calmed(flow: Tensor, visible: Tensor) -> Tensor:
    """Flow whose invisible parts, where an estimate is meaningless, are filled with the slowest visible motion next to them.

    What a moving thing uncovers was behind it and mostly stands still. So the still background grows into the invisible parts
    first; the rest is filled from what remains around it. (1, 2, H, W), (1, H, W) -> (1, 2, H, W).
    """
    known, vectors = visible[:, None], flow
    if not bool(known.any()):
        return flow
    ground = known & (flow.norm(dim=1, keepdim=True) <= still_length(*flow.shape[-2:]))
    for seeds in (ground, None):
        while not bool(known.all()):
            grown, vectors = _grow(vectors, known if seeds is None else seeds, known)
            if torch.equal(grown, known):
                break
            seeds = None if seeds is None else seeds | (grown & ~known)
            known = grown
    windows = F.unfold(F.pad(vectors.movedim(1, 0), (2, 2, 2, 2), mode="replicate"), 5)  # (2, 25, H*W)
    return windows.median(1).values.reshape(flow.shape)  # single wrong vectors would be dots in a sketch


def _grow(vectors: Tensor, seeds: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Unknown pixels within two of a seed take the slowest such seed's vector."""
    rank = seeds / (1 + vectors.norm(dim=1, keepdim=True))
    best, index = F.max_pool2d(rank, 5, 1, 2, return_indices=True)
    found = vectors.flatten(2).gather(2, index.flatten(2).expand(-1, 2, -1)).reshape(vectors.shape)
    take = ~known & (best > 0)
    return known | take, torch.where(take, found, vectors)


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
