"""Which tokens of a source prompt lend their cross-attention maps to which tokens of an edited prompt (Prompt-to-Prompt, Hertz et
al. 2022, sections 3.2 to 3.4, as Video-P2P uses it).

A word of the edited prompt is kept (takes the map of the same token of the source), swapped (takes the maps of the word that it
stands for) or added (has its own map). One alignment holds all three, so that one edit may swap, add and reweight words. Where
an edit is of one kind only, it equals the published mapper of that kind:

- `replacement_mapper`: all changed words are swapped, word by word. As published it has a fault: after the last changed word it
  ignores that token counts may differ, and gives later words the maps of wrong tokens.
- the mapper of a refinement: nothing is swapped; equal tokens are matched by a global alignment, the others are new. Its fault:
  after the end of a shorter prompt, padding takes the maps of the source's last words.

`align` follows the shift in both cases; with `as_released` it repeats the faults. If the number of tokens does not change, there is
no difference.

Legend: a prompt has 77 token positions. Position 0 is the start token, then words, the end token, and padding. Mappers have rows
for the source's tokens and columns for the edited prompt's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

TOKENS = 77  # positions of CLIP's text encoder, start and end token included


class WordError(ValueError):
    """Words of an edit that do not fit its prompts."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as CLIP reads it.

    text: without emphasis marks; words are separated by single spaces.
    ids: of the tokens, start and end token included, padding not.
    pieces: each token's text, one character for each byte, without the end-of-word mark.

    Raises:
        WordError: more tokens than the text encoder has positions for.
    """

    text: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]

    def __post_init__(self):
        if len(self.ids) > TOKENS:
            raise WordError(f"the prompt '{self.text}' has {len(self.ids) - 2} tokens; words can be aligned in prompts of at most "
                            f"{TOKENS - 2}. Shorten it.")

    @cached_property
    def words(self) -> tuple[str, ...]:
        return tuple(self.text.split(" "))

    @cached_property
    def positions(self) -> tuple[tuple[int, ...], ...]:
        """Token positions of each word: tokens are assigned to the words in order until their lengths add up."""
        out: list[list[int]] = [[] for _ in self.words]
        lengths = [len(word.lower().encode()) for word in self.words]
        word, done = 0, 0
        for position, piece in enumerate(self.pieces[1:-1], 1):
            while word < len(out) - 1 and done >= lengths[word]:
                word, done = word + 1, 0
            out[word].append(position)
            done += len(piece)
        return tuple(tuple(found) for found in out)


def word_positions(prompt: Prompt, word: str | int) -> list[int]:
    """Token positions of every occurrence of a word, or of the word with a number.

    A word must be equal to what stands between two spaces, with capitals and attached punctuation. Empty if there is none.
    """
    if isinstance(word, int):
        return list(prompt.positions[word])
    return [p for found, positions in zip(prompt.words, prompt.positions, strict=True) if found == word for p in positions]


# ---- the published mappers -------------------------------------------------------------------------------------------


def replacement_mapper(source: Prompt, edited: Prompt) -> Tensor:
    """(77, 77) mapper of a word swap, as published.

    Raises:
        WordError: the prompts differ in their number of words.
    """
    if len(source.words) != len(edited.words):
        raise WordError(f"'{source.text}' has {len(source.words)} words, '{edited.text}' has {len(edited.words)}; a swap word by "
                        "word needs the same number in both. Leave added words to the automatic alignment.")
    changed = [n for n, pair in enumerate(zip(source.words, edited.words, strict=True)) if pair[0] != pair[1]]
    blocks = [(source.positions[n], edited.positions[n]) for n in changed]
    out = torch.zeros(TOKENS, TOKENS)
    i = j = 0
    while i < TOKENS and j < TOKENS:
        if blocks and blocks[0][0][0] == i:
            rows, columns = blocks.pop(0)
            _swap(out, rows, columns)
            i, j = i + len(rows), j + len(columns)
        else:
            out[i if blocks else j, j] = 1.0
            i, j = i + 1, j + 1
    return out


def _swap(mapper: Tensor, rows: Sequence[int], columns: Sequence[int]) -> None:
    """Let columns take the maps of rows: one each if there are equally many, else an equal share of all."""
    if len(rows) == len(columns):
        mapper[rows, columns] = 1.0
    else:
        mapper[torch.tensor(rows)[:, None], torch.tensor(columns)] = 1.0 / len(columns)


def _matched(source: Sequence[int], edited: Sequence[int]) -> list[int]:
    """Global alignment of two sequences (Needleman and Wunsch 1970): match 1, mismatch -1, gaps free.

    Ties prefer a new token to a dropped source token, and a dropped one to a match.
    """
    score = [[0] * (len(edited) + 1) for _ in range(len(source) + 1)]
    for i, a in enumerate(source):
        for j, b in enumerate(edited):
            score[i + 1][j + 1] = max(score[i + 1][j], score[i][j + 1], score[i][j] + (1 if a == b else -1))
    out = [-1] * len(edited)
    i, j = len(source), len(edited)
    while i and j:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            out[j] = i
    return out


# ---- all kinds in one ------------------------------------------------------------------------------------------------


class Swap(NamedTuple):
    """Neighbouring words of the source, and neighbouring words of the edited prompt that take their maps (word numbers)."""

    source: tuple[int, ...]
    edited: tuple[int, ...]


class Alignment(NamedTuple):
    """Copied maps are A_source @ mapper.

    mapper: (77, 77).  alphas: (77,) 1 where an edited token takes a copied map, 0 where it has its own.
    """

    mapper: Tensor
    alphas: Tensor


def align(source: Prompt, edited: Prompt, swaps: Sequence[Swap] = (), added: Iterable[int] = (),
          as_released: bool = False) -> Alignment:
    """Alignment of two prompts in which some words are swapped.

    The swapped words cut both prompts into stretches; within each, equal tokens are matched as in a refinement, and tokens without
    a partner are new.

    Args:
        added: numbers of edited words that have their own maps, though the source may have equal ones.
        as_released: repeat the faults of the published mappers, see above. An edit that both swaps and adds words has no published
            form; it can repeat only the fault of the padding.
    """
    added = sorted(added)
    if as_released and not added and _word_by_word(source, edited, swaps):
        return Alignment(replacement_mapper(source, edited), torch.ones(TOKENS))
    partners = [-1] * len(edited.ids)
    for (i, rows), (j, columns) in _stretches(source, edited, swaps):
        for n, found in enumerate(_matched(rows, columns)):
            partners[j + n] = i + found if found >= 0 else -1
    for word in added:
        for position in edited.positions[word]:
            partners[position] = -1
    partners += [_padding(j, len(source.ids), len(edited.ids), as_released) for j in range(len(edited.ids), TOKENS)]
    mapper, alphas = torch.zeros(TOKENS, TOKENS), torch.zeros(TOKENS)
    for j, i in enumerate(partners):
        if i >= 0:
            mapper[i, j] = alphas[j] = 1.0
    for rows, columns in _token_blocks(source, edited, swaps):
        mapper[:, columns] = 0.0
        _swap(mapper, rows, columns)
        alphas[columns] = 1.0
    return Alignment(mapper, alphas)


def _word_by_word(source: Prompt, edited: Prompt, swaps: Sequence[Swap]) -> bool:
    """Whether the swaps are those of a published replacement: every changed word, each for the one in its place."""
    if not swaps or len(source.words) != len(edited.words):
        return False
    changed = {(n,) for n, pair in enumerate(zip(source.words, edited.words, strict=True)) if pair[0] != pair[1]}
    return {s.source for s in swaps} == changed and all(s.source == s.edited for s in swaps)


def _padding(position: int, source: int, edited: int, as_released: bool) -> int:
    """The source's position for one behind the edited prompt's end: padding for padding, -1 where the source has none left."""
    if as_released or position >= source:
        return position
    position += source - edited
    return position if position < TOKENS else -1


def _token_blocks(source: Prompt, edited: Prompt, swaps: Iterable[Swap]) -> Iterator[tuple[list[int], list[int]]]:
    for swap in swaps:
        rows = [p for word in swap.source for p in source.positions[word]]
        columns = [p for word in swap.edited for p in edited.positions[word]]
        if rows and columns:
            yield rows, columns


def _stretches(source: Prompt, edited: Prompt,
               swaps: Sequence[Swap]) -> Iterator[tuple[tuple[int, Sequence[int]], tuple[int, Sequence[int]]]]:
    """(start, ids) of the source's and the edited prompt's tokens between the swaps; a swap out of order cuts nothing."""
    i = j = 0
    for rows, columns in sorted(_token_blocks(source, edited, swaps), key=lambda block: block[1]):
        if rows[0] >= i and columns[0] >= j:
            yield (i, source.ids[i:rows[0]]), (j, edited.ids[j:columns[0]])
            i, j = rows[-1] + 1, columns[-1] + 1
    yield (i, source.ids[i:]), (j, edited.ids[j:])
