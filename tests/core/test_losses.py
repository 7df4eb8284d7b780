"""Loss values and gradients against closed forms on tiny tensors."""

from __future__ import annotations

import math

import pytest
import torch


@pytest.fixture(scope="module")
def losses(pack):
    return pack("core.training.losses")


def test_a_perfect_v_denoises_perfectly(losses):
    """Through the sampler's own formula, the true v gives back the clean latents at every noise level."""
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 4, 2, 4, 3, 3).double().unbind(0)
    sigma = torch.tensor([0.002, 0.5, 30.0, 700.0], dtype=torch.double)
    made = losses.add_noise(latents, noise, sigma)
    s = sigma.reshape(-1, 1, 1, 1, 1)
    z = made.x * (s**2 + 1).sqrt()
    assert torch.allclose(z / (s**2 + 1) - made.v * s / (s**2 + 1).sqrt(), latents, atol=1e-9)
    assert torch.allclose(made.t, 0.25 * sigma.float().log())
    assert torch.allclose(made.x.var(), torch.tensor(1.0).double(), atol=0.2)  # unit input at every level


def test_the_host_denoises_the_same(losses):
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.V_PREDICTION):
        pass

    torch.manual_seed(1)
    latents, noise = torch.randn(2, 3, 2, 4, 3, 3).unbind(0)
    sigma = torch.tensor([0.1, 1.0, 20.0])
    made = losses.add_noise(latents, noise, sigma)
    sampling = Sampling()
    z = latents + sigma.reshape(-1, 1, 1, 1, 1) * noise
    assert torch.allclose(sampling.calculate_input(sigma, z), made.x, atol=1e-6)
    assert torch.allclose(sampling.calculate_denoised(sigma, made.v, z), latents, atol=1e-5)


def test_frame_weights(losses):
    v = torch.zeros(1, 2, 1, 1, 1)
    guess = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1, 1)
    assert losses.diffusion_loss(guess, v) == 5.0
    assert losses.diffusion_loss(guess, v, (0, 1)) == 9.0
    assert losses.diffusion_loss(guess, v, (1, 3)) == 7.0


@pytest.fixture
def case(pack):
    weights = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3]]])
    return weights, pack("core.data.signals").TokenMatches(torch.tensor([[0, 1, 2]]), torch.tensor([[True, True, False]]))


def test_squared_error(losses, case):
    by_hand = [(0.5 - 1) ** 2 + 2 * 0.25**2, (0.8 - 1) ** 2 + 2 * 0.1**2]
    assert losses.matching_squared_error(*case) == pytest.approx(sum(by_hand) / 2)


def test_cross_entropy(losses, case):
    assert losses.matching_cross_entropy(*case) == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)


@pytest.mark.parametrize("kind", ["squared error", "cross entropy"])
def test_nothing_visible_costs_nothing(losses, case, kind):
    weights, matches = case
    assert losses.MATCHING[kind](weights, matches._replace(visible=torch.zeros(1, 3, dtype=torch.bool))) == 0


@pytest.mark.parametrize("kind", ["squared error", "cross entropy"])
def test_perfect_attention_costs_nothing(losses, case, kind):
    weights = torch.eye(3)[None]
    assert losses.MATCHING[kind](weights, case[1]) == pytest.approx(0, abs=1e-6)


def test_gradient_of_cross_entropy(losses, pack):
    """One head: the gradient on the scores is (A - C) / visible tokens, zero on hidden ones."""
    torch.manual_seed(2)
    matches = pack("core.data.signals").TokenMatches(torch.tensor([[1, 0, 3, 2]]), torch.tensor([[True, True, True, False]]))
    with torch.enable_grad():
        scores = torch.randn(1, 4, 4, requires_grad=True)
        losses.matching_cross_entropy(scores.softmax(-1), matches).backward()
    one_hot = torch.nn.functional.one_hot(matches.index, 4)
    expected = (scores.detach().softmax(-1) - one_hot) / 3
    expected[:, 3] = 0
    assert torch.allclose(scores.grad, expected, atol=1e-6)


def test_attention_weights(losses):
    torch.manual_seed(3)
    q, k = torch.randn(2, 5, 8), torch.randn(2, 6, 8)
    heads = [torch.softmax(q[..., s] @ k[..., s].transpose(1, 2) / 2, -1) for s in (slice(0, 4), slice(4, 8))]
    assert torch.allclose(losses.attention_weights(q, k, 2), sum(heads) / 2, atol=1e-6)


def test_following_the_gradient_finds_the_matches(losses, pack):
    """Descending either loss on free queries brings the attention's argmax to the truth."""
    torch.manual_seed(4)
    matches = pack("core.data.signals").TokenMatches(torch.randperm(12)[None], torch.ones(1, 12, dtype=torch.bool))
    for kind in ("squared error", "cross entropy"):
        with torch.enable_grad():
            q = torch.zeros(1, 12, 16, requires_grad=True)
            k = torch.randn(1, 12, 16)
            step = torch.optim.Adam([q], lr=0.3)
            for _ in range(60):
                step.zero_grad()
                losses.MATCHING[kind](losses.attention_weights(q, k, 1), matches).backward()
                step.step()
        assert torch.equal(losses.attention_weights(q.detach(), k, 1).argmax(-1), matches.index)
