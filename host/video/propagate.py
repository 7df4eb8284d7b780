"""The long-video job: carry an edited first frame through a video, clip by clip (I2VEdit, section 4 and Appendix C).

For each clip: motion LoRA (trained, or the shared one), inversion, sampling with attention injection, and its last frame starts
the next. Every stage is saved on the disk: a killed job resumes where it was, and other edits of the same video share LoRA and
inversion.

Legend: N frames of the video, T of a clip, H W pixels of the video, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import comfy.model_management as mm
import torch
from torch import Tensor

from ...core.finite import check_finite
from ...core.keeping.paste import keep_untouched
from ...core.keeping.video import weights_of_difference, weights_of_mask
from ...core.video import drift, geometry
from ...core.video.clips import ClipPlan, joined
from ...core.video.footage import Footage
from ...core.video.store import Store
from ..conditioning import ClipStart
from ..models.network import multiple, svd_layout
from ..vae import BY_SENDER
from .kept import Models
from .stages import CARRIES, LORAS, Settings, Stages

__all__ = ["CARRIES", "LORAS", "Change", "Job", "Models", "Result", "Settings"]
SAME_SHAPE = 0.02  # relative difference of aspect ratios that the edited frame may have


class Change(NamedTuple):
    """What is known about the edit's place, and how it is used.

    mask: (1, ...) for all frames, or one a frame of the video or of the plan, at any size; None is unknown.
    keep: the result has the video's own pixels outside the mask, or without one, where it does not differ from the video.
    train_outside: the motion LoRA does not learn what lies in the mask.
    """

    mask: Tensor | None = None
    keep: bool = False
    train_outside: bool = False


class Result(NamedTuple):
    """frames: (N', H, W, 3).  clips: each clip's frames at working size, its first frames included, uint8.  drift: one entry a
    clip.  stages: what was done and what was taken from the disk, in order."""

    frames: Tensor
    clips: list[Tensor]
    drift: list[drift.Drift]
    stages: list[str]


class Job:
    """One video and one edited first frame.

    Args:
        frames: (N, H, W, 3) the whole video.  edited: (1, H', W', 3) its first used frame, edited by any tool.
        folder: of the job's stages, shared by all jobs.  change: where the edit is, if that is known or wanted.
        tell: told what is being done, as a line.

    Raises:
        WrongModel, ValueError: models, sizes or plan do not fit together.
    """

    def __init__(self, models: Models, frames: Tensor, edited: Tensor, plan: ClipPlan, settings: Settings, folder: Path,
                 tell: Callable[[str], None] | None = None, change: Change = Change()):  # noqa: B008
        svd_layout(models.model)
        check_inputs(frames, edited, plan, settings, multiple(models.model))
        check_change(change, len(frames), len(plan.frames))
        self.plan, self.settings, self.tell, self.change = plan, settings, tell, change
        self.fit = geometry.fit(*frames.shape[1:3], (settings.height, settings.width), settings.keep_aspect)
        footage = Footage(frames[..., :3], edited_frame(edited, frames.shape[1:3], self.fit), plan, self.fit, change.mask)
        self.lines: list[str] = []
        self.store = Store(folder, self._told)
        self.stages = Stages(models, footage, settings, self.store, self._told, change.train_outside)

    def run(self) -> Result:
        """All clips, one after another.

        Raises:
            WriteError, TrajectoryError, StateError, NonFinite, ValueError: see there; finished stages are kept.
        """
        self.store.sweep()
        clips: list[Tensor] = []
        measured: list[drift.Drift] = []
        start = ClipStart(self.stages.footage.edited)
        for number in range(len(self.plan.clips)):
            mm.throw_exception_if_processing_interrupted()
            done = self.stages.edit(number, start)
            clips.append(done["frames"])
            measured.append(drift.drift(clips[-1].float() / 255, self.stages.footage.expected_colours(number)))
            if number + 1 < len(self.plan.clips):
                start = self._next_start(number, done["frames"], done["latents"])
        self.stages.footage.forget()
        return Result(self._at_the_videos_size(joined(self.plan, clips)), clips, measured, self.lines)

    def _at_the_videos_size(self, edited: list[Tensor]) -> Tensor:
        """Edited frames (8 h, 8 w, 3) uint8 -> (N', H, W, 3) of the video, one by one into the result."""
        footage = self.stages.footage
        out = torch.empty((len(edited), self.fit.height, self.fit.width, 3))
        for i, frame in enumerate(edited):
            mm.throw_exception_if_processing_interrupted()
            frame = frame.float() / 255
            out[i] = geometry.from_working(frame[None], self.fit)[0]
            if self.change.keep:
                source = footage.frame(i)
                weights = (weights_of_difference(frame, geometry.to_working(source[None], self.fit)[0], self.fit)
                           if footage.change is None else weights_of_mask(footage.change_of(i), self.fit))
                out[i] = keep_untouched(source, out[i], weights)
        return out

    def _next_start(self, number: int, frames: Tensor, latents: Tensor) -> ClipStart:
        """The frame of a clip that the next one begins with: with overlap 1 the last, with 2 the one before."""
        at = len(frames) - max(1, self.plan.dropped(number + 1))
        carried = latents[at:at + 1].clone() if self.settings.carry == "latent" else None
        return ClipStart(frames[at:at + 1].float() / 255, carried)

    def _told(self, line: str) -> None:
        self.lines.append(line)
        if self.tell is not None:
            self.tell(line)


def check_inputs(frames: Tensor, edited: Tensor, plan: ClipPlan, settings: Settings, step: int) -> None:
    """Refuse inputs that do not fit together.

    Args:
        step: pixels that the working size's sides must be multiples of.

    Raises:
        ValueError: the text names the node's input and the values.
        NotFinite: inf or NaN in the pictures.
    """
    if settings.height % step or settings.width % step:
        raise ValueError(f"{settings.width} x {settings.height} pixels do not fit this network; width and height must "
                         f"be multiples of {step}.")
    for name, pictures in (("frames", frames), ("edited", edited)):
        check_finite(f"'{name}'", {"pixels": pictures}, BY_SENDER)
    if plan.frames[-1] >= len(frames):
        raise ValueError(f"the plan uses frame {plan.frames[-1]}, 'frames' has {len(frames)}. Make the plan from the "
                         "same frames.")
    ratio = (edited.shape[2] / edited.shape[1]) / (frames.shape[2] / frames.shape[1])
    if abs(ratio - 1) > SAME_SHAPE:
        raise ValueError(f"'edited' is {edited.shape[2]} x {edited.shape[1]}, the video {frames.shape[2]} x "
                         f"{frames.shape[1]}; the aspect ratios differ. Edit the first frame at its own size.")


def check_change(change: Change, frames: int, used: int) -> None:
    """Refuse a mask of another number of frames than the video (`frames`) or the plan (`used`).

    Raises:
        ValueError: the text names the node's input and the values.
    """
    if change.train_outside and change.mask is None:
        raise ValueError("lora_outside_mask is on, but nothing tells what lies outside. Connect 'change_mask', or turn it off.")
    if change.mask is not None and len(change.mask) not in (1, frames, used):
        raise ValueError(f"'change_mask' has {len(change.mask)} masks, 'frames' has {frames} frames, of which the plan uses "
                         f"{used}. Give one mask for all frames, or one a frame.")


def edited_frame(edited: Tensor, size: tuple[int, int], fit: geometry.Fit) -> Tensor:
    """The edited frame, of any size, brought to the video's (H, W) and fitted as the video is: (1, 8 h, 8 w, 3)."""
    given = edited[:1, ..., :3].movedim(-1, 1).float()
    if given.shape[-2:] != tuple(size):
        given = torch.nn.functional.interpolate(given, size=size, mode="bilinear", antialias=True)
    return geometry.to_working(given.movedim(1, -1).clamp(0, 1), fit)
