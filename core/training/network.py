"""Input and output of a Stable Video Diffusion network in training: one call for every objective and preview.

Legend: B videos, T frames, h w latent size, H W control size (8h, 8w), D width of the image embedding, K drags, L tokens,
C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class NetworkInput(NamedTuple):
    """The input of a network.

    x: (B, T, 4, h, w) noisy latents of unit variance, see `core.edm.scale_input`.
    t: (B,) timestep.
    image: (B, 4, h, w) the source picture's latent, or (B, T, 4, h, w) one for each frame.
    embedding: (B, 1, D) image embedding of the source, or (B, T, 1, D).
    control: (B, 3, H, W) in [0, 1], all black for a video without editing signal; None to go without.
    drag: (B, K, 4), or None; see Examples.
    micro_conds: (B, 3) fps - 1, motion bucket and augmentation level; None for the network's own.
    record: whether the matching attentions report their queries and keys.
    """

    x: Tensor
    t: Tensor
    image: Tensor
    embedding: Tensor
    control: Tensor | None = None
    drag: Tensor | None = None
    micro_conds: Tensor | None = None
    record: bool = False


class AttentionQK(NamedTuple):
    """Queries and keys of one matching attention: q (B, T or T-1, L, C), k (B, L, C), heads."""

    site: str
    q: Tensor
    k: Tensor
    heads: int


class Prediction(NamedTuple):
    """The output of a network.

    v: (B, T, 4, h, w) float32.
    attention: of every matching attention, if `record` was set.
    """

    v: Tensor
    attention: list[AttentionQK]


Network = Callable[[NetworkInput], Prediction]
