"""The pack's own modules as models that the host loads, casts, offloads and unloads."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.model_patcher
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor


def managed(module: torch.nn.Module, disable_dynamic: bool = False) -> ModelPatcher:
    """A module as a model that the host loads, offloads and unloads."""
    make = ModelPatcher if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    offload = mm.unet_offload_device()
    return make(module, load_device=mm.get_torch_device(), offload_device=offload)


def is_dynamic(patcher: ModelPatcher) -> bool:
    """Whether the host pages this model's weights in at use (dynamic VRAM); older hosts never do."""
    return getattr(patcher, "is_dynamic", lambda: False)()


def fill(patcher: ModelPatcher, tensors: dict[str, Tensor], dtype: torch.dtype) -> ModelPatcher:
    # Cast here: a host that pages weights in takes the tensors as they are.
    patcher.model.load_state_dict({name: t.to(dtype) for name, t in tensors.items()}, assign=is_dynamic(patcher))
    patcher.model.eval()
    return patcher
