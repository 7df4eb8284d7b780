"""Carrying a keyframe's edit to one frame: changes that depend on the colour by the experts, replaced content by layers over them.

Legend: H W pixels of the video, h w pixels at the working size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..flow.warp import warp
from . import experts, layers
from .composite import LEAST, FullKey, enlarged_map, full_change, layered
from .experts import Verdicts, mixed, relit
from .layers import Layers
from .tracking import Track

NAMES = (*experts.NAMES, *layers.NAMES)


class Brought(NamedTuple):
    """change: (1, 3, H, W).  error: (1, 1, h, w) expected squares.  weights: (E, 1, h, w) of the experts, None without any.
    shares: of each way in the change."""

    change: Tensor
    error: Tensor
    weights: Tensor | None
    shares: Mapping[str, float]


class Edited:
    """A keyframe and its edit.

    Args:
        full: (1, 3, H, W), the frame.  change: (1, 3, H, W), exactly 0 outside the edit.
        low: (1, 3, h, w), the frame at the working size.
    """

    def __init__(self, full: Tensor, change: Tensor, low: Tensor):
        small_change = shrunk(change, low.shape[-2:])
        active = small_change.abs().amax(1, keepdim=True) > 0
        self.scale = float(small_change.square().sum(1, keepdim=True)[active].mean().sqrt()) if bool(active.any()) else 0.0
        self.low, self.change = low, change
        self.layers = Layers(low, small_change)
        self.full = FullKey(full, change, self.layers)
        rest = small_change * (1 - self.layers.share()) if self.layers.regions else small_change
        self.experts = experts.Keyframe(low, rest) if bool((rest.abs() > 0).any()) else None

    def bring(self, frame: Tensor, low: Tensor, track: Track, before: Tensor | None = None) -> Brought:
        """The edit in another frame.

        Args:
            frame: (1, 3, H, W).  low: (1, 3, h, w), the same at the working size.
            before: weights of the experts in the frame before, moved here.
        """
        if self.experts is None:
            light = relit(low, warp(self.low, track.flow), track.doubt)
            change, error, weights, shares = torch.zeros_like(frame), torch.zeros_like(low[:, :1]), None, {}
        else:
            verdicts = self.experts.verdicts(low, track)
            _, error, weights = mixed(verdicts, before)
            change = full_change(self.full, frame, low, track.flow, verdicts.changes, weights)
            light, shares = verdicts.light, used(verdicts, weights)
        for layer in self.layers.of(low / light, track):
            change, cover = layered(self.full, frame, layer, light, change)
            covered = enlarged_map(cover, low.shape[-2:])
            error = torch.lerp(error, layer.error * self.scale**2, covered)
            name = layers.NAMES[self.layers.regions[layer.number].uncovers]
            strength = change.abs().sum(1, keepdim=True)
            shares = _with(shares, name, float((cover * strength).sum() / strength.sum().clamp_min(1e-6)))
        return Brought(change, error, weights, shares)


def _with(shares: Mapping[str, float], name: str, share: float) -> dict[str, float]:
    """Shares with one more way over them."""
    rest = {k: v * (1 - share) for k, v in shares.items()}
    return {**rest, name: rest.get(name, 0.0) + share}


def shrunk(change: Tensor, size: tuple[int, int]) -> Tensor:
    """A change at the working size; exactly 0 where it was."""
    if change.shape[-2:] == tuple(size):
        return change
    out = torch.nn.functional.interpolate(change, tuple(size), mode="bilinear", antialias=True)
    return out * (out.abs().amax(1, keepdim=True) > LEAST)


def used(verdicts: Verdicts, weights: Tensor) -> dict[str, float]:
    """Each expert's share in what was changed."""
    strength = verdicts.changes.abs().sum(1, keepdim=True).amax(0)
    total = float(strength.sum())
    return {name: float((w * strength).sum()) / total if total else 0.0
            for name, w in zip(experts.NAMES, weights, strict=True)}
