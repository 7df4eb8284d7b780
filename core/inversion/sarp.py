"""Smooth Area Random Perturbation: faint noise where a picture has no detail (I2VEdit, section 4.2, equation 5).

A diffusion model has never seen an area without any noise in it. Inverting one gives latents that are far from Gaussian,
so areas of constant colour get a noise too faint to be seen before the clip is encoded and inverted.

Legend: B pictures, H W pixels. Pixels are in [-1, 1] here, which is what threshold and scale refer to.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLD, SCALE = 0.001, 0.005  # section 5.1
COPIES = 2  # as released, the stack holds the first frame and the key frame again, each with a noise of its own

Border = Literal["repeat", "zero"]
Limits = Literal["inward", "clamp"]


class Pictures(NamedTuple):
    """A clip as it is inverted, in pictures (B, H, W, 3) in [0, 1]: its frames, and frame 0 twice, perturbed on its own.

    clip: T frames.  first_frame: what CLIP and the later frames' condition see.  key_frame: what frame 0's condition sees.
    """

    clip: Tensor
    first_frame: Tensor
    key_frame: Tensor


class Perturbed(NamedTuple):
    """A perturbed clip and what is conditioned on.

    clip: (T, 3, H, W).  first_frame, key_frame: (1, 3, H, W), frame 0 again, each with its own noise.
    smooth: (T + 2, H, W) bool, where noise was added; order first frame, key frame, clip.
    """

    clip: Tensor
    first_frame: Tensor
    key_frame: Tensor
    smooth: Tensor


def gradient(pixels: Tensor, border: Border = "zero") -> Tensor:
    """Mean over the channels of |Sobel x| + |Sobel y|, kernels not normalised. (B, 3, H, W) -> (B, H, W).

    Args:
        border: "zero" as released: a zero row beyond the edge, so that the rim of a constant area counts as an edge
            unless it is mid-grey. "repeat": the outermost pixels go on.
    """
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=pixels.dtype, device=pixels.device)
    kernels = torch.stack([kernel, kernel.T])[:, None]
    flat = pixels.flatten(0, 1)[:, None]
    flat = F.pad(flat, (1, 1, 1, 1)) if border == "zero" else F.pad(flat, (1, 1, 1, 1), mode="replicate")
    edges = F.conv2d(flat, kernels).abs().sum(1)
    return edges.unflatten(0, pixels.shape[:2]).mean(1)


def perturb(pixels: Tensor, noise: Tensor, threshold: float = THRESHOLD, scale: float = SCALE, limits: Limits = "inward",
            border: Border = "repeat") -> tuple[Tensor, Tensor]:
    """Add noise to the smooth areas.

    Args:
        pixels: (B, 3, H, W) in [-1, 1].
        noise: the same shape, standard normal; a number of its own for every channel.
        threshold: largest gradient that counts as smooth.
        scale: standard deviation of the noise.
        limits: what happens to values pushed out of [-1, 1]. "clamp" as released: cut off, so that pure white and pure
            black keep half of their noise and the rest of it is the constant area again. "inward": mirrored at the
            limit, so that every smooth pixel keeps a noise.
        border: see gradient.

    Returns:
        (B, 3, H, W) in [-1, 1], and the smooth area (B, H, W) bool. Pixels outside of it keep their bits.
    """
    smooth = gradient(pixels, border) <= threshold
    noisy = pixels + scale * noise
    if limits == "inward":
        noisy = torch.where(noisy > 1.0, 2.0 - noisy, noisy)
        noisy = torch.where(noisy < -1.0, -2.0 - noisy, noisy)
    return torch.where(smooth[:, None], noisy, pixels).clamp(-1.0, 1.0), smooth


def perturb_clip(clip: Tensor, noise: Tensor, threshold: float = THRESHOLD, scale: float = SCALE,
                 limits: Limits = "inward", border: Border = "repeat") -> Perturbed:
    """Perturb a clip and the two copies of its first frame that the image condition is made from.

    Args:
        clip: (T, 3, H, W) in [-1, 1].
        noise: (T + 2, 3, H, W): first frame, key frame, clip.
    """
    stack = torch.cat([clip[:1].expand(COPIES, -1, -1, -1), clip])
    out, smooth = perturb(stack, noise, threshold, scale, limits, border)
    return Perturbed(out[COPIES:], out[:1], out[1:COPIES], smooth)


def perturb_frames(frames: Tensor, generator: torch.Generator, threshold: float = THRESHOLD, scale: float = SCALE,
                   limits: Limits = "inward", border: Border = "repeat") -> tuple[Pictures, Tensor]:
    """Perturb a clip of pictures.

    Args:
        frames: (T, H, W, 3) in [0, 1].
        generator: on the CPU, so that every card gets the same noise; one draw of (T + 2, 3, H, W).

    Returns:
        Pictures, and where noise was added, (T, H, W) bool. A scale of 0 leaves every bit.
    """
    pixels = frames.movedim(-1, 1).float().cpu() * 2.0 - 1.0
    noise = torch.randn((len(pixels) + COPIES, *pixels.shape[1:]), generator=generator)
    found = perturb_clip(pixels, noise, threshold, scale, limits, border)
    pictures = Pictures(*(((p + 1.0) / 2.0).movedim(1, -1) for p in (found.clip, found.first_frame, found.key_frame)))
    if scale == 0.0:
        pictures = Pictures(frames, frames[:1], frames[:1])
    return pictures, found.smooth[COPIES:]
