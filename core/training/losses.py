"""FramePainter's training losses (section 3.1 equation 1, section 3.2 equations 5 to 8).

The text of equations 5 to 7 that this was written from has lost their exact form, so both readings of "optimise the
attention weights with C and M" are here: squared error and cross-entropy, masked by visibility.

Legend: B videos, T frames, N heads, L tokens, D channels a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..data.signals import TokenMatches
from ..edm import network_timestep

MatchingLoss = Literal["squared error", "cross entropy"]


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


def diffusion_loss(v_predicted: Tensor, v: Tensor, frame_weights: Sequence[float] | None = None) -> Tensor:
    """Equation 1: mean squared error of v over both frames. In EDM's terms the weight (sigma^2 + 1) / sigma^2.

    Args:
        v_predicted, v: (B, T, C, h, w).
        frame_weights: one number a frame; (0, 1) is the ablation without source reconstruction. None is all ones.
    """
    error = (v_predicted.float() - v.float()).pow(2).mean((0, 2, 3, 4))  # (T,)
    if frame_weights is None:
        return error.mean()
    weights = torch.tensor(frame_weights, dtype=error.dtype, device=error.device)
    return (error * weights).sum() / weights.sum()


def attention_weights(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Softmax attention, mean over heads: (B, L, C), (B, S, C) -> (B, L, S)."""
    q, k = (t.float().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1).mean(1)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that count; 0, not NaN, if none does."""
    mask = mask.to(values)
    return (values * mask).sum() / mask.sum().clamp_min(1.0)


def matching_squared_error(weights: Tensor, matches: TokenMatches) -> Tensor:
    """Mean over visible target tokens of || A_i - C_i ||^2, C_i the one-hot row of the true source token.

    Args:
        weights: A, (B, L, S), rows summing to 1.
    """
    true = weights.gather(-1, matches.index[..., None])[..., 0]
    return _masked_mean(weights.pow(2).sum(-1) - 2 * true + 1, matches.visible)


def matching_cross_entropy(weights: Tensor, matches: TokenMatches) -> Tensor:
    """Mean over visible target tokens of -log A[i, C(i)]. Arguments as `matching_squared_error`."""
    true = weights.gather(-1, matches.index[..., None])[..., 0]
    return _masked_mean(-true.clamp_min(1e-12).log(), matches.visible)


MATCHING: dict[MatchingLoss, Callable[[Tensor, TokenMatches], Tensor]] = {
    "squared error": matching_squared_error,
    "cross entropy": matching_cross_entropy,
}
