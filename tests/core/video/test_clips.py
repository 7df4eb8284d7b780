"""Clip plans and frame geometry: recorded tables of the published code, and what must hold for any numbers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from framepainter_tests.golden import cases


@pytest.fixture(scope="module")
def case():
    return next(c for c in cases("i2vedit") if c.kind == "clip_split")


@pytest.fixture
def clips(pack):
    return pack("core.video.clips")


def test_recorded_splits(clips, case):
    for row in case.info["tables"]["splits"]:
        plan = clips.plan(row["video_frames"], row["video_fps"], row["chunk_size"], row["overlay_size"], row["start_t"],
                          row["end_t"], row["sample_fps"], remainder="short")
        assert [[plan.frames[i] for i in range(*span)] for span in plan.clips] == row["clips"], json.dumps(row)[:80]
        assert [plan.dropped(i) for i in range(len(plan.clips))] == row["frames_dropped_at_clip_start"]
        assert len(clips.joined(plan, [plan.frames[a:b] for a, b in plan.clips])) == row["output_frames"]


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


def test_recorded_geometry(pack, case):
    geometry = pack("core.video.geometry")
    for row in case.info["tables"]["geometry"]:
        plan = geometry.fit(*row["input"], tuple(row["working"]), row["pad_to_fit"])
        assert [plan.top, plan.left] == row["pad_each_side"]
        back = geometry.from_working(torch.rand(1, *row["working"], 3), plan) if max(row["input"]) < 100 else None
        assert back is None or list(back.shape[1:3]) == row["back_to"]
    for number, keep in (("0", True), ("1", False)):
        frame = (case.tensors[f"frame_{number}"][0] + 1) / 2  # (1, 3, H, W)
        out = geometry.to_working(frame.movedim(1, -1), geometry.fit(30, 40, (18, 32), keep))
        expected = (case.tensors[f"resized_{number}"][0].movedim(1, -1) + 1) / 2
        assert (out - expected).abs().max() < case.info["tolerance"]["max_abs"]


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
