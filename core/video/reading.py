"""Reading video files as an edit needs them: upright, whole frames at an even rate, and the sound of the same span.

Legend: T frames, H W pixels, C channels, S samples. Times are seconds from the first frame.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from .clips import whole
from .source import VideoError, VideoFile, crop_to

EVEN = 0.5  # frames that a time may be off from even spacing and still count as evenly spaced
NEAR = 0.1  # frames that a time may be off a multiple of the stated spacing: times are rounded to milliseconds
WRITERS = 2  # threads that fill the result
LEFT_OUT = 0.25  # share of the frames up to which missing ones leave the stated rate the video's


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

    fps: mean frames a second; the stated ones where all times are multiples of theirs and few are left out, as in AVI files, whose
    empty places show the frame before.  fastest: where they follow one another most closely.  even: whether all are as far apart.
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
    few = stated is not None and (1 - LEFT_OUT) * stated <= fps <= stated
    if few and not even and all(abs(time * stated - round(time * stated)) < NEAR for time in times):
        fps = stated
    closest = min(b - a for a, b in zip(times, times[1:], strict=False) if b > a)
    return Timing(fps, fps if even else 1 / closest, even)


def frames_at(times: Sequence[float], found: Timing, rate: float, start: float, end: float,
              most: int = 10_000_000) -> tuple[list[int], float]:
    """The frames shown at evenly spaced moments of a span, and their rate in frames per second.

    Args:
        rate: frames a second; -1 is the mean, which takes every frame of an even video once.
        start, end: seconds; an end of -1 is the video's.
        most: the number of frames that fit into memory.

    Raises:
        ValueError: nothing is left, or more than there is room for, or rate is higher than the video has anywhere; the text goes on
            after the video's name.
    """
    length = len(times) / found.fps if found.even else times[-1] + 1 / found.fps
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
         watch: Callable[[int, int], None] = lambda done, total: None) -> Video:
    """A span of a video file.

    Frames that cannot be decoded repeat the one before; at the end they are left out. A turn that the file asks for is
    made, and pixels become square.

    Args:
        rate, start, end: see `frames_at`.  even_size: leave out the last row or column of odd sizes.
        longer_side: pixels to make larger frames smaller to; 0 keeps the file's size.
        watch: told how many frames have come and how many are to come, at each and four times a second; what it raises ends
            the reading.

    Raises:
        VideoError: the file cannot be read.
        ValueError: see `frames_at`. Both texts go on after the file's name.
    """
    file = VideoFile(path, path.name)
    try:
        return _read(file, rate, start, end, even_size, longer_side, watch)
    finally:
        file.close()


def _read(file: VideoFile, rate: float, start: float, end: float, even_size: bool, longer_side: int,
          watch: Callable[[int, int], None]) -> Video:
    about = file.describe(lambda: watch(0, 1))
    height, width = reduced(about.height, about.width, longer_side)
    found = timing(about.times, about.rate)
    numbers, fps = frames_at(about.times, found, rate, start, end, room_for(height, width))
    notes = list(about.notes)
    if not found.even:
        notes.append(f"frames were {1 / found.fastest:.3f} s apart and more; those shown every {1 / fps:.3f} s were taken")
    size = evened(height, width, even_size)
    if size != (height, width):
        notes.append(f"{width} x {height} pixels became {size[1]} x {size[0]}; h264 has even sizes only")
    frames, came, done = torch.empty(len(numbers), *size, 3), set(), 0
    places: dict[int, list[int]] = {}
    for i, n in enumerate(numbers):
        places.setdefault(n, []).append(i)

    def check() -> None:
        watch(done, len(places))

    with _Filling(frames) as filling:
        for n, picture, aspect in file.frames(numbers, check):
            if picture.shape[:2] != (height, width) or aspect != 1.0:
                picture = crop_to(torch.from_numpy(picture).movedim(-1, 0), height, width, aspect).movedim(0, -1).numpy()
            for i in places[n]:
                filling.put(i, picture[:size[0], :size[1]])
            came.add(n)
            done = len(came)
    if not came:
        raise VideoError("has no frame that can be decoded in this span")
    notes += sorted(file.notes)
    shown = [n for n in numbers if n <= max(came)]
    _repeat(frames, shown, came)
    ends_early = about.cut and (end == -1 or end > len(about.times) / found.fps)
    if len(shown) < len(numbers) or ends_early or file.damaged:
        notes.append(_damage(about.times, sorted(file.damaged & set(shown)), start + len(shown) / fps))
    begin = about.times[shown[0]] if found.even and rate == -1 else start
    wave, samples, more = file.sound(begin, begin + len(shown) / fps, check)
    sound = None if wave is None else Sound(torch.from_numpy(wave), samples)
    return Video(frames[:len(shown)], fps, sound, notes + more)


def reduced(height: int, width: int, longer_side: int) -> tuple[int, int]:
    """Height and width with the longer of them at most `longer_side`; 0 changes nothing."""
    longer = max(height, width)
    return (height, width) if not 0 < longer_side < longer else (max(1, round(height * longer_side / longer)),
                                                                 max(1, round(width * longer_side / longer)))


def evened(height: int, width: int, even_size: bool) -> tuple[int, int]:
    """Height and width without the last row or column of odd sizes, if that is asked for."""
    return (height - height % 2, width - width % 2) if even_size and min(height, width) > 1 else (height, width)


class _Filling:
    """Puts pictures as numbers in [0, 1] into a tensor, in threads of its own: most of the work is the system's, which gives memory
    to the result. NumPy does it, as torch's threads spin between two pictures and take the decoder's processor."""

    def __init__(self, frames: Tensor):
        self.frames, self.pool, self.running = frames.numpy(), ThreadPoolExecutor(WRITERS), deque()

    def __enter__(self) -> _Filling:
        return self

    def put(self, place: int, picture: np.ndarray) -> None:
        """Put a (H, W, 3) uint8 picture into a place, now or soon."""
        self.running.append(self.pool.submit(np.divide, picture, np.float32(255), out=self.frames[place], casting="unsafe",
                                             dtype=np.float32))
        if len(self.running) > WRITERS:
            self.running.popleft().result()

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        while self.running:
            self.running.popleft().result()


def _repeat(frames: Tensor, shown: Sequence[int], came: set[int]) -> None:
    """Replace each missing frame by the one before it; missing frames at the start by the first one that came."""
    first = next(i for i, n in enumerate(shown) if n in came)
    for i, n in enumerate(shown):
        if n not in came:
            frames[i] = frames[i - 1 if i > first else first]


def _damage(times: Sequence[float], lost: Sequence[int], end: float) -> str:
    """What cannot be decoded, with its times."""
    spans: list[list[int]] = []
    for n in lost:
        if spans and spans[-1][1] == n - 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    at = ", ".join(f"{times[a]:.3f}" + (f" to {times[b]:.3f}" if b > a else "") for a, b in spans[:8])
    at += ", ..." if len(spans) > 8 else ""
    repeated = f"{len(lost)} frame{'s' if len(lost) > 1 else ''} cannot be decoded and repeat the one before (at {at} s), "
    return "the file is damaged: " + (repeated if lost else "") + f"it can be read up to {end:.3f} s"


def take(frames: Tensor, fps: float, sound: Sound | None, rate: float = -1.0, start: float = 0.0, end: float = -1.0,
         even_size: bool = False, longer_side: int = 0) -> Video:
    """The same for (T, H, W, 3) frames in memory, at an even rate."""
    numbers, rate = frames_at([i / fps for i in range(len(frames))], Timing(fps, fps, True), rate, start, end)
    if 0 < longer_side < max(frames.shape[1:3]):
        size = reduced(*frames.shape[1:3], longer_side)
        smaller = [F.interpolate(frames[n, None, ..., :3].movedim(-1, 1), size, mode="bicubic", antialias=True) for n in numbers]
        frames, numbers = torch.cat(smaller).clamp(0, 1).movedim(1, -1), list(range(len(numbers)))
    heard = None if sound is None else trimmed(sound, start, start + len(numbers) / rate)
    return _finished(frames[numbers][..., :3], rate, heard, even_size, [])


def _finished(frames: Tensor, fps: float, sound: Sound | None, even_size: bool, notes: list[str]) -> Video:
    height, width = frames.shape[1:3]
    even = [side - side % 2 if side > 1 else side for side in (height, width)]  # a line of one pixel has no even part
    if even_size and even != [height, width]:
        frames = frames[:, :even[0], :even[1]]
        notes.append(f"{width} x {height} pixels became {frames.shape[2]} x {frames.shape[1]}; h264 has even sizes only")
    return Video(frames, fps, sound, notes)


def trimmed(sound: Sound, start: float, end: float) -> Sound | None:
    """A span of a sound; what lies outside of it is left out. None if the sound ends before the span begins."""
    first, last = (round(max(0.0, time) * sound.rate) for time in (start, end))
    wave = sound.wave[..., first:last]
    return Sound(wave, sound.rate) if wave.shape[-1] else None
