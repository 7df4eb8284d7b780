"""DDIM inversion and null-text optimisation against recorded values of the published code."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests import text_model
from framepainter_tests.golden import Case
from framepainter_tests.videop2p import check, of_kind, rows, unet, video

SCALE = 0.18215


def cases_of(kind: str):
    return pytest.mark.parametrize("case", of_kind(kind), ids=repr)


def frames(trajectory: torch.Tensor) -> torch.Tensor:
    """(N + 1, 1, 4, F, h, w) -> (N + 1, F, 4, h, w)."""
    return torch.stack([rows(state) for state in trajectory])


def videos(states) -> torch.Tensor:
    """The inverse."""
    return torch.stack([video(state) for state in states])


@pytest.mark.parametrize("case", [*of_kind("ddim_inversion"), *of_kind("null_text")], ids=repr)
def test_schedule(pack, case: Case):
    p = case.info["parameters"]
    schedule = pack("core.ddim").Schedule(p["steps"])
    assert schedule.stride == p["schedule"]["stride"]
    assert list(schedule.timesteps) == p["schedule"]["timesteps"]
    expected = [*p["schedule"]["alphas_cumprod_at_timesteps"], p["schedule"]["final_alpha_cumprod"]]
    assert list(schedule.alphas) == pytest.approx(expected, rel=1e-6)


@cases_of("ddim_inversion")
def test_ddim_inversion(pack, case: Case):
    ddim, inversion = pack("core.ddim"), pack("host.inversion.ddim")
    t, p = case.tensors, case.info["parameters"]
    model = text_model.inflated(pack, unet(pack, case))
    with torch.inference_mode():
        found = inversion.invert(model, [[t["encoder_hidden_states"], {}]], {"samples": rows(t["latents"]) / SCALE}, p["steps"])
    check(case, "trajectory", videos(ddim.latents(found.states, found.levels)))


@pytest.mark.parametrize("variant", ["released", "early_stop"])
@cases_of("null_text")
def test_null_text(pack, case: Case, variant: str):
    ddim, inversion, optimisation = (pack(m) for m in ("core.ddim", "host.inversion.ddim", "core.inversion.null_text"))
    trajectories = pack("core.inversion.trajectory")
    t, p = case.tensors, case.info["parameters"]
    given = p["variants"][variant]
    model = text_model.inflated(pack, unet(pack, case))
    schedule = ddim.Schedule(p["steps"])
    latents = frames(t[f"{variant}/trajectory"])
    held = latents / ddim.latents(torch.ones_like(latents), schedule.sigmas[::-1])
    source = trajectories.SourceConditioning(t["encoder_hidden_states"], torch.zeros(0), {})
    found = trajectories.Trajectory(held, schedule.sigmas, source, pack("host.attention.inflated").network_digest(model))
    settings = optimisation.NullTextSettings(given["guidance_scale"], given["max_inner_iterations"], given["epsilon"])
    with torch.inference_mode():
        out = inversion.optimise(model, found, [[t["uncond_embedding"], {}]], settings)
    assert [len(losses) for losses in out.losses] == given["inner_iterations"]
    for losses, expected in zip(out.losses, given["losses"], strict=True):
        assert losses == pytest.approx(expected, rel=given["tolerance"]["losses_relative"], abs=0)
    check(case, f"{variant}/embeddings", torch.stack(out.embeddings))
    check(case, f"{variant}/latents", videos(out.latents))
