"""Pixel metrics of an edited picture against the true one: MSE, PSNR, SSIM, and the same over parts of the picture.

Legend: B pictures, C channels, H W pixels. Values in [0, 1], so the data range is 1; nothing is clamped. Everything is
computed in float64 on the CPU: SSIM subtracts squares of nearly equal numbers, and not every device has float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Wang, Bovik, Sheikh, Simoncelli: Image quality assessment (2004), section III-C.
RADIUS = 5  # an 11 x 11 window
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2


def mse(edited: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error over channels and pixels, (B, C, H, W) twice -> (B,)."""
    return (_exact(edited) - _exact(truth)).square().flatten(1).mean(1)


def psnr(edited: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, -10 log10(MSE), (B, C, H, W) twice -> (B,). Infinite for equal pictures."""
    return -10 * mse(edited, truth).log10()


def ssim_map(edited: Tensor, truth: Tensor) -> Tensor:
    """SSIM at every pixel, mean over channels: (B, C, H, W) twice -> (B, H, W).

    Gaussian window of 11 x 11 pixels with sigma 1.5, weighted (population) covariances, K1 = 0.01, K2 = 0.03. The
    picture is mirrored at its border, border pixels included (d c b a | a b c d).

    Raises:
        ValueError: a side is shorter than the window.
    """
    if min(edited.shape[-2:]) < 2 * RADIUS + 1:
        raise ValueError(f"SSIM looks at windows of {2 * RADIUS + 1} pixels; the picture is {edited.shape[-1]} x "
                         f"{edited.shape[-2]}")
    x, y = _exact(edited), _exact(truth)
    mean_x, mean_y, xx, yy, xy = (_window_mean(v) for v in (x, y, x * x, y * y, x * y))
    variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + C1) * (2 * covariance + C2)
                  / ((mean_x**2 + mean_y**2 + C1) * (variance_x + variance_y + C2)))
    return similarity.mean(1)


def ssim(edited: Tensor, truth: Tensor) -> Tensor:
    """SSIM of whole pictures, (B, C, H, W) twice -> (B,).

    Mean of `ssim_map` over the pixels whose window lies inside the picture: 5 pixels at each border are left out, as in
    the published code and in scikit-image. On a 32 x 32 picture those are more than half of all pixels.
    """
    return inner(ssim_map(edited, truth)).flatten(1).mean(1)


def inner(similarity: Tensor) -> Tensor:
    """The part of an SSIM map (B, H, W) whose windows lie inside the picture."""
    return similarity[:, RADIUS:-RADIUS, RADIUS:-RADIUS]


def area_mean(values: Tensor, area: Tensor) -> list[float | None]:
    """Mean of (B, H, W) values over a (B, H, W) bool area of each picture; None where the area is empty."""
    return [float(v[a].mean()) if bool(a.any()) else None for v, a in zip(values, area, strict=True)]


class Areas(NamedTuple):
    """Disjoint parts of the true picture, (B, H, W) bool each, None if not known.

    moved: shows something that the source shows at another place.
    disoccluded: shows what the source does not: uncovered ground, or what came into the picture.
    static: shows what the source shows at the same place.
    """

    moved: Tensor | None
    disoccluded: Tensor | None
    static: Tensor | None


def areas_from_flow(flow: Tensor, visible: Tensor, threshold: float = 0.5) -> Areas:
    """Areas from the true motion.

    Args:
        flow: (B, 2, H, W) pixels from each pixel of the true picture to its place in the source.
        visible: (B, H, W) whether the source shows it there.
        threshold: shortest motion, in pixels, that counts as moved.
    """
    visible = visible.bool()
    moving = flow.norm(dim=1) > threshold
    return Areas(visible & moving, ~visible, visible & ~moving)


def areas_from_masks(moved: Tensor | None, disoccluded: Tensor | None) -> Areas:
    """Areas from masks (B, H, W), set above 0.5. Static is the rest, so it needs both; disoccluded goes before moved."""
    hidden = None if disoccluded is None else disoccluded > 0.5
    if moved is None:
        return Areas(None, hidden, None)
    carried = moved > 0.5
    return Areas(carried, None, None) if hidden is None else Areas(carried & ~hidden, hidden, ~(carried | hidden))


def object_position(image: Tensor, background: Tensor, threshold: float = 0.1) -> list[tuple[float, float] | None]:
    """Where pictures differ from their empty background: centroid of the differing pixels.

    Args:
        image, background: (B, C, H, W).
        threshold: smallest difference, largest over channels, that counts.

    Returns:
        (x, y) in pixels from the middle of the top left pixel, a picture each; None where nothing differs.
    """
    differs = (_exact(image) - _exact(background)).abs().amax(1) > threshold
    centres = []
    for part in differs:
        row, column = part.nonzero(as_tuple=True)
        centres.append((float(column.double().mean()), float(row.double().mean())) if len(row) else None)
    return centres


def _exact(image: Tensor) -> Tensor:
    return image.detach().to("cpu", torch.float64)


def _window_mean(x: Tensor) -> Tensor:
    """Gaussian-weighted mean around every pixel, mirrored borders: (B, C, H, W) -> the same."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=x.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    kernel = (kernel / kernel.sum()).reshape(1, 1, -1, 1)
    height, width = x.shape[-2:]
    flat = x.reshape(-1, 1, height, width)[:, :, _mirrored(height)][..., _mirrored(width)]
    return F.conv2d(F.conv2d(flat, kernel), kernel.movedim(2, 3)).reshape(x.shape)


def _mirrored(length: int) -> Tensor:
    """Indices of a side with RADIUS mirrored pixels at each end; torch's own reflection leaves out the border pixel."""
    index = torch.arange(-RADIUS, length + RADIUS)
    index = torch.where(index < 0, -1 - index, index)
    return torch.where(index >= length, 2 * length - 1 - index, index)
