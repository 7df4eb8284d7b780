"""Turned and mirrored: each of the eight ways in which a rectangle can lie, as a file's display matrix says it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from framepainter_tests import wild_videos as wild

WAYS = [(a, b, c, d) for a, b, c, d in ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0),
                                        (-1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 0, -1), (0, -1, -1, 0))]


def shown(picture: np.ndarray, way) -> np.ndarray:
    """The definition: the pixel at (x, y) goes to (a x + c y, b x + d y), moved so that all are at 0 or more."""
    a, b, c, d = way
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    out = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), picture.dtype)
    out[to_y, to_x] = picture
    return out


def matrix(way) -> tuple[int, ...]:
    a, b, c, d = (v << 16 if v >= 0 else -(-v << 16) for v in way)
    return (a, b, 0, c, d, 0, 0, 0, 1 << 30)


@pytest.mark.parametrize("way", WAYS)
def test_as_the_matrix_says(pack, way):
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    turn = pack("core.video.orientation").from_matrix(matrix(way))
    assert np.array_equal(turn.apply(picture), shown(picture, way)) and turn.notes == []
    assert turn.sideways == (way[0] == 0)


@pytest.mark.parametrize("way", WAYS)
def test_in_a_file(pack, tmp_path, way):
    path = wild.write(tmp_path / "clip.mp4", wild.pictures(4, 64, 96))
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4
    place += {0: 40, 1: 52}[data[place]]
    data[place:place + 36] = struct.pack(">9i", *matrix(way))
    path.write_bytes(data)
    found = (pack("core.video.reading").read(path).frames[1].numpy() * 255).round()
    right = shown(wild.pictures(4, 64, 96)[1], way)
    assert found.shape == right.shape and np.abs(found - right).mean() < 4


def test_a_slant_is_noted_and_a_matrix_of_nothing_is_none(pack):
    from_matrix = pack("core.video.orientation").from_matrix
    c = round(0.5 ** 0.5 * 65536)
    assert "rotation by 45 degrees" in from_matrix((c, c, 0, -c, c, 0, 0, 0, 1 << 30)).notes[0]
    assert from_matrix((0,) * 9)[:2] == (0, False)
