"""Host-managed models -> networks of ordinary tensors that nobody else touches, for training.

What the host holds may be inference tensors, half precision, quantised, paged out, with LoRAs still to be added or already
written in. The copies are none of these, and the originals are only read.
"""

from __future__ import annotations

import comfy.lora
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...core.attention.matching import MatchingBranch
from ...core.models.control_encoder import ControlEncoder, widths_from_shapes
from ...core.training.framepainter.start import matching_from_unet, new_encoder
from ...core.weights import diffusers_svd, framepainter
from ..models.network import UNET, WrongModel, head_width, unet_shapes
from ..weights.building import _PlainLayers
from ..weights.loading import FramePainterWeights


def plain_tensors(model: ModelPatcher, prefix: str, wanted: set[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies of a model's weights on the CPU, patches added, by name without the prefix.

    Read one at a time through the host's own list of weights and patches, so a model that is loaded with its LoRAs written in
    gives the same as one that rests.
    """
    out = {}
    for key, (first, *patches) in model.get_key_patches(prefix or None).items():
        name = key.removeprefix(prefix)
        if name not in wanted:  # scales of quantised formats; they are in the weights already
            continue
        weight, convert = first
        if hasattr(weight, "dequantize"):
            weight = weight.dequantize()
        weight = weight.detach().to(device="cpu", dtype=torch.float32, copy=True)
        weight = convert(weight, inplace=True)
        if patches:
            weight = comfy.lora.calculate_weight(patches, weight, key)
        # Norms and biases stay in fp32: they are small, and a CPU has no group norm of mixed types.
        out[name] = weight.to(dtype if weight.ndim > 1 else torch.float32).contiguous()
    return out


def _filled(module: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A module made on the meta device, given its tensors."""
    module.load_state_dict(tensors, assign=True)
    return module.train(False)  # there is no dropout; some host code asks


def plain_unet(model: ModelPatcher, dtype: torch.dtype) -> nn.Module:
    """A model's UNet, built from torch's own layers."""
    settings = {k: v for k, v in model.model.model_config.unet_config.items() if k != "disable_unet_model_creation"}
    with torch.device("meta"):
        unet = UNetModel(**{**settings, "dtype": torch.float32}, device="meta", operations=_PlainLayers)
    original = model.model.diffusion_model
    for name, layer in unet.named_modules():  # files trained with diffusers have other epsilons in some norms
        if hasattr(layer, "eps"):
            layer.eps = original.get_submodule(name).eps
    return _filled(unet, plain_tensors(model, UNET, set(unet.state_dict()), dtype))


def plain_matching(model: ModelPatcher, unet: nn.Module, weights: FramePainterWeights | None) -> MatchingBranch:
    """Matching attention in fp32: of the given weights, or as training starts from a plain SVD.

    Raises:
        WrongModel: the weights belong to another network.
    """
    sites = framepainter.spatial_sites(unet_shapes(model))
    with torch.device("meta"):
        branch = MatchingBranch(sites, head_width(model))
    expected = {n: tuple(p.shape) for n, p in branch.state_dict().items()}
    if weights is None:
        tensors = {n: t.float() for n, t in matching_from_unet(unet.state_dict()).items()}
        return _filled(branch, tensors)
    tensors = plain_tensors(weights.matching, "", set(weights.matching.model.state_dict()), torch.float32)
    problems = framepainter.differences(expected, {n: tuple(t.shape) for n, t in tensors.items()})
    if problems:
        raise WrongModel(f"'framepainter' belongs to another network than 'model' ({problems[0]}). Take "
                         "both from the same node, or leave 'framepainter' unconnected to start with new weights.")
    return _filled(branch, tensors)


def plain_encoder(model: ModelPatcher, weights: FramePainterWeights | None, seed: int) -> ControlEncoder:
    """The control encoder in fp32: of the given weights, or a new one.

    Raises:
        WrongModel: it gives another number of channels than the UNet's first level has.
    """
    shapes = unet_shapes(model)
    block = diffusers_svd.layout_from_comfy(shapes).injection_block
    channels = shapes[f"input_blocks.{block}.0.op.weight"][0]
    if weights is None:
        return new_encoder(channels, seed)
    tensors = plain_tensors(weights.encoder, "", set(weights.encoder.model.state_dict()), torch.float32)
    widths = widths_from_shapes({n: tuple(t.shape) for n, t in tensors.items()})
    if widths.out != channels:
        raise WrongModel(f"the control encoder of 'framepainter' gives {widths.out} channels, 'model' has "
                         f"{channels} there. Take both from the same node, or leave 'framepainter' unconnected.")
    with torch.device("meta"):
        encoder = ControlEncoder(widths)
    return _filled(encoder, tensors)
