"""The changed layers of an inflated network: callables that stand in for the forward of a layer of ComfyUI's UNet.

They serve the host's own network, as object patches, and a copy in ordinary tensors that is trained. What they know of a pass
is the number of frames, told through `frames_of_pass`.

Legend: V videos and conditioning groups in one pass, F frames, L tokens of a frame, C channels; rows are (V*F, ...).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ...core.models.inflated import (
    CHUNK,
    TemporalLayer,
    TemporalLayers,
    block_sites,
    by_parts,
    frame_attention,
    pooled_group_norm,
    pooled_norms,
    window_mask,
)
from .hooks import HOOKS, Place, attend

# F in the pass that is being run; a group norm is told nothing else.
_frames: ContextVar[int] = ContextVar("framepainter_frames", default=1)


@contextmanager
def frames_of_pass(frames: int) -> Iterator[None]:
    """Say how many frames a video has to the layers that run inside."""
    token = _frames.set(frames)
    try:
        yield
    finally:
        _frames.reset(token)


def frames_now() -> int:
    """F of the pass that is being run; 1 outside of one."""
    return _frames.get()


class Settings(NamedTuple):
    """window: frames that temporal attention sees at once, 0 for all.  chunk: tokens worked on at a time."""

    window: int = 0
    chunk: int = CHUNK


class _Forward:
    """A layer's forward with ours around it. Keeps nothing of a run, as clones share it."""

    def __init__(self, forward: Callable, module: nn.Module, site: str, settings: Settings):
        self.forward, self.module, self.site, self.settings = forward, module, site, settings

    def on(self, module: nn.Module) -> _Forward:
        """The same for a copy of the layer."""
        out = copy.copy(self)
        out.forward = module.forward if getattr(self.forward, "__self__", None) is self.module else self.forward
        out.module = module
        return out


class _PooledNorm(_Forward):
    def __call__(self, x: Tensor) -> Tensor:
        frames, norm = frames_now(), self.module
        if frames == 1:
            return self.forward(x)
        if isinstance(norm, comfy.ops.CastWeightBiasOp):  # weights may rest elsewhere, in another type, with patches to add
            weight, bias = comfy.ops.cast_bias_weight(norm, x, dtype=torch.float32)
        else:
            weight, bias = norm.weight, norm.bias
        return pooled_group_norm(x, frames, norm.num_groups, weight, bias, norm.eps, self.settings.chunk)


class _FrameAttention(_Forward):
    def __call__(self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None, mask: Tensor | None = None,
                 transformer_options: dict | None = None) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        if frames_now() == 1 or mask is not None:
            return self.forward(x, context=context, value=value, mask=mask, transformer_options=options)

        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            return optimized_attention(q, k, v, heads, attn_precision=self.module.attn_precision, transformer_options=options)

        return frame_attention(self.module, x, frames_now(), attention, context, value, self.settings.chunk)


class _CrossAttention(_Forward):
    def __call__(self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None, mask: Tensor | None = None,
                 transformer_options: dict | None = None) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        if mask is not None or context is None:
            return self.forward(x, context=context, value=value, mask=mask, transformer_options=options)
        if not options.get(HOOKS):
            return by_parts(len(x), self.settings.chunk // x.shape[1], lambda rows: self.forward(
                x[rows], context=context[rows], value=None if value is None else value[rows], transformer_options=options), 0)
        module = self.module
        q, k, v = module.to_q(x), module.to_k(context), module.to_v(context if value is None else value)
        place = Place(self.site, "attn2", module.heads, frames_now(), _size(x.shape[1], options), None)
        return module.to_out(attend(place, q, k, v, options, module.attn_precision))


class _FeedForward(_Forward):
    def __call__(self, x: Tensor) -> Tensor:
        return by_parts(len(x), self.settings.chunk // x.shape[1], lambda rows: self.forward(x[rows]), 0)


class _Block(_Forward):
    """A transformer block, and the temporal layer after it."""

    def __init__(self, forward: Callable, module: nn.Module, site: str, settings: Settings, layer: TemporalLayer | None):
        super().__init__(forward, module, site, settings)
        self.layer = layer

    def __call__(self, x: Tensor, context: Tensor | None = None, transformer_options: dict | None = None) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        out = self.forward(x, context=context, transformer_options=_seen_by_replacements(options))
        if self.layer is None:
            return out
        frames = frames_now()
        mask = window_mask(frames, self.settings.window)
        place = Place(self.site, "attn_temp", self.layer.heads, frames, _size(x.shape[1], options), mask)

        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            return attend(place, q, k, v, options, self.module.attn_precision)

        return self.layer(out, frames, attention, out.shape[0] * out.shape[1] if options.get(HOOKS) else self.settings.chunk)


def _size(length: int, options: dict) -> tuple[int, int]:
    shape = options.get("activations_shape")
    return (shape[-2], shape[-1]) if shape else (1, length)


def _seen_by_replacements(options: dict) -> dict:
    """Options under which another node's replacement of attn1 gets frame 0 as context; it does not call attn1's forward."""
    if frames_now() == 1 or not options.get("patches_replace", {}).get("attn1"):
        return options

    def first(normed: Tensor, context: Tensor, value: Tensor, _: dict) -> tuple[Tensor, Tensor, Tensor]:
        frames = frames_now()
        return normed, context[::frames].repeat_interleave(frames, 0), value[::frames].repeat_interleave(frames, 0)

    patches = options.get("patches", {})
    return {**options, "patches": {**patches, "attn1_patch": [*patches.get("attn1_patch", ()), first]}}


def forwards(unet: nn.Module, layers: TemporalLayers | None, settings: Settings,
             forward_of: Callable[[str], Callable]) -> dict[str, _Forward]:
    """What stands in for the forward of each changed layer, by the layer's path.

    Args:
        layers: temporal layers; None for frame attention and pooled norms alone.
        forward_of: the forward that a layer has now.
    """
    shapes = {name: tuple(p.shape) for name, p in unet.state_dict().items()}
    out: dict[str, _Forward] = {}

    def put(kind: type[_Forward], path: str, site: str, *more: Any) -> None:
        forward = forward_of(path)
        out[path] = kind(forward.forward if isinstance(forward, _Forward) else forward, unet.get_submodule(path), site,
                         settings, *more)

    for path in pooled_norms(shapes):
        put(_PooledNorm, path, path)
    for site in block_sites(shapes):
        put(_Block, site, site, None if layers is None else layers.at(site))
        for part, kind in (("attn1", _FrameAttention), ("attn2", _CrossAttention), ("ff", _FeedForward)):
            put(kind, f"{site}.{part}", site)
    return out
