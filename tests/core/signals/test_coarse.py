"""Coarse edits as signals: what is covered, what was touched, and the clip that shows them."""

from __future__ import annotations

import json

import pytest
import torch


@pytest.fixture(scope="module")
def coarse(pack):
    return pack("core.signals.coarse")


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 8, 12, 3, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1


def test_an_edited_picture_without_its_source(coarse, pictures):
    """Nothing tells what was touched, so the signal does not pretend to know."""
    edit = coarse.of_edited(pictures, None)
    assert edit.signal(1).area is None and torch.equal(edit.signal(1).control, pictures[1:])
    assert not edit.uncovered.any() and not edit.changed.any()


def test_an_edited_picture_with_its_source(coarse, pictures):
    edited = pictures.clone()
    edited[:, 2:4, 3:6] = 1 - pictures[:, 2:4, 3:6].round()
    area = coarse.of_edited(edited, pictures).signal(0).area
    assert area[0, 2:4, 3:6].min() > 0.9 and area.sum() == area[0, 2:4, 3:6].sum()


def test_what_is_uncovered_is_black_and_touched(coarse, pictures):
    hole = torch.zeros(1, 8, 12)
    hole[:, :3] = 1
    edit = coarse.with_uncovered(coarse.of_edited(pictures, pictures), hole)
    assert not edit.control[:, :3].any() and torch.equal(edit.control[:, 3:], pictures[:, 3:])
    assert torch.equal(edit.uncovered, hole) and torch.equal(edit.changed, hole.expand(2, -1, -1))
    again = coarse.with_uncovered(edit, torch.zeros(1, 8, 12))
    assert torch.equal(again.uncovered, edit.uncovered) and torch.equal(again.control, edit.control)


def test_a_clip_of_an_edited_picture(coarse, pictures):
    """The source, then the edit; followed everywhere in frame 0 and where the edit lies, not where it left a hole, later."""
    edited, hole = pictures.clone(), torch.zeros(1, 8, 12)
    edited[:, :4], hole[:, 0] = 0.0, 1
    edit = coarse.with_uncovered(coarse.of_edited(edited, pictures), hole)
    clip, followed = coarse.clip_of(edit, None, pictures, 1, 4, False)
    assert torch.equal(clip[0], pictures[1]) and all(torch.equal(frame, edit.control[1]) for frame in clip[1:])
    assert followed.shape == (4, 8, 12) and followed[0].min() == 1
    assert followed[1:, 1:4].min() > 0.5 and not followed[1:, 0].any() and not followed[1:, 4:].any()


def test_pieces_of_the_editor(pack, coarse, pictures):
    square = {"outline": [2, 2, 6, 2, 6, 6, 2, 6], "move": [4, 0]}
    pieces = pack("core.signals.pieces").read_pieces(json.dumps({"version": 1, "width": 12, "height": 8, "pieces": [square]}))
    edit = coarse.of_pieces(pieces, pictures, False)
    assert torch.equal(edit.control[:, 2:6, 6:10], pictures[:, 2:6, 2:6]) and edit.uncovered[0, 2:6, 2:6].min() == 1
    clip, followed = coarse.clip_of(edit, pieces, pictures, 0, 3, False)
    assert torch.equal(clip[0], pictures[0]) and torch.equal(clip[-1], edit.control[0])
    assert clip[1, 2:6, 4:8].allclose(pictures[0, 2:6, 2:6])  # half way
    assert followed[2, 2:6, 6:10].min() == 1 and not followed[2, 2:6, 2:6].any()
