"""DDIM inversion: from a clean video to noise along the sampling's own levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .euler import Denoiser


@torch.no_grad()
def invert_ddim(model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any] | None = None,
                callback: Callable[[dict], None] | None = None, first: int = 0) -> Tensor:
    """DDIM inversion as released: from a clean video to noise, in the form that ComfyUI's samplers hold.

    The network sees the latents of level i together with the timestep of level i + 1; its prediction then carries them from
    level i to i + 1.

    Args:
        x: (rows, 4, h, w), latents / sqrt(a) at sigmas[first].
        sigmas: ascending, of a Schedule.
        callback: after each step {"i", "x" (the state it started from), "next" (the state it reached), "sigma", "denoised"}.
        first: the step to start with.
    """
    rows = x.new_ones([x.shape[0]])
    for i in range(first, len(sigmas) - 1):
        here, above = sigmas[i], sigmas[i + 1]
        seen = x * ((above**2 + 1.0) / (here**2 + 1.0)).sqrt()  # the same latents, as they would be held at the level above
        denoised = model(seen, above * rows, **(extra_args or {}))
        reached = x + (above - here) * (seen - denoised) / above
        if callback is not None:
            callback({"i": i, "x": x, "next": reached, "sigma": above, "denoised": denoised})
        x = reached
    return x
