"""An inflated network as torch sees it: ordinary tensors that nobody else touches, differentiable, one forward call.

For one-shot tuning, which changes its weights, and for null-text optimisation, which differentiates through it: the host's own
weights are inference tensors. Legend: V videos, F frames, K tokens of text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.modules import attention as host_attention
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...core.models.inflated import TemporalLayers, fresh_temporal, is_trained
from ..attention.inflated import check_model, heads_of, temporal_of
from ..attention.inflated_layers import Pass, Settings, forwards, pass_now, running
from ..models.network import UNET
from .copies import _filled, plain_tensors, plain_unet
from .network import DTYPES, WITH_GRADIENTS, _Checkpointed, _with_gradients, autocast


class InflatedNetwork(nn.Module):
    """UNet and temporal layers behind one call.

    Args:
        unet: the host's UNet, plain tensors; its layers' forwards are replaced, so it must be this module's own.
        temporal: its temporal layers.
        precision: of the arithmetic, "fp32", or "bf16" and "fp16" under autocast.
        checkpointing: compute the blocks again in the backward pass instead of keeping what is inside them.
    """

    def __init__(self, unet: nn.Module, temporal: TemporalLayers, precision: str = "fp32", checkpointing: bool = False):
        super().__init__()
        self.unet, self.temporal, self.precision = unet, temporal, precision
        for path, forward in forwards(unet, temporal, Settings(), lambda p: unet.get_submodule(p).forward).items():
            unet.get_submodule(path).forward = forward
        if checkpointing:
            for module in unet.modules():
                if isinstance(module, SpatialTransformer | ResBlock):
                    module.forward = _CheckpointedInPass(module.forward)

    def forward(self, x: Tensor, timestep: int, text: Tensor) -> Tensor:
        """Predicted noise in float32.

        Args:
            x: (V*F, 4, h, w) latents.  text: (V, K, C), one for each video.
        """
        frames = len(x) // len(text)
        options: dict[str, Any] = {}
        if host_attention.optimized_attention.__name__ not in WITH_GRADIENTS:
            options["optimized_attention_override"] = _with_gradients
        t = torch.full((len(x),), float(timestep), device=x.device)
        with running(Pass(frames)), autocast(x.device, self.precision):
            return self.unet(x, timesteps=t, context=text.repeat_interleave(frames, 0), transformer_options=options).float()

    def named_weights(self) -> dict[str, Tensor]:
        """Parameters by ComfyUI names without prefix, those of the temporal layers inside their blocks."""
        return {name.partition(".")[2]: p for name, p in self.named_parameters()}


class _CheckpointedInPass:
    """A forward that is computed again in the backward pass, which runs outside of the pass and maybe in another thread."""

    def __init__(self, forward: Callable):
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        now = pass_now()

        def in_pass(*args: Any, **kwargs: Any) -> Tensor:
            with running(now):
                return self.forward(*args, **kwargs)

        return _Checkpointed(in_pass)(*args, **kwargs)


def copy_of(model: ModelPatcher, precision: str = "fp32", checkpointing: bool = False, seed: int = 0,
            random_bias: bool = False) -> InflatedNetwork:
    """A frozen copy of a model, on the CPU. LoRAs are merged into it. Weights that tuning trains are fp32 in any precision.

    Args:
        model: Stable Diffusion 1.x. Temporal layers that it has are copied; else new ones are drawn.
        seed, random_bias: of new temporal layers, see `core.models.inflated.fresh_temporal`.

    Raises:
        WrongModel: another family.
    """
    sites = check_model(model)
    unet = plain_unet(model, DTYPES[precision])
    if precision != "fp32":
        wanted = {name for name in unet.state_dict() if is_trained(name)}
        for name, tensor in plain_tensors(model, UNET, wanted, torch.float32).items():
            path, _, leaf = name.rpartition(".")
            setattr(unet.get_submodule(path), leaf, nn.Parameter(tensor))
    with torch.device("meta"):
        temporal = TemporalLayers(sites, heads_of(model))
    there = temporal_of(model)
    tensors = (fresh_temporal(sites, seed, random_bias) if there is None else
               plain_tensors(there, "", set(temporal.state_dict()), torch.float32))
    return InflatedNetwork(unet, _filled(temporal, tensors), precision, checkpointing).requires_grad_(False)
