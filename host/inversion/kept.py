"""Running an inversion through the host's sampling path, with every latent kept, so that it can resume after an interruption."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.atomic import PARTIAL, WriteError, remove
from ...core.inversion import trajectory
from ...core.inversion.trajectory import SourceConditioning, Trajectory, TrajectoryError
from .. import report
from ..models.identity import patches_of
from ..source import run_source

# (model, state, ascending levels, extra arguments, callback after each step, first step) -> last state
Integrate = Callable[[Any, Tensor, Tensor, dict, Callable[[dict], None], int], Tensor]


class Start(NamedTuple):
    """What an inversion starts from: latents (T, 4, h, w) as a LATENT holds them, the sampling's levels (descending), the
    source's conditioning, the network's digest, and the digest that an earlier version would have used."""

    latents: Tensor
    sigmas: tuple[float, ...]
    source: SourceConditioning
    model: str
    earlier: str = ""


def run_kept(model: ModelPatcher, positive: list, start: Start, levels: list[float], integrate: Integrate,
             folder: Path | None = None) -> Trajectory:
    """Run an inversion.

    Args:
        levels: ascending, one for each state.
        integrate: the method.
        folder: where to keep what is done so far, and to look for the remains of an interrupted inversion of the same clip;
            None keeps nothing.

    Raises:
        TrajectoryError: a step gave values that are not finite.
    """
    states = torch.zeros(len(levels), *start.latents.shape)
    first, partial = 0, None
    if folder is not None:
        partial = _partial(model, start, folder)
    if partial is not None:
        first = _resume(partial, states)
    keep = partial is not None
    preview = latent_preview.prepare_callback(model, len(levels) - 1)

    def sampler(model_k: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Callable | None,
                disable: bool | None) -> Tensor:
        if first == 0:
            states[0] = x.cpu()

        def after(step: dict) -> None:
            nonlocal keep
            states[step["i"] + 1] = step["next"].cpu()
            if not torch.isfinite(states[step["i"] + 1]).all():
                if partial is not None:
                    remove(partial)
                raise TrajectoryError(f"step {step['i'] + 1} of the inversion produced inf or NaN. Load the model with "
                                      "weight_dtype fp32 or bf16, or use more steps.")
            if keep:
                done = Trajectory(states[:step["i"] + 2], start.sigmas, start.source, start.model)
                keep = _keep(partial, done)
            if callback is not None:
                callback(step)
            mm.throw_exception_if_processing_interrupted()

        return integrate(model_k, states[first].to(x), sigmas, extra_args, after, first)

    run_source(model, positive, start.latents, levels, sampler, preview)
    if partial is not None:
        remove(partial)
    return Trajectory(states, start.sigmas, start.source, start.model)


def _partial(model: ModelPatcher, start: Start, folder: Path) -> Path | None:
    """Where an inversion keeps what is done so far; None if no name could tell it from another one."""
    patches = patches_of(model)
    if patches.unknown:
        report.warn(f"this inversion cannot be resumed if it is interrupted, as 'model' carries patches by other nodes that cannot "
                    f"be identified ({', '.join(patches.unknown)}).")
        return None

    def path(network: str) -> Path:
        return folder / f"{trajectory.identity(network, start.source, start.sigmas, start.latents)[:32]}{PARTIAL}.safetensors"

    partial, earlier = path(start.model + patches.digest), path(start.earlier)
    if start.earlier and not patches.digest and not partial.exists() and earlier.is_file():
        with contextlib.suppress(OSError):  # it starts from the beginning then
            earlier.replace(partial)
    return partial


def _resume(path: Path, states: Tensor) -> int:
    """Fill in the states of an interrupted inversion. Returns the number of steps that are done."""
    try:
        found = trajectory.load(path)
        if found.states.shape[1:] != states.shape[1:] or len(found.states) > len(states):
            raise TrajectoryError(f"'{path}' holds {list(found.states.shape)} values, this inversion {list(states.shape)}.")
    except FileNotFoundError:
        return 0
    except TrajectoryError as error:
        report.warn(f"what an interrupted inversion left cannot be used, so it starts from the beginning. {error}")
        return 0
    states[:len(found.states)] = found.states
    report.log.info("FramePainter: inversion resumes after %d of %d steps", found.reached, found.steps)
    return found.reached


def _keep(path: Path, done: Trajectory) -> bool:
    """Save the inversion so far. Returns False if that failed; the run itself needs no file."""
    try:
        trajectory.save(path, done)
    except WriteError as error:
        report.warn(f"this inversion cannot be resumed if it is interrupted, as {error}")
        return False
    return True
