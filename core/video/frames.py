"""Frames of a file by number, each as it is when everything before it has been decoded. Runs in the process that decodes.

Jumping to a keyframe is fast and usually right. It is wrong where parameter sets change on the way, where a picture is refreshed
gradually, or where a group of pictures is open. Frames that are not whole after a jump are decoded from an earlier keyframe, and
finally from the start; frames that are not whole then are damaged.
"""

from __future__ import annotations

import queue
import threading
from bisect import bisect_right
from typing import Any

import numpy as np

from .colour import ToRGB
from .container import ERRORS, opened, pictures, pixel_aspect, whole_frames
from .gate import Gate
from .orientation import orientation_of

FAR = 48  # frames from which a jump is quicker than going on
WAITING = 4  # frames that wait to be converted
EARLIER = 2  # keyframes before the nearest one, for the second try


class Reading:
    """One request: the wanted frames, and their results."""

    def __init__(self, path: str, marks: np.ndarray, keys: np.ndarray, numbered: bool, numbers: list[int], answers: Any):
        self.path, self.marks, self.numbered, self.answers = path, marks, numbered, answers
        self.keys, self.jumps = keys[:, 0], keys[:, 1]
        self.wanted = {int(marks[n]): n for n in numbers}
        self.out = Out(answers)
        self.rescued = 0  # frames that only reading from the start has given

    def begin(self, mark: int, back: int) -> int:
        """Number of the keyframe to begin at for a mark; less than 1 is the start of the file."""
        return bisect_right(self.keys, mark) - 1 - back

    def jumping(self, wanted: list[int], back: int) -> list[int]:
        """Read by jumping to keyframes; gives what was not found."""
        missed: list[int] = []
        with opened(self.path) as container:
            stream = pictures(container)
            fresh = True  # at the start of the file
            while wanted:
                at = self.begin(wanted[0], back)
                try:
                    if at > 0:
                        container.seek(int(self.jumps[at]), stream=stream, backward=True)
                    elif back or not fresh:  # to be read from the start
                        missed.append(wanted.pop(0))
                        continue
                except ERRORS:  # it cannot be jumped in
                    return missed + wanted
                lost, wanted = self.going_on(container, stream, wanted, at > 0)
                missed, fresh = missed + lost, False
        return missed

    def going_on(self, container: Any, stream: Any, wanted: list[int], jumped: bool) -> tuple[list[int], list[int]]:
        """Read from here on; gives what was not found, and what is better reached by another jump."""
        lost: list[int] = []
        gate = Gate(stream.codec_context.codec.intra_only, jumped)
        for mark, frame in whole_frames(container, stream, gate, self.answers):
            while wanted and wanted[0] < mark:
                lost.append(wanted.pop(0))
            if wanted and wanted[0] == mark:
                self.deliver(wanted.pop(0), frame, stream)
            if not wanted:
                return lost, []
            key = self.begin(wanted[0], 0)
            if key >= 0 and np.searchsorted(self.marks, self.keys[key]) - np.searchsorted(self.marks, mark) > FAR:
                return lost, wanted
        return lost + wanted, []

    def straight(self, wanted: list[int], trusting: bool = False) -> list[int]:
        """Read from the start of the file; gives what is damaged. What is stored but never shown is what was shown before it.

        Args:
            trusting: for decoders that do not tell keyframes.
        """
        wanted, damaged, before, came = sorted(wanted), [], None, False
        with opened(self.path) as container:
            stream = pictures(container)
            gate = Gate(trusting or stream.codec_context.codec.intra_only)
            for mark, frame in whole_frames(container, stream, gate, self.answers, [] if self.numbered else None):
                came = True
                while wanted and wanted[0] < mark:
                    if before is None or hurt(gate, wanted[0]):
                        damaged.append(wanted.pop(0))
                    else:
                        self.deliver(wanted.pop(0), before, stream)
                if wanted and wanted[0] == mark:
                    self.deliver(wanted.pop(0), frame, stream)
                    self.rescued += 1
                before = frame
                if not wanted:
                    break
        if not came and not trusting:
            return self.straight(damaged + wanted, trusting=True)
        return damaged + wanted

    def deliver(self, mark: int, frame: Any, stream: Any) -> None:
        self.out.put(self.wanted[mark], frame, pixel_aspect(stream), transfer_of(stream))


class Out:
    """Converts and sends frames in its own thread, while the next ones are decoded."""

    def __init__(self, answers: Any):
        self.answers, self.colours, self.error = answers, ToRGB(), None
        self._queue: queue.Queue = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, *item: Any) -> None:
        """Send a frame: its number, itself, the width of its pixels and the stream's transfer. Raises what went wrong before."""
        self._queue.put(item)
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Wait until all is sent. Raises what went wrong."""
        self._queue.put(None)
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self.error is None:
                try:
                    self._send(*item)
                except Exception as error:  # told to whoever puts the next one
                    self.error = error

    def _send(self, number: int, frame: Any, aspect: float, transfer: int) -> None:
        self.colours.transfer = transfer
        turn = orientation_of(frame)
        picture = np.ascontiguousarray(turn.apply(self.colours(frame)))
        self.answers({"number": number, "height": picture.shape[0], "width": picture.shape[1],
                      "aspect": 1 / aspect if turn.sideways else aspect}, picture)


def hurt(gate: Gate, mark: int) -> bool:
    """Whether something broken lay around a mark."""
    return any((a is None or a < mark) and (b is None or mark < b) for a, b in gate.damage)


def transfer_of(stream: Any) -> int:
    return int(getattr(stream.codec_context, "color_trc", 0) or 0)


def read(request: dict[str, Any], payload: np.ndarray, answers: Any) -> dict[str, Any]:
    """Answers with each frame that is whole: header `number`, `height`, `width`, `aspect` of its pixels; payload (H, W, 3) bytes.

    The request has `numbers`, `count` of marks, `numbered`, and `straight`: jumps are known to fail in this file. Payload: marks
    and keys. The end's header: `damaged`, numbers; `jumps`, whether those that were tried held; `notes`, sentences about colours.
    """
    values = np.frombuffer(payload, np.int64)
    marks, keys = values[:request["count"]], values[request["count"]:].reshape(-1, 2)
    reading = Reading(request["path"], marks, keys, request["numbered"], request["numbers"], answers)
    missed, may_jump = sorted(reading.wanted), not (request["numbered"] or request["straight"])
    try:
        if may_jump:
            missed = reading.jumping(missed, 0)
            if missed:
                missed = reading.jumping(missed, EARLIER)
        left = reading.straight(missed) if missed else []
    finally:
        reading.out.close()
    return {"damaged": sorted(reading.wanted[m] for m in left), "jumps": may_jump and not reading.rescued,
            "notes": sorted(reading.out.colours.notes)}
