"""Video files as an edit needs them: upright, whole frames at an even rate, and the sound of just that span.

Legend: T frames, H W pixels, C channels, S samples. Times are seconds from the first frame.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from .clips import whole
from .source import VideoError, VideoFile

EVEN = 0.5  # frames that a time may be off from even spacing and still count as evenly spaced


class Sound(NamedTuple):
    """wave: (C, S) in [-1, 1], C 1 or 2.  rate: samples a second."""

    wave: Tensor
    rate: int


class Video(NamedTuple):
    """frames: (T, H, W, 3) in [0, 1].  fps: of these frames.  sound: of their span.  notes: what was done to get there."""

    frames: Tensor
    fps: float
    sound: Sound | None
    notes: list[str]


class Timing(NamedTuple):
    """Of a whole file.

    fps: mean frames a second.  fastest: where they follow one another most closely.  even: whether all are as far apart.
    """

    fps: float
    fastest: float
    even: bool


def timing(times: Sequence[float], stated: float | None = None) -> Timing:
    """Rates of ascending times.

    Args:
        stated: by the file; taken if the times agree, as it is not rounded to the file's ticks.
    """
    if len(times) < 2 or times[-1] <= 0:
        return Timing(stated or 25.0, stated or 25.0, True)
    fps = (len(times) - 1) / times[-1]
    if stated and all(abs(time * stated - i) < EVEN for i, time in enumerate(times)):
        return Timing(stated, stated, True)
    even = all(abs(time * fps - i) < EVEN for i, time in enumerate(times))
    closest = min(b - a for a, b in zip(times, times[1:], strict=False) if b > a)
    return Timing(fps, fps if even else 1 / closest, even)


def frames_at(times: Sequence[float], found: Timing, rate: float, start: float, end: float,
              most: int = 10_000_000) -> tuple[list[int], float]:
    """The frames shown at evenly spaced moments of a span, and how many a second that are.

    Args:
        rate: frames a second; -1 is the mean, which takes every frame of an even video once.
        start, end: seconds; an end of -1 is the video's.
        most: frames that there is room for.

    Raises:
        ValueError: nothing is left, or more than there is room for, or rate is higher than the video has anywhere; the text goes on after the video's name.
    """
    length = len(times) / found.fps
    stop = length if end == -1 else min(end, length)
    if rate != -1 and not 0 < rate <= found.fastest * 1.001:
        raise ValueError(f"has at most {found.fastest:g} frames a second; fps is {rate:g}. Choose less, or -1 for all")
    taken = (stop - start) * (found.fps if rate == -1 else rate)
    if taken > most:
        raise ValueError(f"has {taken:.0f} frames in this span, and there is memory for {most}. Set end to at most "
                         f"{start + most / (found.fps if rate == -1 else rate):.1f} s, take fewer frames a second with fps, or set "
                         "longer_side")
    if found.even and rate == -1:
        numbers = list(range(whole(start * found.fps), min(whole(stop * found.fps), len(times))))
        rate = found.fps
    else:
        rate = found.fps if rate == -1 else rate
        # A frame is shown from its time on; a quarter frame of the file's is allowed for rounded times.
        moments = [start + k / rate + 0.25 / found.fastest for k in range(whole((stop - start) * rate))]
        numbers = [max(0, bisect_right(times, moment) - 1) for moment in moments]
    if not numbers:
        raise ValueError(f"has no frame between {start:g} s and {stop:g} s; it is {length:.3f} s long")
    return numbers, rate


def room_for(height: int, width: int) -> int:
    """Frames of a size that the free memory holds as float32, with as much left for those who use them."""
    return int(psutil.virtual_memory().available / 2 / (height * width * 3 * 4))


def read(path: Path, rate: float = -1.0, start: float = 0.0, end: float = -1.0, even_size: bool = False, longer_side: int = 0,
         watch: Callable[[int], Callable[[], None]] = lambda total: lambda: None) -> Video:
    """A span of a video file.

    Frames that cannot be decoded repeat the one before; at the end they are left out. A turn that the file asks for is
    made, and pixels become square.

    Args:
        rate, start, end: see `frames_at`.  even_size: leave out the last row or column of odd sizes.
        longer_side: pixels to make larger frames smaller to; 0 keeps the file's size.
        watch: told how many frames are to come, gives what to call for each; what that raises ends the reading.

    Raises:
        VideoError: the file cannot be read.
        ValueError: see `frames_at`. Both texts go on after the file's name.
    """
    file = VideoFile(path, path.name)
    times = file.times(watch(1))
    height, width, stated, promised = _described(file)
    if 0 < longer_side < max(height, width):
        height, width = (max(1, round(side * longer_side / max(height, width))) for side in (height, width))
    found = timing(times, stated)
    numbers, fps = frames_at(times, found, rate, start, end, room_for(height, width))
    check = watch(numbers[-1] + 1 - numbers[0])
    decoded = file.read(sorted(set(numbers)), height, width, check)
    last = max(decoded, default=-1)
    shown = [n for n in numbers if n <= last]
    if not shown:
        raise VideoError("has no frame that can be decoded in this span")
    notes = []
    if not found.even:
        notes.append(f"frames were {1 / found.fastest:.3f} s apart and more; those shown every {1 / fps:.3f} s were taken")
    notes += [f"HDR ({kind}) was made into ordinary colours; what is brighter than reference white is pressed together"
              for kind in sorted(file.colours.hdr)]
    lost = sorted({n for n in shown if n not in decoded})
    ends_early = len(times) < promised and (end == -1 or end > len(times) / found.fps)
    if len(shown) < len(numbers) or lost or ends_early:
        at = ", ".join(f"{times[n]:.3f}" for n in lost[:8]) + (", ..." if len(lost) > 8 else "")
        notes.append("the file is damaged: " + (f"{len(lost)} frames repeat the one before (at {at} s), " if lost else "")
                     + f"it can be read up to {start + len(shown) / fps:.3f} s")
    frames = torch.empty(len(shown), height, width, 3)
    known = decoded[min(decoded)]
    last_use = {n: i for i, n in enumerate(shown)}
    for i, n in enumerate(shown):
        known = decoded.get(n, known)
        if last_use[n] == i:  # the bytes go as the frames come
            decoded.pop(n, None)
        frames[i] = known.movedim(0, -1).float() / 255
    begin = times[shown[0]] if found.even and rate == -1 else start
    return _finished(frames, fps, _sound(path, begin, begin + len(shown) / fps, check), even_size, notes)


def take(frames: Tensor, fps: float, sound: Sound | None, rate: float = -1.0, start: float = 0.0, end: float = -1.0,
         even_size: bool = False, longer_side: int = 0) -> Video:
    """The same of (T, H, W, 3) frames in memory, at an even rate."""
    numbers, rate = frames_at([i / fps for i in range(len(frames))], Timing(fps, fps, True), rate, start, end)
    if 0 < longer_side < max(frames.shape[1:3]):
        size = [max(1, round(side * longer_side / max(frames.shape[1:3]))) for side in frames.shape[1:3]]
        smaller = [F.interpolate(frames[n, None, ..., :3].movedim(-1, 1), size, mode="bicubic", antialias=True) for n in numbers]
        frames, numbers = torch.cat(smaller).clamp(0, 1).movedim(1, -1), list(range(len(numbers)))
    heard = None if sound is None else trimmed(sound, start, start + len(numbers) / rate)
    return _finished(frames[numbers][..., :3], rate, heard, even_size, [])


def _finished(frames: Tensor, fps: float, sound: Sound | None, even_size: bool, notes: list[str]) -> Video:
    height, width = frames.shape[1:3]
    if even_size and (height % 2 or width % 2):
        frames = frames[:, :height - height % 2, :width - width % 2]
        notes.append(f"{width} x {height} pixels became {frames.shape[2]} x {frames.shape[1]}; h264 has even sizes only")
    return Video(frames, fps, sound, notes)


def _described(file: VideoFile) -> tuple[int, int, float | None, int]:
    """Upright height and width in square pixels, the file's own frames a second, and how many frames it promises."""
    with file.open() as container:
        stream = container.streams.video[0]
        try:
            frame = next(container.decode(stream))
        except (StopIteration, OSError, ValueError):
            raise VideoError("has no frame that can be decoded") from None
        height, width = frame.height, frame.width
        aspect = file.aspect
        width = round(width * aspect) if aspect > 1 else width  # nothing is made smaller
        height = round(height / aspect) if aspect < 1 else height
        if round((getattr(frame, "rotation", 0) or 0) / 90) % 2:
            height, width = width, height
        rate = float(stream.average_rate) if stream.average_rate else None
        promised = stream.frames
        if not promised and rate:
            promised = int(0.9 * _length(stream) * rate)
        return height, width, rate, promised


def _length(stream: av.VideoStream) -> float:
    """Seconds of the pictures as the file states them; 0 where it states only how long all tracks are, for sound or
    subtitles may go on after the last picture."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    hours, minutes, seconds = (stream.metadata.get("DURATION", "") + "::").split(":")[:3]  # Matroska's, hh:mm:ss.fraction
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0


def _sound(path: Path, start: float, end: float, check: Callable[[], None]) -> Sound | None:
    """The first sound track between two times of the pictures, silence before it begins; None if there is none."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        pictures, track = container.streams.video[0], container.streams.audio[0]
        if track.codec_context is None:  # no decoder for it here
            return None
        origin = float((pictures.start_time or 0) * pictures.time_base)
        stereo = (track.codec_context.channels or 1) > 1
        resampler = av.AudioResampler(format="fltp", layout="stereo" if stereo else "mono")  # Save Video knows no others
        rate, begin, parts = 0, 0.0, []
        try:
            for frame in container.decode(track):
                check()
                time = (frame.time or 0.0) - origin
                if time >= end:
                    break
                pieces = resampler.resample(frame)
                if time + frame.samples / frame.sample_rate > start:
                    rate, begin = frame.sample_rate, begin if parts else time
                    parts += [torch.from_numpy(piece.to_ndarray()) for piece in pieces]
        except (OSError, ValueError):  # a damaged end is an end
            pass
    if not parts:
        return None
    late = max(0, round((begin - start) * rate))
    wave = F.pad(torch.cat(parts, 1), (late, 0))
    return trimmed(Sound(wave, rate), max(0.0, start - begin), max(0.0, start - begin) + end - start)


def trimmed(sound: Sound, start: float, end: float) -> Sound | None:
    """A span of a sound; what lies outside of it is left out. None if the sound ends before the span begins."""
    first, last = (round(max(0.0, time) * sound.rate) for time in (start, end))
    wave = sound.wave[..., first:last]
    return Sound(wave, sound.rate) if wave.shape[-1] else None
