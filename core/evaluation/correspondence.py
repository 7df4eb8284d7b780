"""Whether attention finds the right place in the source: correspondence hit rate (FramePainter, Fig. 8, as a number).

Legend: B pairs, h w tokens of an attention map, L = h*w, row-major.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..attention.correspondence import TokenMatches


class HitRate(NamedTuple):
    """Of `tokens` target tokens that have a true place in the source, `hits` were found."""

    hits: int
    tokens: int

    @property
    def rate(self) -> float | None:
        """Share found, None if there was nothing to find."""
        return self.hits / self.tokens if self.tokens else None


class BlockHits(NamedTuple):
    """visible: over all visible target tokens. moved: over those of them whose true place is not their own; on the others, a
    network that only looks at its own position is right too."""

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
