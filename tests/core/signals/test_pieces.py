"""The coarse editor's pieces: exact where pixels land on pixels, against closed forms elsewhere, and broken texts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

CASES = json.loads((Path(__file__).parents[2] / "golden" / "editors" / "cases.json").read_text(encoding="utf-8"))
BOX = [10, 10, 30, 10, 30, 26, 10, 26]


@pytest.fixture(scope="module")
def pieces(pack):
    return pack("core.signals.pieces")


def test_picture() -> None:
    assert picture(2, 3)[0, 1, 2, 1] == (2 * 2 + 11) / 255


def picture(height: int, width: int) -> torch.Tensor:
    """As cases.json describes it."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack([7 * x + 3 * y, 2 * x + 11 * y, 5 * x * y], -1) % 256).float()[None] / 255


def place(pieces, *edits: dict, height: int = 48, width: int = 64, background: str = "black", source=None):
    state = {"version": 1, "width": width, "height": height, "background": background, "pieces": list(edits)}
    return pieces.place_pieces(pieces.read_pieces(json.dumps(state)), picture(height, width) if source is None else source)


@pytest.mark.parametrize("move", [(0, 0), (25, 12), (-7, 3)])
def test_whole_pixels_are_moved_exactly(pieces, move):
    dx, dy = move
    source = picture(48, 64)
    expected = source.clone()
    expected[:, 10:26, 10:30] = 0
    expected[:, 10 + dy:26 + dy, 10 + dx:30 + dx] = source[:, 10:26, 10:30]
    made = place(pieces, {"outline": BOX, "move": move})
    assert torch.equal(made.picture, expected)
    hole = torch.zeros(48, 64)
    hole[10:26, 10:30] = 1
    assert torch.equal(made.placed, hole.roll((dy, dx), (0, 1)))
    assert torch.equal(made.uncovered, hole * (1 - made.placed)) and torch.equal(made.changed, hole.maximum(made.placed))


@pytest.mark.parametrize("edit, turned", [
    ({"scale": [-1, 1]}, lambda p: p.flip(2)), ({"scale": [1, -1]}, lambda p: p.flip(1)),
    ({"rotate": 180}, lambda p: p.flip(1, 2)), ({"rotate": -180}, lambda p: p.flip(1, 2)),
    ({"rotate": 90}, lambda p: p.rot90(-1, (1, 2))), ({"rotate": 450}, lambda p: p.rot90(-1, (1, 2))),
    ({"rotate": 270}, lambda p: p.rot90(1, (1, 2))),
    ({"rotate": 90, "scale": [-1, 1]}, lambda p: p.flip(2).rot90(-1, (1, 2))),
])
def test_flips_and_quarter_turns_are_exact(pieces, edit, turned):
    """A square piece, turned clockwise as seen after it was flipped; pixels land on pixels."""
    source = picture(48, 64)
    made = place(pieces, {"outline": [8, 8, 24, 8, 24, 24, 8, 24], "move": [30, 10], **edit})
    assert torch.equal(made.picture[:, 18:34, 38:54], turned(source[:, 8:24, 8:24]))


def test_half_a_pixel_is_the_mean_of_two(pieces):
    source = picture(48, 64)
    made = place(pieces, {"outline": BOX, "move": [25.5, 0]}, source=source)
    expected = (source[:, 10:26, 10:29] + source[:, 10:26, 11:30]) / 2
    assert torch.allclose(made.picture[:, 10:26, 36:55], expected, atol=1e-6)
    assert made.placed[15, 35] == 0.5 and made.placed[15, 55] == 0.5


def test_doubled_size_of_a_plane(pieces):
    """Bilinear sampling reproduces a linear picture; a piece of it, scaled by two about its middle, is half as steep."""
    y, x = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    source = (0.004 * x + 0.006 * y)[None, ..., None].expand(1, 48, 64, 3)
    made = place(pieces, {"outline": BOX, "scale": [2, 2], "copy": True}, source=source).picture[0, ..., 0]
    expected = 0.004 * (20 + (x - 20) / 2) + 0.006 * (18 + (y - 18) / 2)
    assert torch.allclose(made[4:32, 2:38], expected[4:32, 2:38], atol=1e-6)


def test_area_of_a_turned_and_scaled_piece(pieces):
    lasso = [60, 50, 140, 40, 170, 110, 90, 150]
    xs, ys = np.array(lasso[::2]), np.array(lasso[1::2])
    area = abs(float(np.sum(xs * np.roll(ys, -1) - np.roll(xs, -1) * ys))) / 2  # Gauss's area formula
    made = place(pieces, {"outline": lasso, "move": [120, 80], "scale": [1.3, -0.7], "rotate": 37.5}, height=300, width=400)
    assert float(made.uncovered.sum()) == pytest.approx(area, rel=2e-3)
    assert float(made.placed.sum()) == pytest.approx(area * 1.3 * 0.7, rel=4e-3)


def test_the_middle_goes_where_it_is_moved(pieces):
    edit = {"outline": [60, 50, 140, 50, 140, 110, 60, 110], "move": [83.25, 40.5], "scale": [0.8, 1.5], "rotate": -23}
    cover = place(pieces, edit, height=300, width=400).placed
    y, x = torch.meshgrid(torch.arange(300) + 0.5, torch.arange(400) + 0.5, indexing="ij")
    centre = [float((cover * v).sum() / cover.sum()) for v in (x, y)]
    assert centre == pytest.approx([100 + 83.25, 80 + 40.5], abs=0.02)


def test_even_odd(pieces):
    """The middle of a five-pointed star drawn in one line is outside, its five points are inside."""
    turns = [4 * math.pi * i / 5 for i in range(5)]
    star = [round(v, 3) for turn in turns for v in (100 + 80 * math.sin(turn), 100 - 80 * math.cos(turn))]
    hole = place(pieces, {"outline": star, "delete": True}, height=200, width=200).uncovered
    assert hole[100, 100] == 0 and hole[40, 100] == 1 and hole[5, 5] == 0


def test_copy_delete_and_order(pieces):
    source = picture(48, 64)
    made = place(pieces, {"outline": BOX, "move": [30, 0], "copy": True})
    assert torch.equal(made.picture[:, 10:26, 10:30], source[:, 10:26, 10:30]) and made.uncovered.max() == 0
    made = place(pieces, {"outline": BOX, "delete": True})
    assert made.picture[:, 10:26, 10:30].max() == 0 and made.placed.max() == 0 and made.uncovered.sum() == 320
    blue, red = {"outline": BOX, "move": [20, 5]}, {"outline": [40, 30, 60, 30, 60, 46, 40, 46], "move": [-10, -15]}
    assert torch.equal(place(pieces, blue, red).picture[:, 15:31, 30:50], source[:, 30:46, 40:60])
    assert torch.equal(place(pieces, red, blue).picture[:, 15:31, 30:50], source[:, 10:26, 10:30])


def test_fill_of_a_constant_is_the_constant(pieces):
    source = torch.full((1, 37, 53, 3), 0.3)
    source[:, 5:30, 5:40] = 0.9
    made = place(pieces, {"outline": [5, 5, 40, 5, 40, 30, 5, 30], "delete": True}, height=37, width=53, background="fill",
                 source=source)
    assert (made.picture - 0.3).abs().max() < 1e-6


def test_fill_lies_between_its_surroundings(pieces):
    source = torch.rand(2, 40, 56, 3, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.2
    hole = torch.zeros(40, 56)
    hole[8:33, 11:47] = 1
    filled = pieces.fill(source, hole)
    assert torch.equal(filled[:, hole == 0], source[:, hole == 0])
    inside = filled[:, hole == 1]
    assert inside.min() > 0.2 and inside.max() < 0.6
    assert pieces.fill(source, torch.ones(40, 56)).abs().max() == 0  # nothing known


def test_fill_ignores_what_is_covered(pieces):
    hole = torch.zeros(30, 30)
    hole[7:22, 9:25] = 1
    a, b = torch.rand(1, 30, 30, 3), torch.rand(1, 30, 30, 3)
    b[:, hole == 0] = a[:, hole == 0]
    assert torch.equal(pieces.fill(a, hole), pieces.fill(b, hole))


@pytest.mark.parametrize("case", CASES["coarse"], ids=lambda c: c["name"])
def test_cases_are_sane(pieces, case):
    """What holds for any edit; the browser's drawing of the same cases is compared in tests/server."""
    made = pieces.place_pieces(pieces.read_pieces(json.dumps(case["state"])), picture(case["height"], case["width"]),
                               case.get("stretch", False))
    assert made.picture.shape == (1, case["height"], case["width"], 3)
    assert made.picture.min() >= 0 and made.picture.max() <= 1
    for mask in (made.uncovered, made.placed, made.changed):
        assert mask.min() >= 0 and mask.max() <= 1
    still = made.changed == 0
    assert torch.equal(made.picture[0][still], picture(case["height"], case["width"])[0][still])
    assert (made.changed + 1e-6 >= made.uncovered.maximum(made.placed)).all()


def test_clip_goes_from_the_picture_to_the_edit(pieces):
    state = {"width": 64, "height": 48, "pieces": [{"outline": BOX, "move": [24, 8], "scale": [-1.5, 1], "rotate": 40}]}
    read = pieces.read_pieces(json.dumps(state))
    frames, masks = pieces.place_clip(read, picture(48, 64), 5)
    end = pieces.place_pieces(read, picture(48, 64))
    assert torch.equal(frames[:1], picture(48, 64)) and masks[0].min() == 1
    assert torch.equal(frames[-1:], end.picture) and torch.equal(masks[-1], end.placed)
    x = torch.arange(64) + 0.5
    centres = [float((m * x).sum() / m.sum()) for m in masks[1:]]
    assert centres == pytest.approx([26, 32, 38, 44], abs=0.05)


def test_a_clip_of_many_pieces_reads_what_all_frames_share_once(pieces, monkeypatch):
    """A thousand pieces in 64 frames take minutes: each piece of each frame is a place to cancel, and its outline is covered once
    for all frames and once in each."""
    covered, steps, cover = [], [], pieces.cover_polygon
    monkeypatch.setattr(pieces, "cover_polygon", lambda *args: covered.append(1) or cover(*args))
    read = pieces.read_pieces(json.dumps({"width": 64, "height": 48, "pieces": [{"outline": BOX, "move": [9, 8]}] * 1000}))
    pieces.place_clip(read, picture(48, 64), 4, step=lambda: steps.append(1))
    assert len(covered) == 4000 and len(steps) == 3000

    class Cancelled(Exception):
        pass

    def cancel():
        raise Cancelled

    with pytest.raises(Cancelled):
        pieces.place_clip(read, picture(48, 64), 64, step=cancel)


def test_large_pictures_in_blocks_of_rows(pieces, monkeypatch):
    edit = {"outline": [60, 50, 140, 40, 170, 110], "move": [20, 30], "rotate": 11}
    whole = place(pieces, edit, height=200, width=220).picture
    monkeypatch.setattr(pieces, "BLOCK", 500)
    assert torch.equal(place(pieces, edit, height=200, width=220).picture, whole)


def edit(**changes: object) -> str:
    return json.dumps({"version": 1, "width": 9, "height": 9, "pieces": [{"outline": [1, 1, 5, 1, 5, 5], **changes}]})


@pytest.mark.parametrize("text, message", [
    ("[", "pieces is '.', which cannot be read as JSON"),
    ('{"background": "white"}', "background in pieces is 'white'; it must be 'black' or 'fill'"),
    ('{"background": ["fill"]}', "background in pieces is"),
    ('{"pieces": [[]]}', r"piece 1 of pieces is \[\], not an object"),
    ('{"pieces": [{}]}', "piece 1 of pieces has the outline null; it must be a list of corners"),
    (edit(outline=[]), "an outline of 0 corners; it needs at least 3. Draw the area again"),
    (edit(outline=[1, 1, 5, 5]), "an outline of 2 corners"),
    (edit(outline=[1, 1, 5, 1, 5]), "5 coordinates in its outline"),
    (edit(outline=[1, 1, 5, None, 5, 5]), "the outline .* it must be a list of corners"),
    (edit(move=[1]), r"the move \[1\]; it must be a list of 2 finite numbers"),
    (edit(move=[1, float("inf")]), "the move"),
    (edit(scale=[1, 0]), "the scale .1, 0.; no factor may be smaller than 0.01"),
    (edit(scale=2), "the scale 2; it must be a list of 2"),
    (edit(rotate="90"), "the rotate '90'; it must be a number of degrees"),
    (edit(delete=1), "has 1 for 'delete'; it must be true or false"),
    (json.dumps({"pieces": [{}] * 1001}), "1001 pieces; at most 1000"),
    (edit(outline=[1, 2] * 100_001), "more than 100000 corners"),
])
def test_broken_texts(pieces, text, message):
    with pytest.raises(ValueError, match=message):
        pieces.read_pieces(text)


def test_an_area_of_nothing_is_told(pieces):
    read = pieces.read_pieces(edit(outline=[1, 1, 5, 1, 3, 1]))
    assert read.pieces == () and read.notes == ("piece 1 has no area and was left out",)


def test_another_picture(pieces):
    read = pieces.read_pieces(json.dumps({"width": 60, "height": 40, "pieces": [{"outline": BOX, "move": [12, 4]}]}))
    with pytest.raises(ValueError, match="pieces was drawn on a picture of 60 x 40, the connected one is 50 x 50"):
        pieces.place_pieces(read, picture(50, 50))
    # Twice the size: exactly the doubled outline and move.
    doubled = {"width": 120, "height": 80, "pieces": [{"outline": [2 * v for v in BOX], "move": [24, 8]}]}
    source = picture(80, 120)
    assert torch.equal(pieces.place_pieces(read, source).picture,
                       pieces.place_pieces(pieces.read_pieces(json.dumps(doubled)), source).picture)
