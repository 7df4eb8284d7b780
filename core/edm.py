"""Stable Video Diffusion's noise levels: the one place where its preconditioning numbers are written.

sigma is the noise's standard deviation in the model's scaled latent space (latents * 0.18215).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def network_timestep(sigma: Tensor) -> Tensor:
    """The network's noise-level input, 0.25 * ln(sigma) (Karras et al. 2022, Table 1, c_noise)."""
    return 0.25 * torch.log(sigma.float())


def step_position(sigma: float, sigmas: Sequence[float]) -> float:
    """Where a run stands: i at sigmas[i], between two of them in proportion to ln(sigma).

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


SIGMA_MAX, SIGMA_MIN, RHO = 700.0, 0.002, 7.0  # SVD's range, and Karras et al. 2022, equation 5


def karras_sigmas(steps: int, highest: float = SIGMA_MAX, lowest: float = SIGMA_MIN, rho: float = RHO) -> list[float]:
    """The released schedule: (highest^(1/rho) + k / (N - 1) (lowest^(1/rho) - highest^(1/rho)))^rho for k < N, then 0.

    The host's own Karras schedule is the same up to 4e-6; this one is computed in double precision.
    """
    ends = highest ** (1 / rho), lowest ** (1 / rho)
    return [*((ends[0] + k / max(steps - 1, 1) * (ends[1] - ends[0])) ** rho for k in range(steps)), 0.0]


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
    """EDM noising in SVD's v-prediction form (Karras et al. 2022 with sigma_data 1; Salimans and Ho 2022).

    With z = latents + sigma * noise, v = (sigma * latents - noise) / sqrt(sigma^2 + 1) with the sign that makes
    denoised = z / (sigma^2 + 1) - v * sigma / sqrt(sigma^2 + 1), the form that SVD's sampler uses.

    Args:
        latents: (B, T, C, h, w) scaled.  noise: the same shape, unit variance.  sigma: (B,).
    """
    s = sigma.reshape(-1, *[1] * (latents.ndim - 1))
    root = (s**2 + 1).sqrt()
    return Noised((latents + s * noise) / root, network_timestep(sigma), (noise - s * latents) / root)
