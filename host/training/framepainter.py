"""FramePainter's training: models and a dataset in, states on the disk, models out.

The input models are not changed; what is trained is a copy in ordinary tensors (see `host/training/network.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from comfy.ldm.modules.attention import SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import VideoResBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.digest import digest
from ...core.training import loop, parallel
from ...core.training.framepainter import cache, objective
from ...core.training.framepainter.presets import RunSettings, estimate, parameter_counts
from ...core.training.lora import add_lora, is_lora, lora_file, merged
from ...core.training.parallel import Processes
from ...core.training.preview import sample
from ...core.weights import diffusers_svd
from ...core.weights.trained import Trained
from ..attention.matching import attach_matching
from ..conditioning import AUGMENTATION_SPAN, clip_embedding
from ..models.network import multiple, set_trained, svd_layout, unet_shapes
from ..weights.building import EPSILON_DIFFUSERS, build_encoder, build_matching, build_unet
from ..weights.loading import FramePainterWeights
from .copies import plain_encoder, plain_matching, plain_unet
from .network import MICRO_CONDS, TrainingNetwork
from .progress import NodeResult, Progress
from .run import SILENT, RunCallbacks, RunResult, Task, decoded, differentiable, free_device
from .run import run as run_task


class Inputs(NamedTuple):
    """The inputs of a run. framepainter None: starts from copies of the spatial self-attention and a new encoder."""

    model: ModelPatcher
    framepainter: FramePainterWeights | None
    clip_vision: Any
    vae: Any
    dataset: Path


# ---- the network -----------------------------------------------------------------------------------------------------


def make_network(model: ModelPatcher, weights: FramePainterWeights | None, settings: RunSettings,
                 keep_full: bool = False) -> TrainingNetwork:
    """A network of ordinary tensors on the CPU; trained weights in fp32, frozen ones in the run's precision.

    Args:
        model: SVD; LoRAs on it are merged into the copy.
        keep_full: frozen weights in fp32 too, as FSDP asks for one type.

    Raises:
        WrongModel: not an SVD model, or the weights are another network's.
    """
    svd_layout(model)
    everything = settings.what_trains == "everything"
    half = settings.precision == "bf16" and not everything and not keep_full
    unet = plain_unet(model, torch.bfloat16 if half else torch.float32)
    matching = plain_matching(model, unet, weights)
    encoder = plain_encoder(model, weights, settings.seed)
    network = TrainingNetwork(unet, matching, encoder, settings.semantics, settings.checkpointing, precision=settings.precision)
    network.requires_grad_(False)
    if settings.what_trains.endswith("LoRA"):
        add_lora(unet, settings.rank, settings.seed)
    # Drags do not go through the control encoder, so nothing of it would be trained.
    parts = ("matching.",) if settings.signal == "drag" else ("matching.", "encoder.")
    for name, parameter in network.named_parameters():
        if is_lora(name) or name.startswith(parts) or everything and name.startswith("unet."):
            parameter.requires_grad_(True)
    return network


# ---- data ------------------------------------------------------------------------------------------------------------


def encoder_of(inputs: Inputs) -> Callable[[Any, int, int, int], Mapping[str, Tensor]]:
    """The function that turns a sample into latents and embedding, with the same preparation as the edit's conditioning.

    The noise on the source picture is drawn once for each sample, from its number.
    """
    scale = inputs.model.model.process_latent_in

    def encode(sample: Any, number: int, height: int, width: int) -> Mapping[str, Tensor]:
        with torch.inference_mode():
            source, target = (cache.fit(p, height, width) for p in (sample.source, sample.target))
            generator = torch.Generator().manual_seed(number)
            noise = torch.randn((3, height, width), generator=generator)
            noisy = source + noise * (MICRO_CONDS[2] / AUGMENTATION_SPAN)
            encoded = inputs.vae.encode(torch.stack([source, target, noisy]).movedim(1, -1)).float().cpu()
            embedding = clip_embedding(inputs.clip_vision, sample.source[None].movedim(1, -1)).float().cpu()
            latents = scale(encoded[:2])
        return {"latents": latents.clone(), "image": encoded[2].clone(), "embedding": embedding[0].clone()}

    return encode


def examples_of(inputs: Inputs, settings: RunSettings, places: Processes, callbacks: RunCallbacks, index: Any
                ) -> tuple[cache.CachedExamples, str]:
    """The dataset ready to be trained on, and the key of its cache. The first process makes the cache."""
    if not len(index):
        raise cache.CacheError(f"'{inputs.dataset}' holds no usable pair. Build the dataset again, with wider bounds.")
    size = cache.training_size(*index[0].source.shape[-2:], settings.pixels, multiple(inputs.model))
    key = digest(cache.dataset_digest(inputs.dataset), size, inputs.vae.first_stage_model.state_dict(),
                       inputs.clip_vision.model.state_dict())

    def report(done: int, count: int) -> None:
        # Other processes wait for the files, so only one that is alone may be asked to stop here.
        if places.count == 1:
            callbacks.check_stop()
            callbacks.progress(done, count)

    if places.rank == 0:
        cache.make_cache(inputs.dataset, key, index, size, encoder_of(inputs), report)
    parallel.wait(places)
    place = inputs.dataset / f"cache-{key}"
    return cache.CachedExamples(index, place, settings.signal, size), key


# ---- the run ---------------------------------------------------------------------------------------------------------


@differentiable()
def run(inputs: Inputs, settings: RunSettings, folder: Path, index: Any, callbacks: RunCallbacks = SILENT,
        places: Processes = Processes(), sharded: bool = False) -> RunResult:  # noqa: B008
    """Train to the end, from the newest state in the folder if there is one.

    Args:
        folder: of the run: states, stats.jsonl, previews.
        index: the dataset, see core/data/shards.py.
        sharded: FSDP in place of DDP, where there are several processes.

    Returns:
        All weights of the network, trained or not, by its names.

    Raises:
        CacheError, StateError, NonFinite, WrongModel: see there.
    """
    free_device()
    sharded = sharded and places.count > 1
    examples, key = examples_of(inputs, settings, places, callbacks, index)
    try:
        network = make_network(inputs.model, inputs.framepainter, settings, sharded)
        aim = objective.Objective(None if settings.matching_loss == "off" else settings.matching_loss,
                                  settings.matching_weight)
        task = Task(
            network,
            lambda call, device: objective.batch_loss(call, examples, settings.batch, aim, device),
            loop.TrainSettings(steps=settings.steps, learning_rate=settings.learning_rate, accumulate=settings.accumulate,
                               ema=settings.ema, seed=settings.seed, save_every=settings.save_every),
            {**settings.identity(), "data": key, "start": digest(dict(network.named_parameters())), "processes": places.count},
            comes_out=lambda name: True,
            preview=lambda device: preview(inputs, settings, examples, network, device), preview_every=settings.preview_every,
            blocks=[m for m in network.unet.modules() if isinstance(m, SpatialVideoTransformer | VideoResBlock)])
        return run_task(task, folder, callbacks, places, sharded)
    finally:
        examples.close()


def preview(inputs: Inputs, settings: RunSettings, examples: cache.CachedExamples, network: TrainingNetwork,
            device: torch.device) -> Tensor:
    """Edits of two training pairs as one picture: source, signal, edit, target; one row for each pair."""
    rows = torch.arange(min(2, len(examples)))
    edited = sample(network, examples.take(rows, device), 10, 2.0, settings.seed)[:, -1]
    pictures, lines = decoded(inputs.vae, inputs.model, edited), []
    for i, row in enumerate(rows.tolist()):
        source, signal = examples.index[row // len(examples.signals)], examples.signals[row % len(examples.signals)]
        frames = [cache.fit(p, *examples.size).movedim(0, -1) for p in (source.source, source.target)]
        lines.append(torch.cat([frames[0], cache.signal_picture(source, signal, *examples.size).movedim(0, -1),
                                pictures[i].clone().clamp(0, 1), frames[1]], 1))
    return torch.cat(lines, 0)


# ---- models out ------------------------------------------------------------------------------------------------------


def export(finished: RunResult, model: ModelPatcher, settings: RunSettings, name: str
           ) -> tuple[ModelPatcher, FramePainterWeights]:
    """The trained network as MODEL and FRAMEPAINTER for the ordinary nodes: models of their own, LoRA merged.

    Args:
        model: the one that the run started from; gives precision and settings.
    """
    tensors = merged(finished.tensors)
    parts = {part: {n.removeprefix(f"{part}."): t for n, t in tensors.items() if n.startswith(f"{part}.")}
             for part in ("unet", "matching", "encoder")}
    head_width = model.model.model_config.unet_config["num_head_channels"]
    norm = diffusers_svd.diffusers_epsilon_norms(diffusers_svd.layout_from_comfy(parts["unet"]))[0]
    diffusers = model.model.diffusion_model.get_submodule(norm).eps == EPSILON_DIFFUSERS
    dtype = model.model.get_dtype()
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):  # fp8 and other storage formats
        dtype = torch.float16
    out = build_unet(dict(parts["unet"]), dtype, head_width, diffusers)
    weights = FramePainterWeights(build_matching(parts["matching"], dtype, head_width),
                                  build_encoder(parts["encoder"], dtype), name)
    return attach_matching(out, weights.matching, settings.semantics, 1.0), weights


def lora_tensors(finished: RunResult) -> dict[str, Tensor]:
    """The trained LoRA as ComfyUI's LoRA loaders read it; empty if none was trained."""
    return lora_file({n.removeprefix("unet."): t for n, t in finished.tensors.items()})


REFERENCE_FLOPS = 75e12  # half of the peak of a card with 150 TFLOP/s


def open_dataset(folder: Path) -> Any:
    """A dataset's samples by number."""
    from ...core.data.shards import ShardIndex

    return ShardIndex(folder)


def estimated(settings: RunSettings, model: ModelPatcher, height: int, width: int) -> str:
    """One line with the estimated memory and operations, marked as an estimate."""
    shapes = unet_shapes(model)
    unet, lora = parameter_counts(shapes, settings.rank)
    matching = sum(s[0] * s[0] * 4 for n, s in shapes.items() if n.endswith(".transformer_blocks.0.attn1.to_q.weight"))
    channels = model.model.model_config.unet_config["model_channels"]
    cost = estimate(settings, unet, matching, 3_530_000, lora, channels, height, width)
    return (f"estimated, not measured: {cost.memory / 1e9:.1f} GB at {width} x {height}, {cost.flop / 1e12:.3g} TFLOP in all "
            f"({cost.hours(REFERENCE_FLOPS):.2g} h at a sustained {REFERENCE_FLOPS / 1e12:.0f} TFLOP/s)")


def train(inputs: Inputs, folder: Path, settings: RunSettings) -> NodeResult:
    """Begin or resume a run, and return what it trained.

    Raises:
        ValueError: dataset, models or settings do not fit.
        NonFinite: the last good state is kept.
    """
    progress = Progress(folder, settings.steps)
    index = open_dataset(inputs.dataset)
    finished = run(inputs, settings, folder, index, progress.callbacks())
    model, weights = export(finished, inputs.model, settings, folder.name)
    set_trained(model.model, Trained(folder.name, settings.signal, tuple(index[0].source.shape[-2:])))
    skipped = list(getattr(index, "skipped", ()))
    report = "\n".join([
        f"run '{folder.name}' at step {finished.steps} of {settings.steps}: {progress.losses()}",
        f"trained: {settings.what_trains}; signal {settings.signal}; {len(index)} pairs"
        + (f", {len(skipped)} skipped ({'; '.join(skipped[:3])})" if skipped else ""),
        estimated(settings, inputs.model, *index[0].source.shape[-2:]),
        f"{progress.minutes()}; states, log and previews are in {folder}"])
    return NodeResult(model, weights, progress.curve(), progress.last_preview(), report)
