"""What every attention patch of the pack needs: spatial blocks that announce themselves, patches that own weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ...core.weights import framepainter
from .. import keys
from ..models.network import frames_in, unet_shapes
from ..models.savings import switched_on


def drop(model: ModelPatcher, kind: str, *owners: type) -> None:
    """Take our patches of one kind off a clone; everyone else's stay, in their order."""
    patches = model.model_options["transformer_options"].get("patches", {})
    if kind in patches:
        patches[kind] = [p for p in patches[kind] if not isinstance(p, owners)]


class WeightsPatch:
    """A patch that owns weights. `weights` is their ModelPatcher, or None."""

    def __init__(self, weights: ModelPatcher | None):
        self.weights = weights

    def models(self) -> list[ModelPatcher]:
        return [] if self.weights is None else [self.weights]

    def to(self, device_or_dtype: Any) -> WeightsPatch:
        return self

    def __deepcopy__(self, memo: dict) -> WeightsPatch:
        # ComfyUI 0.3.75 deep-copies a model's options with every clone; without this each node would duplicate the
        # weights. Sharing is safe, as no answer depends on earlier calls.
        return self


# ---- matching attention ----------------------------------------------------------------------------------------------


class _Marked:
    """A spatial transformer block's forward that says which block it is.

    The temporal block runs under the same patch key as the spatial one, and shapes tell them apart only while
    h*w differs from T, so the place is written into the options that this one call sees.
    """

    def __init__(self, forward: Callable, site: str, block: torch.nn.Module):
        self.forward, self.site, self.block = forward, site, block

    def __call__(self, *args: Any, transformer_options: dict | None = None, **kwargs: Any) -> Tensor:
        given = transformer_options or {}
        marked = {**given, keys.SITE: self.site, keys.BLOCK: self.block, keys.OUTER: given}
        out = self.forward(*args, transformer_options=marked, **kwargs)
        for patch in marked.get("patches", {}).get(keys.BLOCK_OUTPUT, ()):
            out = patch(out, marked)
        return out


def mark_spatial_blocks(model: ModelPatcher) -> None:
    """Make every spatial transformer block of a clone announce itself. Chains, and is idempotent."""
    for site in framepainter.spatial_sites(unet_shapes(model)):
        name = f"diffusion_model.{site}.forward"
        forward = model.get_model_object(name)
        if not isinstance(forward, _Marked):
            model.add_object_patch(name, _Marked(forward, site, model.get_model_object(f"diffusion_model.{site}")))
    model.remove_callbacks_with_key(CallbacksMP.ON_CLONE, keys.PREFIX)
    model.add_callback_with_key(CallbacksMP.ON_CLONE, keys.PREFIX, _mark_copied_blocks)


def _mark_copied_blocks(model: ModelPatcher, clone: ModelPatcher) -> None:
    """A clone with a network of its own (newer hosts: compiling, training, several GPUs) must run its own blocks."""
    if clone.model is model.model:
        return
    for name, patch in list(clone.object_patches.items()):
        if isinstance(patch, _Marked):
            block = clone.model.get_submodule(f"diffusion_model.{patch.site}")
            own = getattr(patch.forward, "__self__", None) is patch.block
            clone.object_patches[name] = _Marked(block.forward if own else patch.forward, patch.site, block)


class NormedInput(WeightsPatch):
    """attn1_patch: leaves the block's normalised input for the output patch of the same block.

    Where that patch replaces the self-attention of all frames but the first, and nobody else looks at it, only the first frame's is
    computed.
    """

    def __init__(self) -> None:
        super().__init__(None)

    def __call__(self, normed: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
        if keys.SITE not in options:
            return normed, context, value
        options[keys.NORMED] = normed
        frames = frames_in(len(normed), options)
        if frames < 2 or not (normed is context is value) or not self._first_frame_suffices(options):
            return normed, context, value
        options[keys.ALONE] = True
        first = normed[::frames]
        return first, first, first

    def _first_frame_suffices(self, options: dict) -> bool:
        outer = options.get(keys.OUTER)
        if outer is None or not switched_on():
            return False
        attention = options[keys.BLOCK].attn1
        patches, replaced = outer.get("patches", {}), outer.get("patches_replace", {}).get("attn1")
        looked_at = replaced or {keys.PASS, keys.MEMORY, "optimized_attention_override"} & options.keys()
        return (not looked_at and patches["attn1_patch"][-1] is self
                and getattr(patches["attn1_output_patch"][0], "keeps_first_frame_alone", False)
                and getattr(attention.forward, "__self__", None) is attention)
