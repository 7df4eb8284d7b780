"""FramePainter's sparse control encoder: one RGB control frame and a noise level in, one feature map out.

Source: paper section 3.1 (lightweight encoder after ControlNeXt) and the released weights, whose names and widths it
carries. Legend: N images, H W pixels, C output channels. Widths come from the weights; group counts are the
published ones, as no tensor shows them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM_GROUPS, STAGE_GROUPS, HEAD_GROUPS = 2, (4, 8), 8
DOWNSCALE = 8  # pixels a side for one feature


class EncoderWidths(NamedTuple):
    """All widths of an encoder, readable from its tensors' shapes."""

    image: int
    projection: int
    embedding: int
    stem: tuple[int, int, int]
    stages: tuple[int, int]
    out: int


def widths_from_shapes(shapes: dict[str, tuple[int, ...]]) -> EncoderWidths:
    """Read the widths of an encoder from name -> shape.

    Raises:
        KeyError: a name that every encoder has is missing; its argument is that name.
    """
    return EncoderWidths(
        image=shapes["embedding.0.weight"][1],
        projection=shapes["time_embedding.linear_1.weight"][1],
        embedding=shapes["time_embedding.linear_1.weight"][0],
        stem=tuple(shapes[f"embedding.{i}.weight"][0] for i in (0, 3, 6)),
        stages=tuple(shapes[f"down_res.{i}.conv1.weight"][0] for i in (0, 1)),
        out=shapes["mid_convs.1.weight"][0],
    )


def sinusoidal_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of t (N,) -> (N, width), cosine half first, wavelengths 2 pi to 2 pi * 10000."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class _TimeEmbedding(nn.Module):
    def __init__(self, inner: int, outer: int, ops: Any, **kw: Any):
        super().__init__()
        self.linear_1 = ops.Linear(inner, outer, **kw)
        self.linear_2 = ops.Linear(outer, outer, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class _Residual(nn.Module):
    def __init__(self, inner: int, outer: int, embedding: int, groups: int, ops: Any, **kw: Any):
        super().__init__()
        self.norm1 = ops.GroupNorm(groups, inner, eps=1e-6, **kw)
        self.conv1 = ops.Conv2d(inner, outer, 3, padding=1, **kw)
        self.time_emb_proj = ops.Linear(embedding, outer, **kw)
        self.norm2 = ops.GroupNorm(groups, outer, eps=1e-6, **kw)
        self.conv2 = ops.Conv2d(outer, outer, 3, padding=1, **kw)
        self.conv_shortcut = ops.Conv2d(inner, outer, 1, **kw) if inner != outer else None

    def before_embedding(self, x: Tensor) -> Tensor:
        """The part that does not depend on the noise level."""
        return self.conv1(F.silu(self.norm1(x)))

    def forward(self, x: Tensor, embedding: Tensor, h: Tensor | None = None) -> Tensor:
        """h: what `before_embedding` made of x, if it is known."""
        h = self.before_embedding(x) if h is None else h
        h = h + self.time_emb_proj(F.silu(embedding))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Downsample(nn.Module):
    def __init__(self, width: int, ops: Any, **kw: Any):
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, stride=2, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ControlEncoder(nn.Module):
    """The sparse control encoder (3.53 M parameters as released).

    Args:
        widths: see `widths_from_shapes`.
        operations: the layer classes to build from (Linear, Conv2d, GroupNorm): torch.nn, or the host's casting ones.
        dtype, device: of the weights.
    """

    def __init__(self, widths: EncoderWidths, operations: Any = nn, dtype: torch.dtype | None = None,
                 device: torch.device | str | None = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        ops = operations
        a, b, c = widths.stem
        d, e = widths.stages
        self.widths = widths
        self.time_embedding = _TimeEmbedding(widths.projection, widths.embedding, ops, **kw)
        self.embedding = nn.Sequential(
            ops.Conv2d(widths.image, a, 3, stride=2, padding=1, **kw), ops.GroupNorm(STEM_GROUPS, a, **kw), nn.ReLU(),
            ops.Conv2d(a, b, 3, padding=1, **kw), ops.GroupNorm(STEM_GROUPS, b, **kw), nn.ReLU(),
            ops.Conv2d(b, c, 3, padding=1, **kw), ops.GroupNorm(STEM_GROUPS, c, **kw), nn.ReLU(),
        )
        self.down_res = nn.ModuleList([
            _Residual(c, d, widths.embedding, STAGE_GROUPS[0], ops, **kw),
            _Residual(d, e, widths.embedding, STAGE_GROUPS[1], ops, **kw),
        ])
        self.down_sample = nn.ModuleList([_Downsample(d, ops, **kw), _Downsample(e, ops, **kw)])
        self.mid_convs = nn.ModuleList([
            nn.Sequential(
                ops.Conv2d(e, e, 3, padding=1, **kw), nn.ReLU(), ops.GroupNorm(HEAD_GROUPS, e, **kw),
                ops.Conv2d(e, e, 3, padding=1, **kw), ops.GroupNorm(HEAD_GROUPS, e, **kw),
            ),
            ops.Conv2d(e, widths.out, 1, **kw),
        ])

    def begin(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The part of the encoding that is the same at every noise level, a third of its arithmetic: the stem's features, and
        the first residual block up to its noise-level embedding, both (N, C, H/2, W/2)."""
        h = self.embedding(images)
        return h, self.down_res[0].before_embedding(h)

    def forward(self, images: Tensor, t: Tensor, begun: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Encode control frames.

        Args:
            images: (N, 3, H, W) in [0, 1], light strokes on black.
            t: (N,) the network's noise-level input, 0.25 * ln(sigma).
            begun: what `begin` made of these images, if it is known.

        Returns:
            (N, C, H/8, W/8), rounded up.
        """
        embedding = self.time_embedding(sinusoidal_embedding(t, self.widths.projection).to(images.dtype))
        h, first = self.begin(images) if begun is None else begun
        for residual, down in zip(self.down_res, self.down_sample, strict=True):
            h, first = down(residual(h, embedding, first)), None
        return self.mid_convs[1](h + self.mid_convs[0](h))
