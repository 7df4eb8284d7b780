"""Editing a video by changing words: what happens to cross- and temporal attention, and where the edit may act (Prompt-to-Prompt,
Hertz et al. 2022, section 3; Video-P2P, section 3.3).

Cross-attention of an edited prompt. With A0 the source's probabilities, A the edit's own, M and alpha an alignment, c the
factors of reweighting and w the weights of a step, all but A0 and A one number for each edited token:

    A' = w c (A0 M alpha + A (1 - alpha)) + (1 - w) A  =  A0 C + A o

C is a matrix of tokens by tokens, o a row of tokens, and both act on the values just as well: A' V = A0 (C V) + A (o V). So the
edit needs no probabilities, only the attention kernel with other values; the same holds for temporal attention, where the edit
takes the source's probabilities as they are. Probabilities exist only where words are mapped: for the 77 tokens of the layers
at a quarter of the latent's size, some frames at a time.

Legend: P prompts, the source and E edits; F frames; L = h*w tokens of a frame; C = N*D channels, N heads; T = r * 77 tokens of
the text (a host may repeat a text r times, which changes nothing); K words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.inflated import CHUNK, by_parts
from .align import TOKENS

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q (B, Lq, C), k and v (B, Lk, C) -> (B, Lq, C)
Interval = float | tuple[float, float]  # shares of the steps, from and to; a number means from 0

POOL = 3  # cells of a side over which a map's maximum is taken before it becomes a mask
MAP_SCALE = 4  # words are mapped in layers at 1 / this of the latent's size


# ---- when ------------------------------------------------------------------------------------------------------------


def token_weights(steps: int, default: Interval, words: Sequence[tuple[Sequence[int], Interval]] = ()) -> Tensor:
    """Weight of the edited maps at each step: (steps + 1, 77), 0 or 1.

    An interval (lo, hi) covers steps int(lo * (N + 1)) to int(hi * (N + 1)) - 1. As published, this counts N + 1 steps.

    Args:
        default: of all tokens.  words: token positions and an interval for them, later ones over earlier ones.
    """
    out = torch.zeros(steps + 1, TOKENS)
    for positions, interval in ((range(TOKENS), default), *words):
        first, end = (int(share * (steps + 1)) for share in _ends(interval))
        columns = torch.tensor(list(positions), dtype=torch.long)
        out[:, columns] = 0.0
        out[first:end, columns] = 1.0
    return out


def in_interval(step: int, steps: int, interval: Interval) -> bool:
    """Whether temporal attention is the source's in a step: int(lo * N) <= step < int(hi * N). Here N, as published."""
    first, end = (int(share * steps) for share in _ends(interval))
    return first <= step < end


def _ends(interval: Interval) -> tuple[float, float]:
    return tuple(interval) if isinstance(interval, tuple | list) else (0.0, interval)


# ---- cross-attention -------------------------------------------------------------------------------------------------


class CrossEdit(NamedTuple):
    """What one step does to cross-attention: A' = A0 @ taken + A * own.

    taken: (E, 77, 77).  own: (E, 77).  takes, keeps: for each edit, whether these are not 0 everywhere.
    """

    taken: Tensor
    own: Tensor
    takes: tuple[bool, ...]
    keeps: tuple[bool, ...]

    @property
    def acts(self) -> bool:
        """Whether anything is changed."""
        return any(self.takes) or not bool((self.own == 1.0).all())

    def to(self, device: torch.device) -> CrossEdit:
        return self._replace(taken=self.taken.to(device), own=self.own.to(device))


def cross_edit(mapper: Tensor, alphas: Tensor, factors: Tensor, weights: Tensor) -> CrossEdit:
    """The edit of one step, in float32.

    Args:
        mapper: (E, 77, 77).  alphas, factors, weights: (E, 77): tokens with a copied map; reweighting; the step's weights.
    """
    taken = mapper * (alphas * factors * weights)[:, None]
    own = (1.0 - alphas) * factors * weights + (1.0 - weights)
    return CrossEdit(taken, own, tuple(taken.flatten(1).any(1).tolist()), tuple(own.any(1).tolist()))


def edited_probabilities(source: Tensor, own: Tensor, edit: CrossEdit, index: int) -> Tensor:
    """A' of one edit.

    Args:
        source, own: (..., T) probabilities of the same queries in the source and in the edit.  index: of the edit.
    """
    text = (-1, TOKENS)
    source, own = source.unflatten(-1, text), own.unflatten(-1, text)
    return (source @ edit.taken[index].to(source) + own * edit.own[index].to(own)).flatten(-2)


def edited_cross_attention(q: Tensor, k: Tensor, v: Tensor, source: int, edits: Sequence[int], edit: CrossEdit,
                           attention: Attention, chunk: int = CHUNK) -> Tensor:
    """Cross-attention of all prompts in a pass, the edits' with edited probabilities.

    Args:
        q: (P, F, L, C).  k, v: (P, F, T, C). There may be further videos, which are left alone.
        source, edits: their places among the videos.
        chunk: tokens worked on at a time, of queries or of the text, whichever are more.

    Returns:
        (P, F, L, C)
    """
    untouched = [p for p in range(len(q)) if p not in edits]
    taking = [(p, e) for e, p in enumerate(edits) if edit.takes[e]]
    keeping = [(p, e) for e, p in enumerate(edits) if edit.keeps[e]]

    def part(frames: slice) -> Tensor:
        queries, keys, values = q[:, frames], k[:, frames], v[:, frames]
        asked = [*untouched, *[source] * len(taking), *(p for p, _ in keeping)]
        under = [*(values[p] for p in untouched), *(_mixed(edit.taken[e], values[p]) for p, e in taking),
                 *(_scaled(edit.own[e], values[p]) for p, e in keeping)]
        found = attention(queries[asked].flatten(0, 1), keys[asked].flatten(0, 1), torch.cat(under)).unflatten(0, (len(asked), -1))
        out = torch.zeros_like(queries)
        for place, answer in zip([*untouched, *(p for p, _ in taking), *(p for p, _ in keeping)], found, strict=True):
            out[place] += answer
        return out

    return by_parts(q.shape[1], max(1, chunk // (len(q) * max(q.shape[2], k.shape[2]))), part, 1)


def _mixed(taken: Tensor, values: Tensor) -> Tensor:
    """C V: (77, 77), (F, T, C) -> (F, T, C)."""
    texts = values.unflatten(1, (-1, TOKENS)).float()
    return (taken @ texts).flatten(1, 2).to(values.dtype)


def _scaled(own: Tensor, values: Tensor) -> Tensor:
    """o V: (77,), (F, T, C) -> (F, T, C)."""
    return (values.unflatten(1, (-1, TOKENS)) * own[:, None].to(values)).flatten(1, 2)


# ---- temporal attention ----------------------------------------------------------------------------------------------


def followed_temporal_attention(q: Tensor, k: Tensor, v: Tensor, source: int, edits: Sequence[int], attention: Attention,
                                chunk: int = CHUNK) -> Tensor:
    """Attention over frames in which the edits look where the source looks: its probabilities, the edits' values.

    Args:
        q, k, v: (P, L, F, C), a sequence of frames at each position. There may be further videos, which are left alone.
        source, edits: their places among the videos.
        chunk: tokens worked on at a time.

    Returns:
        (P, L, F, C)
    """
    asked = [source if p in edits else p for p in range(len(q))]

    def part(rows: slice) -> Tensor:
        found = attention(*(t.flatten(0, 1) for t in (q[:, rows][asked], k[:, rows][asked], v[:, rows])))
        return found.unflatten(0, (len(q), -1))

    return by_parts(q.shape[1], max(1, chunk // (len(q) * q.shape[2])), part, 1)


# ---- where words look ------------------------------------------------------------------------------------------------


class WordMaps:
    """Where the words of each prompt look, summed over the steps of a run: a small map for each word and frame.

    Everything up to a mask's max-pool is linear, so one running sum is enough. The maps are those after editing.
    """

    def __init__(self, tokens: Sequence[Tensor], frames: int, layers: int):
        """tokens: for each prompt (77, K), 1 where a token belongs to a word.  layers: over which a step's maps are averaged."""
        self.tokens, self.frames, self.layers = list(tokens), frames, layers
        self.sums: list[Tensor | None] = [None] * len(self.tokens)  # (F, K, h, w) each

    def add(self, prompt: int, probabilities: Callable[[slice], Tensor], size: tuple[int, int], part: slice | None = None,
            chunk: int = CHUNK) -> None:
        """Add one layer's maps of a prompt.

        Args:
            probabilities: of some frames, counted from the first of `part`, (f, N, L, T).
            size: (h, w) with h * w = L.  part: frames that are added, None for all.  chunk: query tokens at a time.
        """
        tokens, part = self.tokens[prompt], slice(0, self.frames) if part is None else part

        def maps(which: slice) -> Tensor:
            found = probabilities(which).mean(1).unflatten(-1, (-1, TOKENS)).sum(-2)  # (f, L, 77)
            return (found @ tokens.to(found)).transpose(1, 2).unflatten(2, size) / self.layers

        found = by_parts(part.stop - part.start, chunk // (size[0] * size[1]), maps, 0)
        if self.sums[prompt] is None:
            self.sums[prompt] = found.new_zeros(self.frames, *found.shape[1:])
        self.sums[prompt][part] += found

    def of(self, prompt: int, words: Sequence[int]) -> Tensor:
        """The sum of some words' maps, (F, h, w)."""
        return self.sums[prompt][:, list(words)].sum(1)


def word_tokens(positions: Sequence[Sequence[int]]) -> Tensor:
    """(77, K): 1 where a token belongs to a word, from the token positions of each word."""
    out = torch.zeros(TOKENS, len(positions))
    for word, tokens in enumerate(positions):
        out[list(tokens), word] = 1.0
    return out


def mapped_sites(scales: Mapping[str, int], scale: int = MAP_SCALE) -> set[str]:
    """Layers whose words are mapped: those at 1 / scale of the latent's size, or at the nearest coarser or finer there is.

    Args:
        scales: path of each layer -> how many times fewer tokens a side than the latent it has.
    """
    nearest = min(set(scales.values()), key=lambda s: (max(s / scale, scale / s), s))
    return {path for path, found in scales.items() if found == nearest}


# ---- local blend -----------------------------------------------------------------------------------------------------


def first_blending_step(steps: int, start: float) -> int:
    """The first step, from 0, after which latents are blended: a counter from 1 must exceed int(start * N)."""
    return int(start * steps)


def relative_map(maps: Tensor, size: tuple[int, int], pooled: bool = True) -> Tensor:
    """Maps at the latent's size, each frame's largest value 1: (..., h, w) -> (..., H, W). A map of zeros stays so.

    Args:
        pooled: with a 3 x 3 maximum before.
    """
    flat = maps.reshape(-1, 1, *maps.shape[-2:]).float()
    if pooled:
        flat = F.max_pool2d(flat, POOL, 1, POOL // 2)
    out = F.interpolate(flat, size=size, mode="nearest")
    largest = out.amax((-2, -1), keepdim=True)
    return torch.where(largest > 0, out / largest, 0.0).reshape(*maps.shape[:-2], *size)


def blend_masks(maps: Tensor, size: tuple[int, int], threshold: float, away: Tensor | None = None,
                away_threshold: float = 0.0) -> Tensor:
    """Where each prompt's words look: (P, F, H, W) bool, the source first; every edit's mask holds the source's, too.

    Args:
        maps: (P, F, h, w) of the words to edit.  threshold: a mask is where the relative map is strictly above.
        away: (P, F, h, w) of words that are taken off the masks, without max-pool.  away_threshold: theirs.
    """
    def united(relative: Tensor, threshold: float) -> Tensor:
        found = relative > threshold
        return found | found[:1]

    masks = united(relative_map(maps, size), threshold)
    if away is not None:
        masks = masks & ~united(relative_map(away, size, pooled=False), away_threshold)
    return masks


def local_blend(source: Tensor, edit: Tensor, mask: Tensor) -> Tensor:
    """The edit inside its mask, the source outside: source + mask * (edit - source).

    Args:
        source: (..., F, 4, H, W).  edit: the same, or with an axis of edits before.  mask: (..., F, H, W) in [0, 1].
    """
    return torch.lerp(source.expand_as(edit), edit, mask.unsqueeze(-3).to(edit))
