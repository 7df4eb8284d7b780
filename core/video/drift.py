"""How far a long edit has drifted: colour, sharpness and similarity of each clip compared with the first edited frame.

Legend: T frames, H W pixels, values in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import conv2d

COLOUR = (31, 119, 180)
LUMA = (0.2126, 0.7152, 0.0722)


class Drift(NamedTuple):
    """Of one clip.

    colour: distance of the mean colours, root of summed squares over channels, in [0, sqrt 3].
    contrast: ratio of the deviations of luma; 1 is unchanged.
    sharpness: ratio of the mean absolute Laplacians of luma; under 1 is softer.
    likeness: correlation of the colour histograms, 8 levels a channel; 1 is the same.
    """

    colour: float
    contrast: float
    sharpness: float
    likeness: float


def _luma(frames: Tensor) -> Tensor:
    return torch.stack([(frame * frame.new_tensor(LUMA)).sum(-1) for frame in frames])  # products of one frame at a time


def sharpness(frames: Tensor) -> float:
    """Mean absolute Laplacian of luma of (T, H, W, 3)."""
    kernel = frames.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None].float()
    # One frame at a time: the convolution itself needs many times what it is given.
    return float(torch.stack([conv2d(luma[None, None], kernel) for luma in _luma(frames).float()]).abs().mean())


def histogram(frames: Tensor, levels: int = 8) -> Tensor:
    """(levels^3,) share of pixels of each colour."""
    counts = torch.zeros(levels**3, dtype=torch.long, device=frames.device)
    for frame in frames:  # one after another, as their 64 bit codes are larger than they are
        bins = (frame.reshape(-1, 3) * levels).long().clamp(0, levels - 1)
        counts += torch.bincount((bins[:, 0] * levels + bins[:, 1]) * levels + bins[:, 2], minlength=levels**3)
    return counts.float() / (frames.numel() // 3)


def drift(frames: Tensor, reference: Tensor) -> Drift:
    """A clip (T, H, W, 3) against a frame or clip (R, H, W, 3)."""
    frames, reference = frames[..., :3].float(), reference[..., :3].float()
    colour = float((frames.mean((0, 1, 2)) - reference.mean((0, 1, 2))).norm())
    contrast = float(_luma(frames).std() / _luma(reference).std().clamp_min(1e-6))
    a, b = (histogram(x) for x in (frames, reference))
    a, b = a - a.mean(), b - b.mean()
    likeness = float((a @ b) / (a.norm() * b.norm()).clamp_min(1e-12))
    return Drift(colour, contrast, sharpness(frames) / max(sharpness(reference), 1e-6), likeness)


def match_colour(frames: Tensor, reference: Tensor, strength: float = 1.0) -> Tensor:
    """Move mean and deviation of every channel to the reference's (Reinhard et al. 2001, in RGB).

    Args:
        frames: (T, H, W, 3), one shift and gain for all, so that nothing flickers.  reference: (R, H, W, 3).
        strength: 0 leaves the frames, 1 matches.
    """
    x = frames.float()
    mean, deviation = x.mean((0, 1, 2)), x.std((0, 1, 2)).clamp_min(1e-4)
    wanted_mean, wanted = reference.float().mean((0, 1, 2)), reference.float().std((0, 1, 2))
    gain = (wanted / deviation).clamp(0.5, 2.0)  # a nearly plain clip must not be blown up
    return torch.lerp(x, (x - mean) * gain + wanted_mean, strength).clamp(0, 1)


COLUMNS = {"colour": "colour distance (0)", "contrast": "contrast (1)", "sharpness": "sharpness (1)", "likeness": "likeness (1)"}


def table(found: Sequence[Drift]) -> str:
    """Markdown with one row for each clip; the value without drift is in brackets."""
    lines = ["| clip | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    lines += [f"| {i} | " + " | ".join(f"{value:.3f}" for value in entry) + " |" for i, entry in enumerate(found, 1)]
    return "\n".join(lines)


def picture(found: Sequence[Drift], width: int = 640, height: int = 360) -> Tensor:
    """One panel for each measure over the clips, with a grey line at the value without drift: (1, height, width, 3) in [0, 1]."""
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (name, title) in enumerate(COLUMNS.items()):
        left, top = (i % 2) * width // 2, (i // 2) * height // 2
        box = left + 46, top + 24, left + width // 2 - 10, top + height // 2 - 22
        values, ideal = [getattr(entry, name) for entry in found], 0.0 if name == "colour" else 1.0
        low, high = min([ideal, *values]), max([ideal, *values])
        room = max(0.1 * (high - low), 0.02)
        low, high = low - room, high + room

        def place(clip: int, value: float, box=box, low=low, high=high) -> tuple[float, float]:
            return (box[0] + (clip + 0.5) / len(found) * (box[2] - box[0]),
                    box[3] - (value - low) / (high - low) * (box[3] - box[1]))

        pen.rectangle(box, outline=(160, 160, 160))
        pen.text((box[0], top + 6), title, fill="black")
        for value in (low, high):
            pen.text((left + 4, place(0, value)[1] - 6), f"{value:.2f}", fill="black")
        pen.line((box[0], place(0, ideal)[1], box[2], place(0, ideal)[1]), fill=(190, 190, 190))
        places = [place(n, v) for n, v in enumerate(values)]
        if len(places) > 1:
            pen.line(places, fill=COLOUR, width=2)
        for x, y in places:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=COLOUR)
        for n in range(0, len(found), max(1, len(found) // 8)):
            pen.text((place(n, low)[0] - 3, box[3] + 5), str(n + 1), fill="black")
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None]
