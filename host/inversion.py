"""Inverting a clip through the host's own sampling path, and running the source network again along the way.

The host hands a sampler `latents * 0.18215` and takes the state back divided by that; "model space" below means multiplied.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.samplers
import comfy.supported_models
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..core.inversion import condition, trajectory
from ..core.inversion.euler import invert_euler
from ..core.inversion.schedule import inversion_levels
from ..core.inversion.trajectory import SourceConditioning, Trajectory, TrajectoryError
from . import report
from .conditioning import AUGMENTATION_SPAN, clip_embedding, svd_conditioning
from .patches import svd_layout

INVERT = "Invert EDM"
UNET = "diffusion_model."
SAMPLED = 64  # values of each weight that go into a model's digest
NUMBERS = ("fps", "motion_bucket_id", "augmentation_level")
DEFAULTS = {"fps": 6.0, "motion_bucket_id": 127.0, "augmentation_level": 0.0}  # the host's, where conditioning is silent


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


def source_of(positive: list, frames: int, node: str) -> SourceConditioning:
    """The parts of a CONDITIONING that a trajectory keeps.

    Raises:
        TrajectoryError: it is not a single image-to-video conditioning, or for another number of frames.
    """
    if len(positive) != 1:
        raise TrajectoryError(f"{node}: 'positive' holds {len(positive)} conditionings joined; an inversion needs exactly one. "
                              "Connect Source Conditioning, or SVD's own conditioning node.")
    embedding, extra = positive[0]
    image = extra.get("concat_latent_image")
    if embedding is None or image is None:
        raise TrajectoryError(f"{node}: 'positive' is no image-to-video conditioning (it has no image latent). Connect Source "
                              "Conditioning, or SVD's own conditioning node.")
    if len(image) not in (1, frames):
        raise TrajectoryError(f"{node}: 'positive' is for {len(image)} frames, 'latent' has {frames}. Take both from the same "
                              "Source Conditioning.")
    numbers = {name: float(extra.get(name, DEFAULTS[name])) for name in NUMBERS}
    return SourceConditioning(embedding.detach().cpu(), image.detach().cpu(), numbers)


def conditioning_of(source: SourceConditioning) -> list:
    """The same as the host's CONDITIONING again."""
    return [[source.embedding, {**source.numbers, "concat_latent_image": source.image_latents}]]


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


# ---- running the source network --------------------------------------------------------------------------------------


class Unguided(comfy.samplers.CFGGuider):
    """Conditional predictions alone: no unconditional half, and none of the guidance that other nodes have put on."""

    def __init__(self, model: ModelPatcher, positive: list):
        super().__init__(model)
        self.inner_set_conds({"positive": positive})

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: int | None = None) -> Tensor:
        return comfy.samplers.calc_cond_batch(self.inner_model, [self.conds["positive"]], x, timestep, model_options or {})[0]


def run_source(model: ModelPatcher, positive: list, latents: Tensor, levels: list[float], sampler: Callable,
               callback: Callable | None = None) -> Tensor:
    """Run a sampler function of k-diffusion's signature on the unguided source network.

    Args:
        latents: (T, 4, h, w) where it starts, as a LATENT holds it; no noise is added.
        levels: noise levels handed to the function.
    """
    guider = Unguided(model, positive)
    return guider.sample(torch.zeros_like(latents), latents, comfy.samplers.KSAMPLER(sampler), torch.tensor(levels),
                         callback=callback, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=0)


def check_latent(latent: dict[str, Any], node: str) -> Tensor:
    """The samples of a clip's LATENT.

    Raises:
        TrajectoryError: not a stack of frames of four channels, or a mask on it.
    """
    samples = latent["samples"]
    if samples.is_nested or samples.ndim != 4 or samples.shape[1] != 4:
        shape = "several latents joined" if samples.is_nested else f"of shape {list(samples.shape)}"
        raise TrajectoryError(f"{node}: 'latent' is {shape}; a clip for SVD is [frames, 4, height / 8, width / 8]. "
                              "Connect Source Conditioning, or VAE Encode with SVD's VAE.")
    return samples.detach().float().clone()


def invert(model: ModelPatcher, positive: list, latent: dict[str, Any], sigmas: Tensor, folder: Path | None = None,
           node_id: str | None = None) -> Trajectory:
    """Invert a clip.

    Args:
        model: an SVD model; its guidance is not used.
        positive: the source's conditioning.
        latent: LATENT of the clip, [frames, 4, h, w].
        sigmas: the levels of the sampling that is to undo it, descending.
        folder: where to keep what is done so far, and to look for the remains of an interrupted inversion of the same
            clip; None keeps nothing.
        node_id: of the node to show warnings on.

    Raises:
        WrongModel, TrajectoryError: see the message.
    """
    svd_layout(model, INVERT)
    samples = check_latent(latent, INVERT)
    source = source_of(positive, len(samples), INVERT)
    levels_down = tuple(float(s) for s in sigmas)
    try:
        levels = inversion_levels(levels_down)
    except ValueError as error:
        raise TrajectoryError(f"{INVERT}: 'sigmas' cannot be inverted: {error}. Connect Karras Scheduler or Basic "
                              "Scheduler.") from error
    digest = model_digest(model, patched=True)
    states = torch.zeros(len(levels), *samples.shape)
    first, partial = 0, None
    if folder is not None:
        partial = folder / f"{trajectory.identity(digest, source, levels_down, samples)[:32]}{trajectory.PARTIAL}.safetensors"
        first = _resume(partial, states, node_id)
    keep = partial is not None
    preview = latent_preview.prepare_callback(model, len(levels) - 1)

    def sampler(model_k: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Callable | None,
                disable: bool | None) -> Tensor:
        if first == 0:
            states[0] = x.cpu()

        def after(step: dict) -> None:
            nonlocal keep
            states[step["i"] + 1] = step["next"].cpu()
            if keep:
                keep = _keep(partial, Trajectory(states[:step["i"] + 2], levels_down, source, digest), node_id)
            if callback is not None:
                callback(step)
            mm.throw_exception_if_processing_interrupted()

        return invert_euler(model_k, states[first].to(x), sigmas, extra_args, after, first)

    run_source(model, positive, samples, levels, sampler, preview)
    if partial is not None:
        trajectory.remove(partial)
    if not torch.isfinite(states).all():
        raise TrajectoryError(f"{INVERT}: the inversion has left the range of numbers. Load the model with weight_dtype fp32 "
                              "or bf16, or use more steps.")
    return Trajectory(states, levels_down, source, digest)


def _resume(path: Path, states: Tensor, node_id: str | None) -> int:
    """Fill in the states of an interrupted inversion; the number of steps that are done."""
    try:
        found = trajectory.load(path)
        if found.states.shape[1:] != states.shape[1:] or len(found.states) > len(states):
            raise TrajectoryError(f"'{path}' holds {list(found.states.shape)} values, this inversion {list(states.shape)}.")
    except FileNotFoundError:
        return 0
    except TrajectoryError as error:
        report.warn(f"{INVERT}: what an interrupted inversion left cannot be used, it starts anew. {error}", node_id)
        return 0
    states[:len(found.states)] = found.states
    report.log.info("FramePainter: inversion goes on after %d of %d steps", found.reached, found.steps)
    return found.reached


def _keep(path: Path, done: Trajectory, node_id: str | None) -> bool:
    """Write what is done so far; whether that worked. The run itself needs no file."""
    try:
        trajectory.save(path, done)
    except TrajectoryError as error:
        report.warn(f"{INVERT}: this inversion cannot be resumed if it is interrupted, as {error}", node_id)
        return False
    return True


def full_noise(sigma: float) -> float:
    """Deviation of a LATENT that holds unit noise at full strength of a level, as start_latent gives it."""
    return math.sqrt(sigma**2 + 1.0) / comfy.supported_models.SVD_img2vid.latent_format().scale_factor


def start_latent(found: Trajectory) -> dict[str, Tensor]:
    """The LATENT that sampling starts from with added noise turned off: inverted noise * sqrt(sigma_0^2 + 1)."""
    return {"samples": comfy.supported_models.SVD_img2vid.latent_format().process_out(found.states[-1])}
