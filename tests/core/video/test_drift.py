"""Drift measures on changes of known size, and colour matching that undoes them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import avg_pool2d


@pytest.fixture
def measures(pack):
    return pack("core.video.drift")


@pytest.fixture
def frames():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 24, 32, 3, generator=generator) * 0.5 + 0.2


def test_no_drift(measures, frames):
    assert measures.drift(frames, frames) == pytest.approx((0, 1, 1, 1), abs=1e-5)


def test_a_shift_of_colour_is_its_length(measures, frames):
    moved = frames + torch.tensor([0.03, 0.0, -0.04])
    found = measures.drift(moved, frames)
    assert found.colour == pytest.approx(0.05, abs=1e-5)
    assert found.sharpness == pytest.approx(1, abs=1e-4) and found.contrast == pytest.approx(1, abs=1e-3)
    assert found.likeness < 1


def test_contrast_and_sharpness(measures, frames):
    middle = frames.mean((0, 1, 2))
    assert measures.drift(middle + 0.5 * (frames - middle), frames)[1:3] == pytest.approx((0.5, 0.5), abs=1e-4)
    soft = avg_pool2d(frames.movedim(-1, 1), 3, 1, 1, count_include_pad=False).movedim(1, -1)
    assert measures.drift(soft, frames).sharpness < 0.4


def test_likeness_tells_other_colours(measures):
    red, blue = (torch.zeros(1, 8, 8, 3).index_fill_(3, torch.tensor(c), 0.9) for c in (0, 2))
    half = torch.cat([red, blue], 1)
    found = [measures.drift(x, red).likeness for x in (red, half, blue)]
    assert found[0] == pytest.approx(1) and 0.6 < found[1] < 0.8 and found[2] < 0.01


def test_matching_undoes_gain_and_shift(measures, frames):
    changed = frames * 0.8 + 0.1
    assert (measures.match_colour(changed, frames) - frames).abs().max() < 1e-5
    assert torch.equal(measures.match_colour(changed, frames, 0.0), changed)
    half = measures.drift(measures.match_colour(changed, frames, 0.5), frames)
    assert half.contrast == pytest.approx(0.9, abs=1e-3)
    plain = torch.full_like(frames, 0.5)
    assert torch.isfinite(measures.match_colour(plain, frames)).all()
