"""A motion LoRA run as a node shows it, and its files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import comfy.utils
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..core.training import curve
from ..core.training.loop import NotANumber
from ..core.training.motion_presets import MotionSettings
from ..core.training.state import StateError
from ..core.weights import motion_lora
from . import motion_trainer
from .motion_trainer import NODE, MotionInputs
from .patches import unet_shapes
from .trainer import Watch
from .trainer_node import Progress, as_image, read_log

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
        ValueError: clip, models or state do not fit; the text begins with the node's name.
        NotANumber: the last good state is kept.
    """
    begun = time.time()
    folder = runs / motion_trainer.key(inputs, settings)
    file = folder / FILE
    if file.is_file():
        lora, what = load_file(str(file)), "taken from an equal run, finished earlier"
        steps, series = read_log(folder)
        previews = Progress(folder, settings.steps).last_preview()
    else:
        progress = Progress(folder, settings.steps)
        watch = Watch(None, progress.stepped, progress.preview, mm.throw_exception_if_processing_interrupted)
        try:
            finished = motion_trainer.run(inputs, settings, folder, watch)
        except StateError as error:
            raise ValueError(f"{NODE}: {error}") from None
        except NotANumber as error:
            raise NotANumber(f"{NODE}: {error} States: '{folder}'.") from None
        lora = finished.lora
        write(file, lora)
        steps, series = read_log(folder)
        left_out = f"; {finished.left_out} steps gave no numbers and were left out" if finished.left_out else ""
        what = f"{finished.steps} steps{left_out}, this call {(time.time() - begun) / 60:.1f} min"
        previews = progress.last_preview()
    losses = [v for v in series.get("loss", []) if v == v]
    tail = losses[-max(1, len(losses) // 5):]
    report = "\n".join([what, f"loss, mean of the last fifth: {sum(tail) / max(1, len(tail)):.4g}", f"file: {file}"])
    model = motion_trainer.with_lora(inputs.model, lora, strength)
    return Made(model, lora, as_image(curve.draw_curve(steps, series)), previews, report)


def write(path: Path, lora: dict[str, Tensor]) -> None:
    """Write a LoRA in ComfyUI's form; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file({n: t.contiguous() for n, t in lora.items()}, str(partial), metadata={"framepainter.kind": "motion LoRA"})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, model: ModelPatcher) -> dict[str, Tensor]:
    """A motion LoRA file of either form, checked against a model.

    Raises:
        LoraFileError, ValueError: not such a file, or another network's; the text names the file.
    """
    if path.suffix.lower() in (".safetensors", ".sft"):
        lora = comfy.utils.load_torch_file(str(path), safe_load=True)
        if not any(name.endswith(".lora_down.weight") for name in lora):
            raise motion_lora.LoraFileError(f"'{path.name}' holds no LoRA matrices.")
    else:
        lora = motion_lora.read_published(path, unet_shapes(model))
    motion_trainer.check_fits(model, lora, path.name)
    return lora


def save_published(path: Path, lora: dict[str, Tensor], model: Any) -> None:
    """Write the I2VEdit authors' form."""
    motion_lora.write_published(path, motion_lora.to_published(lora, unet_shapes(model)))
