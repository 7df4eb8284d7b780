"""Stable Video Diffusion's noise levels: the one place where its preconditioning numbers are written.

sigma is the noise's standard deviation in the model's scaled latent space (latents * 0.18215).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

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
