"""The sketch editor's strokes, against distances taken point by point, and its broken texts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

CASES = json.loads((Path(__file__).parents[2] / "golden" / "editors" / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def strokes(pack):
    return pack("core.signals.strokes")


def draw(strokes, state: object, height: int, width: int, stretch: bool = False) -> torch.Tensor:
    text = state if isinstance(state, str) else json.dumps(state)
    return strokes.draw_strokes(strokes.read_strokes(text), height, width, stretch)


def distance(x: float, y: float, points: list[tuple[float, float]]) -> float:
    """To the nearest place of a line, by the textbook."""
    if len(points) == 1:
        return math.dist((x, y), points[0])
    best = math.inf
    for (ax, ay), (bx, by) in zip(points, points[1:], strict=False):
        square = (bx - ax) ** 2 + (by - ay) ** 2
        t = 0.0 if square == 0 else min(1.0, max(0.0, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / square))
        best = min(best, math.dist((x, y), (ax + t * (bx - ax), ay + t * (by - ay))))
    return best


def by_hand(state: dict, height: int, width: int) -> torch.Tensor:
    rx, ry = (width / state["width"], height / state["height"]) if state.get("strokes") else (1, 1)
    out = torch.zeros(height, width, dtype=torch.float64)
    for stroke in state.get("strokes", []):
        flat = stroke["points"]
        points = [(x * rx, y * ry) for x, y in zip(flat[::2], flat[1::2], strict=True)]
        size = stroke["size"] * math.sqrt(rx * ry)
        for row in range(height):
            for column in range(width):
                c = min(1.0, max(0.0, size / 2 + 0.5 - distance(column + 0.5, row + 0.5, points)))
                v = float(out[row, column])
                out[row, column] = max(v, c) if stroke["tool"] == "brush" else min(v, 1 - c)
    return out.float()


SLOW = ("freehand spiral", "another size, same aspect ratio")


@pytest.mark.parametrize("case", [c for c in CASES["sketch"] if c["name"] not in SLOW], ids=lambda c: c["name"])
def test_every_case_is_the_formula(strokes, case):
    found = draw(strokes, case["state"], case["height"], case["width"], case.get("stretch", False))
    assert found.shape == (case["height"], case["width"]) and found.dtype == torch.float32
    assert (found - by_hand(case["state"], case["height"], case["width"])).abs().max() < 1e-6


def test_area_of_a_long_line(strokes):
    """A line of thickness s and length l inside the picture covers s * l + pi s^2 / 4, the soft edges included."""
    state = {"width": 700, "height": 500, "strokes": [{"size": 24, "points": [60, 40, 640, 470]}]}
    expected = 24 * math.hypot(580, 430) + math.pi * 12**2
    assert float(draw(strokes, state, 500, 700).sum()) == pytest.approx(expected, rel=2e-3)


def test_far_outside_costs_and_draws_nothing_new(strokes):
    near = {"width": 50, "height": 40, "strokes": [{"size": 5, "points": [-25, 20, 75, 20]}]}
    far = {"width": 50, "height": 40, "strokes": [{"size": 5, "points": [-1e8, 20, 1e8, 20]}]}
    assert torch.allclose(draw(strokes, near, 40, 50), draw(strokes, far, 40, 50), atol=1e-5)


def test_one_gesture_may_be_cut_into_two(strokes):
    whole = [{"size": 7, "points": [5, 5, 30, 20, 8, 33]}]
    parts = [{"size": 7, "points": [5, 5, 30, 20]}, {"size": 7, "points": [30, 20, 8, 33]}]
    a, b = (draw(strokes, {"width": 50, "height": 40, "strokes": s}, 40, 50) for s in (whole, parts))
    assert torch.equal(a, b) and a.max() == 1


@pytest.mark.parametrize("text", ["", "  ", None, "{}", "null", '{"version": 1, "width": 0, "height": 0, "strokes": []}'])
def test_nothing_drawn(strokes, text):
    assert strokes.read_strokes(text).strokes == ()


def brush(**changes: object) -> str:
    stroke = {"tool": "brush", "size": 2, "points": [1, 1], **changes}
    return json.dumps({"version": 1, "width": 9, "height": 9, "strokes": [stroke]})


@pytest.mark.parametrize("text, message", [
    ("{", "strokes is '{', which cannot be read as JSON.*Draw in the node's editor"),
    ("[" * 100_000, "cannot be read as JSON"),
    ("[1]", r"strokes is \[1\], not a JSON object"),
    ('"text"', "not a JSON object"),
    ('{"version": 2}', "newer editor .version 2; this one reads 1.. Update"),
    ('{"version": "1"}', "version of strokes is '1'; it must be 1"),
    ('{"strokes": {}}', "'strokes' in strokes is {}; it must be a list"),
    ('{"strokes": [3]}', "stroke 1 of strokes is 3, not an object"),
    (brush(tool="pencil"), "the tool 'pencil'; it must be 'brush' or 'eraser'"),
    (brush(size=0.5), "the size 0.5; it must be a diameter of at least 1"),
    (brush(size=True), "the size true"),
    (brush(size=float("inf")), "the size Infinity"),
    (brush(points=[1, 2, 3]), "3 coordinates; they must come in pairs"),
    (brush(points=[1, float("nan")]), "NaN in its points; they must be finite"),
    (brush(points=[1, "2"]), "'2' in its points"),
    (brush(points=[1, 10**400]), "in its points"),
    (brush(points=7), "has 7 in its points"),
    (brush().replace('"width": 9', '"width": 0'), "the width in strokes is 0; it must be a whole number"),
    (brush().replace('"height": 9', '"height": 1e9'), "the height in strokes is 1000000000.0"),
    (brush().replace('"height": 9, ', ""), "the height in strokes is null"),
    (json.dumps({"strokes": [{}] * 10_001}), "10001 strokes; at most 10000 are read"),
    (json.dumps({"strokes": [{"points": [0] * 100_002}] * 10}), "more than 500000 points"),
])
def test_broken_texts(strokes, text, message):
    with pytest.raises(ValueError, match=message):
        strokes.read_strokes(text)


def test_a_stroke_without_points_is_told(strokes):
    read = strokes.read_strokes(brush(points=[]))
    assert read.strokes == () and read.notes == ("stroke 1 has no points and was left out",)


def test_another_picture(strokes):
    state = {"width": 60, "height": 40, "strokes": [{"size": 4, "points": [10, 10]}]}
    with pytest.raises(ValueError, match="strokes was drawn on a picture of 60 x 40, the connected one is 50 x 50.*'stretch'"):
        draw(strokes, state, 50, 50)
    assert draw(strokes, state, 50, 50, True)[12, 8] == 1  # (10, 10) * (50 / 60, 50 / 40)
