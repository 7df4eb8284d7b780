"""Hooks on the cross-attentions (attn2) and temporal attentions (attn_temp) of an inflated network: they see q, k and v, and may
replace what is computed. A hook is a callable

    hook(place: Place, q, k, v, attention, options) -> Tensor of q's shape

q, k, v are the layer's own projections with the heads side by side in C, before the output projection:

    attn2      q (V*F, L, C), k and v (V*F, tokens, C)
    attn_temp  q, k, v (V*L, F, C), one sequence of frames at each position

V videos are in the pass, options["cond_or_uncond"] says which (1 is unconditional); F frames, L = h*w tokens of place.size.
`attention(q, k, v)` is the next hook, or the host's kernel at the end of the chain: a hook that only observes, or has nothing to do
in this pass, returns attention(q, k, v).

A hook gets every row of a layer at once, except in a streamed network (see streamed.py), where `place.part` says which frames
(attn2) or which positions (attn_temp) the rows are; F or L above is then their number. `hooked` puts a hook on the options of a
model or of one evaluation. On a model it is shared by clones, so it must keep no state of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import comfy.model_patcher
import torch
from comfy.ldm.modules.attention import optimized_attention, optimized_attention_masked
from torch import Tensor

from .. import keys

HOOKS = f"{keys.PREFIX}_inflated_hooks"  # transformer_options: tuple of hooks, the first is asked first


class Place(NamedTuple):
    """Where a hook is called.

    site: path of the transformer block, such as "input_blocks.1.1.transformer_blocks.0".  heads: N.  frames: F.
    size: (h, w) of this level.  mask: (F, F) bool, frames that each frame may see; None for all, and for attn2.
    part: in a streamed network, the frames (attn2) or positions (attn_temp) of this call; None for all.
    """

    site: str
    kind: Literal["attn2", "attn_temp"]
    heads: int
    frames: int
    size: tuple[int, int]
    mask: Tensor | None
    part: slice | None = None


Hook = Callable[[Place, Tensor, Tensor, Tensor, Callable[[Tensor, Tensor, Tensor], Tensor], dict], Tensor]


class _Shared:
    """A hook that clones of a model share; ComfyUI 0.3.75 would deep-copy it with every clone."""

    def __init__(self, hook: Hook):
        self.hook = hook

    def __deepcopy__(self, memo: dict) -> _Shared:
        return self


def hooked(model_options: dict, hook: Hook) -> dict:
    """A copy of a model's options with one more hook, asked before those that are there."""
    out = comfy.model_patcher.create_model_options_clone(model_options)
    options = out.setdefault("transformer_options", {})
    options[HOOKS] = (_Shared(hook), *options.get(HOOKS, ()))
    return out


def probabilities(q: Tensor, k: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) in float32: q (B, Lq, C), k (B, Lk, C) -> (B, N, Lq, Lk)."""
    q, k = (t.unflatten(2, (heads, -1)).transpose(1, 2).float() for t in (q, k))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.to(scores.device), -math.inf)
    return scores.softmax(-1)


def attend(place: Place, q: Tensor, k: Tensor, v: Tensor, options: dict, precision: Any) -> Tensor:
    """The chain of hooks, with the host's kernel at its end."""
    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kw = {"attn_precision": precision, "transformer_options": options}
        if place.mask is None:
            return optimized_attention(q, k, v, place.heads, **kw)
        hidden = ~place.mask.to(q.device)  # added to the scores, as some of the host's kernels take a bool mask for another
        mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill(hidden, torch.finfo(q.dtype).min / 2)
        return optimized_attention_masked(q, k, v, place.heads, mask, **kw)

    attention = kernel
    for shared in reversed(options.get(HOOKS, ())):
        def attention(q: Tensor, k: Tensor, v: Tensor, hook: Hook = shared.hook, following: Callable = attention) -> Tensor:
            return hook(place, q, k, v, following, options)

    return attention(q, k, v)
