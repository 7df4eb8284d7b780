"""Motion LoRA's objective with a mask of what should not be learned."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def objective(pack):
    return pack("core.training.motion_lora.objective")


def loss(pack, objective, latents, weights):
    """Of a network that says v = 0: the error is a function of latents and noise alone."""
    prediction = pack("core.training.network").Prediction
    clip = objective.MotionClip(latents, torch.zeros(4, 6, 8), torch.zeros(1, 5), weights)
    generator = torch.Generator().manual_seed(1)
    noise, image_noise = (torch.randn(1, *shape, generator=generator) for shape in (latents.shape, (4, 6, 8)))
    return objective.motion_loss(lambda given: prediction(torch.zeros_like(given.x), []), clip, torch.tensor([2.0]), noise,
                                 image_noise, torch.tensor([[6.0, 127.0, 0.02]]))


def test_what_is_masked_does_not_count(pack, objective):
    """The loss is the mean over the rest, whatever lies in the mask; a mask of nothing changes no bit."""
    latents = torch.randn(3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(3, 1, 6, 8)
    plain = loss(pack, objective, latents, None)
    assert torch.equal(loss(pack, objective, latents, weights), plain)
    weights[:, :, :, :4] = 0
    masked = loss(pack, objective, latents, weights)
    spoiled = latents.clone()
    spoiled[..., :4] += 100
    assert torch.equal(loss(pack, objective, spoiled, weights), masked) and loss(pack, objective, spoiled, None) > 100 * plain
    halves = masked + loss(pack, objective, latents, 1 - weights)  # of equal size
    torch.testing.assert_close(halves / 2, plain)


def test_a_mask_counts_with_the_cells_around_it(objective):
    masks = torch.zeros(2, 48, 64)
    masks[0, 17, 30] = 0.1
    weights = objective.weights_outside(masks, 6, 8)
    assert weights.shape == (2, 1, 6, 8) and weights[1].min() == 1
    assert torch.equal((weights[0, 0] == 0).nonzero(), torch.cartesian_prod(torch.arange(1, 4), torch.arange(2, 5)))
    with pytest.raises(ValueError, match="'change_mask' covers all frames wholly"):
        objective.weights_outside(torch.ones(2, 48, 64), 6, 8)
