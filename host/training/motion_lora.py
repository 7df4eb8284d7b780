"""A motion LoRA run: models and one clip in, states on the disk, an ordinary LoRA out (I2VEdit, section 4.1)."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import torch
from comfy.ldm.modules.attention import FeedForward
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file
from torch import Tensor
from torch.amp import autocast

from ...core.digest import digest
from ...core.inversion.schedule import sampling_step, source_step
from ...core.inversion.trajectory import Trajectory
from ...core.models.control_encoder import sinusoidal_embedding
from ...core.training import curve, loop
from ...core.training.examples import Examples
from ...core.training.in_parts import in_parts
from ...core.training.loop import NotANumber
from ...core.training.lora import add_lora, is_lora, lora_file, temporal_layers, without_lora
from ...core.training.motion_lora import objective
from ...core.training.motion_lora.presets import MotionSettings
from ...core.video import geometry
from .. import keys
from ..attention.skip_interval import Memory
from ..attention.watched import watch_plain
from ..conditioning import clip_embedding
from ..earlier import sampled_digest
from ..identity import model_digest, part_of, weights_of
from ..network import multiple, svd_layout
from ..report import warn
from ..weights.motion_lora import with_lora, write
from .copies import plain_unet
from .network import TrainingNetwork
from .progress import Progress, as_image, read_log
from .run import Watch, differentiable

FILE = "motion_lora.safetensors"


class Made(NamedTuple):
    """The node's outputs; pictures are (1, H, W, 3) in [0, 1]."""

    model: ModelPatcher
    lora: dict[str, Tensor]
    curve: Tensor
    previews: Tensor
    report: str


def train(inputs: MotionInputs, settings: MotionSettings, runs: Path, strength: float) -> Made:
    """Train a LoRA, or take the finished one of an equal run.

    Args:
        runs: folder of all runs; a run's own is named after a digest of models, frames and settings.

    Raises:
        ValueError: clip, models or state do not fit.
        NotANumber: the last good state is kept.
    """
    begun = time.time()
    folder = folder_of(inputs, settings, runs)
    file = folder / FILE
    if file.is_file():
        lora, what = load_file(str(file)), "taken from an equal run, finished earlier"
        steps, series = read_log(folder)
        previews = Progress(folder, settings.steps).last_preview()
    else:
        progress = Progress(folder, settings.steps)
        watch = Watch(None, progress.stepped, progress.preview, mm.throw_exception_if_processing_interrupted)
        try:
            finished = run(inputs, settings, folder, watch)
        except NotANumber as error:
            raise NotANumber(f"{error} States: '{folder}'.") from None
        lora = finished.lora
        write(file, lora)
        steps, series = read_log(folder)
        left_out = f"; {finished.left_out} steps gave no numbers and were left out" if finished.left_out else ""
        what = f"{finished.steps} steps{left_out}, this call {(time.time() - begun) / 60:.1f} min"
        previews = progress.last_preview()
    losses = [v for v in series.get("loss", []) if v == v]
    tail = losses[-max(1, len(losses) // 5):]
    report = "\n".join([what, f"loss, mean of the last fifth: {sum(tail) / max(1, len(tail)):.4g}", f"file: {file}"])
    model = with_lora(inputs.model, lora, strength)
    return Made(model, lora, as_image(curve.draw_curve(steps, series)), previews, report)


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LOSS_SCALE = 2.0**14  # the first factor for fp16
TOLERATED = 5         # steps in a row without numbers


class MotionInputs(NamedTuple):
    """What a run is made from. frames: (T, H, W, 3) in [0, 1], at least 2 of them."""

    model: ModelPatcher
    clip_vision: Any
    vae: Any
    frames: Tensor


class Finished(NamedTuple):
    """lora: in ComfyUI's form.  steps: of the whole run.  left_out: steps of this call that gave no numbers."""

    lora: dict[str, Tensor]
    steps: int
    left_out: int


def prepare(inputs: MotionInputs, settings: MotionSettings) -> objective.MotionClip:
    """The clip's latents, its first frame's latent and embedding.

    Raises:
        ValueError: fewer than two frames, or a size that the network cannot take.
    """
    frames = inputs.frames[..., :3]
    if len(frames) < 2:
        raise ValueError(f"'frames' has {len(frames)} frame; motion needs at least 2.")
    step = multiple(inputs.model)
    size = (settings.height, settings.width) if settings.height else tuple(
        max(step, side // step * step) for side in frames.shape[1:3])
    if any(side % step for side in size):
        raise ValueError(f"{size[1]} x {size[0]} pixels do not fit this network; width and height must be multiples of "
                         f"{step}.")
    with torch.inference_mode():
        shown = geometry.to_working(frames, geometry.fit(*frames.shape[1:3], size, settings.keep_aspect))
        encoded = []
        for i in range(len(shown)):
            mm.throw_exception_if_processing_interrupted()
            encoded.append(inputs.vae.encode(shown[i:i + 1]).float().cpu())
        latents = torch.cat(encoded)
        embedding = clip_embedding(inputs.clip_vision, shown[:1]).float().cpu()
        scaled = inputs.model.model.process_latent_in(latents)
    return objective.MotionClip(scaled.clone(), latents[0].clone(), embedding[0].clone())


def folder_of(inputs: MotionInputs, settings: MotionSettings, runs: Path) -> Path:
    """A run's folder, named after everything that decides its result. One that an earlier version made is taken over.

    Where a model carries something that cannot be identified it is a new folder each time.
    """
    parts = [weights_of(inputs.model), part_of(inputs.vae), part_of(inputs.clip_vision)]
    given = [{"frames": inputs.frames}, settings.identity(), settings.steps, settings.learning_rate, settings.seed]
    unknown = [name for part in parts for name in part.unknown]
    if unknown:
        warn(f"the models carry patches by other nodes that cannot be identified ({', '.join(unknown)}), so no earlier run can be "
             "continued, nor this one later.")
        return runs / digest(uuid.uuid4())
    folder = runs / digest(*(part.digest for part in parts), *given)
    if runs.is_dir() and not folder.exists():
        earlier = runs / digest(sampled_digest(inputs.model, True), inputs.vae.first_stage_model.state_dict(),
                                inputs.clip_vision.model.state_dict(), *given)
        if earlier.is_dir():
            earlier.rename(folder)
    return folder


def make_network(model: ModelPatcher, settings: MotionSettings, device: torch.device | str = "cpu",
                 watched: bool = False) -> TrainingNetwork:
    """A frozen network in the run's precision with a new LoRA on its temporal layers, which trains in fp32.

    Args:
        watched: let a memory add keys and values to its temporal self-attention.

    Raises:
        WrongModel: not an SVD model.
    """
    svd_layout(model)
    network = TrainingNetwork(plain_unet(model, DTYPES[settings.precision]), checkpointing=settings.checkpointing)
    if watched:
        watch_plain(network.unet)
    network.requires_grad_(False)
    add_lora(network.unet, settings.rank, settings.seed, layers=temporal_layers(network.unet), normal=True,
             drop=settings.dropout)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(is_lora(name))
    if settings.checkpointing:  # inside the transformers, which are computed again as wholes
        in_parts(network.unet, FeedForward)
    return network.to(device)


def source_pass(network: TrainingNetwork, past: Trajectory, step: int, device: torch.device | str) -> None:
    """One evaluation of a source at an inversion step, without LoRA and gradients, for what the memory notes of it."""
    state, level, source = past.states[step].to(device), past.levels[step], past.conditioning
    root = (level**2 + 1) ** 0.5
    frames = len(state)
    image = source.image_latents.to(state).expand(frames, -1, -1, -1)
    numbers = [source.numbers["fps"] - 1, source.numbers["motion_bucket_id"], source.numbers["augmentation_level"]]
    y = torch.cat([sinusoidal_embedding(torch.tensor([n], device=device), 256) for n in numbers], 1)
    with torch.no_grad(), without_lora(network.unet):
        network.unet(torch.cat([state / root, image], 1), timesteps=torch.full((frames,), 0.25 * math.log(level), device=device),
                     context=source.embedding.to(state).expand(frames, -1, -1), y=y.expand(frames, -1),
                     transformer_options={"patches": {}, "cond_or_uncond": [0], keys.MEMORY: network.memory},
                     num_video_frames=frames, image_only_indicator=torch.zeros(1, frames, device=device))


def with_memory(network: TrainingNetwork, past: Trajectory, device: torch.device | str) -> Callable[[float], None]:
    """What to call with a step's noise level before the network is asked: clip 0's keys and values of the paired step are then
    in its temporal attention (I2VEdit, section 4.3; released pairing)."""
    def remember(sigma: float) -> None:
        network.memory = Memory()
        source_pass(network, past, source_step(sampling_step(sigma, past.sigmas), past.steps), device)
        network.memory.recording = False

    return remember


def run(inputs: MotionInputs, settings: MotionSettings, folder: Path, watch: Watch = Watch(),  # noqa: B008
        past: Trajectory | None = None) -> Finished:
    """Train to the end, from the newest state in the folder if there is one.

    Args:
        past: clip 0's inversion at the size of training, to learn a later clip beside it.

    Raises:
        StateError, NotANumber, WrongModel, ValueError: see there.
    """
    with differentiable():
        clip = prepare(inputs, settings)
        if mm.get_torch_device().type != "cpu":  # VAE and image encoder have done their work
            mm.unload_all_models()
            mm.soft_empty_cache()
        device = torch.device(mm.get_torch_device())
        network = make_network(inputs.model, settings, device, past is not None)
        trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
        identity = {**settings.identity(), "data": digest({"latents": clip.latents, "image": clip.image}),
                    "model": sampled_digest(inputs.model, True),  # all that states of earlier versions tell
                    "network": model_digest(inputs.model, True, fresh=False)}
        if past is not None:
            identity["past"] = digest({"states": past.states})
        clip = objective.MotionClip(*(t.to(device) for t in (clip.latents, clip.image, clip.embedding)))
        trainer = loop.Trainer(trained, loop.TrainSettings(
            steps=settings.steps, learning_rate=settings.learning_rate, clip=0.0, seed=settings.seed,
            save_every=settings.save_every, tolerate=TOLERATED,
            loss_scale=LOSS_SCALE if settings.precision == "fp16" else 0.0))
        evaluated = _evaluated(network, device, settings.precision)
        before = None if past is None else with_memory(network, past, device)
        loss = objective.batch_loss(evaluated, clip, settings.numbers, device=device, before=before)
        show = _previewer(inputs, settings, clip, evaluated, device, watch)

        def stepped(step: loop.Step) -> None:
            if watch.stepped is not None:
                watch.stepped(step)
            if show is not None and (step.step % settings.preview_every == 0 or step.step == settings.steps):
                show(step.step)

        made = loop.train(trainer, loss, folder, stepped, watch.check_stop, identity)
        tensors = {n.removeprefix("unet."): p.detach().cpu().clone() for n, p in trained.items()}
        return Finished(lora_file(tensors), trainer.step, sum(bool(s.left_out) for s in made))


def _evaluated(network: TrainingNetwork, device: torch.device, precision: str) -> Callable:
    def call(*inputs: Any) -> tuple[Tensor, list]:
        with autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
            v, asked = network(*inputs)
        return v.float(), asked

    return call


def _previewer(inputs: MotionInputs, settings: MotionSettings, clip: objective.MotionClip, network: Callable,
               device: torch.device, watch: Watch) -> Callable[[int], None] | None:
    """Samples the clip again from its first frame; first, middle and last frame beside the true ones."""
    if watch.preview is None or not settings.preview_every:
        return None
    from ...core.training import preview as previews

    numbers = torch.tensor([objective.NUMBERS[settings.numbers]], device=device)
    batch = Examples(latents=clip.latents[None], image=clip.image[None], embedding=clip.embedding[None])
    shown = [0, len(clip.latents) // 2, len(clip.latents) - 1]

    def told(*given: Any) -> tuple[Tensor, list]:
        return network(*given, *[None] * (7 - len(given)), numbers)

    def show(step: int) -> None:
        made = previews.sample(told, batch, 10, 1.0, settings.seed)[0]
        with torch.inference_mode():
            rows = [inputs.vae.decode(inputs.model.model.process_latent_out(z[shown].float().cpu())).float().cpu()
                    for z in (made, clip.latents)]
        if device.type != "cpu":
            mm.unload_all_models()
        watch.preview(step, torch.cat([torch.cat(list(r), 1) for r in rows], 0).clamp(0, 1).clone())

    return show
