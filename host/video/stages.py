"""The stages of the long-video job: motion LoRA, inversion and edit of a clip (I2VEdit, sections 4.1 and 4.2).

Every stage's result is saved on the disk under a digest of its inputs, so the same stage is never computed twice. A stage computes
what it needs from other stages itself, so they may be called in any order.

Legend: N frames of the video, T of a clip, h w latent size; pictures are at working size, 8 h x 8 w, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.atomic import remove
from ...core.edm import karras_sigmas
from ...core.inversion import condition, sarp
from ...core.inversion.trajectory import Trajectory
from ...core.training.motion_lora.presets import MotionSettings
from ...core.training.state import StateError
from ...core.video import drift, geometry
from ...core.video.footage import Footage
from ...core.video.store import Store
from .. import report
from ..attention import injection, skip_interval
from ..attention.injection_run import Settings as InjectionSettings
from ..conditioning import ClipStart, MicroConds, edited_conditioning, source_conditioning
from ..inversion import edm
from ..training import motion_lora
from ..training.run import RunCallbacks
from ..vae import decode
from ..weights.motion_lora import with_lora
from .kept import Kept, Key, Keys, Models, Trajectories

LORAS = ("one for all clips", "one a clip", "none", "as published")
ONE_EACH = (LORAS[1], LORAS[3])
CARRIES = ("latent", "pixels")
DRAW = "second of two"  # of the edit's noise; another one is another result


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
    match: InjectionSettings = field(default_factory=InjectionSettings)
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

    def numbers(self, fps_id: float) -> MicroConds:
        """The micro-conditioning numbers, as the network gets them."""
        return MicroConds(fps_id, self.motion_bucket, self.augmentation)


class Stages:
    """The stages of one job.

    Args:
        told: told what was done, as a line.  outside: train the motion LoRA outside the footage's change alone.
    """

    def __init__(self, models: Models, footage: Footage, settings: Settings, store: Store, told: Callable[[str], None],
                 outside: bool = False):
        self.models, self.footage, self.settings, self.told, self.outside = models, footage, settings, told, outside
        self.keys, self.kept, self.trajectories = Keys(models), Kept(store, told), Trajectories(store, told)
        if self.keys.refusal():
            told(self.keys.refusal())
        self._loras: dict[int, dict[str, Tensor]] = {}
        self._first_inversion: Trajectory | None = None
        self._first_states: Tensor | None = None

    # ---- motion LoRA ----

    def lora(self, number: int) -> dict[str, Tensor]:
        """The motion LoRA that a clip is edited with. The first and the last one stay in memory."""
        which = number if self.settings.lora in ONE_EACH else 0
        if which not in self._loras:
            past = self._past(which)
            motion = replace(self.settings.motion, height=self.settings.height, width=self.settings.width)
            change = {"change": self.footage.change_in(which)} if self.outside else {}
            key = self.keys.of_training({"frames": self.footage.clip(which)}, {**motion.identity()}, motion.steps,
                                        motion.learning_rate, motion.seed, {} if past is None else {"past": past.states[-1]},
                                        *([change] if change else []))
            found = self.kept.result("lora", key, f"clip {which + 1}: motion LoRA",
                                     lambda: self._trained(which, key, motion, past), usable=motion_lora.usable)
            self._loras = {number: lora for number, lora in self._loras.items() if number == 0} | {which: found}
        return self._loras[which]

    def _trained(self, which: int, key: Key, motion: MotionSettings, past: Trajectory | None) -> dict[str, Tensor]:
        change = geometry.masks_to_working(self.footage.change_in(which), self.footage.fit) if self.outside else None
        inputs = motion_lora.MotionInputs(*self.models, self.footage.clip(which), change)
        bar = report.Steps(motion.steps)
        callbacks = RunCallbacks(mm.throw_exception_if_processing_interrupted, stepped=lambda step: bar.show(step.step))
        with self.kept.folder("training", key) as folder:
            try:
                finished = motion_lora.run(inputs, motion, folder, callbacks, past)
            except StateError as error:  # its states are damaged; nothing else could be done about them than what is done here
                self.told(f"clip {which + 1}: {error} The motion LoRA is trained from the beginning.")
                remove(folder)
                finished = motion_lora.run(inputs, motion, folder, callbacks, past)
        self.told(f"clip {which + 1}: motion LoRA trained, {finished.steps} steps")
        return finished.tensors

    # ---- inversion ----

    def inversion(self, number: int) -> Trajectory:
        """The trajectory of a clip's source. Clip 0's stays in memory, as every later clip may need it."""
        if number == 0 and self._first_inversion is not None:
            return self._first_inversion
        settings, past = self.settings, self._past(number)
        key = self.keys.of_sampling({"frames": self.footage.clip(number)}, settings.steps, settings.sarp_threshold,
                                    settings.sarp_scale, settings.augmentation, settings.motion_bucket, settings.seed, number,
                                    {} if past is None else {"past": past.states[-1]})
        found = self.kept.result("inversion", key, f"clip {number + 1}: inversion", lambda: self._inverted(number, key, past),
                                 self.trajectories)
        if number == 0:
            self._first_inversion = found
        return found

    def _past(self, number: int) -> Trajectory | None:
        """Clip 0's trajectory where a clip sees its keys and values."""
        return self.inversion(0) if number and self.settings.skip_interval else None

    def _inverted(self, number: int, key: Key, past: Trajectory | None) -> Trajectory:
        settings, models = self.settings, self.models
        generator = torch.Generator().manual_seed(settings.seed + number)
        pictures, _ = sarp.perturb_frames(self.footage.clip(number), generator, settings.sarp_threshold, settings.sarp_scale)
        noise = condition.pixel_noise(*pictures.clip.shape[1:3], generator)
        positive, latents = source_conditioning(models.clip_vision, models.vae, pictures,
                                                settings.numbers(condition.FPS_INVERSION), noise)
        model = models.model if past is None else skip_interval.remember_inversion(models.model, past)
        with self.kept.folder("inverting", key) as folder:
            found = edm.invert(model, positive, {"samples": latents}, self.sigmas(), folder if key.name else None)
            if key.name:
                remove(folder)
        self.told(f"clip {number + 1}: inverted, {settings.steps} steps")
        return found

    def sigmas(self) -> Tensor:
        """The schedule of inversion and sampling."""
        return torch.tensor(karras_sigmas(self.settings.steps))

    # ---- edit ----

    def edit(self, number: int, start: ClipStart) -> dict[str, Tensor]:
        """A clip's edit: `latents` (T, 4, h, w), `frames` (T, 8 h, 8 w, 3) uint8, and of the first clip `states`
        (steps, T, 4, h, w), what the network saw.

        Args:
            start: what the clip begins with; clip 0 begins with the edited frame.
        """
        settings = self.settings
        lora = None if settings.lora == LORAS[2] else self.lora(number)
        source = self.inversion(number)
        begun = {n: t for n, t in start._asdict().items() if t is not None}
        key = self.keys.of_sampling(
            {"start": begun, "first": self.footage.edited, "states": source.states[-1]}, lora or {},
            {n: v for n, v in asdict(settings).items() if n not in ("motion", "lora")}, number, DRAW,
            *([{"past": self.lora(0)}] if self._own_past(number) else []), changed=True)
        found = self.kept.result("edit", key, f"clip {number + 1}: edit", lambda: self._edited(number, start, source, lora))
        if number == 0:
            self._first_states = found.get("states")
        return found

    def _edited(self, number: int, start: ClipStart, source: Trajectory,
                lora: dict[str, Tensor] | None) -> dict[str, Tensor]:
        settings, first = self.settings, number == 0
        past = self._past_edit() if settings.skip_interval and not first else None
        model = self._model(source, lora, past)
        positive, negative = self._conditioning(number, start)
        samples = edm.start_latent(source)["samples"]
        bar = report.Steps(settings.steps)
        states: list[Tensor] = []

        def stepped(step: int, _: Tensor, x: Tensor, total: int) -> None:
            if first and settings.skip_interval:
                states.append(x.detach().float().cpu())
            bar.reach(step + 1, total)

        latents = comfy.sample.sample_custom(
            model, torch.zeros_like(samples), settings.guidance, comfy.samplers.sampler_object("euler"), self.sigmas(), positive,
            negative, samples, callback=stepped, disable_pbar=True, seed=settings.seed)
        frames = decode(self.models.vae, latents)
        if settings.colour_match and not first:
            frames = drift.match_colour(frames, self.footage.expected_colours(number), settings.colour_match)
        self.told(f"clip {number + 1}: edited, {settings.steps} steps")
        done = {"latents": latents.float().cpu(), "frames": (frames.clamp(0, 1) * 255).round().byte()}
        return {**done, "states": torch.stack(states)} if states else done

    def _model(self, source: Trajectory, lora: dict[str, Tensor] | None,
               past: skip_interval.PastEdit | None) -> ModelPatcher:
        settings, model = self.settings, self.models.model
        if lora is not None:
            model = with_lora(model, lora, settings.lora_strength)
        if settings.matching:
            model = injection.inject_attention(model, source, settings.match, source=self.models.model)
        if past is not None:
            model = skip_interval.remember_edit(model, past)
        return linear_guidance(model, 1.0)

    def _own_past(self, number: int) -> bool:
        """Whether clip 0's keys and values beside a clip come from clip 0's own network, as published."""
        return number > 0 and self.settings.skip_interval and self.settings.lora == LORAS[3]

    def _past_edit(self) -> skip_interval.PastEdit:
        """Clip 0's edit, as a later clip's temporal attention sees it."""
        start = ClipStart(self.footage.edited)
        if self._first_states is None:
            self.edit(0, start)
        network = None
        if self._own_past(1):
            model = self.models.model
            network = skip_interval.OwnNetwork(model, with_lora(model, self.lora(0), self.settings.lora_strength))
        return skip_interval.PastEdit(self._first_states, *self._conditioning(0, start), self.inversion(0), network)

    def _conditioning(self, number: int, start: ClipStart) -> tuple[list, list]:
        settings, models = self.settings, self.models
        generator = torch.Generator().manual_seed(settings.seed + 1000 + number)
        noise = condition.latent_noise(settings.height // 8, settings.width // 8, generator)
        anchor = (self.footage.edited, settings.anchor) if settings.anchor and number else None
        return edited_conditioning(models.clip_vision, models.vae, start, settings.numbers(settings.fps - 1), noise, anchor)


def linear_guidance(model: ModelPatcher, lowest: float) -> ModelPatcher:
    """ComfyUI's own linear guidance over frames, on a clone."""
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance  # not importable before the host has set itself up

    return VideoLinearCFGGuidance().patch(model, lowest)[0]
