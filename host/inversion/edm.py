"""Inverting a clip through the host's own sampling path, and running the source network again along the way.

The host hands a sampler `latents * 0.18215` and takes the state back divided by that; "model space" below means multiplied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.supported_models
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.edm import deviation
from ...core.inversion.euler import invert_euler
from ...core.inversion.schedule import inversion_levels
from ...core.inversion.trajectory import Trajectory, TrajectoryError
from ..conditioning import check_latent
from ..models.earlier import sampled_digest
from ..models.identity import model_digest
from ..models.network import check_embedding, svd_layout
from ..source import source_of
from .kept import Start, run_kept


def invert(model: ModelPatcher, positive: list, latent: dict[str, Any], sigmas: Tensor, folder: Path | None = None) -> Trajectory:
    """Invert a clip.

    Args:
        model: an SVD model; its guidance is not used.
        positive: the source's conditioning.
        latent: LATENT of the clip, [frames, 4, h, w].
        sigmas: the levels of the sampling that is to undo it, descending.
        folder: where to keep what is done so far, and to look for the remains of an interrupted inversion of the same
            clip; None keeps nothing.

    Raises:
        WrongModel, TrajectoryError: see the message.
    """
    svd_layout(model)
    samples = check_latent(latent)
    source = source_of(positive, len(samples))
    check_embedding(model, positive, "positive")
    levels_down = tuple(float(s) for s in sigmas)
    try:
        levels = inversion_levels(levels_down)
    except ValueError as error:
        raise TrajectoryError(f"'sigmas' cannot be inverted: {error}. Connect Karras Scheduler or Basic "
                              "Scheduler.") from error
    start = Start(samples, levels_down, source, model_digest(model, patched=True), sampled_digest(model, patched=True))
    return run_kept(model, positive, start, levels, invert_euler, folder)


def full_noise(sigma: float) -> float:
    """Deviation of a LATENT that holds unit noise at full strength of a level, as start_latent gives it."""
    return deviation(sigma) / comfy.supported_models.SVD_img2vid.latent_format().scale_factor


def start_latent(found: Trajectory) -> dict[str, Tensor]:
    """The LATENT that sampling starts from with added noise turned off: inverted noise * sqrt(sigma_0^2 + 1)."""
    return {"samples": comfy.supported_models.SVD_img2vid.latent_format().process_out(found.states[-1])}
