"""The procedural clips' truth against their own pixels."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def data(pack):
    return pack("core.data.procedural")


def scenes(data, count=64, frames=3, seed=0, **settings):
    return data.draw_scenes(count, frames, data.SceneSettings(**settings), torch.Generator().manual_seed(seed))


def test_warping_by_the_flow_gives_the_target(pack, data):
    """On visible pixels away from edges the source looked up along the flow is the target, up to interpolation."""
    made = scenes(data, height=48, width=64)
    frames = data.render(made)
    truth = data.correspondence(made, 0, 2)
    warped = pack("core.flow.warp").warp(frames[:, 0], truth.flow)
    moved = (truth.owner > 0) & truth.visible
    error = (warped - frames[:, 2]).pow(2).mean(1)
    unwarped = (frames[:, 0] - frames[:, 2]).pow(2).mean(1)
    assert error[moved].mean() < 0.1 * unwarped[moved].mean()
    assert error[moved].median() < 1e-3


def test_the_background_stands_still(data):
    made = scenes(data)
    truth = data.correspondence(made, 0, 2)
    still = truth.owner == 0
    assert truth.flow.movedim(1, -1)[still].abs().max() < 1e-4
    frames = data.render(made)
    clear = still & (data.correspondence(made, 2, 0).owner == 0)
    edge = torch.nn.functional.max_pool2d((~clear).float()[:, None], 3, 1, 1)[:, 0] > 0  # soft edges reach one pixel out
    assert (frames[:, 0] - frames[:, 2]).abs().amax(1)[~edge].max() < 1e-6


def test_uncovered_background_is_invisible(data):
    """Where a sprite stood in the source and background shows in the target, there is nothing to copy from."""
    made = scenes(data, sprites=(1, 1))
    there, here = data.correspondence(made, 2, 0).owner, data.correspondence(made, 0, 2)
    uncovered = (there > 0) & (here.owner == 0)
    assert uncovered.any() and not here.visible[uncovered].any()
    assert here.visible[(there == 0) & (here.owner == 0)].all()


def test_forward_and_backward_agree(pack, data):
    """Going to the source and back ends where it began, on visible pixels of the same sprite."""
    made = scenes(data, sprites=(2, 3), height=40, width=40)
    back, forth = data.correspondence(made, 0, 2), data.correspondence(made, 2, 0)
    there = pack("core.flow.warp").warp(forth.flow, back.flow)  # affine within a sprite, so bilinear look-up is exact there
    pure = pack("core.flow.warp").warp((forth.owner == 1).float()[:, None], back.flow)[:, 0] > 0.9999
    sprite = (back.owner == 1) & back.visible & pure
    inside = torch.ones_like(pure)
    inside[:, :2] = inside[:, -2:] = inside[:, :, :2] = inside[:, :, -2:] = False  # borders repeat, which is not affine
    error = (there + back.flow).movedim(1, -1)[sprite & inside].abs()
    assert error.quantile(0.99) < 1e-3


def test_later_sprites_occlude_earlier(data):
    made = scenes(data, sprites=(2, 2), seed=3)
    stacked = made._replace(centre=made.centre[:, :1].expand_as(made.centre), angle=made.angle[:, :1].expand_as(made.angle))
    owner = data.correspondence(stacked, 0, 2).owner
    larger = made.radius[:, 1] * made.scale[:, 1, 2] > 1.5 * made.radius[:, 0] * made.scale[:, 0, 2]
    assert larger.any() and not (owner[larger] == 1).any()


def test_same_seed_same_clip(data):
    assert torch.equal(data.render(scenes(data, 4)), data.render(scenes(data, 4)))
    assert not torch.equal(data.render(scenes(data, 4)), data.render(scenes(data, 4, seed=1)))


def test_motion_keeps_to_its_settings(data):
    made = scenes(data, 200, shift=(0.3, 0.4), turn=10.0, growth=0.1)
    path = (made.centre[:, :, -1] - made.centre[:, :, 0]).norm(dim=-1)
    assert path.min() >= 0.3 - 1e-5 and path.max() <= 0.4 + 1e-5
    assert (made.angle[:, :, -1] - made.angle[:, :, 0]).abs().rad2deg().max() <= 10.0 + 1e-3
    assert (made.scale[:, :, -1] - made.scale[:, :, 0]).abs().max() <= 0.1 + 1e-6
