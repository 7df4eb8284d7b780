"""A long video as clips that overlap (I2VEdit, section 4.1 and Appendix C; frame choice as in the released code)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Remainder = Literal["equal", "short", "join"]
REMAINDERS = ("equal", "short", "join")


@dataclass(frozen=True)
class ClipPlan:
    """Which frames of a video make which clip.

    frames: of the video, those that are used, in order.  clips: (begin, end) over them, end excluded; each clip begins
    `overlap` frames before the end of the one before it.  fps: of the chosen frames.
    """

    frames: tuple[int, ...]
    clips: tuple[tuple[int, int], ...]
    overlap: int
    fps: float

    @property
    def longest(self) -> int:
        """Frames of the longest clip."""
        return max(end - begin for begin, end in self.clips)

    def dropped(self, clip: int) -> int:
        """Number of frames at a clip's beginning that the clip before it has already produced."""
        return 0 if clip == 0 else self.clips[clip - 1][1] - self.clips[clip][0]

    def describe(self) -> str:
        """The plan in words, for the user."""
        lengths = [end - begin for begin, end in self.clips]
        same = f"{lengths[0]}" if len(set(lengths)) == 1 else ", ".join(map(str, lengths))
        return (f"{len(self.frames)} frames at {self.fps:g} a second, {len(self.frames) / self.fps:.2f} s\n"
                f"{len(self.clips)} clip{'s' if len(self.clips) > 1 else ''} of {same} frames, overlap {self.overlap}")


def whole(frames: float) -> int:
    """Frames that fit, for a number of frames that may be short of a whole one by rounding: 29 / 23.976 * 23.976 < 29."""
    return int(frames + 1e-6)


def choose_frames(count: int, fps: float, start: float = 0.0, end: float = -1.0, rate: float = -1.0) -> list[int]:
    """Frame numbers for a span of time at another rate.

    Args:
        count, fps: of the video.  start, end: seconds; an end of -1 is the video's.  rate: frames a second; -1 is the video's.

    Raises:
        ValueError: nothing is left, or rate is higher than the video's; the text names the values.
    """
    if rate != -1 and rate > fps:
        raise ValueError(f"the rate is {rate:g} frames a second, the video has {fps:g}; choose {fps:g} or less")
    stop = count / fps if end == -1 else min(end, count / fps)
    first, last = whole(start * fps), whole(stop * fps)
    number = last - first if rate == -1 else whole((stop - start) * rate)
    if number < 1 or last <= first:
        raise ValueError(f"no frame lies between {start:g} s and {stop:g} s of a video of {count} frames at {fps:g} a second")
    return [min(int(first + k * (last - first) / number), count - 1) for k in range(number)]


def split(count: int, length: int, overlap: int = 1, remainder: Remainder = "short") -> list[tuple[int, int]]:
    """(begin, end) of clips over `count` frames.

    Args:
        length: frames of a clip.  overlap: frames that a clip shares with the one before; less than 1 is none.
        remainder: what happens to a last clip that is not full. short: it stays, as released; it can be as short as
            overlap + 1 frames. join: a last clip under half the length is added to the one before it. equal: all clips get
            nearly the same length, at most `length`.

    Raises:
        ValueError: impossible numbers; the text names them.
    """
    shared = max(overlap, 0)
    if count < 1:
        raise ValueError("a video needs at least one frame")
    if length < 2 or shared >= length:
        raise ValueError(f"clips of {length} frames cannot overlap by {overlap}; length must be at least 2 and larger than "
                         "overlap")
    clips: list[tuple[int, int]] = []
    begin = 0
    while not clips or clips[-1][1] < count:
        begin = max(clips[-1][1] - shared, 0) if clips else 0
        clips.append((begin, min(begin + length, count)))
    if remainder == "join" and len(clips) > 1 and clips[-1][1] - clips[-1][0] < max(2, length / 2):
        clips[-2:] = [(clips[-2][0], clips[-1][1])]
    if remainder == "equal" and len(clips) > 1:
        number, own = len(clips), count - shared  # each clip adds its length minus the overlap
        edges = [round(i * own / number) for i in range(number + 1)]
        clips = [(a, b + shared) for a, b in zip(edges, edges[1:], strict=False)]
    return clips


def plan(count: int, fps: float, length: int, overlap: int = 1, start: float = 0.0, end: float = -1.0, rate: float = -1.0,
         remainder: Remainder = "equal") -> ClipPlan:
    """Choose frames and split them; see `choose_frames` and `split`."""
    frames = choose_frames(count, fps, start, end, rate)
    stop = count / fps if end == -1 else min(end, count / fps)
    # Not the spacing of the frames themselves, which are whole: this many, over this many of the video's.
    spacing = (whole(stop * fps) - whole(start * fps)) / len(frames)
    clips = split(len(frames), length, overlap, remainder)
    return ClipPlan(tuple(frames), tuple(clips), max(overlap, 0), fps / spacing)


def joined(plan: ClipPlan, clips: Sequence) -> list:
    """The clips' frames one after another, each shared frame once (the earlier clip's)."""
    out: list = []
    for i, clip in enumerate(clips):
        out += list(clip[plan.dropped(i):])
    return out
