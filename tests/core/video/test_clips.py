"""Clip plans and frame geometry: what must hold for any numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch


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
