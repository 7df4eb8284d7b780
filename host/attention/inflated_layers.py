"""The changed layers of an inflated network: callables that stand in for the forward of a layer of ComfyUI's UNet.

They serve the host's own network, as object patches, and a copy in ordinary tensors that is trained. What they know of a pass
is told through `running`, as a group norm is given its input and nothing else.

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
    GroupStatistics,
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


class Pass(NamedTuple):
    """What is being run.

    frames: F, of the videos in the rows.
    device: in a streamed network, where to compute; None in any other.
    part: in a streamed network, which frames of the videos the rows are; F is then their number.
    first, statistics: what these frames cannot tell alone: frame 0's normalised tokens (V, L, C), the group norm's statistics.
    """

    frames: int = 1
    device: torch.device | None = None
    part: slice | None = None
    first: Tensor | None = None
    statistics: GroupStatistics | None = None


_NO_PASS = Pass()
_pass: ContextVar[Pass] = ContextVar("framepainter_pass", default=_NO_PASS)


@contextmanager
def running(now: Pass) -> Iterator[None]:
    """Tell the layers that run inside."""
    token = _pass.set(now)
    try:
        yield
    finally:
        _pass.reset(token)


def pass_now() -> Pass:
    """The pass that is being run; one frame outside of any."""
    return _pass.get()


class Settings(NamedTuple):
    """window: frames that temporal attention sees at once, 0 for all.
    chunk: tokens of the first level worked on at a time; of deeper levels, where they are wider, fewer.
    streamed: keep features in main memory, see streamed.py.
    """

    window: int = 0
    chunk: int = CHUNK
    streamed: bool = False


class _Forward:
    """A layer's forward with ours around it. Keeps nothing of a run, as clones share it. chunk: tokens worked on at a time."""

    def __init__(self, forward: Callable, module: nn.Module, site: str, settings: Settings, chunk: int):
        self.forward, self.module, self.site, self.settings, self.chunk = forward, module, site, settings, chunk

    def on(self, module: nn.Module) -> _Forward:
        """The same for a copy of the layer."""
        out = copy.copy(self)
        out.forward = module.forward if getattr(self.forward, "__self__", None) is self.module else self.forward
        out.module = module
        return out


class _PooledNorm(_Forward):
    def __call__(self, x: Tensor) -> Tensor:
        now, norm = pass_now(), self.module
        if now.frames == 1 and now.statistics is None:
            return self.forward(x)
        if isinstance(norm, comfy.ops.CastWeightBiasOp):  # weights may rest elsewhere, in another type, with patches to add
            weight, bias = comfy.ops.cast_bias_weight(norm, x, dtype=torch.float32)
        else:
            weight, bias = norm.weight, norm.bias
        if now.statistics is not None:
            return now.statistics.apply(x.unflatten(0, (-1, now.frames)), weight, bias, norm.eps).flatten(0, 1)
        return pooled_group_norm(x, now.frames, norm.num_groups, weight, bias, norm.eps, self.chunk)


class _FrameAttention(_Forward):
    def __call__(self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None, mask: Tensor | None = None,
                 transformer_options: dict | None = None) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        now = pass_now()
        if (now.frames == 1 and now.first is None) or mask is not None:
            return self.forward(x, context=context, value=value, mask=mask, transformer_options=options)

        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            return optimized_attention(q, k, v, heads, attn_precision=self.module.attn_precision, transformer_options=options)

        context = x if context is None else context
        first, first_value = (_first(t, now) for t in (context, context if value is None else value))
        return frame_attention(self.module, x, first, attention, first_value, self.chunk)


def _first(tokens: Tensor, now: Pass) -> Tensor:
    """Frame 0 of (V*F, L, C) tokens; as told, where the rows are a part of the frames."""
    return tokens[::now.frames] if now.first is None else now.first


class _CrossAttention(_Forward):
    def __call__(self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None, mask: Tensor | None = None,
                 transformer_options: dict | None = None) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        if mask is not None or context is None:
            return self.forward(x, context=context, value=value, mask=mask, transformer_options=options)
        if not options.get(HOOKS):
            tokens = max(x.shape[1], context.shape[1])  # at the deepest levels of small videos the text is the longer one
            return by_parts(len(x), self.chunk // tokens, lambda rows: self.forward(
                x[rows], context=context[rows], value=None if value is None else value[rows], transformer_options=options), 0)
        module, now = self.module, pass_now()
        q, k, v = module.to_q(x), module.to_k(context), module.to_v(context if value is None else value)
        place = Place(self.site, "attn2", module.heads, now.frames, _size(x.shape[1], options), None, now.part)
        return module.to_out(attend(place, q, k, v, options, module.attn_precision))


class _FeedForward(_Forward):
    def __call__(self, x: Tensor) -> Tensor:
        return by_parts(len(x), self.chunk // x.shape[1], lambda rows: self.forward(x[rows]), 0)


class _Block(_Forward):
    """A transformer block, and the temporal layer after it."""

    def __init__(self, *given: Any, layer: TemporalLayer | None):
        super().__init__(*given)
        self.layer = layer

    def __call__(self, x: Tensor, context: Tensor | None = None, transformer_options: dict | None = None) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        out = self.forward(x, context=context, transformer_options=self._with_hooks(_seen_by_replacements(options), x.shape[1]))
        return out if pass_now().part is not None else self.temporal(out, options)

    def _with_hooks(self, options: dict, length: int) -> dict:
        """Options under which another node's replacement of attn2 gets what hooks change of the text's attention added to its own
        result; it does not call attn2's forward."""
        replaced = options.get("patches_replace", {}).get("attn2")
        if not replaced or not options.get(HOOKS):
            return options
        now, attn2 = pass_now(), self.module.attn2
        place = Place(self.site, "attn2", attn2.heads, now.frames, _size(length, options), None, now.part)

        def both(replacement: Callable) -> Callable:
            def attention(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
                hooked, plain = (attend(place, q, k, v, asked, attn2.attn_precision) for asked in (options, {**options, HOOKS: ()}))
                return replacement(q, k, v, extra) + (hooked - plain)

            return attention

        hooked = {where: both(replacement) for where, replacement in replaced.items()}
        return {**options, "patches_replace": {**options["patches_replace"], "attn2": hooked}}

    def temporal(self, x: Tensor, options: dict) -> Tensor:
        """The temporal layer alone: (V*F, L, C) with all frames."""
        if self.layer is None:
            return x
        now, precision = pass_now(), self.module.attn_precision
        place = Place(self.site, "attn_temp", self.layer.heads, now.frames, _size(x.shape[1], options),
                      window_mask(now.frames, self.settings.window))
        videos, done = len(x) // now.frames, 0

        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            nonlocal done
            start, done = done, done + len(q) // videos
            return attend(place if now.device is None else place._replace(part=slice(start, done)), q, k, v, options, precision)

        whole = now.device is None and options.get(HOOKS)
        return self.layer(x, now.frames, attention, x.shape[0] * x.shape[1] if whole else self.chunk, now.device)


def _size(length: int, options: dict) -> tuple[int, int]:
    shape = options.get("activations_shape")
    return (shape[-2], shape[-1]) if shape else (1, length)


def _seen_by_replacements(options: dict) -> dict:
    """Options under which another node's replacement of attn1 gets frame 0 as context; it does not call attn1's forward."""
    now = pass_now()
    if (now.frames == 1 and now.first is None) or not options.get("patches_replace", {}).get("attn1"):
        return options

    def first(normed: Tensor, context: Tensor, value: Tensor, _: dict) -> tuple[Tensor, Tensor, Tensor]:
        return normed, *(_first(t, now).repeat_interleave(now.frames, 0) for t in (context, value))

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
    sites, norms = block_sites(shapes), {path: shapes[f"{path}.weight"][0] for path in pooled_norms(shapes)}
    narrowest = min([*sites.values(), *norms.values()])
    out: dict[str, _Forward] = {}

    def put(kind: type[_Forward], path: str, site: str, width: int, **more: Any) -> None:
        chunk = max(1, settings.chunk * narrowest // width)
        out[path] = kind(forward_of(path), unet.get_submodule(path), site, settings, chunk, **more)

    for path, width in norms.items():
        put(_PooledNorm, path, path, width)
    for site, width in sites.items():
        put(_Block, site, site, width, layer=None if layers is None else layers.at(site))
        for part, kind in (("attn1", _FrameAttention), ("attn2", _CrossAttention), ("ff", _FeedForward)):
            put(kind, f"{site}.{part}", site, width)
    return out
