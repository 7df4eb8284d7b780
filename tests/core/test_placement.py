"""A picture keeps its shape on the network's canvas."""

from __future__ import annotations

import itertools

import pytest
import torch

SIDES = [96, 128, 192, 256, 320, 448, 512, 576, 640, 768, 896, 1024, 1280]
RATIOS = [1 / 3, 9 / 21, 9 / 16, 2 / 3, 3 / 4, 4 / 5, 0.9, 0.97, 1, 1.04, 1.1, 5 / 4, 4 / 3, 3 / 2, 1.618, 16 / 9, 2, 21 / 9, 3]


@pytest.fixture
def placement(pack):
    return pack("core.placement")


def test_the_table_of_aspect_ratios(placement):
    """At most 1 % for every ratio from 1:3 to 3:1 at every size from 96 x 96, and the area that was asked for."""
    pictures = [(round(h), round(h * ratio)) for h in (97, 480, 1080, 3000) for ratio in
                (*RATIOS, *torch.logspace(-0.477, 0.477, 80).tolist())]
    for (height, width), (a, b) in itertools.product(pictures, itertools.combinations_with_replacement(SIDES, 2)):
        canvas = placement.canvas_size(height, width, a * b)
        h, w = placement.placed_size(height, width, *canvas)
        assert canvas[0] % 8 == canvas[1] % 8 == 0
        assert 0 <= canvas[0] - h < 8 and 0 <= canvas[1] - w < 8
        assert placement.distortion(height, width, *canvas) <= 0.01, (height, width, a, b)
        assert abs(canvas[0] * canvas[1] / (a * b) - 1) < 0.16, (height, width, a, b, canvas)


@pytest.mark.parametrize("picture, area, expected", [
    ((1080, 1920), 1024 * 576, (576, 1024)), ((400, 600), 1024 * 576, (640, 960)), ((512, 512), 1024 * 576, (768, 768)),
    ((96, 96), 96 * 96, (96, 96)), ((180, 320), 96 * 96, (72, 128)), ((300, 400), 96 * 96, (80, 112)),
])
def test_sizes_that_the_pages_name(placement, picture, area, expected):
    assert placement.canvas_size(*picture, area) == expected


def test_what_was_released_fills_the_canvas_and_what_is_stretched_stays_so(placement):
    assert placement.placed_size(1080, 1920, 576, 1024) == (576, 1024)
    assert placement.placed_size(300, 400, 576, 1024) == (576, 1024)  # far from its shape: on purpose


def test_onto_the_canvas_and_off_again(placement):
    picture = torch.rand(1, 3, 84, 112)
    canvas = placement.on_canvas(picture, 88, 112)
    assert canvas.shape == (1, 3, 88, 112) and torch.equal(canvas[..., 84:, :], picture[..., -1:, :].expand(-1, -1, 4, -1))
    back = placement.off_canvas(canvas.movedim(1, -1), 300, 400)
    assert torch.equal(back.movedim(-1, 1), picture)
