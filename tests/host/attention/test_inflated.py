"""Video-P2P's network on the host: what it computes, that it composes, and that it comes off."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests import text_model

FRAMES, SIDE = 3, 16


@pytest.fixture
def inflate(pack):
    return pack("host.attention.inflated")


@pytest.fixture
def tensors(pack):
    return text_model.small_tensors(pack)


@pytest.fixture
def plain(pack, tensors):
    return text_model.build(pack, text_model.split(tensors)[0])


@pytest.fixture
def model(pack, tensors):
    return text_model.inflated(pack, tensors)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LATENTS = noise(FRAMES, 4, SIDE, SIDE, seed=2)
TEXT = noise(1, 77, 16, seed=3)


def evaluate(pack, model, latents=LATENTS, text=TEXT, videos=1):
    return text_model.evaluate(pack, model, latents, 501, text, videos)


def guided(model, latents=LATENTS, cfg=3.0):
    import comfy.samplers

    found = []

    def sampler(model_k, x, sigmas, extra_args, callback, disable):
        found.append(model_k(latents, sigmas[:1].expand(len(latents)), **extra_args))
        return x

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[TEXT, {}]], [[noise(1, 77, 16, seed=4), {}]])
    guider.set_cfg(cfg)
    with torch.inference_mode():
        guider.sample(torch.zeros_like(latents), torch.zeros_like(latents), comfy.samplers.KSAMPLER(sampler),
                      torch.tensor([2.0, 2.0]), disable_pbar=True, seed=0)
    return found[0].clone()


def test_the_model_it_came_from_is_unchanged(pack, plain, inflate, tensors):
    before = evaluate(pack, plain)
    changed = inflate.inflate(plain, inflate.build_temporal(plain, text_model.split(tensors)[1]))
    assert (evaluate(pack, changed) - before).abs().max() > 0.1
    assert torch.equal(evaluate(pack, plain), before)
    assert set(plain.model.diffusion_model.state_dict()) == set(text_model.split(tensors)[0])


def test_one_frame_without_temporal_layers_is_the_plain_network(pack, plain, inflate):
    assert torch.equal(evaluate(pack, inflate.inflate(plain), LATENTS[:1]), evaluate(pack, plain, LATENTS[:1]))


def test_one_frame_with_temporal_layers(pack, model):
    out = evaluate(pack, model, LATENTS[:1])
    assert out.shape == LATENTS[:1].shape and torch.isfinite(out).all()


def test_frames_see_frame_0_and_each_other(pack, plain, inflate, model):
    """Without pooled norms between them, a later frame would not move frame 0; frame 0 moves all."""
    other = LATENTS.clone()
    other[2] += 1.0
    assert (evaluate(pack, model, other)[0] - evaluate(pack, model)[0]).abs().max() > 1e-3
    assert torch.equal(evaluate(pack, plain, other)[0], evaluate(pack, plain)[0])


def test_together_and_apart_agree(model, monkeypatch):
    together = guided(model)
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_, **__: float("inf"))
    calls = []
    inner = model.model.apply_model
    monkeypatch.setattr(model.model, "apply_model", lambda *a, **k: calls.append(len(a[0])) or inner(*a, **k))
    apart = guided(model)
    assert calls == [FRAMES, FRAMES]
    assert (together - apart).abs().max() < 1e-4


def test_videos_in_a_batch_do_not_see_each_other(pack, inflate, model):
    second = noise(FRAMES, 4, SIDE, SIDE, seed=8)
    text = torch.cat([TEXT, noise(1, 77, 16, seed=9)])
    both = evaluate(pack, model, torch.cat([LATENTS, second]), text.repeat_interleave(FRAMES, 0), videos=2)
    for i, latents in enumerate((LATENTS, second)):
        alone = evaluate(pack, model, latents, text[i:i + 1])
        assert (both[i * FRAMES:(i + 1) * FRAMES] - alone).abs().max() < 1e-4


@pytest.mark.parametrize("chunk", [1, 300, 1000])
def test_parts_of_any_size_give_the_same(pack, inflate, model, chunk):
    latents = noise(7, 4, SIDE, SIDE)
    small = inflate.inflate(model, inflate.temporal_of(model), inflate.Settings(chunk=chunk))
    assert (evaluate(pack, small, latents) - evaluate(pack, model, latents)).abs().max() < 2e-4


def test_a_window_as_wide_as_the_clip_changes_nothing(pack, inflate, model):
    wide = inflate.inflate(model, inflate.temporal_of(model), inflate.Settings(window=FRAMES))
    assert torch.equal(evaluate(pack, wide), evaluate(pack, model))
    narrow = inflate.inflate(model, inflate.temporal_of(model), inflate.Settings(window=2))
    assert (evaluate(pack, narrow) - evaluate(pack, model)).abs().max() > 1e-3


def test_lora_counts_on_the_network_and_on_temporal_layers(pack, inflate, model, tensors):
    site = "input_blocks.1.1.transformer_blocks.0"
    direction = noise(*tensors[f"{site}.attn1.to_q.weight"].shape)
    before = evaluate(pack, model)
    for part in ("attn1.to_q", "attn1.to_k", "attn2.to_v", "ff.net.2"):
        key = f"{site}.{part}.weight"
        patched = model.clone()
        delta = noise(*tensors[key].shape) * 0.3
        assert patched.add_patches({f"diffusion_model.{key}": ("diff", (delta,))}) == [f"diffusion_model.{key}"]
        found = evaluate(pack, patched)
        assert (found - before).abs().max() > 1e-3
        # the same weights written into the network
        assert (found - evaluate(pack, text_model.inflated(pack, {**tensors, key: tensors[key] + delta}))).abs().max() < 1e-4
    layers = inflate.temporal_of(model).clone()
    layers.add_patches({f"{site}.attn_temp.to_v.weight": ("diff", (direction,))})
    assert (evaluate(pack, inflate.inflate(model, layers)) - before).abs().max() > 1e-3
    assert torch.equal(evaluate(pack, model), before)


def test_inflating_twice_is_inflating_once(pack, inflate, model):
    again = inflate.inflate(model, inflate.temporal_of(model))
    assert torch.equal(evaluate(pack, again), evaluate(pack, model))
    assert torch.equal(evaluate(pack, model.clone()), evaluate(pack, model))
    bare = inflate.inflate(model)
    assert inflate.temporal_of(bare) is None and inflate.is_inflated(bare)


def test_tuned_weights(pack, inflate, plain, tensors, model):
    """Tuned tensors of another seed on the plain network are the network with these tensors."""
    trained = pack("core.models.inflated").is_trained
    tuned = {n: t for n, t in text_model.small_tensors(pack, seed=5).items() if trained(n)}
    norms = {n: torch.ones_like(t) if n.endswith("weight") else torch.zeros_like(t)
             for n, t in tensors.items() if ".norm_temp." in n}
    expected = evaluate(pack, text_model.inflated(pack, {**tensors, **norms, **tuned}))
    found = evaluate(pack, inflate.with_tuned(plain, tuned))
    assert (found - expected).abs().max() < 1e-4
    name = next(iter(tuned))
    with pytest.raises(Exception, match="belong to another network"):
        inflate.with_tuned(plain, {**tuned, name: tuned[name][:8]})
    with pytest.raises(Exception, match="missing"):
        inflate.with_tuned(plain, {n: t for n, t in tuned.items() if n != name})


def test_another_nodes_replacement_of_attn1_gets_frame_0(pack, model):
    """A replacement that attends in the ordinary way gives what frame attention gives."""
    from comfy.ldm.modules.attention import optimized_attention

    other = model.clone()
    other.set_model_attn1_replace(lambda q, k, v, options: optimized_attention(q, k, v, options["n_heads"]), "middle", 0)
    assert (evaluate(pack, other) - evaluate(pack, model)).abs().max() < 1e-4


def test_hooks_see_every_layer_and_may_compute(pack, inflate, model, tensors):
    before, seen = evaluate(pack, model), []

    def explicit(place, q, k, v, attention, options):
        seen.append((place, q.shape, k.shape, list(options["cond_or_uncond"])))
        return text_model.explicit(pack, place, q, k, v)

    found = evaluate(pack, text_model.with_hook(pack, model, explicit))
    assert (found - before).abs().max() < 1e-4
    sites = pack("core.models.inflated").block_sites({n: tuple(t.shape) for n, t in tensors.items()})
    assert {(p.site, p.kind) for p, *_ in seen} == {(site, kind) for site in sites for kind in ("attn2", "attn_temp")}
    for place, q, k, groups in seen:
        length, width = place.size[0] * place.size[1], sites[place.site]
        assert place.frames == FRAMES and place.heads == 8 and groups == [0]
        assert (q, k) == ((FRAMES, length, width), (FRAMES, 77, width)) if place.kind == "attn2" else (
            (length, FRAMES, width), (length, FRAMES, width))
    assert torch.equal(evaluate(pack, model), before)


def test_hooks_form_a_chain(pack, inflate, model):
    order = []

    def called(name):
        def hook(place, q, k, v, attention, options):
            order.append(name)
            return attention(q, k, v)

        return hook

    both = text_model.with_hook(pack, text_model.with_hook(pack, model, called("inner")), called("outer"))
    assert torch.equal(evaluate(pack, both), evaluate(pack, text_model.with_hook(pack, model, called("alone"))))
    assert order[:4] == ["outer", "inner"] * 2


def test_explicit_probabilities_respect_the_window(pack, inflate, model):
    narrow = inflate.inflate(model, inflate.temporal_of(model), inflate.Settings(window=2))

    def explicit(place, q, k, v, attention, options):
        return text_model.explicit(pack, place, q, k, v)

    assert (evaluate(pack, text_model.with_hook(pack, narrow, explicit)) - evaluate(pack, narrow)).abs().max() < 1e-4


def test_half_precision_layers_on_another_type(pack, inflate, plain, tensors):
    half = inflate.inflate(plain, inflate.build_temporal(plain, text_model.split(tensors)[1], torch.float16))
    whole = inflate.inflate(plain, inflate.build_temporal(plain, text_model.split(tensors)[1]))
    assert 0 < (evaluate(pack, half) - evaluate(pack, whole)).abs().max() < 0.02


def test_other_networks_are_refused_by_name(inflate, edit):
    with pytest.raises(Exception, match="the 'model' input is a SVD_img2vid model .*Load Checkpoint"):
        inflate.inflate(edit.loaded.model)
