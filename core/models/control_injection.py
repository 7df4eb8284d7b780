"""How control features enter the UNet: cross-normalisation, pooling, addition.

Source: the released FramePainter network (after ControlNeXt's cross normalisation). Legend: N rows (frames), C channels,
h w the UNet's map, H W the control map (twice as large in normal operation).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

INJECTION_GAIN = 0.2  # as released; multiplies the user's strength


def match_statistics(control: Tensor, features: Tensor) -> Tensor:
    """Give each control row the mean and (unbiased) standard deviation of its feature row, then its size.

    Args:
        control: (N, C, H, W).  features: (N, C, h, w).

    Returns:
        (N, C, h, w) float32. Statistics are those of the control map before pooling, over channel, height and width.
    """
    over = (1, 2, 3)
    features, control = features.float(), control.float()
    centred = control - control.mean(over, keepdim=True)
    scale = features.std(over, keepdim=True) / (control.std(over, keepdim=True) + 1e-5)
    return F.adaptive_avg_pool2d(centred * scale + features.mean(over, keepdim=True), features.shape[-2:])


def inject(features: Tensor, control: Tensor, strength: Tensor | float, reference: Tensor | None = None) -> Tensor:
    """features + 0.2 * strength * match_statistics(control, reference), never in place.

    Not in place because the UNet has stored the very same tensor as its skip connection.

    Args:
        features: (N, C, h, w).  control: (N, C, H, W).  strength: one number, or (N, 1, 1, 1) one a row.
        reference: (N, C, h, w) the features before any control, if others were injected already; their order then does
            not matter. None: the features themselves.
    """
    matched = match_statistics(control, features if reference is None else reference)
    return (features.float() + matched * strength * INJECTION_GAIN).to(features.dtype)
