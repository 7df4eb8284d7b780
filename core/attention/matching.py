"""Matching attention: every edited token attends to the source frame's tokens (FramePainter, section 3.2, equations 2 to 4).

Legend: B videos, T frames, L tokens of one frame (h*w), C channels, N heads, D channels a head.
Rows are folded as (B*T, L, C), frame 0 of each video being the source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..models.at_path import put_at

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # q (B, Lq, C), k, v (B, Lk, C), heads -> (B, Lq, C)
Recorder = Callable[[Tensor, Tensor, int], None]  # q (B, T, L, C), k (B, L, C), heads


class MatchingAttention(nn.Module):
    """One matching branch: its own projections, the source frame's keys and values.

    Args:
        width: C.  heads: N.
        operations: layer classes to build from (Linear).  dtype, device: of the weights.
    """

    def __init__(self, width: int, heads: int, operations: Any = nn, dtype: torch.dtype | None = None,
                 device: torch.device | str | None = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.heads = heads
        self.to_q = operations.Linear(width, width, bias=False, **kw)
        self.to_k = operations.Linear(width, width, bias=False, **kw)
        self.to_v = operations.Linear(width, width, bias=False, **kw)
        self.to_out = nn.ModuleList([operations.Linear(width, width, **kw)])

    def forward(self, normed: Tensor, frames: int, attention: Attention, targets_only: bool = False,
                record: Recorder | None = None) -> Tensor:
        """Attend from the frames' tokens to those of frame 0 of the same video.

        Args:
            normed: (B*T, L, C) the block's normalised input.
            frames: T.
            attention: the scaled dot-product attention to use.
            targets_only: False as released: all frames attend, the source frame itself included. True as in the paper: frame 0 gets
                exact zeros (projection bias included), which also saves its share of the computation.
            record: called with the queries and keys, for read-outs.

        Returns:
            (B*T, L, C), to be added to the self-attention's output.
        """
        rows, length, width = normed.shape
        video = normed.reshape(rows // frames, frames, length, width)  # (B, T, L, C)
        source = video[:, 0]  # (B, L, C)
        asking = video[:, 1:] if targets_only else video
        q = self.to_q(asking)
        k, v = self.to_k(source), self.to_v(source)
        if record is not None:
            record(q, k, self.heads)
        # All frames of a video ask the same keys: fold them into one long query. (B, T*L, C)
        out = self.to_out[0](attention(q.flatten(1, 2), k, v, self.heads)).reshape(asking.shape)
        if targets_only:
            out = torch.cat([torch.zeros_like(video[:, :1]), out], dim=1)
        return out.reshape(rows, length, width)


class MatchingBranch(nn.Module):
    """All matching attentions of a UNet, at the paths of the spatial blocks they belong to.

    Args:
        widths: path of the spatial transformer block (ComfyUI naming) -> C.
        head_width: D, channels a head.
        operations, dtype, device: see MatchingAttention.

    Names: `<path>.to_q.weight` and so on, so the branch's state dict reads like the UNet's.
    """

    def __init__(self, widths: dict[str, int], head_width: int, operations: Any = nn, dtype: torch.dtype | None = None,
                 device: torch.device | str | None = None):
        super().__init__()
        self.sites = tuple(widths)
        for path, width in widths.items():
            put_at(self, path, MatchingAttention(width, width // head_width, operations, dtype, device))

    def at(self, path: str) -> MatchingAttention:
        """The attention that belongs to a spatial transformer block."""
        return self.get_submodule(path)
