"""Any drawing becomes white strokes on black."""

from __future__ import annotations

import io
import itertools

import pytest
import torch

COLOURS = {"white": (1, 1, 1), "black": (0, 0, 0), "red": (1, 0, 0), "green": (0, 0.6, 0.1), "pale": (0.8, 0.85, 0.9),
           "grey": (0.5, 0.5, 0.5), "yellow": (1, 1, 0)}


@pytest.fixture(scope="module")
def sketch(pack):
    return pack("core.signals.sketch")


@pytest.fixture(scope="module")
def strokes() -> torch.Tensor:
    """True strokes (1, 60, 80), hard-edged."""
    mask = torch.zeros(1, 60, 80)
    mask[:, 10:50, 20:23] = 1
    mask[:, 30:33, 20:60] = 1
    return mask


def colour(name: str) -> torch.Tensor:
    return torch.tensor(COLOURS[name], dtype=torch.float32)


def draw(strokes: torch.Tensor, stroke: torch.Tensor, ground: torch.Tensor) -> torch.Tensor:
    return strokes[..., None] * stroke + (1 - strokes[..., None]) * ground


def agrees(control: torch.Tensor, strokes: torch.Tensor) -> bool:
    return torch.equal(control[..., 0] > 0.5, strokes > 0.5) and control[..., 0][strokes > 0.5].min() > 0.99


@pytest.mark.parametrize("stroke, ground", [p for p in itertools.permutations(COLOURS, 2)])
def test_any_colour_on_any_ground(sketch, strokes, stroke, ground):
    made = sketch.make_sketch(draw(strokes, colour(stroke), colour(ground)), None)
    assert agrees(made.control, strokes)
    assert made.control.shape == (1, 60, 80, 3) and made.control[strokes < 0.5].max() == 0
    assert made.coverage == (pytest.approx(float(strokes.mean())),)


def test_several_colours_at_once(sketch, strokes):
    image = draw(strokes, colour("red"), colour("white"))
    image[:, 5:8, 40:70] = colour("yellow")
    strokes = strokes.clone()
    strokes[:, 5:8, 40:70] = 1
    assert agrees(sketch.make_sketch(image, None).control, strokes)


def test_drawn_over_the_picture(sketch, strokes):
    picture = torch.rand(1, 60, 80, 3, generator=torch.Generator().manual_seed(0)) * 0.6
    image = draw(strokes, colour("white"), torch.zeros(3)) + (1 - strokes[..., None]) * picture
    assert agrees(sketch.make_sketch(image, None, picture).control, strokes)
    assert agrees(sketch.make_sketch(image, None, picture, "picture").control, strokes)


def test_another_jpeg_decoder_is_no_drawing(sketch, strokes):
    """Hosts decode the same JPEG differently, by up to 0.15 at single pixels: no strokes, and no fewer real ones."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 60, 80, 3, generator=generator) * 0.6
    noise = (torch.rand(1, 60, 80, 1, generator=generator) < 0.01) * (torch.rand(1, 60, 80, 3, generator=generator) - 0.5) * 0.3
    again = (picture + noise + (torch.rand(1, 60, 80, 3, generator=generator) - 0.5) * 0.03).clamp(0, 1)
    assert sketch.make_sketch(again, None, picture).empty == (True,)
    drawn = draw(strokes, colour("white"), torch.zeros(3)) + (1 - strokes[..., None]) * again
    assert agrees(sketch.make_sketch(drawn, None, picture).control, strokes)


def test_a_plain_ground_is_told_from_the_picture(sketch, strokes):
    picture = torch.rand(1, 60, 80, 3, generator=torch.Generator().manual_seed(0))
    image = draw(strokes, colour("black"), colour("white"))
    assert agrees(sketch.make_sketch(image, None, picture).control, strokes)


@pytest.mark.parametrize("inverted", [False, True])
def test_mask_either_way_round(sketch, strokes, inverted):
    mask = 1 - strokes if inverted else strokes
    assert agrees(sketch.make_sketch(None, mask).control, strokes)


def test_transparent_drawing(sketch, strokes):
    image = torch.cat([torch.rand(1, 60, 80, 3), strokes[..., None]], -1)
    assert agrees(sketch.make_sketch(image, None).control, strokes)


def test_mask_adds_to_the_drawing(sketch, strokes):
    left, right = strokes.clone(), strokes.clone()
    left[..., 40:], right[..., :40] = 0, 0
    made = sketch.make_sketch(draw(left, colour("red"), colour("white")), right)
    assert agrees(made.control, strokes)


def test_jpeg_noise_is_no_drawing(sketch, strokes):
    from PIL import Image

    image = draw(strokes, colour("black"), colour("white"))
    buffer = io.BytesIO()
    Image.fromarray((image[0] * 255).byte().numpy()).save(buffer, "JPEG", quality=75)
    import numpy as np

    noisy = torch.from_numpy(np.asarray(Image.open(buffer)).copy()).float()[None] / 255
    found = sketch.make_sketch(noisy, None).control[..., 0] > 0.5
    wrong = (found != (strokes > 0.5)).float().mean()
    assert wrong < 0.03
    ground = torch.rand(1, 60, 80, 3, generator=torch.Generator().manual_seed(1)) * 0.04 + 0.5
    assert sketch.make_sketch(ground, None).empty == (True,)


@pytest.mark.parametrize("image, mask", [
    (torch.ones(1, 9, 9, 3), None), (torch.zeros(1, 9, 9, 3), None), (None, torch.zeros(1, 9, 9)),
    (None, torch.ones(1, 9, 9)), (torch.full((1, 9, 9, 3), 0.5), torch.zeros(1, 9, 9)), (torch.rand(1, 1, 1, 3), None)])
def test_nothing_drawn_is_empty(sketch, image, mask):
    made = sketch.make_sketch(image, mask)
    assert made.empty == (True,) and made.control.abs().max() == 0


def test_nothing_given_is_an_error(sketch):
    with pytest.raises(ValueError, match="an image or a mask"):
        sketch.make_sketch(None, None)
