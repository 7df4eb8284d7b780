"""Whether attention finds the right place in the source: correspondence hit rate (FramePainter, Fig. 8, as a number).

Legend: B pairs, h w tokens of an attention map, L = h*w, row-major.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ..attention.correspondence import SiteAttention, TokenMatches, attention_matches, token_matches


class HitRate(NamedTuple):
    """Of `tokens` target tokens that have a true place in the source, `hits` were found."""

    hits: int
    tokens: int

    @property
    def rate(self) -> float | None:
        """Share found, None if there was nothing to find."""
        return self.hits / self.tokens if self.tokens else None

    def plus(self, other: HitRate) -> HitRate:
        """Both counts added, to pool several pairs."""
        return HitRate(self.hits + other.hits, self.tokens + other.tokens)


class BlockHits(NamedTuple):
    """visible: over all visible target tokens. moved: over those of them whose true place is not their own; on the rest
    a network that only looks straight back is right too."""

    visible: HitRate
    moved: HitRate


def hit_rate(best: Tensor, truth: TokenMatches, height: int, width: int, tolerance: int = 1) -> BlockHits:
    """Count target tokens whose best match lies within `tolerance` tokens of the truth, in rows and in columns.

    Args:
        best: (B, L) or (L,) index of the source token that each target token attends to most.
        truth: see `token_matches`; the same B.
        height, width: h, w.
        tolerance: 1 takes the 3 x 3 tokens around the true one.

    Raises:
        ValueError: best and truth are not of one shape, or not h*w tokens.
    """
    best = best.reshape(-1, best.shape[-1]).to(truth.index.device)
    if best.shape != truth.index.shape or best.shape[1] != height * width:
        raise ValueError(f"best matches {tuple(best.shape)} and truth {tuple(truth.index.shape)} must both be (B, "
                         f"{height * width}) for a map of {height} x {width} tokens")
    rows = (best // width - truth.index // width).abs()
    columns = (best % width - truth.index % width).abs()
    hit = (rows <= tolerance) & (columns <= tolerance)
    own = truth.index.new_tensor(range(height * width))
    return BlockHits(_count(hit, truth.visible), _count(hit, truth.visible & (truth.index != own)))


def _count(hit: Tensor, counted: Tensor) -> HitRate:
    return HitRate(int((hit & counted).sum()), int(counted.sum()))


def hit_rates(sites: Mapping[str, SiteAttention], flow: Tensor, visible: Tensor, tolerance: int = 1) -> dict[str, BlockHits]:
    """Hit rates of one edit, of each block and of each resolution.

    Args:
        sites: block path -> its attention, as `host.probe.look` returns it.
        flow: (1, 2, H, W), visible: (1, H, W), the truth in pixels. H and W are multiples of every map's h and w.
        tolerance: see `hit_rate`.

    Returns:
        Block path -> hits of its attention, mean over heads; and "h x w" -> hits of the attention averaged over all
        blocks with maps of that size, finest first, as the Correspondence Map node shows it.

    Raises:
        ValueError: a map whose tokens do not divide the picture.
    """
    found = {}
    sizes: dict[tuple[int, int], list[SiteAttention]] = {}
    for path, site in sites.items():
        if flow.shape[-2] % site.size[0] or flow.shape[-1] % site.size[1]:
            raise ValueError(f"{path}: {site.size[1]} x {site.size[0]} tokens do not divide {flow.shape[-1]} x "
                             f"{flow.shape[-2]} pixels")
        sizes.setdefault(site.size, []).append(site)
        found[path] = _hits([site], flow, visible, tolerance)
    for size in sorted(sizes, reverse=True):
        found[f"{size[0]} x {size[1]}"] = _hits(sizes[size], flow, visible, tolerance)
    return found


def _hits(sites: list[SiteAttention], flow: Tensor, visible: Tensor, tolerance: int) -> BlockHits:
    height, width = sites[0].size
    best = attention_matches(sites, 0).best
    return hit_rate(best, token_matches(flow, visible, height, width), height, width, tolerance)
