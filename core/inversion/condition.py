"""How the image condition is made noisy, in inversion and in editing (I2VEdit's released code).

Pixels are in [-1, 1]. In inversion the noise is added to pixels before the encoder, in editing to latents after it.
"""

from __future__ import annotations

import torch
from torch import Tensor

AUGMENTATION = 0.02  # standard deviation of that noise; also told to the network
FPS_INVERSION = 8  # frame rate number as the network sees it
MOTION_BUCKET = 127


def quantise(pixels: Tensor) -> Tensor:
    """The 8-bit round trip of the inversion's pictures: uint8((x + 1) / 2 * 255), cut off rather than rounded, and back."""
    return ((pixels + 1.0) / 2.0 * 255.0).clamp(0.0, 255.0).floor() * 2.0 / 255.0 - 1.0


def noisy_pixels(pixels: Tensor, noise: Tensor, level: float = AUGMENTATION) -> Tensor:
    """What the encoder sees in inversion: quantised pixels plus noise, not clamped."""
    return quantise(pixels) + level * noise


def source_condition(key: Tensor, first: Tensor, frames: int) -> Tensor:
    """Image condition of a source clip: the key frame's latent for frame 0, the first frame's for all others.

    key, first: (1, 4, h, w) -> (T, 4, h, w).
    """
    out = first.expand(frames, -1, -1, -1).clone()
    out[0] = key[0]
    return out


def edit_condition(latent: Tensor, noise: Tensor, level: float = AUGMENTATION) -> Tensor:
    """Image condition of an edit's conditional half: latent plus latent noise, one draw for all frames."""
    return latent + level * noise


def pixel_noise(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Standard normal noise for an inversion's pictures, the same for both: (1, 3, H, W)."""
    return torch.randn((1, 3, height, width), generator=generator)


def latent_noise(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Standard normal noise for an edit's image condition: (1, 4, h, w).

    As released: it is drawn for both halves of the guided batch, and the second draw is used.
    """
    return torch.randn((2, 4, height, width), generator=generator)[1:]
