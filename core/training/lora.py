"""Low-rank additions to linear layers (Hu et al. 2021, LoRA): W x + (alpha / rank) B A x, with W left as it is.

The addition is computed beside the layer, not as a changed weight, so a step never holds a second copy of W. Names follow
ComfyUI's LoRA files: `<layer>.lora_down.weight` (A), `<layer>.lora_up.weight` (B), `<layer>.alpha`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Linear
from torch.nn.functional import dropout

from ..weights.diffusers_svd import ATTENTION, TEMPORAL

_TEMPORAL_NAME = re.compile(r"(.*\.time_stack\.\d+)\.(" + "|".join(re.escape(leaf) for leaf in TEMPORAL) + ")$")


class _Added:
    """A linear layer's forward with its low-rank addition; dropout draws from torch's global generator."""

    def __init__(self, layer: nn.Module, scale: float, drop: float):
        self.layer, self.scale, self.drop, self.plain = layer, scale, drop, layer.forward
        self.on = True

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.on:
            return self.plain(x, *args, **kwargs)
        added = self.layer.lora_up(self.layer.lora_down(x))
        if self.drop and torch.is_grad_enabled():
            added = dropout(added, self.drop)
        return self.plain(x, *args, **kwargs) + added * self.scale


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The projections of all attentions (attn1, attn2) of a UNet, spatial and temporal, by path."""
    return {name: module for name, module in model.named_modules()
            if any(name.endswith(f".{attention}.{leaf}") for attention in ("attn1", "attn2") for leaf in ATTENTION)}


def temporal_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All linear layers of the temporal transformer blocks of a UNet with ComfyUI's names, by path: what a motion LoRA is
    on (I2VEdit, section 4.1)."""
    return {name: module for name, module in model.named_modules() if _TEMPORAL_NAME.match(name)}


def add_lora(model: nn.Module, rank: int, seed: int, alpha: float | None = None, layers: Mapping[str, nn.Module] | None = None,
             normal: bool = False, drop: float = 0.0) -> dict[str, nn.Parameter]:
    """Give linear layers of a UNet a low-rank addition that is zero at first.

    Args:
        model: changed in place; its own parameters keep names and values.
        rank: of the additions; a layer with a smaller side gets that.
        seed: of the random down projections.
        alpha: None is the rank, a scale of 1.
        layers: by path; None is every attention projection.
        normal: first down projections normal with deviation 1 / rank, as I2VEdit's, in place of torch's uniform ones.
        drop: share of the additions' values that is left out where gradients are recorded.

    Returns:
        The new parameters, by the names that `model.named_parameters()` gives them.

    Raises:
        ValueError: there is no attention to add to.
    """
    if layers is None:
        layers = attention_layers(model)
    if not layers:
        raise ValueError("this network has no attention projections (to_q, to_k, to_v, to_out) to put a LoRA on")
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        outer, inner = layer.weight.shape
        used = min(rank, inner, outer)
        layer.lora_down = _projection(inner, used, layer.weight.device)
        layer.lora_up = _projection(used, outer, layer.weight.device)
        with torch.no_grad():
            if normal:
                first = torch.randn(used, inner, generator=generator) / used
            else:  # torch's own first weights of a linear layer, from our own generator
                first = (torch.rand(used, inner, generator=generator) * 2 - 1) / math.sqrt(inner)
            layer.lora_down.weight.copy_(first)
            layer.lora_up.weight.zero_()
        layer.forward = _Added(layer, (used if alpha is None else alpha) / used, drop)
    return {name: p for name, p in model.named_parameters() if is_lora(name)}


def _projection(inner: int, outer: int, device: torch.device) -> nn.Module:
    """Small, and trained: never in half precision. Without torch's first weights, which the global generator would draw."""
    out = Linear(inner, outer, bias=False, device="meta")
    out.weight = nn.Parameter(torch.empty(outer, inner, dtype=torch.float32, device=device))
    return out


@contextmanager
def without_lora(model: nn.Module):
    """The network as it was before `add_lora`, for a while."""
    added = [m.forward for m in model.modules() if isinstance(getattr(m, "forward", None), _Added)]
    for forward in added:
        forward.on = False
    try:
        yield
    finally:
        for forward in added:
            forward.on = True


def is_lora(name: str) -> bool:
    """Whether a parameter name belongs to an addition."""
    return name.endswith((".lora_down.weight", ".lora_up.weight"))


@torch.no_grad()
def merged(tensors: Mapping[str, Tensor], scales: Mapping[str, float] | None = None) -> dict[str, Tensor]:
    """A state dict with its additions added into the weights, under the names of the network without them.

    Args:
        tensors: of a network that went through `add_lora`.
        scales: layer -> alpha / rank; None is 1 everywhere.
    """
    out = {name: t for name, t in tensors.items() if not is_lora(name)}
    for name, up in tensors.items():
        if name.endswith(".lora_up.weight"):
            layer = name.removesuffix(".lora_up.weight")
            down = tensors[f"{layer}.lora_down.weight"]
            weight = out[f"{layer}.weight"]
            change = up.float() @ down.float() * (scales or {}).get(layer, 1.0)
            out[f"{layer}.weight"] = (weight.float() + change.to(weight.device)).to(weight.dtype)
    return out


def lora_file(tensors: Mapping[str, Tensor], prefix: str = "diffusion_model.") -> dict[str, Tensor]:
    """The additions as a LoRA file that ComfyUI's LoRA loaders read, alpha equal to the rank."""
    out = {}
    for name, t in tensors.items():
        if is_lora(name):
            out[prefix + name] = t.detach().contiguous().cpu()
            if name.endswith(".lora_down.weight"):
                layer = name.removesuffix(".lora_down.weight")
                out[f"{prefix}{layer}.alpha"] = torch.tensor(float(t.shape[0]))
    return out
