"""The sound of a span of a video. Runs in the process that decodes."""

from __future__ import annotations

from typing import Any

import av
import numpy as np

from .container import DEFAULT, ERRORS, JUMP, TS_DISCONT, marked, opened, packets

GAP = 0.1  # seconds that a piece may be off its place and still follow the one before it
BACK = 0.5  # seconds back from which a clock was set


def track_of(container: Any) -> tuple[Any, list[str]]:
    """The track that players choose, and notes about it; None if there is none, or none that can be decoded."""
    tracks = list(container.streams.audio)
    known = [t for t in tracks if t.codec_context is not None]
    if tracks and not known:
        return None, ["the sound is encoded in a way that this FFmpeg cannot decode; it is left out"]
    if not known:
        return None, []
    track = next((t for t in known if marked(t, DEFAULT)), known[0])
    return track, [f"the file has {len(tracks)} tracks of sound; the one that players choose was taken"] if len(tracks) > 1 else []


def read(request: dict[str, Any], _: np.ndarray, answers: Any) -> dict[str, Any]:
    """Answers with pieces of the sound between two times: header `at` (samples from the start of the span), `rate`, `channels`
    (1 or 2), payload (channels, samples) float32. Where nothing comes there is silence.

    The request has `origin`, seconds of the first picture by the file's clock, `start` and `end`, seconds from there.
    The end's header: `notes`.
    """
    start, end = request["start"], request["end"]
    with opened(request["path"]) as container:
        track, notes = track_of(container)
        if track is None:
            return {"notes": notes}
        jump = JUMP if container.format.flags & TS_DISCONT else float("inf")
        place = Place(request["origin"], jump)
        resampler, setup, rate = None, None, 0
        layout = "stereo" if (track.codec_context.channels or 1) > 1 else "mono"  # Save Video knows no others
        for frame in _decoded(container, track, answers):
            rate = rate or frame.sample_rate
            begin = place.of(frame)
            if begin >= end:
                break
            if begin + frame.samples / frame.sample_rate <= start:
                continue
            if setup != (frame.format.name, frame.layout.name, frame.sample_rate):
                setup = (frame.format.name, frame.layout.name, frame.sample_rate)
                resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
            at = round((begin - start) * rate)
            for piece in resampler.resample(frame):
                samples = np.ascontiguousarray(piece.to_ndarray(), np.float32)
                answers({"at": at, "rate": rate, "channels": len(samples)}, samples)
                at += samples.shape[1]
    return {"notes": notes}


class Place:
    """Where frames of sound belong, in seconds from the first picture: one after another, unless their times say otherwise."""

    def __init__(self, origin: float, jump: float):
        self.shift, self.jump, self.next = -origin, jump, None

    def of(self, frame: Any) -> float:
        stated = None if frame.pts is None or not frame.time_base else float(frame.pts * frame.time_base) + self.shift
        if self.next is None:
            begin = stated or 0.0
        elif stated is None or abs(stated - self.next) < GAP:
            begin = self.next
        elif stated < self.next - BACK or stated > self.next + self.jump:  # the clock was set
            self.shift += self.next - stated
            begin = self.next
        else:
            begin = max(stated, self.next)
        self.next = begin + frame.samples / frame.sample_rate
        return begin


def _decoded(container: Any, track: Any, answers: Any):
    for packet in packets(container, track, answers):
        try:
            yield from packet.decode()
        except ERRORS:  # a damaged piece
            continue
