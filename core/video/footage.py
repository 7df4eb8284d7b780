"""A video as the long-video job reads it: resized to the working size clip by clip, when a clip is requested.

Legend: N frames of the video, T of a clip, H W its size, 8 h 8 w the working size. Values in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .clips import ClipPlan
from .geometry import Fit, to_working


class Footage:
    """A video, its edited first frame, and where the edit changes it.

    Args:
        video: (N, H, W, 3), only read.  edited: (1, 8 h, 8 w, 3).
        change: (1, ...) one mask for all frames, (N, ...) one a frame of the video, or one a frame that the plan uses; of any size.
            None is unknown.
    """

    def __init__(self, video: Tensor, edited: Tensor, plan: ClipPlan, fit: Fit, change: Tensor | None = None):
        self.video, self.edited, self.plan, self.fit, self.change = video, edited, plan, fit, change
        self._last: tuple[int, Tensor] = -1, edited
        self._first: Tensor | None = None

    def clip(self, number: int) -> Tensor:
        """(T, 8 h, 8 w, 3) source frames of a clip. The last one asked for stays in memory."""
        if self._last[0] != number:
            self._last = number, to_working([self.frame(i) for i in range(*self.plan.clips[number])], self.fit)
        return self._last[1]

    def forget(self) -> None:
        """Free the last clip."""
        self._last = -1, self.edited

    def frame(self, index: int) -> Tensor:
        """(H, W, 3) frame `index` of those that the plan uses, as it is in the video."""
        return self.video[self.plan.frames[index]]

    def change_of(self, index: int) -> Tensor:
        """The mask of frame `index` of those that the plan uses."""
        masks = self.change
        at = 0 if len(masks) == 1 else self.plan.frames[index] if len(masks) == len(self.video) else index
        return masks[at]

    def change_in(self, number: int) -> Tensor:
        """The masks of a clip's frames, (1, ...) if all have the same."""
        span = range(*self.plan.clips[number])
        return self.change if len(self.change) == 1 else torch.stack([self.change_of(i) for i in span])

    def expected_colours(self, number: int) -> Tensor:
        """The source clip with the first edit's change of colour applied: what a clip without drift would look like."""
        if self._first is None:
            self._first = to_working(self.frame(0)[None], self.fit)
        gain = self.edited.std((0, 1, 2)) / self._first.std((0, 1, 2)).clamp_min(1e-4)
        shift = self.edited.mean((0, 1, 2)) - gain * self._first.mean((0, 1, 2))
        return self.clip(number) * gain + shift
