"""A training run as a node shows it: progress, the loss curve and previews as a live picture, and a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor

from ...core.atomic import replacing
from ...core.training import curve, state
from ...core.training.loop import Step
from ..report import Steps, warn
from .run import RunCallbacks, RunResult

LIVE_EVERY = 2.0  # seconds between live curves
LIVE_SIZE = 512  # pixels of the longer side


class NodeResult(NamedTuple):
    """A training node's outputs: the trained model, what was trained by itself, and (1, H, W, 3) pictures in [0, 1]."""

    model: ModelPatcher
    trained: Any
    curve: Tensor
    previews: Tensor
    report: str


def as_image(picture: Image.Image) -> Tensor:
    """A picture as the host's IMAGE, (1, H, W, 3)."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0)[None]


def save_preview(folder: Path, step: int, picture: Tensor) -> Image.Image:
    """Keep (H, W, 3) in [0, 1] as the preview of a step; returns it.

    Raises:
        WriteError: it cannot be written.
    """
    image = Image.fromarray((picture.nan_to_num().clamp(0, 1).numpy() * 255).round().astype(np.uint8))
    with replacing(folder / f"preview-{step:06d}.png") as partial:
        image.save(partial, "png", compress_level=1)
    return image


def read_log(folder: Path) -> tuple[list[int], dict[str, list[float]]]:
    """The steps of a run and its losses by name; NaN where a step has none."""
    entries = state.read_log(folder / "stats.jsonl")
    names = list(dict.fromkeys(name for e in entries for name in e["losses"]))
    return [e["step"] for e in entries], {n: [e["losses"].get(n, float("nan")) for e in entries] for n in names}


class Progress:
    """A run's progress bar with the live curve, its previews, and what the report says of it."""

    def __init__(self, folder: Path, steps: int):
        self.folder, self.all_steps, self.begun = folder, steps, time.time()
        self.bar = Steps(steps)
        self.steps, self.series = read_log(folder)
        self.shown = 0.0
        self.seen: Image.Image | None = None  # the last preview of this call

    def callbacks(self) -> RunCallbacks:
        """What a run calls."""
        return RunCallbacks(mm.throw_exception_if_processing_interrupted, self.bar.show, self.stepped, self.preview)

    def stepped(self, step: Step) -> None:
        while self.steps and self.steps[-1] >= step.step:  # lines after the state that the run went on from
            self.steps.pop()
            for values in self.series.values():
                values.pop()
        self.steps.append(step.step)
        for name, values in self.series.items():
            values.append(step.losses.get(name, float("nan")))
        for name in step.losses.keys() - self.series.keys():
            self.series[name] = [float("nan")] * (len(self.steps) - 1) + [step.losses[name]]
        live = None
        if time.monotonic() - self.shown > LIVE_EVERY or step.step == self.all_steps:
            self.shown = time.monotonic()
            live = self.live()
        self.bar.show(step.step, self.all_steps, live)

    def preview(self, step: int, picture: Tensor) -> None:
        self.seen = save_preview(self.folder, step, picture)
        self.bar.show(step, self.all_steps, self.live())

    def live(self) -> tuple[str, Image.Image, int]:
        """What the node shows while it trains: the curve so far, below it the last preview."""
        drawn = curve.draw_curve(self.steps, self.series)
        return "JPEG", drawn if self.seen is None else curve.below(drawn, self.seen), LIVE_SIZE

    # ---- for the node's outputs ----

    def curve(self) -> Tensor:
        """The loss curve of the whole run as IMAGE."""
        return as_image(curve.draw_curve(*read_log(self.folder)))

    def last_preview(self) -> Tensor:
        """The last preview that can be read as IMAGE, black if there is none."""
        for path in sorted(self.folder.glob("preview-*.png"), reverse=True):
            try:
                with Image.open(path) as image:
                    return as_image(image)
            except OSError:  # cut short by an earlier version that was killed
                continue
        return torch.zeros(1, 64, 64, 3)

    def minutes(self) -> str:
        return f"this call took {(time.time() - self.begun) / 60:.1f} min"

    def losses(self) -> str:
        """The last value of every loss."""
        series = {name: [v for v in values if v == v] for name, values in read_log(self.folder)[1].items()}
        return ", ".join(f"{name} {values[-1]:.4g}" for name, values in series.items() if values)

    def mean_loss(self) -> str:
        """The mean of the last fifth of the losses: single steps scatter with their noise."""
        losses = [v for v in read_log(self.folder)[1].get("loss", []) if v == v]
        tail = losses[-max(1, len(losses) // 5):]
        return f"loss, mean of the last fifth: {sum(tail) / max(1, len(tail)):.4g}"


def finished_or_run(progress: Progress, file: Path, read: Callable[[Path], Any],
                    train: Callable[[RunCallbacks], tuple[Any, RunResult]], write: Callable[[Path, Any], Any]) -> tuple[Any, str]:
    """The result that a run with the same inputs has saved in a file, or else the result of this run, which is saved there.

    Args:
        read: raises ValueError or OSError if the file cannot be used; it is then made again.

    Returns:
        The result, and a report.
    """
    kept, what = _kept(file, read), "taken from an equal run, finished earlier"
    if kept is None:
        kept, result = train(progress.callbacks())
        write(file, kept)
        skipped = f"; {result.skipped} were skipped because the loss or a gradient was not finite" if result.skipped else ""
        what = f"{result.steps} steps{skipped}, {progress.minutes()}"
    return kept, "\n".join([what, progress.mean_loss(), f"file: {file}"])


def _kept(file: Path, read: Callable[[Path], Any]) -> Any:
    if not file.is_file():
        return None
    try:
        return read(file)
    except (ValueError, OSError) as error:
        warn(f"the result of an equal run cannot be used and is made again: {error}")
        return None
