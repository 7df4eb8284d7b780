"""Noise levels of an inversion, from those of the sampling that it undoes.

Sampling visits sigma_0 > sigma_1 > ... > sigma_N, the last of which is usually 0. Inversion goes the other way round,
and cannot start at 0, where the velocity (x - x0) / sigma has no value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LONE_STEP = 10.0  # a schedule of one step has no ratio to continue; its start lies this factor below


def inversion_levels(sigmas: Sequence[float]) -> list[float]:
    """The levels of an inversion, ascending: it evaluates the network at each but the last, and ends at the last.

    The final 0 is replaced by the geometric continuation sigma_{N-1}^2 / sigma_{N-2}. A schedule that ends above 0 (the
    upper part of a split one) is taken as it is.

    Args:
        sigmas: the sampling's levels, descending.

    Raises:
        ValueError: fewer than two levels, or not descending, or negative or not finite.
    """
    sigmas = [float(s) for s in sigmas]
    if len(sigmas) < 2:
        raise ValueError(f"a schedule needs at least two noise levels, this one has {len(sigmas)}")
    if not all(math.isfinite(s) and s >= 0 for s in sigmas) or any(a <= b for a, b in zip(sigmas, sigmas[1:], strict=False)):
        raise ValueError("noise levels must fall from step to step, and none may be negative; these are "
                         + ", ".join(f"{s:g}" for s in sigmas))
    last = sigmas[-1]
    if last == 0.0:
        last = sigmas[-2] ** 2 / sigmas[-3] if len(sigmas) > 2 else sigmas[0] / LONE_STEP
    return [last, *reversed(sigmas[:-1])]


def is_stretch(sigmas: Sequence[float], whole: Sequence[float], tolerance: float) -> bool:
    """Whether a schedule is a stretch of another; its last level may be a forced 0.

    Args:
        tolerance: relative, of each level.
    """
    def close(a: float, b: float) -> bool:
        return abs(a - b) <= tolerance * max(abs(a), abs(b))

    return any(all(close(a, b) for a, b in zip(sigmas[:-1], whole[start:], strict=False))
               and (close(sigmas[-1], whole[start + len(sigmas) - 1]) or sigmas[-1] == 0.0)
               for start in range(len(whole) - len(sigmas) + 1))


def sampling_step(sigma: float, sigmas: Sequence[float]) -> int:
    """The sampling step t with sigma_{t+1} < sigma <= sigma_t; the first above all levels, the last below."""
    steps = len(sigmas) - 1
    return next((t for t in range(steps) if sigma > sigmas[t + 1]), steps - 1)


def source_step(sampling_step: int, steps: int) -> int:
    """The inversion step whose features serve a sampling step t: N - 1 - t, evaluated at sigma_{t+1} (released code)."""
    return steps - 1 - sampling_step
