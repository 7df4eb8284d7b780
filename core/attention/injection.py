"""Attention injection: putting a source clip's attention into an edit (I2VEdit, section 4.2, equations 7 and 8), without a map of
all tokens by all tokens.

The weight that mixes the source's attention A0 with the edit's A is the same for all keys of a query. So the mix needs whole rows
of the maps, but never whole maps: a few rows at a time are computed, compared, mixed and multiplied with the values. Where fused
attention is faster, (1 - m) A0 V + m A V gives the same result.

Legend: T frames, L tokens of one frame, C = N D channels, N heads, D channels a head, R rows of temporal attention (h*w).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = 96 << 20  # of scores held at once; 3 buffers. At 9216 tokens and 5 heads 182 queries at a time.
BUFFERS = 3


class SourceQK(NamedTuple):
    """Queries and keys of the source, (T, L, C) in spatial and (R, T, C) in temporal attention; any floating type."""

    q: Tensor
    k: Tensor


class Masks(NamedTuple):
    """A user's areas, in [0, 1]: `change` is the least share of the edit's own map, `stay` the least share of the source's. None:
    not restricted.

    Of pixels (1 or T, H, W), or of one map's tokens (1 or T, L).
    """

    change: Tensor | None = None
    stay: Tensor | None = None

    def at(self, frame: int, tokens: slice) -> Masks:
        """Of some tokens of one frame."""
        return Masks(*(None if m is None else m[frame if len(m) > 1 else 0, tokens] for m in self))


class Injected(NamedTuple):
    """out: (T, L, C).  difference: (T, L) in [0, 1], equation 7.  weight: (T, L), equation 8: share of the edit's own map."""

    out: Tensor
    difference: Tensor
    weight: Tensor


def frame_thresholds(first: float, last: float, frames: int) -> list[float]:
    """first + (last - first) f / T for frame f = 0..T-1 (released code; the last frame does not reach `last`)."""
    return [first + (last - first) * f / frames for f in range(frames)]


def edit_weight(difference: Tensor, threshold: float, masks: Masks = Masks()) -> Tensor:  # noqa: B008
    """Equation 8: 1 where the difference reaches the threshold, else the difference itself; then the user's masks.

    Args:
        difference: (L,) of one frame.
        masks: of that frame: at least `change`, at most 1 - `stay` of the edit's own map.
    """
    weight = torch.where(difference >= threshold, 1.0, difference)
    if masks.change is not None:
        weight = torch.maximum(weight, masks.change)
    return weight if masks.stay is None else torch.minimum(weight, 1.0 - masks.stay)


def injected_attention(q: Tensor, k: Tensor, v: Tensor, source: SourceQK, heads: int, thresholds: Sequence[float],
                       masks: Masks = Masks(), chunk_bytes: int = CHUNK_BYTES) -> Injected:  # noqa: B008
    """Spatial self-attention with the source's map where the two maps agree and the edit's where they do not.

    Args:
        q, k, v: (T, L, C) of the edit, any floating type.
        thresholds: one for each frame.
        masks: (1 or T, L), see edit_weight.
        chunk_bytes: bound on the memory of the scores, which are fp32 whatever the inputs are.

    Returns:
        See Injected; `out` in the type of v.
    """
    frames, length, width = q.shape
    rows = max(1, min(length, chunk_bytes // (BUFFERS * 4 * heads * length)))
    buffers = q.new_empty((BUFFERS, heads, rows, length), dtype=torch.float32)
    out = torch.empty_like(v)
    difference = q.new_empty((frames, length), dtype=torch.float32)
    weight = torch.empty_like(difference)
    scale = (width // heads) ** -0.5

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(-2, -3).float()  # (N, L, D)

    for f in range(frames):
        keys, keys0, values = split(k[f]).transpose(-1, -2), split(source.k[f]).transpose(-1, -2), split(v[f])
        for a in range(0, length, rows):
            b = min(a + rows, length)
            own, given, spare = (buffer[:, :b - a] for buffer in buffers)
            softmax_scores(split(q[f, a:b]) * scale, keys, own)
            softmax_scores(split(source.q[f, a:b]) * scale, keys0, given)
            # |A - A0| summed over keys, mean over heads, halved: the rows' total variation.
            tv = torch.sub(own, given, out=spare).abs_().sum(-1).mean(0).clamp_(0.0, 2.0) / 2.0
            m = edit_weight(tv, thresholds[f], masks.at(f, slice(a, b)))
            mixed = given.lerp_(own, m[:, None])
            out[f, a:b] = (mixed @ values).transpose(0, 1).flatten(1).to(out.dtype)
            difference[f, a:b], weight[f, a:b] = tv, m
    return Injected(out, difference, weight)


def softmax_scores(q: Tensor, keys: Tensor, out: Tensor) -> Tensor:
    """softmax(q keys) into a buffer: (N, l, D), (N, D, L) -> (N, l, L)."""
    torch.matmul(q, keys, out=out)
    out.sub_(out.amax(-1, keepdim=True)).exp_()
    return out.div_(out.sum(-1, keepdim=True))


def injected_attention_fused(q: Tensor, k: Tensor, v: Tensor, source: SourceQK, heads: int, thresholds: Sequence[float],
                             attention: Callable[[Tensor, Tensor, Tensor, int], Tensor],
                             total_variation: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor],
                             masks: Masks = Masks()) -> Injected:  # noqa: B008
    """The same from two fused attentions and a kernel for the rows' total variation: (1 - m) A0 V + m A V.

    Args:
        attention: scaled dot-product attention of (T, L, C).
        total_variation: of q, k, the source's q and k, heads -> (T, L), mean over the heads, in [0, 1].
    """
    difference = total_variation(q, k, *source, heads)
    weight = torch.stack([edit_weight(difference[f], thresholds[f], masks.at(f, slice(None))) for f in range(len(q))])
    own, given = attention(q, k, v, heads), attention(source.q.to(q), source.k.to(q), v, heads)
    return Injected(torch.lerp(given, own, weight[..., None].to(own)), difference, weight)


# ---- temporal --------------------------------------------------------------------------------------------------------


def temporal_probabilities(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """softmax(q k / sqrt D) over frames: (R, T, C) -> (R, N, T, T), in fp32 or wider. As small as T is."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2).float() for x in (q, k))
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)


def apply_probabilities(probabilities: Tensor, v: Tensor) -> Tensor:
    """Recorded probabilities on the edit's values: (R, N, T, T), (R, T, C) -> (R, T, C)."""
    values = v.unflatten(-1, (probabilities.shape[1], -1)).transpose(1, 2)
    out = probabilities.to(device=v.device, dtype=torch.float32) @ values.float()
    return out.transpose(1, 2).flatten(2).to(v.dtype)


def inject_temporal(probabilities: Tensor, v: Tensor, change: Tensor | None, own: Callable[[], Tensor]) -> Tensor:
    """Temporal attention with the source's probabilities, except in the user's area of change, where it is the edit's own.

    Args:
        probabilities: (R, N, T, T) of the source.  v: (R, T, C) of the edit.
        change: (1 or T, R) in [0, 1], the own attention's share; a row is a place.
        own: gives the edit's own attention (R, T, C).
    """
    injected = apply_probabilities(probabilities, v)
    if change is None:
        return injected
    return torch.lerp(injected, own().to(injected), change.T[..., None].to(injected))


def stage_bounds(beta_1: float, beta_2: float, steps: int) -> tuple[int, int]:
    """Sampling steps at which the selector's second and third stage begin: int(beta * steps)."""
    return int(beta_1 * steps), int(beta_2 * steps)
