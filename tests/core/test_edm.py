from __future__ import annotations

import math

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
