"""A whole edit of one picture, as the example workflows make it, for commands that have no canvas."""

from __future__ import annotations

from typing import NamedTuple

import comfy.sample
import comfy.utils
from torch import Tensor

from ...core.placement import CELL, canvas_size, off_canvas
from ...core.signals.edit_signal import EditSignal
from ..conditioning import edit_conditioning
from ..sampling.guidance import set_guidance
from ..vae import decode
from ..weights.loading import Loaded
from .control import apply_control
from .drag import apply_drag


class EditSettings(NamedTuple):
    """As the example workflows have them: steps of Euler over Karras' levels, cfg at the first step, strength of the signal."""

    steps: int = 25
    cfg: float = 3.0
    strength: float = 0.8
    seed: int = 0
    semantics: str = "release"


def edit_picture(loaded: Loaded, picture: Tensor, signal: EditSignal, settings: EditSettings = EditSettings()) -> Tensor:  # noqa: B008
    """The edited picture, at the picture's own size.

    Args:
        picture: (1, H, W, 3) in [0, 1]. The network sees it on a canvas of about its size.

    Returns:
        (1, H, W, 3) in [0, 1].

    Raises:
        WrongModel: not an SVD model, or an encoder of another width.
        NotFinite: inf or NaN in what the model or the VAE makes.
    """
    height, width = picture.shape[1:3]
    whole = height % CELL == width % CELL == 0
    canvas = (height, width) if whole else canvas_size(height, width, height * width)
    given = edit_conditioning(loaded.clip_vision, loaded.vae, picture, *canvas, 6, 128, 0.02, settings.seed)
    if signal.kind == "drag":
        model = apply_drag(loaded.model, signal.points, settings.strength, 0.0, 1.0, signal.size or (height, width))
    else:
        model = apply_control(loaded.model, loaded.weights.encoder, signal.control, settings.strength, 0.0, 1.0, settings.semantics)
    model = set_guidance(model, "inverse square")
    empty = given.latent["samples"]
    sampled = comfy.sample.sample(model, comfy.sample.prepare_noise(empty, settings.seed), settings.steps, settings.cfg, "euler",
                                  "karras", given.positive, given.negative, empty, disable_pbar=True, seed=settings.seed)
    edited = off_canvas(decode(loaded.vae, sampled)[-1:], height, width)
    if edited.shape[1:3] != (height, width):
        edited = comfy.utils.common_upscale(edited.movedim(-1, 1), width, height, "lanczos", "disabled").movedim(1, -1)
    return edited.clamp(0, 1)
