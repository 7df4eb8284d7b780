"""Encoding and decoding with the host's VAE; inf or NaN raises an error instead of giving black pictures."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
from torch import Tensor

from ..core.finite import BY_VAE, check_finite

CELL = 8  # pixels of a latent's side
BY_SENDER = "Look at the result of the node that it comes from."


def encode(vae: Any, pictures: Tensor, what: str = "the picture") -> Tensor:
    """Pictures (B, H, W, 3), noise beyond [0, 1] included, to latents (B, 4, H / 8, W / 8).

    Args:
        what: the pictures are, for the message.

    Raises:
        ValueError: so small that a single latent would stand for a picture, which the VAE's norms cannot work on.
        NotFinite: inf or NaN in the pictures, or in what the VAE makes of them.
    """
    mm.throw_exception_if_processing_interrupted()
    height, width = pictures.shape[1:3]
    if (height // CELL) * (width // CELL) < 2:
        raise ValueError(f"{what} is {width} x {height} pixels, too small for the VAE. Make it at least {2 * CELL} pixels wide and "
                         "high.")
    check_finite(what, {"pixels": pictures}, BY_SENDER)
    latents = vae.encode(pictures)
    check_finite(what, {"encoded latents": latents}, BY_VAE)
    return latents


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B, 4, h, w) to pictures (B, 8 h, 8 w, 3) on the CPU.

    Raises:
        NotFinite: inf or NaN in the latents, or in what the VAE makes of them.
    """
    mm.throw_exception_if_processing_interrupted()
    check_finite("what was sampled", {"latents": latents}, "Load the model with weight_dtype fp32 or bf16, or use more steps.")
    pictures = vae.decode(latents)
    check_finite("what was sampled", {"decoded pictures": pictures}, BY_VAE)
    return pictures.float().cpu()
