"""Pairs from videos: which are taken, and their signals against the exact ones."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from itertools import islice

import pytest
import torch
import torch.nn.functional as F

av = pytest.importorskip("av")
FPS, COUNT, SIZE = 8, 20, (96, 128)


@pytest.fixture(scope="module")
def pairs(pack):
    return pack("core.data.pairs")


@pytest.fixture(scope="module")
def shards(pack):
    return pack("core.data.shards")


@pytest.fixture(scope="module")
def settings(pairs):
    return pairs.PairSettings(SIZE[1], SIZE[0], max_seconds=2.3, pairs=2, drags=5)


@pytest.fixture(scope="module")
def motion(pack, pairs):
    """The weight-free estimator, with its results cached for later runs."""
    known = {}

    def flow(target, source):
        key = target.numpy().tobytes(), source.numpy().tobytes()
        if key not in known:
            known[key] = pack("core.flow.weight_free").weight_free_flow(target, source)
        return known[key]

    return pack("core.data.motion").Estimated("weight-free", flow)


def encode(path, pictures):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = pictures.shape[-2:]
        stream.pix_fmt, stream.options = "yuv444p", {"crf": "12"}
        for picture in pictures:
            pixels = (picture.movedim(0, -1) * 255).round().byte().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def draw(pack, seed):
    """A clip of moving shapes over noise, and its scene."""
    data, generator = pack("core.data.procedural"), torch.Generator().manual_seed(seed)
    drawn = data.SceneSettings(*SIZE, texture=6, shift=(0.45, 0.6))
    scenes = pack("core.data.procedural_pairs").textured(data.draw_scenes(1, COUNT, drawn, generator), generator)
    return scenes, data.render(scenes)[0]


@pytest.fixture(scope="module")
def folder(pack, tmp_path_factory):
    """Two good videos, one that is cut off, a file that is not a video, a still video, a panning one, one with a cut, and a text
    file."""
    place = tmp_path_factory.mktemp("videos")
    for seed in (0, 1):
        encode(place / f"moving{seed}.mp4", draw(pack, seed)[1])
    whole = (place / "moving0.mp4").read_bytes()
    (place / "cut off.mp4").write_bytes(whole[:len(whole) // 2])
    (place / "none.mp4").write_bytes(b"none" * 999)
    (place / "notes.txt").write_text("beside")
    noise = torch.rand(2, 3, SIZE[0], SIZE[1] * 2, generator=torch.Generator().manual_seed(0))
    encode(place / "still.mp4", noise[:1, ..., :SIZE[1]].expand(COUNT, -1, -1, -1))
    encode(place / "panning.mp4", torch.stack([noise[0, ..., n * 2:n * 2 + SIZE[1]] for n in range(COUNT)]))
    encode(place / "short.mp4", noise[:1, ..., :SIZE[1]].expand(4, -1, -1, -1))
    return place


def build(pack, out, videos, settings, motion, **callbacks):
    pairs, found = pack("core.data.pairs"), pack("core.video.source").find_clips(videos, FPS)
    writer = pack("core.data.shard_writer").ShardWriter(out, pairs.pair_settings(settings, motion), 3)
    try:
        pairs.build_from_clips(writer, found, motion, settings, pack("core.callbacks").Callbacks(**callbacks))
    finally:
        writer.close()
    return json.loads((out / "dataset.json").read_text())


@pytest.fixture(scope="module")
def made(pack, tmp_path_factory, folder, settings, motion):
    out = tmp_path_factory.mktemp("sets") / "videos"
    return out, build(pack, out, folder, settings, motion)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- what is taken ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_named(made):
    _, summary = made
    assert summary["samples"] == 4 and summary["sources"] == 7
    reasons = {s["source"]: s["reason"] for s in summary["skipped"]}
    assert summary["skipped_count"] == len(reasons) == 3
    assert "cannot be opened" in reasons["none.mp4"] and "cannot be opened" in reasons["cut off.mp4"]
    assert reasons["short.mp4"] == "has no two frames more than 1 s apart (4 frames)"
    assert summary["rejected_pairs"].keys() == {"too little motion", "camera moves"}


def test_pairs_keep_to_their_bounds(shards, made, settings):
    for sample in shards.ShardIndex(made[0]):
        first, last = sample.info["frames"]
        assert sample.info["seconds"] == pytest.approx((last - first) / FPS, abs=1e-3)
        assert 1 < sample.info["seconds"] <= settings.max_seconds
        assert settings.min_motion <= sample.info["measures"]["motion"] <= settings.max_motion
        assert sample.info["measures"]["static"] >= settings.static_camera
        assert sample.source.shape == (3, *SIZE) and sample.drag_source.shape == sample.drag_target.shape == (5, 2)


def test_candidates(pairs):
    """Far enough apart, each pair once, the same for a name, others for another name or seed."""
    times = [0.1 * n for n in range(100)]
    settings = pairs.PairSettings(min_seconds=1.0, max_seconds=2.0, pairs=5)
    drawn = list(pairs.candidates(times, settings, "a"))
    assert len(drawn) == len(set(drawn)) == sum(11 <= t - s <= 20 for t in range(100) for s in range(t)), "all of them come"
    assert all(1.0 < times[t] - times[s] <= 2.0 + 1e-6 for t, s in drawn)
    assert drawn == list(pairs.candidates(times, settings, "a"))
    assert drawn[:9] != list(pairs.candidates(times, settings, "b"))[:9]
    assert drawn[:9] != list(pairs.candidates(times, pairs.PairSettings(max_seconds=2.0, pairs=5, seed=1), "a"))[:9]
    gaps = Counter(t - s for t, s in drawn)
    assert set(gaps) == set(range(11, 21))
    assert list(pairs.candidates([0.0, 1.0], settings, "a")) == list(pairs.candidates([], settings, "a")) == []
    assert set(pairs.candidates([0.0, 0.5, 9.0, 10.5], settings, "a")) == {(3, 2)}  # times need not be even


@pytest.mark.parametrize("seconds", [2.4, 4.0, 6.0])
def test_every_pair_within_the_bounds_is_equally_likely(pairs, seconds):
    """Of short clips too: the first six pairs over many names, against the same number for each (chi-squared, four sigma)."""
    times = [n / 8 for n in range(round(seconds * 8))]
    settings = pairs.PairSettings(min_seconds=1.0, max_seconds=5.0, pairs=6)
    inside = [(t, s) for t in range(len(times)) for s in range(t) if 1.0 < times[t] - times[s] <= 5.0]
    names = 8 * len(inside)
    counts = Counter(pair for n in range(names) for pair in islice(pairs.candidates(times, settings, f"clip {n}"), 6))
    assert counts.keys() == set(inside)
    expected, freedom = 6 * names / len(inside), len(inside) - 1
    # Without repetition within a clip the counts vary less than multinomial ones, by this factor.
    factor = 1 - 5 / freedom
    squares = sum((c - expected) ** 2 / expected for c in counts.values()) / factor
    assert abs(squares - freedom) < 4 * (2 * freedom) ** 0.5
    last = sum(c for (t, _), c in counts.items() if t == len(times) - 1) / (6 * names)
    assert last == pytest.approx(sum(t == len(times) - 1 for t, _ in inside) / len(inside), abs=0.01)


def test_bounds_that_frames_lie_on(pairs):
    """More than min_seconds and at most max_seconds, times that are rounded or the same, and none at all."""
    settings = pairs.PairSettings(min_seconds=1.0, max_seconds=2.0, pairs=50)
    assert set(pairs.candidates([0.0, 1.0, 1.0000005, 2.0000005, 2.1], settings, "a")) == {(3, 0), (4, 1), (4, 2)}
    assert set(pairs.candidates([0.0, 0.0, 1.5, 1.5], settings, "a")) == {(2, 0), (3, 0), (2, 1), (3, 1)}
    assert list(pairs.candidates([0.0], settings, "a")) == []


def test_a_set_begun_by_another_version_is_not_continued(pack, tmp_path, pairs, settings, motion):
    writer, error = pack("core.data.shard_writer").ShardWriter, pack("core.data.sample").DatasetError
    now = pairs.pair_settings(settings, motion)
    before = {k: v for k, v in now.items() if k != "method"}
    writer(tmp_path / "set", before, 3).close()
    with pytest.raises(error, match="begun by another version of this pack"):
        writer(tmp_path / "set", now, 3)
    with pytest.raises(error, match="seed was 0, now it is 1"):
        writer(tmp_path / "set", {**before, "seed": 1}, 3)


def test_measures_in_closed_form(pack, pairs):
    """A block of 20 x 10 that moves by (3, 4) in 100 x 100."""
    flow, visible = torch.zeros(1, 2, 100, 100), torch.ones(1, 100, 100, dtype=torch.bool)
    flow[0, :, 40:60, 50:60] = torch.tensor([3.0, 4.0])[:, None, None]
    found = pack("core.data.motion").measure(flow, visible)
    assert found == pytest.approx((5 / 20000**0.5, 0.02, 1.0, 1.0))
    visible[:, 40:50] = False
    flow[0, 0, :10] = 9.0  # a fifth of the band's area, 3600: 1000
    found = pack("core.data.motion").measure(flow, visible)
    band = 3600 - 10 * 20
    assert found == pytest.approx(((100 * 5 + 1000 * 9) / 1100 / 20000**0.5, 0.11, 1 - 1000 / band, 0.9))


@pytest.mark.parametrize("values, reason", [
    ((0.1, 0.1, 0.9, 0.9), None), ((0.01, 0.1, 0.9, 0.9), "too little motion"), ((0.1, 0.001, 0.9, 0.9), "too little motion"),
    ((0.3, 0.1, 0.9, 0.9), "too much motion"), ((0.1, 0.1, 0.6, 0.9), "camera moves"),
    ((0.1, 0.1, 0.9, 0.3), "flow is not consistent")])
def test_reasons(pack, pairs, values, reason):
    assert pairs.rejection(pack("core.data.motion").Measures(*values), pairs.PairSettings()) == reason


@pytest.mark.parametrize("change, message", [
    ({"width": 8}, "width x height is 8 x 576"), ({"max_seconds": 0.5}, "Raise max_seconds"),
    ({"max_motion": 0.01}, "Raise max_motion"), ({"holes": "grey"}, "holes is 'grey'; choose one of black, source")])
def test_settings_that_cannot_be_met(pairs, change, message):
    with pytest.raises(ValueError, match=message):
        pairs.PairSettings(**change).checked()


# ---- signals against the truth ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(pack, shards, made):
    """(sample, truth) of every pair of the two good videos."""
    data = pack("core.data.procedural")
    scenes = {f"moving{seed}.mp4": draw(pack, seed)[0] for seed in (0, 1)}
    out = []
    for sample in shards.ShardIndex(made[0]):
        scene, (first, last) = scenes[sample.info["video"]], sample.info["frames"]
        out.append((sample, data.correspondence(scene, first, last), data.correspondence(scene, last, first)))
    assert {s.info["video"] for s, _, _ in out} == set(scenes)
    return out


def test_frames_are_the_right_ones(pack, compared):
    for sample, _, _ in compared:
        frames = draw(pack, int(sample.info["video"][6]))[1]
        for picture, number in zip((sample.source, sample.target), sample.info["frames"], strict=True):
            assert (picture - frames[number]).abs().mean() < 0.03


def test_flow_and_visibility(compared):
    for sample, truth, _ in compared:
        moving = truth.visible[0] & (truth.owner[0] > 0)
        error = (sample.flow - truth.flow[0]).norm(dim=0)
        assert error[moving].median() < 0.5 and (error[moving] < 1.5).float().mean() > 0.85
        assert (sample.visible == truth.visible[0]).float().mean() > 0.93
        assert (error[sample.visible] < 2).float().mean() > 0.97  # what is said to be visible can be relied on


def test_sketch(pack, compared):
    """Strokes against those of the true flow, two pixels of tolerance: both ways most are met."""
    make = pack("core.data.signals").sketch_from_flow
    for sample, truth, _ in compared:
        ours, exact = sample.sketch[0] > 0.5, make(truth.flow)[0, 0] > 0.5

        def near(strokes):
            return F.max_pool2d(strokes[None, None].float(), 5, 1, 2)[0, 0] > 0

        met = (ours & near(exact)).sum() + (exact & near(ours)).sum()
        assert met / (ours.sum() + exact.sum()) > 0.85


def test_drags_stay_on_their_object(compared):
    for sample, truth, back in compared:
        x, y = sample.drag_target.long().unbind(-1)
        u, v = sample.drag_source.round().long().clamp(min=0).unbind(-1)
        same = truth.owner[0][y, x] == back.owner[0][v.clamp(max=SIZE[0] - 1), u.clamp(max=SIZE[1] - 1)]
        assert (truth.owner[0][y, x] > 0).float().mean() >= 0.8 and same.float().mean() >= 0.8
        assert torch.allclose(sample.drag_source - sample.drag_target, sample.flow[:, y, x].T, atol=0.05)


def test_coarse_edit(compared):
    """On what moved it looks like the target, far more than the source does."""
    for sample, truth, _ in compared:
        moved = truth.visible[0] & (truth.owner[0] > 0)
        ours = (sample.coarse - sample.target).abs().mean(0)[moved].mean()
        nothing = (sample.source - sample.target).abs().mean(0)[moved].mean()
        assert ours < 0.35 * nothing


def test_coarse_edit_in_closed_form(pack, pairs):
    """A block moves by 6: its pixels arrive, what it covers is covered, what it leaves is black or the source."""
    source = torch.full((1, 3, 20, 30), 0.25)
    source[..., 5:10, 4:9] = 0.75
    target = torch.full((1, 3, 20, 30), 0.25)
    target[..., 5:10, 10:15] = 0.75
    back, flow = torch.zeros(1, 2, 20, 30), torch.zeros(1, 2, 20, 30)
    back[:, 0, 5:10, 4:9], flow[:, 0, 5:10, 10:15] = 6.0, -6.0
    visible = torch.ones(1, 20, 30, dtype=torch.bool)
    visible[:, 5:10, 4:9] = False
    moved = pack("core.data.motion").Motion(flow, back, visible)
    black = pack("core.data.signals").coarse_edit(source, target, moved)
    expected = target.clone()
    expected[..., 5:10, 4:9] = 0
    assert torch.allclose(black, expected, atol=1e-6)
    expected[..., 5:10, 4:9] = 0.75
    assert torch.allclose(pack("core.data.signals").coarse_edit(source, target, moved, "source"), expected, atol=1e-6)


def test_uncovered_ground_gets_no_strokes(pack, pairs):
    """Junk flow where nothing is visible is replaced by the slow motion beside it, so that only the outline is drawn."""
    flow, visible = torch.zeros(1, 2, 40, 60), torch.ones(1, 40, 60, dtype=torch.bool)
    flow[:, 0, 10:30, 30:50] = -8.0
    visible[:, 10:30, 22:30] = False
    junk = flow.clone()
    junk[:, :, 10:30, 22:30] = 20 * torch.rand(1, 2, 20, 8)
    calm = pack("core.data.signals").calmed(junk, visible)
    assert torch.equal(calm[..., 12:28, 22:30], torch.zeros(1, 2, 16, 8))
    assert torch.equal(calm[..., 12:28, 30:48], flow[..., 12:28, 30:48])
    visible[:, 17:23, 35:41], junk[..., 17:23, 35:41] = False, 7.0  # inside the thing: takes its motion, not the ground's
    assert torch.equal(pack("core.data.signals").calmed(junk, visible), calm)


# ---- running again ---------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [0, 2, 5, 9, 11])
def test_cancelled_runs_end_at_the_same_bytes(pack, made, folder, settings, motion, tmp_path, after):
    calls = 0

    def progress(done, count):
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise Stop

    with pytest.raises(Stop):
        build(pack, tmp_path / "set", folder, settings, motion, progress=progress)
    assert not (tmp_path / "set" / "dataset.json").exists()
    build(pack, tmp_path / "set", folder, settings, motion)
    assert contents(tmp_path / "set") == contents(made[0])


def test_finished_videos_are_not_opened_again(pack, made, folder, settings, motion, tmp_path, monkeypatch):
    """Another run changes nothing and opens nothing; a mended video and a new one are taken in."""
    out, videos = tmp_path / "set", tmp_path / "videos"
    videos.mkdir()
    for path in folder.iterdir():
        (videos / path.name).write_bytes(path.read_bytes())
    out.mkdir()
    for path in made[0].iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    opened = []
    kind = pack("core.video.source").VideoFile
    real = kind.times
    monkeypatch.setattr(kind, "times", lambda clip, check: opened.append(clip.name) or real(clip, check))
    build(pack, out, videos, settings, motion)
    assert opened == [] and contents(out) == contents(made[0])
    (videos / "cut off.mp4").write_bytes((videos / "moving0.mp4").read_bytes())
    (videos / "a new one.mp4").write_bytes((videos / "moving1.mp4").read_bytes())
    summary = build(pack, out, videos, settings, motion)
    assert sorted(opened) == ["a new one.mp4", "cut off.mp4"]
    assert summary["samples"] == 8 and summary["skipped_count"] == 2 and summary["sources"] == 8
    index = pack("core.data.shards").ShardIndex(out)
    assert len(index) == len({e.key for e in index.entries}) == 8
    assert all((out / name).read_bytes() == data for name, data in contents(made[0]).items() if name.endswith(".tar"))


# ---- motion from other nodes -----------------------------------------------------------------------------------------


def test_given_flow(pack, pairs):
    """Constant flow of half-size fields over three steps, frames cropped from 40 x 80 to 20 x 20: scaled and added up."""
    fields = torch.tensor([1.0, 0.5])[:, None, None].expand(5, 2, 20, 40)  # 2 and 1 pixels of the frames
    given = pack("core.data.motion").GivenFlow(fields, (40, 80))
    found = given(torch.zeros(1, 3, 20, 20), torch.zeros(1, 3, 20, 20), (4, 1))
    expected = torch.tensor([3.0, 1.5])[:, None, None].expand(1, 2, 20, 20)  # three steps at half the size
    assert torch.allclose(found.back, expected, atol=1e-4) and torch.allclose(found.flow, -expected, atol=1e-4)
    inside = torch.zeros(20, 20, dtype=torch.bool)
    inside[2:, 3:] = True
    assert found.visible[0][inside].all() and not found.visible[0, :1].any() and not found.visible[0, :, :2].any()


def test_given_tracks(pack, pairs):
    """Points in pixels of the frames land where cropping and resizing takes them; hidden ones say nothing."""
    path = torch.tensor([[[39.5, 19.5], [60.0, 10.0]], [[49.5, 9.5], [60.0, 10.0]]])
    tracks = pack("core.flow.given").Tracks(path, torch.tensor([[True, True], [True, False]]))
    given = pack("core.data.motion").GivenTracks(tracks, (40, 80), radius=3 / 800**0.5)
    found = given(torch.zeros(1, 3, 20, 20), torch.zeros(1, 3, 20, 20), (1, 0))
    # 40 x 80 shrinks to 20 x 40, ten columns go at each side: (49.5, 9.5) becomes (14.5, 4.5), (39.5, 19.5) (9.5, 9.5).
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    near = (x - 14.5).hypot(y - 4.5) <= 3
    assert torch.equal(found.visible[0], near)
    assert torch.allclose(found.flow[0][:, near], torch.tensor([[-5.0], [5.0]]))
    assert found.flow[0][:, ~near].abs().max() == 0
    assert torch.allclose(found.back[0][:, (x - 9.5).hypot(y - 9.5) <= 3], torch.tensor([[5.0], [-5.0]]))


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names that are no text do not exist there")
def test_superscript_name_and_names_that_are_no_text(pack, tmp_path, folder, settings, motion):
    """Case superscript_name, through a whole run: digits of other kinds, and bytes that are no UTF-8."""
    place = tmp_path / "odd"
    for name in (b"10\xc2\xb23.mp4", b"\xc2\xb2.mp4", b"clip\xff\x07.mp4", b"clip", b"clip2"):
        if name.endswith(b".mp4"):
            place.mkdir(exist_ok=True)
            shutil.copy(folder / "moving0.mp4", os.fsencode(place) + b"/" + name)
        else:
            (place / os.fsdecode(name)).mkdir(parents=True)
            shutil.copy(folder / "none.mp4", os.fsencode(place) + b"/" + name + b"/\xfe.mp4")
    summary = build(pack, tmp_path / "set", place, settings, motion)
    assert summary["sources"] == 5 and summary["skipped_count"] == 2 and summary["samples"] == 3 * 2
    index = pack("core.data.shards").ShardIndex(tmp_path / "set")
    assert len(index) == 6 and index.skipped == [] and len({s.key for s in index}) == 6
    report = pack("core.data.shard_writer").report(tmp_path / "set")
    assert report.encode() and "clip/\\udcfe.mp4 cannot be opened" in report


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
@pytest.mark.parametrize("limit", [400, 3_000, 30_000, 150_000])
def test_a_full_disk_is_no_fault_of_the_videos(pack, tmp_path, folder, settings, motion, made, limit):
    """A full disk used to mark each video as skipped for good. Now the run stops, and resumes to the same bytes."""
    import resource
    import signal

    out = tmp_path / "set"
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(pack("core.atomic").WriteError, match="set/(journal.jsonl|shard-00000.*tar)' could not be written: "
                                                                 "File too large. Make room"):
            build(pack, out, folder, settings, motion)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    build(pack, out, folder, settings, motion)
    assert contents(out) == contents(made[0])
