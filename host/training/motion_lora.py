"""A motion LoRA run: models and one clip in, states on the disk, an ordinary LoRA out (I2VEdit, section 4.1)."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import torch
from comfy.ldm.modules.attention import FeedForward
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...core.digest import digest
from ...core.edm import network_timestep, scale_input
from ...core.finite import BY_CLIP_VISION, BY_VAE, check_finite, not_finite
from ...core.inversion.schedule import sampling_step, source_step
from ...core.inversion.trajectory import Trajectory
from ...core.training import loop
from ...core.training.examples import Examples
from ...core.training.in_parts import in_parts
from ...core.training.lora import add_lora, is_lora, lora_file, temporal_layers, without_lora
from ...core.training.motion_lora import objective
from ...core.training.motion_lora.presets import MotionSettings
from ...core.training.network import NetworkInput
from ...core.training.preview import sample
from ...core.video import geometry
from ..attention.skip_interval import Memory
from ..attention.watched import watch_plain
from ..conditioning import clip_embedding
from ..models import savings
from ..models.earlier import sampled_digest
from ..models.identity import model_digest, part_of, weights_of
from ..models.network import multiple, svd_layout
from ..report import warn
from ..weights.motion_lora import with_lora, write
from .copies import plain_unet
from .network import DTYPES, TrainingNetwork
from .progress import NodeResult, Progress, finished_or_run
from .run import SILENT, RunCallbacks, RunResult, Task, differentiable, first_middle_last
from .run import run as run_task

FILE = "motion_lora.safetensors"


class MotionInputs(NamedTuple):
    """The inputs of a run.

    frames: (T, H, W, 3) in [0, 1], at least 2 of them.  mask: (T or 1, H', W') what the LoRA should not learn; None is nothing.
    """

    model: ModelPatcher
    clip_vision: Any
    vae: Any
    frames: Tensor
    mask: Tensor | None = None


def prepare(inputs: MotionInputs, settings: MotionSettings) -> objective.MotionClip:
    """The clip's latents, its first frame's latent and embedding.

    Raises:
        ValueError: fewer than two frames, a size that the network cannot take, or a mask that fits no frames or leaves nothing.
        NotFinite: latents or embedding contain inf or NaN.
    """
    frames = inputs.frames[..., :3]
    if len(frames) < 2:
        raise ValueError(f"'frames' has {len(frames)} frame; motion needs at least 2.")
    if inputs.mask is not None and len(inputs.mask) not in (1, len(frames)):
        raise ValueError(f"'change_mask' has {len(inputs.mask)} masks, 'frames' has {len(frames)} frames. Give one mask for all "
                         "frames, or one a frame.")
    step = multiple(inputs.model)
    size = (settings.height, settings.width) if settings.height else tuple(
        max(step, side // step * step) for side in frames.shape[1:3])
    if any(side % step for side in size):
        raise ValueError(f"{size[1]} x {size[0]} pixels do not fit this network; width and height must be multiples of "
                         f"{step}.")
    with torch.inference_mode():
        fit = geometry.fit(*frames.shape[1:3], size, settings.keep_aspect)
        shown = geometry.to_working(frames, fit)
        encoded = []
        for i in range(len(shown)):
            mm.throw_exception_if_processing_interrupted()
            encoded.append(inputs.vae.encode(shown[i:i + 1]).float().cpu())
        latents = torch.cat(encoded)
        embedding = clip_embedding(inputs.clip_vision, shown[:1]).float().cpu()
        scaled = inputs.model.model.process_latent_in(latents)
    check_finite("the clip 'frames'", {"latents": latents}, BY_VAE)
    check_finite("the clip 'frames'", {"image embedding": embedding}, BY_CLIP_VISION)
    weights = None if inputs.mask is None else objective.weights_outside(
        geometry.masks_to_working(inputs.mask, fit), *latents.shape[-2:])
    return objective.MotionClip(scaled.clone(), latents[0].clone(), embedding[0].clone(), weights)


def folder_of(inputs: MotionInputs, settings: MotionSettings, runs: Path) -> Path:
    """A run's folder, named after a digest of everything that determines its result. A folder of an earlier version is taken over.

    Where a model carries something that cannot be identified it is a new folder each time.
    """
    parts = [weights_of(inputs.model), part_of(inputs.vae), part_of(inputs.clip_vision)]
    given = [{"frames": inputs.frames}, settings.identity(), settings.steps, settings.learning_rate, settings.seed]
    given += [] if inputs.mask is None else [{"mask": inputs.mask}]
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


def make_network(model: ModelPatcher, settings: MotionSettings, watched: bool = False) -> TrainingNetwork:
    """A frozen network in the run's precision with a new LoRA on its temporal layers, which trains in fp32; on the CPU.

    Args:
        watched: let a memory add keys and values to its temporal self-attention.

    Raises:
        WrongModel: not an SVD model.
    """
    svd_layout(model)
    network = TrainingNetwork(plain_unet(model, DTYPES[settings.precision]), checkpointing=settings.checkpointing,
                              precision=settings.precision)
    if watched:
        watch_plain(network.unet)
    network.requires_grad_(False)
    add_lora(network.unet, settings.rank, settings.seed, layers=temporal_layers(network.unet), normal=True,
             drop=settings.dropout)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(is_lora(name))
    if settings.checkpointing:  # inside the transformers, which are computed again as wholes
        network.parts = in_parts(network.unet, FeedForward)
    # Queries and keys of a single key have no effect, so their additions stay zero; dropout acts on each row of the values alone.
    savings.save_in(network.unet, by_row=settings.dropout > 0, untrained=True)
    return network


def source_pass(network: TrainingNetwork, past: Trajectory, step: int) -> None:
    """One evaluation of a source at an inversion step, without LoRA and gradients, for what the memory notes of it."""
    source, level, device = past.conditioning, past.levels[step], network.micro_conds.device
    told = [source.numbers["fps"] - 1, source.numbers["motion_bucket_id"], source.numbers["augmentation_level"]]
    state, image, embedding, micro_conds, t = (x.to(device, torch.float32) for x in (
        past.states[step], source.image_latents, source.embedding, torch.tensor([told]), torch.tensor([network_timestep(level)])))
    with torch.no_grad(), without_lora(network.unet):
        # The embedding expanded, not repeated: matrix products round otherwise.
        network(NetworkInput(scale_input(state, level)[None], t, image[None], embedding.expand(len(state), -1, -1)[None],
                             micro_conds=micro_conds))


def with_memory(network: TrainingNetwork, past: Trajectory) -> Callable[[float], None]:
    """What to call with a step's noise level before the network is asked: clip 0's keys and values of the paired step are then
    in its temporal attention (I2VEdit, section 4.1, skip-interval
    cross-attention; released pairing)."""
    def remember(sigma: float) -> None:
        network.memory = Memory()
        source_pass(network, past, source_step(sampling_step(sigma, past.sigmas), past.steps))
        network.memory.recording = False

    return remember


@differentiable()
def run(inputs: MotionInputs, settings: MotionSettings, folder: Path, callbacks: RunCallbacks = SILENT,
        past: Trajectory | None = None) -> RunResult:
    """Train to the end, from the newest state in the folder if there is one.

    Args:
        past: clip 0's inversion at the size of training, to learn a later clip beside it.

    Returns:
        The LoRA in ComfyUI's form.

    Raises:
        StateError, NonFinite, WrongModel, ValueError: see there.
    """
    clip = prepare(inputs, settings)
    network = make_network(inputs.model, settings, past is not None)
    identity = {**settings.identity(), "data": digest({"latents": clip.latents, "image": clip.image}),
                "model": sampled_digest(inputs.model, True),  # all that states of earlier versions tell
                "network": model_digest(inputs.model, True, fresh=False)}
    if clip.weights is not None:
        identity["weights"] = digest({"weights": clip.weights})
    before = None
    if past is not None:
        identity["past"] = digest({"states": past.states})
        before = with_memory(network, past)
    task = Task(
        network, lambda call, device: objective.batch_loss(call, clip.to(device), settings.numbers, device=device, before=before),
        loop.TrainSettings(steps=settings.steps, learning_rate=settings.learning_rate, clip=0.0, seed=settings.seed,
                           save_every=settings.save_every, tolerate=loop.TOLERATED,
                           loss_scale=loop.LOSS_SCALE if settings.precision == "fp16" else 0.0),
        identity, preview=lambda device: preview(inputs, settings, clip.to(device), network),
        preview_every=settings.preview_every)
    result = run_task(task, folder, callbacks)
    return result._replace(tensors=lora_file({n.removeprefix("unet."): t for n, t in result.tensors.items()}))


def preview(inputs: MotionInputs, settings: MotionSettings, clip: objective.MotionClip, network: TrainingNetwork) -> Tensor:
    """The clip sampled again from its first frame: first, middle and last frame, above the true ones."""
    micro_conds = torch.tensor([objective.MICRO_CONDS[settings.numbers]], device=clip.latents.device)
    batch = Examples(latents=clip.latents[None], image=clip.image[None], embedding=clip.embedding[None], micro_conds=micro_conds)
    sampled = sample(network, batch, 10, 1.0, settings.seed)[0]
    return first_middle_last(inputs.vae, inputs.model, sampled, clip.latents)


# ---- the node --------------------------------------------------------------------------------------------------------


def train(inputs: MotionInputs, settings: MotionSettings, runs: Path, strength: float) -> NodeResult:
    """Train a LoRA, or return the finished one of a run with the same inputs.

    Args:
        runs: folder of all runs; a run's own is named after a digest of models, frames and settings.

    Raises:
        ValueError: clip, models or state do not fit.
        NonFinite: the last good state is kept.
    """
    folder = folder_of(inputs, settings, runs)
    progress = Progress(folder, settings.steps)

    def made(callbacks: RunCallbacks) -> tuple[dict[str, Tensor], RunResult]:
        result = run(inputs, settings, folder, callbacks)
        return result.tensors, result

    lora, report = finished_or_run(progress, folder / FILE, kept_lora, made, write)
    return NodeResult(with_lora(inputs.model, lora, strength), lora, progress.curve(), progress.last_preview(), report)


def kept_lora(file: Path) -> dict[str, Tensor]:
    """The LoRA that a run with the same inputs has saved.

    Raises:
        ValueError: it is damaged, has learned nothing, or holds inf or NaN.
    """
    try:
        lora = load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{file}' cannot be read ({error})") from None
    if not usable(lora):
        raise ValueError(f"'{file}' holds inf or NaN, or nothing that was learned")
    return lora


def usable(lora: dict[str, Tensor]) -> bool:
    """Whether a LoRA is finite and has learned something; earlier versions could keep others."""
    return not not_finite(lora) and any(bool(t.any()) for name, t in lora.items() if name.endswith(".lora_up.weight"))
