"""Exact savings: parts of Stable Video Diffusion's network whose result is known beforehand, or reached with less arithmetic.

Each is an object patch that stands for a method of one layer. It keeps nothing, and calls the layer's own weights as the host hands
them over (cast, paged in, with LoRAs), so what other nodes patch counts. Results are equal up to rounding. Where a guard does not
hold, the layer does what it always did; FRAMEPAINTER_SAVINGS=off in the environment switches all of them off, for comparisons.

Legend: B videos, T frames, L tokens of a frame, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.ldm.modules.attention import CrossAttention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ...core.models.two_frames import KERNEL, PADDING, fits, two_frame_convolution
from .. import keys
from .network import UNET

TEMPORAL = ".time_stack."
_switch = {"on": os.environ.get("FRAMEPAINTER_SAVINGS", "on") != "off"}


def switched_on() -> bool:
    """Whether savings are made where their guards hold."""
    return _switch["on"]


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """Savings on or off for a while."""
    before, _switch["on"] = _switch["on"], on
    try:
        yield
    finally:
        _switch["on"] = before


class Saving:
    """An object patch that stands for a method of a layer and changes nothing but the way to its result."""

    def __init__(self, method: Callable, layer: nn.Module):
        self.method, self.layer = method, layer

    def on(self, method: Callable, layer: nn.Module) -> Saving:
        """The same for another network's layer."""
        return type(self)(method, layer)


# ---- cross-attention to a single key ---------------------------------------------------------------------------------


class OneKeyAttention(Saving):
    """attn2.forward. SVD's image embedding is one token, and a softmax over one key is 1: every query gets that key's value.

    Args:
        temporal: of a temporal block, to which SVD gives its video's embedding once for every place.
        by_row: compute the values row by row nevertheless: something random acts on them, such as a LoRA's dropout.
        untrained: skip queries and keys also where they have parameters to be trained, which then get no gradient.
    """

    def __init__(self, method: Callable, layer: nn.Module, temporal: bool, by_row: bool = False, untrained: bool = False):
        super().__init__(method, layer)
        self.temporal, self.by_row, self.untrained = temporal, by_row, untrained

    def on(self, method: Callable, layer: nn.Module) -> OneKeyAttention:
        return OneKeyAttention(method, layer, self.temporal, self.by_row, self.untrained)

    def __call__(self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None, mask: Tensor | None = None,
                 transformer_options: dict | None = None) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        if value is not None or mask is not None or not self._holds(x, context, options):
            return self.method(x, context=context, value=value, mask=mask, transformer_options=options)
        layer, length = self.layer, x.shape[1]
        if self.by_row and torch.is_grad_enabled():
            return layer.to_out(layer.to_v(context).expand(-1, length, -1))
        places = _places(options) if self.temporal else 1
        out = layer.to_out(layer.to_v(context[::places]))  # (B, 1, C), or (B*T, 1, C) in a spatial block
        return out.repeat_interleave(places, 0).expand(-1, length, -1)

    def _holds(self, x: Tensor, context: Tensor | None, options: dict) -> bool:
        if not switched_on() or context is None or context.ndim != 3 or context.shape[1] != 1 or len(context) != len(x):
            return False
        patches, override = options.get("patches", {}), options.get("optimized_attention_override")
        if patches.get("attn2_patch") or patches.get("attn2_output_patch") or not (override is None or hasattr(override, "plain")):
            return False  # other nodes may count on queries, or on a tensor that they can write to
        if self.temporal and ("activations_shape" not in options or len(x) % _places(options)):
            return False
        if self.untrained or not torch.is_grad_enabled():
            return True
        return not any(p.requires_grad for part in (self.layer.to_q, self.layer.to_k) for p in part.parameters())


def _places(options: dict) -> int:
    """L at the level being run."""
    height, width = options["activations_shape"][-2:]
    return height * width


# ---- temporal convolution of two frames ------------------------------------------------------------------------------


class TwoFrameConvolution(Saving):
    """_conv_forward of a temporal convolution, which the host calls with the weights as they are to be used."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        if switched_on() and not args and not any(kwargs.values()) and fits(x, weight):
            return two_frame_convolution(x, weight, bias)
        return self.method(x, weight, bias, *args, **kwargs)


def _temporal(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv3d) and (layer.kernel_size, layer.padding, layer.stride, layer.dilation, layer.groups) == (
        KERNEL, PADDING, (1, 1, 1), (1, 1, 1), 1)


# ---- attaching -------------------------------------------------------------------------------------------------------


def savings_in(network: nn.Module) -> Iterator[tuple[str, str, Callable[[Callable, nn.Module], Saving]]]:
    """Path of a layer, name of its method, and what to put there."""
    for path, layer in network.named_modules():
        if isinstance(layer, CrossAttention) and path.endswith(".attn2"):
            temporal = TEMPORAL in path
            yield path, "forward", lambda method, layer, temporal=temporal: OneKeyAttention(method, layer, temporal)
        elif _temporal(layer):
            yield path, "_conv_forward", TwoFrameConvolution


def save(model: ModelPatcher) -> None:
    """Put the savings on a clone of an SVD model. Idempotent; a layer whose method another node has replaced is left alone."""
    for path, method, make in savings_in(model.model.diffusion_model):
        name = f"{UNET}{path}.{method}"
        found, layer = model.get_model_object(name), model.model.get_submodule(f"{UNET}{path}")
        if getattr(found, "__self__", None) is layer:
            model.add_object_patch(name, make(found, layer))
    model.remove_callbacks_with_key(CallbacksMP.ON_CLONE, keys.SAVINGS)
    model.add_callback_with_key(CallbacksMP.ON_CLONE, keys.SAVINGS, _follow_copied_network)


def save_in(network: nn.Module, by_row: bool = False, untrained: bool = False) -> None:
    """Put the cross-attentions' saving on a network that the host does not manage, for training.

    Args:
        by_row, untrained: of its temporal blocks, see OneKeyAttention.
    """
    for path, layer in network.named_modules():
        if isinstance(layer, CrossAttention) and path.endswith(".attn2"):
            temporal = TEMPORAL in path
            method = layer.forward.method if isinstance(layer.forward, Saving) else layer.forward
            layer.forward = OneKeyAttention(method, layer, temporal, by_row and temporal, untrained and temporal)


def drop(model: ModelPatcher) -> None:
    """Take them off a clone, which then computes the plain network's bits."""
    for name in [name for name, patch in model.object_patches.items() if isinstance(patch, Saving)]:
        del model.object_patches[name]


def _follow_copied_network(model: ModelPatcher, clone: ModelPatcher) -> None:
    """A clone with a network of its own (newer hosts: compiling, training, several GPUs) must run its own layers."""
    if clone.model is model.model:
        return
    for name, patch in list(clone.object_patches.items()):
        if isinstance(patch, Saving):
            path, _, method = name.rpartition(".")
            layer = clone.model.get_submodule(path)
            clone.object_patches[name] = patch.on(getattr(layer, method), layer)
