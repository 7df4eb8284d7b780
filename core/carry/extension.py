"""The motion of some pixels, extended to places where it cannot be observed: an affine motion plus a smooth remainder, as in a
planar tracker.

Legend: h w pixels at the working size. Flows are (1, 2, h, w) from the frame to the keyframe.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .affine import box

SIGMAS = (32.0, 16.0, 8.0, 4.0, 2.0, 1.5)  # pixels that a motion may differ from the fit, step by step
SAMPLES, FEWEST = 3000, 12            # pixels of a fit
RIDGE = 2e-3                          # of the points' extent: aligned or few points turn and grow less
RADII = (16, 5, 3)                    # of the windows in which the rest is smoothed
LEAST_MISSED = 0.3                    # pixels


def affine_motion(here: np.ndarray, there: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Robust affine map of most points by reweighted least squares (Geman and McClure's weights, from loose to strict).

    Args:
        here, there: (N, 2) places.  weight: (N,), positive.

    Returns:
        (3, 2), so that [x y 1] @ map is the displacement.
    """
    centre = np.average(here, 0, weight)
    points, moved = np.concatenate([here - centre, np.ones((len(here), 1))], 1), there - here
    extent = float(np.average(np.square(here - centre).sum(1), weights=weight))
    ridge = np.diag([RIDGE * extent, RIDGE * extent, 0.0])
    trust, fit = weight, np.zeros((3, 2))
    for sigma in SIGMAS:
        scaled = points * (trust / trust.sum())[:, None]
        fit = np.linalg.solve(scaled.T @ points + ridge + 1e-9 * np.eye(3), scaled.T @ moved)
        trust = weight / np.square(1 + np.square(points @ fit - moved).sum(1) / sigma**2)
    fit[2] -= centre @ fit[:2]
    return fit


def extended(flow: Tensor, doubt: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The motion of the pixels that `weight` names, everywhere.

    Args:
        flow, doubt: (1, 2, h, w) and (1, 1, h, w) as tracked.  weight: (1, 1, h, w), 0 or more.

    Returns:
        flow (1, 2, h, w), and pixels (1, 1, h, w) that it may be off. Without pixels enough, what was given.
    """
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    grid = torch.stack([x, y], -1)
    sure = (weight / (1 + doubt.square())).cpu()
    chosen = sure.flatten().nonzero()[:, 0]
    if len(chosen) < FEWEST:
        return flow, doubt
    chosen = chosen[::max(1, len(chosen) // SAMPLES)]
    here = grid.reshape(-1, 2)[chosen].double().numpy()
    moved = flow[0].movedim(0, -1).reshape(-1, 2).cpu()[chosen].double().numpy()
    fit = torch.from_numpy(affine_motion(here, here + moved, sure.flatten()[chosen].double().numpy())).float()
    plane = (grid @ fit[:2] + fit[2]).movedim(-1, 0)[None].to(flow)
    rest = flow - plane
    trust = sure.to(flow) / (1 + rest.square().sum(1, keepdim=True) / SIGMAS[-1] ** 2).square()
    smooth, little = torch.zeros_like(rest), trust.amax() * 1e-3
    for radius in RADII:  # each where there is something to go by, else what the wider one says
        near = blurred(trust, radius)
        smooth = (blurred(trust * rest, radius) + little * smooth) / (near + little)
    missed = blurred(trust * (rest - smooth).square().sum(1, keepdim=True), RADII[1]) / (blurred(trust, RADII[1]) + little)
    return plane + smooth, (missed + LEAST_MISSED**2).sqrt()


def blurred(x: Tensor, radius: int) -> Tensor:
    """Mean over a window with larger weights at its centre."""
    return box(box(x, radius), radius)
