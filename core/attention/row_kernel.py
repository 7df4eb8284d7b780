"""A GPU kernel for the rows' total variation of two attention maps: scores and two log-sum-exps, no map.

A program takes a block of queries of one head. It goes over the keys twice: first for both maps' log-sum-exps, then for the
sum of |exp(S - L) - exp(S0 - L0)|. Needs Triton, which is there wherever torch for CUDA is; without it, and on other devices,
`injected_attention` does the same in torch.

Legend: T frames, L tokens, C = N D channels, N heads, D channels a head.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except Exception:  # missing, or there without what it needs: both mean that there is none
    triton = None

log = logging.getLogger(__name__)
BLOCK_M, BLOCK_N = 64, 64
_failed = False  # of this process: a kernel that does not compile once will not the next time


def usable(q: Tensor) -> bool:
    """Whether the kernel is to be used for these queries."""
    return triton is not None and q.is_cuda and not _failed


def give_up(error: Exception) -> None:
    """Remember that the kernel does not work here; torch is used from now on."""
    global _failed
    _failed = True
    log.warning("FramePainter: the attention kernel does not run on this card (%s: %s); torch is used instead, which is slower.",
                type(error).__name__, str(error).splitlines()[0] if str(error) else "no message")


if triton is not None:
    @triton.jit
    def _scores(own, source, k, k0, start, base, d, in_d, length: tl.constexpr, scale, stride_l, block_n: tl.constexpr,
                precision: tl.constexpr):
        """Scores of a block of keys in both maps, minus infinity behind the last key."""
        cols = start + tl.arange(0, block_n)
        inside = cols[None, :] < length
        at_cols = base + cols[None, :] * stride_l + d[:, None]
        mask = inside & in_d[:, None]
        s = tl.dot(own, tl.load(k + at_cols, mask=mask, other=0.0), input_precision=precision) * scale
        s0 = tl.dot(source, tl.load(k0 + at_cols, mask=mask, other=0.0), input_precision=precision) * scale
        return tl.where(inside, s, float("-inf")), tl.where(inside, s0, float("-inf"))

    @triton.jit
    def _total_variation(q, k, q0, k0, out, length: tl.constexpr, scale, stride_t, stride_l, heads, width: tl.constexpr,
                         block_d: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, precision: tl.constexpr):
        rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
        frame, head = tl.program_id(1) // heads, tl.program_id(1) % heads
        base = frame.to(tl.int64) * stride_t + head * width
        d = tl.arange(0, block_d)
        in_d = d < width
        at_rows = base + rows[:, None] * stride_l + d[None, :]
        row_mask = (rows[:, None] < length) & in_d[None, :]
        own = tl.load(q + at_rows, mask=row_mask, other=0.0)
        source = tl.load(q0 + at_rows, mask=row_mask, other=0.0)
        top = tl.full((block_m,), float("-inf"), tl.float32)
        top0 = tl.full((block_m,), float("-inf"), tl.float32)
        total = tl.zeros((block_m,), tl.float32)
        total0 = tl.zeros((block_m,), tl.float32)
        for start in range(0, length, block_n):
            s, s0 = _scores(own, source, k, k0, start, base, d, in_d, length, scale, stride_l, block_n, precision)
            higher = tl.maximum(top, tl.max(s, 1))
            higher0 = tl.maximum(top0, tl.max(s0, 1))
            total = total * tl.exp(top - higher) + tl.sum(tl.exp(s - higher[:, None]), 1)
            total0 = total0 * tl.exp(top0 - higher0) + tl.sum(tl.exp(s0 - higher0[:, None]), 1)
            top = higher
            top0 = higher0
        lse = top + tl.log(total)
        lse0 = top0 + tl.log(total0)
        variation = tl.zeros((block_m,), tl.float32)
        for start in range(0, length, block_n):
            s, s0 = _scores(own, source, k, k0, start, base, d, in_d, length, scale, stride_l, block_n, precision)
            variation += tl.sum(tl.abs(tl.exp(s - lse[:, None]) - tl.exp(s0 - lse0[:, None])), 1)
        tl.store(out + tl.program_id(1).to(tl.int64) * length + rows, variation, mask=rows < length)


def total_variation(q: Tensor, k: Tensor, q0: Tensor, k0: Tensor, heads: int) -> Tensor:
    """Half the sum over keys of |A - A0|, mean over the heads: (T, L, C) four times -> (T, L) in [0, 1].

    Args:
        q, k: of one map.  q0, k0: of the other; any floating type, computed in that of q with fp32 sums.
    """
    frames, length, channels = q.shape
    width = channels // heads
    q, k, q0, k0 = (x.to(q).contiguous() for x in (q, k, q0, k0))
    out = q.new_empty((frames * heads, length), dtype=torch.float32)
    block_d = max(16, triton.next_power_of_2(width))
    _total_variation[(triton.cdiv(length, BLOCK_M), frames * heads)](
        q, k, q0, k0, out, length, width**-0.5, q.stride(0), q.stride(1), heads, width, block_d, BLOCK_M, BLOCK_N,
        "ieee" if q.dtype == torch.float32 else "tf32")
    return out.unflatten(0, (frames, heads)).mean(1).clamp(0.0, 2.0) / 2.0
