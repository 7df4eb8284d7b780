"""Lines and polygons as soft-edged pixels, by distance (docs/editor_state.md). NumPy, 64 bit, as browsers count.

Coordinates are pixels, (0, 0) the picture's upper left corner; the middle of pixel (row j, column i) is (i + 0.5, j + 0.5).
Every function touches only the pixels near a line, so cost follows the drawing and not the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

# Lines are cut into parts of this length in pixels, so that a diagonal does not touch its whole bounding box.
PART = 64.0

Window = tuple[slice, slice]


def near_line(start: np.ndarray, end: np.ndarray, reach: float, height: int,
              width: int) -> Iterator[tuple[Window, np.ndarray]]:
    """Pixels within `reach` of a straight line, window by window: (rows and columns, distance of each pixel's middle).

    Windows overlap, and hold pixels that are further away too. A distance is to the part of the line that the window
    belongs to; the smallest over all windows is the one to the line, where that is within reach.

    Args:
        start, end: (2,) x, y; equal for a dot. May lie outside the picture.
    """
    margin = reach + 1.0
    share = _clip(start, end, -margin, -margin, width + margin, height + margin)
    if share is None:
        return
    step = end - start
    a, b = start + share[0] * step, start + share[1] * step
    count = max(1, int(np.ceil(np.hypot(*(b - a)) / max(PART, reach))))
    marks = a + np.linspace(0.0, 1.0, count + 1)[:, None] * (b - a)
    marks[0], marks[-1] = a, b
    for p, q in zip(marks[:-1], marks[1:], strict=True):
        low, high = np.minimum(p, q) - reach - 0.5, np.maximum(p, q) + reach + 0.5
        left, top = max(0, int(np.floor(low[0]))), max(0, int(np.floor(low[1])))
        right, bottom = min(width, int(np.ceil(high[0]))), min(height, int(np.ceil(high[1])))
        if left >= right or top >= bottom:
            continue
        x, y = np.arange(left, right) + 0.5 - p[0], (np.arange(top, bottom) + 0.5 - p[1])[:, None]
        run, rise = q - p
        square = run * run + rise * rise
        along = np.clip((x * run + y * rise) / square, 0.0, 1.0) if square > 0 else 0.0
        yield (slice(top, bottom), slice(left, right)), np.hypot(x - along * run, y - along * rise)


def _clip(start: np.ndarray, end: np.ndarray, left: float, top: float, right: float,
          bottom: float) -> tuple[float, float] | None:
    """Shares of the way between which a line is inside a box (Liang and Barsky 1984); None if never."""
    low, high = 0.0, 1.0
    for a, step, least, most in zip(start, end - start, (left, top), (right, bottom), strict=True):
        if step == 0:
            if not least <= a <= most:
                return None
            continue
        near, far = sorted(((least - a) / step, (most - a) / step))
        low, high = max(low, near), min(high, far)
    return (low, high) if low <= high else None


def cover_line(canvas: np.ndarray, points: np.ndarray, size: float,
               blend: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Blend a line of `size` pixels thickness into (H, W), in place: canvas = blend(canvas, coverage).

    Args:
        points: (N, 2), N at least 1; one is a dot.
        blend: must give the same for a coverage in parts as for their maximum, and change nothing for 0.
    """
    ends = points[1:] if len(points) > 1 else points
    for start, end in zip(points, ends, strict=False):
        for window, distance in near_line(start, end, size / 2 + 0.5, *canvas.shape):
            canvas[window] = blend(canvas[window], np.clip(size / 2 + 0.5 - distance, 0.0, 1.0))


def cover_polygon(outline: np.ndarray, height: int, width: int) -> tuple[Window, np.ndarray]:
    """How far a closed polygon covers pixels, even-odd rule, edges one pixel soft.

    Args:
        outline: (N, 2), N at least 3.

    Returns:
        The window of the picture that holds all covered pixels, and (h, w) coverage in it.
    """
    low, high = outline.min(0) - 0.5, outline.max(0) + 0.5
    left, top = (int(np.clip(np.floor(v), 0, side)) for v, side in zip(low, (width, height), strict=True))
    right, bottom = (int(np.clip(np.ceil(v), 0, side)) for v, side in zip(high, (width, height), strict=True))
    right, bottom = max(left, right), max(top, bottom)
    window = (slice(top, bottom), slice(left, right))
    h, w = bottom - top, right - left
    if not h or not w:
        return window, np.zeros((h, w))
    shifted = outline - (left, top)
    # Each edge flips the pixels to its left in the rows that it crosses; w + 1 columns, the last for "all of them".
    flips = np.zeros((h, w + 1), np.int64)
    for (x0, y0), (x1, y1) in zip(shifted, np.roll(shifted, -1, 0), strict=True):
        first, last = (int(np.clip(np.ceil(v - 0.5), 0, h)) for v in (min(y0, y1), max(y0, y1)))
        if first < last:
            rows = np.arange(first, last)
            cross = x0 + (rows + 0.5 - y0) / (y1 - y0) * (x1 - x0)
            flips[rows, np.clip(np.ceil(cross - 0.5), 0, w).astype(np.int64)] += 1
    inside = flips[:, ::-1].cumsum(1)[:, ::-1][:, 1:] % 2 == 1
    border = np.full((h, w), 1.0)  # further than 0.5 does not matter
    for start, end in zip(shifted, np.roll(shifted, -1, 0), strict=True):
        for part, distance in near_line(start, end, 0.5, h, w):
            border[part] = np.minimum(border[part], distance)
    return window, np.clip(np.where(inside, 0.5 + border, 0.5 - border), 0.0, 1.0)
