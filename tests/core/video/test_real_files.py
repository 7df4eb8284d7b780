"""Files as they come from cameras, editors and converters: read as a player reads them, and never the end of the server."""

from __future__ import annotations

import os
from contextlib import contextmanager
from fractions import Fraction

import av
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
def test_a_frame_reached_by_seeking_is_the_frame_reached_from_the_start(source, tmp_path, ending, form):
    shown = wild.pictures(30, 64, 96)
    path = wild.write(tmp_path / f"clip.{ending}", shown, options=FORMS[form])
    file = source.VideoFile(path, "clip")
    count = len(file.times(never))
    straight = file.read(range(count), 64, 96, never)
    for n in range(count):
        alone = file.read([n], 64, 96, never)  # by a jump of its own
        assert torch.equal(alone[n], straight[n]), n
        assert wild.number(alone[n].movedim(0, -1).numpy()) == n


class Answers(list):
    """What the decoder's process would send, kept: (header, payload)."""

    def __call__(self, header, payload=b""):
        self.append((header, bytes(payload)))

    def beat(self):
        pass


class Marked:
    """A decoder's frame that says that it is broken."""

    is_corrupt = True

    def __init__(self, frame):
        self.frame = frame

    def __getattr__(self, name):
        return getattr(self.frame, name)


@pytest.fixture
def breaking(pack, monkeypatch):
    """Let the decoder mark frames: a function of (number of the frame since a jump or the start, whether it was a jump)."""
    container, frames = pack("core.video.container"), pack("core.video.frames")

    def breaking(broken):
        opened, packets = container.opened, container.packets

        class Packet:
            def __init__(self, real, place):
                self.real, self.place = real, place

            def __getattr__(self, name):
                return getattr(self.real, name)

            def decode(self):
                out = []
                for frame in self.real.decode():
                    out.append(Marked(frame) if broken(self.place[0], self.place[1]) else frame)
                    self.place[0] += 1
                return out

        class Container:
            def __init__(self, real):
                self.real, self.place = real, [0, False]

            def __getattr__(self, name):
                return getattr(self.real, name)

            def seek(self, *args, **kwargs):
                self.place[:] = 0, True
                self.real.seek(*args, **kwargs)

        @contextmanager
        def opened_marked(path):
            with opened(path) as real:
                yield Container(real)

        def packets_marked(given, *args):
            real, place = (given.real, given.place) if isinstance(given, Container) else (given, [0, False])
            for packet in packets(real, *args):
                yield Packet(packet, place)

        monkeypatch.setattr(frames, "opened", opened_marked)
        monkeypatch.setattr(container, "packets", packets_marked)

    return breaking


def asked(pack, path, numbers):
    """Frames by number and the end's header, read in this process."""
    answers = Answers()
    pack("core.video.container").describe({"path": str(path)}, b"", answers)
    header, payload = answers.pop()
    n = header["count"]
    end = pack("core.video.frames").read({"path": str(path), "count": n, "numbered": header["numbered"], "numbers": numbers,
                                          "straight": False}, payload[8 * n:], answers)
    return {h["number"]: wild.number(np.frombuffer(data, np.uint8).reshape(h["height"], h["width"], 3))
            for h, data in answers}, end


def test_frames_that_the_decoder_marks_as_broken_are_decoded_again_from_the_start(pack, tmp_path, breaking):
    """As where parameter sets change on the way: what follows a jump is grey, what follows the start is whole."""
    path = wild.write(tmp_path / "clip.mp4", wild.pictures(30, 64, 96))
    breaking(lambda number, jumped: jumped)
    found, end = asked(pack, path, [2, 20, 25])
    assert found == {2: 2, 20: 20, 25: 25}
    assert end["damaged"] == [] and not end["jumps"], "the next request does not try to jump"


def test_after_a_mark_nothing_counts_up_to_the_next_keyframe(pack, tmp_path, breaking):
    """The decoder marks one frame after the jump; those after it build on it, and it may mark them late or not at all."""
    path = wild.write(tmp_path / "clip.mp4", wild.pictures(30, 64, 96), options={"g": "10", "sc_threshold": "0"})
    breaking(lambda number, jumped: jumped and number == 2)
    found, end = asked(pack, path, [20, 21, 23, 25])
    assert found == {20: 20, 21: 21, 23: 23, 25: 25} and not end["jumps"]


def test_what_builds_on_a_broken_frame_is_damaged(pack, tmp_path, breaking):
    path = wild.write(tmp_path / "clip.mp4", wild.pictures(30, 64, 96), options={"g": "10", "sc_threshold": "0"})
    breaking(lambda number, jumped: number == 14)
    found, end = asked(pack, path, list(range(30)))
    assert sorted(found) == [*range(14), *range(20, 30)] and end["damaged"] == [14, 15, 16, 17, 18, 19]


def test_frames_broken_for_good_are_left_out_and_named_with_their_times(reading):
    assert reading._damage([n / 8 for n in range(12)], [4, 5, 9], 1.5) == (
        "the file is damaged: 3 frames cannot be decoded and repeat the one before (at 0.500 to 0.625, 1.125 s), "
        "it can be read up to 1.500 s")


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


def test_a_high_rate_of_a_file_with_gaps_is_refused_before_it_is_read(reading, tmp_path, monkeypatch):
    path = wild.write(tmp_path / "gaps.mp4", wild.pictures(3, 64, 96), [0, 1, 20_000_000])
    monkeypatch.setattr(reading, "room_for", lambda height, width: 100_000)
    with pytest.raises(ValueError, match=r"has \d{8} frames .* memory for 100000\. Set end to at most 100\.0 s"):
        reading.read(path, 1000.0)
    found = reading.read(path, 1000.0, end=0.004)
    assert [wild.number((f * 255).numpy()) for f in found.frames] == [0, 1, 1, 1] and found.fps == 1000


def test_places_that_a_file_leaves_empty_show_the_frame_before(reading):
    """AVI files leave places empty where sound begins later; files that are cut off lack B frames before their last one."""
    for times, right in (([0, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4]), ([*range(10), 12], [*range(10), 9, 9, 10])):
        times = [t / 8 for t in times]
        found = reading.timing(times, 8.0)
        assert found.fps == 8.0 and reading.frames_at(times, found, -1.0, 0.0, -1.0) == (right, 8.0)
    for times, stated in (([0.0, 0.1, 0.3, 0.4, 0.57], 10.0), ([0.0, 0.125, 1.0], 8.0), ([0.0, 0.25, 0.375], None)):
        assert reading.timing(times, stated).fps == pytest.approx((len(times) - 1) / times[-1])


def test_sound_of_mp3_that_begins_late_in_an_avi(reading, tmp_path):
    path = tmp_path / "late.avi"
    with av.open(str(path), "w") as file:
        pictures, sound = file.add_stream("mpeg4", rate=8), file.add_stream("mp3", rate=44100, layout="stereo")
        pictures.height, pictures.width, pictures.pix_fmt = 64, 96, "yuv420p"
        tone = np.full((2, 44100), 0.5, np.float32) * np.sin(np.arange(44100) / 16).astype(np.float32)
        heard = av.AudioFrame.from_ndarray(tone, format="fltp", layout="stereo")
        heard.sample_rate, heard.pts, heard.time_base = 44100, 0, Fraction(1, 44100)
        packets = [*sound.encode(heard), *sound.encode()]
        for shown in wild.pictures(16, 64, 96):
            packets += pictures.encode(av.VideoFrame.from_ndarray(shown, format="rgb24"))
        for packet in sorted([*packets, *pictures.encode()], key=lambda p: float(p.dts * p.time_base)):
            file.mux(packet)
    data = bytearray(path.read_bytes())
    head = data.index(b"auds")
    scale, rate = np.frombuffer(data, "<u4", 2, head + 20)
    data[head + 28:head + 32] = int(rate / scale / 2).to_bytes(4, "little")  # when it begins: half a second
    path.write_bytes(data)
    found = reading.read(path)
    numbers = [wild.number((f * 255).numpy()) for f in found.frames]
    assert found.fps == 8.0 and numbers in ([*range(16)], [0, *range(16)])  # the encoder's delay may leave a place empty
    first = int((found.sound.wave.abs().amax(0) > 0.1).nonzero()[0])
    assert found.sound.rate == 44100 and first / 44100 == pytest.approx(0.5, abs=0.06)


def test_a_file_of_packets_without_length_is_whole(reading, tmp_path):
    found = reading.read(wild.write(tmp_path / "clip.wmv", wild.pictures(8, 64, 96), codec="wmv2"))
    assert len(found.frames) == 8 and found.notes == []


def test_a_pipe_is_not_waited_for(reading, source, tmp_path):
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(source.VideoError, match="is not a file, but a folder, a pipe or a device"):
        reading.read(tmp_path / "clip.mp4")


def test_of_a_still_and_a_film_the_film_is_read(reading, tmp_path):
    from PIL import Image

    shown = [Image.fromarray(picture) for picture in wild.pictures(4, 64, 96)]
    shown[0].save(tmp_path / "clip.avif", save_all=True, append_images=shown[1:], duration=125)
    assert [wild.number((f * 255).numpy()) for f in reading.read(tmp_path / "clip.avif").frames] == [0, 1, 2, 3]


@pytest.mark.parametrize("hole", [None, 0, 2])
def test_only_what_is_transparent_is_noted_as_transparent(reading, tmp_path, hole):
    """FFmpeg decodes every GIF to pictures with opacity."""
    from PIL import Image

    shown = [Image.fromarray(picture).convert("RGBA") for picture in wild.pictures(4, 64, 96)]
    for picture in [] if hole is None else shown[hole:]:
        picture.paste((0, 255, 0, 0), (20, 20, 40, 30))
    shown[0].save(tmp_path / "clip.gif", save_all=True, append_images=shown[1:], duration=120, disposal=2)
    found = reading.read(tmp_path / "clip.gif")
    assert found.notes == ([] if hole is None else ["the video has transparent parts; they are shown on black"])
    assert hole is None or found.frames[-1, 25, 30].max() == 0


@pytest.mark.parametrize("aspect", [Fraction(1, 60000), Fraction(500, 1)])
def test_absurd_pixels_are_taken_as_square(reading, tmp_path, aspect):
    path = wild.write(tmp_path / "clip.mkv", wild.pictures(4, 64, 96), aspect=aspect)
    assert reading.read(path).frames.shape == (4, 64, 96, 3)


def test_whole_colours(reading, tmp_path):
    """A lossless RGB file comes in with its very values."""
    shown = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)
    path = wild.write(tmp_path / "clip.mkv", shown, codec="ffv1", pixels="bgr0")
    assert np.array_equal((reading.read(path).frames * 255).round().byte().numpy(), shown)


def test_a_file_that_begins_within_a_group_of_pictures(reading, tmp_path):
    """An edit list leaves out what lies before its start: decoded, not shown, and no damage."""
    shown = wild.pictures(16, 64, 96)
    path = wild.write(tmp_path / "a.mp4", shown, [125 * i - 500 for i in range(16)], options={"bf": "2", "g": "6"})
    with av.open(str(path)) as file:
        straight = [wild.number(f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]
    assert straight == list(range(4, 16)), "the file is not what this test is about"
    video = reading.read(path)
    assert [wild.number(f.numpy() * 255) for f in video.frames] == straight
    assert video.fps == pytest.approx(8) and video.notes == []
    late = reading.read(path, start=0.5, end=1.0)
    assert [wild.number(f.numpy() * 255) for f in late.frames] == straight[4:8]


def test_times_of_decoding_are_put_in_the_order_of_showing(pack, reading, tmp_path):
    """AVI knows no other times; B frames come out of order."""
    path = wild.write(tmp_path / "a.avi", wild.pictures(24, 64, 96), options={"bf": "3", "g": "12"})
    video = reading.read(path)
    assert [wild.number(f.numpy() * 255) for f in video.frames] == list(range(24))
    assert video.fps == pytest.approx(8, rel=1e-3) and video.notes == []
    ordered = pack("core.video.container").in_order
    assert ordered([0, 20, 30, 10, 40, None, 60, 50]) == [0, 10, 20, 30, 40, None, 50, 60]
    assert ordered([0, 10, 20, 10**6, 10**6 + 10, 5, 15]) == [0, 10, 20, 10**6, 10**6 + 10, 5, 15], "clocks that were set"
    assert ordered([]) == [] and ordered([None, 7]) == [None, 7]


def test_a_broadcast_with_a_hole_names_it_and_one_of_segments_has_none(reading, tmp_path):
    """Lost packets that leave frames which decode, but wrongly, and which no decoder marks."""
    first, second = (wild.write(tmp_path / f"{i}.ts", wild.pictures(24, 64, 96)[12 * i:12 * i + 12],
                                options={"bf": "2", "g": "4"}).read_bytes() for i in range(2))
    (tmp_path / "joined.ts").write_bytes(first + second)
    joined = reading.read(tmp_path / "joined.ts")
    assert [wild.number(f.numpy() * 255) for f in joined.frames] == list(range(24)) and joined.notes == []
    both = bytearray(first + second)
    both[len(both) // 3:len(both) // 3 + 400] = bytes(400)
    (tmp_path / "hole.ts").write_bytes(both)
    holed = reading.read(tmp_path / "hole.ts")
    seen = [wild.number(f.numpy() * 255) for f in holed.frames]
    assert seen == sorted(seen), "what came is right, or the one before"
    assert seen[:2] == [0, 1] and seen[-14:] == list(range(10, 24))
    assert "the file is damaged" in holed.notes[0]
