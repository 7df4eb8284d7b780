"""Where a picture lies on the network's canvas, whose sides are multiples of 8 pixels.

Small multiples of 8 allow few aspect ratios, so a picture is not squeezed to the canvas: it keeps its shape and lies in the top
left corner, and a rim of less than one latent cell beyond its right or lower edge repeats that edge. The place follows from the two
sizes alone, so every step of an edit computes the same one. Legend: B batch, H W the picture, h w the canvas, in pixels.
"""

from __future__ import annotations

import math
from itertools import product

import torch.nn.functional as F
from torch import Tensor

from .images import keep_aspect_size

CELL = 8  # pixels of a latent cell
MULTIPLES = (64, 32, 16)  # of the released pipeline's sizes, and what the network halves less often; used where they cost little
DISTORTION, AREA = 0.01, 0.1  # the most that counts as little
SHORTEST = 32  # a strip that would be thinner is squeezed: the network halves its sides three times after the VAE


def placed_size(height: int, width: int, canvas_height: int, canvas_width: int) -> tuple[int, int]:
    """The (height, width) that a picture H x W has on a canvas: its own shape, if less than a cell remains free on one side;
    else the whole canvas, as a picture that is stretched on purpose. Sides that are no multiples of 8 are not a canvas."""
    for across in (True, False) if canvas_height % CELL == canvas_width % CELL == 0 else ():
        h, w = (round(canvas_width * height / width), canvas_width) if across else (
            canvas_height, round(canvas_height * width / height))
        if 0 <= canvas_height - h < CELL and 0 <= canvas_width - w < CELL:
            return h, w
    return canvas_height, canvas_width


def canvas_size(height: int, width: int, area: int) -> tuple[int, int]:
    """The canvas (height, width) for a picture H x W at about `area` pixels, on which it keeps its shape within 1 %.

    Multiples of 64 where they do, as released; else of 32, of 16, of 8. Only strips whose short side would be under 32 pixels
    are squeezed.
    """
    scale = math.sqrt(area / (height * width))
    if min(height, width) * scale < SHORTEST:
        return keep_aspect_size(height, width, area, MULTIPLES[0])
    for multiple in MULTIPLES:
        size = keep_aspect_size(height, width, area, multiple)
        if abs(math.prod(size) / area - 1) <= AREA and distortion(height, width, *size) <= DISTORTION:
            return size
    found = []
    for across, end in product((True, False), (math.floor, math.ceil)):
        side = end((width if across else height) * scale / CELL) * CELL
        other = round(side * (height / width if across else width / height))
        whole = -(-other // CELL) * CELL
        size = (whole, side) if across else (side, whole)
        found.append((abs(math.prod(size) - area) + side * (whole - other), size))
    return min(found)[1]


def distortion(height: int, width: int, canvas_height: int, canvas_width: int) -> float:
    """How far from its own a picture's aspect ratio is on a canvas: 0 is equal, 0.01 one per cent."""
    h, w = placed_size(height, width, canvas_height, canvas_width)
    return abs(w * height / (h * width) - 1)


def on_canvas(placed: Tensor, canvas_height: int, canvas_width: int) -> Tensor:
    """Pictures (B, C, h', w') in the top left corner of a canvas (B, C, h, w), their edges repeated beyond."""
    bottom, right = canvas_height - placed.shape[-2], canvas_width - placed.shape[-1]
    return placed if not bottom and not right else F.pad(placed, (0, right, 0, bottom), mode="replicate")


def off_canvas(canvas: Tensor, height: int, width: int) -> Tensor:
    """The part of canvases (B, h, w, ...) on which a picture H x W lies."""
    h, w = placed_size(height, width, *canvas.shape[1:3])
    return canvas[:, :h, :w]


def canvas_in_picture(height: int, width: int, canvas_height: int, canvas_width: int) -> tuple[int, int]:
    """(height, width) of the whole canvas at a picture's own scale: the picture's own size, if it fills the canvas."""
    h, w = placed_size(height, width, canvas_height, canvas_width)
    return round(height * canvas_height / h), round(width * canvas_width / w)
