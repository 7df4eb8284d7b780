"""Word alignment and local blend against recorded values of the published code. No network."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests.golden import Case
from framepainter_tests.videop2p import of_kind


def cases_of(kind: str):
    return pytest.mark.parametrize("case", of_kind(kind), ids=repr)


@pytest.fixture
def align(pack):
    return pack("core.attention.align")


@pytest.fixture
def prompt(pack):
    return pack("core.attention.prompt")


@pytest.fixture
def words(pack):
    return pack("core.attention.words")


def equals(case: Case, name: str, found: torch.Tensor) -> None:
    expected, tolerance = case.tensors[name], case.info["outputs"][name]["tolerance"]
    assert found.shape == expected.shape, name
    if tolerance.get("equal"):
        assert torch.equal(found.to(expected.dtype), expected), name
    else:
        difference = (found.double() - expected.double()).abs()
        assert float(difference.max()) <= tolerance["max_abs"], name
        assert float(difference.pow(2).mean().sqrt()) <= tolerance.get("rms", 1.0), name


def prompts(align, case: Case) -> dict:
    """Prompt of every text in the case."""
    return {text: align.Prompt(text, tuple(t["ids"]), tuple(t["pieces"]))
            for text, t in case.info["parameters"]["tokens"].items()}


@cases_of("word_alignment")
def test_word_positions(align, case: Case):
    known = prompts(align, case)
    for entry in case.info["parameters"]["word_indices"]:
        assert align.word_positions(known[entry["prompt"]], entry["word"]) == entry["indices"], entry


@cases_of("word_alignment")
def test_replacement(align, words, case: Case):
    known = prompts(align, case)
    for entry in case.info["parameters"]["replacement"]:
        source, *edited = (known[text] for text in entry["prompts"])
        equals(case, entry["tensor"], torch.stack([align.replacement_mapper(source, e) for e in edited]))
        # the one alignment of all kinds, told to swap word by word
        edits = [words.edit_of(source, e, "", "swap", as_released=True).alignment for e in edited]
        equals(case, entry["tensor"], torch.stack([a.mapper for a in edits]))
        assert all(bool((a.alphas == 1.0).all()) for a in edits)
    source, edited = (align.Prompt(text, (0, 0), ("", "")) for text in case.info["parameters"]["replacement_error"]["prompts"])
    with pytest.raises(align.WordError, match="2 words.*3"):
        align.replacement_mapper(source, edited)


@cases_of("word_alignment")
def test_refinement(align, words, case: Case):
    known = prompts(align, case)
    for entry in case.info["parameters"]["refinement"]:
        source, *edited = (known[text] for text in entry["prompts"])
        # the one alignment of all kinds, in which nothing is swapped; recorded is the source token of each edited one, or -1
        edits = [words.edit_of(source, e, "", "refine", as_released=True).alignment for e in edited]
        equals(case, entry["alphas"], torch.stack([a.alphas for a in edits]))
        assert all(bool(((a.mapper == 1).sum(0) == a.alphas).all()) and bool((a.mapper.sum(0) == a.alphas).all()) for a in edits)
        equals(case, entry["mapper"], torch.stack([a.mapper.argmax(0).where(a.alphas > 0, torch.tensor(-1)) for a in edits]))


@cases_of("word_alignment")
def test_equalizer(align, words, case: Case):
    known = prompts(align, case)
    for entry in case.info["parameters"]["equalizer"]:
        prompt, chosen = known[entry["prompt"]], entry["words"]
        chosen = [chosen] if isinstance(chosen, str | int) else chosen
        names = [f"{prompt.words[n]}#{prompt.words[:n + 1].count(prompt.words[n])}" if isinstance(n, int) else n for n in chosen]
        text = ", ".join(f"{name} *{value}" for name, value in zip(names, entry["values"], strict=True))
        equals(case, entry["tensor"], words.edit_of(prompt, prompt, text).factors[None])


@cases_of("word_alignment")
def test_time_alpha(align, prompt, case: Case):
    known = prompts(align, case)
    for entry in case.info["parameters"]["time_alpha"]:
        given = entry["cross_replace_steps"]
        given = given if isinstance(given, dict) else {"default_": given}
        named = {word: share for word, share in given.items() if word != "default_"}
        weights = []
        for text in entry["prompts"][1:]:
            own = [(align.word_positions(known[text], word), share) for word, share in named.items()]
            weights.append(prompt.token_weights(entry["steps"], given.get("default_", (0.0, 1.0)), own))
        equals(case, entry["tensor"], torch.stack(weights, 1)[:, :, None, None])


@cases_of("local_blend")
def test_local_blend(prompt, case: Case):
    p, t = case.info["parameters"], case.tensors
    frames, side = t["base"].shape[1], int(t["base"].shape[2] ** 0.5)
    kinds = {kind: [prompt.word_tokens([tokens]) for tokens in p["token_indices"][kind]] for kind in ("blend", "substruct")}
    maps = {kind: prompt.WordMaps(tokens, frames, len(t["gain"])) for kind, tokens in kinds.items()}
    for layer, gain in enumerate(t["gain"]):
        rolled = t["base"].unflatten(2, (side, side)).roll(layer, 3).flatten(2, 3)
        for index, base in enumerate(rolled):
            probabilities = base[:, None] * gain[:, None, None]
            for found in maps.values():
                found.add(index, lambda part, p=probabilities: p[part], (side, side), chunk=300)
    size = t["latents"].shape[-2:]
    blend, away = (torch.stack([maps[kind].of(i, [0]) for i in range(2)]) for kind in ("blend", "substruct"))
    plain = prompt.blend_masks(blend, size, p["thresholds"][0])
    equals(case, "plain/mask", plain[:, None])
    equals(case, "substruct/mask", prompt.blend_masks(blend, size, p["thresholds"][0], away, p["thresholds"][1])[:, None])
    source, edit = t["latents"].movedim(2, 1)
    equals(case, "plain/output", prompt.local_blend(source, edit, plain[1]).movedim(0, 1)[None])
    assert prompt.first_blending_step(p["steps"], p["start_blend"]) + 1 == p["first_blending_call"]
