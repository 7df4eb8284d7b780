"""Signals and correspondences taken from motion, against motion that is known."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def signals(pack):
    return pack("core.data.signals")


def test_edges_of_a_ramp_and_of_nothing(signals):
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij")
    ramp = torch.stack([3 * x + 4 * y, torch.zeros_like(x)])[None]
    assert torch.allclose(signals.flow_edges(ramp)[0, 1:-1, 1:-1], torch.tensor(5.0))
    assert signals.flow_edges(torch.full((1, 2, 8, 9), 7.0)).abs().max() == 0


def test_the_sketch_is_the_outline_of_what_moves(pack, signals):
    data = pack("core.data.procedural")
    scenes = data.draw_scenes(16, 2, data.SceneSettings(64, 64, sprites=(1, 1)), torch.Generator().manual_seed(0))
    truth = data.correspondence(scenes, 0, 1)
    sketch = signals.sketch_from_flow(truth.flow)[:, 0]
    inside = (truth.owner > 0).float()[:, None]
    pool = torch.nn.functional.max_pool2d
    outline = (pool(inside, 3, 1, 1) + pool(-inside, 3, 1, 1))[:, 0] > 0  # pixels next to the object's edge
    assert sketch[outline].mean() > 0.9
    assert sketch[~outline].max() == 0


def test_drag_points_follow_the_motion(signals):
    flow = torch.zeros(2, 2, 6, 8)
    flow[0, :, 2:4, 2:5] = torch.tensor([-2.0, 1.0])[:, None, None]
    flow[0, :, 5, 7] = 1e-3  # hardly moves: hardly ever drawn
    visible = torch.ones(2, 6, 8, dtype=torch.bool)
    visible[0, 2, 2] = False
    points = signals.drag_points(flow, visible, 200, torch.Generator().manual_seed(0))
    assert points.valid[0].all() and not points.valid[1].any()
    x, y = points.target[0].unbind(-1)
    drawn = (x >= 2) & (x <= 4) & (y >= 2) & (y <= 3)
    assert drawn.float().mean() > 0.98 and not ((x == 2) & (y == 2)).any()
    assert torch.equal((points.source - points.target)[0][drawn], torch.tensor([-2.0, 1.0]).expand(int(drawn.sum()), 2))


@pytest.mark.parametrize("height, width", [(4, 6), (8, 12), (2, 3)])
def test_tokens_of_a_uniform_motion(pack, signals, height, width):
    """A shift by one token: each token's match is its right-hand neighbour; the last column has none."""
    flow = torch.zeros(1, 2, 16, 24)
    flow[:, 0] = 24 / width
    matches = pack("core.attention.correspondence").token_matches(flow, torch.ones(1, 16, 24, dtype=torch.bool), height, width)
    grid = torch.arange(height * width).reshape(height, width)
    assert torch.equal(matches.index.reshape(height, width)[:, :-1], grid[:, 1:])
    assert matches.visible.reshape(height, width)[:, :-1].all() and not matches.visible.reshape(height, width)[:, -1].any()


def test_hidden_tokens_do_not_count(pack, signals):
    visible = torch.ones(1, 8, 8, dtype=torch.bool)
    visible[:, :4, :4] = False
    visible[:, 4, 4] = False  # one pixel of sixteen
    matches = pack("core.attention.correspondence").token_matches(torch.zeros(1, 2, 8, 8), visible, 2, 2)
    assert matches.visible.tolist() == [[False, True, True, True]]
    assert matches.index.tolist() == [[0, 1, 2, 3]]


def test_tokens_of_procedural_clips(pack, signals):
    """Matched tokens look alike: a token's mean colour in the target is that of its match in the source."""
    data = pack("core.data.procedural")
    scenes = data.draw_scenes(32, 2, data.SceneSettings(64, 64, sprites=(1, 2), radius=(0.4, 0.6)),
                              torch.Generator().manual_seed(1))
    frames, truth = data.render(scenes), data.correspondence(scenes, 0, 1)
    matches = pack("core.attention.correspondence").token_matches(truth.flow, truth.visible, 16, 16)
    tokens = torch.nn.functional.avg_pool2d(frames.flatten(0, 1), 4).unflatten(0, (32, 2)).flatten(3)  # (B, 2, 3, L)
    found = tokens[:, 0].gather(2, matches.index[:, None].expand(-1, 3, -1))
    moved = matches.visible & (torch.nn.functional.avg_pool2d((truth.owner > 0).float()[:, None], 4).flatten(1) == 1)
    right = (found - tokens[:, 1]).abs().mean(1)[moved].mean()
    wrong = (tokens[:, 0] - tokens[:, 1]).abs().mean(1)[moved].mean()
    assert right < 0.25 * wrong
