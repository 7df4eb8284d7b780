"""Metrics against closed forms and against the published implementations."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from framepainter_tests.missing import missing


@pytest.fixture(scope="module")
def metrics(pack):
    return pack("core.evaluation.metrics")


@pytest.fixture(scope="module")
def pairs(pack):
    return pack("core.evaluation.pairs")


@pytest.fixture(scope="module")
def table(pack):
    return pack("core.evaluation.table")


@pytest.fixture(scope="module")
def frechet(pack):
    return pack("core.evaluation.frechet").frechet_distance


@pytest.fixture(scope="module")
def published():
    """scikit-image's metrics."""
    try:
        import skimage.metrics as found
    except ImportError:
        missing("the package scikit-image is not installed")
    return found


def noisy(height: int, width: int, count: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures with noise on them, and the pictures: (B, 3, H, W) each."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 5, 5, generator=generator)
    truth = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")
    return (truth + 0.1 * torch.randn(truth.shape, generator=generator)).clamp(0, 1), truth


# ---- whole pictures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(11, 11), (12, 40), (64, 48), (97, 33)])
def test_ssim_and_psnr_are_scikit_images(metrics, pairs, published, height, width):
    edited, truth = noisy(height, width, 2)
    values = pairs.evaluate_pairs(edited, truth)
    for i in range(2):
        a, b = (x[i].movedim(0, -1).double().numpy() for x in (edited, truth))
        settings = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1.0, "channel_axis": -1}
        mean, full = published.structural_similarity(a, b, full=True, **settings)
        assert float(metrics.ssim(edited, truth)[i]) == pytest.approx(mean, abs=1e-10)
        assert values["ssim"][i] == pytest.approx(mean, abs=1e-10)
        # also at the border, which the mean leaves out and the areas use
        assert np.abs(metrics.ssim_map(edited, truth)[i].numpy() - full.mean(-1)).max() < 1e-10
        assert float(metrics.psnr(edited, truth)[i]) == pytest.approx(published.peak_signal_noise_ratio(b, a, data_range=1.0))


def test_ssim_of_flat_pictures_is_the_luminance_term(metrics):
    """Without structure only the first factor is left: (2ab + C1) / (a^2 + b^2 + C1)."""
    a, b = torch.full((1, 3, 16, 16), 0.3), torch.full((1, 3, 16, 16), 0.7)
    expected = (2 * 0.3 * 0.7 + 1e-4) / (0.3**2 + 0.7**2 + 1e-4)
    assert float(metrics.ssim(a, b)) == pytest.approx(expected, rel=1e-6)
    assert float(metrics.psnr(a, b)) == pytest.approx(-20 * math.log10(0.4), rel=1e-6)


def test_equal_pictures(metrics):
    image = torch.rand(1, 3, 20, 20)
    assert float(metrics.ssim(image, image)) == pytest.approx(1) and float(metrics.psnr(image, image)) == math.inf


def test_a_picture_smaller_than_the_window(metrics, pairs):
    edited, truth = noisy(10, 30)
    with pytest.raises(ValueError, match="windows of 11 pixels; the picture is 30 x 10"):
        metrics.ssim(edited, truth)
    row = pairs.evaluate_pairs(edited, truth)
    assert row["ssim"] == [None] and row["mse"][0] > 0


# ---- areas -----------------------------------------------------------------------------------------------------------


def test_errors_of_areas_are_those_put_there(pairs):
    """A different constant error in each area: its MSE is the square, whatever the others have."""
    truth = torch.full((1, 3, 24, 32), 0.5)
    flow = torch.zeros(1, 2, 24, 32)
    flow[:, 0, :, 8:16] = 3.0
    visible = torch.ones(1, 24, 32, dtype=torch.bool)
    visible[:, :, 16:20] = False
    flow[:, 1, :, 18:] = 0.4  # shorter than the threshold: static
    edited = truth.clone()
    edited[..., :8] += 0.1
    edited[..., 8:16] += 0.2
    edited[..., 16:20] += 0.3
    edited[..., 20:] += 0.1
    row = pairs.evaluate_pairs(edited, truth, flow, visible, source=truth)
    assert [row[f"{n}_mse"][0] for n in ("static", "moved", "disoccluded")] == pytest.approx([0.01, 0.04, 0.09], rel=1e-5)
    assert [row[f"{n}_share"][0] for n in ("static", "moved", "disoccluded")] == [20 / 32, 8 / 32, 4 / 32]
    assert sum(row[f"{n}_share"][0] * row[f"{n}_mse"][0] for n in ("static", "moved", "disoccluded")) == pytest.approx(
        row["mse"][0])
    assert row["source_mse"] == row["source_moved_mse"] == [0.0] and row["source_psnr"] == [math.inf]


def test_ssim_of_an_area_is_the_mean_of_scikit_images_map(pairs, metrics, published):
    edited, truth = noisy(30, 40)
    area = torch.zeros(1, 30, 40, dtype=torch.bool)
    area[:, :9, 25:] = True  # reaches the corner
    row = pairs.evaluate_pairs(edited, truth, areas=metrics.Areas(area, None, None))
    _, full = published.structural_similarity(
        *(x[0].movedim(0, -1).double().numpy() for x in (edited, truth)), full=True, gaussian_weights=True,
        use_sample_covariance=False, data_range=1.0, channel_axis=-1)
    assert row["moved_ssim"][0] == pytest.approx(full.mean(-1)[area[0].numpy()].mean(), abs=1e-10)
    assert "static_mse" not in row and "disoccluded_mse" not in row


def test_an_empty_area_is_undefined_not_nan(pairs, table):
    edited, truth = noisy(16, 16, 3)
    flow = torch.zeros(3, 2, 16, 16)
    flow[1] = 2.0
    row = pairs.evaluate_pairs(edited, truth, flow, torch.ones(3, 16, 16))
    assert row["moved_mse"][0] is None and row["moved_mse"][2] is None and row["static_mse"][1] is None
    assert row["disoccluded_ssim"] == [None] * 3
    summary = table.aggregate(row)
    assert summary["moved_mse"] == (row["moved_mse"][1], None, 1, 2, 0)
    assert summary["disoccluded_mse"] == (None, None, 0, 3, 0)


def test_areas_of_masks(metrics):
    moved, hidden = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 1.0, 1.0, 0.0]]])
    areas = metrics.areas_from_masks(moved, hidden)
    assert [a[0, 0].tolist() for a in areas] == [[True, False, False, False], [False, True, True, False],
                                                 [False, False, False, True]]
    assert metrics.areas_from_masks(moved, None)[1:] == (None, None)
    assert metrics.areas_from_masks(None, hidden).static is None and metrics.areas_from_masks(None, None) == (None,) * 3


def test_areas_of_procedural_scenes(pack, metrics, pairs):
    """Warped along the true motion, the source is right where it moved and stood, and wrong where ground was uncovered."""
    data = pack("core.data.procedural")
    scenes = data.draw_scenes(8, 2, data.SceneSettings(48, 48), torch.Generator().manual_seed(3))
    frames, truth = data.render(scenes), data.correspondence(scenes, 0, 1)
    moved = pack("core.flow.warp").warp(frames[:, 0], truth.flow)
    row = pairs.evaluate_pairs(moved, frames[:, 1], truth.flow, truth.visible, frames[:, 0])
    mean = {name: np.mean([v for v in values if v is not None]) for name, values in row.items()}
    assert mean["moved_mse"] < 0.1 * mean["source_moved_mse"] and mean["moved_mse"] < 0.1 * mean["disoccluded_mse"]
    assert mean["static_mse"] == pytest.approx(mean["source_static_mse"]) and mean["moved_ssim"] > mean["source_moved_ssim"]


def test_position_of_an_object(metrics, pairs):
    """A square drawn 3 right and 4 down of the true place is 5 pixels off; with nothing there it has no position."""
    background = torch.zeros(1, 3, 40, 40)
    truth, edited = background.clone(), background.clone()
    truth[..., 10:17, 12:19] = 1
    edited[..., 14:21, 15:22] = 0.4
    assert metrics.object_position(truth, background) == [(15.0, 13.0)]
    assert pairs.evaluate_pairs(edited, truth, background=background)["position_error"] == [5.0]
    assert pairs.evaluate_pairs(background, truth, background=background)["position_error"] == [None]


def test_values_that_are_not_finite_count_nowhere(pairs, table):
    edited, truth = noisy(16, 16, 2)
    edited[0, 0, 3, 3] = math.nan
    row = pairs.evaluate_pairs(edited, truth, torch.ones(2, 2, 16, 16), torch.ones(2, 16, 16))
    assert all(row[name][0] is None and row[name][1] is not None for name in ("mse", "psnr", "ssim", "moved_mse"))
    assert table.aggregate(row)["mse"].count == 1


@pytest.mark.parametrize("inputs, message", [
    ({"truth": torch.zeros(1, 3, 16, 17)}, r"edited has shape \(1, 3, 16, 16\), truth \(1, 3, 16, 17\)"),
    ({"source": torch.zeros(2, 3, 16, 16)}, "source has shape"),
    ({"flow": torch.zeros(1, 2, 16, 16)}, "flow and visible together"),
    ({"flow": torch.zeros(1, 2, 8, 8), "visible": torch.ones(1, 8, 8)}, "the moved area has shape"),
])
def test_inputs_that_do_not_fit(pairs, inputs, message):
    image = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match=message):
        pairs.evaluate_pairs(**{"edited": image, "truth": image, **inputs})


# ---- Frechet distance ------------------------------------------------------------------------------------------------


def reference_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The formula as pytorch-fid and clean-fid compute it, by SciPy's matrix square root."""
    from scipy.linalg import sqrtm

    x, y = a.double().numpy(), b.double().numpy()
    s, t = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(sqrtm(s @ t).real))


def features(count: int, width: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width, generator=generator) @ torch.randn(width, width, generator=generator)
    return spread * mixed / width**0.5 + 0.3 * torch.randn(width, generator=generator)


@pytest.mark.parametrize("n, m, width", [(400, 300, 16), (2000, 500, 64), (30, 200, 30)])
def test_frechet_distance_is_the_published_formula(frechet, n, m, width):
    a, b = features(n, width, 0), features(m, width, 1, 0.7)
    assert frechet(a, b) == pytest.approx(reference_distance(a, b), rel=1e-6)


@pytest.mark.parametrize("n, m", [(2, 2), (10, 7), (40, 10), (300, 200)])
def test_frechet_distance_is_torchmetrics(frechet, n, m):
    """Also of sets smaller than their features. Torchmetrics sums over eigenvalues that should be zero; their roots bound
    how near it can come."""
    try:
        from torchmetrics.image.fid import _compute_fid
    except ImportError:
        missing("the package torchmetrics is not installed")
    a, b = features(n, 64, 2), features(m, 64, 3)
    x, y = a.double(), b.double()
    theirs = float(_compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()))
    assert frechet(a, b) == pytest.approx(theirs, abs=64 * 1e-6, rel=1e-6)


def test_frechet_distance_in_closed_form(frechet):
    """Axis-parallel sets: means and deviations are known, the distance is the sum of their squared differences."""
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.double)
    unit = corners * (3 / 4) ** 0.5  # sample deviation 1 on both axes
    a, b = unit * torch.tensor([2.0, 3.0]), unit * torch.tensor([5.0, 1.0]) + torch.tensor([1.0, -2.0])
    assert frechet(a, b) == pytest.approx(1 + 4 + 9 + 4)


@pytest.mark.parametrize("count", [3, 500])
def test_frechet_distance_is_a_distance(frechet, count):
    a, b = features(count, 40, 4), features(count, 40, 5)
    assert frechet(a, a) == pytest.approx(0, abs=1e-10) and frechet(a, b) == pytest.approx(frechet(b, a))
    assert frechet(a, a + 0.5) == pytest.approx(40 * 0.25)  # a shift only
    turn = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(6), dtype=torch.double)).Q
    assert frechet(a.double() @ turn, b.double() @ turn) == pytest.approx(frechet(a, b))


def test_features_that_have_no_distance(frechet):
    with pytest.raises(ValueError, match=r"the second set has shape \(1, 4\); expected \(N, D\) with N of 2 or more"):
        frechet(torch.rand(5, 4), torch.rand(1, 4))
    with pytest.raises(ValueError, match="4 and 6 wide; take both from one encoder"):
        frechet(torch.rand(5, 4), torch.rand(5, 6))
    with pytest.raises(ValueError, match="first set of features has values that are not finite"):
        frechet(torch.full((5, 4), math.inf), torch.rand(5, 4))


# ---- correspondence --------------------------------------------------------------------------------------------------


def test_hits_within_one_token(pack):
    """4 x 6 tokens, all true places known: right, one off across the corner, two off, hidden, and one off by wrapping."""
    module, Matches = pack("core.evaluation.correspondence"), pack("core.attention.correspondence").TokenMatches
    truth = torch.arange(24)[None].clone()
    truth[0, :3] = torch.tensor([8, 8, 8])
    best = truth.clone()
    best[0, 0], best[0, 1], best[0, 2] = 8, 8 + 6 + 1, 8 + 2
    truth[0, 4], best[0, 4] = 10, 20  # hidden: does not count
    best[0, 6] = 5  # the truth is row 1, column 0; 5 is row 0, column 5, next to it in memory only
    visible = torch.ones(1, 24, dtype=torch.bool)
    visible[0, 4] = False
    found = module.hit_rate(best, Matches(truth, visible), 4, 6)
    assert found.visible == (21, 23) and found.moved == (2, 3) and found.moved.rate == pytest.approx(2 / 3)
    assert module.hit_rate(best, Matches(truth, visible), 4, 6, tolerance=0).moved == (1, 3)
    assert module.hit_rate(best, Matches(truth, visible), 4, 6, tolerance=2).moved == (3, 3)
    nothing = module.hit_rate(best, Matches(truth, torch.zeros_like(visible)), 4, 6).visible
    assert nothing.rate is None and found.visible.rate == 21 / 23
    with pytest.raises(ValueError, match=r"must both be \(B, 20\) for a map of 4 x 5 tokens"):
        module.hit_rate(best, Matches(truth, visible), 4, 5)


@pytest.fixture(scope="module")
def scene(pack):
    """The exact motion of one scene with tokens that moved, and blocks of two resolutions that know it."""
    data, signals = pack("core.data.procedural"), pack("core.attention.correspondence")
    scenes = data.draw_scenes(1, 2, data.SceneSettings(64, 64, sprites=(2, 2)), torch.Generator().manual_seed(5))
    truth = data.correspondence(scenes, 0, 1)

    def block(size: int, knows: bool):
        matches = signals.token_matches(truth.flow, truth.visible, size, size)
        keys = torch.eye(size * size) * 20  # each source token is an axis; a query along it finds it
        queries = keys[matches.index[0]] if knows else keys
        return pack("core.attention.correspondence").SiteAttention(queries, keys, 1, (size, size))

    return truth, block


def hits(pack, truth, sites):
    """Hit rates of the attention averaged over sites of one size, as the Correspondence Map node averages them."""
    attention, size = pack("core.attention.correspondence"), sites[0].size
    return pack("core.evaluation.correspondence").hit_rate(
        attention.attention_matches(sites, 0).best, attention.token_matches(truth.flow, truth.visible, *size), *size)


def test_attention_that_knows_the_motion_hits_everything(pack, scene):
    truth, block = scene
    for sites in ([block(16, True)], [block(16, True), block(16, True)], [block(8, True)]):
        found = hits(pack, truth, sites)
        assert found.visible.rate == 1 and found.moved.rate == 1
    assert found.visible.tokens > found.moved.tokens > 0


def test_attention_that_looks_straight_back_hits_what_stood_still(pack, scene):
    """Why moved tokens are counted apart: most of a scene stands still."""
    truth, block = scene
    found = hits(pack, truth, [block(16, False)])
    assert found.visible.rate > 0.6 and found.moved.rate < 0.3


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_batches_join_with_gaps(table):
    joined = table.combine([{"mse": [1.0, 2.0]}, {"mse": [3.0], "lpips": [0.5]}, {"lpips": [0.25]}])
    assert joined == {"mse": [1.0, 2.0, 3.0, None], "lpips": [None, None, 0.5, 0.25]}


def test_statistics(table):
    s = table.summarise([1.0, 3.0, None, math.inf, math.nan])
    assert s == (2.0, pytest.approx(2**0.5), 2, 2, 1)
    runs = [table.aggregate({"mse": [1.0, 3.0]}), table.aggregate({"mse": [5.0, 7.0]})]
    assert table.across(runs)["mse"] == (4.0, pytest.approx(8**0.5), 2, 0, 0)  # of the runs' means 2 and 6


def test_what_is_left_out_is_said(table):
    columns = table.split_source(table.aggregate({"psnr": [20.0, math.inf], "moved_mse": [None, None],
                                                  "source_psnr": [10.0, 12.0]}))
    lines = table.markdown(columns).splitlines()
    assert lines[0] == "| metric | better | edited | unedited source |"
    assert lines[2] == "| psnr (dB) | higher | 20 (of 1; 1 infinite) | 11 ± 1.4 |"
    assert lines[3] == "| moved mse | lower | - (of 0; 2 undefined) |  |"


def test_files_read_back(table):
    values = {"psnr": [math.inf, 0.1 + 0.2], "moved_mse": [None, 1e-9]}
    rows = list(csv.DictReader(io.StringIO(table.to_csv(['a, "b"', "c"], values))))
    assert rows[0] == {"name": 'a, "b"', "psnr": "inf", "moved_mse": ""} and float(rows[1]["psnr"]) == 0.1 + 0.2
    read = json.loads(table.to_json({"values": values, "summary": table.aggregate(values), "nan": math.nan}),
                      parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["values"] == {"psnr": ["inf", 0.1 + 0.2], "moved_mse": [None, 1e-9]} and read["nan"] is None
    assert read["summary"]["moved_mse"] == {"mean": 1e-9, "std": None, "count": 1, "undefined": 1, "infinite": 0}


# ---- contact sheet ---------------------------------------------------------------------------------------------------


def test_sheet_shows_the_pictures(pack):
    """Rows of different sizes, a gap, a name that is too long: every picture's colour is found in its own cell."""
    sheet = pack("core.sheet")
    red, blue = torch.tensor([1.0, 0, 0]).expand(32, 64, 3), torch.tensor([0, 0, 1.0]).expand(900, 450, 3)
    out = sheet.contact_sheet(["a", "b"], [("long\n" * 99, [red, None]), ("b", [blue, blue])])
    cell = 384
    assert out.shape == (1, 20 + 2 * 26 + 192 + cell, 6 + 2 * (cell + 6), 3)
    assert out[0, 40 + 96, 6 + 192].tolist() == [1, 0, 0] and out[0, 40 + 96, 12 + cell + 192].tolist() == [1, 1, 1]
    second = 40 + 192 + 26 + 192
    assert out[0, second, 6 + 96].tolist() == out[0, second, 12 + cell + 96].tolist() == [0, 0, 1]


def test_heat_is_black_at_zero_and_white_at_the_top(pack):
    heat = pack("core.evaluation.sheet").heat(torch.tensor([[0.0, 0.25, 0.5, 2.0]]))
    assert heat[0, 0].tolist() == [0, 0, 0] and heat[0, 1].tolist() == [1, 0.5, 0]
    assert heat[0, 2].tolist() == heat[0, 3].tolist() == [1, 1, 1]
