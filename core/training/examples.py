"""Prepared training examples: latents, embeddings, control pictures and correspondences.

Legend: N examples, T frames, h w latent size, H W control size (8h, 8w), D width of the image embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """N examples; a batch of them has the same form.

    latents: (N, T, 4, h, w) multiplied by SVD's scaling factor; frame 0 is the source.
    image: (N, 4, h, w) the source picture's latent, as SVD is conditioned on it (not multiplied).
    embedding: (N, 1, D) CLIP image embedding of the source.
    control: (N, 3, H, W) uint8, the editing signal; None to train without one.
    flow: (N, 2, H, W) from each pixel of frame 1 to its place in the source; None if unknown.
    visible: (N, H, W) bool, where that holds; None if unknown.
    drag: (N, K, 4) source x, y, target x, y as shares of width and height, NaN for a drag that is not there; None to
        train without.
    micro_conds: (N, 3) fps - 1, motion bucket and augmentation level that each is conditioned on; None for the network's own.
    """

    latents: Tensor
    image: Tensor
    embedding: Tensor
    control: Tensor | None = None
    flow: Tensor | None = None
    visible: Tensor | None = None
    drag: Tensor | None = None
    micro_conds: Tensor | None = None

    def __len__(self) -> int:
        return self.latents.shape[0]

    def take(self, rows: Tensor, device: torch.device | str = "cpu") -> Examples:
        """The examples at (B,) row numbers, on a device."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Examples(**{name: None if part is None else part[rows].to(device) for name, part in parts.items()})
