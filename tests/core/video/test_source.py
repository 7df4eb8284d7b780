"""Frames by number and time, out of files encoded here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def videos(pack):
    return pack("core.video.source")


def frames(count: int, height: int = 48, width: int = 64) -> torch.Tensor:
    """Six bars, black or white, that tell the frame's number in binary."""
    bars = (torch.arange(count)[:, None] >> torch.arange(6)) & 1
    bars = bars.float().repeat_interleave(width // 6 + 1, 1)[:, :width]
    return bars[:, None, None].expand(-1, 3, height, -1).clone()


def encode(path, pictures, fps=8, codec="libx264", **options):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures.shape[-2:]
        stream.pix_fmt, stream.options = "yuv420p", options
        for picture in pictures:
            pixels = (picture.movedim(0, -1) * 255).round().byte().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def never() -> None:
    """Nobody cancels."""


def number(picture: torch.Tensor) -> int:
    step = picture.shape[-1] // 6 + 1
    return sum(int(picture[..., i * step + 2:(i + 1) * step - 2].float().mean() > 127) << i for i in range(6))


@pytest.mark.parametrize("name, codec, options", [
    ("a.mp4", "libx264", {"g": "12", "bf": "2"}), ("a.mkv", "libx264", {"g": "250"}), ("a.avi", "mpeg4", {}),
    ("a.mov", "mpeg4", {"g": "5"}), ("a.webm", "libvpx", {"b": "500k"}), ("a.h264", "libx264", {}),
    ("a.ts", "libx264", {"g": "10"})])
def test_every_frame_by_its_number(videos, tmp_path, name, codec, options):
    """The right frames, near and far, also with frames stored out of order and in files that cannot seek."""
    encode(tmp_path / name, frames(50), codec=codec, **options)
    clip = videos.VideoFile(tmp_path / name, name)
    times = clip.times(never)
    assert len(times) == 50 and times[0] == 0
    if name != "a.h264":  # a bare stream has no times of its own
        assert times == pytest.approx([n / 8 for n in range(50)], abs=2e-3)
    wanted = [0, 3, 4, 5, 40, 41, 49]
    found = clip.read(wanted, 48, 64, never)
    assert sorted(found) == wanted
    for n, picture in found.items():
        assert picture.shape == (3, 48, 64) and picture.dtype == torch.uint8
        assert number(picture) == n


def test_a_file_with_a_damaged_middle(videos, tmp_path):
    """Frames that cannot be decoded are missing; the others are right."""
    path = tmp_path / "a.ts"
    noise = torch.rand(48, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    encode(path, 0.8 * frames(48) + 0.2 * noise, g="8", bf="0")
    data = bytearray(path.read_bytes())
    begin = len(data) // 2
    data[begin:begin + 188 * 40] = bytes(188 * 40)
    path.write_bytes(data)
    clip = videos.VideoFile(path, "a.ts")
    count = len(clip.times(never))
    found = clip.read([0, 1, count - 1], 48, 64, never)
    assert 0 in found and 1 in found
    assert [number(found[n]) for n in (0, 1, count - 1)] == [0, 1, 47]


@pytest.mark.parametrize("content", [b"", b"no video" * 1000])
def test_unreadable(videos, tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(videos.VideoError, match="cannot be opened"):
        videos.VideoFile(path, "a.mp4").times(never)


def test_sound_alone(videos, tmp_path):
    path = tmp_path / "a.mka"
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(videos.VideoError, match="no picture stream"):
        videos.VideoFile(path, "a").times(never)


def test_cancel_while_reading(videos, tmp_path):
    encode(tmp_path / "a.mp4", frames(20))

    class Stop(Exception):
        pass

    def stop():
        raise Stop

    clip = videos.VideoFile(tmp_path / "a.mp4", "a")
    with pytest.raises(Stop):
        clip.times(stop)
    clip.times(never)
    with pytest.raises(Stop):
        clip.read([15], 48, 64, stop)


@pytest.mark.parametrize("size, out", [((40, 80), (40, 40)), ((80, 40), (20, 20)), ((30, 50), (64, 32)), ((7, 9), (48, 64))])
def test_crop_keeps_the_middle_and_the_aspect(videos, size, out):
    """A centred disc stays a centred disc."""
    y, x = torch.meshgrid(*(torch.arange(s) + 0.5 - s / 2 for s in size), indexing="ij")
    radius = min(size) / 3
    disc = ((radius - (x * x + y * y).sqrt() + 0.5).clamp(0, 1) * 255).byte().expand(3, -1, -1)
    made = videos.crop_to(disc, *out)
    assert made.shape == (3, *out) and made.dtype == torch.uint8
    shape = made[0].float() / 255
    scale = max(out[0] / size[0], out[1] / size[1])
    if 2 * radius * scale < min(out):
        assert float(shape.sum()) == pytest.approx(torch.pi * (radius * scale) ** 2, rel=0.1)
    middle = [(shape.sum(1 - d) * (torch.arange(out[d]) + 0.5)).sum() / shape.sum() for d in (0, 1)]
    assert middle == pytest.approx([out[0] / 2, out[1] / 2], abs=0.6)


def test_pixels_that_are_not_square(videos):
    """Twice as wide as high: 20 x 40 stored is 40 x 40 shown."""
    picture = torch.zeros(3, 40, 20, dtype=torch.uint8)
    picture[..., 10:] = 255
    made = videos.crop_to(picture, 40, 40, 2.0)
    assert made.shape == (3, 40, 40) and made[..., :18].max() < 30 and made[..., 22:].min() > 225


def test_a_file_with_such_pixels(videos, tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 40, 20, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        pixels = np.zeros((40, 20, 3), np.uint8)
        pixels[:, 10:] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    clip = videos.VideoFile(path, "a")
    clip.times(never)
    made = clip.read([0], 40, 40, never)[0]
    assert made[:, 2:, :16].max() < 40 and made[:, 2:, 24:].min() > 215  # cropping would have kept 5 rows in 10


def test_frames_are_made_smaller_as_pillow_does_it(videos):
    """Antialiased, within one level; of stripes finer than the result nothing but their mean is left."""
    picture = np.random.default_rng(0).integers(0, 256, (108, 192, 3), np.uint8).repeat(3, 0).repeat(3, 1)
    for size in ((162, 288), (100, 178)):
        made = videos.crop_to(torch.from_numpy(picture).movedim(-1, 0), *size).movedim(0, -1).numpy()
        wanted = np.asarray(Image.fromarray(picture).resize((round(576 * size[0] / 324), size[0]), Image.BICUBIC))
        assert made.shape == (*size, 3) and np.abs(made.astype(int) - wanted[:, :size[1]]).max() <= 1
    stripes = np.zeros((64, 640, 3), np.uint8)
    stripes[:, ::2] = 200
    made = videos.crop_to(torch.from_numpy(stripes).movedim(-1, 0), 8, 80).numpy()
    assert np.abs(made[:, :, 4:-4].astype(int) - 100).max() <= 1


def test_finding(videos, tmp_path):
    """Videos everywhere, folders of pictures, natural order; thumbnails and texts beside videos are none."""
    for name in ("v10.mp4", "v2.mp4", "readme.txt", ".hidden.mp4", "thumb.jpg", "thumb2.jpg", "deep/er/odd.xyz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for n in (10, 9, 1):
        (tmp_path / "shots").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (n, n, n)).save(tmp_path / "shots" / f"f{n}.png")
    (tmp_path / "single").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "single" / "one.png")
    clips = videos.find_clips(tmp_path, 4.0)
    assert [c.name for c in clips] == ["v2.mp4", "v10.mp4", "deep/er/odd.xyz", "shots"]
    shots = clips[-1]
    assert shots.times(never) == [0, 0.25, 0.5]
    assert [int(shots.read([n], 8, 8, never)[n][0, 0, 0]) for n in range(3)] == [1, 9, 10]
    (tmp_path / "shots" / "f9.png").write_bytes(b"damaged")
    assert sorted(shots.read([0, 1, 2], 8, 8, never)) == [0, 2]
    assert [c.name for c in videos.find_clips(tmp_path / "shots", 4.0)] == ["shots"]
    for wrong, message in ((tmp_path / "single", "holds no videos"), (tmp_path / "none", "is not a folder")):
        with pytest.raises(videos.VideoError, match=message):
            videos.find_clips(wrong, 4.0)


def test_batches(videos):
    """The name tells content; values outside [0, 1] and NaN do no harm."""
    images = torch.rand(3, 16, 16, 3)
    clip = videos.FrameBatch(images, 8.0)
    assert clip.name == videos.FrameBatch(images.clone(), 8.0).name != videos.FrameBatch(images.flip(0), 8.0).name
    read = clip.read([1], 16, 16, never)[1]
    assert (read.float() / 255 - images[1].movedim(-1, 0)).abs().max() < 0.003
    wild = videos.FrameBatch(torch.full((1, 8, 8, 4), float("nan")), 8.0)
    assert wild.read([0], 8, 8, never)[0].max() == 0


def test_superscript_name_and_others_with_odd_digits(videos):
    """Case superscript_name: digits that are no numbers, names of which one begins another, and numbers without end."""
    names = ["10²3.mp4", "²", "\u0663.mp4", "5m²2.mp4", "clip1\u2461.mp4", "clip", "clip2", "clip10", "a" + "9" * 5000, "a8",
             "a008", "", "1"]
    order = sorted(names, key=videos.natural)
    assert [n for n in order if n.startswith("clip")] == ["clip", "clip1\u2461.mp4", "clip2", "clip10"]
    assert order.index("a8") < order.index("a" + "9" * 5000)
    assert sorted(order[::-1], key=videos.natural) == order


def test_superscript_name_in_a_folder(videos, tmp_path):
    for name in ("clip", "clip2", "clip1²", "²"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}²{i}.png")
    assert [c.name for c in videos.find_clips(tmp_path, 4.0)] == ["clip", "clip1²", "clip2", "²"]


@pytest.mark.parametrize("stray", ["0.caption", "LICENSE", "frames.md5", "0.exr", "0.avif", "meta.pkl", "train.toml", "notes.rtf",
                                   "info.txt", "Makefile", "sound.m4a", "poses.xyz", "0.tags", "config", "weights.bin"])
def test_stray_file_beside_frames(videos, tmp_path, stray):
    """Case stray_file: a file that is neither picture nor video does not hide the frames beside it."""
    for i in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / stray).write_bytes(b"no video at all\n")
    clips = videos.find_clips(tmp_path, 8.0)
    (frames,) = [c for c in clips if isinstance(c, videos.PictureFolder)]
    assert len(frames.paths) == 4
    for clip in clips:  # one of unknown kind is tried, and named
        if clip is not frames:
            with pytest.raises(videos.VideoError):
                clip.times(never)


def test_a_video_beside_pictures_still_makes_them_thumbnails(videos, tmp_path):
    encode(tmp_path / "clip.mp4", frames(4))
    for i in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    assert [type(c) for c in videos.find_clips(tmp_path, 8.0)] == [videos.VideoFile]
