"""How Gaussian a latent is: the Anderson-Darling statistic, as the paper measures inversions (I2VEdit, Table 2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Largest statistic at which a sample counts as normal, by level of significance (Stephens 1974, mean and variance
# estimated); for scale: both are far below what any inversion gives.
CRITICAL_5_PERCENT = 0.787


class Normality(NamedTuple):
    """Of one set of values: count, mean, standard deviation, Anderson-Darling statistic (0 is perfect)."""

    count: int
    mean: float
    deviation: float
    statistic: float


def anderson_darling(values: Tensor) -> Normality:
    """Anderson-Darling statistic against a normal distribution of the values' own mean and variance.

    A^2 = -n - 1/n sum_i (2i - 1) (ln F(z_i) + ln(1 - F(z_{n+1-i}))), z sorted and standardised with n - 1. The same number
    as scipy.stats.anderson(values).statistic. It grows with the count, so compare equal sizes.

    Args:
        values: any shape, at least two values.

    Returns:
        The statistic is infinite for constant values or values that are not finite.
    """
    flat = values.detach().double().flatten().cpu()
    count = flat.numel()
    mean, deviation = float(flat.mean()), float(flat.std())
    if not math.isfinite(mean) or not math.isfinite(deviation) or deviation == 0.0:
        return Normality(count, mean, deviation, math.inf)
    z = ((flat - mean) / deviation).sort().values
    log_below = torch.special.log_ndtr(z)
    log_above = torch.special.log_ndtr(-z).flip(0)
    odd = 2.0 * torch.arange(1, count + 1, dtype=torch.float64) - 1.0
    return Normality(count, mean, deviation, float(-count - (odd * (log_below + log_above)).sum() / count))


def histogram(values: Tensor, bins: int, reach: float) -> Tensor:
    """Density of standardised values: (bins,) over [-reach, reach], the outermost bins holding what lies beyond."""
    flat = values.detach().float().flatten().cpu()
    z = (flat - flat.mean()) / flat.std().clamp_min(1e-12)
    counts = torch.histc(z.clamp(-reach, reach), bins, -reach, reach)
    return counts / (flat.numel() * 2 * reach / bins)
