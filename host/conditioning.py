"""From a picture to SVD's conditioning, as FramePainter was trained and released."""

from __future__ import annotations

from typing import Any, NamedTuple

import comfy.model_management as mm
import comfy.utils
import torch
from torch import Tensor

from ..core.images import clip_pixels
from ..core.inversion import condition
from ..core.inversion.trajectory import TrajectoryError

SVD_REMEDY = "Connect Source Conditioning, or VAE Encode with SVD's VAE."
AUGMENTATION_SPAN = 2.0  # the noise is meant for pixels in [-1, 1]; ComfyUI's VAE takes [0, 1]


class EditConditioning(NamedTuple):
    """positive, negative: the host's CONDITIONING; latent: the empty two-frame latent (2, 4, H/8, W/8)."""

    positive: list
    negative: list
    latent: dict[str, Tensor]


def svd_conditioning(embedding: Tensor, image_latent: Tensor, fps_id: float, motion_bucket: float,
                     augmentation: float) -> tuple[list, list]:
    """Positive and negative CONDITIONING of an SVD model.

    Args:
        embedding: (1, 1, D) CLIP image embedding, one token.
        image_latent: (1, 4, h, w) the source picture's latent, not multiplied by the scaling factor.
        fps_id, motion_bucket, augmentation: the numbers as the network sees them. ComfyUI takes one off `fps`, so the
            conditioning carries fps_id + 1.
    """
    numbers = {"fps": fps_id + 1, "motion_bucket_id": motion_bucket, "augmentation_level": augmentation}
    positive = [[embedding, {**numbers, "concat_latent_image": image_latent}]]
    negative = [[torch.zeros_like(embedding), {**numbers, "concat_latent_image": torch.zeros_like(image_latent)}]]
    return positive, negative


def clip_embedding(clip_vision: Any, image: Tensor) -> Tensor:
    """CLIP image embedding through FramePainter's own pixel path. (1, H, W, 3) -> (1, 1, D)."""
    mm.load_models_gpu([clip_vision.patcher])
    pixels = clip_pixels(image.to(clip_vision.load_device), clip_vision.image_size, tuple(clip_vision.image_mean),
                         tuple(clip_vision.image_std))
    out = clip_vision.model(pixel_values=pixels, intermediate_output=-2)
    return out[2].to(mm.intermediate_device()).float().unsqueeze(1)


def edit_conditioning(clip_vision: Any, vae: Any, image: Tensor, height: int, width: int, fps_id: int,
                      motion_bucket: int, augmentation: float, seed: int) -> EditConditioning:
    """Everything a two-frame edit of one picture is conditioned on.

    Args:
        image: (1, H, W, 3) in [0, 1], any size; resized whole (Lanczos) to width x height for the VAE, given whole to
            CLIP.
        height, width: pixels, multiples of 8.
        augmentation: standard deviation of the pixel noise on [-1, 1]; also told to the network.
        seed: of that noise, drawn on the CPU so that every card gives the same picture.
    """
    mm.throw_exception_if_processing_interrupted()  # a batch is many of these
    embedding = clip_embedding(clip_vision, image)
    pixels = comfy.utils.common_upscale(image.movedim(-1, 1), width, height, "lanczos", "disabled").movedim(1, -1)
    if augmentation > 0:
        generator = torch.Generator("cpu").manual_seed(seed)
        noise = torch.randn((1, 3, height, width), generator=generator).movedim(1, -1).to(pixels)
        pixels = pixels + noise * (augmentation / AUGMENTATION_SPAN)
    latent = vae.encode(pixels)
    positive, negative = svd_conditioning(embedding, latent, fps_id, motion_bucket, augmentation)
    return EditConditioning(positive, negative, {"samples": torch.zeros(2, *latent.shape[1:])})


# ---- conditioning ----------------------------------------------------------------------------------------------------


def _encode(vae: Any, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1], possibly beyond, -> (B, 4, h, w)."""
    mm.throw_exception_if_processing_interrupted()
    return vae.encode(((pixels + 1.0) / AUGMENTATION_SPAN).movedim(1, -1))


def source_conditioning(clip_vision: Any, vae: Any, clip: Tensor, first: Tensor, key: Tensor, fps_id: float,
                        motion_bucket: float, augmentation: float, noise: Tensor) -> tuple[list, Tensor]:
    """What a clip is inverted with, as released.

    Args:
        clip: (T, H, W, 3) in [0, 1].  first, key: (1, H, W, 3), frame 0 perturbed on its own, twice.
        fps_id: as the network sees it.
        noise: (1, 3, H, W) standard normal, the same for both pictures.

    Returns:
        CONDITIONING, and the clip's latents (T, 4, h, w).
    """
    pixels = {name: picture.movedim(-1, 1) * AUGMENTATION_SPAN - 1.0 for name, picture in (("first", first), ("key", key))}
    seen = ((condition.quantise(pixels["first"]) + 1.0) / AUGMENTATION_SPAN).movedim(1, -1)
    latents = {name: _encode(vae, condition.noisy_pixels(picture, noise, augmentation)) for name, picture in pixels.items()}
    image = condition.source_condition(latents["key"], latents["first"], len(clip))
    positive, _ = svd_conditioning(clip_embedding(clip_vision, seen), image, fps_id, motion_bucket, augmentation)
    mm.throw_exception_if_processing_interrupted()
    return positive, vae.encode(clip)


def edited_conditioning(clip_vision: Any, vae: Any, picture: Tensor, fps: float, motion_bucket: float, augmentation: float,
                        noise: Tensor) -> tuple[list, list]:
    """What an edited clip is sampled with, as released: positive and negative.

    Args:
        picture: (1, H, W, 3) in [0, 1], the edited first frame at the clip's size.
        fps: of the video to make; the network is told one less.
        noise: (1, 4, h, w) standard normal latent noise, one draw for all frames.
    """
    mm.throw_exception_if_processing_interrupted()
    latent = vae.encode(picture)
    positive, negative = svd_conditioning(clip_embedding(clip_vision, picture),
                                          condition.edit_condition(latent, noise.to(latent), augmentation), fps - 1,
                                          motion_bucket, augmentation)
    return positive, negative


def check_latent(latent: dict[str, Any], family: str = "SVD", remedy: str = SVD_REMEDY) -> Tensor:
    """The samples of a clip's LATENT.

    Args:
        family: of the model, for the message.  remedy: what to connect instead.

    Raises:
        TrajectoryError: not a stack of frames of four channels, or a mask on it.
    """
    samples = latent["samples"]
    if samples.is_nested or samples.ndim != 4 or samples.shape[1] != 4:
        shape = "several latents joined" if samples.is_nested else f"of shape {list(samples.shape)}"
        raise TrajectoryError(f"'latent' is {shape}; a clip for {family} is [frames, 4, height / 8, width / 8]. "
                              f"{remedy}")
    return samples.detach().float().clone()
