"""Captioned scenes: what is drawn is what the caption says, and it can be read back from the pixels."""

from __future__ import annotations

import math

import pytest
import torch

SIDE = 96


@pytest.fixture(scope="module")
def captions(pack):
    return pack("core.data.captions")


@pytest.fixture(scope="module")
def reader(pack):
    return pack("core.evaluation.captions").read_picture


def everything(captions):
    return captions.all_subjects()


def test_shapes_have_the_area_of_the_disc(captions):
    kinds = torch.arange(len(captions.SHAPES))
    cover = captions.coverage(kinds, torch.zeros(len(kinds), 2), torch.full((len(kinds),), 0.5), 400)
    area = cover.mean((1, 2)) * 4
    assert torch.allclose(area, torch.full_like(area, math.pi * 0.25), rtol=0.01)


def test_shapes_stay_whole_inside_the_picture_in_every_frame(captions):
    generator = torch.Generator().manual_seed(0)
    scenes = captions.draw_scenes(everything(captions), 5, generator, shift=1.0)
    kinds = scenes.subjects.shape.repeat_interleave(5)
    cover = captions.coverage(kinds, scenes.centre.flatten(0, 1), scenes.radius.flatten(), SIDE)
    assert float(torch.cat([cover[:, [0, -1]].flatten(), cover[:, :, [0, -1]].flatten()]).max()) == 0
    ideal = math.pi * scenes.radius.flatten() ** 2 / 4
    assert torch.allclose(cover.mean((1, 2)), ideal, rtol=0.05)
    assert (scenes.centre[:, -1] - scenes.centre[:, 0]).norm(dim=1).mean() > 0.2


def test_every_caption_describes_its_own_subject_only(captions):
    subjects = everything(captions)
    texts = [captions.caption(subjects, i) for i in range(len(subjects.shape))]
    assert len(set(texts)) == len(texts)
    again = [captions.subject_of(text) for text in texts]
    for number, part in enumerate(subjects):
        assert torch.equal(torch.cat([a[number] for a in again]), part)


def test_the_words_are_in_the_pixels(captions, reader):
    generator = torch.Generator().manual_seed(1)
    subjects = everything(captions)
    pictures = captions.render(captions.draw_scenes(subjects, 1, generator), SIDE)[:, 0]
    for i, picture in enumerate(pictures):
        found, said = reader(picture), captions.words(subjects, i)
        assert [found.size, found.colour, found.shape, found.ground] == [said[1], said[2], said[3], said[6]]
        assert found.agreement > 0.85


def test_a_plain_ground_shows_nothing(captions, reader):
    generator = torch.Generator().manual_seed(2)
    scenes = captions.draw_scenes(captions.draw_subjects(20, generator), 1, generator)
    empty = captions.render(scenes._replace(radius=torch.full_like(scenes.radius, 1e-4)), SIDE)[:, 0]
    assert all(reader(picture) is None for picture in empty)


def test_held_out_combinations_are_never_drawn_for_training(captions):
    generator = torch.Generator().manual_seed(3)
    assert not captions.held_out(captions.draw_subjects(3000, generator)).any()
    assert captions.held_out(captions.draw_subjects(300, generator, held=True)).all()
    share = captions.held_out(everything(captions)).float().mean()
    assert 0.1 < share < 0.2
    held = [p[captions.held_out(everything(captions))] for p in everything(captions)]
    assert [len(p.unique()) for p in held] == [len(captions.SHAPES), len(captions.SUBJECTS), len(captions.GROUNDS), 2]


def test_a_caption_without_a_shape_is_refused(captions):
    with pytest.raises(ValueError, match="a red thing"):
        captions.subject_of("a red thing on a green ground")
