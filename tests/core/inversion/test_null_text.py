"""Null-text optimisation on a network whose best embedding is known, and its files."""

from __future__ import annotations

import pytest
import torch

STEPS, SHAPE = 5, (3, 4, 8, 8)


@pytest.fixture
def null_text(pack):
    return pack("core.inversion.null_text")


@pytest.fixture
def schedule(pack):
    return pack("core.ddim").Schedule(STEPS)


def predict(z, timestep, embedding):
    """A prediction that depends on the latents, the timestep and the embedding's mean."""
    return 0.1 * z + embedding.mean() * (1 + timestep / 1000)


TEXT = torch.full((1, 7, 6), 0.5)
EMPTY = torch.zeros(1, 7, 6)


@pytest.fixture
def trajectory():
    return torch.randn((STEPS + 1, *SHAPE), generator=torch.Generator().manual_seed(0)) * 0.1


def run(null_text, schedule, trajectory, **kwargs):
    with torch.inference_mode(False), torch.enable_grad():
        settings = null_text.NullTextSettings(guidance=2.0, iterations=4)
        return null_text.optimise(predict, trajectory, schedule, TEXT, EMPTY, settings, **kwargs)


def test_losses_fall_within_a_step(null_text, schedule, trajectory):
    out = run(null_text, schedule, trajectory)
    assert out.done == STEPS and all(len(losses) == 4 for losses in out.losses)
    assert all(later < earlier for losses in out.losses for earlier, later in zip(losses, losses[1:], strict=False))
    assert null_text.reconstruction_error(out, trajectory) == pytest.approx(
        float((out.latents[-1] - trajectory[0]).pow(2).mean().sqrt()))


def test_on_its_own_path_it_stops_at_once(pack, null_text, schedule):
    """Guided sampling with the empty prompt is the trajectory: the loss is 0, one update is made, as in the release."""
    ddim = pack("core.ddim")
    states = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))]
    for i in range(STEPS):
        t = schedule.timesteps[i]
        noise = null_text.guided(predict(states[-1], t, TEXT), predict(states[-1], t, EMPTY), 2.0)
        states.append(ddim.step(states[-1], noise, *schedule.alphas[i:i + 2]))
    out = run(null_text, schedule, torch.stack(states[::-1]))
    assert out.losses[0] == [pytest.approx(0.0, abs=1e-10)]


def test_an_interrupted_run_goes_on_bit_for_bit(null_text, schedule, trajectory, tmp_path):
    whole = run(null_text, schedule, trajectory)
    path = tmp_path / "state.safetensors"

    class Cancelled(Exception):
        pass

    def after(state):
        null_text.save(path, state, "this one")
        if state.done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(null_text, schedule, trajectory, after=after)
    found = null_text.load(path, "this one")
    assert found.done == 2 and found.losses == whole.losses[:2]
    seen = []
    again = run(null_text, schedule, trajectory, state=found, after=lambda state: seen.append(state.done))
    assert seen == [3, 4, 5] and again.losses == whole.losses
    for a, b in zip([*again.embeddings, *again.latents], [*whole.embeddings, *whole.latents], strict=True):
        assert torch.equal(a, b)


def test_more_than_a_hundred_steps_never_climb(pack, null_text):
    schedule = pack("core.ddim").Schedule(103)
    trajectory = torch.zeros(104, *SHAPE)
    with torch.inference_mode(False), torch.enable_grad():
        out = null_text.optimise(predict, trajectory, schedule, TEXT, EMPTY, null_text.NullTextSettings(iterations=1))
    assert [len(losses) for losses in out.losses[98:]] == [1, 1, 0, 0, 0]
    assert torch.equal(out.embeddings[99], out.embeddings[102])


def test_files_that_do_not_fit(null_text, schedule, trajectory, tmp_path, monkeypatch):
    path = tmp_path / "folder" / "state.safetensors"
    with pytest.raises(FileNotFoundError):
        null_text.load(path, "a")
    state = run(null_text, schedule, trajectory)
    null_text.save(path, state, "a")
    with pytest.raises(null_text.NullTextError, match="made from another trajectory"):
        null_text.load(path, "b")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(null_text.NullTextError, match="damaged"):
        null_text.load(path, "a")

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(null_text, "save_file", full)
    with pytest.raises(null_text.atomic.WriteError, match="No space left"):
        null_text.save(tmp_path / "other.safetensors", state, "a")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
