"""Video-P2P's noise schedule and the DDIM step, in both directions.

There are two conventions for a noisy latent x = sqrt(a) x0 + sqrt(1 - a) e. DDIM's own is x itself, here called a latent.
ComfyUI's samplers hold x / sqrt(a), which has the noise level sigma = sqrt((1 - a) / a), so that 1 / a = sigma^2 + 1; there a
DDIM step is an Euler step.

The schedule differs from the host's `ddim_uniform`: its last level is a[0], not 1, so sampling ends at sigma 0.0292.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .edm import deviation

TRAIN_STEPS = 1000
BETA_FIRST, BETA_LAST = 0.00085, 0.012


@lru_cache(maxsize=1)
def cumulative_alphas() -> tuple[float, ...]:
    """a_t for t = 0..999, the product of all 1 - beta up to t; betas are the squares of evenly spaced roots (SD 1.x).

    Computed in float32, as the published values are.
    """
    roots = torch.linspace(BETA_FIRST**0.5, BETA_LAST**0.5, TRAIN_STEPS, dtype=torch.float32)
    return tuple(torch.cumprod(1.0 - roots**2, 0).tolist())


@dataclass(frozen=True)
class Schedule:
    """The levels of a run of N steps, noisiest first.

    Raises:
        ValueError: steps outside of 1..999.
    """

    steps: int

    def __post_init__(self):
        if not 1 <= self.steps < TRAIN_STEPS:
            raise ValueError(f"a schedule of {self.steps} steps is not possible; steps must be between 1 and {TRAIN_STEPS - 1}")

    @property
    def stride(self) -> int:
        """Distance of neighbouring timesteps, 1000 // N."""
        return TRAIN_STEPS // self.steps

    @property
    def timesteps(self) -> tuple[int, ...]:
        """N timesteps 1 + k * stride, descending, as the network gets them."""
        return tuple(1 + k * self.stride for k in reversed(range(self.steps)))

    @property
    def alphas(self) -> tuple[float, ...]:
        """N + 1 values of a, ascending: at each timestep, and a[0] after the last step."""
        every = cumulative_alphas()
        return (*(every[t] for t in self.timesteps), every[0])

    @property
    def sigmas(self) -> tuple[float, ...]:
        """N + 1 noise levels for ComfyUI's samplers, descending; the last is not 0."""
        return tuple(sigma_of(a) for a in self.alphas)


def sigma_of(alpha: float) -> float:
    """Noise level of x / sqrt(a)."""
    return math.sqrt((1.0 - alpha) / alpha)


def latents(states: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Latents of states that ComfyUI's samplers hold: x / sqrt(a) times sqrt(a).

    Args:
        states: (K, ...), one for each level.  sigmas: K levels.
    """
    factors = torch.tensor([1.0 / deviation(s) for s in sigmas], dtype=torch.float64)
    return states * factors.to(states).view(-1, *[1] * (states.ndim - 1))


def step(x: Tensor, noise: Tensor, alpha: float, next_alpha: float) -> Tensor:
    """One deterministic DDIM step between two levels, towards less noise or more (Song et al. 2021, equation 12, eta = 0).

    Args:
        x: latents at level alpha.  noise: the network's prediction.
    """
    clean = (x - math.sqrt(1.0 - alpha) * noise) / math.sqrt(alpha)
    return math.sqrt(next_alpha) * clean + math.sqrt(1.0 - next_alpha) * noise


def add_noise(x: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """Clean latents with noise of a timestep, sqrt(a) x + sqrt(1 - a) noise."""
    alpha = cumulative_alphas()[timestep]
    return math.sqrt(alpha) * x + math.sqrt(1.0 - alpha) * noise
