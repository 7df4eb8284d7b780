"""Presets, their checks and estimates, and the picture of the loss curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def presets(pack):
    return pack("core.training.framepainter.presets")


def test_the_papers_numbers(presets):
    paper = presets.choose("paper")
    assert (paper.what_trains, paper.learning_rate, paper.steps, paper.batch * paper.accumulate, paper.pixels) == (
        "everything", 1e-5, 20_000, 4, 576 * 1024)


def test_changes_apply_and_none_does_not(presets):
    chosen = presets.choose("12 GB", steps=7, batch=None, ema=0.0)
    assert (chosen.steps, chosen.batch, chosen.ema) == (7, 1, 0.0)
    assert presets.PRESETS["12 GB"].steps == 20_000


@pytest.mark.parametrize("changes, message", [
    ({"what_trains": "nothing"}, "what_trains is 'nothing'; choose one of everything"),
    ({"signal": "text"}, "signal is 'text'; choose one of sketch, coarse, drag, mixed"),
    ({"precision": "fp16"}, "fp16 gradients underflow"), ({"steps": 0}, "steps is 0; it must be 1 or more"),
    ({"learning_rate": -1.0}, "learning_rate is -1.0"), ({"ema": 1.0}, "ema is 1.0; it must be 0"),
    ({"matching_weight": -2.0}, "matching_weight is -2.0"),
])
def test_what_makes_no_sense_is_named(presets, changes, message):
    with pytest.raises(ValueError, match=message):
        presets.choose("paper", **changes)
    with pytest.raises(ValueError, match="preset is 'x'; choose one of paper"):
        presets.choose("x")


def test_estimates_are_the_formula(presets):
    """By hand: 10 parameters of UNet, 4 and 2 beside it, one pair of 64 x 64 pixels, everything, fp32, no averages."""
    settings = presets.choose("paper", batch=1, precision="fp32", matching_loss="off", steps=2, checkpointing=False)
    cost = presets.estimate(settings, 10, 4, 2, 3, 320, 64, 64)
    assert cost.weights == 16 * 4 and cost.gradients_and_moments == 16 * 12
    assert cost.activations == pytest.approx(2 * 64 * 454e3 * 2)
    assert cost.flop == pytest.approx(2 * 34e12 * 10 / 1.5246e9 * 64 * 64 / (576 * 1024) * 0.75)
    frozen = presets.estimate(presets.choose("12 GB"), 10, 4, 2, 3, 320, 64, 64)
    assert frozen.weights == 6 * 6 + 10 * 2 and frozen.gradients_and_moments == 6 * 16


@pytest.mark.parametrize("name, card", [("24 GB", 24e9), ("16 GB", 16e9), ("12 GB", 12e9), ("paper", 48e9)])
def test_presets_fit_their_cards(presets, name, card):
    """With a quarter to spare for the driver, previews and what the estimate does not see."""
    assert presets.preset_cost(name).memory < 0.75 * card


def test_small_networks_keep_their_own_size(presets):
    assert presets.choose("small network").pixels == 0


def test_parameter_counts(presets):
    shapes = {"a.attn1.to_q.weight": (8, 8), "a.attn2.to_k.weight": (8, 6), "a.attn2.to_out.0.bias": (8,), "b.weight": (4, 3)}
    assert presets.parameter_counts(shapes, 2) == (64 + 48 + 8 + 12, 2 * 16 + 2 * 14)
    assert presets.parameter_counts(shapes, 100) == (132, 8 * 16 + 6 * 14)


def test_the_docs_show_the_presets(presets):
    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    for name in presets.PRESETS:
        of = presets.PRESETS[name]
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {of.batch} x {of.accumulate} | {of.learning_rate:g} | {of.steps} | {of.precision} |" in row
        if name != "small network":
            assert f"| {presets.preset_cost(name).memory / 1e9:.1f} GB |" in row


# ---- the curve -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curve(pack):
    return pack("core.training.curve")


def test_running_mean(curve):
    assert curve.smoothed([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert curve.smoothed([], 5) == []


def rows_of(picture, colour):
    """Rows and columns of the pixels of a colour, inside the plot."""
    pixels = np.asarray(picture)[40:-31, 60:-170]
    y, x = np.nonzero((pixels == colour).all(-1))
    return y, x


def test_a_falling_loss_falls(curve):
    steps = list(range(1, 101))
    y, x = rows_of(curve.draw_curve(steps, {"loss": [1 / s for s in steps]}), curve.COLOURS["loss"])
    left, right = y[x < 100].mean(), y[x > x.max() - 40].mean()
    assert len(y) > 200 and right > left + 60  # lower in the picture


@pytest.mark.parametrize("series", [
    {}, {"loss": []}, {"loss": [1.0] * 4}, {"loss": [-1.0, 0.0, 2.0, 1.0]}, {"loss": [1.0, float("nan"), float("inf"), 2.0]},
    {"loss": [float("nan")] * 4}])
def test_any_values_can_be_drawn(curve, series):
    picture = curve.draw_curve([1, 2, 3, 4] if series.get("loss") else [], series)
    assert picture.size == (640, 360) and len(picture.getcolors(100_000)) > 1
