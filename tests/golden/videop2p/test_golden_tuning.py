"""Three steps of one-shot tuning against recorded values of the published code: losses, gradients, changes of the weights."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest
import torch
from framepainter_tests import text_model
from framepainter_tests.golden import Case
from framepainter_tests.videop2p import check, of_kind, rows, unet
from framepainter_tests.videop2p import network as network_of

RUNS = [(case, run) for case in of_kind("tuning_step") for run in case.info["parameters"]["runs"]]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case, run", RUNS, ids=[f"{case!r}-{run}" for case, run in RUNS])
def test_tuning_step(pack, case: Case, run: str, checkpointing: bool):
    training, one_shot, objective, presets = (pack(m) for m in (
        "host.training.inflated", "host.training.one_shot", "core.training.one_shot.objective", "core.training.one_shot.presets"))
    t, p, given = case.tensors, case.info["parameters"], case.info["parameters"]["runs"][run]
    inflated = pack("core.weights.inflated")
    names = inflated.to_comfy(p["trainable"], inflated.layout_from_diffusers(network_of(case)))
    tensors = unet(pack, case)
    for name in tensors:
        if any(fnmatch(name, pattern) for pattern in given["zeroed_parameters"]):
            tensors[name] = torch.zeros_like(tensors[name])
    with torch.inference_mode(False), torch.enable_grad():
        network = training.copy_of(text_model.inflated(pack, tensors), checkpointing=checkpointing)
        settings = presets.OneShotSettings(
            learning_rate=given["learning_rate"], clip=given["max_grad_norm"], precision="fp32",
            what_trains="as_released" if given["parameters_without_gradient"] else "all_trainable")
        trained = {n: p for n, p in one_shot.mark(network, settings).named_weights().items() if p.requires_grad}
        trainer = pack("core.training.loop").Trainer(trained, settings.loop())
        assert len(trainer.parameters) == len(names) - given["parameters_without_gradient"]
        assert set(trainer.parameters) <= set(names.values())
        every = network.named_weights()
        start = {name: every[name].detach().clone() for name in names.values()}
        latents = rows(t["latents"])

        def loss(step: int) -> torch.Tensor:
            noise = rows(t[f"noise_{step}"])
            return objective.tuning_loss(network, latents, t["encoder_hidden_states"], p["timesteps"][step], noise)

        loss(0).backward()
        gradients = {old: every[new].grad.clone() for old, new in names.items() if every[new].grad is not None}
        made = [trainer.advance(lambda number, *_: {"loss": loss(number - 1)}) for _ in p["timesteps"]]
    compare(case, run, made, gradients)
    for name in case.info["outputs"]:
        which, kind, parameter = name.split("/", 2)
        if which == run:
            new = names[parameter]
            check(case, name, gradients[parameter] if kind == "grad0" else every[new].detach() - start[new])
    for old, new in names.items():  # what has no gradient does not move, not even by weight decay
        assert (old in gradients) != torch.equal(every[new].detach(), start[new]) or not float(gradients[old].norm()), old


def compare(case: Case, run: str, made: list, gradients: dict[str, torch.Tensor]) -> None:
    """Losses and norms of all steps, and the gradient norms of every parameter in step 0."""
    given, tolerance = case.info["parameters"]["runs"][run], case.info["parameters"]["tolerance"]
    assert [s.losses["loss"] for s in made] == pytest.approx(given["loss"], rel=tolerance["loss_relative"], abs=0)
    norms = pytest.approx(given["total_grad_norm"], rel=tolerance["total_grad_norm_relative"], abs=0)
    assert [s.gradient_norm for s in made] == norms
    assert gradients.keys() == given["grad_norm_step0"].keys()
    for name, expected in given["grad_norm_step0"].items():
        found = float(gradients[name].norm())
        assert found == pytest.approx(expected, rel=tolerance["grad_norm_step0_relative"], abs=0), name
