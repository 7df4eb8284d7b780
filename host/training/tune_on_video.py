"""Tuning on a video as a node shows it: one run folder, a result that is kept, a curve, a report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import comfy.model_management as mm
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.digest import digest
from ...core.training import curve
from ...core.training.loop import NotANumber
from ...core.training.one_shot.presets import OneShotSettings
from ...core.weights.tuned_video import TunedVideo
from ..attention.inflated import Settings
from ..weights.tuned_video import base_of, on_model, read, save
from .one_shot import OneShotInputs, identity_of, run
from .progress import Progress, as_image, read_log
from .run import Watch

FILE = "tuned_video.safetensors"


class Made(NamedTuple):
    """The node's outputs; the curve is (1, H, W, 3) in [0, 1]."""

    model: ModelPatcher
    tuned: TunedVideo
    curve: Tensor
    report: str


def tune(inputs: OneShotInputs, settings: OneShotSettings, runs: Path, layers: Settings) -> Made:
    """Tune on a video, or take the finished result of an equal run. A run that was cancelled or killed continues.

    Args:
        runs: folder of all runs; a run's own is named after a digest of model, video, prompt and settings.
        layers: of the model that comes out.

    Raises:
        WrongModel, StateError: see there.
        NotANumber: the last good state is kept.
    """
    begun = time.time()
    folder = runs / key(inputs, settings)
    file = folder / FILE
    if file.is_file():
        tuned, what = read(file), "taken from an equal run, finished earlier"
    else:
        progress = Progress(folder, settings.steps)
        watch = Watch(None, progress.stepped, None, mm.throw_exception_if_processing_interrupted)
        try:
            finished = run(inputs, settings, folder, watch)
        except NotANumber as error:
            raise NotANumber(f"{error} States: '{folder}'.") from None
        tuned = TunedVideo(finished.tensors, base_of(inputs.model), settings.seed, settings.random_bias)
        save(file, tuned, "fp32")
        what = f"{finished.steps} steps, this call {(time.time() - begun) / 60:.1f} min"
    steps, series = read_log(folder)
    losses = [v for v in series.get("loss", []) if v == v]
    tail = losses[-max(1, len(losses) // 5):]
    report = "\n".join([what, f"loss, mean of the last fifth: {sum(tail) / max(1, len(tail)):.4g}", f"file: {file}"])
    return Made(on_model(inputs.model, tuned, layers), tuned, as_image(curve.draw_curve(steps, series)), report)


def key(inputs: OneShotInputs, settings: OneShotSettings) -> str:
    """A digest of everything that decides the result, for the names of run folders."""
    return digest(identity_of(inputs, settings), settings.steps, settings.learning_rate, settings.seed, settings.clip)
