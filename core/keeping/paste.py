"""Pasting an edit back into the picture that it was made from.

The network gives a picture of its own size, which differs slightly everywhere. Everything outside the edit is taken from the
original, at the original's size. Legend: B batch, H W pixels, C channels. Values in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ..placement import CELL, on_canvas
from .distance import feathered

Match = Literal["off", "mean", "mean and deviation"]
LEAST_KNOWN = 0.02  # share of the picture that must be untouched to learn a colour match from it


def blend_weights(mask: Tensor, height: int, width: int, feather: int, outside: bool) -> Tensor:
    """A mask (h, w) -> the edit's weight at each pixel (H, W).

    Args:
        feather: width of the edge in pixels of the result; with 0 the mask itself is the weight, as soft as it is.
        outside: the edge lies outside the mask (where it is above a half), else inside.
    """
    if mask.shape != (height, width):
        mask = interpolate(mask[None, None].float(), size=(height, width), mode="bilinear", align_corners=False)[0, 0]
    mask = mask.float().clamp(0, 1)
    return mask if feather <= 0 else feathered(mask > 0.5, feather, outside)


def keep_untouched(original: Tensor, edited: Tensor, weights: Tensor, match: Match = "off",
                   check: Callable[[], None] = lambda: None) -> Tensor:
    """Put an edited picture into the original where the weights say so.

    Channel after channel, so that next to the result only one channel of the enlarged edit exists at a time.

    Args:
        original: (H, W, C), C 3 or 4; a fourth channel (opacity) is kept as it is.
        edited: (h, w, 3), any size; resized with a Lanczos filter.
        weights: (H, W), 0 keep the original's bits, 1 take the edit.
        match: shift the edit's colours, "mean", and scale them too, "mean and deviation", so that what is untouched in both
            pictures agrees.
        check: called between channels; may raise to stop.

    Returns:
        (H, W, C) in the original's data type.
    """
    out = original.clone()
    height, width = original.shape[:2]
    touched = weights > 0
    if not bool(touched.any()):
        return out
    gain, offset = colour_match(original, edited, weights, match)
    rows, columns = touched.any(1).nonzero(), touched.any(0).nonzero()
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    weights, touched = weights[top:bottom, left:right], touched[top:bottom, left:right]
    for channel in range(3):
        check()
        plane = edited[..., channel].float()
        if plane.shape != (height, width):
            resized = Image.fromarray(plane.cpu().numpy(), mode="F").resize((width, height), Image.Resampling.LANCZOS)
            plane = torch.from_numpy(np.asarray(resized).copy()).to(out.device)
        plane = (plane[top:bottom, left:right] * gain[channel] + offset[channel]).clamp(0, 1)
        before = out[top:bottom, left:right, channel]
        mixed = torch.where(weights >= 1, plane, torch.lerp(before.float(), plane, weights))
        before.copy_(torch.where(touched, mixed.to(out.dtype), before))
    return out


def colour_match(original: Tensor, edited: Tensor, weights: Tensor, match: Match) -> tuple[list[float], list[float]]:
    """Gain and offset a channel that bring the edit's untouched area to the original's mean (and standard deviation).

    Nothing is changed if less than 2 % of the picture is untouched: there is too little to learn from.
    """
    size = edited.shape[:2]
    known = interpolate((weights > 0).float()[None, None], size=size, mode="area")[0, 0] == 0
    if match == "off" or float(known.float().mean()) < LEAST_KNOWN:
        return [1.0] * 3, [0.0] * 3
    gain, offset = [], []
    for channel in range(3):
        before = interpolate(original[..., channel].float()[None, None], size=size, mode="area")[0, 0][known]
        after = edited[..., channel].float()[known]
        spread = float(after.std()) if match == "mean and deviation" else 0.0
        gain.append(min(max(float(before.std()) / spread, 0.5), 2.0) if spread > 1e-4 else 1.0)
        offset.append(float(before.mean()) - gain[-1] * float(after.mean()))
    return gain, offset


def latent_cells(mask: Tensor, height: int, width: int, least: float = 0.0, placed: tuple[int, int] | None = None) -> Tensor:
    """A mask (B, H, W) -> (B, 1, h, w): 1 in the latent cells of which more than `least` is in it, 0 in the rest.

    Args:
        placed: (height, width) in pixels of the place that the mask's picture has on the canvas; None if it fills it.
    """
    # Counted on the mask cut at zero: a cell is edited as soon as one pixel in it is, however faintly.
    part = (mask[:, None].float() > least).float()
    canvas = CELL * height, CELL * width
    if placed is not None and placed != canvas:
        part = on_canvas(interpolate(part, size=placed, mode="area"), *canvas)
    return (interpolate(part, size=(height, width), mode="area") > least).float()
