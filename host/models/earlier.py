"""The network digest of earlier versions, so that their files are still found.

Their digest looks at 64 values of every weight. Nothing new is written under it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .network import UNET

SAMPLED = 64  # values of each weight


def sampled_digest(model: ModelPatcher, patched: bool, prefix: str = UNET) -> str:
    """Names, shapes, 64 values of every weight, and the epsilons of the norms. Networks that differ elsewhere have the same."""
    out = hashlib.sha256()
    for key, (first, *patches) in sorted(model.get_key_patches(prefix or None).items()):
        out.update(f"{key}{tuple(first[0].shape)}".encode())
        out.update(_some_values(first[0]))
        if patched:
            for patch in patches:
                _update(out, patch[:3])
    for name, layer in model.model.get_submodule(prefix.rstrip(".")).named_modules():
        if isinstance(layer, torch.nn.GroupNorm):
            out.update(f"{name}{layer.eps}".encode())
    return out.hexdigest()


def _some_values(weight: Tensor) -> bytes:
    if hasattr(weight, "dequantize") and weight.is_quantized:
        weight = weight.dequantize()
    flat = weight.detach().reshape(-1)
    return flat[::max(1, len(flat) // SAMPLED)].float().cpu().numpy().tobytes()


def _update(out: Any, value: Any) -> None:
    """Put a weight patch of any kind into a digest: tensors by some of their values, containers by their items."""
    if isinstance(value, Tensor):
        out.update(f"{tuple(value.shape)}".encode())
        out.update(_some_values(value))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _update(out, item)
    elif hasattr(value, "weights"):
        _update(out, (type(value).__name__, value.weights))
    elif isinstance(value, (int, float, str, type(None))):
        out.update(repr(value).encode())
    else:
        out.update(type(value).__name__.encode())
