"""A training run as a node shows it: progress with the loss curve as live preview, previews, a report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import comfy.utils
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor

from ..core.training import curve
from ..core.training.cache import CacheError
from ..core.training.loop import NotANumber, Step
from ..core.training.presets import RunSettings, estimate, parameter_counts
from ..core.training.state import StateError
from . import trainer
from .loading import FramePainterWeights
from .patches import unet_shapes

NODE = "FramePainter Train"
LIVE_EVERY = 2.0  # seconds between live curves
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
    from ..core.data.shards import ShardIndex

    return ShardIndex(folder)


def as_image(picture: Image.Image) -> Tensor:
    """A picture as the host's IMAGE, (1, H, W, 3)."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0)[None]


def save_preview(folder: Path, step: int, picture: Tensor) -> None:
    """Keep (H, W, 3) in [0, 1] as the preview of a step."""
    image = Image.fromarray((picture.numpy() * 255).round().astype(np.uint8))
    image.save(folder / f"preview-{step:06d}.png", compress_level=1)


def read_log(folder: Path) -> tuple[list[int], dict[str, list[float]]]:
    """The steps of a run and its losses by name."""
    path = folder / "stats.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    entries = [json.loads(line) for line in lines]
    names = list(dict.fromkeys(name for e in entries for name in e["losses"]))
    return [e["step"] for e in entries], {n: [e["losses"].get(n, float("nan")) for e in entries] for n in names}


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
        ValueError: dataset, models or settings do not fit; the text begins with the node's name.
        NotANumber: the last good state is kept.
    """
    begun = time.time()
    try:
        with trainer.differentiable():
            index = open_dataset(dataset)
            progress = Progress(folder, settings.steps)
            inputs = trainer.Inputs(model, weights, clip_vision, vae, dataset)
            watch = trainer.Watch(progress.cached, progress.stepped, progress.preview,
                                  mm.throw_exception_if_processing_interrupted)
            finished = trainer.run(inputs, settings, folder, index, watch)
    except (CacheError, StateError) as error:
        raise ValueError(f"{NODE}: {error}") from None
    except NotANumber as error:
        raise NotANumber(f"{NODE}: {error} States: '{folder}'.") from None
    out, parts = trainer.export(finished, model, settings, folder.name)
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


class Progress:
    """Tells the host's progress bar, and keeps previews."""

    def __init__(self, folder: Path, steps: int):
        self.folder, self.all_steps = folder, steps
        self.bar = comfy.utils.ProgressBar(steps)
        self.steps, self.series = read_log(folder)
        self.shown = 0.0

    def cached(self, done: int, count: int) -> None:
        self.bar.update_absolute(done, count)

    def stepped(self, step: Step) -> None:
        while self.steps and self.steps[-1] >= step.step:  # lines after the state that the run went on from
            self.steps.pop()
            for values in self.series.values():
                values.pop()
        self.steps.append(step.step)
        for name, value in step.losses.items():
            self.series.setdefault(name, [float("nan")] * (len(self.steps) - 1)).append(value)
        live = None
        if time.monotonic() - self.shown > LIVE_EVERY or step.step == self.all_steps:
            self.shown = time.monotonic()
            live = ("JPEG", curve.draw_curve(self.steps, self.series), 512)
        self.bar.update_absolute(step.step, self.all_steps, live)

    def preview(self, step: int, picture: Tensor) -> None:
        save_preview(self.folder, step, picture)

    def last_preview(self) -> Tensor:
        found = sorted(self.folder.glob("preview-*.png"))
        if not found:
            return torch.zeros(1, 64, 64, 3)
        with Image.open(found[-1]) as image:
            return as_image(image)
