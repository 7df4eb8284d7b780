"""The position of each pixel of a frame in the keyframe, and its uncertainty.

A flow straight to the keyframe fails over long gaps, one chained from frame to frame drifts. Both are candidates here, as is the
chained flow refined against the keyframe itself, starting where the chain ended; each pixel takes the best. So the chain is
anchored at every frame, and no errors add up.

Legend: h w pixels at the working size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..flow.choice import PairFlow
from ..flow.warp import warp
from .affine import box

LEAST_DOUBT, MOST_DOUBT = 0.3, 27.0  # pixels
DIRECT = 0.5  # share of the chain's doubt below which the straight flow wins: it may take a thing for another that looks alike


class Track(NamedTuple):
    """flow: (1, 2, h, w) from the frame to the keyframe.  doubt: (1, 1, h, w) pixels that it may be off."""

    flow: Tensor
    doubt: Tensor


class Tracker:
    """Follows one keyframe, frame by frame away from it.

    Args:
        key: (1, 3, h, w).
        estimate: flow of a pair.
    """

    def __init__(self, key: Tensor, estimate: PairFlow):
        self.key, self.estimate = key, estimate
        self.slope = gradient(key)
        self.previous = key
        self.total = torch.zeros_like(key[:, :2])
        self.back = torch.zeros_like(key[:, :2])

    def follow(self, frame: Tensor, step: Tensor | None = None) -> Track:
        """The next frame.

        Args:
            frame: (1, 3, h, w).
            step: (1, 2, h, w) flow from it to the frame before, if it is known.
        """
        step = self.estimate(frame, self.previous, None) if step is None else step
        chained = step + warp(self.total, step)
        direct = self.estimate(frame, self.key, None)
        anchored = self.estimate(frame, self.key, chained)
        self.back = self.estimate(self.key, frame, self.back)
        best = None
        for flow, margin in ((anchored, 1.0), (chained, 0.9), (direct, DIRECT)):
            doubt = doubt_of(frame, self.key, flow, self.back, self.slope)
            if best is None:
                best = Track(flow, doubt)
            else:
                better = doubt < margin * best.doubt
                best = Track(torch.where(better, flow, best.flow), torch.where(better, doubt, best.doubt))
        self.previous, self.total = frame, best.flow
        return best


def gradient(picture: Tensor) -> Tensor:
    """Root mean square slope around each pixel, per pixel. (1, 3, h, w) -> (1, 1, h, w)."""
    padded = torch.nn.functional.pad(picture, (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return box((dx.square() + dy.square()).mean(1, keepdim=True), 3).sqrt()


def doubt_of(frame: Tensor, key: Tensor, flow: Tensor, back: Tensor, slope: Tensor) -> Tensor:
    """Pixels that a flow may be off, judged without truth: by going there and back, and by what it shows.

    A difference in colour counts as the shift that would explain it, given the slope of the colours there.
    """
    there = warp(torch.cat([back, key, slope], 1), flow)
    round_trip = (flow + there[:, :2]).square().sum(1, keepdim=True)
    difference = box((frame - there[:, 2:5]).square().mean(1, keepdim=True), 2)
    shift = difference / (there[:, 5:] + 0.01).square()
    height, width = flow.shape[-2:]
    y = torch.arange(height, device=flow.device)[:, None] + flow[:, 1]
    x = torch.arange(width, device=flow.device) + flow[:, 0]
    beyond = torch.relu(torch.maximum(torch.maximum(-x, x - width + 1), torch.maximum(-y, y - height + 1)))[:, None]
    return box(LEAST_DOUBT**2 + round_trip + shift + beyond.square(), 1).sqrt().clamp_max(MOST_DOUBT)
