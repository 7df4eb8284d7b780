"""Loss values and gradients against closed forms on tiny tensors."""

from __future__ import annotations

import math

import pytest
import torch


@pytest.fixture(scope="module")
def losses(pack):
    return pack("core.training.framepainter.losses")


def test_a_perfect_v_denoises_perfectly(pack, losses):
    """Through the sampler's own formula, the true v gives back the clean latents at every noise level."""
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 4, 2, 4, 3, 3).double().unbind(0)
    sigma = torch.tensor([0.002, 0.5, 30.0, 700.0], dtype=torch.double)
    made = pack("core.edm").add_noise(latents, noise, sigma)
    s = sigma.reshape(-1, 1, 1, 1, 1)
    z = made.x * (s**2 + 1).sqrt()
    assert torch.allclose(z / (s**2 + 1) - made.v * s / (s**2 + 1).sqrt(), latents, atol=1e-9)
    assert torch.allclose(made.t, 0.25 * sigma.float().log())
    assert torch.allclose(made.x.var(), torch.tensor(1.0).double(), atol=0.2)  # unit input at every level


def test_the_host_denoises_the_same(pack, losses):
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.V_PREDICTION):
        pass

    torch.manual_seed(1)
    latents, noise = torch.randn(2, 3, 2, 4, 3, 3).unbind(0)
    sigma = torch.tensor([0.1, 1.0, 20.0])
    made = pack("core.edm").add_noise(latents, noise, sigma)
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


KINDS = ("squared error", "cross entropy")


@pytest.fixture
def case():
    """Attention of three target tokens and the source token that is the true one of each."""
    weights = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3]]])
    return weights, torch.tensor([[0, 1, 2]])


def test_squared_error(losses, case):
    by_hand = [(0.5 - 1) ** 2 + 2 * 0.25**2, (0.8 - 1) ** 2 + 2 * 0.1**2, (1 / 3 - 1) ** 2 + 2 / 9]
    assert losses.squared_error_rows(*case)[0].tolist() == pytest.approx(by_hand)


def test_cross_entropy(losses, case):
    assert losses.cross_entropy_rows(*case)[0].tolist() == pytest.approx([-math.log(p) for p in (0.5, 0.8, 1 / 3)])


@pytest.mark.parametrize("kind, worst", [("squared error", 2.0), ("cross entropy", -math.log(1e-12))])
def test_ends_of_the_range(losses, kind, worst):
    """All weight on the true token costs nothing; all of it on a wrong one costs the most, and stays finite."""
    rows = losses.ROWS[kind]
    assert torch.allclose(rows(torch.eye(3)[None], torch.tensor([[0, 1, 2]])), torch.zeros(1, 3), atol=1e-6)
    assert torch.allclose(rows(torch.eye(3)[None], torch.tensor([[1, 2, 0]])), torch.full((1, 3), worst))


@pytest.fixture
def asked(pack):
    """Queries, keys (two heads) and matches of two videos, 6 target and 8 source tokens."""
    torch.manual_seed(2)
    q, k = torch.randn(2, 6, 8), torch.randn(2, 8, 8)
    visible = torch.tensor([[True, True, False, True, True, False], [False, True, True, True, False, True]])
    return q, k, pack("core.attention.correspondence").TokenMatches(torch.randint(0, 8, (2, 6)), visible)


def with_gradients(losses, kind, q, k, heads, matches, **chunk):
    with torch.enable_grad():
        q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
        loss = losses.matching_loss(kind, q, k, heads, matches, **chunk)
        loss.backward()
    return loss.detach(), q.grad, k.grad


@pytest.mark.parametrize("kind", KINDS)
def test_mean_over_visible_tokens(losses, asked, kind):
    q, k, matches = asked
    rows = losses.ROWS[kind](losses.attention_weights(q, k, 2), matches.index)
    assert torch.allclose(losses.matching_loss(kind, q, k, 2, matches), rows[matches.visible].mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 6])
def test_chunks_are_the_whole(losses, asked, kind, rows):
    """A few rows at a time: same value, same gradients. One row of both videos has 2 * 2 * 8 weights."""
    for whole, parts in zip(with_gradients(losses, kind, *asked[:2], 2, asked[2]),
                            with_gradients(losses, kind, *asked[:2], 2, asked[2], chunk=rows * 32), strict=True):
        assert torch.allclose(whole, parts, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_visible_costs_nothing(losses, asked, kind):
    q, k, matches = asked
    none = matches._replace(visible=torch.zeros(2, 6, dtype=torch.bool))
    for chunk in ({}, {"chunk": 64}):
        loss, at_q, at_k = with_gradients(losses, kind, q, k, 2, none, **chunk)
        assert loss == 0 and not at_q.any() and not at_k.any()


def test_gradient_of_cross_entropy(losses, asked):
    """One head: on the scores q.k/sqrt(D) it is (A - C) / visible tokens, zero on hidden ones."""
    q, k, matches = asked
    _, at_q, at_k = with_gradients(losses, "cross entropy", q, k, 1, matches)
    one_hot = torch.nn.functional.one_hot(matches.index, 8)
    scores = (losses.attention_weights(q, k, 1) - one_hot) * matches.visible[..., None] / matches.visible.sum()
    assert torch.allclose(at_q, scores @ k / math.sqrt(8), atol=1e-6)
    assert torch.allclose(at_k, scores.transpose(1, 2) @ q / math.sqrt(8), atol=1e-6)


def test_gradient_of_squared_error(losses, asked):
    """One head: with e = 2 (A - C), on the scores it is A (e - sum A e) / visible tokens."""
    q, k, matches = asked
    _, at_q, _ = with_gradients(losses, "squared error", q, k, 1, matches)
    weights = losses.attention_weights(q, k, 1)
    e = 2 * (weights - torch.nn.functional.one_hot(matches.index, 8))
    scores = weights * (e - (weights * e).sum(-1, keepdim=True)) * matches.visible[..., None] / matches.visible.sum()
    assert torch.allclose(at_q, scores @ k / math.sqrt(8), atol=1e-6)


def test_attention_weights(losses):
    torch.manual_seed(3)
    q, k = torch.randn(2, 5, 8), torch.randn(2, 6, 8)
    heads = [torch.softmax(q[..., s] @ k[..., s].transpose(1, 2) / 2, -1) for s in (slice(0, 4), slice(4, 8))]
    assert torch.allclose(losses.attention_weights(q, k, 2), sum(heads) / 2, atol=1e-6)


def test_following_the_gradient_finds_the_matches(losses, pack):
    """Descending either loss on free queries brings the attention's argmax to the truth."""
    torch.manual_seed(4)
    matches = pack("core.attention.correspondence").TokenMatches(torch.randperm(12)[None], torch.ones(1, 12, dtype=torch.bool))
    for kind in KINDS:
        with torch.enable_grad():
            q = torch.zeros(1, 12, 16, requires_grad=True)
            k = torch.randn(1, 12, 16)
            step = torch.optim.Adam([q], lr=0.3)
            for _ in range(60):
                step.zero_grad()
                losses.matching_loss(kind, q, k, 1, matches).backward()
                step.step()
        assert torch.equal(losses.attention_weights(q.detach(), k, 1).argmax(-1), matches.index)
