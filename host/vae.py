"""Encoding and decoding with the host's VAE; inf or NaN ends the work instead of becoming black pictures."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
from torch import Tensor

from ..core.finite import SENDER, check_finite

PRECISION = "A VAE in half precision can overflow: start ComfyUI with --bf16-vae or --fp32-vae, or use another VAE."


def encode(vae: Any, pictures: Tensor, what: str = "the picture") -> Tensor:
    """Pictures (B, H, W, 3), noise beyond [0, 1] included, to latents (B, 4, H / 8, W / 8).

    Args:
        what: the pictures are, for the message.

    Raises:
        NotFinite: inf or NaN in the pictures, or in what the VAE makes of them.
    """
    mm.throw_exception_if_processing_interrupted()
    check_finite(pictures, what, SENDER)
    return check_finite(vae.encode(pictures), f"what the VAE's encoder gave for {what}", PRECISION)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B, 4, h, w) to pictures (B, 8 h, 8 w, 3) on the CPU.

    Raises:
        NotFinite: inf or NaN in the latents, or in what the VAE makes of them.
    """
    mm.throw_exception_if_processing_interrupted()
    check_finite(latents, "the latent that sampling gave", "Load the model with weight_dtype fp32 or bf16, or use more steps.")
    return check_finite(vae.decode(latents), "what the VAE's decoder gave", PRECISION).float().cpu()
