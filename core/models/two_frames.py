"""The temporal convolution of two frames as one dense product.

A kernel of three frames on two of them, with a frame of zeros at either end, multiplies a third of its products by those zeros:
frame 0 is W1 x0 + W2 x1, frame 1 is W0 x0 + W1 x1. Legend: B videos, C D channels, h w size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL, PADDING = (3, 1, 1), (1, 0, 0)
LEAST = 192  # places (B*h*w) below which arranging the weights costs more than the products save, measured on a CPU


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the dense product is cheaper: two frames with enough positions."""
    return x.ndim == 5 and x.shape[2] == 2 and tuple(weight.shape[2:]) == KERNEL and x[:, 0, 0].numel() >= LEAST


def two_frame_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv3d(x, weight, bias, padding=(1, 0, 0)) of two frames. The weights are arranged again in each call, layer by layer, as a
    second copy of all of them would take 650 MB in half precision.

    Args:
        x: (B, C, 2, h, w).  weight: (D, C, 3, 1, 1).  bias: (D,).

    Returns:
        (B, D, 2, h, w).
    """
    taps = weight[:, :, :, 0, 0]
    dense = torch.stack([taps[:, :, 1:], taps[:, :, :2]], 1).flatten(0, 1).flatten(1)  # (D * frames out, C * frames in)
    out = F.conv2d(x.flatten(1, 2), dense[:, :, None, None], None if bias is None else bias.repeat_interleave(2))
    return out.unflatten(1, (-1, 2))
