"""From a picture to SVD's conditioning, as FramePainter was trained and released."""

from __future__ import annotations

from typing import Any, NamedTuple

import comfy.model_management as mm
import comfy.utils
import torch
from torch import Tensor

from ..core.finite import BY_CLIP_VISION, check_finite
from ..core.images import clip_pixels
from ..core.inversion import condition
from ..core.inversion.sarp import Pictures
from ..core.inversion.trajectory import TrajectoryError
from ..core.placement import on_canvas, placed_size
from .vae import BY_SENDER, encode

SVD_REMEDY = "Connect Source Conditioning, or VAE Encode with SVD's VAE."
AUGMENTATION_SPAN = 2.0  # the noise is meant for pixels in [-1, 1]; ComfyUI's VAE takes [0, 1]


class EditConditioning(NamedTuple):
    """positive, negative: the host's CONDITIONING; latent: the empty two-frame latent (2, 4, H/8, W/8)."""

    positive: list
    negative: list
    latent: dict[str, Tensor]


class MicroConds(NamedTuple):
    """The three micro-conditioning numbers of an SVD network, as the network gets them."""

    fps_id: float
    motion_bucket: float
    augmentation: float


class ClipStart(NamedTuple):
    """The start of an edited clip.

    picture: (1, H, W, 3) in [0, 1].  latent: (1, 4, h, w) in its place for the image condition, as a LATENT holds it; None
    encodes the picture.
    """

    picture: Tensor
    latent: Tensor | None = None


def svd_conditioning(embedding: Tensor, image_latent: Tensor, numbers: MicroConds) -> tuple[list, list]:
    """Positive and negative CONDITIONING of an SVD model. ComfyUI takes one off `fps`, so it carries one more than fps_id.

    Args:
        embedding: (1, 1, D) CLIP image embedding, one token.
        image_latent: (1, 4, h, w) the source picture's latent, not multiplied by the scaling factor.
    """
    told = {"fps": numbers.fps_id + 1, "motion_bucket_id": numbers.motion_bucket, "augmentation_level": numbers.augmentation}
    positive = [[embedding, {**told, "concat_latent_image": image_latent}]]
    negative = [[torch.zeros_like(embedding), {**told, "concat_latent_image": torch.zeros_like(image_latent)}]]
    return positive, negative


def clip_embedding(clip_vision: Any, image: Tensor) -> Tensor:
    """CLIP image embedding through FramePainter's own pixel path. (1, H, W, 3) -> (1, 1, D)."""
    mm.load_models_gpu([clip_vision.patcher])
    pixels = clip_pixels(image.to(clip_vision.load_device), clip_vision.image_size, tuple(clip_vision.image_mean),
                         tuple(clip_vision.image_std))
    out = clip_vision.model(pixel_values=pixels, intermediate_output=-2)
    embedding = out[2].to(mm.intermediate_device()).float().unsqueeze(1)
    check_finite("the picture", {"image embedding": embedding}, BY_CLIP_VISION)
    return embedding


def edit_conditioning(clip_vision: Any, vae: Any, image: Tensor, height: int, width: int, fps_id: int,
                      motion_bucket: int, augmentation: float, seed: int) -> EditConditioning:
    """The complete conditioning of a two-frame edit of one picture.

    Args:
        image: (1, H, W, 3) in [0, 1], any size; resized whole (Lanczos) to its place on width x height for the VAE (see
            core/placement.py), given whole to CLIP.
        height, width: pixels, multiples of 8.
        augmentation: standard deviation of the pixel noise on [-1, 1]; also told to the network.
        seed: of that noise, drawn on the CPU so that every card gives the same picture.
    """
    mm.throw_exception_if_processing_interrupted()  # a batch is many of these
    check_finite("'image'", {"pixels": image}, BY_SENDER)
    embedding = clip_embedding(clip_vision, image)
    h, w = placed_size(*image.shape[1:3], height, width)
    placed = comfy.utils.common_upscale(image.movedim(-1, 1), w, h, "lanczos", "disabled")
    pixels = on_canvas(placed, height, width).movedim(1, -1)
    if augmentation > 0:
        generator = torch.Generator("cpu").manual_seed(seed)
        noise = torch.randn((1, 3, height, width), generator=generator).movedim(1, -1).to(pixels)
        pixels = pixels + noise * (augmentation / AUGMENTATION_SPAN)
    latent = encode(vae, pixels, "'image'")
    positive, negative = svd_conditioning(embedding, latent, MicroConds(fps_id, motion_bucket, augmentation))
    return EditConditioning(positive, negative, {"samples": torch.zeros(2, *latent.shape[1:])})


# ---- conditioning ----------------------------------------------------------------------------------------------------


def _encode(vae: Any, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1], possibly beyond, -> (B, 4, h, w)."""
    return encode(vae, ((pixels + 1.0) / AUGMENTATION_SPAN).movedim(1, -1), "the first frame")


def source_conditioning(clip_vision: Any, vae: Any, pictures: Pictures, numbers: MicroConds, noise: Tensor) -> tuple[list, Tensor]:
    """What a clip is inverted with, as released.

    Args:
        noise: (1, 3, H, W) of `condition.pixel_noise`, the same for both pictures of frame 0.

    Returns:
        CONDITIONING, and the clip's latents (T, 4, h, w).
    """
    first, key = (p.movedim(-1, 1) * AUGMENTATION_SPAN - 1.0 for p in (pictures.first_frame, pictures.key_frame))
    seen = ((condition.quantise(first) + 1.0) / AUGMENTATION_SPAN).movedim(1, -1)
    first, key = (_encode(vae, condition.noisy_pixels(p, noise, numbers.augmentation)) for p in (first, key))
    image = condition.source_condition(key, first, len(pictures.clip))
    positive, _ = svd_conditioning(clip_embedding(clip_vision, seen), image, numbers)
    return positive, encode(vae, pictures.clip, "the clip")


def edited_conditioning(clip_vision: Any, vae: Any, start: ClipStart, numbers: MicroConds, noise: Tensor,
                        anchor: tuple[Tensor, float] | None = None) -> tuple[list, list]:
    """What an edited clip is sampled with, as released: positive and negative.

    Args:
        noise: (1, 4, h, w) of `condition.latent_noise`, one draw for all frames.
        anchor: a picture like the start's, and its share of the image embedding.
    """
    latent = encode(vae, start.picture, "the edited frame") if start.latent is None else start.latent
    embedding = clip_embedding(clip_vision, start.picture)
    if anchor is not None:
        embedding = torch.lerp(embedding, clip_embedding(clip_vision, anchor[0]).to(embedding), anchor[1])
    return svd_conditioning(embedding, condition.edit_condition(latent, noise.to(latent), numbers.augmentation), numbers)


def check_latent(latent: dict[str, Any], family: str = "SVD", remedy: str = SVD_REMEDY) -> Tensor:
    """The samples of a clip's LATENT.

    Args:
        family: of the model, for the message.  remedy: what to connect instead.

    Raises:
        TrajectoryError: not a stack of frames of four channels, or a mask on it.
        NotFinite: inf or NaN in it.
    """
    samples = latent["samples"]
    if samples.is_nested or samples.ndim != 4 or samples.shape[1] != 4:
        shape = "several latents joined" if samples.is_nested else f"of shape {list(samples.shape)}"
        raise TrajectoryError(f"'latent' is {shape}; a clip for {family} is [frames, 4, height / 8, width / 8]. "
                              f"{remedy}")
    check_finite("'latent'", {"samples": samples}, BY_SENDER)
    return samples.detach().float().clone()
