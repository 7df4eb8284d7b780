"""Edited attention against written-out probabilities, and the blend's masks."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests.live_memory import LiveMemory

FRAMES, LENGTH, HEADS, WIDTH, TOKENS = 5, 6, 2, 8, 77


@pytest.fixture(scope="module")
def prompt(pack):
    return pack("core.attention.prompt")


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def split(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(-2, -3)


def maps(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.softmax(split(q) @ split(k).transpose(-1, -2) * (q.shape[-1] // HEADS) ** -0.5, -1)


def applied(p: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (p @ split(v)).transpose(-2, -3).flatten(-2)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return applied(maps(q, k), v)


def tensors(videos: int, tokens: int = TOKENS):
    return (random(videos, FRAMES, LENGTH, WIDTH, seed=1), random(videos, FRAMES, tokens, WIDTH, seed=2),
            random(videos, FRAMES, tokens, WIDTH, seed=3))


@pytest.fixture(scope="module")
def edit(prompt):
    """Two edits with every kind of column: copied, shared, own, weighed, and with the step's weight 0 or 1."""
    generator = torch.Generator().manual_seed(4)
    mapper = torch.zeros(2, TOKENS, TOKENS)
    mapper[:, torch.randint(TOKENS, (TOKENS,), generator=generator), torch.arange(TOKENS)] = 1.0
    mapper[1, 3:5, 7:10] = 1 / 3
    alphas = (torch.rand(2, TOKENS, generator=generator) > 0.3).float()
    factors = 1.0 + 2.0 * (torch.rand(2, TOKENS, generator=generator) > 0.8).float()
    weights = (torch.rand(2, TOKENS, generator=generator) > 0.5).float()
    return prompt.cross_edit(mapper, alphas, factors, weights), (mapper, alphas, factors, weights)


def test_edited_probabilities_are_the_equation(prompt, edit):
    made, (mapper, alphas, factors, weights) = edit
    source, own = (torch.softmax(random(3, HEADS, LENGTH, TOKENS, seed=s), -1) for s in (5, 6))
    for e in range(2):
        copied = (source @ mapper[e] * alphas[e] + own * (1 - alphas[e])) * factors[e]
        expected = weights[e] * copied + (1 - weights[e]) * own
        assert torch.allclose(prompt.edited_probabilities(source, own, made, e), expected, atol=1e-6)


@pytest.mark.parametrize("chunk", [1 << 20, LENGTH * 4, 1])
def test_cross_attention_needs_no_probabilities(prompt, edit, chunk):
    """The kernel with other values gives what edited probabilities give, whatever the order of the videos."""
    made, _ = edit
    q, k, v = tensors(4)
    source, edits = 2, (0, 3)
    found = prompt.edited_cross_attention(q, k, v, source, edits, made, attention, chunk)
    p = maps(q, k)
    for video in range(4):
        own = p[video] if video not in edits else prompt.edited_probabilities(p[source], p[video], made, edits.index(video))
        assert torch.allclose(found[video], applied(own, v[video]), atol=1e-5)


def test_a_repeated_text_changes_nothing(prompt, edit):
    """Hosts repeat a text to the length of a longer one beside it."""
    made, _ = edit
    q, k, v = tensors(2)
    once = prompt.edited_cross_attention(q, k, v, 0, (1,), made, attention)
    twice = prompt.edited_cross_attention(q, k.repeat(1, 1, 2, 1), v.repeat(1, 1, 2, 1), 0, (1,), made, attention)
    assert torch.allclose(once, twice, atol=1e-5)


def test_an_unchanged_prompt_is_the_source_bit_for_bit(prompt):
    ones = torch.ones(1, TOKENS)
    made = prompt.cross_edit(torch.eye(TOKENS)[None], ones, ones, ones)
    q, k, v = tensors(2)
    v[1] = v[0]
    found = prompt.edited_cross_attention(q, k, v, 0, (1,), made, attention)
    assert torch.equal(found[0], attention(q[0], k[0], v[0])) and torch.equal(found[1], found[0])


def test_outside_its_steps_an_edit_does_nothing(prompt):
    generator = torch.Generator().manual_seed(0)
    mapper, alphas, factors = torch.rand(1, TOKENS, TOKENS, generator=generator), torch.rand(1, TOKENS), torch.rand(1, TOKENS)
    made = prompt.cross_edit(mapper, alphas, factors, torch.zeros(1, TOKENS))
    assert not made.acts and made.takes == (False,) and made.keeps == (True,)
    q, k, v = tensors(2)
    assert torch.equal(prompt.edited_cross_attention(q, k, v, 0, (1,), made, attention), attention(q, k, v))


@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_temporal_attention_follows_the_source(prompt, chunk):
    q, k, v = (random(3, LENGTH, FRAMES, WIDTH, seed=s) for s in (7, 8, 9))
    found = prompt.followed_temporal_attention(q, k, v, 1, (2,), attention, chunk)
    expected = attention(q, k, v)
    expected[2] = applied(maps(q[1], k[1]), v[2])
    assert torch.equal(found, expected) if chunk > 7 else torch.allclose(found, expected, atol=1e-6)


def test_word_maps_are_sums_of_means(prompt):
    """Over steps a sum, over layers and heads a mean, over a word's tokens a sum; in parts as at once."""
    tokens = prompt.word_tokens([(1,), (2, 3)])
    layers = [torch.softmax(random(FRAMES, HEADS, LENGTH, TOKENS, seed=s), -1) for s in range(3)]
    for chunk in (1 << 20, LENGTH):
        found = prompt.WordMaps([tokens], FRAMES, 3)
        for p in layers:
            found.add(0, lambda part, p=p: p[part], (2, 3), chunk=chunk)
            found.add(0, lambda part, p=p: p[:2][part], (2, 3), slice(0, 2), chunk)
            found.add(0, lambda part, p=p: p[2:][part], (2, 3), slice(2, FRAMES), chunk)
        mean = 2 * torch.stack(layers).mean((0, 2))  # (F, L, 77)
        assert torch.allclose(found.of(0, [0]), mean[..., 1].unflatten(1, (2, 3)), atol=1e-6)
        assert torch.allclose(found.of(0, [0, 1]), mean[..., 1:4].sum(-1).unflatten(1, (2, 3)), atol=1e-6)


def test_masks_hold_the_sources_and_stop_at_their_threshold(prompt):
    maps = torch.zeros(2, 1, 4, 4)
    maps[0, 0, 0, 0], maps[1, 0, 3, 3] = 2.0, 5.0
    found = prompt.blend_masks(maps, (8, 8), 0.5)
    assert bool(found[1, 0, :4, :4].all()) and bool(found[1, 0, 4:, 4:].all()) and int(found[1].sum()) == 32
    assert int(found[0].sum()) == 16
    maps[1, 0, 1, 3] = 2.5  # half of the largest: not above a threshold of a half
    pooled = prompt.blend_masks(maps, (4, 4), 0.5)
    assert not bool(pooled[1, 0, 0, 3]) and bool(prompt.blend_masks(maps, (4, 4), 0.49)[1, 0, 0, 3])
    away = torch.zeros(2, 1, 4, 4)
    away[0, 0, 0, 0] = 1.0
    cut = prompt.blend_masks(maps, (4, 4), 0.5, away, 0.5)
    assert torch.equal(pooled & ~cut, (torch.arange(16).view(4, 4) == 0).expand(2, 1, 4, 4))


def test_each_frame_has_its_own_largest_value(prompt):
    maps = random(1, 3, 4, 4, seed=0).abs()
    louder = maps * torch.tensor([1.0, 10.0, 0.01]).view(1, 3, 1, 1)
    assert torch.allclose(prompt.relative_map(louder, (4, 4)), prompt.relative_map(maps, (4, 4)), atol=1e-6)


def test_a_word_that_is_nowhere_masks_nothing(prompt):
    masks = prompt.blend_masks(torch.zeros(2, 3, 4, 4), (8, 8), 0.3)
    assert not masks.any()


@pytest.mark.parametrize("size", [(16, 8), (9, 15), (1, 1)])
def test_any_size(prompt, size):
    quarter = tuple(-(-side // 4) for side in size)
    found = prompt.relative_map(random(2, 3, *quarter, seed=0).abs() + 0.1, size)
    assert found.shape == (2, 3, *size) and bool((found.amax((-2, -1)) == 1).all())


def test_the_blend_is_exact_on_both_sides(prompt):
    source, edits = random(3, 4, 6, 6, seed=1), random(2, 3, 4, 6, 6, seed=2)
    mask = random(2, 3, 6, 6, seed=3) > 0
    found = prompt.local_blend(source, edits, mask)
    inside = mask.unsqueeze(-3).expand_as(edits)
    assert torch.equal(found[inside], edits[inside]) and torch.equal(found[~inside], source.expand_as(edits)[~inside])
    assert torch.equal(prompt.local_blend(source, edits[0], torch.zeros(3, 6, 6)), source)


def test_words_are_mapped_at_a_quarter_of_the_latents_side(prompt):
    scales = {"a": 1, "b": 2, "c": 4, "d": 8, "e": 4}
    assert prompt.mapped_sites(scales) == {"c", "e"}
    assert prompt.mapped_sites({"a": 1, "b": 2}) == {"b"} and prompt.mapped_sites({"a": 1, "d": 8}) == {"d"}


def test_steps(prompt):
    """Cross-attention counts N + 1 steps, temporal attention N."""
    weights = prompt.token_weights(50, 0.2, [((3, 4), (0.5, 1.0))])
    assert weights.shape == (51, TOKENS) and weights[:10, 0].all() and not weights[10:, 0].any()  # int(0.2 * 51) = 10
    assert not weights[:25, 3].any() and weights[25:, 4].all()
    assert [s for s in range(50) if prompt.in_interval(s, 50, 0.5)] == list(range(25))
    assert [s for s in range(5) if prompt.in_interval(s, 5, (0.2, 0.65))] == [1, 2]
    assert prompt.first_blending_step(50, 0.2) == 10


def test_memory_does_not_grow_with_the_frames(prompt, edit, monkeypatch):
    """What is alive while some frames are worked on, results aside, is the same for 8 frames and for 64."""
    made, _ = edit
    by_parts, chunk = prompt.by_parts, 4 * 2 * LENGTH

    def peak(frames: int, work) -> int:
        memory = LiveMemory()

        def counted(count, size, part, dim):
            def inside(which):
                with memory.inside():
                    return part(which)

            return by_parts(count, size, inside, dim)

        with monkeypatch.context() as patch:
            patch.setattr(prompt, "by_parts", counted)
            with memory:
                work(frames)
        return memory.peak_inside

    def cross(frames: int) -> None:
        q = torch.zeros(3, frames, LENGTH, WIDTH)
        text = torch.zeros(3, frames, TOKENS, WIDTH)
        prompt.edited_cross_attention(q, text, text, 0, (1, 2), made, attention, chunk)

    def maps(frames: int) -> None:
        found = prompt.WordMaps([prompt.word_tokens([(1,), (2, 3)])], frames, 1)
        found.add(0, lambda part: torch.zeros(part.stop - part.start, HEADS, LENGTH, TOKENS), (2, 3), chunk=chunk)

    for work in (cross, maps):
        sizes = [peak(frames, work) for frames in (8, 24, 64)]
        assert 0 < max(sizes) <= 1.01 * sizes[0], work
