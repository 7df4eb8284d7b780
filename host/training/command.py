"""A training run from the command line, see commands/train.py."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import torch
from safetensors.torch import save_file

from ...core.atomic import replacing
from ...core.training import curve, parallel
from ...core.training.framepainter.cache import CacheError
from ...core.training.framepainter.presets import RunSettings, choose, setting_names
from ...core.training.loop import NonFinite, Step
from ...core.training.parallel import Processes
from ...core.training.state import StateError
from ...core.weights.weight_file import WeightFile
from ..models.network import WrongModel
from ..weights import loading, saving
from ..weights.loading import Absent, NoTrainedParts, WeightsError
from . import framepainter, progress
from .framepainter import estimated, open_dataset
from .run import RunCallbacks, RunResult

STOPPED = 130  # exit status of a run that was asked to stop
TELL_EVERY = 10.0  # seconds between lines


class Stopped(Exception):
    """Ctrl-C, or a scheduler's notice."""


def load_models(options: argparse.Namespace) -> framepainter.Inputs:
    """The models that the options name.

    Raises:
        WeightsError: a file is missing, broken or of another kind; or CLIP vision or VAE are nowhere.
    """
    file, encoder, clip_and_vae, trained = (
        _opened(name, getattr(options, name)) for name in ("model", "encoder", "clip_and_vae", "framepainter"))
    model, weights, clip_vision, vae = loading.from_files(file, encoder, clip_and_vae, None)
    if trained is not None:
        weights = loading.from_files(trained, None, clip_and_vae or file, None).weights
    for what, part in (("CLIP vision", clip_vision), ("VAE", vae)):
        if isinstance(part, Absent):
            raise WeightsError(f"--model '{options.model}' holds no {what}. Give an SVD checkpoint with --clip-and-vae.")
    new = options.new or isinstance(weights, NoTrainedParts)
    return framepainter.Inputs(model, None if new else weights, clip_vision, vae, options.dataset)


def _opened(name: str, path: Path | None) -> WeightFile | None:
    """The file that an option names, if it is given."""
    try:
        return None if path is None else WeightFile.open(path)
    except WeightsError as error:
        raise WeightsError(f"--{name.replace('_', '-')} '{path}' cannot be read: {error}") from None


class _Tell:
    """The output of the first process."""

    def __init__(self, settings: RunSettings, places: Processes, folder: Path):
        self.settings, self.quiet, self.folder, self.last = settings, places.rank != 0, folder, 0.0

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)

    def prepared(self, done: int, count: int) -> None:
        if done == count or time.monotonic() - self.last > TELL_EVERY:
            self.last = time.monotonic()
            self.say(f"prepared {done} of {count} pairs")

    def stepped(self, step: Step) -> None:
        if step.step == self.settings.steps or time.monotonic() - self.last > TELL_EVERY:
            self.last = time.monotonic()
            values = ", ".join(f"{name} {value:.4f}" for name, value in step.losses.items())
            self.say(f"step {step.step} of {self.settings.steps}: {values}, gradient norm {step.gradient_norm:.3g}, "
                     f"{step.seconds:.2f} s a step")

    def preview(self, step: int, picture: torch.Tensor) -> None:
        progress.save_preview(self.folder, step, picture)


def export(options: argparse.Namespace, inputs: framepainter.Inputs, settings: RunSettings,
           finished: RunResult) -> list[Path]:
    """Write the run's results; returns the files."""
    model, weights = framepainter.export(finished, inputs.model, settings, options.out.name)
    path = options.out / "framepainter.safetensors"
    note = {"framepainter.training": repr(settings), "framepainter.steps": str(finished.steps)}
    parts = (None, None) if options.bare else (inputs.clip_vision, inputs.vae)
    files = [saving.save(path, model, weights, *parts, note), *saving.save_pair(path, model, weights, note)]
    lora = framepainter.lora_tensors(finished)
    if lora:
        files.append(options.out / "lora.safetensors")
        with replacing(files[-1]) as partial:
            save_file(lora, str(partial), metadata=note)
    with replacing(options.out / "loss_curve.png") as partial:
        curve.draw_curve(*progress.read_log(options.out)).save(partial, "png")
    return files


def train(options: argparse.Namespace, places: Processes, index: Any, stop: dict[str, bool]) -> None:
    """The run itself, in one of the processes."""
    given = {n: getattr(options, n) for n in setting_names() if getattr(options, n, None) is not None}
    settings = choose(options.preset, **given)
    with torch.inference_mode():
        inputs = load_models(options)
    tell = _Tell(settings, places, options.out)
    tell.say(estimated(settings, inputs.model, *index[0].source.shape[-2:]))
    device = mm.get_torch_device()

    def check_stop() -> None:
        if parallel.any_asks(stop["asked"], places, device):
            raise Stopped

    callbacks = RunCallbacks(check_stop, tell.prepared, tell.stepped, tell.preview)
    finished = framepainter.run(inputs, settings, options.out, index, callbacks, places, options.fsdp)
    if places.rank == 0:
        with torch.inference_mode():
            for path in export(options, inputs, settings, finished):
                tell.say(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def main(options: argparse.Namespace, open_dataset: Any = open_dataset) -> int:
    """Run the command and return its exit status. Errors that a user can fix are printed, not raised."""
    stop = {"asked": False}
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.__setitem__("asked", True))
    places = parallel.join(mm.get_torch_device().type)
    try:
        train(options, places, open_dataset(options.dataset), stop)
        return 0
    except Stopped:
        if places.rank == 0:
            print(f"stopped; run it again to resume. The state is in {options.out}", flush=True)
        return STOPPED
    except (CacheError, StateError, NonFinite, WeightsError, WrongModel, ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        parallel.leave()
