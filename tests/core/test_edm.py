from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def edm(pack):
    return pack("core.edm")


def test_network_timestep(edm):
    assert torch.allclose(edm.network_timestep(torch.tensor([1.0, math.e**4, 700.0])),
                          torch.tensor([0.0, 1.0, 0.25 * math.log(700.0)]))


def test_step_position(edm):
    sigmas = [700.0, 70.0, 7.0, 0.7, 0.0]
    assert [edm.step_position(s, sigmas) for s in sigmas[:4]] == [0, 1, 2, 3]
    assert edm.step_position(math.sqrt(700 * 70), sigmas) == pytest.approx(0.5)
    assert edm.step_position(1e9, sigmas) == 0 and edm.step_position(0.0, sigmas) == 3
    assert edm.step_position(3.0, []) == 0
    # float32 sigmas, as a sampler hands them out
    assert edm.step_position(float(torch.tensor(70.0) * (1 + 1e-7)), sigmas) == pytest.approx(1.0, abs=1e-6)


def test_inverse_square(edm):
    assert edm.inverse_square_guidance(3.0, 0, 25) == 3.0
    assert edm.inverse_square_guidance(3.0, 12.5, 25) == 1.5
    assert edm.inverse_square_guidance(3.0, 24, 25) == pytest.approx(1 + 2 / 625)
    assert edm.inverse_square_guidance(1.0, 7, 25) == 1.0


def test_karras_sigmas(edm):
    """Equal steps of the seventh root between the ends, then 0."""
    sigmas = edm.karras_sigmas(5)
    assert sigmas[0] == pytest.approx(700) and sigmas[4] == pytest.approx(0.002) and sigmas[5] == 0
    roots = [s ** (1 / 7) for s in sigmas[:-1]]
    assert [a - b for a, b in zip(roots, roots[1:], strict=False)] == pytest.approx([(roots[0] - roots[-1]) / 4] * 4)


def states(sigma) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    latents, noise = torch.randn(2, 3, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).double().unbind(0)
    return latents, noise, latents + sigma * noise


@pytest.mark.parametrize("sigma", [0.002, 0.5, 30.0, 700.0])
@pytest.mark.parametrize("form", [float, torch.tensor])
def test_preconditioning_is_consistent(edm, sigma, form):
    """The true v gives back the clean latents and the noise; a network input has the variance of unit data."""
    latents, noise, z = states(sigma)
    level = form(sigma) if form is float else torch.tensor(sigma, dtype=torch.float64)
    v = (noise - sigma * latents) / math.sqrt(sigma**2 + 1)
    assert torch.allclose(edm.denoised_from_v(z, v, level), latents, atol=1e-8)
    x = edm.scale_input(z, level)
    root = math.sqrt(sigma**2 + 1)
    assert torch.allclose((latents + sigma * noise) / root, x)
    assert torch.allclose((sigma * x + v) / root, noise, atol=1e-8)
    assert float(edm.loss_weight(level)) == pytest.approx(1 + 1 / sigma**2)


def test_weighted_error_of_latents_is_the_error_of_v(edm):
    """Karras et al. 2022: lambda(sigma) makes both losses one."""
    sigma = torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
    s = edm.broadcast(sigma, torch.zeros(3, 2, 4, 3, 3))
    latents, noise, z = states(s)
    target, guess = edm.add_noise(latents, noise, sigma).v, torch.randn(3, 2, 4, 3, 3, generator=torch.Generator().manual_seed(5))
    error = edm.loss_weight(s) * (edm.denoised_from_v(z, guess.double(), s) - latents).pow(2)
    assert torch.allclose(error, (guess - target).pow(2), rtol=1e-6)


def test_it_is_the_hosts_preconditioning(edm):
    from comfy import model_sampling

    class Sampling(model_sampling.ModelSamplingContinuousEDM, model_sampling.V_PREDICTION):
        pass

    sigma, host = torch.tensor([0.1, 1.0, 20.0]), Sampling()
    s = edm.broadcast(sigma, torch.zeros(3, 2, 4, 3, 3))
    z, v = (t.float() for t in states(s)[1:])
    assert torch.allclose(edm.scale_input(z, s), host.calculate_input(sigma, z), atol=1e-6)
    assert torch.allclose(edm.denoised_from_v(z, v, s), host.calculate_denoised(sigma, v, z), atol=1e-6)


ROOT = Path(__file__).parents[2]
LEVEL = r"\b(s|sigma|sigmas|level)(\[[^]]*\])?"


@pytest.mark.parametrize("what, pattern", [
    ("preconditioning", rf"{LEVEL} \*\* 2(\.0)? \+ 1|\b1(\.0)? \+ {LEVEL} \*\* 2"),
    ("network's timestep", r"0\.25 \* \(?(\w+\.)?(log\(|\w+\.log\(\))"),
    ("Karras' schedule", r"def karras_sigmas|\*\* \(1 / (?:rho|RHO|7)"),
    ("SVD's range", r"\bSIGMA_(?:MAX|MIN)\b[^=\n]*=[^=]"),
])
def test_it_is_written_nowhere_else(what, pattern):
    """Code of the pack, its commands, tools and benches; comments and docstrings may say it."""
    found = {}
    for folder in ("core", "host", "nodes", "commands", "tools", "bench"):
        for file in (ROOT / folder).rglob("*.py"):
            lines = code(file.read_text(encoding="utf-8")).splitlines()
            hits = [line.strip() for line in lines if re.search(pattern, line)]
            if hits:
                found[file.relative_to(ROOT).as_posix()] = hits
    assert set(found) == {"core/edm.py"}, found


def code(text: str) -> str:
    """A module without comments and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0].value.value = ""
    return ast.unparse(tree)
