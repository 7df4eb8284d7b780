"""FramePainter's guidance on the host's samplers."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests.golden import relative
from framepainter_tests.networks import sample


def test_constant_is_the_hosts_own_guidance(pack, edit):
    model = edit.loaded.model
    assert torch.equal(sample(pack("host.sampling.guidance").set_guidance(model, "constant"), edit), sample(model, edit))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_scale_falls_with_the_steps(pack, edit, sampler):
    """At every model call the scale lies on the published curve, also between two steps (Heun's second look)."""
    scales = []

    def note(args):
        scales.append((float(args["sigma"].flatten()[0]), args["cond_scale"]))
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    model = edit.loaded.model.clone()
    model.set_model_sampler_cfg_function(note)
    sample(pack("host.sampling.guidance").set_guidance(model, "inverse square"), edit, steps=4, sampler=sampler)
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 4).tolist()
    for sigma, scale in scales:
        at = min(range(4), key=lambda i: abs(sigmas[i] - sigma))
        assert scale == pytest.approx(1 + 2 * (1 - at / 4) ** 2, rel=1e-4)
    assert scales[0][1] == pytest.approx(3.0)


def test_a_schedule_is_replaced_not_compounded(pack, edit):
    set_guidance, model = pack("host.sampling.guidance").set_guidance, edit.loaded.model
    once = set_guidance(model, "inverse square")
    assert torch.equal(sample(set_guidance(once, "inverse square"), edit), sample(once, edit))
    assert torch.equal(sample(set_guidance(once, "constant"), edit), sample(model, edit))
    foreign = model.clone()
    foreign.set_model_sampler_cfg_function(lambda args: args["uncond"] + 2 * args["cond_scale"] * (
        args["cond"] - args["uncond"]))
    back = set_guidance(set_guidance(foreign, "inverse square"), "constant")
    assert torch.equal(sample(back, edit), sample(foreign, edit))


def test_scale_one_skips_the_unconditional_half(pack, edit):
    """At cfg 1 the host drops the unconditional pass; the schedule stays at 1 and nothing is lost."""
    model = edit.loaded.model
    scheduled = pack("host.sampling.guidance").set_guidance(model, "inverse square")
    assert relative(sample(scheduled, edit, cfg=1.0), sample(model, edit, cfg=1.0)) < 1e-6
