"""What the word chips say is what the text form says, and survives a change of the prompts."""

from __future__ import annotations

import json
import random

import pytest
import torch

WORDS = ["a", "red", "blue", "disc", "square", "on", "the", "big", "ground"]
SEED = 3


@pytest.fixture(scope="module")
def align(pack):
    return pack("core.attention.align")


@pytest.fixture(scope="module")
def words(pack):
    return pack("core.attention.words")


@pytest.fixture(scope="module")
def chips(pack):
    return pack("core.attention.chips")


@pytest.fixture(scope="module")
def prompt(align):
    def make(words):
        return align.Prompt(" ".join(words), (0, *(2 + WORDS.index(w) for w in words), 1), ("<s>", *words, "<e>"))

    return make


def some_text(rng: random.Random, source: list[str], edited: list[str]) -> str:
    """Entries of every form about words that are there."""
    kinds = [lambda: f"{rng.choice(edited)} *{rng.choice([-1, 0, 0.5, 2, 4])}", lambda: f"@{rng.choice(source + edited)}",
             lambda: f"-@{rng.choice(source + edited)}", lambda: f"+{rng.choice(edited)}",
             lambda: f"{rng.choice(source)}#1 > {rng.choice(edited)}#1", lambda: f"{rng.choice(edited)} 0.1..0.6"]
    return "\n".join(rng.choice(kinds)() for _ in range(rng.randint(0, 4)))


def test_chips_say_what_the_text_says(words, chips, prompt):
    rng = random.Random(SEED)
    said = 0
    for _ in range(200):
        source = [rng.choice(WORDS) for _ in range(rng.randint(1, 8))]
        edited = [w if rng.random() < 0.7 else rng.choice(WORDS) for w in source][:rng.randint(1, 8)]
        pair, text = (prompt(source), prompt(edited)), some_text(rng, source, edited)
        by_text = words.edit_of(*pair, text)
        read = chips.read_words(*pair, text)
        assert read.edit == by_text and read.problem is None and not any(read.lost.values())
        again = chips.read_words(*pair, json.dumps(read.said))
        assert again.edit == by_text and again.said == read.said, text
        assert words.edit_of(*pair, json.dumps(read.said)) == by_text
        said += len(read.said["source"]) + len(read.said["edited"])
        for chip in read.said["edited"]:  # nothing is written that follows without it
            assert len(chip) > 2, chip
        untouched = {n for n in range(len(edited))} - {chip["at"] for chip in read.said["edited"]}
        automatic = words.edit_of(*pair)
        assert all(by_text.marks[n] == automatic.marks[n] for n in untouched)
        for i, j in chips.links_of(by_text):  # a link is where the alignment takes a map from
            assert by_text.alignment.mapper[by_text.source.positions[i][0], by_text.edited.positions[j][0]] > 0
    assert said > 200


def test_a_word_that_has_gone_costs_no_other_chip(words, chips, prompt):
    source, edited = prompt(["a", "red", "disc"]), prompt(["big", "a", "blue", "square"])
    state = {"version": 1, "note": "mine", "source": [{"at": 1, "word": "red", "blend": True}],
             "edited": [{"at": 1, "word": "blue", "weight": 2, "why": "so"}, {"at": 2, "word": "disc", "weight": 3}]}
    with pytest.raises(words.WordError, match="the word 'disc' was chosen"):
        words.edit_of(source, edited, json.dumps(state))
    read = chips.read_words(source, edited, json.dumps(state))
    assert "the word 'disc' was chosen as word 3 of the edited prompt" in read.problem
    assert read.lost == {"source": [], "edited": [state["edited"][1]]}
    assert read.said == {**state, "edited": [{"at": 2, "word": "blue", "weight": 2, "why": "so"}]}
    assert read.edit == words.edit_of(source, edited, json.dumps(read.said)) and read.edit.marks[2].weight == 2
    assert torch.equal(read.edit.factors[1:5], torch.tensor([1.0, 1.0, 2.0, 1.0]))


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', '{"edited": 3}', "horse *2", "disc *1000",
                                  '{"edited": [{"at": 0, "word": "a", "weight": 1e5}]}'])
def test_what_cannot_be_read_leaves_the_automatic_alignment(words, chips, prompt, text):
    pair = prompt(["a", "red", "disc"]), prompt(["a", "blue", "disc"])
    read = chips.read_words(*pair, text)
    assert read.edit == words.edit_of(*pair) and read.problem and read.said["edited"] == [] and not any(read.lost.values())
    with pytest.raises(words.WordError, match=read.problem[:20].replace("(", ".")):
        words.edit_of(*pair, text)
