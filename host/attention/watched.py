"""Hooks on every self-attention layer of an SVD network: an object in a pass's options receives q, k and v and computes the
attention.

transformer_options of a pass may hold under keys.PASS an object with
attend(block, site, kind, q, k, v, heads, attention, options), and under keys.MEMORY one with extend(block, k, v, options).
Without them a watched layer is unchanged.

Legend: T frames, L tokens, rows are (groups * T, L, C) in spatial and (groups * h * w, T, C) in temporal attention.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from .. import keys
from ..models.network import UNET, unet_shapes
from .bypass import BypassedLayer

KEY = f"{keys.PREFIX}_watched_attention"
_BLOCK = re.compile(r"(.+)\.(transformer_blocks|time_stack)\.(\d+)\.attn1\.to_q\.weight$")
SPATIAL, TEMPORAL = "transformer_blocks", "time_stack"


def with_pass(model_options: dict, at_work: Any) -> dict:
    """A copy of the options that one evaluation sees."""
    out = comfy.model_patcher.create_model_options_clone(model_options)
    out.setdefault("transformer_options", {})[keys.PASS] = at_work
    return out


class WatchedAttention:
    """The forward of one self-attention layer: its own, unless the pass's options have an object that computes the attention
    instead.

    Set by path, as spatial and temporal blocks run under the same patch key. The module's own projections are called, so
    LoRAs on them count.
    """

    def __init__(self, forward: Callable, block: str, site: str, kind: str, module: torch.nn.Module):
        self.forward, self.block, self.site, self.kind, self.module = forward, block, site, kind, module

    def __call__(self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None, mask: Tensor | None = None,
                 transformer_options: dict | None = None) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        at_work, memory = options.get(keys.PASS), options.get(keys.MEMORY)
        if (at_work is None and memory is None) or mask is not None:
            return self.forward(x, context=context, value=value, mask=mask, transformer_options=options)
        module = self.module
        context = x if context is None else context
        q, k, v = module.to_q(x), module.to_k(context), module.to_v(context if value is None else value)

        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            return optimized_attention(q, k, v, heads, attn_precision=module.attn_precision, transformer_options=options)

        if memory is not None and self.kind == TEMPORAL:
            k, v = memory.extend(self.block, k, v, options)
        if at_work is None:
            return module.to_out(attention(q, k, v, module.heads))
        return module.to_out(at_work.attend(self.block, self.site, self.kind, q, k, v, module.heads, attention, options))


def blocks_of(model: ModelPatcher) -> list[tuple[str, str, str]]:
    """Every self-attention's (block path, site path, kind)."""
    found = (m for name in unet_shapes(model) if (m := _BLOCK.match(name)))
    return [(f"{m[1]}.{m[2]}.{m[3]}", m[1], m[2]) for m in found]


def watch_attention(model: ModelPatcher) -> None:
    """Put the hooks on a clone's self-attention layers. Chains with other patches, and is idempotent."""
    for block, site, kind in blocks_of(model):
        name = f"{UNET}{block}.attn1.forward"
        forward = model.get_model_object(name)
        if not isinstance(forward, WatchedAttention):
            module = model.get_model_object(f"{UNET}{block}.attn1")
            model.add_object_patch(name, WatchedAttention(forward, block, site, kind, module))
    model.remove_callbacks_with_key(CallbacksMP.ON_CLONE, KEY)
    model.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _follow_copied_network)


def watch_plain(unet: torch.nn.Module) -> None:
    """Let a memory add keys and values to the temporal self-attentions of a network that the host does not manage."""
    for name, module in unet.named_modules():
        block, _, leaf = name.rpartition(".")
        if leaf == "attn1" and f".{TEMPORAL}." in f"{block}.":
            module.forward = WatchedAttention(module.forward, block, block.rpartition(f".{TEMPORAL}")[0], TEMPORAL, module)


def _follow_copied_network(model: ModelPatcher, clone: ModelPatcher) -> None:
    """A clone with a network of its own (newer hosts: compiling, training, several GPUs) must run its own layers."""
    if clone.model is model.model:
        return
    for name, patch in list(clone.object_patches.items()):
        if not isinstance(patch, (WatchedAttention, BypassedLayer)):
            continue
        module = clone.model.get_submodule(name.removesuffix(".forward"))
        forward = module.forward if getattr(patch.forward, "__self__", None) is not None else patch.forward
        clone.object_patches[name] = (
            BypassedLayer(forward, patch.own, patch.past, patch.gate) if isinstance(patch, BypassedLayer)
            else WatchedAttention(forward, patch.block, patch.site, patch.kind, module))
