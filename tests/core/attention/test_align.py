"""Alignment of an edit's words: one function for all kinds of edits, with and without the user's choices."""

from __future__ import annotations

import json
import re

import pytest
import torch

SIZE = 77


@pytest.fixture(scope="module")
def align(pack):
    return pack("core.attention.align")


@pytest.fixture(scope="module")
def words(pack):
    return pack("core.attention.words")


@pytest.fixture(scope="module")
def edits(pack):
    return pack("core.attention.edit")


@pytest.fixture(scope="module")
def prompt(align):
    """A prompt with tokens of at most four letters, punctuation apart; equal pieces have equal ids."""
    def make(text: str):
        pieces = re.findall(r"[a-z]{1,4}|[^a-z\s]", text.lower())
        ids = [49406, *(sum(ord(c) * 131**n for n, c in enumerate(piece)) % 40000 for piece in pieces), 49407]
        return align.Prompt(text, tuple(ids), ("<s>", *pieces, "<e>"))

    return make


def columns(alignment):
    """For each edited position the source's positions with their shares, or None for an own map."""
    return [{int(i): float(column[i]) for i in column.nonzero().flatten()} if alpha else None
            for column, alpha in zip(alignment.mapper.T, alignment.alphas, strict=True)]


def test_words_take_their_tokens(prompt):
    found = prompt("a photorealistic cat")
    assert found.positions == ((1,), (2, 3, 4, 5), (6,))
    assert prompt("a  cat").positions == ((1,), (), (2,))  # two spaces: an empty word has no token


def test_words_of_several_bytes(align):
    """A piece has one character for each byte, as the vocabulary writes it."""
    found = align.Prompt("é chat", (0, 1, 2, 3), ("<s>", "Ã©", "chat", "<e>"))
    assert found.positions == ((1,), (2,))


def test_too_many_tokens(align):
    with pytest.raises(align.WordError, match="has 76 tokens.*at most 75"):
        align.Prompt("a " * 76, tuple(range(78)), ("a",) * 78)


def test_equal_prompts_are_the_identity(words, edits, prompt):
    same = prompt("a cat and a cat sits")
    for kind in edits.KINDS:
        for released in (False, True):
            found = words.edit_of(same, same, "", kind, released)
            assert torch.equal(found.alignment.mapper, torch.eye(SIZE)) and bool((found.alignment.alphas == 1).all())
            assert not found.changes


def test_swap_without_change_of_length_is_the_published_one(align, words, prompt):
    source, edited = prompt("a cat sits on a cat tree"), prompt("a dog sits on a dog bush")
    found = words.edit_of(source, edited)
    assert [(s.source, s.edited) for s in found.swaps] == [((1,), (1,)), ((5,), (5,)), ((6,), (6,))]
    assert torch.equal(found.alignment.mapper, align.replacement_mapper(source, edited))
    assert bool((found.alignment.alphas == 1).all())


def test_swap_follows_the_shift(align, words, prompt):
    """The published mapper gives words behind a longer one the maps of wrong tokens; the alignment the right ones."""
    source, edited = prompt("a man drives in the wood"), prompt("a Spiderman drives in the wood")
    found = words.edit_of(source, edited)
    got = columns(found.alignment)
    assert got[2] == got[3] == got[4] == {2: pytest.approx(1 / 3)}
    # drives (2 tokens), in, the, wood, end
    assert got[5:11] == [{3: 1.0}, {4: 1.0}, {5: 1.0}, {6: 1.0}, {7: 1.0}, {8: 1.0}]
    assert all(source.pieces[next(iter(got[j]))] == edited.pieces[j] for j in range(5, 11))
    released = words.edit_of(source, edited, as_released=True)
    assert torch.equal(released.alignment.mapper, align.replacement_mapper(source, edited))
    assert columns(released.alignment)[7] == {7: 1.0}  # "in" with the map of "wood"
    back = columns(words.edit_of(edited, source).alignment)
    assert back[2] == {2: 1.0, 3: 1.0, 4: 1.0} and back[3] == {5: 1.0}


def test_padding_takes_padding(words, prompt):
    """After the end of a shorter prompt the published refinement gives the maps of the source's last words."""
    source, edited = prompt("a big red car drives"), prompt("a car")
    sane = columns(words.edit_of(source, edited, kind="refine").alignment)
    assert all(next(iter(sane[j])) >= len(source.ids) for j in range(len(edited.ids), SIZE) if sane[j])
    released = columns(words.edit_of(source, edited, kind="refine", as_released=True).alignment)
    assert released[4] == {4: 1.0} and source.pieces[4] == "car"


def test_added_and_removed_words(align, words, prompt):
    source, edited = prompt("a rabbit jumps on grass"), prompt("a tiny origami rabbit jumps on red grass")
    found = words.edit_of(source, edited)
    got, new = columns(found.alignment), [2, 3, 4, 10]  # tokens of tiny, origami (two) and red
    assert [j for j in range(len(edited.ids)) if got[j] is None] == new
    assert all(source.pieces[next(iter(got[j]))] == piece for j, piece in enumerate(edited.pieces) if j not in new)
    assert [m.state for m in found.marks] == ["kept", "added", "added", "kept", "kept", "kept", "added", "kept"]


def test_swap_refine_and_reweight_together(words, prompt):
    source, edited = prompt("a cat sits on the mat"), prompt("a small dog sits on the blue mat")
    found = words.edit_of(source, edited, "dog *2 0..0.5, blue *-1, @cat > dog")
    states = dict(zip(edited.words, (m.state for m in found.marks), strict=True))
    assert states == {"a": "kept", "small": "added", "dog": "swapped", "sits": "kept", "on": "kept", "the": "kept",
                      "blue": "added", "mat": "kept"}
    got = columns(found.alignment)
    for word, partner in (("a", "a"), ("dog", "cat"), ("sits", "sits"), ("mat", "mat")):
        (j,), (i,) = edited.positions[edited.words.index(word)], source.positions[source.words.index(partner)]
        assert got[j] == {i: 1.0}
    for word in ("small", "blue"):
        assert all(got[j] is None for j in edited.positions[edited.words.index(word)])
    assert got[len(edited.ids) - 1] == {len(source.ids) - 1: 1.0}
    (dog,), (blue,) = edited.positions[2], edited.positions[6]
    assert found.factors[dog] == 2.0 and found.factors[blue] == -1.0 and int((found.factors != 1).sum()) == 2
    assert found.steps == [((dog,), (0.0, 0.5))]
    assert found.chosen("blend") == ((1,), (2,)) and found.chosen("away") == ((), ())


def test_every_column_of_a_swap_shares_the_sources_map(words, prompt):
    """A word of several tokens gives or takes its whole map: rows and columns sum to the numbers of tokens."""
    source, edited = prompt("the hippopotamus eats"), prompt("the crocodile eats")  # 3 tokens -> 3; 4 -> 2 below
    for a, b in ((source, edited), (prompt("the automobilists eat"), edited)):
        found = words.edit_of(a, b)
        rows, cols = list(a.positions[1]), list(b.positions[1])
        block = found.alignment.mapper[rows][:, cols]
        assert float(block.sum()) == pytest.approx(len(rows))
        assert torch.allclose(block.sum(1), torch.ones(len(rows)))


def test_groups_of_words(words, prompt):
    source, edited = prompt("a man runs"), prompt("a big robot runs")
    assert [m.state for m in words.edit_of(source, edited).marks] == ["kept", "added", "swapped", "kept"]
    found = words.edit_of(source, edited, "man > big robot")
    assert [(s.source, s.edited) for s in found.swaps] == [((1,), (1, 2))]
    assert columns(found.alignment)[2] == {2: pytest.approx(1 / 3)}  # big, robo, t
    assert columns(found.alignment)[5] == {3: 1.0}


def test_a_word_may_be_added_though_the_source_has_it(words, prompt):
    source, edited = prompt("a cat runs"), prompt("a cat runs")
    found = words.edit_of(source, edited, "+cat *2")
    assert columns(found.alignment)[2] is None and found.changes
    assert columns(found.alignment)[3] == {3: 1.0}


def test_crossed_swaps(words, prompt):
    source, edited = prompt("red cat blue dog"), prompt("blue dog red cat")
    found = words.edit_of(source, edited, "cat > dog, dog > cat")
    got = columns(found.alignment)
    assert got[2] == {2: 1.0} and got[4] == {4: 1.0}


def test_occurrences(words, prompt):
    source = prompt("a cat near a cat")
    edited = prompt("a dog near a dog")
    assert [m.origin for m in words.edit_of(source, edited, "cat > dog").marks if m.origin] == [(1,), (4,)]
    found = words.edit_of(source, edited, "dog#2 *3, @dog#1")
    assert [m.weight for m in found.marks] == [1, 1, 1, 1, 3.0] and found.chosen("blend") == ((), (1,))
    with pytest.raises(words.WordError, match="2 places in the source prompt and 1 in the edited one.*'cat#1 > dog#1'"):
        words.edit_of(source, prompt("a dog near a tree"), "cat > dog")


def test_punctuation_and_capitals(words, prompt):
    source, edited = prompt("A big red car, on the road"), prompt("a car on the road")
    found = words.edit_of(source, edited, "@car")
    assert not found.swaps and found.chosen("blend") == ((3,), (1,))
    assert all(m.state == "kept" for m in found.marks)


@pytest.mark.parametrize("text, message", [
    ("horse *2", "the word 'horse' is not in the edited prompt, which has 'a', 'dog', 'runs'"),
    ("cat *2", "the word 'cat' is not in the edited prompt"),
    ("@horse", "in neither prompt. The source prompt has 'a', 'cat', 'runs'; the edited one has 'a', 'dog', 'runs'"),
    ("dog", "the entry 'dog' says nothing about the word"),
    ("dog *lots", "the weight 'lots' of the entry 'dog \\*lots' is not a number"),
    ("dog *1000", "the weight of 'dog \\*1000' is 1000; it must be between -100 and 100"),
    ("dog 0.5..0.2", "the steps of 'dog 0.5..0.2' go from 0.5 to 0.2"),
    ("cat >", "the entry 'cat >' names no word"),
    ("horse > dog", "the word 'horse' is not in the source prompt"),
    ("dog#3 *2", "the word 'dog#3' is not in the edited prompt"),
    ('{"version": 2}', "JSON object of version 1"),
    ("{", "cannot be read"),
    ("[]", "JSON object of version 1"),
    ('{"edited": 3}', "'edited' must be a list"),
    ('{"edited": [{"at": 1}]}', "must have 'at'"),
    ('{"edited": [{"at": 1, "word": "horse"}]}', "the word 'horse' was chosen as word 2 of the edited prompt"),
    ('{"edited": [{"at": 1, "word": "dog", "weight": "2"}]}', "'weight' of 'dog' must be a number"),
    ('{"edited": [{"at": 1, "word": "dog", "weight": NaN}]}', "'weight' of 'dog' must be a number"),
    ('{"edited": [{"at": 1, "word": "dog", "steps": [1]}]}', "'steps' of 'dog' must be two numbers"),
    ('{"edited": [{"at": 1, "word": "dog", "state": "eaten"}]}', "must be one of kept, swapped, added"),
    ('{"edited": [{"at": 1, "word": "dog", "state": "swapped", "from": [7]}]}', "numbers of the source prompt's words, 0 to 2"),
    ('{"edited": [{"at": 1, "word": "dog", "state": "kept"}]}', "the word 'dog' is to be kept, but finds no equal word"),
    ('{"edited": [{"at": 1, "word": "dog", "blend": 1}]}', "'blend' of 'dog' must be true or false"),
])
def test_what_cannot_be_meant_is_refused(words, prompt, text, message):
    with pytest.raises(words.WordError, match=message):
        words.edit_of(prompt("a cat runs"), prompt("a dog runs"), text)


def test_swap_word_by_word_needs_as_many(words, prompt):
    with pytest.raises(words.WordError, match="has 2 words, the edited one 3"):
        words.edit_of(prompt("a car"), prompt("a red car"), kind="swap")


def test_the_editors_state_says_the_same_as_the_text(words, prompt):
    source, edited = prompt("a cat sits on the mat"), prompt("a small dog sits on the mat")
    for text in ("", "dog *2 0..0.5, @cat > dog, -@mat", "cat > small dog", "+mat *-1"):
        found = words.edit_of(source, edited, text)
        again = words.edit_of(source, edited, json.dumps(words.state_of(found)))
        assert again.marks == found.marks and again.source_marks == found.source_marks
        assert torch.equal(again.alignment.mapper, found.alignment.mapper)
    partial = words.edit_of(source, edited, '{"version": 1, "edited": [{"at": 2, "word": "dog", "weight": 3}]}')
    assert partial.marks[2] == words.Mark("swapped", (1,), 3.0)
    moved = words.edit_of(source, prompt("one small dog sits"), '{"edited": [{"at": 7, "word": "dog", "blend": true}]}')
    assert moved.marks[2].blend
