"""Seeding torch's global generators for a while leaves no trace."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def randomness(pack):
    return pack("core.randomness")


def test_inside_it_is_the_seeds_sequence_outside_nothing_moved(randomness):
    torch.manual_seed(5)
    before, expected = torch.get_rng_state(), torch.randn(4, generator=torch.Generator().manual_seed(7))
    with randomness.seeded(7):
        assert torch.equal(torch.randn(4), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_after_an_error_too(randomness):
    before = torch.get_rng_state()
    with pytest.raises(KeyError), randomness.seeded(7):
        torch.randn(4)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_other_devices_are_not_touched(randomness, monkeypatch):
    """`torch.manual_seed` seeds every device there is."""
    for module in ("cuda", "mps", "xpu"):
        monkeypatch.setattr(f"torch.{module}.manual_seed_all" if module != "mps" else "torch.mps.manual_seed",
                            lambda *_: pytest.fail("seeded"))
    with randomness.seeded(7):
        pass
