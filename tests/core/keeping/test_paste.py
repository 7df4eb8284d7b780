"""Distances, soft edges, pasting back, and where an edit is."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def distance(pack):
    return pack("core.keeping.distance")


@pytest.fixture(scope="module")
def keep(pack):
    return pack("core.keeping.paste")


@pytest.fixture(scope="module")
def area(pack):
    return pack("core.signals.area")


def random_area(seed: int, height: int, width: int, share: float) -> torch.Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("seed, share, reach", [(0, 0.01, 20), (1, 0.001, 60), (2, 0.4, 5), (3, 0.002, 1)])
def test_distance_is_the_nearest_of_all(distance, seed, share, reach):
    area = random_area(seed, 41, 57, share)
    area[3, 50] = True
    y, x = torch.meshgrid(torch.arange(41), torch.arange(57), indexing="ij")
    rows, columns = area.nonzero(as_tuple=True)
    exact = torch.hypot((y[..., None] - rows).float(), (x[..., None] - columns).float()).amin(-1)
    assert torch.allclose(distance.distance_to(area, reach), exact.clamp_max(reach + 1), atol=1e-4)


def test_far_reaches_are_nearly_right(distance):
    area = torch.zeros(600, 700, dtype=torch.bool)
    area[300, 350] = True
    found = distance.distance_to(area, 250)
    y, x = torch.meshgrid(torch.arange(600) - 300, torch.arange(700) - 350, indexing="ij")
    exact = torch.hypot(y.float(), x.float())
    assert (found - exact)[exact < 240].abs().max() < 8 and found[300, 350] == 0


def test_nothing_and_everything(distance):
    none, all_ = torch.zeros(5, 6, dtype=torch.bool), torch.ones(5, 6, dtype=torch.bool)
    assert (distance.distance_to(none, 3) == 4).all() and (distance.distance_to(all_, 3) == 0).all()
    for outside in (True, False):
        assert (distance.feathered(none, 3, outside) == 0).all() and (distance.feathered(all_, 3, outside) == 1).all()


def test_grown_disc(distance):
    area = torch.zeros(80, 90, dtype=torch.bool)
    area[40, 45] = True
    grown = distance.grown(area, 20)
    assert int(grown.sum()) == sum(1 for y in range(-20, 21) for x in range(-20, 21) if x * x + y * y <= 400)
    again = distance.grown(grown, -20)
    assert again[40, 45] and int(again.sum()) <= 13


@pytest.mark.parametrize("outside", [True, False])
def test_feather_of_a_straight_edge(distance, outside):
    area = torch.zeros(9, 100, dtype=torch.bool)
    area[:, 50:] = True
    weight = distance.feathered(area, 10, outside)[4]
    assert (weight.diff() >= 0).all() and weight.min() == 0 and weight.max() == 1
    soft = ((weight > 0) & (weight < 1)).nonzero()[:, 0]
    assert (soft.min(), soft.max()) == ((40, 49) if outside else (50, 59))
    # Half of the edge's width belongs to each side; the curve is symmetric.
    assert float(weight[soft].sum()) == pytest.approx(5.0, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("outside", [True, False])
def test_untouched_pixels_keep_their_bits(keep, dtype, channels, outside):
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(200, 300, channels, generator=generator).to(dtype)
    edited = torch.rand(50, 75, 3, generator=generator)
    mask = torch.zeros(50, 75)
    mask[20:30, 30:50] = 1
    weight = keep.blend_weights(mask, 200, 300, 12, outside)
    for match in ("off", "mean", "mean and deviation"):
        out = keep.keep_untouched(original, edited, weight, match)
        assert out.dtype == dtype and out.shape == original.shape
        assert torch.equal(out[weight == 0], original[weight == 0]) and (out[weight == 1] != original[weight == 1]).any()
        assert torch.equal(out[..., 3:], original[..., 3:])
    reach = 12 if outside else 0
    assert weight[:80 - reach - 1].max() == 0 and weight[120 + reach + 1:].max() == 0 and weight[100, 150] == 1


def test_same_size_and_full_weight_is_the_edit(keep):
    original, edited = torch.rand(20, 30, 3), torch.rand(20, 30, 3)
    assert torch.equal(keep.keep_untouched(original, edited, torch.ones(20, 30)), edited)
    assert torch.equal(keep.keep_untouched(original, edited, torch.zeros(20, 30)), original)
    half = keep.keep_untouched(original, edited, torch.full((20, 30), 0.5))
    assert torch.allclose(half, (original + edited) / 2, atol=1e-6)


def test_enlarging_keeps_places(keep):
    """A smooth picture, made small and pasted back at full size, is itself again."""
    y, x = torch.meshgrid(torch.linspace(0, 3, 240), torch.linspace(0, 4, 320), indexing="ij")
    original = torch.stack([0.5 + 0.4 * torch.sin(x + i) * torch.cos(y - i) for i in range(3)], -1)
    small = torch.nn.functional.interpolate(original.movedim(-1, 0)[None], size=(60, 80), mode="area")[0].movedim(0, -1)
    out = keep.keep_untouched(original, small, torch.ones(240, 320))
    assert (out - original).abs()[4:-4, 4:-4].max() < 3e-3


def test_colour_match(keep):
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(40, 60, 3, generator=generator) * 0.5 + 0.2
    weight = torch.zeros(40, 60)
    weight[10:20, 10:20] = 1
    truth = original.clone()
    truth[10:20, 10:20] = torch.rand(10, 10, 3, generator=generator) * 0.5 + 0.2
    shifted = truth + torch.tensor([0.05, -0.03, 0.1])
    assert (keep.keep_untouched(original, shifted, weight, "mean") - truth).abs().max() < 1e-5
    squeezed = truth * 0.8 + 0.02
    assert (keep.keep_untouched(original, squeezed, weight, "mean and deviation") - truth).abs().max() < 1e-5
    assert (keep.keep_untouched(original, squeezed, weight, "off") - truth).abs().max() > 0.05
    assert torch.equal(keep.keep_untouched(original, shifted, torch.ones(40, 60), "mean"), shifted.clamp(0, 1))


def test_a_soft_mask_is_used_as_it_is(keep):
    mask = torch.rand(30, 40)
    assert torch.equal(keep.blend_weights(mask, 30, 40, 0, True), mask)


def test_cells_of_the_latent(keep):
    mask = torch.zeros(1, 64, 96)
    mask[0, 17, 40] = 0.01  # one faint pixel
    mask[0, 48:56, 80:92] = 1
    touched = keep.latent_cells(mask, 8, 12)
    assert touched.shape == (1, 1, 8, 12) and int(touched.sum()) == 3
    assert touched[0, 0, 2, 5] == touched[0, 0, 6, 10] == touched[0, 0, 6, 11] == 1
    assert int(keep.latent_cells(mask, 8, 12, 0.5).sum()) == 1


def signal(pack, kind: str, **values):
    return pack("core.signals.edit_signal").EditSignal(kind, **values)


def test_area_of_drags(pack, area):
    points = torch.tensor([[[0.2, 0.5, 0.8, 0.5]]])
    found = area.signal_area(signal(pack, "drag", points=points), 100, 200, 10)[0]
    assert float(found.sum()) == pytest.approx(120 * 20 + math.pi * 100, rel=0.01)
    triangle = torch.tensor([[[0.1, 0.1, 0.6, 0.1], [0.3, 0.1, 0.8, 0.1], [0.1, 0.9, 0.6, 0.9]]])
    found = area.signal_area(signal(pack, "drag", points=triangle), 100, 200, 0.0)[0]
    assert found[30, 30] == 1 and found[30, 130] == 1  # inside both hulls


def test_hull(area):
    generator = np.random.default_rng(0)
    corners = np.array([[0, 0], [10, 0], [10, 7], [0, 7.0]])
    inside = generator.random((50, 2)) * [9, 6] + 0.5
    found = area.convex_hull(np.concatenate([inside, corners]))
    assert sorted(map(tuple, found)) == sorted(map(tuple, corners))
    assert len(area.convex_hull(np.array([[1, 1], [2, 2], [3, 3.0]]))) == 2


def test_area_of_a_sketch_is_what_it_encloses(pack, area):
    strokes = pack("core.signals.strokes")
    ring = [v for i in range(41) for v in (60 + 30 * math.cos(i * math.pi / 20), 50 + 30 * math.sin(i * math.pi / 20))]
    state = {"width": 120, "height": 100, "strokes": [{"size": 3, "points": ring}, {"size": 3, "points": [5, 5, 5, 90]}]}
    control = strokes.draw_strokes(strokes.read_strokes(json.dumps(state)), 100, 120)[None, ..., None]
    found = area.signal_area(signal(pack, "sketch", control=control.expand(-1, -1, -1, 3)), 100, 120, 0)[0]
    assert found[50, 60] == 1 and found[50, 100] == 0 and found[50, 5] == 1
    assert float(found.sum()) == pytest.approx(math.pi * 31.5**2 + 88 * 3, rel=0.06)


def test_area_of_a_coarse_edit(pack, area):
    control, touched = torch.rand(1, 40, 60, 3), torch.zeros(1, 40, 60)
    touched[:, 10:20, 10:30] = 1
    found = area.signal_area(signal(pack, "coarse", control=control, area=touched), 80, 120, 0)
    assert found.shape == (1, 80, 120) and found[0, 30, 40] == 1 and found[0, 60, 100] == 0
    with pytest.raises(ValueError, match="its area is unknown. Connect the source to 'picture'"):
        area.signal_area(signal(pack, "coarse", control=control), 40, 60, 0)


def test_difference_ignores_specks_and_noise(area):
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(1, 60, 80, 3, generator=generator)
    after = before + (torch.rand(1, 60, 80, 3, generator=generator) - 0.5) * 0.1
    after[:, 20:40, 30:60] += 0.4
    after[:, 5, 5] += 0.9
    found = area.difference_area(after, before, 0.12)[0]
    assert found[22:38, 32:58].min() == 1
    outside = found.clone()
    outside[18:42, 28:62] = 0
    assert outside.max() == 0


def test_moved_tokens_at_both_places(area):
    best = torch.arange(12 * 16)
    grid = best.reshape(12, 16).clone()
    grid[4:8, 9:13] = best.reshape(12, 16)[4:8, 2:6]  # a block of 4 x 4 tokens, moved by 7
    grid[0, 0] = 100  # a single wrong match
    found = area.moved_area(grid.flatten(), 12, 16)
    assert found[5:7, 10:12].min() == 1 and found[5:7, 3:5].min() == 1 and found[0, 0] == 0 and found[10:].max() == 0
