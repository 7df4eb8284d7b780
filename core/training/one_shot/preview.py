"""A quick preview of what one-shot tuning has learned: noise is added to the video and it is sampled again, by DDIM without
guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ddim import Schedule, add_noise, step
from .objective import Network

STEPS = 20  # of a whole run
SKIPPED = 8  # noisiest of them: the video's layout is still in what the others begin with


@torch.no_grad()
def sample(network: Network, latents: Tensor, text: Tensor, seed: int) -> Tensor:
    """The video sampled again from the level of the first step that is not skipped.

    Args:
        latents: (F, 4, h, w) clean, in the network's scale.  text: (1, K, C).  seed: of the noise, drawn on the CPU.

    Returns:
        (F, 4, h, w)
    """
    schedule = Schedule(STEPS)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    x = add_noise(latents, noise, schedule.timesteps[SKIPPED])
    for n in range(SKIPPED, STEPS):
        x = step(x, network(x, schedule.timesteps[n], text).to(x), *schedule.alphas[n:n + 2])
    return x
