"""Video-P2P's schedule and DDIM steps against ComfyUI's own numbers, a closed form, and each other."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def ddim(pack):
    return pack("core.ddim")


@pytest.mark.parametrize("steps", [1, 3, 6, 8, 50, 999])
def test_levels(ddim, steps):
    schedule = ddim.Schedule(steps)
    assert len(schedule.timesteps) == steps and len(schedule.sigmas) == steps + 1
    assert schedule.timesteps[-1] == 1 and schedule.timesteps[0] == 1 + (steps - 1) * (1000 // steps) < 1000
    assert list(schedule.sigmas) == sorted(schedule.sigmas, reverse=True)
    assert schedule.sigmas[-1] == pytest.approx(0.0292, abs=5e-5)


@pytest.mark.parametrize("steps", [0, -1, 1000])
def test_impossible_numbers_of_steps(ddim, steps):
    with pytest.raises(ValueError, match=f"{steps} steps .* between 1 and 999"):
        ddim.Schedule(steps)


def test_the_host_maps_every_level_to_its_timestep(ddim):
    import comfy.model_sampling

    sampling = comfy.model_sampling.ModelSamplingDiscrete()
    for steps in (7, 50, 999):
        schedule = ddim.Schedule(steps)
        sigmas = torch.tensor(schedule.sigmas)
        assert sampling.timestep(sigmas).tolist() == [*schedule.timesteps, 0]
        assert torch.allclose(sampling.sigmas[[*schedule.timesteps, 0]], sigmas, rtol=1e-4)


def test_a_step_of_the_host_s_euler_is_a_ddim_step(ddim):
    from comfy.k_diffusion.sampling import sample_euler

    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    schedule = ddim.Schedule(5)
    sigmas = torch.tensor(schedule.sigmas, dtype=torch.float64)
    held = x * (sigmas[0] ** 2 + 1).sqrt()
    found = sample_euler(lambda state, sigma, **_: state - sigma[0] * noise, held, sigmas, disable=True)
    for i in range(5):
        x = ddim.step(x, noise, *schedule.alphas[i:i + 2])
    assert torch.allclose(ddim.latents(found[None], sigmas[-1:].tolist())[0], x, atol=1e-12)


def test_a_step_back_undoes_a_step_of_the_same_prediction(ddim):
    generator = torch.Generator().manual_seed(1)
    x, noise = (torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    up = ddim.step(x, noise, 0.9, 0.2)
    assert torch.allclose(ddim.step(up, noise, 0.2, 0.9), x, atol=1e-12)


def test_noise_of_a_timestep_is_removed_by_its_true_noise(ddim):
    generator = torch.Generator().manual_seed(2)
    x, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    noisy = ddim.add_noise(x, noise, 700)
    assert torch.allclose(ddim.step(noisy, noise, ddim.cumulative_alphas()[700], 1.0), x, atol=1e-5)


def test_inversion_asks_with_the_upper_timestep(pack, ddim):
    """With a prediction that depends on the level only, each step is the DDIM step with the prediction of the level above."""
    schedule = ddim.Schedule(4)
    sigmas = torch.tensor(schedule.sigmas[::-1], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    noises = {round(float(s), 6): torch.randn(x.shape, generator=generator, dtype=torch.float64) for s in sigmas}
    seen = []

    def model(state, sigma):
        level = float(sigma[0])
        seen.append(state / (level**2 + 1) ** 0.5)
        return state - level * noises[round(level, 6)]

    found = pack("core.inversion.ddim").invert_ddim(model, x * (sigmas[0] ** 2 + 1).sqrt(), sigmas)
    alphas = schedule.alphas[::-1]
    for i in range(4):
        assert torch.allclose(seen[i], x, atol=1e-12)
        x = ddim.step(x, noises[round(float(sigmas[i + 1]), 6)], alphas[i], alphas[i + 1])
    assert torch.allclose(found / (sigmas[-1] ** 2 + 1).sqrt(), x, atol=1e-12)
