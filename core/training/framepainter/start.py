"""What FramePainter's training starts from, given a Stable Video Diffusion UNet (section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...models.control_encoder import ControlEncoder, EncoderWidths
from ...randomness import seeded
from ...weights.framepainter import spatial_sites

PUBLISHED = {"projection": 128, "embedding": 256, "stem": (64, 64, 128), "stages": (128, 256)}


def matching_from_unet(unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matching attention as copies of the spatial self-attention, its output projection zero: no effect at first.

    Args:
        unet: tensors by ComfyUI's names.

    Returns:
        `<spatial block path>.to_q.weight` and so on, tensors of their own.
    """
    out = {}
    for site in spatial_sites({name: tuple(t.shape) for name, t in unet.items()}):
        for name in ("to_q.weight", "to_k.weight", "to_v.weight"):
            out[f"{site}.{name}"] = unet[f"{site}.attn1.{name}"].detach().clone()
        for name in ("to_out.0.weight", "to_out.0.bias"):
            out[f"{site}.{name}"] = torch.zeros_like(unet[f"{site}.attn1.{name}"])
    return out


def new_encoder(out: int, seed: int, widths: Mapping | None = None) -> ControlEncoder:
    """A control encoder with torch's usual random first weights.

    Its last layer does not start at zero: cross-normalisation divides by its standard deviation.

    Args:
        out: channels of the UNet's first level.  widths: of the inner layers; None takes the published ones.
    """
    with seeded(seed):
        return ControlEncoder(EncoderWidths(image=3, out=out, **(widths or PUBLISHED)))
