"""A quick look at what a network has learned: a few sampling steps on known examples.

Euler steps on Karras' noise levels (Karras et al. 2022, equations 3 and 5), with FramePainter's guidance schedule.
Legend: B examples, T = 2 frames, h w latent size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..edm import inverse_square_guidance, network_timestep
from .examples import Examples
from .framepainter.objective import Network

SIGMA_MAX, SIGMA_MIN, RHO = 700.0, 0.002, 7.0  # SVD's range of noise


def karras_sigmas(steps: int) -> Tensor:
    """(steps + 1,) noise levels from SVD's largest to 0."""
    ramp = torch.linspace(0, 1, steps) if steps > 1 else torch.zeros(1)
    ends = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    return torch.cat([(ends[0] + ramp * (ends[1] - ends[0])) ** RHO, torch.zeros(1)])


def denoise(network: Network, z: Tensor, sigma: Tensor, image: Tensor, embedding: Tensor, control: Tensor | None,
            drag: Tensor | None = None) -> Tensor:
    """The network's guess of the clean latents: z (B, T, 4, h, w) at noise level sigma (a number tensor)."""
    root = (sigma**2 + 1).sqrt()
    v, _ = network(z / root, network_timestep(sigma).expand(len(z)).to(z), image, embedding, control, False, drag)
    return z / root**2 - v.float() * sigma / root


@torch.no_grad()
def sample(network: Network, batch: Examples, steps: int, scale: float, seed: int) -> Tensor:
    """Edit the batch's sources by its signals: (B, T, 4, h, w) latents, scaled as the examples' are.

    Args:
        steps: noise levels.  scale: guidance at the first step; 1 is without.  seed: of the noise, drawn on the CPU.
    """
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(seed)).to(batch.latents.device)
    sigmas = karras_sigmas(steps)
    z = noise * sigmas[0]
    image, embedding = batch.image.float(), batch.embedding.float()
    control = None if batch.control is None else batch.control.float() / 255
    for i in range(steps):
        sigma = sigmas[i].to(z)
        guess = denoise(network, z, sigma, image, embedding, control, batch.drag)
        weight = inverse_square_guidance(scale, i, steps)
        if weight != 1.0:
            plain = denoise(network, z, sigma, torch.zeros_like(image), torch.zeros_like(embedding), None)
            guess = plain + weight * (guess - plain)
        z = z + (sigmas[i + 1].to(z) - sigma) * (z - guess) / sigma
    return z
