"""DDIM inversion and null-text on the host: there and back, interrupted and continued, refused where it cannot work."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests import text_model

FRAMES, SIDE, STEPS = 3, 16, 4


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


POSITIVE, NEGATIVE = [[noise(1, 77, 16, seed=3), {}]], [[noise(1, 77, 16, seed=4), {}]]
LATENT = {"samples": noise(FRAMES, 4, SIDE, SIDE, seed=2)}


@pytest.fixture
def inversion(pack):
    return pack("host.inversion.ddim")


def network(pack, **gains: float):
    """An inflated model of random tensors, some of them multiplied."""
    tensors = text_model.small_tensors(pack)
    return text_model.inflated(pack, {n: t * gains.get(n.split(".")[0], 1.0) for n, t in tensors.items()})


@pytest.fixture
def model(pack):
    return network(pack, out=0.3)


def invert(inversion, model, steps=STEPS, latent=LATENT, **kwargs):
    with torch.inference_mode():
        return inversion.invert(model, POSITIVE, latent, steps, **kwargs)


def test_there_and_back(pack, inversion):
    """Core's euler from the inverted latents comes nearer to the clean ones with finer steps."""
    import comfy.sample
    import comfy.samplers

    model, errors = network(pack, out=0.2, time_embed=0.0), []  # a random network jumps from one timestep to the next
    latent = {"samples": LATENT["samples"][:2, :, :8, :8]}
    for steps in (20, 80):
        found = invert(inversion, model, steps, latent)
        start = inversion.start_latent(found)["samples"]
        with torch.inference_mode():
            out = comfy.sample.sample_custom(model, torch.zeros_like(start), 1.0, comfy.samplers.sampler_object("euler"),
                                             torch.tensor(found.sigmas), POSITIVE, POSITIVE, start, disable_pbar=True)
        clean = pack("core.edm").scale_input(out, found.sigmas[-1])  # the schedule ends above sigma 0
        errors.append(float((clean - latent["samples"]).pow(2).mean().sqrt()))
    assert errors[1] < 0.5 * errors[0]


def test_the_trajectory_starts_with_the_video(pack, inversion, model):
    found = invert(inversion, model)
    latents = inversion.latents_of(found)
    assert latents.shape == (STEPS + 1, FRAMES, 4, SIDE, SIDE)
    assert torch.allclose(latents[0] / 0.18215, LATENT["samples"], atol=1e-5)
    assert torch.allclose(latents[-1], found.inverted)


def test_guidance_of_other_nodes_has_no_part(inversion, model):
    other = model.clone()
    other.set_model_sampler_cfg_function(lambda args: args["cond"] * 100)
    assert torch.equal(invert(inversion, other).states, invert(inversion, model).states)


class Cancelled(Exception):
    pass


def cancel_when(monkeypatch, condition):
    """The user cancels: work stops at the first place where it may, once the condition holds."""
    import comfy.model_management as mm

    def check():
        if condition():
            raise Cancelled

    monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", check)


def test_an_interrupted_inversion_goes_on(pack, inversion, model, tmp_path, monkeypatch):
    whole, trajectories = invert(inversion, model), pack("core.inversion.trajectory")
    with monkeypatch.context() as patched:
        cancel_when(patched, lambda: any(trajectories.load(p).reached == 2 for p in tmp_path.glob("*.safetensors")))
        with pytest.raises(Cancelled):
            invert(inversion, model, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    calls = []
    inner = model.model.apply_model
    monkeypatch.setattr(model.model, "apply_model", lambda *a, **k: calls.append(1) or inner(*a, **k))
    assert torch.equal(invert(inversion, model, folder=tmp_path).states, whole.states)
    assert len(calls) == STEPS - 2 and not list(tmp_path.iterdir())


def test_the_network_has_an_identity(pack, inversion, model):
    inflate = pack("host.attention.inflated")
    same = (model, model.clone(), inflate.inflate(model, inflate.temporal_of(model)))
    digests = {inflate.network_digest(m) for m in same}
    assert len(digests) == 1
    windowed = inflate.inflate(model, inflate.temporal_of(model), inflate.Settings(window=2))
    bare, lora, layers = inflate.inflate(model), model.clone(), inflate.temporal_of(model).clone()
    lora.add_patches({"diffusion_model.out.2.weight": ("diff", (noise(4, 32, 3, 3),))})
    name = next(iter(layers.model.state_dict()))
    layers.add_patches({name: ("diff", (layers.model.state_dict()[name].clone(),))})
    others = {pack("host.attention.inflated").network_digest(m) for m in (windowed, bare, lora, inflate.inflate(model, layers))}
    assert len(others | digests) == 5


def optimise(pack, inversion, model, found, iterations=3, **kwargs):
    settings = pack("core.inversion.null_text").NullTextSettings(3.0, iterations, 1e-5)
    with torch.inference_mode():
        return inversion.optimise(model, found, NEGATIVE, settings, **kwargs)


def test_embeddings_bring_guided_sampling_nearer(pack, inversion, model):
    null_text, ddim = pack("core.inversion.null_text"), pack("core.ddim")
    found = invert(inversion, model)
    out = optimise(pack, inversion, model, found, iterations=10)
    latents = inversion.latents_of(found)
    z, schedule = latents[-1], ddim.Schedule(STEPS)
    for i, t in enumerate(schedule.timesteps):
        predictions = (text_model.evaluate(pack, model, z, t, text[0][0]) for text in (POSITIVE, NEGATIVE))
        z = ddim.step(z, null_text.guided(*predictions, 3.0), *schedule.alphas[i:i + 2])
    without = float((z - latents[0]).pow(2).mean().sqrt())
    assert null_text.reconstruction_error(out, latents) < 0.95 * without


def test_an_interrupted_optimisation_goes_on_bit_for_bit(pack, inversion, model, tmp_path, monkeypatch):
    found = invert(inversion, model)
    whole = optimise(pack, inversion, model, found)
    with monkeypatch.context() as patched:
        cancel_when(patched, lambda: list(tmp_path.glob("*.safetensors")))
        with pytest.raises(Cancelled):
            optimise(pack, inversion, model, found, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    again = optimise(pack, inversion, model, found, folder=tmp_path)
    assert again.losses == whole.losses and not list(tmp_path.iterdir())
    assert all(torch.equal(a, b) for a, b in zip(again.embeddings, whole.embeddings, strict=True))


@pytest.mark.parametrize("precision, checkpointing", [("bf16", False), ("fp32", True)])
def test_other_ways_to_compute_the_same(pack, inversion, model, precision, checkpointing):
    found = invert(inversion, model)
    exact = optimise(pack, inversion, model, found)
    out = optimise(pack, inversion, model, found, precision=precision, checkpointing=checkpointing)
    assert all(t.dtype == torch.float32 for t in out.embeddings)
    for a, b in zip(out.losses, exact.losses, strict=True):
        assert a == pytest.approx(b, rel=0.2 if precision == "bf16" else 1e-3)


def test_what_cannot_be_inverted_is_refused(pack, inversion, model):
    inflate = pack("host.attention.inflated")
    plain = text_model.build(pack, text_model.split(text_model.small_tensors(pack))[0])
    found = invert(inversion, model)
    cases = (
        ("do not see each other", lambda: inversion.invert(plain, POSITIVE, LATENT, STEPS)),
        ("'positive' holds 2 conditionings", lambda: inversion.invert(model, POSITIVE * 2, LATENT, STEPS)),
        ("'positive' carries control", lambda: inversion.invert(model, [[POSITIVE[0][0], {"control": object()}]], LATENT, STEPS)),
        ("'latent' is of shape", lambda: inversion.invert(model, POSITIVE, {"samples": noise(3, 16, 8, 8)}, STEPS)),
        ("'steps' does not work: .* 1000 steps", lambda: inversion.invert(model, POSITIVE, LATENT, 1000)),
        ("made with another model", lambda: inversion.optimise(inflate.inflate(model), found, NEGATIVE)),
    )
    for text, call in cases:
        with pytest.raises(ValueError, match=text):
            call()
