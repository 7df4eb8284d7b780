"""How far pixels are from an area, and soft edges made of that. Legend: H W pixels."""

from __future__ import annotations

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

WORK = 64  # pixels of reach that are counted at full resolution; further ones at a coarser one


def distance_to(area: Tensor, reach: int) -> Tensor:
    """Euclidean distance of each pixel's middle to the nearest one in an area, in pixels; 0 inside, at most reach + 1.

    Exact up to a reach of 64 pixels. Beyond, it is taken on a grid coarser by reach / 64, rounded up, and is off by at most
    about that factor.

    Args:
        area: (H, W) bool.
    """
    far = float(reach + 1)
    if reach <= 0 or not bool(area.any()):
        return torch.where(area, 0.0, far)
    factor = -(-reach // WORK)
    if factor > 1:
        height, width = area.shape
        coarse = max_pool2d(area[None, None].float(), factor, ceil_mode=True)[0, 0] > 0
        found = distance_to(coarse, WORK)[None, None] * factor
        found = interpolate(found, scale_factor=factor, mode="bilinear", align_corners=False)[0, 0, :height, :width]
        return torch.where(area, 0.0, found.clamp(0.0, far))
    rows, columns = area.any(1).nonzero(), area.any(0).nonzero()
    top, bottom = max(0, int(rows[0]) - reach), min(area.shape[0], int(rows[-1]) + reach + 1)
    left, right = max(0, int(columns[0]) - reach), min(area.shape[1], int(columns[-1]) + reach + 1)
    out = torch.full(area.shape, far, device=area.device)
    found = torch.from_numpy(distance_transform_edt(~area[top:bottom, left:right].cpu().numpy()))
    out[top:bottom, left:right] = found.to(out).clamp_max_(far)
    return out


def grown(area: Tensor, pixels: int) -> Tensor:
    """An area (H, W) bool with all pixels that are at most so far from it; a negative number takes its edge away."""
    if pixels > 0:
        return distance_to(area, pixels) <= pixels
    return distance_to(~area, -pixels) > -pixels if pixels < 0 else area


def feathered(area: Tensor, pixels: int, outside: bool) -> Tensor:
    """Weights (H, W): 1 in an area, 0 elsewhere, with a smooth edge of so many pixels.

    Args:
        area: (H, W) bool.
        outside: the edge lies outside: all of the area has weight 1. Else inside: all that is not in it has weight 0.
    """
    if pixels <= 0:
        return area.float()
    if outside:
        share = 1 - (distance_to(area, pixels) - 0.5) / pixels
    else:
        share = (distance_to(~area, pixels) - 0.5) / pixels
        share = torch.where(area, share, 0.0)
    share = torch.where(area & outside, 1.0, share.clamp(0, 1)) if outside else share.clamp(0, 1)
    return share * share * (3 - 2 * share)  # no kink at either end
