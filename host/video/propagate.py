"""The long-video job: carry an edited first frame through a video, clip by clip (I2VEdit, sections 4 and 5.3, Appendix C).

For each clip: motion LoRA (trained, or the shared one), inversion, sampling with matched attention, and its last frame starts
the next. Every stage's result lies on the disk under a digest of what went into it, so an equal stage is never done twice:
a killed job goes on where it was, and other edits of the same video share LoRA and inversion.

Legend: N frames of the video, T of a clip, H W pixels of the video, h w latent size.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.digest import digest
from ...core.edm import karras_sigmas
from ...core.inversion import condition, sarp, trajectory
from ...core.training.motion_lora.presets import MotionSettings
from ...core.video import drift, geometry
from ...core.video.clips import ClipPlan, joined
from ...core.video.store import Store
from ..attention import injection, skip_interval
from ..attention.injection_run import Settings
from ..conditioning import clip_embedding, source_conditioning, svd_conditioning
from ..inversion import edm
from ..network import model_digest, multiple, svd_layout
from ..report import Steps
from ..training import motion_lora
from ..training.run import Watch
from ..weights.motion_lora import with_lora

LORAS = ("one for all clips", "one a clip", "none")
CARRIES = ("latent", "pixels")


@dataclass(frozen=True)
class Settings:
    """Of a job; defaults as released unless said otherwise."""

    height: int                         # Working size in pixels.
    width: int
    keep_aspect: bool = True
    steps: int = 25
    guidance: float = 2.0               # At the last frame, linear from 1 at the first.
    lora: str = LORAS[0]
    lora_strength: float = 1.0
    motion: MotionSettings = MotionSettings()
    match: Settings = field(default_factory=Settings)
    matching: bool = True
    sarp_threshold: float = sarp.THRESHOLD
    sarp_scale: float = sarp.SCALE
    carry: str = CARRIES[0]             # What starts the next clip: the last latent, or the last frame through the VAE.
    colour_match: float = 0.0           # Pulls a later clip's colours to what the first edit did to the source's. Ours.
    skip_interval: bool = True          # Later clips' temporal attention sees clip 0's keys and values, too.
    anchor: float = 0.0                 # Share of the first edit's image embedding in later clips' conditioning. Ours.
    fps: float = 7.0
    augmentation: float = condition.AUGMENTATION
    motion_bucket: float = condition.MOTION_BUCKET
    seed: int = 0


class Models(NamedTuple):
    """What a job runs on; only read."""

    model: ModelPatcher
    clip_vision: Any
    vae: Any


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
    """

    def __init__(self, models: Models, frames: Tensor, edited: Tensor, plan: ClipPlan, settings: Settings, folder: Path,
                 tell: Callable[[str], None] | None = None):
        svd_layout(models.model)
        self.models, self.plan, self.settings = models, plan, settings
        self.store = Store(folder, tell)
        self.stages: list[str] = []
        self._inversions: dict[str, trajectory.Trajectory] = {}
        self._first_states: Tensor | None = None
        self.tell = tell
        step = multiple(models.model)
        if settings.height % step or settings.width % step:
            raise ValueError(f"{settings.width} x {settings.height} pixels do not fit this network; width and height must "
                             f"be multiples of {step}.")
        if plan.frames[-1] >= len(frames):
            raise ValueError(f"the plan uses frame {plan.frames[-1]}, 'frames' has {len(frames)}. Make the plan from the "
                             "same frames.")
        self.fit = geometry.fit(*frames.shape[1:3], (settings.height, settings.width), settings.keep_aspect)
        self.video = geometry.to_working(frames[list(plan.frames)][..., :3], self.fit)
        ratio = (edited.shape[2] / edited.shape[1]) / (frames.shape[2] / frames.shape[1])
        if abs(ratio - 1) > 0.02:
            raise ValueError(f"'edited' is {edited.shape[2]} x {edited.shape[1]}, the video {frames.shape[2]} x "
                             f"{frames.shape[1]}; the aspect ratios differ. Edit the first frame at its own size.")
        given = edited[:1, ..., :3].movedim(-1, 1).float()
        if given.shape[-2:] != frames.shape[1:3]:
            given = torch.nn.functional.interpolate(given, size=frames.shape[1:3], mode="bilinear", antialias=True)
        self.edited = geometry.to_working(given.movedim(1, -1).clamp(0, 1), self.fit)
        self.model_key = digest(model_digest(models.model, True), models.vae.first_stage_model.state_dict(),
                                models.clip_vision.model.state_dict())

    def clip(self, number: int) -> Tensor:
        """(T, h*8, w*8, 3) source frames of a clip at working size."""
        begin, end = self.plan.clips[number]
        return self.video[begin:end]

    # ---- stages ----

    def lora(self, number: int) -> dict[str, Tensor]:
        """The motion LoRA that a clip is edited with."""
        settings = self.settings
        which = number if settings.lora == LORAS[1] else 0
        motion = replace(settings.motion, height=settings.height, width=settings.width)
        past = self.inversion(0) if which and settings.skip_interval else None
        key = digest(self.model_key, {"frames": self.clip(which)}, {**motion.identity()}, motion.steps, motion.learning_rate,
                     motion.seed, {} if past is None else {"past": past.states[-1]})
        found = self._found("lora", key, f"clip {which + 1}: motion LoRA")
        if found is not None:
            return found
        inputs = motion_lora.MotionInputs(self.models.model, self.models.clip_vision, self.models.vae, self.clip(which))
        steps = Steps(motion.steps)
        watch = Watch(None, lambda step: steps.reach(step.step), None,
                      mm.throw_exception_if_processing_interrupted)
        finished = motion_lora.run(inputs, motion, self.store.folder / f"training-{key}", watch, past)
        self.store.put("lora", key, finished.lora)
        self._told(f"clip {which + 1}: motion LoRA trained, {finished.steps} steps")
        return finished.lora

    def inversion(self, number: int) -> trajectory.Trajectory:
        """The trajectory of a clip's source."""
        settings, clip = self.settings, self.clip(number)
        past = self.inversion(0) if number and settings.skip_interval else None
        key = digest(self.model_key, {"frames": clip}, settings.steps, settings.sarp_threshold, settings.sarp_scale,
                     settings.augmentation, settings.motion_bucket, settings.seed, number,
                     {} if past is None else {"past": past.states[-1]})
        if key in self._inversions:
            return self._inversions[key]
        path = self.store.path("inversion", key)
        if path.is_file():
            try:
                self._inversions[key] = trajectory.load(path)
                self._told(f"clip {number + 1}: inversion taken from the disk")
                return self._inversions[key]
            except trajectory.TrajectoryError as error:
                self._told(f"clip {number + 1}: {error} It is inverted again.")
        generator = torch.Generator().manual_seed(settings.seed + number)
        pixels = clip.movedim(-1, 1) * 2 - 1
        noise = torch.randn((len(clip) + sarp.COPIES, *pixels.shape[1:]), generator=generator)
        perturbed = sarp.perturb_clip(pixels, noise, settings.sarp_threshold, settings.sarp_scale)
        pictures = [((p + 1) / 2).movedim(1, -1) for p in (perturbed.clip, perturbed.first_frame, perturbed.key_frame)]
        noise = torch.randn((1, 3, *pixels.shape[-2:]), generator=generator)
        positive, latents = source_conditioning(
            self.models.clip_vision, self.models.vae, *pictures, condition.FPS_INVERSION, settings.motion_bucket,
            settings.augmentation, noise)
        model = self.models.model if past is None else skip_interval.remember_inversion(self.models.model, past)
        # What an interrupted inversion leaves does not say what it remembered, so it has a folder of its own.
        found = edm.invert(model, positive, {"samples": latents}, self.sigmas(), self.store.folder / f"inverting-{key}")
        shutil.rmtree(self.store.folder / f"inverting-{key}", ignore_errors=True)
        self.store.folder.mkdir(parents=True, exist_ok=True)
        trajectory.save(path, found)
        self._told(f"clip {number + 1}: inverted, {settings.steps} steps")
        self._inversions[key] = found
        return found

    def sigmas(self) -> Tensor:
        """The schedule of inversion and sampling."""
        return torch.tensor(karras_sigmas(self.settings.steps))

    def edit(self, number: int, start: dict[str, Tensor]) -> dict[str, Tensor]:
        """A clip's edit: `latents` (T, 4, h, w), `frames` (T, h*8, w*8, 3) uint8, and of the first clip `states`
        (steps, T, 4, h, w), what the network saw.

        Args:
            start: the picture it begins with, `picture` (1, h*8, w*8, 3), and `latent` (1, 4, h, w) if that is carried on.
        """
        settings = self.settings
        lora = None if settings.lora == LORAS[2] else self.lora(number)
        source = self.inversion(number)
        key = digest(self.model_key, {"start": start, "first": self.edited, "states": source.states[-1]}, lora or {},
                     {n: v for n, v in asdict(settings).items() if n not in ("motion", "lora")}, number)
        found = self._found("edit", key, f"clip {number + 1}: edit")
        if found is not None:
            self._first_states = found.get("states", self._first_states)
            return found
        positive, negative = self._conditioning(number, start)
        model = self.models.model
        if lora is not None:
            model = with_lora(model, lora, settings.lora_strength)
        if settings.matching:
            model = injection.match_attention(model, source, settings.match)
        if number and settings.skip_interval:
            before = self._conditioning(0, {"picture": self.edited})
            model = skip_interval.remember_edit(model, skip_interval.PastEdit(self._first_states, *before, self.inversion(0)))
        model = linear_guidance(model, 1.0)
        samples = edm.start_latent(source)["samples"]
        sampler = comfy.samplers.sampler_object("euler")
        steps = Steps(settings.steps)
        states: list[Tensor] = []

        def stepped(step: int, _: Tensor, x: Tensor, total: int) -> None:
            if number == 0 and settings.skip_interval:
                states.append(x.detach().float().cpu())
            steps.reach(step + 1, total)

        latents = comfy.sample.sample_custom(
            model, torch.zeros_like(samples), settings.guidance, sampler, self.sigmas(), positive, negative, samples,
            callback=stepped, disable_pbar=True, seed=settings.seed)
        frames = self._decode(latents)
        if settings.colour_match and number:
            frames = drift.match_colour(frames, self.expected_colours(number), settings.colour_match)
        done = {"latents": latents.float().cpu(), "frames": (frames.clamp(0, 1) * 255).round().byte().cpu()}
        if states:
            done["states"] = self._first_states = torch.stack(states)
        self.store.put("edit", key, done, {"clip": str(number + 1)})
        self._told(f"clip {number + 1}: edited, {settings.steps} steps")
        return done

    def _conditioning(self, number: int, start: dict[str, Tensor]) -> tuple[list, list]:
        settings, models = self.settings, self.models
        generator = torch.Generator().manual_seed(settings.seed + 1000 + number)
        latent = start.get("latent")
        if latent is None:
            latent = models.vae.encode(start["picture"])
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        embedding = clip_embedding(models.clip_vision, start["picture"])
        if settings.anchor and number:
            embedding = torch.lerp(embedding, clip_embedding(models.clip_vision, self.edited).to(embedding), settings.anchor)
        return svd_conditioning(embedding, condition.edit_condition(latent, noise, settings.augmentation), settings.fps - 1,
                                settings.motion_bucket, settings.augmentation)

    def _decode(self, latents: Tensor) -> Tensor:
        mm.throw_exception_if_processing_interrupted()
        return self.models.vae.decode(latents).float().cpu()

    def expected_colours(self, number: int) -> Tensor:
        """The source clip with the first edit's change of colour on it: what a clip without drift would look like."""
        source, first = self.clip(number), self.clip(0)[:1]
        gain = self.edited.std((0, 1, 2)) / first.std((0, 1, 2)).clamp_min(1e-4)
        shift = self.edited.mean((0, 1, 2)) - gain * first.mean((0, 1, 2))
        return source * gain + shift

    # ---- the whole ----

    def run(self) -> Result:
        """All clips, one after another.

        Raises:
            StoreError, TrajectoryError, StateError, NotANumber, ValueError: see there; finished stages are kept.
        """
        self.store.sweep()
        clips: list[Tensor] = []
        start: dict[str, Tensor] = {"picture": self.edited}
        for number in range(len(self.plan.clips)):
            mm.throw_exception_if_processing_interrupted()
            done = self.edit(number, start)
            clips.append(done["frames"].float() / 255)
            if number + 1 < len(self.plan.clips):
                # The next clip begins with a frame that this one ends with: with overlap 1 the last, with 2 the one before.
                at = len(clips[-1]) - max(1, self.plan.dropped(number + 1))
                start = {"picture": clips[-1][at:at + 1].clone()}
                if self.settings.carry == "latent":
                    start["latent"] = done["latents"][at:at + 1].clone()
        frames = torch.stack(joined(self.plan, clips))
        measured = [drift.drift(clip, self.expected_colours(i)) for i, clip in enumerate(clips)]
        return Result(geometry.from_working(frames, self.fit), clips, measured, self.stages)

    def _found(self, stage: str, key: str, name: str) -> dict[str, Tensor] | None:
        found = self.store.get(stage, key)
        if found is not None:
            self._told(f"{name} taken from the disk")
        return found

    def _told(self, line: str) -> None:
        self.stages.append(line)
        if self.tell is not None:
            self.tell(line)


def linear_guidance(model: ModelPatcher, lowest: float) -> ModelPatcher:
    """ComfyUI's own linear guidance over frames, on a clone."""
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance  # not importable before the host has set itself up

    return VideoLinearCFGGuidance().patch(model, lowest)[0]
