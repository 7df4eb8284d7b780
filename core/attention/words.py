"""A user's choices about the words of an edit, as text or as the JSON that the editor writes.

Text form, entries on lines of their own or separated by commas or semicolons:

    dog *2             weight the word by 2, in the edited prompt; below 1 weaker, below 0 away from it
    dog 0..0.4         steps in which the word's map is edited, as shares of the run
    cat > dog          dog takes the place of cat; both sides may have several words
    +big               big is new and has its own map, whatever the source says
    @dog               the edit may act where this word looks (local blend); it counts in each prompt that has it
    -@grass            but not where this one looks
    dog#2 *3           the second dog only; without a number all of them

These may stand together: `@cat > dog *2 0..0.4`. A word is found with its capitals and attached punctuation, and if there is none
like that, without: `bird` finds `Bird,`.

JSON form: `{"version": 1, "source": [chip, ...], "edited": [chip, ...]}` with chips

    {"at": 5, "word": "dog", "state": "swapped", "from": [5], "weight": 2, "steps": [0, 0.4], "blend": true, "away": false}

`at` is the word's number from 0. Only `at` and `word` are required; `state` ("kept", "swapped", "added"), `from` (numbers of the
source's words that a swapped one stands for), `weight` and `steps` are read in `edited` only. A word without a chip, or a chip
without a state, follows the automatic alignment.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple

from ..parsing import json_value
from .align import Prompt, WordError
from .edit import STATES, Edit, Kind, Mark, aligned_edit, bare

VERSION = 1
WEIGHT_LIMIT = 100.0


def edit_of(source: Prompt, edited: Prompt, text: str = "", kind: Kind = "automatic", as_released: bool = False) -> Edit:
    """An edit from its prompts and what the user says about words, in either form.

    Args:
        kind, as_released: see `aligned_edit`; what the user says goes on top.

    Raises:
        WordError: the text cannot be read or names words that are not there; or a swap word by word is impossible.
    """
    out = aligned_edit(source, edited, kind, as_released)
    text = text.strip()
    if not text:
        return out
    return with_chips(out, read_state(text)) if is_json(text) else _with_entries(out, text)


# ---- text form -------------------------------------------------------------------------------------------------------

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_TAIL = re.compile(rf"\s+(?:\*\s*(?P<weight>\S+)|(?P<first>{_NUMBER})\s*\.\.\s*(?P<end>{_NUMBER}))\s*$")
_PREFIX = re.compile(r"^(-@|@|\+)\s*")
_COUNTED = re.compile(r"^(.+)#(\d+)$")


class _Entry(NamedTuple):
    text: str
    name: str  # of the word that it is about
    origin: str  # of the word that this one stands for, or empty
    flags: frozenset[str]
    changes: dict[str, Any]  # weight and steps, as given


def _with_entries(edit: Edit, text: str) -> Edit:
    for entry in re.split(r"[\n,;]", text):
        if entry.strip():
            edit = _with_entry(edit, _parsed(entry.strip()))
    return edit


def _parsed(text: str) -> _Entry:
    changes: dict[str, Any] = {}
    rest = " " + text
    while found := _TAIL.search(rest):
        rest = rest[:found.start()]
        if found["weight"] is not None:
            changes["weight"] = _number(found["weight"], text)
        else:
            changes["steps"] = float(found["first"]), float(found["end"])
    rest, flags = rest.strip(), set()
    while found := _PREFIX.match(rest):
        flags.add(found[1])
        rest = rest[found.end():]
    before, arrow, after = (part.strip() for part in rest.partition(">"))
    if not before or (arrow and not after):
        raise WordError(f"the entry '{text}' names no word. Write for instance 'dog *2', '@dog' or 'cat > dog'.")
    if not (flags or changes or arrow):
        raise WordError(f"the entry '{text}' says nothing about the word. Write for instance 'dog *2' for a weight or '@dog' for "
                        "where the edit may act.")
    return _Entry(text, after or before, before if arrow else "", frozenset(flags), changes)


def _with_entry(edit: Edit, entry: _Entry) -> Edit:
    here, there = find_words(edit.edited, entry.name), find_words(edit.source, entry.origin or entry.name)
    changes = dict(entry.changes)
    if "+" in entry.flags:
        changes |= {"state": "added", "origin": ()}
    if changes or entry.origin:
        _need(here, entry.name, edit.edited, "the edited prompt")
    if entry.origin:
        _need(there, entry.origin, edit.source, "the source prompt")
        if len(there) not in (1, len(here)):
            raise WordError(f"the entry '{entry.text}' fits {len(there)} places in the source prompt and {len(here)} in the edited "
                            f"one. Say which, for instance '{entry.origin}#1 > {entry.name}#1'.")
    if not here and not there:
        raise WordError(f"the word '{entry.name}' of the entry '{entry.text}' is in neither prompt. The source prompt has "
                        f"{_listed(edit.source)}; the edited one has {_listed(edit.edited)}.")
    areas = {key: True for flag, key in (("@", "blend"), ("-@", "away")) if flag in entry.flags}
    marks, source_marks = list(edit.marks), list(edit.source_marks)
    for place, group in enumerate(here):
        origin = {"state": "swapped", "origin": there[place % len(there)]} if entry.origin else {}
        for n in group:
            marks[n] = checked(replace(marks[n], **{**origin, **changes, **areas}), entry.text)
    for n in (n for group in there for n in group):
        source_marks[n] = replace(source_marks[n], **areas)
    return replace(edit, marks=tuple(marks), source_marks=tuple(source_marks))


def find_words(prompt: Prompt, name: str) -> list[tuple[int, ...]]:
    """Where a word, or a group of neighbouring words, is in a prompt (numbers of words): every occurrence, or the one that `#n`
    names.

    Exact words win over words that differ in capitals and attached punctuation.
    """
    counted = _COUNTED.match(name)
    wanted = (counted[1] if counted else name).split()
    for seen in (lambda word: word, bare):
        group = [seen(word) for word in wanted]
        known = [seen(word) for word in prompt.words]
        starts = [n for n in range(len(known) - len(group) + 1) if known[n:n + len(group)] == group]
        if starts:
            break
    if counted:
        starts = starts[int(counted[2]) - 1:int(counted[2])] if int(counted[2]) else []
    return [tuple(range(n, n + len(wanted))) for n in starts]


def _need(found: list[tuple[int, ...]], name: str, prompt: Prompt, where: str) -> None:
    if not found:
        raise WordError(f"the word '{name}' is not in {where}, which has {_listed(prompt)}.")


def _listed(prompt: Prompt) -> str:
    return ", ".join(f"'{word}'" for word in prompt.words if word) or "no words"


def _number(text: str, entry: str) -> float:
    if not re.fullmatch(_NUMBER, text):
        raise WordError(f"the weight '{text}' of the entry '{entry}' is not a number. Write for instance 'dog *2'.")
    return float(text)


def checked(mark: Mark, where: str) -> Mark:
    """A mark whose numbers can be used.

    Raises:
        WordError: a weight or steps out of range.
    """
    if not abs(mark.weight) <= WEIGHT_LIMIT:
        raise WordError(f"the weight of '{where}' is {mark.weight:g}; it must be between {-WEIGHT_LIMIT:g} and {WEIGHT_LIMIT:g}.")
    if mark.steps is not None and not 0.0 <= mark.steps[0] <= mark.steps[1] <= 1.0:
        raise WordError(f"the steps of '{where}' go from {mark.steps[0]:g} to {mark.steps[1]:g}; both must be shares of the run, "
                        "from 0 to 1, and the first must not be above the second.")
    return mark


# ---- JSON form -------------------------------------------------------------------------------------------------------


def is_json(text: str) -> bool:
    """Whether a text is in the JSON form, even if it is not valid."""
    return text.lstrip().startswith(("{", "["))


def read_state(text: str) -> dict[str, Any]:
    """The JSON form as an object whose chips are in lists; what is in a chip is not looked at.

    Raises:
        WordError: no JSON, another version, or no lists.
    """
    try:
        state = json_value(text)
    except ValueError as error:
        raise WordError(f"it begins like JSON but cannot be read ({error}). Clear it, or choose the words again.") from None
    version = state.get("version", VERSION) if isinstance(state, dict) else None
    if version != VERSION:
        raise WordError("it must be a JSON object of version 1 with the lists 'source' and 'edited'. Clear it, or update "
                        "ComfyUI-FramePainter if a newer editor has written it.")
    for name in ("source", "edited"):
        if not isinstance(state.get(name, []), list):
            raise WordError(f"'{name}' must be a list. Clear it, or choose the words again.")
    return state


def with_chips(edit: Edit, state: dict[str, Any]) -> Edit:
    """An edit with what a state of `read_state` says on top.

    Raises:
        WordError: a chip that cannot be read, or names a word that is not there.
    """
    marks, source_marks, kept = list(edit.marks), list(edit.source_marks), []
    for name, prompt, into in (("source", edit.source, source_marks), ("edited", edit.edited, marks)):
        for chip in state.get(name, []):
            n = place_of(chip, prompt, name)
            into[n] = checked(_chip_mark(into[n], chip, edit, name), chip["word"])
            kept += [n] if name == "edited" and chip.get("state") == "kept" else []
    out = replace(edit, marks=tuple(marks), source_marks=tuple(source_marks))
    for n in kept:
        if marks[n].state == "kept" and edit.edited.positions[n] and not out.alignment.alphas[list(edit.edited.positions[n])].any():
            raise WordError(f"the word '{edit.edited.words[n]}' is to be kept, but finds no equal word in its place of the source "
                            f"prompt, which has {_listed(edit.source)}. Choose 'added', or 'swapped' and the word it stands for.")
    return out


def place_of(chip: Any, prompt: Prompt, name: str) -> int:
    """Number of the word that a chip is about; a word that has moved is found if it is there once.

    Raises:
        WordError: no such word.
    """
    if not isinstance(chip, dict) or not isinstance(chip.get("word"), str) or not _whole(chip.get("at")):
        raise WordError(f"an entry of '{name}' must have 'at', the number of a word, and 'word', the word. Clear it, or choose the "
                        "words again.")
    at, word = chip["at"], chip["word"]
    if 0 <= at < len(prompt.words) and prompt.words[at] == word:
        return at
    found = [n for n, other in enumerate(prompt.words) if other == word]
    if len(found) != 1:
        raise WordError(f"the word '{word}' was chosen as word {at + 1} of the {name} prompt, which now has {_listed(prompt)}. "
                        "Choose the words again.")
    return found[0]


def _chip_mark(mark: Mark, chip: dict, edit: Edit, name: str) -> Mark:
    word = chip["word"]
    for flag in ("blend", "away"):
        value = chip.get(flag, getattr(mark, flag))
        if not isinstance(value, bool):
            raise WordError(f"'{flag}' of '{word}' must be true or false.")
        mark = replace(mark, **{flag: value})
    if name == "source":
        return mark
    weight, steps, state = chip.get("weight", mark.weight), chip.get("steps"), chip.get("state")
    if not _is_number(weight):
        raise WordError(f"'weight' of '{word}' must be a number.")
    if steps is not None and not (isinstance(steps, list) and len(steps) == 2 and all(_is_number(s) for s in steps)):
        raise WordError(f"'steps' of '{word}' must be two numbers, from and to.")
    mark = replace(mark, weight=float(weight), steps=mark.steps if steps is None else (float(steps[0]), float(steps[1])))
    if state is None:
        return mark
    if state not in STATES:
        raise WordError(f"'state' of '{word}' must be one of {', '.join(STATES)}.")
    if state != "swapped":
        return replace(mark, state=state, origin=())
    origin = chip.get("from", list(mark.origin))
    if not (isinstance(origin, list) and origin and all(_whole(n) and 0 <= n < len(edit.source.words) for n in origin)):
        raise WordError(f"'from' of the swapped word '{word}' must list numbers of the source prompt's words, 0 to "
                        f"{len(edit.source.words) - 1}.")
    return replace(mark, state="swapped", origin=tuple(sorted(set(origin))))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e9  # no sum of them overflows


def state_of(edit: Edit) -> dict[str, Any]:
    """The JSON form of an edit, with a chip for every word."""
    def chip(n: int, word: str, mark: Mark) -> dict[str, Any]:
        return {"at": n, "word": word, "blend": mark.blend, "away": mark.away}

    source = [chip(n, word, mark) for n, (word, mark) in enumerate(zip(edit.source.words, edit.source_marks, strict=True))]
    edited = [{**chip(n, word, mark), "state": mark.state, "from": list(mark.origin), "weight": mark.weight,
               **({} if mark.steps is None else {"steps": list(mark.steps)})}
              for n, (word, mark) in enumerate(zip(edit.edited.words, edit.marks, strict=True))]
    return {"version": VERSION, "source": source, "edited": edited}
