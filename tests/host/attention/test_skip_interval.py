"""Skip-interval attention: what a run keeps is its own, and is freed with it."""

from __future__ import annotations

import gc
import weakref

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import pytest
import torch
from framepainter_tests import tiny

FRAMES, STEPS, HEIGHT, WIDTH = 3, 4, 4, 6


@pytest.fixture(scope="module")
def skip(pack):
    return pack("host.attention.skip_interval")


@pytest.fixture(scope="module")
def loaded(pack, tool, tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", pack, tool)
    with torch.inference_mode():
        return pack("host.weights.loading").load(path, None, None, torch.float32)


@pytest.fixture(scope="module")
def conditioning(pack, loaded):
    with torch.inference_mode():
        picture = torch.rand(1, 8 * HEIGHT, 8 * WIDTH, 3, generator=torch.Generator().manual_seed(1))
        made = pack("host.conditioning").edit_conditioning(loaded.clip_vision, loaded.vae, picture, 8 * HEIGHT, 8 * WIDTH, 6, 128,
                                                           0.02, 0)
    return made.positive, made.negative


@pytest.fixture(scope="module")
def sources(pack, loaded, conditioning):
    """Inversions of two clips."""
    sigmas = torch.tensor(pack("core.edm").karras_sigmas(STEPS))
    clips = torch.randn(2, FRAMES, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4)) * 4
    with torch.inference_mode():
        return [pack("host.inversion.edm").invert(loaded.model, conditioning[0], {"samples": clip}, sigmas) for clip in clips]


@pytest.fixture(scope="module")
def later(pack, skip, loaded, conditioning, sources):
    """A model on which the second clip is edited beside the first, attention injection included."""
    injection, run = pack("host.attention.injection"), pack("host.attention.injection_run")
    settings = run.Settings(branches="one after another", coarse_scale=2)
    states = torch.randn(STEPS, FRAMES, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))
    past = skip.PastEdit(states * torch.tensor(sources[0].sigmas[:-1]).reshape(-1, 1, 1, 1, 1), *conditioning, sources[0])
    return skip.remember_edit(injection.inject_attention(loaded.model, sources[1], settings), past)


def sample(pack, model, conditioning, source, callback=None):
    start = pack("host.inversion.edm").start_latent(source)["samples"]
    with torch.inference_mode():
        return comfy.sample.sample_custom(model, torch.zeros_like(start), 2.0, comfy.samplers.sampler_object("euler"),
                                          torch.tensor(source.sigmas), *conditioning, start, callback=callback,
                                          disable_pbar=True).clone()


@pytest.fixture
def kept(pack, skip, monkeypatch):
    """Weak references to the runs, and to every tensor that one kept: conditioning of both kinds, keys and values, features."""
    found: dict[str, list] = {"runs": [], "conditioning": [], "keys and values": [], "features": []}
    run, memory, injected = skip._Run, skip.Memory, pack("host.attention.injection_run").InjectionRun
    begin, extend, features, source_conds = run.__init__, memory.extend, injected.features, injected.source_conds
    processed = skip._processed

    def tensors(value):
        if isinstance(value, torch.Tensor):
            yield weakref.ref(value)
        elif isinstance(value, dict):
            for item in value.values():
                yield from tensors(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from tensors(item)
        elif hasattr(value, "cond"):
            yield from tensors(value.cond)

    def noting(name, call):
        def noted(*args, **kwargs):
            out = call(*args, **kwargs)
            found[name] += list(tensors(out))
            return out
        return noted

    def begun(self, *args):
        begin(self, *args)
        found["runs"].append(weakref.ref(self))

    def extended(self, *args):
        out = extend(self, *args)
        found["keys and values"] += [r for pair in self.found.values() for r in tensors(pair)]
        return out

    monkeypatch.setattr(run, "__init__", begun)
    monkeypatch.setattr(memory, "extend", extended)
    monkeypatch.setattr(injected, "features", noting("features", features))
    monkeypatch.setattr(injected, "source_conds", noting("conditioning", source_conds))
    monkeypatch.setattr(skip, "_processed", noting("conditioning", processed))
    return found


def alive(kept: dict, conditioning, sources) -> dict[str, int]:
    """How many of the noted things are still there, besides what the caller gave (on a CPU the host takes it without a copy)."""
    gc.collect()
    given = {id(t) for c in conditioning for t in (c[0][0], c[0][1]["concat_latent_image"])}
    given |= {id(t) for s in sources for t in (s.conditioning.embedding, s.conditioning.image_latents)}
    return {name: sum(r() is not None and id(r()) not in given for r in refs) for name, refs in kept.items()}


def stop(error: BaseException):
    def callback(step, *_):
        if step == 1:
            raise error

    return callback


@pytest.mark.parametrize("end", ["finished", "failed", "cancelled"])
def test_a_run_frees_what_it_kept(pack, later, conditioning, sources, kept, end):
    if end == "finished":
        sample(pack, later, conditioning, sources[1])
    else:
        error = mm.InterruptProcessingException if end == "cancelled" else ZeroDivisionError
        with pytest.raises(error):
            sample(pack, later, conditioning, sources[1], stop(error()))
    assert {name: bool(refs) for name, refs in kept.items()} == dict.fromkeys(kept, True), "the test saw none of them"
    assert alive(kept, conditioning, sources) == dict.fromkeys(kept, 0)
    assert not [n for n in later.model_options.get("transformer_options", {}) if "run" in n]


@pytest.mark.parametrize("end", ["finished", "failed"])
def test_an_inversion_frees_what_it_kept(pack, skip, loaded, conditioning, sources, kept, monkeypatch, end):
    edm = pack("host.inversion.edm")
    if end == "failed":
        whole = edm.invert_euler

        def failing(model, x, levels, extra=None, callback=None, first=0):
            def after(step):
                callback(step)
                if step["i"] == 1:
                    raise ZeroDivisionError
            return whole(model, x, levels, extra, after, first)

        monkeypatch.setattr(edm, "invert_euler", failing)
    model = skip.remember_inversion(loaded.model, sources[0])

    def invert():
        with torch.inference_mode():
            edm.invert(model, conditioning[0], {"samples": sources[1].states[0] / 0.18215}, torch.tensor(sources[1].sigmas))

    if end == "finished":
        invert()
    else:
        with pytest.raises(ZeroDivisionError):
            invert()
    used = ("runs", "conditioning", "keys and values")
    assert all(kept[name] for name in used)
    assert alive(kept, conditioning, sources) == dict.fromkeys(kept, 0)


def test_a_run_after_a_failed_one_is_as_the_first(pack, later, conditioning, sources):
    alone = sample(pack, later, conditioning, sources[1])
    with pytest.raises(ZeroDivisionError):
        sample(pack, later, conditioning, sources[1], stop(ZeroDivisionError()))
    assert torch.equal(sample(pack, later, conditioning, sources[1]), alone)


def test_another_number_of_steps_is_refused(skip, loaded, conditioning, sources):
    past = skip.PastEdit(torch.zeros(STEPS - 1, FRAMES, 4, HEIGHT, WIDTH), *conditioning, sources[0])
    with pytest.raises(ValueError, match=f"clip 0 has {STEPS - 1} sampling steps, its inversion {STEPS}"):
        skip.remember_edit(loaded.model, past)


# ---- as published: clip 0's keys and values by its own network ---------------------------------------------------------


class Noted:
    """A memory that changes nothing and notes keys and values by noise level, group and block."""

    def __init__(self, groups_of):
        self.groups_of, self.found = groups_of, {}

    def extend(self, block, k, v, options):
        groups = self.groups_of(options)
        for group, own_k, own_v in zip(groups, k.chunk(len(groups)), v.chunk(len(groups)), strict=True):
            if group in (0, 1):
                self.found[round(float(options["sigmas"][0]), 4), group, block] = own_k.clone(), own_v.clone()
        return k, v


def lora(loaded, seed: int) -> dict[str, torch.Tensor]:
    """A motion LoRA with an effect: on every linear layer of the temporal blocks."""
    generator, out = torch.Generator().manual_seed(seed), {}
    for name, weight in loaded.model.model.state_dict().items():
        if ".time_stack." in name and name.endswith(".weight") and weight.ndim == 2:
            for part, shape in (("up", (weight.shape[0], 4)), ("down", (4, weight.shape[1]))):
                out[f"{name.removesuffix('.weight')}.lora_{part}.weight"] = 0.2 * torch.randn(shape, generator=generator)
    return out


@pytest.mark.parametrize(("matching", "branches"), [(True, "one after another"), (True, "together"), (False, "together")])
def test_a_later_clip_sees_what_the_first_clips_own_network_made(pack, skip, loaded, conditioning, sources, monkeypatch, matching,
                                                                 branches):
    """Keys and values of clip 0 beside a clip with another LoRA equal those that clip 0's own edit computed with its own LoRA."""
    injection, run, keys = pack("host.attention.injection"), pack("host.attention.injection_run"), pack("host.keys")
    with_lora = pack("host.weights.motion_lora").with_lora
    settings = run.Settings(branches=branches, coarse_scale=2)

    def edited(which: int):
        model = with_lora(loaded.model, lora(loaded, which), 1.0)
        return injection.inject_attention(model, sources[which], settings, source=loaded.model) if matching else model

    first, own, states = edited(0).clone(), Noted(run.groups_of), []
    pack("host.attention.watched").watch_attention(first)
    first.model_options["transformer_options"][keys.MEMORY] = own
    sample(pack, first, conditioning, sources[0], lambda i, x0, x, total: states.append(x.clone()))

    past = skip.PastEdit(torch.stack(states), *conditioning, sources[0],
                         skip.OwnNetwork(loaded.model, with_lora(loaded.model, lora(loaded, 0), 1.0)))
    beside, extend = Noted(run.groups_of), skip.Memory.extend

    def noting(memory, block, k, v, options):
        if memory.recording:
            beside.extend(block, k, v, options)
        return extend(memory, block, k, v, options)

    monkeypatch.setattr(skip.Memory, "extend", noting)
    later = sample(pack, skip.remember_edit(edited(1), past), conditioning, sources[1])
    assert beside.found.keys() == own.found.keys() and len(own.found) >= 2 * STEPS

    def far(found) -> float:
        return max(float((a - b).norm() / b.norm()) for name, pair in own.found.items()
                   for a, b in zip(found[name], pair, strict=True))

    assert far(beside.found) < 1e-5
    beside.found = {}
    without = skip.PastEdit(past.states, *conditioning, sources[0])
    replaced = sample(pack, skip.remember_edit(edited(1), without), conditioning, sources[1])
    assert far(beside.found) > 1e-2, "the later clip's LoRA in clip 0's passes"
    assert float((later - replaced).norm() / replaced.norm()) > 1e-4


def test_the_own_network_of_an_equal_lora_is_no_change(pack, skip, loaded, conditioning, sources, later):
    injection, with_lora = pack("host.attention.injection"), pack("host.weights.motion_lora").with_lora
    settings = pack("host.attention.injection_run").Settings(branches="one after another", coarse_scale=2)
    model = with_lora(loaded.model, lora(loaded, 3), 1.0)
    states = torch.randn(STEPS, FRAMES, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))
    edited = injection.inject_attention(model, sources[1], settings, source=loaded.model)
    pasts = [skip.PastEdit(states, *conditioning, sources[0], network) for network in (None, skip.OwnNetwork(loaded.model, model))]
    assert torch.equal(*[sample(pack, skip.remember_edit(edited, past), conditioning, sources[1]) for past in pasts])


def test_the_source_keeps_the_loras_that_it_was_inverted_with(pack, loaded, conditioning, sources):
    """The user's LoRA acts on source and edit, the motion LoRA on the edit's rows alone."""
    bypass, with_lora = pack("host.attention.bypass"), pack("host.weights.motion_lora").with_lora
    styled = with_lora(loaded.model, lora(loaded, 0), 1.0)
    both = with_lora(styled, lora(loaded, 1), 1.0)
    model, gate = both.clone(), bypass.Gate()
    bypass.bypass_patches(model, gate, styled)
    found = []
    for share, reference in ((0.0, styled), (1.0, both)):
        gate.share = 0.0, share
        found.append(sample(pack, model, conditioning, sources[1]))
        right = sample(pack, reference, conditioning, sources[1])
        assert float((found[-1] - right).norm() / right.norm()) < 1e-4
    assert float((found[0] - found[1]).norm() / found[0].norm()) > 1e-2
    with pytest.raises(ValueError, match="do not begin with those that the clip was inverted with"):
        bypass.bypass_patches(with_lora(loaded.model, lora(loaded, 1), 1.0), gate, styled)
