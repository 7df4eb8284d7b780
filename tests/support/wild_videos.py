"""Short videos as cameras, phones, screen recorders and broken downloads leave them.

Every frame tells its number in binary by bars, and which side is up by a red mark in its upper left corner.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BARS = 5
RATE = 8
SOUND = 44_100  # samples a second
UNEVEN = (0, 40, 80, 120, 600, 640, 900, 940)  # milliseconds of a phone's frames in the dark: three bursts
TICK = 1000  # of the time base


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """(count, height, width, 3) uint8."""
    out = np.full((count, height, width, 3), 40, np.uint8)
    for n in range(count):
        for i in range(BARS):
            left, right = i * width // BARS, (i + 1) * width // BARS
            out[n, height // 2:, left:right] = 220 if n >> i & 1 else 20
        out[n, :height // 4, :width // 4] = 230, 30, 30
    return out


def number(picture: np.ndarray) -> int:
    """What the bars of an upright (height, width, 3) picture tell, values of 0 to 255."""
    height, width = picture.shape[:2]
    lower = picture[5 * height // 8:7 * height // 8].mean((0, 2))
    return sum(int(lower[(2 * i + 1) * width // (2 * BARS)] > 120) << i for i in range(BARS))


def upright(picture: np.ndarray) -> bool:
    """Whether the red mark lies in the upper left."""
    red = picture[..., 0].astype(float) - picture[..., 1]
    y, x = np.unravel_index(red.argmax(), red.shape)
    return bool(y < picture.shape[0] / 2 and x < picture.shape[1] / 2)


def write(path: Path, shown: np.ndarray, times: Sequence[int] | None = None, codec: str = "libx264", pixels: str = "yuv420p",
          sound: float | None = None, options: dict[str, str] | None = None, aspect: Fraction | None = None) -> Path:
    """Encode a video.

    Args:
        shown: (T, H, W, 3) uint8.  times: milliseconds of each frame; at RATE if not given.
        sound: seconds of a stereo tone that rises from 200 to 1000 Hz over two seconds, so that its pitch tells the place.
        aspect: width of a pixel in parts of its height.
    """
    with av.open(str(path), "w", options={"movflags": "+faststart"} if path.suffix in (".mp4", ".mov") else {}) as file:
        stream = file.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *shown.shape[1:3], pixels
        stream.options = {"crf": "12", "g": "4", "bf": "0", **(options or {})} if "264" in codec else options or {}
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICK)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        tone = file.add_stream("aac", rate=SOUND, layout="stereo") if sound else None
        for i, picture in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = times[i] if times else i * TICK // RATE, Fraction(1, TICK)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if tone is not None:
            seconds = np.arange(round(sound * SOUND)) / SOUND
            wave = (0.3 * np.sin(2 * np.pi * (200 * seconds + 200 * seconds**2))).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = SOUND, 0
            file.mux(tone.encode(frame))
            file.mux(tone.encode())
    return path


def pitch(wave: np.ndarray) -> float:
    """Mean frequency of (samples,), weighted by power, Hz."""
    power = np.abs(np.fft.rfft(wave)) ** 2
    return float((power * np.fft.rfftfreq(len(wave), 1 / SOUND)).sum() / power.sum())


def turn(path: Path) -> Path:
    """Mark an MP4 to be shown turned by 90 degrees clockwise, as phones do: the display matrix of its first track."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4
    place += {0: 40, 1: 52}[data[place]]  # version 1 has longer times
    data[place:place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    """Keep only the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    return path


def make(folder: Path) -> dict[str, Path]:
    """All of them: kind -> file."""
    def at(name: str) -> Path:
        return folder / f"wild_{name}"

    noise = np.random.default_rng(0).integers(-20, 20, (8, 64, 96, 3))
    noisy = (pictures(8, 64, 96) + noise).clip(0, 255).astype(np.uint8)  # so that the frames are most of the file
    sideways = np.rot90(pictures(8, 96, 64), 1, (1, 2)).copy()  # the camera's chip: 64 high, 96 wide
    return {
        "plain": write(at("plain.mp4"), pictures(8, 64, 96)),
        "uneven": write(at("uneven.mp4"), pictures(8, 64, 96), UNEVEN, sound=1.1),
        "odd": write(at("odd.webm"), pictures(8, 61, 97), codec="libvpx-vp9"),
        "portrait": write(at("portrait.mp4"), pictures(8, 96, 64)),
        "turned": turn(write(at("turned.mp4"), sideways)),
        "wide": write(at("wide.mp4"), pictures(8, 64, 72), aspect=Fraction(4, 3)),
        "one": write(at("one.mp4"), pictures(1, 64, 96)),
        "two": write(at("two.mp4"), pictures(2, 64, 96)),
        "deep": write(at("deep.mp4"), pictures(8, 64, 96), pixels="yuv420p10le"),
        "sound": write(at("sound.mp4"), pictures(8, 64, 96), sound=1.0),
        "cut": cut(write(at("cut.mp4"), noisy), 0.6),
        "cut_mkv": cut(write(at("cut.mkv"), noisy), 0.6),
        "headless": cut(write(at("headless.mov"), noisy, options={}), 0.02),
    }
