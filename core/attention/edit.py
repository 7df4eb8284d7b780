"""An edit of a prompt, word by word: which words are kept, swapped, added or weighted, and where the edit may act.

The correspondence of the words of two prompts is found automatically; `words.py` reads the user's choices about them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from .align import TOKENS, Alignment, Prompt, Swap, WordError, align

Kind = Literal["automatic", "swap", "refine"]
KINDS: tuple[Kind, ...] = ("automatic", "swap", "refine")
State = Literal["kept", "swapped", "added"]
STATES: tuple[State, ...] = ("kept", "swapped", "added")


@dataclass(frozen=True)
class Mark:
    """What an edit does with one word. In the source prompt only `blend` and `away` mean anything.

    state: kept, swapped or added.  origin: words of the source that a swapped word stands for.
    weight: factor of its map.  steps: shares of the run in which its map is edited, None for those of all words.
    blend: the edit may act where it looks.  away: the edit may not act there.
    """

    state: State = "kept"
    origin: tuple[int, ...] = ()
    weight: float = 1.0
    steps: tuple[float, float] | None = None
    blend: bool = False
    away: bool = False


@dataclass(frozen=True)
class Edit:
    """A source prompt, an edited prompt, and a mark for each of their words.

    as_released: align with the oddities of the published code.
    """

    source: Prompt
    edited: Prompt
    source_marks: tuple[Mark, ...]
    marks: tuple[Mark, ...]
    as_released: bool = False

    @property
    def swaps(self) -> list[Swap]:
        """Neighbouring words that stand for the same words of the source are one swap."""
        numbered = [(n, mark.origin) for n, mark in enumerate(self.marks) if mark.state == "swapped"]
        runs = groupby(enumerate(numbered), key=lambda item: (item[1][0] - item[0], item[1][1]))
        return [Swap(origin, tuple(word for _, (word, _) in found)) for (_, origin), found in runs]

    @cached_property
    def alignment(self) -> Alignment:
        added = [n for n, mark in enumerate(self.marks) if mark.state == "added"]
        return align(self.source, self.edited, self.swaps, added, self.as_released)

    @property
    def factors(self) -> Tensor:
        """(77,) factors of the edited prompt's maps."""
        out = torch.ones(TOKENS)
        for mark, positions in zip(self.marks, self.edited.positions, strict=True):
            out[list(positions)] = mark.weight
        return out

    @property
    def steps(self) -> list[tuple[tuple[int, ...], tuple[float, float]]]:
        """Token positions, and the shares of the run in which their maps are edited, of words that have their own."""
        return [(positions, mark.steps) for mark, positions in zip(self.marks, self.edited.positions, strict=True)
                if mark.steps is not None]

    @property
    def changes(self) -> bool:
        """Whether any word differs or is weighed."""
        return self.source.words != self.edited.words or any(mark.weight != 1.0 for mark in self.marks)

    def chosen(self, what: Literal["blend", "away"]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Numbers of the words of the source and of the edited prompt that are marked so."""
        return tuple(tuple(n for n, mark in enumerate(marks) if getattr(mark, what))
                     for marks in (self.source_marks, self.marks))


def aligned_edit(source: Prompt, edited: Prompt, kind: Kind = "automatic", as_released: bool = False) -> Edit:
    """The edit that follows from two prompts alone.

    Args:
        kind: "automatic": words that differ are swapped or added, as their numbers allow. "swap": word by word, which needs
            equally many words. "refine": nothing is swapped.

    Raises:
        WordError: a swap word by word is impossible.
    """
    marks = _marks(source, edited, automatic_swaps(source.words, edited.words, kind), as_released)
    return Edit(source, edited, tuple(Mark() for _ in source.words), marks, as_released)


def automatic_swaps(source: Sequence[str], edited: Sequence[str], kind: Kind = "automatic") -> list[Swap]:
    """Words that stand for others.

    Between words that both prompts have, as many words as there are on both sides are paired from the last backwards, since
    the noun of a group comes last in English: in "a man" to "a big robot", robot stands for man and big is new.

    Raises:
        WordError: a swap word by word of prompts that differ in their number of words.
    """
    if kind == "refine":
        return []
    if kind == "swap":
        if len(source) != len(edited):
            raise WordError(f"the source prompt has {len(source)} words, the edited one {len(edited)}; a swap word by word needs "
                            "the same number in both. Choose the automatic alignment, which takes the others as added.")
        return [Swap((n,), (n,)) for n, pair in enumerate(zip(source, edited, strict=True)) if pair[0] != pair[1]]
    out = []
    plain = [[bare(word) for word in words] for words in (source, edited)]
    for what, a, b, c, d in difflib.SequenceMatcher(None, *plain, autojunk=False).get_opcodes():
        if what == "replace":
            pairs = min(b - a, d - c)
            out += [Swap((b - pairs + n,), (d - pairs + n,)) for n in range(pairs)]
    return out


def _marks(source: Prompt, edited: Prompt, swaps: Iterable[Swap], as_released: bool) -> tuple[Mark, ...]:
    """Marks of an alignment: what is not swapped is kept if a token of it finds its partner in the source, else added."""
    origins = {word: swap.source for swap in swaps for word in swap.edited}
    swaps = [Swap(origin, (word,)) for word, origin in origins.items()]
    alphas = align(source, edited, swaps, as_released=as_released).alphas
    return tuple(Mark("swapped", origins[n]) if n in origins else
                 Mark("added" if positions and not alphas[list(positions)].any() else "kept")
                 for n, positions in enumerate(edited.positions))


def bare(word: str) -> str:
    """A word without capitals and attached punctuation; a word of punctuation alone as it is."""
    return re.sub(r"^\W+|\W+$", "", word.lower()) or word
