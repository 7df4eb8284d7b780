"""Files as they come from cameras, editors and converters: read as a player reads them, and never the end of the server."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from framepainter_tests import wild_videos as wild

FORMS = {"open GOP": {"g": "6", "bf": "2", "x264-params": "open-gop=1:scenecut=0"},
         "intra refresh": {"g": "8", "bf": "0", "x264-params": "intra-refresh=1"},
         "closed GOP, B pyramid": {"g": "12", "bf": "3", "x264-params": "b-pyramid=normal"}}


@pytest.fixture
def source(pack):
    return pack("core.video.source")


@pytest.fixture
def reading(pack):
    return pack("core.video.reading")


def never() -> None:
    pass


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_a_frame_reached_by_seeking_is_the_frame_reached_from_the_start(source, tmp_path, ending, form, monkeypatch):
    shown = wild.pictures(30, 64, 96)
    path = wild.write(tmp_path / f"clip.{ending}", shown, options=FORMS[form])
    file = source.VideoFile(path, "clip")
    count = len(file.times(never))
    straight = file.read(range(count), 64, 96, never)
    monkeypatch.setattr(source, "SEEK_BEYOND", 0.0)  # every frame by a jump of its own
    for n in range(count):
        alone = file.read([n], 64, 96, never)
        assert torch.equal(alone[n], straight[n]), n
        assert wild.number(alone[n].movedim(0, -1).numpy()) == n


class Marked:
    """A decoder's frame that says that it is broken."""

    is_corrupt = True

    def __init__(self, frame):
        self.pts, self.frame = frame.pts, frame


def test_frames_that_the_decoder_marks_as_broken_are_decoded_again_from_the_start(source, tmp_path, monkeypatch):
    """As where parameter sets change on the way: what follows a jump is grey, what follows the start is whole."""
    path = wild.write(tmp_path / "clip.mp4", wild.pictures(30, 64, 96))
    file = source.VideoFile(path, "clip")
    file.times(never)
    real = file.open

    class Container:
        """Frames after a jump are broken."""

        def __init__(self):
            self.real, self.streams, self.jumped = real(), None, False
            self.streams = self.real.streams

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.real.close()

        def seek(self, *args, **kwargs):
            self.jumped = True
            self.real.seek(*args, **kwargs)

        def decode(self, stream):
            for frame in self.real.decode(stream):
                yield Marked(frame) if self.jumped else frame

    monkeypatch.setattr(file, "open", Container)
    monkeypatch.setattr(source, "SEEK_BEYOND", 0.0)
    found = file.read([20, 25], 64, 96, never)
    assert {n: wild.number(p.movedim(0, -1).numpy()) for n, p in found.items()} == {20: 20, 25: 25}


def test_frames_broken_for_good_are_left_out_and_named_with_their_times(source, reading, tmp_path, monkeypatch):
    path = wild.write(tmp_path / "clip.mp4", wild.pictures(12, 64, 96))
    real = source.VideoFile._decoded

    def straight(self, check):
        for i, frame in enumerate(real(self, check)):
            yield Marked(frame) if i in (4, 5) else frame

    monkeypatch.setattr(source.VideoFile, "_decoded", straight)
    monkeypatch.setattr(source.VideoFile, "_read_seeking", lambda *_: {})
    found = reading.read(path)
    numbers = [wild.number((f * 255).numpy()) for f in found.frames]
    assert numbers == [0, 1, 2, 3, 3, 3, *range(6, 12)]
    assert any("2 frames repeat the one before (at 0.500, 0.625 s)" in note for note in found.notes)


def unknown_codec(path):
    """An undamaged file whose codec has four letters that nobody knows."""
    wild.write(path, wild.pictures(8, 64, 96))
    path.write_bytes(path.read_bytes().replace(b"avc1\0", b"xyz1\0"))
    return path


def test_unknown_codec(source, reading, tmp_path):
    path = unknown_codec(tmp_path / "clip.mp4")
    for read in (lambda: reading.read(path), lambda: source.VideoFile(path, "x").times(never)):
        with pytest.raises(source.VideoError, match="cannot decode"):
            read()


@pytest.mark.parametrize("ending", ["mkv", "mp4", "mov"])
def test_longer_sound_called_damaged(reading, tmp_path, ending):
    found = reading.read(wild.write(tmp_path / f"long.{ending}", wild.pictures(8, 64, 96), sound=2.0))
    assert len(found.frames) == 8 and found.notes == []


def test_sound_of_no_length(pack):
    """A sound that ends before the span is no sound, in Plan Clips as in Read Video; one that ends within it is what is left."""
    nodes = pack("nodes.video")
    audio = {"waveform": torch.rand(1, 2, 22050), "sample_rate": 44100}
    frames = torch.rand(16, 8, 8, 3)
    assert nodes.PlanClips.execute(frames, 8.0, -1.0, 4, 1, "equal", 1.0, -1.0, audio).result[4] is None
    heard = nodes.PlanClips.execute(frames, 8.0, -1.0, 4, 1, "equal", 0.25, -1.0, audio).result[4]
    assert heard["waveform"].shape == (1, 2, 11025)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(reading, tmp_path, monkeypatch):
    path = wild.write(tmp_path / "clip.mp4", wild.pictures(24, 64, 96))
    monkeypatch.setattr(reading, "room_for", lambda height, width: 8 * 64 * 96 // (height * width))
    with pytest.raises(ValueError, match=r"has 24 frames in this span, and there is memory for 8\. Set end to at most 1\.0 s"):
        reading.read(path)
    assert len(reading.read(path, end=1.0).frames) == 8
    small = reading.read(path, longer_side=48)
    assert small.frames.shape == (24, 32, 48, 3)
    assert [wild.number((f * 255).numpy()) for f in small.frames] == list(range(24))


@pytest.mark.parametrize("aspect", [Fraction(1, 60000), Fraction(500, 1)])
def test_absurd_pixels_are_taken_as_square(reading, tmp_path, aspect):
    path = wild.write(tmp_path / "clip.mkv", wild.pictures(4, 64, 96), aspect=aspect)
    assert reading.read(path).frames.shape == (4, 64, 96, 3)


def test_whole_colours(reading, tmp_path):
    """A lossless RGB file comes in with its very values."""
    shown = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)
    path = wild.write(tmp_path / "clip.mkv", shown, codec="ffv1", pixels="bgr0")
    assert np.array_equal((reading.read(path).frames * 255).round().byte().numpy(), shown)
