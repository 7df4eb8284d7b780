"""A training run as a node shows it: progress with the loss curve as live preview, previews, a report."""

from __future__ import annotations

import json
import time
from pathlib import Path

import comfy.utils
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...core.training import curve
from ...core.training.loop import Step

LIVE_EVERY = 2.0  # seconds between live curves


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
