"""Local affine colour models: how a change depends on the colour in a window (as in the guided filter, He and others 2013).

Legend: B batch, H W pixels, F picture, D change of it; both (B, 3, H, W).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 4e-4  # of the colours' variance: flat windows keep their mean change


class Affine(NamedTuple):
    """D = gain F + offset.  gain: (B, 3, 3, H, W), [change, colour].  offset: (B, 3, H, W)."""

    gain: Tensor
    offset: Tensor

    def apply(self, picture: Tensor) -> Tensor:
        """The change of a picture (B, 3, H, W)."""
        out = self.offset.clone()
        for colour in range(3):  # in place: at full size, a product of all would be nine pictures
            out.addcmul_(self.gain[:, :, colour], picture[:, colour:colour + 1])
        return out

    def packed(self) -> Tensor:
        """(B, 12, H, W), to be looked up along a flow or resized."""
        return torch.cat([self.gain.flatten(1, 2), self.offset], 1)


def unpacked(values: Tensor) -> Affine:
    """The inverse of `packed`."""
    return Affine(values[:, :9].unflatten(1, (3, 3)), values[:, 9:])


def box(x: Tensor, radius: int) -> Tensor:
    """Mean over a square window, of what is inside the picture. (B, C, H, W) -> the same."""
    if radius <= 0:
        return x
    side = 2 * radius + 1
    across = F.avg_pool2d(x, (1, side), 1, (0, radius), count_include_pad=False)
    return F.avg_pool2d(across, (side, 1), 1, (radius, 0), count_include_pad=False)


def affine_models(picture: Tensor, change: Tensor, radius: int = 2, ridge: float = RIDGE, weight: Tensor | None = None) -> Affine:
    """Least squares in every window, gains pulled to zero: without texture the change is its mean.

    Args:
        radius: of the window in pixels; 2 is 5 x 5.
        weight: (B, 1, H, W) of each pixel, positive.
    """
    if weight is None:
        mean = lambda x: box(x, radius)  # noqa: E731
    else:
        total = box(weight, radius).clamp_min(1e-8)
        mean = lambda x: box(x * weight, radius) / total  # noqa: E731
    centre, level = mean(picture), mean(change)
    r, g, b = picture.unbind(1)
    squares = mean(torch.stack([r * r, r * g, r * b, g * g, g * b, b * b], 1))
    rm, gm, bm = centre.unbind(1)
    rr, rg, rb, gg, gb, bb = (squares - torch.stack([rm * rm, rm * gm, rm * bm, gm * gm, gm * bm, bm * bm], 1)).unbind(1)
    rr, gg, bb = rr + ridge, gg + ridge, bb + ridge
    products = mean((change[:, :, None] * picture[:, None]).flatten(1, 2)).unflatten(1, (3, 3))
    cross = products - level[:, :, None] * centre[:, None]  # (B, change, colour, H, W)
    # Inverse of the symmetric 3 x 3 covariance by cofactors.
    c00, c01, c02 = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
    c11, c12, c22 = rr * bb - rb * rb, rg * rb - rr * gb, rr * gg - rg * rg
    scale = 1 / (rr * c00 + rg * c01 + rb * c02).clamp_min(1e-12)
    inverse = torch.stack([c00, c01, c02, c01, c11, c12, c02, c12, c22], 1).unflatten(1, (3, 3)) * scale[:, None, None]
    gain = (cross[:, :, :, None] * inverse[:, None]).sum(2)
    offset = level - (gain * centre[:, None]).sum(2)
    return Affine(gain, offset)
