"""One-shot tuning on the host: it learns the video, goes on after an interruption, and its tensors make the tuned model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from framepainter_tests import text_model

FRAMES, SIDE = 3, 8


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TEXT = noise(1, 77, 16, seed=3)
LATENTS = noise(FRAMES, 4, SIDE, SIDE, seed=2)


@pytest.fixture
def one_shot(pack):
    return pack("host.training.one_shot")


@pytest.fixture
def plain(pack):
    return text_model.build(pack, text_model.split(text_model.small_tensors(pack))[0])


@pytest.fixture
def settings(pack):
    return replace(pack("core.training.one_shot.presets").PRESETS["small network"], steps=6, learning_rate=1e-3, save_every=2)


def tune(one_shot, model, settings, folder, **callbacks):
    with torch.inference_mode():
        return one_shot.run(one_shot.OneShotInputs(model, TEXT, LATENTS), settings, folder, one_shot.RunCallbacks(**callbacks))


def test_the_loss_on_the_video_falls(pack, one_shot, plain, settings, tmp_path):
    """On one timestep and noise, before and after."""
    objective, training = pack("core.training.one_shot.objective"), pack("host.training.inflated")
    finished = tune(one_shot, plain, replace(settings, steps=40), tmp_path)
    tuned = pack("host.attention.inflated").with_tuned(plain, finished.tensors)

    def loss(model):
        network = training.copy_of(model)
        return float(sum(objective.tuning_loss(network, LATENTS * 0.18215, TEXT, t, noise(*LATENTS.shape, seed=t))
                         for t in (100, 400, 700, 900)))

    assert loss(tuned) < 0.9 * loss(pack("host.attention.inflated").inflate(plain))


def test_the_model_is_only_read(one_shot, plain, settings, tmp_path):
    before = {n: t.clone() for n, t in plain.model.state_dict().items()}
    tune(one_shot, plain, settings, tmp_path)
    assert all(torch.equal(t, before[n]) for n, t in plain.model.state_dict().items())


def test_tuned_tensors_are_the_tuned_network(pack, one_shot, plain, settings, tmp_path):
    """The host's network with the file's tensors predicts what the trained copy predicts."""
    finished = tune(one_shot, plain, settings, tmp_path)
    assert finished.steps == 6 and len(finished.tensors) == 7 * 9  # 2 queries, 5 + 2 temporal tensors in each of 7 blocks
    tuned = pack("host.attention.inflated").with_tuned(plain, finished.tensors)
    network = pack("host.training.inflated").copy_of(tuned)
    assert all(torch.equal(network.named_weights()[n], t) for n, t in finished.tensors.items())
    latents = noise(FRAMES, 4, SIDE, SIDE, seed=7)
    assert (network(latents, 501, TEXT) - text_model.evaluate(pack, tuned, latents, 501, TEXT)).abs().max() < 1e-4


class Cancelled(Exception):
    pass


def test_an_interrupted_run_goes_on_bit_for_bit(one_shot, plain, settings, tmp_path):
    whole = tune(one_shot, plain, settings, tmp_path / "whole")
    left = [4]

    def check_stop():
        left[0] -= 1
        if left[0] == 0:
            raise Cancelled

    with pytest.raises(Cancelled):
        tune(one_shot, plain, settings, tmp_path / "run", check_stop=check_stop)
    steps = []
    again = tune(one_shot, plain, settings, tmp_path / "run", stepped=lambda step: steps.append(step.step))
    assert steps == [4, 5, 6]
    assert all(torch.equal(t, whole.tensors[n]) for n, t in again.tensors.items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments(tmp_path):
    """Tuning, inversion and null-text optimisation end at the bits of a run that nobody disturbed."""
    script = Path(__file__).resolve().parents[2] / "support" / "killed_video_p2p.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path), "3"], capture_output=True, text=True, timeout=500,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {"Tune on Video", "Invert DDIM", "Null-Text"}
    for work, came in found.items():
        assert len(came["moments"]) == 3 and came["equal"] and all(came["equal"]), work
        assert any(came["moments"]), f"{work} was always killed before it had kept anything"


def test_another_video_is_not_continued(pack, one_shot, plain, settings, tmp_path):
    tune(one_shot, plain, replace(settings, steps=2), tmp_path)
    with pytest.raises(ValueError, match="was made with data"), torch.inference_mode():
        one_shot.run(one_shot.OneShotInputs(plain, TEXT, LATENTS + 1), settings, tmp_path)


def test_what_trains(pack, one_shot, plain, settings, tmp_path):
    objective = pack("core.training.one_shot.objective")
    for what in objective.WHAT:
        start = pack("host.training.inflated").copy_of(plain, seed=settings.seed, random_bias=what == "as_released")
        made = tune(one_shot, plain, replace(settings, what_trains=what), tmp_path / what).tensors
        changed = {n for n, t in made.items() if not torch.equal(t, start.named_weights()[n])}
        assert changed == {n for n in made if objective.trains(n, what)}


def test_a_lora_is_merged_and_tuning_goes_on_from_tuned_layers(pack, one_shot, plain, settings, tmp_path):
    name = "middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    lora = plain.clone()
    delta = noise(*plain.model.diffusion_model.get_parameter(name).shape)
    lora.add_patches({f"diffusion_model.{name}": ("diff", (delta,))})
    network = pack("host.training.inflated").copy_of(lora)
    weight = plain.model.diffusion_model.get_parameter(name)
    assert torch.allclose(network.named_weights()[name], weight + delta)
    first = tune(one_shot, plain, settings, tmp_path / "first")
    tuned = pack("host.attention.inflated").with_tuned(plain, first.tensors)
    none = tune(one_shot, tuned, replace(settings, steps=0), tmp_path / "second")
    assert all(torch.equal(t, first.tensors[n]) for n, t in none.tensors.items())


@pytest.mark.parametrize("precision, checkpointing", [("fp32", True), ("bf16", True), ("bf16", False), ("fp16", True)])
def test_precision_and_checkpointing(one_shot, plain, settings, tmp_path, precision, checkpointing):
    exact, other = [], []
    tune(one_shot, plain, settings, tmp_path / "exact", stepped=lambda s: exact.append(s.losses["loss"]))
    changed = replace(settings, precision=precision, checkpointing=checkpointing)
    made = tune(one_shot, plain, changed, tmp_path / "other", stepped=lambda s: other.append(s.losses["loss"]))
    assert other == pytest.approx(exact, rel=1e-4 if precision == "fp32" else 0.02)
    assert all(t.dtype == torch.float32 for t in made.tensors.values())


def test_the_users_random_numbers_do_not_move(one_shot, plain, settings, tmp_path):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    tune(one_shot, plain, replace(settings, checkpointing=True), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_latents_that_are_not_finite_are_named(one_shot, plain, settings, tmp_path):
    with pytest.raises(ValueError, match="the video cannot be used: inf or NaN in its 'latent'.*--fp32-vae"):
        one_shot.run(one_shot.OneShotInputs(plain, TEXT, LATENTS * float("nan")), settings, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_family_is_refused(one_shot, edit, settings, tmp_path):
    with pytest.raises(ValueError, match="the 'model' input is a SVD_img2vid model"):
        tune(one_shot, edit.loaded.model, settings, tmp_path)


def test_choices(pack):
    presets = pack("core.training.one_shot.presets")
    assert presets.choose("default", steps=300, precision=None).steps == 300
    with pytest.raises(ValueError, match="precision is 'fp8'; choose one of bf16, fp16, fp32"):
        presets.choose("default", precision="fp8")
