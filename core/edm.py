"""Stable Video Diffusion's noise levels and preconditioning, for sampling, inversion, training and previews alike.

sigma is the noise's standard deviation in the model's scaled latent space (latents * 0.18215), z a state there: latents plus
sigma times unit noise. The preconditioning is that of Karras et al. 2022 (Table 1) with sigma_data 1, in the v-prediction form
of Salimans and Ho 2022:

    network input    z / sqrt(sigma^2 + 1)
    v                (noise - sigma * latents) / sqrt(sigma^2 + 1)
    denoised         z / (sigma^2 + 1) - v * sigma / sqrt(sigma^2 + 1)
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SIGMA_MAX, SIGMA_MIN, RHO = 700.0, 0.002, 7.0  # SVD's range, and Karras et al. 2022, equation 5

# A noise level: a number, or a tensor that can be multiplied with the states.
Level = Tensor | float


# ---- preconditioning -------------------------------------------------------------------------------------------------


def network_timestep(sigma: Level) -> Level:
    """The network's noise-level input, 0.25 * ln(sigma) (Karras et al. 2022, Table 1, c_noise)."""
    return 0.25 * (torch.log(sigma.float()) if isinstance(sigma, Tensor) else math.log(sigma))


def deviation(sigma: Level) -> Level:
    """sqrt(sigma^2 + 1), the standard deviation of a state whose latents have unit variance."""
    total = sigma**2 + 1
    return total.sqrt() if isinstance(total, Tensor) else math.sqrt(total)


def scale_input(z: Tensor, sigma: Level) -> Tensor:
    """A state as the network is shown it, and, of the noisiest one, its noise with unit variance."""
    return z / deviation(sigma)


def denoised_from_v(z: Tensor, v: Tensor, sigma: Level) -> Tensor:
    """The clean latents that the network's v says are in a state."""
    return z / (sigma**2 + 1) - v * sigma / deviation(sigma)


def loss_weight(sigma: Level) -> Level:
    """(sigma^2 + 1) / sigma^2, which makes a squared error of clean latents one of v (Karras et al. 2022, Table 1, lambda)."""
    return (1 + sigma**2) / sigma**2


def broadcast(sigma: Tensor, like: Tensor) -> Tensor:
    """(B,) levels in the form that multiplies a batch of states (B, ...)."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


class Noised(NamedTuple):
    """What the network is shown, and what it should answer.

    x: (B, T, C, h, w) latents plus noise, divided by sqrt(sigma^2 + 1).
    t: (B,) network timestep.
    v: (B, T, C, h, w) the target of v-prediction.
    """

    x: Tensor
    t: Tensor
    v: Tensor


def add_noise(latents: Tensor, noise: Tensor, sigma: Tensor) -> Noised:
    """Noise clean latents, for training.

    Args:
        latents: (B, T, C, h, w) scaled.  noise: the same shape, unit variance.  sigma: (B,).
    """
    s = broadcast(sigma, latents)
    return Noised(scale_input(latents + s * noise, s), network_timestep(sigma), (noise - s * latents) / deviation(s))


# ---- a run's levels --------------------------------------------------------------------------------------------------


def step_position(sigma: float, sigmas: Sequence[float]) -> float:
    """The position in a run: i at sigmas[i], interpolated in ln(sigma) between two levels.

    Args:
        sigma: the noise level at hand.
        sigmas: the run's levels, descending, the final 0 included (n + 1 numbers for n steps).

    Returns:
        A number in [0, n - 1]. Samplers that look between two levels (Heun, DPM-2) get a fraction.
    """
    levels = [s for s in sigmas if s > 0]
    if not levels or sigma >= levels[0]:
        return 0.0
    if sigma <= levels[-1]:
        return float(len(levels) - 1)
    upper = bisect.bisect_left([-s for s in levels], -sigma)  # first i with levels[i] <= sigma
    if math.isclose(levels[upper], sigma, rel_tol=1e-6):
        return float(upper)
    if math.isclose(levels[upper - 1], sigma, rel_tol=1e-6):
        return float(upper - 1)
    high, low = math.log(levels[upper - 1]), math.log(levels[upper])
    return upper - 1 + (high - math.log(sigma)) / (high - low)


def inverse_square_guidance(scale: float, position: float, steps: int) -> float:
    """FramePainter's guidance schedule (released code): (scale - 1) (1 - i/n)^2 + 1.

    Args:
        scale: guidance at the first step.  position: i, 0-based.  steps: n.
    """
    return (scale - 1.0) * (1.0 - position / max(steps, 1)) ** 2 + 1.0


def karras_sigmas(steps: int, highest: float = SIGMA_MAX, lowest: float = SIGMA_MIN, rho: float = RHO) -> list[float]:
    """The released schedule: (highest^(1/rho) + k / (N - 1) (lowest^(1/rho) - highest^(1/rho)))^rho for k < N, then 0.

    The host's own Karras schedule is the same up to 4e-6; this one is computed in double precision.
    """
    ends = highest ** (1 / rho), lowest ** (1 / rho)
    return [*((ends[0] + k / max(steps - 1, 1) * (ends[1] - ends[0])) ** rho for k in range(steps)), 0.0]
