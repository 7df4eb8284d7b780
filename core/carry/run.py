"""Carrying the edits of keyframes to every frame of a video, one frame at a time.

Two passes. The first follows every keyframe, away from it in both directions, and keeps flows of the working size on the disk.
The second goes through the video in order, mixes the experts of the keyframes before and after each frame, and returns the frame.
So memory holds a few frames, however long the video is.

Legend: T frames, H W pixels, h w pixels at the working size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..flow.choice import PairFlow
from ..flow.warp import warp
from .composite import LEAST, small
from .keyframe import Edited
from .tracking import Track, Tracker
from .work import Work

BACKWARDS = 8  # frames that are read at a time where the video is followed backwards


class CarryError(ValueError):
    """Keyframes, masks or frames do not fit together; the text says which and why."""


class Frames(Protocol):
    """A video.  count: T.  size: (H, W)."""

    count: int
    size: tuple[int, int]

    def read(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """Frames in this order, (H, W, 3), bytes or floats in [0, 1]."""
        ...


class Edit(NamedTuple):
    """An edited keyframe.

    number: of the frame, from 0.  edited: (H, W, 3) in [0, 1].  mask: (H, W), where the edit is; None: where it differs.
    """

    number: int
    edited: Tensor
    mask: Tensor | None = None


class Carried(NamedTuple):
    """One frame's result.

    image: (H, W, 3) in the frame's own type; where `change` is 0 it has the frame's bits.  change: (H, W), 1 where it was changed.
    confidence: (H, W) in [0, 1]; 1 where nothing was to be changed.  experts: share of each in the change.
    """

    number: int
    image: Tensor
    change: Tensor
    confidence: Tensor
    experts: Mapping[str, float]


def change_of(picture: Tensor, edit: Edit) -> Tensor:
    """What an edit adds to its keyframe, (1, 3, H, W); exactly 0 where it changes nothing.

    Raises:
        CarryError: another size.
    """
    if edit.edited.shape[:2] != picture.shape[:2]:
        raise CarryError(f"the edit of frame {edit.number} is {edit.edited.shape[1]} x {edit.edited.shape[0]} pixels, the video "
                         f"{picture.shape[1]} x {picture.shape[0]}. Give the edited frame at the video's size.")
    change = (edit.edited[..., :3].float() - as_float(picture)).movedim(-1, 0)[None]
    change = change * (change.abs().amax(1, keepdim=True) > LEAST)
    if edit.mask is not None:
        if edit.mask.shape != picture.shape[:2]:
            raise CarryError(f"the mask of frame {edit.number} is {edit.mask.shape[1]} x {edit.mask.shape[0]} pixels, the video "
                             f"{picture.shape[1]} x {picture.shape[0]}. Give a mask of the video's size.")
        change = change * edit.mask.float().clamp(0, 1)
    return change


def as_float(picture: Tensor) -> Tensor:
    """Bytes or floats -> floats in [0, 1]."""
    return picture.float() / 255 if picture.dtype == torch.uint8 else picture.float()


class Carry:
    """A run over one video.

    Args:
        frames: the video.
        edits: at least one, each of another frame.
        estimate: flow of a pair at the working size.
        keep: frame number -> mask (H, W) of what must stay unchanged there, or None.
        steps: flow (1, 2, h, w) from frame n + 1 back to frame n, and from n to n + 1, for a pair's number n, if it is already
            known.
        watch: called with the finished and the total amount of work; may raise to stop.
        judge: called with a frame's number, the edited keyframe, the frame (1, 3, h, w) and its track; for measurements.
        work: folder for the flows; if an interrupted run left them there, that run is resumed.

    Raises:
        CarryError: edits that do not fit the video.
    """

    def __init__(self, frames: Frames, edits: Sequence[Edit], estimate: PairFlow, *,
                 keep: Callable[[int], Tensor | None] = lambda number: None,
                 steps: Callable[[int], tuple[Tensor, Tensor]] | None = None,
                 watch: Callable[[int, int], None] = lambda done, total: None,
                 judge: Callable[[int, Edited, Tensor, Track], None] = lambda number, key, low, track: None,
                 work: Work | None = None):
        self.frames, self.estimate, self.keep, self.steps, self.watch, self.judge = frames, estimate, keep, steps, watch, judge
        self.work = work
        self.edits = sorted(edits, key=lambda e: e.number)
        numbers = [e.number for e in self.edits]
        if not numbers:
            raise CarryError("no keyframe is given. Give the number of a frame and its edited picture.")
        for number in numbers:
            if not 0 <= number < frames.count:
                raise CarryError(f"keyframe {number} is not in the video, whose frames are 0 to {frames.count - 1}.")
        if len(set(numbers)) < len(numbers):
            raise CarryError(f"keyframe {next(n for n in numbers if numbers.count(n) > 1)} is given twice. Give each once.")
        self.keys = {edit.number: Edited(as_float(picture).movedim(-1, 0)[None], change_of(picture, edit), small(picture))
                     for edit, picture in zip(self.edits, frames.read(numbers), strict=True)}
        spans = self._spans()
        self.total = sum(len(part) for part in spans.values()) + frames.count
        self.done = 0

    def _spans(self) -> dict[tuple[int, int], range]:
        """Frames that follow each keyframe: (keyframe, direction) -> numbers away from it, up to the next keyframe."""
        numbers = [e.number for e in self.edits]
        out = {}
        for i, number in enumerate(numbers):
            after = numbers[i + 1] if i + 1 < len(numbers) else self.frames.count
            before = numbers[i - 1] if i else -1
            out[number, 1] = range(number + 1, after)
            out[number, -1] = range(number - 1, before, -1)
        return out

    def _step(self) -> None:
        self.done += 1
        self.watch(self.done, self.total)

    def run(self) -> Iterator[Carried]:
        """The frames in order, from the first that a resumed run has not given out."""
        work = self.work or Work()
        try:
            for (number, direction), span in self._spans().items():
                if not work.followed(number, direction):
                    self._follow(number, direction, span, work)
            yield from self._compose(work)
        finally:
            if self.work is None:
                work.finish()

    def _follow(self, number: int, direction: int, span: range, work: Work) -> None:
        tracker = Tracker(self.keys[number].low, self.estimate)
        for n, picture in zip(span, self._in_order(span), strict=True):
            step = None if self.steps is None else self.steps(min(n, n - direction))[0 if direction > 0 else 1]
            work.keep(number, n, tracker.follow(small(picture), step))
            self._step()
        work.followed(number, direction, now=True)

    def _in_order(self, span: range) -> Iterator[Tensor]:
        """Frames of a span; backwards, a few are read at a time."""
        if span.step > 0:
            yield from self.frames.read(span)
            return
        for begin in range(0, len(span), BACKWARDS):
            part = span[begin:begin + BACKWARDS]
            yield from reversed(list(self.frames.read(part[::-1])))

    def _compose(self, work: Work) -> Iterator[Carried]:
        numbers = [e.number for e in self.edits]
        begin, memory = work.reached()  # the memory: weights of each keyframe's experts in the frame before
        before = begin - 1 if memory else begin
        previous = None
        for n, picture in zip(range(before, self.frames.count), self.frames.read(range(before, self.frames.count)), strict=True):
            if n < begin:
                previous = small(picture)
                continue
            around = [k for k in numbers if k < n][-1:] + [k for k in numbers if k > n][:1]
            if n in self.keys:
                out, memory, low = self._keyframe(n, picture), {}, None
            else:
                low = small(picture)
                step = None if previous is None or not memory else self.estimate(low, previous, None)
                out, memory = self._between(n, picture, low, around, work, memory, step)
            previous = low
            self._step()
            yield out
            work.reach(n, memory)

    def _keyframe(self, n: int, picture: Tensor) -> Carried:
        change = self.keys[n].change
        return self._finished(n, picture, change, torch.zeros_like(change[:, :1]), {})

    def _between(self, n: int, picture: Tensor, low: Tensor, around: Sequence[int], work: Work, memory: Mapping[int, Tensor],
                 step: Tensor | None) -> tuple[Carried, dict[int, Tensor]]:
        frame = as_float(picture).movedim(-1, 0)[None]
        parts, kept, shares = [], {}, {}
        for k in around:
            key = self.keys[k]
            track = work.track(k, n)
            self.judge(n, key, low, track)
            before = warp(memory[k].movedim(0, 1), step).movedim(1, 0) if step is not None and k in memory else None
            brought = key.bring(frame, low, track, before)
            if brought.weights is not None:
                kept[k] = brought.weights
            parts.append((brought.change, brought.error, abs(n - k), key.scale))
            shares = brought.shares
        change, error = blended(parts, frame.shape[-2:])
        return self._finished(n, picture, change, error / max(max(p[3] for p in parts), 1e-3)**2, shares), kept

    def _finished(self, n: int, picture: Tensor, change: Tensor, error: Tensor, experts: Mapping[str, float]) -> Carried:
        keep = self.keep(n)
        if keep is not None:
            change = change * (1 - keep.float().clamp(0, 1))
        changed = change.abs().amax(1, keepdim=True) > LEAST
        wanted = (as_float(picture) + change[0].movedim(0, -1)).clamp(0, 1)
        wanted = (wanted * 255).round().byte() if picture.dtype == torch.uint8 else wanted.to(picture.dtype)
        image = torch.where(changed[0].movedim(0, -1), wanted, picture)
        if error.shape[-2:] != change.shape[-2:]:
            error = torch.nn.functional.interpolate(error, change.shape[-2:], mode="bilinear")
        confidence = 1 / (1 + 16 * error.clamp_min(0))
        return Carried(n, image, changed[0, 0].float(), confidence[0, 0], experts)


def blended(parts: Sequence[tuple[Tensor, Tensor, int, float]], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The mean of the neighbouring keyframes' changes, weighted at each pixel by the square of a keyframe's nearness
    and the inverse of its error.

    Args:
        parts: change (1, 3, H, W), squared error (1, 1, h, w), frames of distance, size of the edit.

    Returns:
        change (1, 3, H, W) and error (1, 1, h, w).
    """
    if len(parts) == 1:
        return parts[0][0], parts[0][1]
    near = [1 / distance for _, _, distance, _ in parts]
    floor = max(1e-6, *(0.02 * scale**2 for *_, scale in parts))
    trust = torch.stack([(n / sum(near)) ** 2 / (error + floor) for n, (_, error, _, _) in zip(near, parts, strict=True)])
    trust = trust / trust.sum(0)
    error = (trust * torch.stack([p[1] for p in parts])).sum(0)
    large = [t if t.shape[-2:] == tuple(size) else torch.nn.functional.interpolate(t, tuple(size), mode="bilinear") for t in trust]
    return sum(t * p[0] for t, p in zip(large, parts, strict=True)), error
