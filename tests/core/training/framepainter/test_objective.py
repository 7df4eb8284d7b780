"""From a batch to the loss, with networks whose answers are known."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch


@pytest.fixture(scope="module")
def objective(pack):
    return pack("core.training.framepainter.objective")


@pytest.fixture
def batch(pack):
    torch.manual_seed(0)
    count, h, w = 6, 4, 6
    flow = torch.zeros(count, 2, 8 * h, 8 * w)
    flow[:, 0] = 8.0  # everything comes from one latent pixel to the right
    return pack("core.training.examples").Examples(
        torch.randn(count, 2, 4, h, w), torch.rand(count, 4, h, w) + 1, torch.rand(count, 1, 5) + 1,
        torch.full((count, 3, 8 * h, 8 * w), 255, dtype=torch.uint8), flow, torch.ones(count, 8 * h, 8 * w, dtype=torch.bool))


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Answer(NamedTuple):
    """As core.training.network has it."""

    v: torch.Tensor
    attention: list


class Oracle:
    """Knows the clean latents, so its v is the true one; keeps what it was given."""

    def __init__(self, latents, attention=()):
        self.latents, self.attention, self.seen = latents, list(attention), None

    def __call__(self, given):
        self.seen = given._asdict()
        sigma = torch.exp(4 * given.t).reshape(-1, 1, 1, 1, 1)
        root = (sigma**2 + 1).sqrt()
        noise = (given.x * root - self.latents) / sigma
        return Answer((noise - sigma * self.latents) / root, self.attention if given.record else [])


def test_the_true_v_costs_nothing(objective, batch):
    out = objective.losses(Oracle(batch.latents), batch, objective.Objective(sigma_mean=0.0, sigma_std=0.5), seeded())
    assert float(out["loss"]) == pytest.approx(0, abs=1e-9) and set(out) == {"loss", "diffusion"}


def test_noise_levels(objective):
    """One from each share of the distribution; over many batches its mean and deviation are those asked for."""
    settings = objective.Objective(sigma_mean=0.7, sigma_std=1.3)
    logs = torch.stack([objective.draw_sigma(8, settings, seeded(i)).log() for i in range(400)])
    assert float(logs.mean()) == pytest.approx(0.7, abs=0.02) and float(logs.std()) == pytest.approx(1.3, abs=0.03)
    shares = (0.5 * (1 + torch.erf((logs - 0.7) / (1.3 * math.sqrt(2)))) * 8).floor().sort(1).values
    assert torch.equal(shares, torch.arange(8.0).expand(400, 8))


def test_dropped_parts_are_zero(objective, batch):
    network = Oracle(batch.latents)
    objective.losses(network, batch, objective.Objective(drop_image=1.0, drop_control=0.0), seeded())
    assert not network.seen["image"].any() and not network.seen["embedding"].any()
    assert not network.seen["control"].any()  # an unconditional pass has no signal either
    objective.losses(network, batch, objective.Objective(drop_image=0.0, drop_control=1.0), seeded())
    assert torch.equal(network.seen["image"], batch.image) and not network.seen["control"].any()
    objective.losses(network, batch, objective.Objective(drop_image=0.0, drop_control=0.0), seeded())
    assert network.seen["control"].min() == 1


def test_image_and_embedding_are_dropped_together(objective, batch):
    network, seen = Oracle(batch.latents), []
    for i in range(200):
        objective.losses(network, batch, objective.Objective(drop_image=0.3, drop_control=0.2), seeded(i))
        there = [network.seen[n].flatten(1).any(1) for n in ("image", "embedding", "control")]
        assert torch.equal(there[0], there[1]) and not (there[2] & ~there[0]).any()
        seen.append(torch.stack([there[0], there[2]]).float().mean(1))
    kept_image, kept_control = torch.stack(seen).mean(0).tolist()
    assert kept_image == pytest.approx(0.7, abs=0.04) and kept_control == pytest.approx(0.7 * 0.8, abs=0.04)


def test_matching_is_added_with_its_weight(objective, batch, pack):
    """Attention that knows the answer costs nothing; uniform attention costs ln(number of source tokens)."""
    uniform = pack("core.training.network").AttentionQK("a", torch.zeros(6, 2, 24, 8), torch.zeros(6, 24, 8), 2)
    grid = torch.eye(24)[None] * 60
    # Query i is the key of its right neighbour; in the last column that is outside, and is not counted.
    right = torch.roll(grid, -1, 1)[:, None].expand(6, 2, 24, 24)
    knowing = pack("core.training.network").AttentionQK("b", right, grid.expand(6, 24, 24), 1)
    for sites, expected in (([uniform], math.log(24)), ([knowing], 0.0), ([uniform, knowing], math.log(24) / 2)):
        out = objective.losses(Oracle(batch.latents, sites), batch, objective.Objective(matching_weight=0.25), seeded())
        assert float(out["matching"]) == pytest.approx(expected, abs=1e-4)
        assert float(out["loss"]) == pytest.approx(float(out["diffusion"]) + 0.25 * expected, abs=1e-4)


def test_matching_can_be_off_or_unknown(objective, batch):
    network = Oracle(batch.latents)
    objective.losses(network, batch, objective.Objective(matching=None), seeded())
    assert network.seen["record"] is False
    unknown = type(batch)(batch.latents, batch.image, batch.embedding, batch.control)
    objective.losses(network, unknown, objective.Objective(), seeded())
    assert network.seen["record"] is False


def test_source_reconstruction_can_be_left_out(objective, batch):
    """With frame weights (0, 1) an error on the source frame costs nothing."""
    class WrongOnSource(Oracle):
        def __call__(self, given):
            answer = super().__call__(given)
            return answer._replace(v=answer.v + torch.tensor([1.0, 0.0])[None, :, None, None, None])

    network = WrongOnSource(batch.latents)
    both = objective.losses(network, batch, objective.Objective(sigma_mean=0.0, sigma_std=0.5), seeded())
    target = objective.losses(network, batch, objective.Objective(sigma_mean=0.0, sigma_std=0.5, frame_weights=(0, 1)),
                              seeded())
    assert float(both["diffusion"]) == pytest.approx(0.5, abs=1e-5) and float(target["diffusion"]) == pytest.approx(0, abs=1e-9)


def test_a_step_is_its_generator(objective, batch):
    def values(seed):
        network = Oracle(batch.latents[:3] * 0)
        objective.batch_loss(network, batch, 3, objective.Objective())(1, 0, seeded(seed))
        return network.seen["x"]

    assert torch.equal(values(4), values(4)) and not torch.equal(values(4), values(5))


def test_processes_share_the_batches_of_one(objective, batch, pack, monkeypatch):
    """Batch m of process r of 2 is batch 2 m + r of a single process; the loss reported by one process is its own."""
    parallel, loop = pack("core.training.parallel"), pack("core.training.loop")
    monkeypatch.setattr(parallel, "_mean", lambda out, _: out)  # nobody to talk to here

    def seen(places, micro):
        network = Oracle(batch.latents[:3] * 0)
        one = parallel.shared(objective.batch_loss(network, batch, 3, objective.Objective()), network, 2, 7, places)
        one(5, micro, loop.step_generator(7, 5, micro, places.rank))
        return network.seen["x"]

    alone = [seen(parallel.Processes(), m) for m in range(4)]
    shared = [seen(parallel.Processes(r, 2, r), m) for m in range(2) for r in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert not torch.equal(alone[0], alone[1])


def test_preview_sampling_finds_what_the_oracle_knows(batch, pack):
    found = pack("core.training.preview").sample(Oracle(batch.latents), batch, 8, 2.0, 0)
    assert torch.allclose(found, batch.latents, atol=2e-2)
