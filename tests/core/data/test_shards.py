"""Datasets in tar shards: both ways of reading, other readers, damage, and runs that are killed."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
COUNT, SIZE = 40, (32, 48)


@pytest.fixture(scope="module")
def procedural_pairs(pack):
    return pack("core.data.procedural_pairs")


@pytest.fixture(scope="module")
def sample(pack):
    return pack("core.data.sample")


@pytest.fixture(scope="module")
def shards(pack):
    return pack("core.data.shards")


@pytest.fixture(scope="module")
def settings(procedural_pairs):
    return procedural_pairs.ProceduralSettings(count=COUNT, height=SIZE[0], width=SIZE[1], drags=3, seed=5)


def build(pack, folder, settings, per_shard=16):
    pairs = pack("core.data.procedural_pairs")
    writer = pack("core.data.shard_writer").ShardWriter(folder, pairs.procedural_settings(settings), per_shard)
    pairs.build_procedural(writer, settings)
    return writer


@pytest.fixture(scope="module")
def made(pack, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "shapes"
    build(pack, folder, settings)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in made.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def equal(a, b) -> bool:
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


def test_random_access_is_streaming(shards, made):
    index, reader = shards.ShardIndex(made), shards.read_samples(made)
    streamed = list(reader)
    assert len(index) == len(streamed) == COUNT and index.skipped == reader.skipped == []
    assert all(equal(index[i], streamed[i]) for i in (0, 7, 15, 16, 39)) and equal(index[-1], streamed[-1])
    with pytest.raises(IndexError):
        index[COUNT]


def test_what_was_put_in_comes_out(procedural_pairs, shards, made, settings):
    """Pictures to 8 bit, flow to half precision, drags and visibility exactly."""
    index = shards.ShardIndex(made)
    exact = procedural_pairs.procedural_samples(settings, 1)
    settings_hash = json.loads((made / "dataset.json").read_text())["settings_hash"]
    for i, sample in enumerate(exact):
        read = index[16 + i]
        assert read.key == sample.key and read.info["settings"] == settings_hash
        for name in ("source", "target", "sketch", "coarse"):
            assert getattr(read, name).shape == (3, *SIZE)
            assert (getattr(read, name) - getattr(sample, name)).abs().max() <= 0.5 / 255 + 1e-6
        assert torch.equal(read.flow, sample.flow.half().float()) and torch.equal(read.visible, sample.visible)
        assert torch.equal(read.drag_source, sample.drag_source) and torch.equal(read.drag_target, sample.drag_target)


def test_summary(made):
    summary = json.loads((made / "dataset.json").read_text())
    assert summary["format"] == 1 and summary["samples"] == COUNT and summary["skipped_count"] == 0
    assert [s["samples"] for s in summary["shards"]] == [16, 16, 8]
    assert summary["settings"]["width"] == SIZE[1]
    assert sorted(p.name for p in made.glob("*.tar")) == [s["name"] for s in summary["shards"]]


def test_webdataset_reads_it(shards, made):
    """The published library, its own decoders, the same numbers."""
    wds = pytest.importorskip("webdataset")
    data = wds.WebDataset([str(p) for p in sorted(made.glob("*.tar"))], shardshuffle=False).decode("torchrgb")
    index, found = shards.ShardIndex(made), list(data)
    assert len(found) == COUNT
    for i in (0, 20, 39):
        theirs, ours = found[i], index[i]
        assert theirs["__key__"] == ours.key
        assert torch.equal(theirs["source.png"], ours.source) and torch.equal(theirs["coarse.png"], ours.coarse)
        assert torch.equal(torch.from_numpy(theirs["flow.npz"]["flow"]).float(), ours.flow)
        assert theirs["json"]["frames"] == ours.info["frames"]
        assert theirs["json"]["drag_source"] == ours.drag_source.tolist()


def test_same_bytes_again(pack, settings, made, tmp_path):
    time.sleep(2.1)  # zip files tell time in steps of two seconds: they must not
    build(pack, tmp_path / "again", settings)
    assert contents(tmp_path / "again") == contents(made)


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_cut_off_shard(shards, copy):
    shard = copy / "shard-000001.tar"
    with tarfile.open(shard) as tar:
        third = [m.offset for m in tar if m.name.endswith("flow.npz")][2]
    with shard.open("r+b") as file:
        file.truncate(third + 700)
    index, reader = shards.ShardIndex(copy), shards.read_samples(copy)
    assert len(index) == len(list(reader)) == 16 + 2 + 8
    for skipped in (index.skipped, reader.skipped):
        assert len(skipped) == 2 and "shard-000001.tar: cut off" in skipped[0]
        assert "scene_000018 lacks flow.npz, json" in skipped[1]


@pytest.mark.parametrize("member", ["target.png", "flow.npz", "json"])
@pytest.mark.parametrize("check", [True, False])
def test_damaged_member(shards, copy, member, check):
    """Found when the set is opened, or when the sample is asked for; then the next one is given."""
    shard = copy / "shard-000000.tar"
    with tarfile.open(shard) as tar:
        place = tar.getmember(f"scene_000004.{member}")
    with shard.open("r+b") as file:
        file.seek(place.offset_data + place.size // 2)
        file.write(b"\xff" * 8)
    index = shards.ShardIndex(copy, check=check)
    assert len(index) == COUNT - check
    assert index[4].key == "scene_000005"
    assert len(index.skipped) == 1 and "scene_000004" in index.skipped[0] and member in index.skipped[0]
    reader = shards.read_samples(copy)
    assert len(list(reader)) == COUNT - 1 and "scene_000004" in reader.skipped[0]


def test_damaged_header(shards, copy):
    """Samples behind it are found."""
    shard = copy / "shard-000000.tar"
    with tarfile.open(shard) as tar:
        place = tar.getmember("scene_000004.sketch.png").offset
    with shard.open("r+b") as file:
        file.seek(place + 100)
        file.write(b"garbage!")
    index = shards.ShardIndex(copy)
    assert len(index) == COUNT - 1 and [e.key for e in index.entries[4:6]] == ["scene_000005", "scene_000006"]
    assert any(f"damaged at byte {place}" in s for s in index.skipped)
    assert any("scene_000004 lacks sketch.png" in s for s in index.skipped)


def test_nothing_left(sample, shards, copy, tmp_path):
    for shard in copy.glob("*.tar"):
        shard.write_bytes(b"no tar" * 500)
    with pytest.raises(sample.DatasetError, match="holds no usable sample.*Skipped: .*shard-000000.tar"):
        shards.ShardIndex(copy)
    with pytest.raises(sample.DatasetError, match="no usable sample"):
        list(shards.read_samples(copy))
    with pytest.raises(sample.DatasetError, match="is no dataset"):
        shards.ShardIndex(tmp_path)


# ---- interrupted runs ------------------------------------------------------------------------------------------------


RUNNER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import dataset
dataset.core("data.pairs")
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os._exit(dataset.main(json.loads(line)))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are started by fork")
def test_killed_runs_end_at_the_same_bytes(pack, procedural_pairs, tmp_path):
    """The command, killed after its first, third and sixth source; each time the next run goes on."""
    settings = procedural_pairs.ProceduralSettings(count=160, height=64, width=96, drags=3, seed=5)
    build(pack, tmp_path / "whole", settings, per_shard=32)
    folder = tmp_path / "killed"
    arguments = ["procedural", str(folder), "--count", "160", "--width", "96", "--height", "64", "--drags", "3", "--seed", "5"]
    with subprocess.Popen([sys.executable, "-c", RUNNER, str(ROOT / "commands")], stdin=subprocess.PIPE, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as runner:

        def start() -> int:
            runner.stdin.write(json.dumps(arguments) + "\n")
            runner.stdin.flush()
            return int(runner.stdout.readline())

        def ended() -> int:
            while not (line := runner.stdout.readline()).strip().lstrip("-").isdigit():
                assert line, "the process that starts runs has ended"
            return int(line)

        def lines() -> int:
            return (folder / "journal.jsonl").read_bytes().count(b"\n") if (folder / "journal.jsonl").exists() else 0

        draw = random.Random(3)
        for sources in (1, 3, 6):
            pid, until = start(), time.monotonic() + 60
            while lines() < 1 + sources and time.monotonic() < until:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            assert ended() == -signal.SIGKILL
        assert not (folder / "dataset.json").exists()
        start()
        assert ended() == 0
        runner.stdin.close()
    assert contents(folder) == contents(tmp_path / "whole")


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", range(0, 12))
def test_stopped_everywhere(pack, made, settings, tmp_path, monkeypatch, after):
    """A run that ends at any write, renaming or synchronising goes on to the same bytes."""
    writing, folder, calls = pack("core.data.shard_writer"), tmp_path / "set", 0

    def counted(real):
        def call(*args):
            nonlocal calls
            calls += 1
            if calls == after + 1:
                raise Stop
            return real(*args)
        return call

    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "fsync", counted(os.fsync))
        patch.setattr(writing.os, "replace", counted(os.replace))
        with pytest.raises(Stop):
            build(pack, folder, settings)
    build(pack, folder, settings)
    assert contents(folder) == contents(made)


def test_a_torn_journal_and_a_lost_tail(pack, shards, made, settings, copy):
    """A half-written line does not count; a journal that knows more than the shard is taken back."""
    (copy / "dataset.json").unlink()
    lines = (copy / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "journal.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    build(pack, copy, settings)
    assert contents(copy) == contents(made)
    last = copy / "shard-000002.tar"
    data = last.read_bytes()
    last.unlink()
    (copy / "shard-000002.tar.partial").write_bytes(data[:1000])
    build(pack, copy, settings)
    assert contents(copy) == contents(made)


def test_finished_sources_are_not_made_again(pack, procedural_pairs, made, settings, copy, monkeypatch):
    monkeypatch.setattr(procedural_pairs, "procedural_samples", lambda *_: pytest.fail("made again"))
    build(pack, copy, settings)
    assert contents(copy) == contents(made)


def test_other_settings_are_refused(pack, procedural_pairs, sample, shards, settings, copy):
    other = procedural_pairs.ProceduralSettings(**{**settings.__dict__, "seed": 6})
    with pytest.raises(sample.DatasetError, match="other settings .seed was 5, now it is 6.*Choose another name"):
        build(pack, copy, other)
    (copy / "journal.jsonl").unlink()
    with pytest.raises(sample.DatasetError, match="shards but no journal"):
        build(pack, copy, settings)


def test_a_disk_that_became_read_only_is_named(pack, procedural_pairs, settings, copy, monkeypatch):
    """Beginning again takes away what is left of the open shard, which said the file and the reason and no remedy."""
    (copy / "shard-000009.tar.partial").write_bytes(b"left")
    unlink = Path.unlink

    def refuse(path, *args, **kwargs):
        if path.name.endswith(".tar.partial"):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        unlink(path, *args, **kwargs)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(pack("core.atomic").WriteError, match="could not be written: Read-only file system. Make room"):
        pack("core.data.shard_writer").ShardWriter(copy, procedural_pairs.procedural_settings(settings), 16)


def test_keys(sample, shards):
    stem = sample.key_stem("a/b c.d.mp4")
    assert "." not in stem and stem != sample.key_stem("b c.d.mp4") and stem.startswith("b-c-d-")
    assert sample.key_stem("\u65e5\u672c.mp4").startswith("clip-")
