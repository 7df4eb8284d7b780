"""Lines and polygons as soft-edged pixels, by distance (docs/editor_state.md). NumPy, 64 bit, as browsers count.

Coordinates are pixels, (0, 0) the picture's upper left corner; the middle of pixel (row j, column i) is (i + 0.5, j + 0.5).
Every function touches only the pixels near a line, so cost follows the drawing and not the picture.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Lines are cut into parts of this length in pixels, so that a diagonal does not touch its whole bounding box.
PART = 64.0

BATCH, MANY = 1 << 14, 256  # pixels, and parts, that are computed at once

Window = tuple[slice, slice]


def near_line(start: np.ndarray, end: np.ndarray, reach: float, height: int,
              width: int) -> Iterator[tuple[Window, np.ndarray]]:
    """Pixels within `reach` of a straight line, window by window: (rows and columns, distance of each pixel's middle).

    Windows overlap, and hold pixels that are further away too. A distance is to the part of the line that the window
    belongs to; the smallest over all windows is the one to the line, where that is within reach.

    Args:
        start, end: (2,) x, y; equal for a dot. May lie outside the picture.
    """
    parts = _windows(_marks(start, end, reach, height, width), reach, height, width)
    for p, step, (left, top), (right, bottom) in zip(*parts, strict=True):
        x, y = np.arange(left, right) + 0.5 - p[0], (np.arange(top, bottom) + 0.5 - p[1])[:, None]
        yield (slice(top, bottom), slice(left, right)), np.hypot(*_away(x, y, *step))


def _marks(start: np.ndarray, end: np.ndarray, reach: float, height: int, width: int) -> np.ndarray:
    """Ends of the parts of a line that may touch the picture, (N, 2 ends, 2)."""
    margin = reach + 1.0
    share = _clip(start, end, -margin, -margin, width + margin, height + margin)
    if share is None:
        return np.empty((0, 2, 2))
    step = end - start
    a, b = start + share[0] * step, start + share[1] * step
    count = max(1, int(np.ceil(np.hypot(*(b - a)) / max(PART, reach))))
    marks = a + np.linspace(0.0, 1.0, count + 1)[:, None] * (b - a)
    marks[0], marks[-1] = a, b
    return np.stack([marks[:-1], marks[1:]], 1)


def _windows(parts: np.ndarray, reach: float, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Of parts (N, 2, 2) that touch the picture: start, step to the end, and the window's corners, each (M, 2) x, y."""
    sides = np.array([width, height])
    first = np.maximum(0, np.floor(parts.min(1) - reach - 0.5)).astype(np.int64)
    last = np.minimum(sides, np.ceil(parts.max(1) + reach + 0.5)).astype(np.int64)
    seen = (first < last).all(1)
    return parts[seen, 0], parts[seen, 1] - parts[seen, 0], first[seen], last[seen]


def _away(x: np.ndarray, y: np.ndarray, run: np.ndarray, rise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of places, as seen from a line's start: the way from the nearest point of the line that goes `run` and `rise` from there."""
    square = run * run + rise * rise
    along = x * run + y * rise
    along /= np.where(square > 0, square, 1.0)
    np.clip(along, 0.0, 1.0, out=along)
    return x - along * run, y - along * rise


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


def cover_line(canvas: np.ndarray, points: np.ndarray, size: float, erase: bool = False) -> None:
    """Draw a line of `size` pixels thickness on (H, W), or take it away, in place.

    A freehand line has hundreds of short parts; many of them are computed at once.

    Args:
        canvas: C-contiguous.  points: (N, 2), N at least 1; one is a dot.
    """
    (height, width), reach = canvas.shape, size / 2 + 0.5
    start, end = points[:max(1, len(points) - 1)], points[1:] if len(points) > 1 else points
    low, high, sides = np.minimum(start, end), np.maximum(start, end), np.array([width, height])
    whole = ((low >= -reach) & (high <= sides + reach)).all(1) & (np.hypot(*(end - start).T) <= PART)
    others = ~whole & ((high > -reach - 2) & (low < sides + reach + 2)).all(1)
    cut = [_marks(a, b, reach, height, width) for a, b in zip(start[others], end[others], strict=True)]
    parts = np.concatenate([np.stack([start, start + (end - start)], 1)[whole], *cut])
    for p, step, first, last in _batches(*_windows(parts, reach, height, width)):
        columns, rows = (first[:, i, None] + np.arange((last - first)[:, i].max()) for i in (0, 1))  # (N, w), (N, h)
        x, y = (columns + 0.5 - p[:, :1])[:, None], (rows + 0.5 - p[:, 1:])[:, :, None]
        across, down = _away(x, y, *step.T[:, :, None, None])
        covered = across * across + down * down < reach * reach * 1.0001
        covered &= (columns < width)[:, None] & (rows < height)[:, :, None]
        places = (rows[:, :, None] * width + columns[:, None])[covered]
        cover = np.clip(reach - np.hypot(across[covered], down[covered]), 0.0, 1.0)
        if erase:
            np.minimum.at(canvas.reshape(-1), places, 1.0 - cover)
        else:
            np.maximum.at(canvas.reshape(-1), places, cover)


def _batches(*parts: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Parts with windows of about one size, as many as have BATCH pixels."""
    sides = parts[3] - parts[2]
    order = np.argsort(sides.max(1), kind="stable")
    while len(order):
        longest = sides[order[:MANY]].max(0)
        count = max(1, min(MANY, BATCH // int(longest.prod())))
        yield tuple(part[order[:count]] for part in parts)
        order = order[count:]


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
