"""The text-to-set network: a text-to-image UNet whose frames see each other (Video-P2P, section 3.1; Tune-A-Video).

A Stable Diffusion 1.x UNet works on all frames of a video as one batch, with four changes:

1. Convolutions stay 2-D and act on each frame.
2. The group norms of the residual blocks and of the output head pool their statistics over all frames of a video. Those at
   the entry of a transformer stay per frame.
3. Self-attention (attn1) takes keys and values from frame 0 of the same video, for every frame.
4. A temporal attention (attn_temp) is added at the end of each transformer block.

Everything here processes the frames in parts, so that only the memory of the features themselves grows with their number.

Legend: V videos in one pass, F frames, L tokens of a frame, C channels, N heads. Rows are folded as (V*F, ...), the frame
varying faster.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .at_path import put_at

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # q (B, Lq, C), k, v (B, Lk, C), heads -> (B, Lq, C)

CHUNK = 8 * 64 * 64  # tokens worked on at a time: the eight frames of 512 x 512 that the release works on
TRAINED = ("attn1.to_q", "attn2.to_q", "attn_temp")  # modules that one-shot tuning trains; norm_temp stays as it is
_BLOCK = re.compile(r"(.+\.transformer_blocks\.\d+)\.attn1\.to_q\.weight$")
_POOLED = re.compile(r"(.+\.(?:in|out)_layers\.0|out\.0)\.weight$")


def block_sites(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Path of every transformer block -> C, from a UNet's parameter shapes (ComfyUI names)."""
    return {m[1]: shape[0] for name, shape in shapes.items() if (m := _BLOCK.match(name))}


def pooled_norms(names: Iterable[str]) -> list[str]:
    """Paths of the group norms that pool over the frames: two in every residual block, one in the output head."""
    return [m[1] for name in names if (m := _POOLED.match(name))]


def is_trained(name: str) -> bool:
    """Whether one-shot tuning trains a parameter (ComfyUI or diffusers name)."""
    return any(f".{part}." in f".{name}" for part in TRAINED)


def by_parts(count: int, size: int, work: Callable[[slice], Tensor], dim: int, device: torch.device | None = None) -> Tensor:
    """Work on `size` of `count` entries at a time; the results joined along `dim`, on `device` if one is given."""
    size = max(1, size)
    if count <= size:
        return work(slice(0, count)).to(device)
    out: Tensor | None = None
    for start in range(0, count, size):
        part = work(slice(start, min(start + size, count)))
        if out is None:
            out = part.new_empty([count if d == dim else n for d, n in enumerate(part.shape)], device=device or part.device)
        out.narrow(dim, start, part.shape[dim]).copy_(part)
    return out


# ---- group norm ------------------------------------------------------------------------------------------------------


def pooled_group_norm(x: Tensor, frames: int, groups: int, weight: Tensor, bias: Tensor, eps: float,
                      chunk: int = CHUNK) -> Tensor:
    """Group norm with mean and variance over a group's channels, all frames of the video, height and width.

    Two passes over the frames: statistics first, then the normalisation. Both compute in float32 at least.

    Args:
        x: (V*F, C, h, w).  frames: F.  weight, bias: (C,).
    """
    video = x.unflatten(0, (-1, frames))  # (V, F, C, h, w)
    size = max(1, chunk // (video.shape[0] * math.prod(x.shape[2:])))
    statistics = GroupStatistics(groups)
    for part in video.split(size, 1):
        statistics.add(part)
    return by_parts(frames, size, lambda part: statistics.apply(video[:, part], weight, bias, eps), 1).flatten(0, 1)


class GroupStatistics:
    """Mean and variance of a group norm's groups over a video that comes in parts (Chan et al. 1979 for joining them)."""

    def __init__(self, groups: int):
        self.groups = groups
        self.frames: list[int] = []
        self.means: list[Tensor] = []  # (V, G) each
        self.variances: list[Tensor] = []

    def add(self, part: Tensor) -> None:
        """part: (V, f, C, h, w)."""
        wide = torch.promote_types(part.dtype, torch.float32)
        values = part.unflatten(2, (self.groups, -1)).flatten(3).to(wide)  # (V, f, G, C/G*h*w)
        variance, mean = torch.var_mean(values, (1, 3), correction=0)
        self.frames.append(part.shape[1])
        self.means.append(mean)
        self.variances.append(variance)

    def joined(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of all parts, (V, G)."""
        if len(self.means) == 1:
            return self.means[0], self.variances[0]
        means = torch.stack(self.means)  # (parts, V, G)
        share = torch.tensor(self.frames).to(means)[:, None, None] / sum(self.frames)
        mean = (share * means).sum(0)
        return mean, (share * (torch.stack(self.variances) + (means - mean) ** 2)).sum(0)

    def apply(self, part: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Normalise some frames, (V, f, C, h, w), in their own type."""
        mean, variance = self.joined()
        repeats = part.shape[2] // self.groups
        scale = torch.rsqrt(variance + eps).repeat_interleave(repeats, 1) * weight  # (V, C)
        shift = bias - mean.repeat_interleave(repeats, 1) * scale
        scale, shift = (t[:, None, :, None, None] for t in (scale, shift))
        return torch.addcmul(shift, part.to(scale), scale).to(part.dtype)


# ---- attention over frames -------------------------------------------------------------------------------------------


def frame_attention(module: Any, x: Tensor, first: Tensor, attention: Attention, value: Tensor | None = None,
                    chunk: int = CHUNK) -> Tensor:
    """Self-attention of every frame to frame 0 of its video, through a layer's own projections.

    Args:
        module: the layer, with to_q, to_k, to_v, to_out and heads.
        x: (V*F, L, C) normalised tokens, of all frames or some.
        first: (V, Lk, C) those of each video's frame 0.  value: what values are made from, `first` where None.

    Returns:
        (V*F, L, C), after the output projection.
    """
    k, v = module.to_k(first), module.to_v(first if value is None else value)  # (V, Lk, C)
    video = x.unflatten(0, (len(first), -1))
    videos, frames, length, _ = video.shape

    def part(which: slice) -> Tensor:
        # All frames of a video ask the same keys, so they are one long query. (V, f*L, C)
        out = attention(module.to_q(video[:, which].flatten(1, 2)), k, v, module.heads)
        return module.to_out(out).unflatten(1, (-1, length))

    return by_parts(frames, chunk // (videos * length), part, 1).flatten(0, 1)


def window_mask(frames: int, window: int) -> Tensor | None:
    """(F, F) bool: which frames each frame sees, the `window` nearest to it. None if it sees all.

    A network that was tuned on a few frames then never attends over more than these.
    """
    if not 0 < window < frames:
        return None
    position = torch.arange(frames)
    first = (position - window // 2).clamp(0, frames - window)[:, None]
    return (position >= first) & (position < first + window)


class TemporalLayer(nn.Module):
    """x + attn_temp(norm_temp(x)): at each position, attention over the frames. Without mask or position encoding.

    Args:
        width: C.  heads: N.
        operations: layer classes to build from (Linear, LayerNorm).  dtype, device: of the weights.
    """

    def __init__(self, width: int, heads: int, operations: Any = nn, dtype: torch.dtype | None = None,
                 device: torch.device | str | None = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.heads = heads
        self.norm_temp = operations.LayerNorm(width, **kw)
        self.attn_temp = nn.Module()
        for name in ("to_q", "to_k", "to_v"):
            self.attn_temp.add_module(name, operations.Linear(width, width, bias=False, **kw))
        self.attn_temp.to_out = nn.ModuleList([operations.Linear(width, width, **kw)])

    def forward(self, x: Tensor, frames: int, attention: Attention, chunk: int = CHUNK,
                device: torch.device | None = None) -> Tensor:
        """The layer's output, where x is.

        Args:
            x: (V*F, L, C).
            attention: is given (V*L, F, C), or as many of these rows as `chunk` allows.
            device: to compute on, part by part; x's own where None.
        """
        video = x.unflatten(0, (-1, frames))  # (V, F, L, C)
        layer = self.attn_temp

        def part(which: slice) -> Tensor:
            tokens = video[:, :, which].to(device)
            normed = self.norm_temp(tokens).movedim(1, 2).flatten(0, 1)  # (V*l, F, C)
            out = layer.to_out[0](attention(layer.to_q(normed), layer.to_k(normed), layer.to_v(normed), self.heads))
            return tokens + out.unflatten(0, (len(video), -1)).movedim(2, 1)

        return by_parts(x.shape[1], chunk // x.shape[0], part, 2, x.device).flatten(0, 1)


class TemporalLayers(nn.Module):
    """All temporal layers of a network, at the paths of their transformer blocks.

    Names: `<block path>.attn_temp.to_q.weight` and so on, so its state dict reads like the inflated UNet's.

    Args:
        sites: path of each transformer block -> C.  heads: N, the same at every level in SD 1.x.
        operations, dtype, device: see TemporalLayer.
    """

    def __init__(self, sites: Mapping[str, int], heads: int, operations: Any = nn, dtype: torch.dtype | None = None,
                 device: torch.device | str | None = None):
        super().__init__()
        self.sites = dict(sites)
        for path, width in sites.items():
            put_at(self, path, TemporalLayer(width, heads, operations, dtype, device))

    def at(self, path: str) -> TemporalLayer:
        """The layer of a transformer block."""
        return self.get_submodule(path)


def fresh_temporal(sites: Mapping[str, int], seed: int, random_bias: bool = False) -> dict[str, Tensor]:
    """Tensors that temporal layers start from, by name: output weights zero, the others drawn as PyTorch draws them.

    Args:
        random_bias: the output bias too, as released; every block then adds a constant to its tokens until tuning has
            absorbed it. False: zero, so that the network starts equal to the one without temporal attention.
    """
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for path, width in sites.items():
        bound = 1.0 / math.sqrt(width)

        def drawn(*shape: int, bound: float = bound) -> Tensor:
            return (torch.rand(shape, generator=generator) * 2.0 - 1.0) * bound

        for name in ("to_q", "to_k", "to_v"):
            out[f"{path}.attn_temp.{name}.weight"] = drawn(width, width)
        out[f"{path}.attn_temp.to_out.0.weight"] = torch.zeros(width, width)
        out[f"{path}.attn_temp.to_out.0.bias"] = drawn(width) if random_bias else torch.zeros(width)
        out[f"{path}.norm_temp.weight"] = torch.ones(width)
        out[f"{path}.norm_temp.bias"] = torch.zeros(width)
    return out
