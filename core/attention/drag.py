"""Drags: tokens of the source frame are copied to the places that the user chose (FramePainter, Appendix A).

"At the output of each attention block", the source frame's tokens at the source points are added to the edited frames'
tokens at the target points. This needs no training, but a network may be trained with it.

Legend: B videos, T frames, h w tokens, L = h*w, C channels, K drags a picture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TokenDrags(NamedTuple):
    """At one resolution. source, target: (B, K) token numbers. share: (B, K) weight of each drag in its target token.

    Drags that end in one token share it evenly, so their order and number do not matter; a missing drag has share 0.
    """

    source: Tensor
    target: Tensor
    share: Tensor


def token_drags(points: Tensor, height: int, width: int) -> TokenDrags:
    """Drags between pixels -> drags between tokens.

    Args:
        points: (B, K, 4) source x, y, target x, y as shares of width and height, 0 to 1 inside the picture; NaN in place
            of a drag that is not there. A point outside leaves its drag out.
        height, width: h, w.
    """
    inside = ((points >= 0) & (points <= 1)).all(-1)  # NaN compares False
    sizes = points.new_tensor([width, height, width, height])
    limit = torch.tensor([width, height, width, height], device=points.device) - 1
    cell = torch.minimum((points.nan_to_num() * sizes).floor().long().clamp_min(0), limit)
    source = cell[..., 1] * width + cell[..., 0]
    target = cell[..., 3] * width + cell[..., 2]
    ending = torch.zeros((len(points), height * width), dtype=torch.long, device=points.device)  # drags that end in each token
    ending.scatter_add_(1, target, inside.long())
    return TokenDrags(source, target, inside / ending.gather(1, target).clamp_min(1))


def copy_tokens(tokens: Tensor, drags: TokenDrags, strength: float = 1.0) -> Tensor:
    """tokens + strength * source tokens at their targets, in all frames but the first; not in place.

    Args:
        tokens: (B, T, L, C), frame 0 the source.
    """
    width = tokens.shape[-1]
    moved = tokens[:, 0].gather(1, drags.source[..., None].expand(-1, -1, width))  # (B, K, C)
    moved = moved * (strength * drags.share[..., None]).to(tokens)
    added = torch.zeros_like(tokens[:, 0]).scatter_add(1, drags.target[..., None].expand(-1, -1, width), moved)
    return torch.cat([tokens[:, :1], tokens[:, 1:] + added[:, None]], 1)
