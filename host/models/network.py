"""Which network is on a MODEL: family, layout, sizes."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from torch import nn

from ...core.finite import check_finite
from ...core.weights import diffusers_svd
from ...core.weights.trained import Trained

UNET = "diffusion_model."
BY_ENCODER = "The encoder that made it may overflow in fp16: start ComfyUI with --force-fp32, or connect another one."


class WrongModel(ValueError):
    """The MODEL input is something that this node cannot work on."""


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


def check_embedding(model: ModelPatcher, conditioning: list, name: str) -> None:
    """Refuse a CONDITIONING that another network's encoder has made.

    Args:
        name: of the node's input, for the message.

    Raises:
        WrongModel: its embeddings have other channels than the network's cross-attention takes, or no tokens.
        NotFinite: inf or NaN in them.
    """
    if not conditioning:
        raise WrongModel(f"'{name}' is empty. Connect a conditioning.")
    width = model.model.model_config.unet_config.get("context_dim")
    for embedding, *_ in conditioning:
        shape = list(getattr(embedding, "shape", ()))
        if len(shape) != 3 or 0 in shape or isinstance(width, int) and shape[-1] != width:
            raise WrongModel(f"'{name}' holds an embedding of shape {shape}; 'model' takes [1, tokens, {width}]. Connect the "
                             "conditioning that was made with this model's own encoder.")
        check_finite(f"'{name}'", {"embedding": embedding}, BY_ENCODER)


def set_trained(network: nn.Module, trained: Trained) -> None:
    """Note on a network itself how it was trained; every patcher that shares the network then knows."""
    network.framepainter_trained = trained


def trained(network: nn.Module) -> Trained | None:
    """What `set_trained` noted; None for networks of other loaders."""
    return getattr(network, "framepainter_trained", None)


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
