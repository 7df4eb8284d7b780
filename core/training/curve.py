"""Pictures of a run: the loss curve, and rows of preview pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"loss": (31, 119, 180), "diffusion": (44, 160, 44), "matching": (214, 39, 40)}
SPARE = (127, 127, 127)
MARGIN = (58, 14, 14, 30)  # left, top, right, bottom pixels around the plot


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at every place; fewer at the start."""
    sums = np.cumsum(np.insert(np.asarray(values, dtype=np.float64), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def draw_curve(steps: Sequence[int], series: Mapping[str, Sequence[float]], width: int = 640,
               height: int = 360) -> Image.Image:
    """Losses over steps: thin the single steps, thick their running mean over a fiftieth of the run, at least 5 steps.

    The scale is logarithmic if all values are positive, and fits any values, equal ones too.
    """
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = MARGIN
    box = left, top, width - right, height - bottom
    pen.rectangle(box, outline=(160, 160, 160))
    shown = {name: [v for v in values] for name, values in series.items() if len(values) == len(steps)}
    finite = [v for values in shown.values() for v in values if math.isfinite(v)]
    if not steps or not finite:
        pen.text((left + 8, top + 8), "no steps yet", fill="black")
        return picture
    logarithmic = min(finite) > 0

    def level(value: float) -> float:
        return math.log10(value) if logarithmic else value

    low, high = level(min(finite)), level(max(finite))
    if high - low < 1e-9 * max(1.0, abs(high)):
        half = 0.5 * max(1.0, abs(high))
        low, high = low - half, high + half
    span = max(steps[-1] - steps[0], 1)

    def place(step: int, value: float) -> tuple[float, float]:
        return (box[0] + (step - steps[0]) / span * (box[2] - box[0]),
                box[3] - (level(value) - low) / (high - low) * (box[3] - box[1]))

    for i in range(5):
        at = low + (high - low) * i / 4
        y = box[3] - (box[3] - box[1]) * i / 4
        pen.line((box[0], y, box[2], y), fill=(225, 225, 225))
        pen.text((4, y - 6), f"{10**at if logarithmic else at:.3g}", fill="black")
    pen.text((box[0], box[3] + 6), str(steps[0]), fill="black")
    pen.text((box[2] - 44, box[3] + 6), str(steps[-1]), fill="black")
    for row, (name, values) in enumerate(shown.items()):
        colour = COLOURS.get(name, SPARE)
        faint = tuple(round(0.3 * c + 0.7 * 255) for c in colour)
        for data, ink, thick in ((values, faint, 1), (smoothed(values, max(5, len(values) // 50)), colour, 2)):
            places = [place(s, v) for s, v in zip(steps, data, strict=True) if math.isfinite(v)]
            if len(places) > 1:
                pen.line(places, fill=ink, width=thick)
            elif places:
                pen.ellipse((places[0][0] - 2, places[0][1] - 2, places[0][0] + 2, places[0][1] + 2), fill=ink)
        pen.text((box[2] - 150, top + 6 + 13 * row), f"{name} {values[-1]:.4g}", fill=colour)
    return picture


def below(picture: Image.Image, other: Image.Image) -> Image.Image:
    """Two pictures, the other one below at the first one's width."""
    height = max(1, round(other.height * picture.width / other.width))
    out = Image.new("RGB", (picture.width, picture.height + height), "white")
    out.paste(picture, (0, 0))
    out.paste(other.convert("RGB").resize((picture.width, height)), (0, picture.height))
    return out
