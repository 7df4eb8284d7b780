"""Several editing signals on one model, and the two clocks, as guests on the host's sampler."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests.golden import relative
from framepainter_tests.networks import rounding, sample

POINTS = torch.tensor([[[0.2, 0.2, 0.8, 0.7], [0.5, 0.9, 0.1, 0.1]]])


@pytest.fixture(scope="module")
def drag(pack):
    return pack("host.signals.drag")


@pytest.fixture
def patches(pack):
    return pack("host.attention.matching")


@pytest.fixture
def coarse() -> torch.Tensor:
    return torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(3))


def control(pack, edit, model, picture, strength=1.0, start=0.0, end=1.0):
    return pack("host.signals.control").apply_control(model, edit.loaded.weights.encoder, picture, strength, start, end, "release")


def test_order_does_not_matter(pack, drag, patches, edit, strokes, coarse):
    """Sketch, coarse edit and drags, each with its own strength and schedule, attached in any order."""
    def sketch(model):
        return control(pack, edit, model, strokes, 0.8, 0.0, 0.7)

    def rough(model):
        return control(pack, edit, model, coarse, 1.3, 0.2, 1.0)

    def dragged(model):
        return drag.apply_drag(model, POINTS, 0.6, 0.0, 0.9)

    everything = dragged(rough(sketch(edit.loaded.model)))
    first, limit = sample(everything, edit), 4 * rounding(everything, edit)
    for order in ((dragged, sketch, rough), (rough, dragged, sketch)):
        model = edit.loaded.model
        for attach in order:
            model = attach(model)
        assert relative(sample(model, edit), first) < limit
    for left_out in ((sketch, rough), (sketch, dragged), (rough, dragged)):
        model = edit.loaded.model
        for attach in left_out:
            model = attach(model)
        assert relative(sample(model, edit), first) > 3 * limit


def test_drags_beside_control_are_bit_exact_in_either_order(pack, drag, patches, edit, strokes):
    model = edit.loaded.model
    one = drag.apply_drag(control(pack, edit, model, strokes), POINTS, 1.0, 0.0, 1.0)
    other = control(pack, edit, drag.apply_drag(model, POINTS, 1.0, 0.0, 1.0), strokes)
    assert torch.equal(sample(one, edit), sample(other, edit))


def test_two_drags_add_up(drag, patches, edit):
    """One signal with two drags, or two signals with one each."""
    model = edit.loaded.model
    apply_drag = drag.apply_drag
    both = apply_drag(model, POINTS, 1.0, 0.0, 1.0)
    chained = apply_drag(apply_drag(model, POINTS[:, 1:], 1.0, 0.0, 1.0), POINTS[:, :1], 1.0, 0.0, 1.0)
    assert relative(sample(chained, edit), sample(both, edit)) < 4 * rounding(both, edit) < 1e-3


def test_two_controls_are_measured_against_the_same_features(pack, patches, edit, strokes, coarse):
    """What the second adds does not depend on the first: the sum of both parts, exactly as each alone."""
    injection = pack("core.models.control_injection")
    torch.manual_seed(0)
    h = torch.randn(2, 64, 8, 12)
    options = {"block": ("input", 3), "sigmas": torch.tensor([5.0]), "cond_or_uncond": [0], "original_shape": [2, 8, 8, 12]}
    model = control(pack, edit, control(pack, edit, edit.loaded.model, strokes, 0.5), coarse, 0.9)
    both = model.model_options["transformer_options"]["patches"]["input_block_patch_after_skip"]
    with torch.inference_mode():
        first, second = both
        options["block"] = ("input", first.block)
        h = torch.randn(2, edit.loaded.weights.encoder.model.widths.out, 8, 12)
        alone = [patch(h, dict(options)) - h for patch in both]
        together = second(first(h, options), options) - h
        assert relative(together, alone[0] + alone[1]) < 1e-5
        # In the next pass with the same dictionary nothing of this one counts.
        assert torch.equal(first(h, options), first(h, dict(options)))
    assert injection.inject(h, h, 1.0).shape == h.shape


def test_without_matching_attention(drag, patches, edit, strokes):
    """Stock SVD: no branch attached, drags work; strength 0 is the model itself."""
    model = patches.attach_matching(edit.loaded.model, None, "off", 1.0)
    before = sample(model, edit)
    dragged = sample(drag.apply_drag(model, POINTS, 1.0, 0.0, 1.0), edit)
    assert relative(dragged, before) > 1e-3 and torch.isfinite(dragged).all()


# ---- two clocks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clocks(pack):
    return pack("host.keeping")


def run(model, edit, latent, steps=10, sampler="euler", scheduler="karras"):
    """As KSampler runs a LATENT."""
    import comfy.sample

    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(latent["samples"], 5)
        seen: list = []
        out = comfy.sample.sample(model, noise, steps, 1.0, sampler, scheduler, edit.positive, edit.negative,
                                  latent["samples"], noise_mask=latent.get("noise_mask"), disable_pbar=True, seed=5,
                                  callback=lambda i, x0, x, total: seen.append((i, total))).clone()
    return out, seen


@pytest.fixture
def rough(edit, clocks):
    """Two frames, and their region: all of frame 0, a box of frame 1."""
    frames = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(4))
    masks = torch.zeros(2, 64, 96)
    masks[0], masks[1, 16:48, 32:64] = 1, 1
    with torch.inference_mode():
        return clocks.dual_clock_start(edit.loaded.vae, {"samples": edit.latent}, frames, masks)


def test_steps_of_the_clocks(pack):
    steps = pack("core.keeping.dual_clock").clock_steps
    assert steps(50, 0.32, 0.42) == (16, 21)  # the authors' own numbers for Stable Video Diffusion
    assert steps(10, 0.0, 0.0) == (0, 0) and steps(10, 1.0, 1.0) == (9, 10) and steps(1, 0.5, 0.9) == (0, 1)
    assert all(steps(n, a / 9, b / 9)[0] <= steps(n, a / 9, b / 9)[1] <= n
               for n in range(1, 30) for a in range(10) for b in range(a, 10))


def test_early_steps_are_left_out(edit, clocks, rough):
    latent, region = rough
    assert region.shape == (2, 1, 8, 12) and region[1].sum() == 4 * 4 and region[0].min() == 1
    _, seen = run(clocks.attach_dual_clock(edit.loaded.model, region, 0.3, 0.5), edit, latent)
    assert seen == [(i, 7) for i in range(7)]


def test_held_to_the_end_is_the_rough_edit(edit, clocks, rough):
    """strong 1: the region never starts, and comes out as it was put in; the rest does not."""
    latent, region = rough
    out, _ = run(clocks.attach_dual_clock(edit.loaded.model, region, 0.2, 1.0), edit, latent)
    held = region.expand_as(out) == 1
    assert (out - latent["samples"]).abs()[held].max() < 1e-3 * latent["samples"].abs().max()
    assert (out - latent["samples"]).abs()[~held].mean() > 0.1


def test_later_release_stays_closer(edit, clocks, rough):
    latent, region = rough
    held = region.expand_as(latent["samples"]) == 1
    errors = [float((run(clocks.attach_dual_clock(edit.loaded.model, region, 0.2, strong), edit, latent, 5)[0]
                     - latent["samples"])[held].square().mean()) for strong in (0.2, 0.6, 1.0)]
    assert errors[0] > 2 * errors[1] > 0 and errors[1] > errors[2]


def test_equal_clocks_are_sdedit(edit, clocks, rough):
    """Both clocks at one step: the host's own run of the last steps from the noised rough edit, bit for bit."""
    import comfy.sample
    import comfy.samplers

    latent, region = rough
    out, _ = run(clocks.attach_dual_clock(edit.loaded.model, region, 0.4, 0.4), edit, latent)
    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(latent["samples"], 5)
        sigmas = comfy.samplers.KSampler(edit.loaded.model, 10, "cpu", "euler", "karras").sigmas[4:]
        plain = comfy.sample.sample_custom(edit.loaded.model, noise, 1.0, comfy.samplers.sampler_object("euler"), sigmas,
                                           edit.positive, edit.negative, latent["samples"], disable_pbar=True, seed=5)
    assert relative(out, plain) < 1e-6


@pytest.mark.parametrize("sampler, scheduler", [("heun", "karras"), ("dpmpp_2m", "exponential"), ("uni_pc", "simple")])
def test_other_samplers(edit, clocks, rough, sampler, scheduler):
    latent, region = rough
    out, seen = run(clocks.attach_dual_clock(edit.loaded.model, region, 0.3, 1.0), edit, latent, 6, sampler, scheduler)
    held = region.expand_as(out) == 1
    assert torch.isfinite(out).all()
    assert (out - latent["samples"]).abs()[held].max() < 2e-2 * latent["samples"].abs().max()


def test_nothing_stays_behind_and_clocks_are_replaced(edit, clocks, rough):
    latent, region = rough
    model = edit.loaded.model
    before, _ = run(model, edit, latent, 4)
    once = clocks.attach_dual_clock(model, region, 0.3, 0.5)
    twice = clocks.attach_dual_clock(clocks.attach_dual_clock(model, region, 0.0, 1.0), region, 0.3, 0.5)
    a, b = run(once, edit, latent, 4), run(twice, edit, latent, 4)
    assert torch.equal(a[0], b[0]) and a[1] == b[1]
    assert torch.equal(run(once, edit, latent, 4)[0], a[0])
    assert torch.equal(run(model, edit, latent, 4)[0], before)


def test_stock_svd_with_more_frames(edit, clocks):
    frames = torch.rand(5, 64, 96, 3, generator=torch.Generator().manual_seed(4))
    masks = torch.ones(5, 64, 96)
    with torch.inference_mode():
        latent, region = clocks.dual_clock_start(edit.loaded.vae, {"samples": torch.zeros(5, 4, 8, 12)}, frames, masks)
    out, seen = run(clocks.attach_dual_clock(edit.loaded.model, region, 0.5, 1.0), edit, latent, 4)
    assert out.shape == (5, 4, 8, 12) and len(seen) == 2
    assert (out - latent["samples"]).abs().max() < 1e-3 * latent["samples"].abs().max()


# ---- keeping in latents ----------------------------------------------------------------------------------------------


def test_outside_the_mask_the_latent_is_the_sources(edit, clocks):
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(6))
    mask = torch.zeros(1, 64, 96)
    mask[:, 20:30, 30:50] = 1
    with torch.inference_mode():
        latent = clocks.keep_latent(edit.loaded.vae, {"samples": edit.latent}, picture, mask)
    assert latent["noise_mask"][0].min() == 1 and latent["noise_mask"][1].sum() == 2 * 4
    out, _ = run(edit.loaded.model, edit, latent, 4)
    kept = latent["noise_mask"][1].expand(4, -1, -1) == 0
    largest = latent["samples"].abs().max()
    assert (out[1] - latent["samples"][1]).abs()[kept].max() < 1e-3 * largest
    assert (out[1] - latent["samples"][1]).abs()[~kept].mean() > 1e-2 * largest


def test_both_together(edit, clocks, rough):
    """The noise mask that a latent brings stays in force under the two clocks."""
    latent, region = rough
    mask = torch.ones(2, 1, 8, 12)
    mask[1, :, :, :3] = 0
    out, _ = run(clocks.attach_dual_clock(edit.loaded.model, region, 0.2, 0.5), edit, {**latent, "noise_mask": mask})
    gone = (out - latent["samples"])[1, :, :, :3].abs().max()
    assert gone < 1e-3 * latent["samples"].abs().max()
    assert (out - latent["samples"])[1, :, 2:6, 4:8].abs().mean() > 0.01
