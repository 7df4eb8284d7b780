"""The probability-flow ODE run upward: from a clip to noise (Karras et al. 2022, equations 1 and 3, Euler)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Denoiser = Callable[..., Tensor]  # model(x, sigma, **extra) -> denoised


@torch.no_grad()
def invert_euler(model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any] | None = None,
                 callback: Callable[[dict], None] | None = None, first: int = 0) -> Tensor:
    """Integrate dx = (x - D(x; s)) / s ds from sigmas[first] to sigmas[-1].

    Args:
        x: (T, 4, h, w) the clip's latents in model space, without added noise; or, to go on, the state reached.
        sigmas: ascending, the first above 0.
        callback: after each step {"i", "x" (the state it started from), "next" (the state it reached), "sigma",
            "denoised"}.
        first: the step to start with.

    Returns:
        (T, 4, h, w) at sigmas[-1]. Divided by sqrt(sigmas[-1]^2 + 1) it is the inverted noise, ideally standard normal.
    """
    rows = x.new_ones([x.shape[0]])
    for i in range(first, len(sigmas) - 1):
        denoised = model(x, sigmas[i] * rows, **(extra_args or {}))
        reached = x + (sigmas[i + 1] - sigmas[i]) * (x - denoised) / sigmas[i]
        if callback is not None:
            callback({"i": i, "x": x, "next": reached, "sigma": sigmas[i], "denoised": denoised})
        x = reached
    return x
