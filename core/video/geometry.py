"""Frames to the network's size and back without residue (I2VEdit, released code).

Legend: T frames, H W pixels of the video, h w working size. Values in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import interpolate, pad


class Fit(NamedTuple):
    """How frames are fitted: the video's size, the working size, black pixels added at top and bottom, left and right."""

    height: int
    width: int
    working: tuple[int, int]
    top: int
    left: int

    @property
    def padded(self) -> tuple[int, int]:
        return self.height + 2 * self.top, self.width + 2 * self.left


def fit(height: int, width: int, working: tuple[int, int], keep_aspect: bool = True) -> Fit:
    """Plan to fit H x W frames into the working size, with black borders or by squeezing."""
    h, w = working
    if not keep_aspect:
        return Fit(height, width, working, 0, 0)
    if height / width > h / w:
        return Fit(height, width, working, 0, (int(height / h * w) - width) // 2)
    return Fit(height, width, working, (int(width / w * h) - height) // 2, 0)


def to_working(frames: Tensor | Sequence[Tensor], plan: Fit) -> Tensor:
    """(T, H, W, 3), or a sequence of frames (H, W, 3), -> (T, h, w, 3); bilinear with antialiasing, frame by frame."""
    return _one_by_one(frames, lambda frame: _working(frame, plan))


def masks_to_working(masks: Tensor, plan: Fit) -> Tensor:
    """Masks (T, H', W') of any size -> (T, h, w), where the frames that they belong to go; the border is 0."""
    def frame(mask: Tensor) -> Tensor:
        if mask.shape != (plan.height, plan.width):
            mask = interpolate(mask[None, None].float(), size=(plan.height, plan.width), mode="bilinear")[0, 0]
        return _working(mask[..., None], plan)

    return _one_by_one(masks, frame)[..., 0]


def from_working(frames: Tensor | Sequence[Tensor], plan: Fit) -> Tensor:
    """(T, h, w, 3), or a sequence of frames, -> (T, H, W, 3): enlarged to the padded size, border cropped, frame by frame."""
    return _one_by_one(frames, lambda frame: _video(frame, plan))


def _working(frame: Tensor, plan: Fit) -> Tensor:
    x = pad(frame[None].movedim(-1, 1), (plan.left, plan.left, plan.top, plan.top))
    if x.shape[-2:] != plan.working:
        x = interpolate(x.float(), size=plan.working, mode="bilinear", antialias=True, align_corners=False)
    return x[0].movedim(0, -1).clamp(0, 1)


def _video(frame: Tensor, plan: Fit) -> Tensor:
    x = frame[None].movedim(-1, 1)
    if x.shape[-2:] != plan.padded:
        x = interpolate(x.float(), size=plan.padded, mode="bicubic", antialias=True, align_corners=False)
    x = x[0, :, plan.top:plan.top + plan.height, plan.left:plan.left + plan.width]
    return x.movedim(0, -1).clamp(0, 1)


def _one_by_one(frames: Tensor | Sequence[Tensor], change: Callable[[Tensor], Tensor]) -> Tensor:
    """The changed frames, of which never more than one exists beside the result."""
    out: Tensor | None = None
    for i, frame in enumerate(frames):
        changed = change(frame)
        if out is None:
            out = changed.new_empty((len(frames), *changed.shape))
        out[i] = changed
        del changed
    return out
