"""Datasets as folders of pictures, and in two parts."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests import tiny
from PIL import Image


def grey(path):
    with Image.open(path) as image:
        return torch.tensor(list(image.convert("L").getdata())).reshape(image.height, image.width)


def test_export(pack, tmp_path):
    """Pictures as they are, areas by their definition, and drags that the node reads as the same points."""
    samples = tiny.samples(pack, 2)
    strange = samples[0]._replace(key="a/../b")
    names = pack("core.evaluation.export").export([*samples, samples[0], strange], tmp_path)
    assert names == [s.key for s in samples]
    for sample in samples:
        with Image.open(tmp_path / "truth" / f"{sample.key}.png") as image:
            assert bytes((sample.target.movedim(0, -1) * 255).round().byte().flatten().tolist()) == image.tobytes()
        moving = sample.flow.norm(dim=0) > 0.5
        assert torch.equal(grey(tmp_path / "moved" / f"{sample.key}.png") == 255, moving & sample.visible)
        assert torch.equal(grey(tmp_path / "disoccluded" / f"{sample.key}.png") == 255, ~sample.visible)
        height, width = sample.source.shape[-2:]
        text = (tmp_path / "drags" / f"{sample.key}.json").read_text()
        points = pack("core.signals.points").read_drags(text, height, width).points[0]
        wanted = (torch.cat([sample.drag_source, sample.drag_target], -1) + 0.5) / torch.tensor([width, height] * 2)
        assert torch.allclose(points, wanted, atol=1e-5)
    assert {p.name for p in tmp_path.rglob("*b.*")} == set(), "nothing outside its folders"


def test_split(pack, tmp_path):
    """Whole videos, every pair once, the same for the same seed; a split that was stopped goes on to the same bytes."""
    shards, split = pack("core.data.shards"), pack("core.data.split")
    writer = pack("core.data.shard_writer").ShardWriter(tmp_path / "all", {"kind": "test"})
    for i, sample in enumerate(tiny.samples(pack, 12, 16, 16)):
        writer.add(sample._replace(info={"video": f"video {i // 3}"}))
        writer.finish_source(f"chunk {i}")
    writer.finish()
    index = shards.ShardIndex(tmp_path / "all")
    calls = iter([None] * 15 + [KeyboardInterrupt])

    def stop():
        found = next(calls)
        if found:
            raise found

    with pytest.raises(KeyboardInterrupt):
        split.split(index, tmp_path / "a", tmp_path / "b", 0.25, 3, pack("core.callbacks").Callbacks(check_stop=stop))
    for names in (("a", "b"), ("c", "d")):
        parts = split.split(index, *(tmp_path / n for n in names), 0.25, 3)
        assert [w.samples for w in parts] == [9, 3]
    for one, other in (("a", "c"), ("b", "d")):
        assert (tmp_path / one / "shard-000000.tar").read_bytes() == (tmp_path / other / "shard-000000.tar").read_bytes()
    kept, held = ({s.key: s.info["video"] for s in shards.ShardIndex(tmp_path / n)} for n in "ab")
    assert len(kept | held) == 12 and not set(kept.values()) & set(held.values())
    with pytest.raises(pack("core.data.sample").DatasetError, match="share is 1; it must lie between"):
        split.split(index, tmp_path / "e", tmp_path / "f", 1)
    assert len({tuple(split.held_out_videos([f"v{n}" for n in range(9)], 0.3, seed)) for seed in range(20)}) > 5


def test_time_left(pack):
    """12 pieces in 24 s after a start that is not counted: 28 more take 56 s."""
    now = 100.0
    eta = pack("core.eta").Eta(lambda: now)
    assert eta.line(0, 40).strip() == "0 of 40"
    now += 24
    assert eta.line(12, 40).strip() == "12 of 40, about 56 s left"
    now += 4000
    assert eta.line(20, 40).strip() == "20 of 40, about 67 min left"
    resumed = pack("core.eta").Eta(lambda: now)
    resumed.line(38, 40)
    now += 10
    assert resumed.line(39, 40).strip() == "39 of 40, about 10 s left"
    assert eta.line(40, 40).strip() == "40 of 40"
