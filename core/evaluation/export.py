"""A dataset's pairs as folders of pictures, which `commands/evaluate.py` compares and any program opens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .. import atomic
from ..callbacks import SILENT, Callbacks
from ..data.sample import Sample
from .metrics import areas_from_flow

FOLDERS = ("source", "truth", "sketch", "coarse", "moved", "disoccluded")


def export(samples: Iterable[Sample], folder: Path, count: int = 0, callbacks: Callbacks = SILENT) -> list[str]:
    """Write each pair as `<folder>/<kind>/<key>.png`, and its drags as `<folder>/drags/<key>.json`, for the Drag Signal node.

    kind: source, truth, sketch, coarse edit; moved and disoccluded areas, white, as docs/evaluation.md defines them.

    Args:
        count: of samples, for progress.

    Returns:
        The keys that were written. A key that is no file name, or was there before, is left out.

    Raises:
        WriteError: the disk is full, or may not be written to.
    """
    written: list[str] = []
    seen: set[str] = set()
    for number, sample in enumerate(samples, 1):
        callbacks.check_stop()
        if sample.key in seen or not re.fullmatch(r"[\w-]{1,200}", sample.key):
            continue
        seen.add(sample.key)
        areas = areas_from_flow(sample.flow[None], sample.visible[None])
        pictures = (sample.source, sample.target, sample.sketch, sample.coarse, areas.moved[0].float(),
                    areas.disoccluded[0].float())
        for kind, picture in zip(FOLDERS, pictures, strict=True):
            _save(folder / kind / f"{sample.key}.png", picture)
        atomic.write_text(_made(folder / "drags" / f"{sample.key}.json"), json.dumps(drag_state(sample)))
        written.append(sample.key)
        callbacks.progress(number, count or number)
    return written


def drag_state(sample: Sample) -> dict:
    """A pair's drags as the drag editor's state (docs/editor_state.md)."""
    height, width = sample.source.shape[-2:]
    ends = torch.cat([sample.drag_source, sample.drag_target], -1) + 0.5  # the middle of the first pixel is 0.5 there
    return {"version": 1, "width": width, "height": height, "drags": ends.tolist()}


def _made(path: Path) -> Path:
    with atomic.write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _save(path: Path, picture: Tensor) -> None:
    """(3, H, W) or (H, W) in [0, 1] as a PNG of 8 bit."""
    pixels = (picture.clamp(0, 1) * 255).round().byte()
    array = (pixels.movedim(0, -1) if pixels.ndim == 3 else pixels).contiguous().numpy()
    with atomic.replacing(_made(path)) as partial:
        Image.fromarray(array).save(partial, "PNG")
