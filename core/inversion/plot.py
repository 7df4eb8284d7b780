"""A latent's values beside the normal distribution they should have, as a picture."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .normality import Normality, anderson_darling, histogram

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 300, 44, 34, 26
BINS, REACH, HIGHEST = 81, 4.0, 0.6  # standard deviations either way; the normal curve's peak is 0.4
INK, GRID, BARS, CURVE = (30, 30, 30), (220, 220, 220), (120, 160, 215), (200, 60, 40)


def normality_picture(latent: Tensor, title: str = "") -> Tensor:
    """Histogram of a latent's standardised values, all channels together, with the normal curve: (1, 300, 640, 3) in [0, 1].

    Args:
        latent: any shape.
    """
    found = anderson_darling(latent)
    canvas = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    across, up = WIDTH - LEFT - 12, HEIGHT - TOP - BOTTOM

    def place(z: float, density: float) -> tuple[float, float]:
        return (LEFT + (z + REACH) / (2 * REACH) * across, TOP + up * (1 - min(density, HIGHEST) / HIGHEST))

    for z in range(int(-REACH), int(REACH) + 1):
        x, bottom = place(z, 0.0)
        draw.line((x, TOP, x, bottom), fill=GRID)
        draw.text((x - 6, bottom + 6), f"{z}", fill=INK)
    for density in (0.2, 0.4):
        y = place(0, density)[1]
        draw.line((LEFT, y, WIDTH - 12, y), fill=GRID)
        draw.text((10, y - 6), f"{density}", fill=INK)
    if math.isfinite(found.statistic):
        for i, density in enumerate(histogram(latent, BINS, REACH).tolist()):
            left, right = (-REACH + 2 * REACH * (i + side) / BINS for side in (0, 1))
            (x0, y), (x1, floor) = place(left, density), place(right, 0.0)
            draw.rectangle((x0, y, x1 - 1, floor), fill=BARS)
    curve = [place(z, math.exp(-z * z / 2) / math.sqrt(2 * math.pi)) for z in np.linspace(-REACH, REACH, 161)]
    draw.line(curve, fill=CURVE, width=2)
    draw.text((LEFT, 10), f"{title}  {describe(found)}".strip(), fill=INK)
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255.0)[None]


def describe(found: Normality) -> str:
    """One line: the numbers of a set of values."""
    return (f"Anderson-Darling {found.statistic:.4g}, mean {found.mean:.4g}, deviation {found.deviation:.4g}, "
            f"{found.count} values")
