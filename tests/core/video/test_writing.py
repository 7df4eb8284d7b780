"""Videos out: shown as their frames, in time with their sound."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
import torch
from framepainter_tests import wild_videos as wild

PATCH = 24


@pytest.fixture
def writing(pack):
    return pack("core.video.writing")


@pytest.fixture
def reading(pack):
    return pack("core.video.reading")


def patches(count: int, height: int, width: int) -> np.ndarray:
    """Even colours, other ones in each frame: (count, height, width, 3) uint8."""
    colours = np.random.default_rng(0).integers(0, 256, (count, height // PATCH, width // PATCH, 3), np.uint8)
    return colours.repeat(PATCH, 1).repeat(PATCH, 2)


def middles(frames) -> np.ndarray:
    """Mean colours of the patches, their rims left out, of 255."""
    count, height, width, _ = frames.shape
    split = np.asarray(frames, np.float64).reshape(count, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    return split[:, :, 8:-8, :, 8:-8].mean((2, 4))


def players(path) -> np.ndarray:
    """What FFmpeg's own scaler makes of a file by its tags: (T, H, W, 3) uint8."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
    assert {int(f.colorspace) for f in frames} == {1} and {int(f.color_range) for f in frames} == {1}
    codec = frames[0]
    options = "in_color_matrix=bt709:in_range=limited:out_range=full:flags=accurate_rnd+full_chroma_int+full_chroma_inp"
    shown = []
    for frame in frames:
        graph = av.filter.Graph()
        nodes = [graph.add_buffer(width=codec.width, height=codec.height, format="yuv420p", time_base=frame.time_base),
                 graph.add("scale", options), graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")]
        for one, other in zip(nodes, nodes[1:], strict=False):
            one.link_to(other)
        graph.configure()
        graph.push(frame)
        shown.append(graph.pull().to_ndarray())
    return np.stack(shown)


@pytest.mark.parametrize("size", [(96, 144), (600, 720), (96, 1296)])
def test_colours_out_are_the_colours_in(writing, reading, tmp_path, size):
    """Frame -> file -> player, and file -> Read Video -> file -> player, at sizes that untagged files are guessed from."""
    frames = patches(2, *size)
    writing.write(tmp_path / "out.mp4", torch.from_numpy(frames).float() / 255, 8.0)
    assert np.abs(middles(players(tmp_path / "out.mp4")) - middles(frames)).max() <= 2  # as much as 8-bit Y, Cb and Cr alone
    again = reading.read(tmp_path / "out.mp4")
    writing.write(tmp_path / "again.mp4", again.frames, again.fps)
    assert np.abs(middles(players(tmp_path / "again.mp4")) - middles(players(tmp_path / "out.mp4"))).max() <= 2


@pytest.mark.parametrize("rate, channels, seconds", [(48_000, 2, 1.0), (44_056, 1, 5.0), (8000, 6, 0.3), (192_000, 3, 0.7),
                                                     (44_100, 2, 0)])
def test_sound_keeps_its_place_and_ends_with_the_pictures(writing, reading, tmp_path, rate, channels, seconds):
    time = torch.arange(int(rate * seconds)) / rate
    wave = (0.3 * torch.sin(2 * torch.pi * 440 * time) * (time > 0.2)).expand(channels, -1)
    notes = writing.write(tmp_path / "a.mp4", torch.zeros(8, 32, 48, 3), 8.0, reading.Sound(wave, rate))
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert len(file.streams.audio) == (seconds > 0)
    if seconds:
        heard = reading.read(tmp_path / "a.mp4").sound
        length = heard.wave.shape[1] / heard.rate
        assert min(seconds, 1.0) - 1e-3 <= length <= min(seconds, 1.0) + 1024 / 8000
        begin = int((heard.wave[0].abs() > 0.1).nonzero()[0]) / heard.rate
        assert begin == pytest.approx(0.2, abs=0.01)
    assert bool(notes) == (rate in (44_056, 192_000))


@pytest.mark.parametrize("fps", [8.0, 24000 / 1001, 7.512, 0.5, 240.0])
def test_frames_keep_their_number_rate_and_order(writing, tmp_path, fps):
    shown = wild.pictures(9, 64, 96)
    writing.write(tmp_path / "a.mp4", torch.from_numpy(shown).float() / 255, fps)
    with av.open(str(tmp_path / "a.mp4")) as file:
        frames = list(file.decode(video=0))
        assert [wild.number(f.to_ndarray(format="rgb24")) for f in frames] == list(range(9))
        assert [f.time for f in frames] == pytest.approx([i / fps for i in range(9)], abs=1e-3)
        assert float(file.streams.video[0].duration * file.streams.video[0].time_base) == pytest.approx(9 / fps, rel=1e-3)


def test_odd_sizes_texts_and_what_stops_the_writing(writing, tmp_path):
    frames = torch.rand(2, 33, 47, 3, generator=torch.Generator().manual_seed(0))
    text = json.dumps({"1": {"class_type": "größer", "inputs": list(range(5000))}})
    notes = writing.write(tmp_path / "a.mp4", frames, 8.0, metadata={"prompt": text})
    assert "47 x 33 pixels became 48 x 34" in notes[0]
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert file.metadata["prompt"] == text
        picture = next(file.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (34, 48, 3)

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writing.write(tmp_path / "b.mp4", frames, 8.0, watch=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
