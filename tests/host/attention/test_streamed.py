"""The streamed network: the same numbers, and memory that does not grow with the number of frames."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests import text_model
from framepainter_tests.live_memory import LiveMemory

FRAMES, SIDE = 5, 16


@pytest.fixture
def inflate(pack):
    return pack("host.attention.inflated")


@pytest.fixture
def tensors(pack):
    return text_model.small_tensors(pack)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TEXT = noise(2, 77, 16, seed=3).repeat_interleave(FRAMES, 0)
LATENTS = noise(2 * FRAMES, 4, SIDE, SIDE, seed=2)


def models(pack, inflate, tensors, chunk: int, window: int = 0):
    """Two videos in a batch: the network as a whole, and streamed."""
    return [text_model.inflated(pack, tensors, streamed=streamed, chunk=chunk, window=window) for streamed in (False, True)]


def evaluate(pack, model, latents=LATENTS, text=TEXT):
    return text_model.evaluate(pack, model, latents, 501, text, videos=2)


@pytest.mark.parametrize("chunk, window", [(1 << 20, 0), (1100, 0), (1, 0), (1100, 2)])
def test_the_same_numbers(pack, inflate, tensors, chunk, window):
    whole, streamed = models(pack, inflate, tensors, chunk, window)
    assert (evaluate(pack, streamed) - evaluate(pack, whole)).abs().max() < 2e-4


def test_odd_sizes_and_one_frame(pack, inflate, tensors):
    latents = noise(FRAMES * 2, 4, 9, 13)
    whole, streamed = models(pack, inflate, tensors, 300)
    assert (evaluate(pack, streamed, latents) - evaluate(pack, whole, latents)).abs().max() < 2e-4
    single, text = latents[:2], TEXT[::FRAMES]
    assert (evaluate(pack, streamed, single, text) - evaluate(pack, whole, single, text)).abs().max() < 2e-4


def test_hooks_are_told_which_part(pack, inflate, tensors):
    """Parts of a layer do not overlap, leave nothing out, and computing them explicitly gives the same."""
    whole, streamed = models(pack, inflate, tensors, 1100)
    seen: dict[tuple[str, str], list[slice]] = {}

    def explicit(place, q, k, v, attention, options):
        seen.setdefault((place.site, place.kind), []).append(place.part)
        count = place.part.stop - place.part.start
        assert len(q) == 2 * count and place.frames == (count if place.kind == "attn2" else FRAMES)
        return text_model.explicit(pack, place, q, k, v)

    found = evaluate(pack, text_model.with_hook(pack, streamed, explicit))
    assert (found - evaluate(pack, whole)).abs().max() < 2e-4
    for (_, kind), parts in seen.items():
        assert [p.start for p in parts] == [0, *(p.stop for p in parts[:-1])]
        assert kind == "attn_temp" or parts[-1].stop == FRAMES
    assert any(len(parts) > 1 for parts in seen.values())


def test_other_nodes_have_their_part(pack, inflate, tensors):
    """A LoRA, another node's attn1, its changes of features between blocks, and a controlnet's."""
    from comfy.ldm.modules.attention import optimized_attention

    key = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    delta = noise(*tensors[key].shape) * 0.3
    control = {"input": [noise(2 * FRAMES, 32, SIDE, SIDE)], "middle": [None]}
    found = []
    for model in models(pack, inflate, tensors, 1100):
        model = model.clone()
        model.add_patches({f"diffusion_model.{key}": ("diff", (delta,))})
        model.set_model_attn1_replace(lambda q, k, v, options: optimized_attention(q, k, v, options["n_heads"]), "middle", 0)
        model.set_model_output_block_patch(lambda h, skip, options: (h * 1.1, skip))
        model.set_model_unet_function_wrapper(lambda apply, given: apply(given["input"], given["timestep"], **{
            **given["c"], "control": {place: list(tensors) for place, tensors in control.items()}}))
        found.append(evaluate(pack, model))
    assert (found[1] - found[0]).abs().max() < 2e-4


def test_it_comes_off(pack, inflate, tensors):
    whole, streamed = models(pack, inflate, tensors, 1100)
    evaluate(pack, streamed)
    again = inflate.inflate(streamed, inflate.temporal_of(streamed), inflate.Settings(chunk=1100))
    assert again.object_patches.keys() == whole.object_patches.keys() < streamed.object_patches.keys()
    assert torch.equal(evaluate(pack, again), evaluate(pack, whole))


def peaks(pack, model, frames: int, monkeypatch) -> tuple[int, int]:
    """Bytes alive at once in one evaluation: of all tensors, and of those made while some frames or positions are worked on."""
    memory, by_parts = LiveMemory(), pack("core.models.inflated").by_parts

    def counted(count, size, work, *more):
        def inside(which):
            with memory.inside():
                return work(which)

        return by_parts(count, size, inside, *more)

    latents, text = noise(frames, 4, SIDE, SIDE), TEXT[:1]
    evaluate(pack, model, latents, text)  # whatever is made once
    with monkeypatch.context() as patched:
        for module in ("core.models.inflated", "host.attention.inflated_layers", "host.attention.streamed"):
            patched.setattr(pack(module), "by_parts", counted)
        with memory:
            evaluate(pack, model, latents, text)
    return memory.peak, memory.peak_inside


def test_memory_does_not_grow_with_the_frames(pack, tensors, monkeypatch):
    """Features aside, which rest in main memory. Not streamed, they are where the model is, and other things with them."""
    streamed = text_model.inflated(pack, tensors, streamed=True, chunk=8 * SIDE * SIDE)
    whole = text_model.inflated(pack, tensors, chunk=8 * SIDE * SIDE)
    at_8, at_24, at_64 = (peaks(pack, streamed, frames, monkeypatch)[1] for frames in (8, 24, 64))
    assert at_24 <= 1.01 * at_8 and at_64 <= 1.01 * at_8
    assert at_64 < peaks(pack, whole, 8, monkeypatch)[0] < 0.7 * peaks(pack, whole, 64, monkeypatch)[0]
