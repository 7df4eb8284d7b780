"""Small networks that exist only in memory, and how the tests run them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Edit(NamedTuple):
    """A loaded model with the conditioning of one small edit."""

    loaded: Any
    positive: list
    negative: list
    latent: Tensor  # (2, 4, h, w) zeros


def sample(model: Any, edit: Edit, steps: int = 2, cfg: float = 3.0, seed: int = 5, sampler: str = "euler",
           scheduler: str = "karras", frames: int = 2, gain: float = 1.0) -> Tensor:
    """Run the host's sampler; (T, 4, h, w). Gradients off and inference mode on, as in a server.

    Args:
        gain: factor on the start noise.
    """
    import comfy.sample

    latent = edit.latent[:1].expand(frames, -1, -1, -1).clone()
    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(latent, seed) * gain
        return comfy.sample.sample(model, noise, steps, cfg, sampler, scheduler, edit.positive, edit.negative, latent,
                                   disable_pbar=True, seed=seed).clone()


def rounding(model: Any, edit: Edit, **run: Any) -> float:
    """How far float32's rounding carries in a run: the largest relative change of its result when the start noise changes
    in its last bits. It depends on the network and on the CPU's kernels, so limits are multiples of it."""
    result = sample(model, edit, **run)
    changes = [sample(model, edit, gain=1.0 + ulps * 2.0**-23, **run) for ulps in (-2, -1, 1, 2)]
    return max(float((c.double() - result.double()).norm() / result.double().norm()) for c in changes)
