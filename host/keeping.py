"""Dual-clock denoising by the host's own inpainting: its noise mask, which may change from step to step.

Legend: T frames, h w the latent's map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..core.finite import check_finite
from ..core.keeping.dual_clock import clock_steps
from ..core.keeping.paste import latent_cells
from ..core.placement import CELL, on_canvas, placed_size
from . import keys
from .models.network import svd_layout
from .vae import BY_SENDER, encode


class DualClock:
    """SAMPLER_SAMPLE wrapper: skips the steps before the weak clock, and holds the region until the strong one.

    Nothing depends on earlier calls, so clones may share it.
    """

    def __init__(self, region: Tensor, weak: float, strong: float):
        self.region, self.weak, self.strong = region, weak, strong  # (T or 1, 1, h, w), 1 held until the strong clock

    def __call__(self, executor: Callable, wrap: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor,
                 latent_image: Tensor | None = None, denoise_mask: Tensor | None = None, disable_pbar: bool = False) -> Tensor:
        if latent_image is None or len(sigmas) < 2:
            return executor(wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        first, free = clock_steps(len(sigmas) - 1, self.weak, self.strong)
        # Between two levels, as samplers also look a little below or above a step's own.
        above = float(sigmas[free - 1]) if free > 0 else float("inf")
        limit = (above * float(sigmas[free])) ** 0.5 if float(sigmas[free]) > 0 else 0.0
        options = dict(extra_args["model_options"])
        before = options.get("denoise_mask_function")
        region = comfy.utils.reshape_mask(self.region.float(), noise.shape).to(noise.device)

        def mask_at(sigma: Tensor, mask: Tensor, extra_options: dict) -> Tensor:
            if before is not None:
                mask = before(sigma, mask, extra_options=extra_options)
            return mask * (1 - region) if float(sigma.flatten()[0]) > limit else mask

        options["denoise_mask_function"] = mask_at
        transformer_options = dict(options.get("transformer_options", {}))
        transformer_options["sample_sigmas"] = sigmas[first:]
        options["transformer_options"] = transformer_options
        if denoise_mask is None:
            denoise_mask = torch.ones_like(noise)
        return executor(wrap, sigmas[first:], {**extra_args, "model_options": options}, callback, noise, latent_image,
                        denoise_mask, disable_pbar)


def attach_dual_clock(model: ModelPatcher, region: Tensor, weak: float, strong: float) -> ModelPatcher:
    """A clone whose samplers run with two clocks; clocks that were there are replaced.

    Args:
        region: (T or 1, 1, h, w), 1 where the rough edit is held until the strong clock.
        weak, strong: shares of the run's steps.

    Raises:
        WrongModel: not an SVD model.
    """
    svd_layout(model)
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, keys.DUAL_CLOCK)
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, keys.DUAL_CLOCK, DualClock(region, weak, strong))
    return clone


def encode_frames(vae: Any, pictures: Tensor, height: int, width: int) -> Tensor:
    """Pictures (T, H, W, 3) -> latents (T, 4, height / 8, width / 8), one by one, resized (Lanczos) to their place on a canvas
    of height x width pixels."""
    out = []
    check_finite("a picture", {"pixels": pictures}, BY_SENDER)
    for picture in pictures[..., :3]:
        pixels = picture[None].movedim(-1, 1)
        if pixels.shape[-2:] != (height, width):
            h, w = placed_size(*pixels.shape[-2:], height, width)
            pixels = on_canvas(comfy.utils.common_upscale(pixels, w, h, "lanczos", "disabled"), height, width)
        out.append(encode(vae, pixels.movedim(1, -1)))
    return torch.cat(out)


def dual_clock_start(vae: Any, latent: dict, frames: Tensor, masks: Tensor) -> tuple[dict, Tensor]:
    """The latent that a dual-clock run starts from, and the region that it holds.

    Args:
        latent: the host's LATENT, (T, 4, h, w), for its size; a noise mask in it stays.
        frames: (T, H, W, 3) rough edit, frame by frame.
        masks: (T, H, W), 1 where it is followed.

    Returns:
        LATENT, region (T, 1, h, w).
    """
    height, width = latent["samples"].shape[-2:]
    placed = placed_size(*frames.shape[1:3], CELL * height, CELL * width)
    samples = encode_frames(vae, frames, CELL * height, CELL * width)
    return {**latent, "samples": samples}, latent_cells(masks, height, width, 0.5, placed)


def keep_latent(vae: Any, latent: dict, picture: Tensor, mask: Tensor) -> dict:
    """LATENT whose edited frames keep a picture's own latent outside a mask while they are sampled.

    Args:
        latent: (T, 4, h, w); frame 0 stays free.
        picture: (1, H, W, 3) the source.  mask: (1, H, W), above 0 where the edit may be.
    """
    samples = latent["samples"]
    height, width = samples.shape[-2:]
    source = encode_frames(vae, picture[:1], CELL * height, CELL * width)
    placed = placed_size(*picture.shape[1:3], CELL * height, CELL * width)
    cells = latent_cells(mask[:1], height, width, placed=placed).expand(len(samples), -1, -1, -1).clone()
    cells[:1] = 1.0
    return {**latent, "samples": source.expand(len(samples), -1, -1, -1).clone(), "noise_mask": cells}
