"""Tensors -> host-managed models (ModelPatcher, VAE, CLIP vision), of any size, cast by the host's own operations."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.ldm.models.autoencoder
import comfy.model_detection
import comfy.model_management as mm
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.attention.matching import MatchingBranch
from ...core.models import small_autoencoder
from ...core.models.control_encoder import ControlEncoder, widths_from_shapes
from ...core.weights import diffusers_svd, framepainter
from ..models.managed import fill, is_dynamic, managed

HEAD_WIDTH = 64  # channels a head in every published SVD; a small network's file may say otherwise in its metadata
EPSILON_DIFFUSERS = 1e-6


def unet_config(unet: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The host's UNet configuration, from ComfyUI names and shapes. The same detection that the core loaders use."""
    empty = {name: torch.empty(shape, device="meta") for name, shape in unet.items()}
    config = comfy.model_detection.detect_unet_config(empty, "")
    if config is None:
        raise ValueError("the host does not recognise these tensors as a UNet")
    return config


def svd_config(config: dict[str, Any], head_width: int = HEAD_WIDTH) -> comfy.supported_models.SVD_img2vid:
    """The host's SVD model configuration for a network of any width.

    The host picks this class at 320 channels only, so it is named here instead of detected.
    """
    out = comfy.supported_models.SVD_img2vid(config)
    out.unet_config["num_head_channels"] = head_width
    return out


class _PlainLayers:
    """torch's own layers. The host's make no weights of their own when it pages them in (dynamic VRAM), so a network
    built from those would not tell what it needs."""

    Linear, Conv1d, Conv2d, Conv3d = torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d
    GroupNorm, LayerNorm, Embedding = torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.Embedding

    @staticmethod
    def conv_nd(dims: int, *args: Any, **kwargs: Any) -> torch.nn.Module:
        return {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dims](*args, **kwargs)


def expected_unet(config: dict[str, Any], head_width: int = HEAD_WIDTH) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the UNet that the host builds from a configuration, made on the meta device."""
    return _shapes_of(svd_config(config, head_width))


def expected_text_unet(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The same for a Stable Diffusion 1.x network."""
    return _shapes_of(comfy.supported_models.SD15(config))


def _shapes_of(config: comfy.supported_models_base.BASE) -> dict[str, tuple[int, ...]]:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    settings = {k: v for k, v in config.unet_config.items() if k != "disable_unet_model_creation"}
    with torch.device("meta"):
        unet = UNetModel(**settings, device="meta", operations=_PlainLayers)
    return {name: tuple(p.shape) for name, p in unet.state_dict().items()}


def build_encoder(tensors: dict[str, Tensor], dtype: torch.dtype) -> ModelPatcher:
    """The control encoder as a host-managed model, from its tensors."""
    widths = widths_from_shapes({name: tuple(t.shape) for name, t in tensors.items()})
    module = ControlEncoder(widths, comfy.ops.manual_cast, dtype, mm.unet_offload_device())
    return fill(managed(module), tensors, dtype)


def build_matching(tensors: dict[str, Tensor], dtype: torch.dtype, head_width: int = HEAD_WIDTH) -> ModelPatcher:
    """The matching branch as a host-managed model, from its tensors (`<path>.to_q.weight`, ...)."""
    tail = ".to_q.weight"
    widths = {name.removesuffix(tail): t.shape[0] for name, t in tensors.items() if name.endswith(tail)}
    module = MatchingBranch(widths, head_width, comfy.ops.manual_cast, dtype, mm.unet_offload_device())
    return fill(managed(module), tensors, dtype)


def build_unet(tensors: dict[str, Tensor], dtype: torch.dtype | None, head_width: int = HEAD_WIDTH,
               diffusers_epsilon: bool = True, disable_dynamic: bool = False) -> ModelPatcher:
    """An SVD model of any width from its UNet tensors (ComfyUI names), as the core loaders build theirs.

    Args:
        tensors: emptied while loading.
        dtype: of the weights; None leaves the choice to the host (its flags, the card, the file's own dtype).
        diffusers_epsilon: give 72 GroupNorms the epsilon that diffusers-trained weights were trained with.
        disable_dynamic: whole weights in the modules even where the host would page them in, as training needs.
    """
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    patcher = _managed_unet(svd_config(unet_config(shapes), head_width), tensors, dtype, disable_dynamic)
    if diffusers_epsilon:
        for name in diffusers_svd.diffusers_epsilon_norms(diffusers_svd.layout_from_comfy(shapes)):
            patcher.model.diffusion_model.get_submodule(name).eps = EPSILON_DIFFUSERS
    return patcher


def build_text_unet(tensors: dict[str, Tensor], dtype: torch.dtype | None, disable_dynamic: bool = False) -> ModelPatcher:
    """A Stable Diffusion 1.x model of any width from its UNet tensors; see `build_unet`.

    The host picks this class at 320 channels and text embeddings of 768 only, so it is named here instead of detected.
    """
    config = comfy.supported_models.SD15(unet_config({name: tuple(t.shape) for name, t in tensors.items()}))
    return _managed_unet(config, tensors, dtype, disable_dynamic)


def _managed_unet(config: Any, tensors: dict[str, Tensor], dtype: torch.dtype | None,
                  disable_dynamic: bool) -> ModelPatcher:
    parameters = sum(t.numel() for t in tensors.values())
    kinds = list(config.supported_inference_dtypes)
    dtype = dtype or mm.unet_dtype(model_params=parameters, supported_dtypes=kinds,
                                   weight_dtype=comfy.utils.weight_dtype(tensors))
    config.set_inference_dtype(dtype, mm.unet_manual_cast(dtype, mm.get_torch_device(), kinds))
    model = config.get_model(tensors, "")
    patcher = managed(model, disable_dynamic)
    offload = mm.unet_offload_device()
    if not mm.is_device_cpu(offload):
        model.to(offload)
    # An older host's method has no such argument.
    model.load_model_weights(tensors, "", **({"assign": True} if is_dynamic(patcher) else {}))
    model.eval()
    return patcher


def build_clip(tensors: dict[str, Tensor], heads: int) -> comfy.sd.CLIP:
    """A CLIP text encoder of any size with the host's SD 1.x tokenizer, through the host's own loader.

    Args:
        tensors: transformers' names (`text_model.encoder.layers.0...`), all 49408 rows of the embedding table.
        heads: of its attention; no tensor tells it.
    """
    layer = "text_model.encoder.layers.{}.mlp.fc1.weight"
    count = next(n for n in range(len(tensors)) if layer.format(n) not in tensors)
    inner, width = tensors[layer.format(0)].shape
    config = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads, "num_hidden_layers": count}
    # The host's code for longer prompts replaces the second entry by the first.
    return comfy.sd.load_text_encoder_state_dicts(
        [tensors], folder_paths.get_folder_paths("embeddings"), comfy.sd.CLIPType.STABLE_DIFFUSION,
        {"model_config": config, "clip_l_model_config": config})


def build_vae(tensors: dict[str, Tensor]) -> comfy.sd.VAE:
    """A VAE from its tensors: the host's own choice for published ones, else a plain AutoencoderKL of any width, or the
    small autoencoder of the models that come with the pack."""
    if small_autoencoder.MARK in tensors:
        return _build_small_vae(tensors)
    narrow = tensors["decoder.conv_out.weight"].shape[1]
    if narrow == 128:
        return comfy.sd.VAE(sd=tensors)
    levels = 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith("encoder.down."))
    blocks = 1 + max(int(n.split(".")[4]) for n in tensors if n.startswith("encoder.down.0.block."))
    base = tensors["encoder.conv_in.weight"].shape[0]
    mult = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // base for i in range(levels)]
    latent = tensors["decoder.conv_in.weight"].shape[1]
    vae = comfy.sd.VAE(sd=tensors, config={"params": {"embed_dim": latent, "ddconfig": {
        "double_z": True, "z_channels": latent, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": base,
        "ch_mult": mult, "num_res_blocks": blocks, "attn_resolutions": [], "dropout": 0.0}}})
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (levels - 1)
    vae.latent_channels = latent
    return vae


def _build_small_vae(tensors: dict[str, Tensor]) -> comfy.sd.VAE:
    module = small_autoencoder.from_shapes({name: tuple(t.shape) for name, t in tensors.items()})
    module.load_state_dict(tensors)
    # The host wraps no network that it does not know, so it wraps its smallest one, and ours takes that one's place.
    stand_in = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
                "ch_mult": [1], "num_res_blocks": 0, "attn_resolutions": [], "dropout": 0.0}
    first = comfy.ldm.models.autoencoder.AutoencoderKL(embed_dim=4, ddconfig=stand_in)
    vae = comfy.sd.VAE(sd=first.state_dict(), config={"params": {"embed_dim": 4, "ddconfig": stand_in}})
    vae.first_stage_model = module.eval().to(vae.vae_dtype)
    vae.patcher = ModelPatcher(module, load_device=vae.device, offload_device=mm.vae_offload_device())
    vae.downscale_ratio = vae.upscale_ratio = small_autoencoder.DOWNSCALE
    vae.latent_channels = tensors["encoder.head.weight"].shape[0]
    vae.size = mm.module_size(module)
    return vae


def build_clip_vision(tensors: dict[str, Tensor], head_width: int = HEAD_WIDTH) -> Any:
    """A CLIP vision encoder from its tensors: the host's own choice for published ones, one of any size else.

    Args:
        tensors: names under `CLIP_VISION`, OpenCLIP's or transformers' spelling.
    """
    known = comfy.clip_vision.load_clipvision_from_sd(dict(tensors), framepainter.CLIP_VISION, True)
    if known is not None:
        return known
    sd = comfy.clip_vision.convert_to_transformers(dict(tensors), framepainter.CLIP_VISION)
    width, _, patch, _ = sd["vision_model.embeddings.patch_embedding.weight"].shape
    positions = sd["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    layers = 1 + max(int(n.split(".")[3]) for n in sd if n.startswith("vision_model.encoder.layers."))
    config = {
        "attention_dropout": 0.0, "hidden_act": "gelu", "hidden_size": width, "image_size": round(positions**0.5) * patch,
        "model_type": "clip_vision_model",
        "intermediate_size": sd["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0], "layer_norm_eps": 1e-5,
        "num_attention_heads": max(1, width // head_width), "num_channels": 3, "num_hidden_layers": layers,
        "patch_size": patch, "projection_dim": sd["visual_projection.weight"].shape[0], "torch_dtype": "float32",
    }
    # The older host takes a file name only.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip_vision.json")
        path.write_text(json.dumps(config), encoding="utf-8")
        clip = comfy.clip_vision.ClipVisionModel(str(path))
    clip.load_sd(sd)
    return clip
