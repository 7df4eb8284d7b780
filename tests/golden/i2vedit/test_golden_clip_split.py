"""How the published code splits videos into clips."""

from __future__ import annotations

import json

import pytest
import torch
from framepainter_tests.golden import Case, of_kind

each = pytest.mark.parametrize("case", of_kind("i2vedit", "clip_split"), ids=repr)


@each
def test_recorded_splits(pack, case: Case):
    clips = pack("core.video.clips")
    for row in case.info["tables"]["splits"]:
        plan = clips.plan(row["video_frames"], row["video_fps"], row["chunk_size"], row["overlay_size"], row["start_t"],
                          row["end_t"], row["sample_fps"], remainder="short")
        assert [[plan.frames[i] for i in range(*span)] for span in plan.clips] == row["clips"], json.dumps(row)[:80]
        assert [plan.dropped(i) for i in range(len(plan.clips))] == row["frames_dropped_at_clip_start"]
        assert len(clips.joined(plan, [plan.frames[a:b] for a, b in plan.clips])) == row["output_frames"]


@each
def test_recorded_geometry(pack, case: Case):
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
