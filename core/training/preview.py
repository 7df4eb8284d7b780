"""A quick preview of what a network has learned: a few sampling steps on known examples.

Euler steps on Karras' noise levels (Karras et al. 2022, equations 3 and 5), with FramePainter's guidance schedule.
Legend: B examples, T frames, h w latent size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..edm import denoised_from_v, inverse_square_guidance, karras_sigmas, network_timestep, scale_input
from .examples import Examples
from .network import Network, NetworkInput


def denoise(network: Network, z: Tensor, sigma: Tensor, given: NetworkInput) -> Tensor:
    """The network's guess of the clean latents: z (B, T, 4, h, w) at noise level sigma (a number tensor).

    Args:
        given: the rest of its input; x and t are not used.
    """
    t = network_timestep(sigma).expand(len(z)).to(z)
    return denoised_from_v(z, network(given._replace(x=scale_input(z, sigma), t=t)).v, sigma)


@torch.no_grad()
def sample(network: Network, batch: Examples, steps: int, scale: float, seed: int) -> Tensor:
    """Edit the batch's sources by its signals: (B, T, 4, h, w) latents, scaled as the examples' are.

    Args:
        steps: noise levels.  scale: guidance at the first step; 1 is without.  seed: of the noise, drawn on the CPU.
    """
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(seed)).to(batch.latents.device)
    sigmas = torch.tensor(karras_sigmas(steps)).to(noise)
    z = noise * sigmas[0]
    control = None if batch.control is None else batch.control.float() / 255
    given = NetworkInput(z, sigmas, batch.image.float(), batch.embedding.float(), control, batch.drag, batch.micro_conds)
    without = given._replace(image=torch.zeros_like(given.image), embedding=torch.zeros_like(given.embedding), control=None,
                             drag=None)
    for i, sigma in enumerate(sigmas[:-1]):
        guess = denoise(network, z, sigma, given)
        weight = inverse_square_guidance(scale, i, steps)
        if weight != 1.0:
            plain = denoise(network, z, sigma, without)
            guess = plain + weight * (guess - plain)
        z = z + (sigmas[i + 1] - sigma) * (z - guess) / sigma
    return z
