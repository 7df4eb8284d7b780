"""Frechet distance between two sets of features (Heusel et al. 2017, equation 6; with CLIP features: CLIP-FID)."""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST = 2  # one picture has no covariance
BIASED_BELOW = 2048  # the distance of small sets is too large, and by how much depends on their size


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the normal distributions fitted to two sets of features.

    |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2), with sample covariances (n - 1). With factors
    S_a = A'A and S_b = B'B, the eigenvalues of S_a S_b are the squared singular values of AB', so the last trace is
    their sum. No matrix root is taken, and none of the eigenvalues that are zero because a set is smaller than the
    features are wide: the root of their rounding error, 1e-8 each, is what published code adds up there.

    Args:
        a, b: (N, D) and (M, D), at least two rows each.

    Raises:
        ValueError: too few rows, different widths, or values that are not finite.
    """
    for name, features in (("first", a), ("second", b)):
        if features.ndim != 2 or len(features) < FEWEST:
            raise ValueError(f"the {name} set has shape {tuple(features.shape)}; expected (N, D) with N of {FEWEST} or more")
        if not bool(features.isfinite().all()):
            raise ValueError(f"the {name} set of features has values that are not finite")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"the features are {a.shape[1]} and {b.shape[1]} wide; take both from one encoder")
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    shared = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * shared
    return max(0.0, float(distance))  # equal sets: rounding may leave -1e-15


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and a factor R (at most D, D) of the covariance, R'R = S. R is triangular, of QR: N may be large."""
    x = features.detach().to("cpu", torch.float64)
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r").R
