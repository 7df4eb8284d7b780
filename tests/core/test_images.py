from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def images(pack):
    return pack("core.images")


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (224, 224), (500, 20), (2000, 1500)])
def test_a_plain_picture_stays_plain(images, height, width):
    """Blur and resize of a constant give that constant, whatever the size; then CLIP's mean and deviation."""
    colour = torch.tensor([0.2, 0.5, 0.9])
    out = images.clip_pixels(colour.expand(1, height, width, 3))
    expected = (colour - torch.tensor(images.CLIP_MEAN)) / torch.tensor(images.CLIP_STD)
    assert out.shape == (1, 3, 224, 224)
    assert torch.allclose(out, expected[None, :, None, None].expand_as(out), atol=1e-4)


def test_a_large_picture_is_blurred_before_it_shrinks(images):
    """A one-pixel checkerboard of 2240 pixels averages out to grey; sampled without blur it would alias."""
    y, x = torch.meshgrid(torch.arange(2240), torch.arange(2240), indexing="ij")
    board = ((x + y) % 2).float()[None, :, :, None].expand(1, -1, -1, 3)
    grey = images.clip_pixels(torch.full((1, 8, 8, 3), 0.5))
    assert (images.clip_pixels(board)[..., 5:-5, 5:-5] - grey[..., 5:-5, 5:-5]).abs().max() < 0.01


@pytest.mark.parametrize("height, width", [(576, 1024), (1024, 576), (400, 600), (4000, 3000), (64, 64), (333, 1000)])
def test_kept_aspect(images, height, width):
    h, w = images.keep_aspect_size(height, width, 1024 * 576, 64)
    assert h % 64 == w % 64 == 0
    assert abs(h * w / (1024 * 576) - 1) < 0.12
    assert abs((w / h) / (width / height) - 1) < 0.12


def test_the_released_size_is_kept_exactly(images):
    assert images.keep_aspect_size(1080, 1920, 1024 * 576, 64) == (576, 1024)


def test_thin_strokes_stay_white_when_a_drawing_shrinks(images):
    control = torch.zeros(1, 3, 800, 1200)
    control[..., 400, :] = 1.0
    small = images.resize_control(control, 64, 96)
    assert small.max() == 1.0 and small.min() == 0.0
    assert (small.amax((0, 1, 3)) > 0.4).sum() <= 2  # still a thin line
    assert torch.equal(images.resize_control(control, 800, 1200), control)
    assert images.resize_control(torch.zeros(1, 3, 9, 9), 4, 4).abs().max() == 0
