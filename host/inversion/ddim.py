"""Inverting a video on an inflated Stable Diffusion 1.x model, and the embeddings with which guided sampling reproduces it
(Video-P2P).

States of a trajectory are what ComfyUI's samplers hold, latents / sqrt(a); `core.ddim.latents` gives DDIM's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core import ddim
from ...core.atomic import PARTIAL, WriteError, remove
from ...core.ddim import Schedule
from ...core.digest import digest
from ...core.edm import deviation
from ...core.inversion import null_text
from ...core.inversion.ddim import invert_ddim
from ...core.inversion.null_text import NullText, NullTextError, NullTextSettings
from ...core.inversion.trajectory import SourceConditioning, Trajectory, TrajectoryError
from .. import report
from ..attention.inflated import network_digest
from ..conditioning import check_latent
from ..models.network import check_embedding
from ..training.inflated import copy_of
from ..training.run import differentiable, free_device
from .kept import Start, run_kept

UNSUPPORTED = ("control", "gligen", "area", "mask")  # parts of a conditioning that a trajectory does not keep


def text_of(conditioning: list, name: str) -> Tensor:
    """The embedding (1, K, C) of a CONDITIONING that holds one prompt.

    Raises:
        TrajectoryError: several prompts, or parts that a trajectory does not keep.
    """
    if len(conditioning) != 1:
        raise TrajectoryError(f"'{name}' holds {len(conditioning)} conditionings joined; exactly one is needed. Connect "
                              "CLIP Text Encode directly.")
    embedding, extra = conditioning[0]
    more = [key for key in UNSUPPORTED if extra.get(key) is not None]
    if more or embedding is None or len(embedding) != 1:
        what = f"carries {', '.join(more)}" if more else "is not one prompt's embedding"
        raise TrajectoryError(f"'{name}' {what}, which an inversion cannot keep. Connect CLIP Text Encode directly.")
    return embedding.detach().float().cpu().clone()


def invert(model: ModelPatcher, positive: list, latent: dict[str, Any], steps: int, folder: Path | None = None) -> Trajectory:
    """Invert a video with the source prompt and without guidance.

    Args:
        model: inflated.
        latent: LATENT of the video, [frames, 4, h, w].
        steps: N.
        folder: where to keep what is done so far, and to look for the remains of an interrupted inversion of the same video;
            None keeps nothing.

    Raises:
        WrongModel, TrajectoryError: see the message.
    """
    identity = network_digest(model)
    source = SourceConditioning(text_of(positive, "positive"), torch.zeros(0), {})
    check_embedding(model, positive, "positive")
    try:
        sigmas = Schedule(steps).sigmas
    except ValueError as error:
        raise TrajectoryError(f"'steps' does not work: {error}.") from None
    samples = check_latent(latent, "Stable Diffusion 1.x", "Connect VAE Encode with the checkpoint's VAE.")
    held = samples * deviation(sigmas[-1])
    start = Start(held, sigmas, source, identity)
    return run_kept(model, positive, start, list(reversed(sigmas)), invert_ddim, folder)


def start_latent(found: Trajectory) -> dict[str, Tensor]:
    """The LATENT that sampling starts from with added noise turned off."""
    return {"samples": comfy.supported_models.SD15.latent_format().process_out(found.states[-1])}


def latents_of(found: Trajectory) -> Tensor:
    """(N + 1, F, 4, h, w) DDIM's latents of a trajectory, the clean video first.

    Raises:
        TrajectoryError: it was not made by `invert`.
    """
    if not found.reached == found.steps < ddim.TRAIN_STEPS or found.sigmas != Schedule(found.steps).sigmas:
        raise TrajectoryError("'trajectory' does not hold all steps of a DDIM inversion. Connect Invert DDIM.")
    return ddim.latents(found.states, found.levels)


def optimise(model: ModelPatcher, found: Trajectory, negative: list, settings: NullTextSettings = NullTextSettings(),  # noqa: B008
             precision: str = "fp32", checkpointing: bool = False, folder: Path | None = None) -> NullText:
    """Null-text optimisation along a trajectory. It works on a copy of the network, as the host's cannot be differentiated.

    Args:
        model: the one that the trajectory was made with.
        negative: CONDITIONING of the empty prompt.
        precision: of the arithmetic, "fp32", "bf16" or "fp16".
        checkpointing: less memory, a third more work.
        folder: where to keep what is done so far, and to look for the remains of an interrupted one; None keeps nothing.

    Raises:
        WrongModel, TrajectoryError: see the message.
    """
    identity = network_digest(model)
    if found.model != identity:
        raise TrajectoryError("'trajectory' was made with another model than 'model'. Connect the model that went "
                              "into Invert DDIM, or invert again.")
    trajectory, empty = latents_of(found), text_of(negative, "negative")
    check_embedding(model, negative, "negative")
    key = digest(identity, found.states, found.conditioning.embedding, empty, settings, precision)
    path = None if folder is None else folder / f"{key}.null_text{PARTIAL}.safetensors"
    state = _resume(path, key)
    steps = report.Steps(found.steps)
    for _ in range(state.done):
        steps.step()
    keep = path is not None

    def after(done: NullText) -> None:
        nonlocal keep
        if keep:
            keep = _keep(path, done, key)
        steps.step()

    device = free_device()
    with differentiable():
        network = copy_of(model, precision, checkpointing).to(device)
        text, empty, trajectory = (t.clone().to(device) for t in (found.conditioning.embedding, empty, trajectory))
        state = NullText([t.to(device) for t in state.embeddings], [t.to(device) for t in state.latents], state.losses)
        out = null_text.optimise(network, trajectory, Schedule(found.steps), text, empty, settings, state, after,
                                 mm.throw_exception_if_processing_interrupted)
    if path is not None:
        remove(path)
    return NullText([t.cpu() for t in out.embeddings], [t.cpu() for t in out.latents], out.losses, found.digest())


def _resume(path: Path | None, key: str) -> NullText:
    """What an interrupted optimisation left, or nothing."""
    try:
        return NullText() if path is None else null_text.load(path, key)
    except FileNotFoundError:
        return NullText()
    except NullTextError as error:
        report.warn(f"an interrupted optimisation cannot be continued and starts from the beginning. {error}")
        return NullText()


def _keep(path: Path, state: NullText, key: str) -> bool:
    """Save what is done so far. Returns False if that failed."""
    try:
        null_text.save(path, state, key)
    except WriteError as error:
        report.warn(f"this optimisation cannot be resumed if it is interrupted, as {error}")
        return False
    return True
