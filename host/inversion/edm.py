"""Inverting a clip through the host's own sampling path, and running the source network again along the way.

The host hands a sampler `latents * 0.18215` and takes the state back divided by that; "model space" below means multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.inversion import trajectory
from ...core.inversion.euler import invert_euler
from ...core.inversion.schedule import inversion_levels
from ...core.inversion.trajectory import Trajectory, TrajectoryError
from .. import report
from ..conditioning import check_latent
from ..network import model_digest, svd_layout
from .source import run_source, source_of

INVERT = "Invert EDM"


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
