"""Clip plans and frame geometry: what must hold for any numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from framepainter_tests.live_memory import LiveMemory
from torch.nn.functional import interpolate, pad


@pytest.fixture
def clips(pack):
    return pack("core.video.clips")


@pytest.mark.parametrize("remainder", ["equal", "short", "join"])
def test_every_frame_comes_back_once(clips, remainder):
    """For all small numbers: clips joined are the video, overlaps are as asked, lengths are within bounds."""
    for count in range(1, 60):
        for length in (2, 3, 7, 14):
            for overlap in range(0, min(length, 4)):
                spans = clips.split(count, length, overlap, remainder)
                plan = SimpleNamespace(clips=spans)
                plan.dropped = lambda i, p=plan: clips.ClipPlan.dropped(p, i)
                assert clips.joined(plan, [range(a, b) for a, b in spans]) == list(range(count))
                lengths = [b - a for a, b in spans]
                assert all(spans[i][1] - spans[i + 1][0] == overlap for i in range(len(spans) - 1))
                most = length + (length / 2 if remainder == "join" else 0)
                assert max(lengths) <= most and min(lengths) >= min(count, overlap + 1)
                if remainder == "equal" and len(spans) > 1:
                    assert max(lengths) - min(lengths) <= 1


def test_impossible_numbers_are_named(clips):
    for arguments, text in (((10, 4, 4), "clips of 4 frames cannot overlap by 4"), ((10, 1, 0), "at least 2"),
                            ((0, 4, 1), "at least one frame")):
        with pytest.raises(ValueError, match=text):
            clips.split(*arguments)
    with pytest.raises(ValueError, match="rate is 30 frames a second, the video has 24"):
        clips.choose_frames(100, 24.0, rate=30.0)
    with pytest.raises(ValueError, match="no frame lies between 5 s and 4 s"):
        clips.choose_frames(96, 24.0, start=5.0)


def test_there_and_back(pack):
    """A picture that the smaller size can hold comes back, at every aspect ratio; the border leaves nothing behind."""
    geometry = pack("core.video.geometry")
    for size in ((90, 160), (160, 90), (101, 77), (64, 64)):
        y, x = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij")
        frames = torch.stack([x, y, (x + y) / 2], -1)[None] * 0.8 + 0.1
        plan = geometry.fit(*size, (64, 128))
        back = geometry.from_working(geometry.to_working(frames, plan), plan)
        assert back.shape == frames.shape
        assert (back - frames)[:, 4:-4, 4:-4].abs().max() < 0.01


def test_frames_are_fitted_one_by_one(pack):
    """The bits are those of the whole batch in one go, for which there is no memory in a long video."""
    geometry = pack("core.video.geometry")
    frames = torch.rand(8, 54, 96, 4, generator=torch.Generator().manual_seed(0))[..., :3]
    for working, keep in (((40, 48), True), ((40, 48), False), ((54, 96), True)):
        plan = geometry.fit(54, 96, working, keep)
        there = interpolate(pad(frames.movedim(-1, 1), (plan.left, plan.left, plan.top, plan.top)), size=working, mode="bilinear",
                            antialias=True).movedim(1, -1).clamp(0, 1) if working != (54, 96) else frames
        back = interpolate(there.movedim(-1, 1), size=plan.padded, mode="bicubic", antialias=True).movedim(1, -1).clamp(0, 1)
        back = back[:, plan.top:plan.top + 54, plan.left:plan.left + 96] if working != (54, 96) else frames
        assert torch.equal(geometry.to_working(frames, plan), there) and torch.equal(geometry.from_working(list(there), plan), back)
        with LiveMemory() as memory:
            size = geometry.from_working(list(there), plan).nbytes
        assert memory.peak < there.untyped_storage().nbytes() + size + 3 * 12 * plan.padded[0] * plan.padded[1]


def test_masks_go_where_their_frames_go(pack):
    """A mask of another size than the frames, through the border and back."""
    geometry = pack("core.video.geometry")
    plan = geometry.fit(54, 96, (80, 96))
    mask = torch.zeros(2, 27, 48)
    mask[1, 10:20, 30:40] = 1
    found = geometry.masks_to_working(mask, plan)
    assert found.shape == (2, 80, 96) and found[0].max() == 0 and found[1, :13].max() == 0
    assert torch.equal(found[1, 13 + 21:13 + 39, 61:79], torch.ones(18, 18)) and found[1, :, :58].max() == 0
