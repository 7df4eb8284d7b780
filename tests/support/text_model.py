"""Stable Diffusion 1.x models that exist only in memory, with and without Video-P2P's layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def split(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An inflated network's tensors -> those of the plain UNet, those of the temporal layers."""
    added = {n: t for n, t in tensors.items() if ".attn_temp." in n or ".norm_temp." in n}
    return {n: t for n, t in tensors.items() if n not in added}, added


def build(pack: Any, unet: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Any:
    """A model from a UNet's tensors (ComfyUI names)."""
    return pack("host.weights.building").build_text_unet(dict(unet), dtype)


def inflated(pack: Any, tensors: dict[str, Tensor], **settings: Any) -> Any:
    """A model with frame attention, pooled norms and the temporal layers of an inflated network's tensors."""
    inflate = pack("host.attention.inflated")
    plain, added = split(tensors)
    model = build(pack, plain)
    return inflate.inflate(model, inflate.build_temporal(model, added), inflate.Settings(**settings))


def of_family(model: Any, family: str) -> Any:
    """What a node sees of a model of another family: the host's class of its configuration."""
    import comfy.supported_models

    kind = getattr(comfy.supported_models, family)
    other = model.clone()
    other.model = type("Other", (), {"diffusion_model": model.model.diffusion_model, "model_config": kind.__new__(kind)})()
    return other


def with_hook(pack: Any, model: Any, hook: Callable) -> Any:
    """A clone with one more hook on its attention."""
    clone = model.clone()
    clone.model_options = pack("host.attention.hooks").hooked(clone.model_options, hook)
    return clone


def explicit(pack: Any, place: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by its probabilities (B, N, Lq, Lk), in place of the host's kernel."""
    p = pack("host.attention.hooks").probabilities(q, k, place.heads, place.mask)
    out = p @ v.unflatten(2, (p.shape[1], -1)).transpose(1, 2).to(p.dtype)
    return out.transpose(1, 2).flatten(2).to(v.dtype)


def evaluate(pack: Any, model: Any, latents: Tensor, timestep: int, text: Tensor, videos: int = 1) -> Tensor:
    """One noise prediction through the host's sampling path.

    Args:
        latents: (rows, 4, h, w), DDIM's; frames vary faster than videos.
        text: (1 or rows, tokens, C).
        videos: V in the pass, each a group of rows.
    """
    def as_groups(executor: Callable, x: Tensor, t: Tensor, concat: Any, text: Any, control: Any, options: dict, **more: Any
                  ) -> Tensor:
        return executor(x, t, concat, text, control, {**options, "cond_or_uncond": [0] * videos}, **more)

    model = model.clone()
    model.add_wrapper_with_key("apply_model", "videos", as_groups)
    ddim, source = pack("core.ddim"), pack("host.source")
    sigma = ddim.sigma_of(ddim.cumulative_alphas()[timestep])
    found = []

    def sampler(model_k: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any, disable: Any) -> Tensor:
        state = latents * (sigma**2 + 1.0) ** 0.5
        found.append((state - model_k(state, sigmas[:1].expand(len(state)), **extra_args)) / sigma)
        return x

    with torch.inference_mode():
        source.run_source(model, [[text, {}]], torch.zeros_like(latents), [sigma, sigma], sampler)
    return found[0].clone()


SMALL = {"model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": [1, 1], "context_dim": 16, "transformer_depth": [1, 1],
         "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1, "num_heads": 8}


def small_tensors(pack: Any, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of a small inflated network (ComfyUI names), of about 0.9 M parameters."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    models = pack("core.models.inflated")
    with torch.device("meta"):
        unet = UNetModel(image_size=32, in_channels=4, out_channels=4, use_spatial_transformer=True, legacy=False, **SMALL)
    shapes = {n: tuple(p.shape) for n, p in unet.state_dict().items()}
    with torch.device("meta"):
        layers = models.TemporalLayers(models.block_sites(shapes), SMALL["num_heads"])
    shapes |= {n: tuple(p.shape) for n, p in layers.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes.items():
        fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 100
        out[name] = torch.randn(shape, generator=generator) * fan_in**-0.5
        if len(shape) == 1 and name.endswith("weight"):
            out[name] += 1.0
    return out
