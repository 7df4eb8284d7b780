"""Single frames of a video file for the editors, equal pixel for pixel to those of `reading.read`.

Legend: N frames of the span, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .clips import whole
from .reading import evened, frames_at, reduced, timing
from .source import VideoError, VideoFile, crop_to

LARGEST = 64 << 20  # pixels of a frame; 8K has 33 million
NO_LIMIT = 1 << 40  # frames: none but those that are asked for is read


class Choice(NamedTuple):
    """The settings of a Read Video node; see `reading.read`."""

    fps: float = -1.0
    start: float = 0.0
    end: float = -1.0
    even_size: bool = False
    longer_side: int = 0


class Span(NamedTuple):
    """numbers: in the file, of the span's N frames.  fps: of them.  height, width: of them."""

    numbers: list[int]
    fps: float
    height: int
    width: int

    def at(self, index: int, seconds: float = 0.0) -> int:
        """Number in the file of frame `index` after so many seconds of the span.

        Raises:
            ValueError: the span has no such frame; the text goes on after the file's name.
        """
        index += whole(seconds * self.fps)
        if not 0 <= index < len(self.numbers):
            raise ValueError(f"has {len(self.numbers)} frames here, of which number {index} is none")
        return self.numbers[index]


def span(file: VideoFile, choice: Choice, check: Callable[[], None]) -> Span:
    """The frames that a choice gives of a file.

    Raises:
        VideoError: the file cannot be read, or its frames are too large to be shown.
        ValueError: there are no such frames. Both texts go on after the file's name.
    """
    about = file.describe(check)
    if about.height * about.width > LARGEST:
        raise VideoError(f"has frames of {about.width} x {about.height} pixels, which are too large to be shown")
    height, width = reduced(about.height, about.width, choice.longer_side)
    numbers, fps = frames_at(about.times, timing(about.times, about.rate), choice.fps, choice.start, choice.end, NO_LIMIT)
    return Span(numbers, fps, *evened(height, width, choice.even_size))


def still(file: VideoFile, choice: Choice, number: int, check: Callable[[], None]) -> Tensor:
    """Frame `number` of the file as the choice gives it: (H, W, 3) uint8.

    Raises:
        VideoError: the file or this frame cannot be decoded.
    """
    about = file.describe(check)
    size = reduced(about.height, about.width, choice.longer_side)
    for _, picture, aspect in file.frames([number], check):
        shown = torch.from_numpy(picture)
        if picture.shape[:2] != size or aspect != 1.0:
            shown = crop_to(shown.movedim(-1, 0), *size, aspect).movedim(0, -1)
        height, width = evened(*size, choice.even_size)
        return shown[:height, :width].clone()  # the decoder's memory is used again
    raise VideoError(f"has a frame that cannot be decoded, number {number}")


def thumbnails(file: VideoFile, numbers: Sequence[int], side: int, check: Callable[[], None]) -> dict[int, Tensor]:
    """Small copies of frames by number in the file, (h, w, 3) uint8 with the longer side at most `side`.

    Those that cannot be decoded are missing.
    """
    about = file.describe(check)
    size = reduced(about.height, about.width, side)
    return {n: frame.movedim(0, -1) for n, frame in file.read(numbers, *size, check).items()}
