"""FramePainter's training losses (section 3.1 equation 1, section 3.2 equations 5 to 8).

In the text that this was written from, the exact form of equations 5 to 7 was unreadable, so both readings of "optimise the
attention weights with C and M" are here: squared error and cross-entropy, masked by visibility.

Legend: B videos, T frames, N heads, L tokens, D channels a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...attention.correspondence import TokenMatches

MatchingLoss = Literal["squared error", "cross entropy"]


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


def squared_error_rows(weights: Tensor, index: Tensor) -> Tensor:
    """|| A_i - C_i ||^2 of every target token, C_i the one-hot row of its true source token.

    Args:
        weights: A, (B, L, S), rows summing to 1.  index: (B, L).

    Returns:
        (B, L), from 0 (all weight on the true token) to 2.
    """
    true = weights.gather(-1, index[..., None])[..., 0]
    return weights.pow(2).sum(-1) - 2 * true + 1


def cross_entropy_rows(weights: Tensor, index: Tensor) -> Tensor:
    """-log A[i, C(i)] of every target token. Arguments and result as `squared_error_rows`, from 0 up."""
    return -weights.gather(-1, index[..., None])[..., 0].clamp_min(1e-12).log()


ROWS: dict[MatchingLoss, Callable[[Tensor, Tensor], Tensor]] = {
    "squared error": squared_error_rows,
    "cross entropy": cross_entropy_rows,
}
CHUNK = 2 ** 26  # attention weights held at once: 256 MB in float32


def matching_loss(kind: MatchingLoss, q: Tensor, k: Tensor, heads: int, matches: TokenMatches,
                  chunk: int = CHUNK) -> Tensor:
    """Equations 5 to 8 at one attention: the mean of the rows' losses over the target tokens that have a match.

    At 72x128 tokens the weights of one pair take 340 MB a head, so they are made a few rows at a time, and again in the
    backward pass; the result is the same.

    Args:
        q: (B, L, C) of the target frame.  k: (B, S, C) of the source frame.
        chunk: most weights (B * heads * rows * S) at a time.

    Returns:
        A number; 0, not NaN, if no token has a match.
    """
    rows = max(1, chunk // (k.shape[0] * k.shape[1] * heads))

    def part(q: Tensor, k: Tensor, index: Tensor, visible: Tensor) -> Tensor:
        return (ROWS[kind](attention_weights(q, k, heads), index) * visible).sum()

    total = q.new_zeros((), dtype=torch.float32)
    for start in range(0, q.shape[1], rows):
        of = slice(start, start + rows)
        inputs = q[:, of], k, matches.index[:, of], matches.visible[:, of].float()
        total = total + (part(*inputs) if rows >= q.shape[1] else checkpoint(part, *inputs, use_reentrant=False))
    return total / matches.visible.sum().clamp_min(1)
