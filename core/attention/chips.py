"""An edit as the word chips of Prompt Edit show it: the state of each word, and the user's choices so far.

A text that does not fit its prompts is read as far as possible: chips of words that are no longer there are set aside, so that a
prompt can be changed without losing the other chips.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .align import Prompt, WordError
from .alignment_picture import word_links
from .edit import Edit, Kind, Mark, aligned_edit
from .words import VERSION, edit_of, is_json, place_of, read_state, with_chips

LISTS = ("source", "edited")


class Reading(NamedTuple):
    """What a text says about the words of two prompts.

    edit: as far as the text fits; `problem` says why it does not in full.
    said: the JSON form of what differs from the automatic alignment; chips of a JSON text with their other keys.
    lost: chips, by list, of words that are not in the prompts.
    """

    edit: Edit
    said: dict[str, Any]
    lost: dict[str, list[Any]]
    problem: str | None


def read_words(source: Prompt, edited: Prompt, text: str = "", kind: Kind = "automatic", as_released: bool = False) -> Reading:
    """Read what the user says about words, in either form (see `words.py`).

    Raises:
        WordError: a swap word by word is impossible, whatever the text says.
    """
    base = aligned_edit(source, edited, kind, as_released)
    try:
        if not is_json(text):
            found = edit_of(source, edited, text, kind, as_released)
            return Reading(found, said_of(found, base), _none(), None)
        state, lost, problem = _placed(read_state(text), source, edited)
        return Reading(with_chips(base, state), state, lost, problem)
    except WordError as error:
        return Reading(base, said_of(base, base), _none(), str(error))


def _none() -> dict[str, list[Any]]:
    return {name: [] for name in LISTS}


def _placed(state: dict[str, Any], source: Prompt, edited: Prompt) -> tuple[dict[str, Any], dict[str, list[Any]], str | None]:
    """A JSON state whose chips name the present numbers of their words, the chips without a word, and why the first has none."""
    out, lost, problem = dict(state), _none(), None
    for name, prompt in zip(LISTS, (source, edited), strict=True):
        out[name] = []
        for chip in state.get(name, []):
            try:
                out[name].append({**chip, "at": place_of(chip, prompt, name)})
            except WordError as error:
                lost[name].append(chip)
                problem = problem or str(error)
    return out, lost, problem


def said_of(edit: Edit, base: Edit) -> dict[str, Any]:
    """The JSON form of what an edit has beyond another one of the same prompts."""
    pairs = zip(LISTS, (edit.source.words, edit.edited.words), (edit.source_marks, edit.marks), (base.source_marks, base.marks),
                strict=True)
    return {"version": VERSION, **{
        name: [{"at": n, "word": words[n], **_difference(mark, before)}
               for n, (mark, before) in enumerate(zip(marks, befores, strict=True)) if mark != before]
        for name, words, marks, befores in pairs}}


def _difference(mark: Mark, before: Mark) -> dict[str, Any]:
    plain = ("blend", "away", "weight")
    out: dict[str, Any] = {key: getattr(mark, key) for key in plain if getattr(mark, key) != getattr(before, key)}
    if mark.steps is not None and mark.steps != before.steps:
        out["steps"] = list(mark.steps)
    if (mark.state, mark.origin) != (before.state, before.origin):
        out["state"] = mark.state
        if mark.state == "swapped":
            out["from"] = list(mark.origin)
    return out


def links_of(edit: Edit) -> list[list[int]]:
    """[source word, edited word] for every pair of words of which one lends its map to the other."""
    return [[i, j] for i, j, _ in word_links(edit)]
