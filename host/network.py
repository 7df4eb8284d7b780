"""Which network is on a MODEL: family, layout, sizes and a digest of its weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..core.weights import diffusers_svd

UNET = "diffusion_model."
SAMPLED = 64  # values of each weight that go into a model's digest


# ---- identity --------------------------------------------------------------------------------------------------------


def model_digest(model: ModelPatcher, patched: bool) -> str:
    """A network's identity: names, shapes, 64 values of every weight, and the epsilons of its norms.

    Args:
        patched: with LoRAs and other weight patches on it (their values, not their effect), or the plain network.
    """
    out = hashlib.sha256()
    for key, (first, *patches) in sorted(model.get_key_patches(UNET).items()):
        out.update(f"{key}{tuple(first[0].shape)}".encode())
        out.update(_some_values(first[0]))
        if patched:
            for patch in patches:
                _update(out, patch[:3])
    for name, layer in model.model.diffusion_model.named_modules():
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


class WrongModel(ValueError):
    """The MODEL socket holds something that this node cannot work on."""


def unet_shapes(model: ModelPatcher) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape of a model's UNet, ComfyUI naming."""
    return {name: tuple(p.shape) for name, p in model.model.diffusion_model.state_dict().items()}


def svd_layout(model: ModelPatcher) -> diffusers_svd.Layout:
    """The layout of an SVD model's UNet.

    Raises:
        WrongModel: the model is of another family; the text says what came and what to connect.
    """
    names = unet_shapes(model)
    try:
        layout = diffusers_svd.layout_from_comfy(names)
    except ValueError:
        layout = None
    if layout is None or not any(layout.down_attention):
        found = type(model.model).__name__
        raise WrongModel(
            f"the 'model' input is a {found} model, but this works on Stable Video Diffusion networks only. "
            "Connect MODEL from Load FramePainter, or from Image Only Checkpoint Loader with an SVD checkpoint."
        )
    return layout


def frames_in(rows: int, options: dict) -> int:
    """T, from the rows of a pass and the conditioning groups that share it (together or split, as memory allows)."""
    return rows // max(len(options.get("cond_or_uncond", (0,))), 1)


def token_size(length: int, latent_shape: list[int]) -> tuple[int, int]:
    """(h, w) of an attention's L tokens in a UNet working on (..., H, W) latents; each level halves, rounding up."""
    height, width = latent_shape[-2:]
    while height * width > length:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def head_width(model: ModelPatcher) -> int:
    """Channels a head of a model's UNet."""
    return model.model.model_config.unet_config["num_head_channels"]


def multiple(model: ModelPatcher) -> int:
    """Pixels that a picture's sides must be multiples of: 8 for the VAE, halved at every further level of the UNet."""
    return 8 * 2 ** (len(svd_layout(model).down_attention) - 1)
