"""Opening a video file and reading its description. Runs in the process that decodes; imports PyAV and NumPy alone.

Legend: a mark is a presentation time in ticks of the stream; in a file without usable times, a frame's number from the start.
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import av
import numpy as np

from .colour import notes_about
from .gate import REORDERED, Gate
from .orientation import orientation_of

MOST_FRAMES = 5_000_000    # 23 hours at 60 frames a second
MOST_PIXELS = 1 << 27      # of a frame: 16384 x 8192
ASPECTS = (1 / 8, 8.0)     # of pixels; what a file states beyond these is no aspect of anything filmed
JUMP = 10.0                # seconds between frames from which a broadcast's clock has been set, as in FFmpeg's program
THREADS = 8
# Decoders that mark broken frames, but with several threads mark some of them after they have been handed out: of sixty runs over
# one damaged H.264 file, nine gave its broken frame without a mark.
ONE_THREAD = {"h264", "mpeg4"}
JOINT = 2                  # packets between the broken counter and the first keyframe of the next file
LOOKED_AT = 100            # frames whose order is looked at
TS_DISCONT = 0x0200        # AVFMT_TS_DISCONT: the format's times may jump
BY_INDEX = ("mov", "mp4", "matroska", "webm")  # formats that are jumped in by presentation times
COVER = 0x0400             # AV_DISPOSITION_ATTACHED_PIC
DEFAULT = 0x0001           # AV_DISPOSITION_DEFAULT
# Formats whose header states a length in advance, which a file that was cut off does not reach.
PROMISING = {"matroska", "webm", "flv", "asf", "avi"}
# Texts that name other files or addresses, which FFmpeg would open.
PLAYLISTS = {"hls", "dash", "concat", "sdp", "rtsp", "image2", "imf"}


# Errors of PyAV's: all are the first, most are one of the others too.
ERRORS = (av.FFmpegError, OSError, ValueError)


class Problem(ValueError):
    """A file cannot be used; the text continues after its name."""


def short(error: Exception) -> str:
    """One line about an error of FFmpeg's, without the file's path."""
    return re.sub(r"\s*:\s*'[^']*'$", "", " ".join(str(error).split()))[:160]


# ---- opening ---------------------------------------------------------------------------------------------------------


def _quiet() -> None:
    """FFmpeg's own log, turned off. PyAV's takes Python's lock for errors of FFmpeg's threads; where one of them waits for it
    while the decoder is closed, which waits for the thread, both wait for ever."""
    av.logging.restore_default_callback()
    av.logging.set_libav_level(-8)


@contextmanager
def opened(path: str, **options: str) -> Iterator[Any]:
    """The container.

    Args:
        options: of FFmpeg's reader for its format.

    Raises:
        Problem: it cannot be opened, or is a list of other files.
    """
    _quiet()
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for its writer
        raise Problem("is not a file, but a folder, a pipe or a device")
    try:
        # By protocol and name: a name like `concat:a|b` is a name here, and nothing in the file opens another one.
        container = av.open(f"file:{path}", metadata_errors="replace", container_options={"protocol_whitelist": "file", **options})
    except ERRORS as error:
        raise Problem(f"cannot be opened ({short(error)})") from None
    with container:
        if PLAYLISTS & set(container.format.name.split(",")):
            raise Problem(f"is a list of other files ({container.format.name}). Choose the video itself")
        yield container


def pictures(container: Any) -> Any:
    """The stream of pictures that players choose.

    Raises:
        Problem: there is none that can be decoded here.
    """
    streams = list(container.streams.video)
    if not streams:
        raise Problem("has no picture stream")
    moving = [s for s in streams if not marked(s, COVER)]
    if not moving:
        raise Problem("has a cover, but no moving pictures")
    known = [s for s in moving if s.codec_context is not None]  # PyAV has no decoder for the others, and crashes when asked
    if not known:
        raise Problem("is encoded in a way that this FFmpeg cannot decode")
    chosen = [s for s in known if marked(s, DEFAULT)] or known
    stream = max(chosen, key=lambda s: min(s.frames, 2))  # the first, but for files like AVIF that hold a still picture beside it
    if stream.codec_context.width * stream.codec_context.height > MOST_PIXELS:
        raise Problem(too_large(stream.codec_context))
    one = stream.codec_context.name in ONE_THREAD
    stream.thread_type = "NONE" if one else "AUTO"
    stream.codec_context.thread_count = 1 if one else THREADS
    return stream


def too_large(given: Any) -> str:
    return f"has frames of {given.width} x {given.height} pixels; at most {MOST_PIXELS} are read"


def marked(stream: Any, disposition: int) -> bool:
    """Whether a stream bears one of FFmpeg's AV_DISPOSITION marks."""
    given = getattr(stream, "disposition", 0)
    return bool(int(getattr(given, "value", given) or 0) & disposition)  # a flag of enum's, or a number in other PyAVs


def pixel_aspect(stream: Any) -> float:
    """Width of a pixel relative to its height; 1 if the file states an implausible value."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if ASPECTS[0] <= aspect <= ASPECTS[1] else 1.0


# ---- packets and frames ----------------------------------------------------------------------------------------------


def packets(container: Any, stream: Any, answers: Any, errors: list[int] | None = None) -> Iterator[Any]:
    """Packets of a stream, or of all for None; a place that cannot be read is skipped as long as others come after it.

    Args:
        errors: gets a number for each such place.
    """
    came, since = True, 0
    while came and since < 1000:
        came = False
        try:
            for packet in container.demux() if stream is None else container.demux(stream):
                answers.beat()
                came = True
                yield packet
            return
        except ERRORS:
            since += 1
            if errors is not None:
                errors.append(since)


def holed(given: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    """Packets, and whether something of each or after it is missing, as formats of broadcasts notice by their counters.

    Where files were put one after another the counters break too, but nothing is missing: a keyframe comes within JOINT packets.
    """
    ahead: deque[Any] = deque()
    for packet in given:
        ahead.append(packet)
        if len(ahead) > JOINT:
            first = ahead.popleft()
            yield first, first.is_corrupt and not any(other.is_keyframe for other in ahead)
    for packet in ahead:
        yield packet, False


def whole_frames(container: Any, stream: Any, gate: Gate, answers: Any,
                 numbered: list[int | None] | None = None) -> Iterator[tuple[int, Any]]:
    """(mark, frame) of the frames that are whole, in the order in which they are shown.

    Args:
        numbered: marks are numbers of frames from here; gets the time of each frame, broken ones too.
    """
    keys: set[int] = set()  # marks of packets that are keyframes: not all decoders tell it of their frames
    errors: list[int] = []
    holes: set[int | None] = set()  # marks of packets of which something is missing
    shown = False
    for packet, hole in holed(packets(container, stream, answers, errors)):
        if errors or hole:
            gate.error()
            errors.clear()
        if hole:
            holes.add(packet.pts)
        if packet.is_keyframe and packet.pts is not None:
            keys.add(packet.pts)
        try:
            frames = packet.decode()
        except ERRORS:
            gate.error()
            continue
        if packet.is_keyframe and packet.is_discard and not shown:  # an edit list begins within a group of pictures
            gate.hidden_keyframe()
        for frame in frames:
            shown = True
            answers.beat()
            if frame.width * frame.height > MOST_PIXELS:
                raise Problem(too_large(frame))
            if numbered is not None:
                numbered.append(frame.pts)
                if len(numbered) > MOST_FRAMES:
                    raise Problem(f"has more than {MOST_FRAMES} frames")
            mark = frame.pts if numbered is None else len(numbered) - 1
            if mark is None:  # nobody could ask for it
                continue
            key = (bool(frame.key_frame) or frame.pts in keys) and frame.pts not in holes
            keys.discard(frame.pts)
            yield from gate.frame(mark, frame, key, frame.is_corrupt)
    if errors:
        gate.error()
    yield from gate.end()


# ---- times -----------------------------------------------------------------------------------------------------------


class Packets(NamedTuple):
    """What the packets of a file tell without decoding.

    marks: of pictures that are shown, ascending.  keys: (K, 2) those at which decoding may begin, and where to jump for them.
    usable: whether the marks tell one frame from another and only go forward.  count: packets of the picture stream.
    end: seconds, of the last packet of pictures.  last: the same of all streams.
    """

    marks: np.ndarray
    keys: np.ndarray
    usable: bool
    count: int
    end: float
    last: float


def scan(path: str, answers: Any) -> Packets:
    """Read all packets. Raises Problem."""
    marks, keys, ends, usable, count, earlier = array("q"), array("q"), {}, True, 0, None
    ascending = True  # in the order in which they are stored
    with opened(path) as container:
        stream = pictures(container)
        jumps = JUMP / float(stream.time_base) if container.format.flags & TS_DISCONT and stream.time_base else float("inf")
        by_pts = not set(BY_INDEX).isdisjoint(container.format.name.split(","))
        for packet in packets(container, None, answers):
            time = packet.pts if packet.pts is not None else packet.dts
            if packet.size and time is not None and packet.time_base:
                end = float((time + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream_index] = max(ends.get(packet.stream_index, end), end)
            if packet.stream_index != stream.index:
                continue
            count += packet.size > 0 or packet.pts is not None
            if not packet.size or getattr(packet, "is_discard", False):
                continue
            if len(marks) >= MOST_FRAMES:
                raise Problem(f"has more than {MOST_FRAMES} frames")
            if packet.dts is not None and earlier is not None and not 0 <= packet.dts - earlier <= jumps:
                usable = False
            earlier = earlier if packet.dts is None else packet.dts
            if packet.pts is None:
                usable = False
                marks.append(0)
                continue
            ascending &= not marks or packet.pts >= marks[-1]
            marks.append(packet.pts)
            if packet.is_keyframe:
                keys.extend((packet.pts, packet.pts if by_pts or packet.dts is None else min(packet.pts, packet.dts)))
        usable &= stream.time_base is not None
        reordered, index = bool(stream.codec_context.has_b_frames), stream.index
        if not marks:
            raise Problem("has no frames")
    usable &= len(set(marks)) == len(marks)
    if usable and ascending and reordered:  # as in AVI, whose times are those of decoding
        usable = _orderly(path, answers)
    return Packets(np.unique(np.asarray(marks)), np.unique(np.asarray(keys, np.int64).reshape(-1, 2), axis=0), usable, count,
                   ends.get(index, 0.0), max(ends.values(), default=0.0))


def _orderly(path: str, answers: Any) -> bool:
    """Whether the first frames are shown in the order of their marks."""
    last = None
    with opened(path) as container:
        stream = pictures(container)
        gate = Gate(stream.codec_context.codec.intra_only)
        for mark, _ in islice(whole_frames(container, stream, gate, answers), LOOKED_AT):
            if last is not None and mark <= last:
                return False
            last = mark
    return True


def straightened(marks: list[int | None], tick: float, step: float, jump: float) -> list[float]:
    """Seconds of frames in the order in which they are shown, from marks that may be missing, repeat, or begin again.

    Args:
        tick: seconds of a unit of the marks.  step: seconds between frames where the marks do not tell.
        jump: seconds from which a gap is none, but a clock that was set.
    """
    out, now = [0.0], 0.0
    for before, mark in zip(marks, marks[1:], strict=False):
        gap = (mark - before) * tick if mark is not None and before is not None else 0.0
        if 0 < gap < jump:
            now += gap
            step = gap
        else:
            now += step
        out.append(now)
    return out


def in_order(marks: list[int | None]) -> list[int | None]:
    """Marks of frames in the order in which they are shown, where the file has given them in the order of decoding, as AVI does.

    A mark that lies further back than frames are reordered is a clock that was set, and one that is missing stays so.
    """
    known = np.unique([mark for mark in marks if mark is not None])
    back = REORDERED * float(np.median(np.diff(known))) if len(known) > 1 else 0.0
    out: list[int | None] = []
    run: list[int] = []
    for mark in [*marks, None]:
        if mark is None or (run and mark < run[-1] - back):
            out += sorted(run)
            run = []
        if mark is None:
            out.append(None)
        else:
            run.append(mark)
    return out[:-1]


def cut_off(path: str, container: Any, stream: Any, found: Packets, answers: Any) -> bool:
    """Whether the file's header announces more than the file contains."""
    names = set(container.format.name.split(","))
    if stream.frames and "mp4" in names:  # counted packet by packet; elsewhere it is a statement in passing
        return found.count < stream.frames and _stored(path, stream.index, answers) < stream.frames
    # Packets of some formats do not tell how long they last, so that a whole file ends a frame early.
    frame = 1 / float(stream.average_rate or 25)
    stated = _stated(stream)
    if stated:
        begin = float((stream.start_time or 0) * stream.time_base)
        return found.end < min(0.9 * (stated + begin), stated + begin - 1.5 * frame)
    if names & PROMISING and container.duration:  # of all tracks: sound or subtitles may go on after the last picture
        return found.last < min(0.9 * container.duration / av.time_base, container.duration / av.time_base - 1.5 * frame)
    return False


def _stored(path: str, index: int, answers: Any) -> int:
    """Packets of a stream, those too that an edit list leaves out."""
    with opened(path, ignore_editlist="1") as container:
        return sum(packet.size > 0 for packet in packets(container, container.streams[index], answers))


def _stated(stream: Any) -> float:
    """Seconds of the pictures as the file states them, 0 if it does not."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    hours, minutes, seconds = (stream.metadata.get("DURATION", "") + "::").split(":")[:3]  # Matroska's, hh:mm:ss.fraction
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0


# ---- describing ------------------------------------------------------------------------------------------------------


def describe(request: dict[str, Any], _: np.ndarray, answers: Any) -> None:
    """Answers with what the file is; payload: times (float64), marks (int64) and keys ((K, 2) int64), one after another.

    Header: `count` of frames, `keys` of keyframes, `numbered`: marks are numbers; `height`, `width` of the frames as shown, pixels
    made square; `rate`: frames a second as the file states; `origin`: seconds of the first frame by the file's clock; `cut`:
    whether the file promises more frames; `notes`: what a player does to the frames.
    """
    path = request["path"]
    found = scan(path, answers)
    with opened(path) as container:
        stream = pictures(container)
        first = _first(path, container, stream, answers)
        rate = stream.average_rate or stream.guessed_rate
        cut = cut_off(path, container, stream, found, answers)
        tick = float(stream.time_base) if stream.time_base else 0.0
        jumps = JUMP if container.format.flags & TS_DISCONT else float("inf")
        aspect, notes = pixel_aspect(stream), _notes(stream, first)
        if pixel_aspect(stream) == 1.0 and stream.sample_aspect_ratio and float(stream.sample_aspect_ratio) != 1.0:
            notes.append(f"the file states pixels of {stream.sample_aspect_ratio}, which is not plausible; the pixels are treated "
                         "as square")
    if found.usable:
        marks = found.marks[bisect_left(found.marks, found.marks[0] if first.pts is None else first.pts):]
        if len(marks) < len(found.marks):
            left = ((first.pts or 0) - found.marks[0]) * tick
            notes.append(f"the first {left:.3f} s, before the first whole frame, are left out")
        keys = found.keys[found.keys[:, 0] >= marks[0]] if len(marks) else found.keys
        times = (marks - marks[0]) * tick
    else:
        marks, times = _counted(path, tick, 1 / float(rate or 25), jumps, answers)
        keys = np.zeros((0, 2), np.int64)
    if not len(marks):
        raise Problem("has no frame that can be decoded")
    turn = orientation_of(first)
    height, width = first.height, first.width
    width = round(width * aspect) if aspect > 1 else width  # nothing is made smaller
    height = round(height / aspect) if aspect < 1 else height
    height, width = (width, height) if turn.sideways else (height, width)
    origin = float((first.pts or 0) * tick)
    payload = times.astype(np.float64).tobytes() + marks.astype(np.int64).tobytes() + keys.astype(np.int64).tobytes()
    answers({"count": len(marks), "keys": len(keys), "numbered": not found.usable, "height": height, "width": width,
             "rate": float(rate) if rate else None, "origin": origin, "cut": cut, "notes": notes + turn.notes}, payload)


def _first(path: str, container: Any, stream: Any, answers: Any) -> Any:
    """The first frame that is whole; if none says so of itself, the first of all."""
    for _, frame in whole_frames(container, stream, Gate(stream.codec_context.codec.intra_only), answers, []):
        return frame
    with opened(path) as again:  # a decoder that tells no keyframes
        for _, frame in whole_frames(again, pictures(again), Gate(True), answers, []):
            return frame
    raise Problem("has no frame that can be decoded")


def _counted(path: str, tick: float, step: float, jump: float, answers: Any) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and seconds of all frames of a file without usable times, from its first whole one on."""
    seen: list[int | None] = []
    begin = None
    with opened(path) as container:
        stream = pictures(container)
        gate = Gate(stream.codec_context.codec.intra_only)
        for mark, _ in whole_frames(container, stream, gate, answers, seen):
            begin = mark if begin is None else begin
    begin = begin or 0
    marks = in_order(seen[begin:]) if tick else [None] * (len(seen) - begin)
    return np.arange(begin, len(seen)), np.array(straightened(marks, tick, step, jump) if marks else [])


def _notes(stream: Any, frame: Any) -> list[str]:
    notes = []
    if frame.interlaced_frame:
        notes.append("the video is interlaced; its frames are used as they are, without deinterlacing")
    if stream.metadata.get("alpha_mode") == "1":
        notes.append("the video has a transparency track, which is not read; the parts that it hides are visible")
    return notes + notes_about(stream, frame)
