"""A training run: models and a dataset in, states on the disk, models out.

The models that come in are only read; what is trained is a copy in ordinary tensors (see `host/training/network.py`). Everything here
that differentiates must run outside the host's inference mode; `differentiable` says so in one place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import torch
from comfy.ldm.modules.attention import SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import VideoResBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...core.digest import digest
from ...core.training import curve, loop, parallel
from ...core.training.framepainter import cache, objective
from ...core.training.framepainter.presets import RunSettings, estimate, parameter_counts
from ...core.training.loop import NotANumber
from ...core.training.lora import add_lora, is_lora, merged
from ...core.training.parallel import Processes
from ...core.weights import diffusers_svd
from ..attention.matching import attach_matching
from ..conditioning import AUGMENTATION_SPAN, clip_embedding
from ..network import multiple, svd_layout, unet_shapes
from ..weights.building import EPSILON_DIFFUSERS, build_encoder, build_matching, build_unet
from ..weights.loading import FramePainterWeights
from .copies import plain_encoder, plain_matching, plain_unet
from .network import NUMBERS, TrainingNetwork
from .progress import Progress, as_image, read_log
from .run import Finished, Watch, differentiable, in_precision, trained


class Inputs(NamedTuple):
    """What a run is made from. framepainter None starts from copies of the spatial self-attention and a new encoder."""

    model: ModelPatcher
    framepainter: FramePainterWeights | None
    clip_vision: Any
    vae: Any
    dataset: Path


# ---- the network -----------------------------------------------------------------------------------------------------


def make_network(model: ModelPatcher, weights: FramePainterWeights | None, settings: RunSettings,
                 keep_full: bool = False) -> TrainingNetwork:
    """A network of ordinary tensors on the CPU, what trains in fp32, what is frozen in the run's precision.

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
    network = TrainingNetwork(unet, matching, encoder, settings.semantics, settings.checkpointing)
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
    """How a sample becomes latents and embedding, the preparation that the edit's conditioning has.

    The noise on the source picture is drawn once for each sample, from its number.
    """
    scale = inputs.model.model.process_latent_in

    def encode(sample: Any, number: int, height: int, width: int) -> Mapping[str, Tensor]:
        with torch.inference_mode():
            source, target = (cache.fit(p, height, width) for p in (sample.source, sample.target))
            generator = torch.Generator().manual_seed(number)
            noise = torch.randn((3, height, width), generator=generator)
            noisy = source + noise * (NUMBERS[2] / AUGMENTATION_SPAN)
            encoded = inputs.vae.encode(torch.stack([source, target, noisy]).movedim(1, -1)).float().cpu()
            embedding = clip_embedding(inputs.clip_vision, sample.source[None].movedim(1, -1)).float().cpu()
            latents = scale(encoded[:2])
        return {"latents": latents.clone(), "image": encoded[2].clone(), "embedding": embedding[0].clone()}

    return encode


def examples_of(inputs: Inputs, settings: RunSettings, places: Processes, watch: Watch, index: Any
                ) -> tuple[cache.CachedExamples, str]:
    """The dataset ready to be trained on, and the key of its cache. The first process makes the cache."""
    if not len(index):
        raise cache.CacheError(f"'{inputs.dataset}' holds no usable pair. Build the dataset again, with wider bounds.")
    size = cache.training_size(*index[0].source.shape[-2:], settings.pixels, multiple(inputs.model))
    key = digest(cache.dataset_digest(inputs.dataset), size, inputs.vae.first_stage_model.state_dict(),
                       inputs.clip_vision.model.state_dict())

    def told(done: int, count: int) -> None:
        if watch.check_stop is not None:
            watch.check_stop()
        if watch.cached is not None:
            watch.cached(done, count)

    if places.rank == 0:
        # Other processes wait for the files, so only one of them may be asked to stop here.
        place = cache.make_cache(inputs.dataset, key, index, size, encoder_of(inputs), told if places.count == 1 else None)
    parallel.wait(places)
    place = inputs.dataset / f"cache-{key}"
    return cache.CachedExamples(index, place, settings.signal, size), key


# ---- the run ---------------------------------------------------------------------------------------------------------


def run(inputs: Inputs, settings: RunSettings, folder: Path, index: Any, watch: Watch = Watch(),  # noqa: B008
        places: Processes = Processes(), sharded: bool = False) -> Finished:  # noqa: B008
    """Train to the end, from the newest state in the folder if there is one. Call inside `differentiable`.

    Args:
        folder: of the run: states, stats.jsonl, previews.
        index: the dataset, see core/data/shards.py.
        sharded: FSDP in place of DDP, where there are several processes.

    Raises:
        CacheError, StateError, NotANumber, WrongModel: see there.
    """
    if mm.get_torch_device().type != "cpu":
        mm.unload_all_models()
    examples, key = examples_of(inputs, settings, places, watch, index)
    if mm.get_torch_device().type != "cpu":  # make room: VAE and image encoder have done their work
        mm.unload_all_models()
        mm.soft_empty_cache()
    device = torch.device(mm.get_torch_device())
    try:
        sharded = sharded and places.count > 1
        network = make_network(inputs.model, inputs.framepainter, settings, sharded)
        start = digest({n: p for n, p in network.named_parameters()})
        call = parallel.distribute(network.to(device), places, _blocks(network), sharded)
        trainer = loop.Trainer(trained(network), _loop_settings(settings), rank=places.rank)
        evaluated = in_precision(call, device, settings.precision)
        aim = objective.Objective(None if settings.matching_loss == "off" else settings.matching_loss,
                                  settings.matching_weight)
        loss = parallel.batch_loss(call, evaluated, examples, settings.batch, settings.accumulate, aim, settings.seed,
                                   device, places)
        preview = _previewer(inputs, settings, examples, in_precision(network, device, settings.precision), device, watch)

        def stepped(step: loop.Step) -> None:
            if watch.stepped is not None:
                watch.stepped(step)
            if preview is not None and places.count == 1 and (
                    step.step % settings.preview_every == 0 or step.step == settings.steps):
                preview(step.step)

        identity = {**settings.identity(), "data": key, "start": start, "processes": places.count}
        loop.train(trainer, loss, folder, stepped, watch.check_stop, identity)
        tensors = {name: loop.whole(p).detach().cpu().clone() for name, p in network.named_parameters()}
        tensors |= {name: loop.whole(t).cpu().clone() for name, t in trainer.averages.items()}
        return Finished(tensors, trainer.step)
    finally:
        examples.close()


def _loop_settings(settings: RunSettings) -> loop.TrainSettings:
    return loop.TrainSettings(steps=settings.steps, learning_rate=settings.learning_rate, accumulate=settings.accumulate,
                              ema=settings.ema, seed=settings.seed, save_every=settings.save_every)


def _blocks(network: TrainingNetwork) -> list[nn.Module]:
    return [m for m in network.unet.modules() if isinstance(m, SpatialVideoTransformer | VideoResBlock)]


def _previewer(inputs: Inputs, settings: RunSettings, examples: cache.CachedExamples, network: objective.Network,
               device: torch.device, watch: Watch) -> Callable[[int], None] | None:
    """Edits two training pairs and hands over one picture: source, signal, edit, target; a row a pair."""
    if watch.preview is None or not settings.preview_every:
        return None
    from ...core.training import preview as previews

    rows = torch.arange(min(2, len(examples)))
    unscale = inputs.model.model.process_latent_out

    def show(step: int) -> None:
        batch = examples.take(rows, device)
        edited = previews.sample(network, batch, 10, 2.0, settings.seed)[:, -1]
        with torch.inference_mode():
            pictures = inputs.vae.decode(unscale(edited.float().cpu())).float().cpu()  # (B, H, W, 3)
        if device.type != "cpu":
            mm.unload_all_models()
        lines = []
        for i, row in enumerate(rows.tolist()):
            sample, signal = examples.index[row // len(examples.signals)], examples.signals[row % len(examples.signals)]
            frames = [cache.fit(p, *examples.size).movedim(0, -1) for p in (sample.source, sample.target)]
            lines.append(torch.cat([frames[0], cache.signal_picture(sample, signal, *examples.size).movedim(0, -1),
                                    pictures[i].clone().clamp(0, 1), frames[1]], 1))
        watch.preview(step, torch.cat(lines, 0))

    return show


# ---- models out ------------------------------------------------------------------------------------------------------


def export(finished: Finished, model: ModelPatcher, settings: RunSettings, name: str
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


def lora_tensors(finished: Finished) -> dict[str, Tensor]:
    """The trained LoRA as ComfyUI's LoRA loaders read it; empty if none was trained."""
    from ...core.training.lora import lora_file

    return lora_file({n.removeprefix("unet."): t for n, t in finished.tensors.items()})


REFERENCE_FLOPS = 75e12  # half of the peak of a card with 150 TFLOP/s


class Made(NamedTuple):
    """The node's outputs; pictures are (1, H, W, 3) in [0, 1]."""

    model: ModelPatcher
    weights: FramePainterWeights
    curve: Tensor
    previews: Tensor
    report: str


def open_dataset(folder: Path) -> Any:
    """A dataset's samples by number."""
    from ...core.data.shards import ShardIndex

    return ShardIndex(folder)


def estimated(settings: RunSettings, model: ModelPatcher, height: int, width: int) -> str:
    """One line about memory and arithmetic, said to be an estimate."""
    shapes = unet_shapes(model)
    unet, lora = parameter_counts(shapes, settings.rank)
    matching = sum(s[0] * s[0] * 4 for n, s in shapes.items() if n.endswith(".transformer_blocks.0.attn1.to_q.weight"))
    channels = model.model.model_config.unet_config["model_channels"]
    cost = estimate(settings, unet, matching, 3_530_000, lora, channels, height, width)
    return (f"estimated, not measured: {cost.memory / 1e9:.1f} GB at {width} x {height}, {cost.flop / 1e12:.3g} TFLOP in all "
            f"({cost.hours(REFERENCE_FLOPS):.2g} h at a sustained {REFERENCE_FLOPS / 1e12:.0f} TFLOP/s)")


def train(model: ModelPatcher, weights: FramePainterWeights | None, clip_vision: Any, vae: Any, dataset: Path, folder: Path,
          settings: RunSettings) -> Made:
    """Run or go on with a run, and hand out what it trained.

    Raises:
        ValueError: dataset, models or settings do not fit.
        NotANumber: the last good state is kept.
    """
    begun = time.time()
    try:
        with differentiable():
            index = open_dataset(dataset)
            progress = Progress(folder, settings.steps)
            inputs = Inputs(model, weights, clip_vision, vae, dataset)
            watch = Watch(progress.cached, progress.stepped, progress.preview,
                                  mm.throw_exception_if_processing_interrupted)
            finished = run(inputs, settings, folder, index, watch)
    except NotANumber as error:
        raise NotANumber(f"{error} States: '{folder}'.") from None
    out, parts = export(finished, model, settings, folder.name)
    steps, series = read_log(folder)
    last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in series.items() if values)
    size = index[0].source.shape[-2:]
    skipped = list(getattr(index, "skipped", ()))
    report = "\n".join([
        f"run '{folder.name}' at step {finished.steps} of {settings.steps}: {last}",
        f"trained: {settings.what_trains}; signal {settings.signal}; {len(index)} pairs"
        + (f", {len(skipped)} skipped ({'; '.join(skipped[:3])})" if skipped else ""),
        estimated(settings, model, *size),
        f"this call took {(time.time() - begun) / 60:.1f} min; states, log and previews are in {folder}"])
    return Made(out, parts, as_image(curve.draw_curve(steps, series)), progress.last_preview(), report)
