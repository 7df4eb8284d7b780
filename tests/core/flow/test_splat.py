"""Softmax splatting against closed forms."""

from __future__ import annotations

import math

import pytest
import torch


@pytest.fixture(scope="module")
def splat(pack):
    return pack("core.flow.warp").softmax_splat


def constant_flow(dx, dy, height=5, width=6, **kw):
    return torch.tensor([dx, dy], **kw).reshape(1, 2, 1, 1).expand(1, 2, height, width).clone()


def test_no_motion_is_the_picture(splat):
    image = torch.rand(2, 3, 5, 6)
    out = splat(image, torch.zeros(2, 2, 5, 6))
    assert torch.allclose(out.image, image, atol=1e-6) and torch.equal(out.cover, torch.ones(2, 1, 5, 6))


def test_whole_pixels_move_and_leave_a_hole(splat):
    image = torch.rand(1, 3, 5, 6)
    out = splat(image, constant_flow(2.0, -1.0))
    assert torch.allclose(out.image[..., :4, 2:], image[..., 1:, :4], atol=1e-6)
    assert out.image[..., 4, :].abs().max() == 0 and out.image[..., :2].abs().max() == 0
    assert out.cover[..., :2].max() == 0 and out.cover[..., :4, 2:].min() == 1


def test_half_a_pixel_is_the_mean_of_neighbours(splat):
    image = torch.rand(1, 1, 5, 6)
    out = splat(image, constant_flow(0.5, 0.0))
    assert torch.allclose(out.image[..., 1:], (image[..., 1:] + image[..., :-1]) / 2, atol=1e-6)
    assert out.cover[..., 0].unique().tolist() == [0.5]


@pytest.mark.parametrize("shift", [0.0, 500.0, -500.0])
def test_where_two_meet_softmax_decides(splat, shift):
    """Two pixels on one target: weights are the softmax of their importance, whatever constant is added to both."""
    image = torch.tensor([[[[3.0, 7.0, 0.0]]]])
    flow = torch.zeros(1, 2, 1, 3)
    flow[0, 0, 0] = torch.tensor([2.0, 1.0, 5.0])  # both to the third pixel, which itself leaves the picture
    importance = torch.tensor([[[[1.0, 2.0, 0.0]]]]) + shift
    expected = (3 * math.e + 7 * math.e**2) / (math.e + math.e**2)
    out = splat(image, flow, importance)
    assert out.image[0, 0, 0].tolist() == pytest.approx([0, 0, expected])
    assert out.cover[0, 0, 0].tolist() == [0, 0, 2]


def test_gradients(splat):
    torch.manual_seed(0)
    with torch.enable_grad():
        image = torch.rand(1, 2, 4, 4, dtype=torch.double, requires_grad=True)
        flow = (torch.rand(1, 2, 4, 4, dtype=torch.double) * 0.8 + 0.1).requires_grad_()  # away from the kinks
        importance = torch.rand(1, 1, 4, 4, dtype=torch.double, requires_grad=True)
        largest = importance.detach().amax()
        assert float(largest) < 1
        assert torch.autograd.gradcheck(lambda i, f, z: splat(i, f, z).image, (image, flow, importance))


def test_splat_undoes_a_warp_on_visible_pixels(pack, splat):
    """On procedural clips: the source pushed along the true forward flow is the target where it was visible."""
    data = pack("core.data.procedural")
    scenes = data.draw_scenes(16, 2, data.SceneSettings(48, 48, sprites=(1, 1), turn=0.0, growth=0.0),
                              torch.Generator().manual_seed(0))
    frames = data.render(scenes)
    forward, truth = data.correspondence(scenes, 1, 0), data.correspondence(scenes, 0, 1)
    out = splat(frames[:, 0], forward.flow, forward.owner[:, None].float() * 20)
    core = torch.nn.functional.max_pool2d((truth.owner == 0).float()[:, None], 5, 1, 2)[:, 0] == 0
    seen = core & truth.visible & (out.cover[:, 0] > 0.5)
    assert (out.image - frames[:, 1]).abs().mean(1)[seen].mean() < 0.02
