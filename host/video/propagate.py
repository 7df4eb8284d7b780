"""The long-video job: carry an edited first frame through a video, clip by clip (I2VEdit, section 4 and Appendix C).

For each clip: motion LoRA (trained, or the shared one), inversion, sampling with attention injection, and its last frame starts
the next. Every stage lies on the disk: a killed job resumes where it was, and other edits of the same video share LoRA and
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
from ...core.video import drift, geometry
from ...core.video.clips import ClipPlan, joined
from ...core.video.store import Store
from ..conditioning import ClipStart
from ..network import multiple, svd_layout
from ..vae import BY_SENDER
from .kept import Models
from .stages import CARRIES, LORAS, Footage, Settings, Stages

__all__ = ["CARRIES", "LORAS", "Job", "Models", "Result", "Settings"]
SAME_SHAPE = 0.02  # relative difference of aspect ratios that the edited frame may have


class Result(NamedTuple):
    """frames: (N', H, W, 3).  clips: each clip's frames at working size, its first frames included.  drift: one entry a clip.
    stages: what was done and what was taken from the disk, in order."""

    frames: Tensor
    clips: list[Tensor]
    drift: list[drift.Drift]
    stages: list[str]


class Job:
    """One video and one edited first frame.

    Args:
        frames: (N, H, W, 3) the whole video.  edited: (1, H', W', 3) its first used frame, edited by any tool.
        folder: of the job's stages, shared by all jobs.
        tell: told what is being done, as a line.

    Raises:
        WrongModel, ValueError: models, sizes or plan do not fit together.
    """

    def __init__(self, models: Models, frames: Tensor, edited: Tensor, plan: ClipPlan, settings: Settings, folder: Path,
                 tell: Callable[[str], None] | None = None):
        svd_layout(models.model)
        check_inputs(frames, edited, plan, settings, multiple(models.model))
        self.plan, self.settings, self.tell = plan, settings, tell
        self.fit = geometry.fit(*frames.shape[1:3], (settings.height, settings.width), settings.keep_aspect)
        footage = Footage(geometry.to_working(frames[list(plan.frames)][..., :3], self.fit),
                          edited_frame(edited, frames.shape[1:3], self.fit), plan)
        self.lines: list[str] = []
        self.store = Store(folder, self._told)
        self.stages = Stages(models, footage, settings, self.store, self._told)

    def run(self) -> Result:
        """All clips, one after another.

        Raises:
            WriteError, TrajectoryError, StateError, NonFinite, ValueError: see there; finished stages are kept.
        """
        self.store.sweep()
        clips: list[Tensor] = []
        start = ClipStart(self.stages.footage.edited)
        for number in range(len(self.plan.clips)):
            mm.throw_exception_if_processing_interrupted()
            done = self.stages.edit(number, start)
            clips.append(done["frames"].float() / 255)
            if number + 1 < len(self.plan.clips):
                start = self._next_start(number, clips[-1], done["latents"])
        frames = torch.stack(joined(self.plan, clips))
        measured = [drift.drift(clip, self.stages.footage.expected_colours(i)) for i, clip in enumerate(clips)]
        return Result(geometry.from_working(frames, self.fit), clips, measured, self.lines)

    def _next_start(self, number: int, frames: Tensor, latents: Tensor) -> ClipStart:
        """The frame of a clip that the next one begins with: with overlap 1 the last, with 2 the one before."""
        at = len(frames) - max(1, self.plan.dropped(number + 1))
        carried = latents[at:at + 1].clone() if self.settings.carry == "latent" else None
        return ClipStart(frames[at:at + 1].clone(), carried)

    def _told(self, line: str) -> None:
        self.lines.append(line)
        if self.tell is not None:
            self.tell(line)


def check_inputs(frames: Tensor, edited: Tensor, plan: ClipPlan, settings: Settings, step: int) -> None:
    """Refuse what does not fit together.

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


def edited_frame(edited: Tensor, size: tuple[int, int], fit: geometry.Fit) -> Tensor:
    """The edited frame, of any size, brought to the video's (H, W) and fitted as the video is: (1, 8 h, 8 w, 3)."""
    given = edited[:1, ..., :3].movedim(-1, 1).float()
    if given.shape[-2:] != tuple(size):
        given = torch.nn.functional.interpolate(given, size=size, mode="bilinear", antialias=True)
    return geometry.to_working(given.movedim(1, -1).clamp(0, 1), fit)
