"""The coarse editor's pieces -> a roughly edited picture, as docs/editor_state.md defines it.

Legend: B batch, H W pixels, C channels. Pictures (B, H, W, C) in [0, 1], masks (H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from .editor_state import check_state, drawn_size, is_number, items, load_json, shown, size_ratios
from .raster import Window, cover_polygon

NAME = "pieces"
EXAMPLE = ("Edit in the node's editor, leave it empty, or write it as in docs/editor_state.md, such as "
           '{"version": 1, "width": 512, "height": 512, "pieces": [{"outline": [10, 10, 90, 10, 90, 80], "move": [120, 0]}]}.')
BACKGROUNDS = ("black", "fill")
MAX_PIECES, MAX_CORNERS = 1_000, 100_000
MIN_SCALE = 0.01
BLOCK = 2**20  # pixels of a piece that are worked on at a time


class Piece(NamedTuple):
    """outline: (N, 2) corners in pixels of the picture drawn on; move likewise; rotate in degrees, clockwise as seen."""

    outline: np.ndarray
    move: np.ndarray
    scale: np.ndarray
    rotate: float
    copy: bool
    delete: bool


class Pieces(NamedTuple):
    """The contents of a coarse editor's state. notes: what was left out, for a warning."""

    state: dict
    background: str
    pieces: tuple[Piece, ...]
    notes: tuple[str, ...]


class Placed(NamedTuple):
    """picture: (B, H, W, C) with the pieces in their new places.  uncovered: (H, W) what they left and nothing hides.
    placed: (H, W) where they are now.  changed: (H, W) all that was touched: left, deleted or laid over."""

    picture: Tensor
    uncovered: Tensor
    placed: Tensor
    changed: Tensor


def read_pieces(text: str | None) -> Pieces:
    """Read a coarse editor's text.

    Raises:
        ValueError: naming the node, the input, what is wrong and what to do.
    """
    state = check_state(load_json(text, NAME, EXAMPLE), NAME, EXAMPLE)
    background = state.get("background", "black")
    if background not in BACKGROUNDS:
        raise ValueError(f"the background in {NAME} is {shown(background)}; it must be 'black' or 'fill'.")
    pieces, notes, total = [], [], 0
    for number, entry in enumerate(items(state, "pieces", MAX_PIECES, NAME), 1):
        where = f"piece {number} of {NAME}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where} is {shown(entry)}, not an object. {EXAMPLE}")
        outline = _numbers(where, "outline", entry.get("outline"), None)
        if len(outline) % 2:
            raise ValueError(f"{where} has {len(outline)} coordinates in its outline; they must come in pairs x, y.")
        if len(outline) < 6:
            raise ValueError(f"{where} has an outline of {len(outline) // 2} corners; it needs at least 3. Draw the area "
                             "again, or delete the piece.")
        total += len(outline) // 2
        if total > MAX_CORNERS:
            raise ValueError(f"{NAME} has more than {MAX_CORNERS} corners. Select with fewer.")
        corners = np.array(outline, np.float64).reshape(-1, 2)
        move = np.array(_numbers(where, "move", entry.get("move", [0, 0]), 2), np.float64)
        scale = np.array(_numbers(where, "scale", entry.get("scale", [1, 1]), 2), np.float64)
        rotate = entry.get("rotate", 0)
        if not is_number(rotate):
            raise ValueError(f"{where} has the rotate {shown(rotate)}; it must be a number of degrees.")
        if (np.abs(scale) < MIN_SCALE).any():
            raise ValueError(f"{where} has the scale {shown(entry['scale'])}; no factor may be smaller than {MIN_SCALE} in "
                             "absolute value. Use \"delete\": true to remove what is inside.")
        for flag in ("copy", "delete"):
            if not isinstance(entry.get(flag, False), bool):
                raise ValueError(f"{where} has {shown(entry[flag])} for '{flag}'; it must be true or false.")
        if np.ptp(corners, 0).min() <= 0:
            notes.append(f"piece {number} has no area and was left out")
            continue
        pieces.append(Piece(corners, move, scale, float(rotate), entry.get("copy", False), entry.get("delete", False)))
    if pieces:
        drawn_size(state, NAME)
    return Pieces(state, background, tuple(pieces), tuple(notes))


def _numbers(where: str, key: str, value: object, count: int | None) -> list:
    if not isinstance(value, list) or not all(is_number(v) for v in value) or count not in (None, len(value)):
        wanted = "a list of corners x, y, x, y ..." if count is None else f"a list of {count} finite numbers"
        raise ValueError(f"{where} has the {key} {shown(value)}; it must be {wanted}.")
    return value


class Ground(NamedTuple):
    """A picture from which the pieces are gone. source, picture: (B, H, W, C) before and after.  uncovered: (H, W) what they left.
    pieces: at the picture's size."""

    source: Tensor
    picture: Tensor
    uncovered: np.ndarray
    pieces: tuple[Piece, ...]


def place_pieces(pieces: Pieces, picture: Tensor, stretch: bool = False, step: Callable[[], None] = lambda: None) -> Placed:
    """Move, copy and remove the pieces of a picture.

    Args:
        picture: (B, H, W, C); all pictures of a batch get the same edit.
        stretch: also if the picture drawn on has another aspect ratio.
        step: called after each piece; what it raises ends the work.

    Returns:
        Placed; float32. Without pieces the picture itself.

    Raises:
        ValueError: another aspect ratio.
    """
    return _laid(_ground(pieces, picture, stretch), 1.0, step)


def _ground(pieces: Pieces, picture: Tensor, stretch: bool) -> Ground:
    height, width = picture.shape[1:3]
    uncovered, source = np.zeros((height, width)), picture.float()
    if not pieces.pieces:
        return Ground(source, source, uncovered, ())
    ratios = np.array(size_ratios(pieces.state, height, width, stretch, NAME))
    fitted = tuple(p._replace(outline=p.outline * ratios, move=p.move * ratios) for p in pieces.pieces)
    for piece in fitted:
        if not piece.copy:
            window, cover = cover_polygon(piece.outline, height, width)
            uncovered[window] = np.maximum(uncovered[window], cover)
    hole = torch.from_numpy(uncovered).to(source)[..., None]
    out = source * (1 - hole)
    if pieces.background == "fill":
        out += hole * fill(source, torch.from_numpy(uncovered))
    return Ground(source, out, uncovered, fitted)


def _laid(ground: Ground, share: float, step: Callable[[], None]) -> Placed:
    """The pieces laid onto their ground, each so far on its way."""
    source, out, uncovered = ground.source, ground.picture, ground.uncovered.copy()
    height, width = uncovered.shape
    placed = np.zeros((height, width))
    out = out.clone() if ground.pieces else out
    for whole in ground.pieces:
        piece = _partly(whole, share)
        step()
        if piece.delete:
            continue
        forward, inverse, middle = transform(piece)
        moved = (piece.outline - middle) @ forward.T + middle + piece.move
        window, cover = cover_polygon(moved, height, width)
        if not cover.size:
            continue
        weight = torch.from_numpy(cover).to(source)[..., None]
        view = out[:, window[0], window[1]]
        view.copy_(view * (1 - weight) + weight * _taken(source, window, inverse, middle, piece.move))
        uncovered[window] *= 1 - cover
        placed[window] = np.maximum(placed[window], cover)
    return Placed(out, *(torch.from_numpy(m).float() for m in (uncovered, placed, np.maximum(ground.uncovered, placed))))


def _partly(piece: Piece, share: float) -> Piece:
    """A piece with its move, turn and scale only partly done; it is flipped and removed from the start."""
    scale = np.sign(piece.scale) * np.abs(piece.scale) ** share
    return piece._replace(move=piece.move * share, rotate=piece.rotate * share, scale=scale)


def place_clip(pieces: Pieces, picture: Tensor, frames: int, stretch: bool = False, step: Callable[[], None] = lambda: None
               ) -> tuple[Tensor, Tensor]:
    """The edit as a movement: the picture itself, then the pieces on their way, at last in place.

    Args:
        picture: (1, H, W, C).  frames: T, at least 2.  step: see `place_pieces`.

    Returns:
        (T, H, W, C), and (T, H, W) where each frame is to be followed: frame 0 everywhere, the others where pieces lie.
    """
    ground = _ground(pieces, picture, stretch)
    steps = [_laid(ground, k / (frames - 1), step) for k in range(1, frames)]
    everywhere = torch.ones(1, *picture.shape[1:3])
    return (torch.cat([picture.float(), *(s.picture for s in steps)]),
            torch.cat([everywhere, *(s.placed[None] for s in steps)]))


def transform(piece: Piece) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A piece's matrix R S, its inverse, and the point that stays in place when it turns: (2, 2), (2, 2), (2,)."""
    turns, rest = divmod(piece.rotate, 90.0)
    if rest == 0:  # quarter turns are exact, as pixels then land on pixels
        cos, sin = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(turns) % 4]
    else:
        cos, sin = math.cos(math.radians(piece.rotate)), math.sin(math.radians(piece.rotate))
    turn = np.array([[cos, -sin], [sin, cos]])  # y points down: clockwise as seen
    middle = (piece.outline.min(0) + piece.outline.max(0)) / 2
    return turn * piece.scale, turn.T / piece.scale[:, None], middle


def _taken(source: Tensor, window: Window, inverse: np.ndarray, middle: np.ndarray, move: np.ndarray) -> Tensor:
    """The original at the inverse places of a window's pixel middles: bilinear, border pixels repeated.

    Row by block of rows, so that a piece of a large photo needs little memory.
    """
    height, width = source.shape[1:3]
    rows, columns = window
    x = np.arange(columns.start, columns.stop) + 0.5 - middle[0] - move[0]
    out, block = [], max(1, BLOCK // max(len(x), 1))
    for top in range(rows.start, rows.stop, block):
        y = (np.arange(top, min(top + block, rows.stop)) + 0.5 - middle[1] - move[1])[:, None]
        at_x = np.clip(inverse[0, 0] * x + inverse[0, 1] * y + middle[0] - 0.5, 0, width - 1)
        at_y = np.clip(inverse[1, 0] * x + inverse[1, 1] * y + middle[1] - 0.5, 0, height - 1)
        left, upper = np.floor(at_x).astype(np.int64), np.floor(at_y).astype(np.int64)
        right, lower = np.minimum(left + 1, width - 1), np.minimum(upper + 1, height - 1)
        share_x, share_y = (torch.from_numpy(v).to(source)[..., None] for v in (at_x - left, at_y - upper))

        def at(row: np.ndarray, column: np.ndarray) -> Tensor:
            return source[:, torch.from_numpy(row).to(source.device), torch.from_numpy(column).to(source.device)]

        above = at(upper, left) * (1 - share_x) + at(upper, right) * share_x
        below = at(lower, left) * (1 - share_x) + at(lower, right) * share_x
        out.append(above * (1 - share_y) + below * share_y)
    return torch.cat(out, 1)


def fill(picture: Tensor, uncovered: Tensor) -> Tensor:
    """Close an area from its surroundings: a pyramid of weighted means, pulled up and pushed down.

    Gortler et al. 1996 (The Lumigraph, section 3.4) in its simplest form; exact numbers in docs/editor_state.md. A block of
    2 x 2 has the mean of its weights and the weighted mean of its colours; enlarging is by two, bilinear.

    Args:
        picture: (B, H, W, C).  uncovered: (H, W), 1 where nothing is known.

    Returns:
        (B, H, W, C). Known pixels are themselves; if nothing is known all is 0.
    """
    colour = picture.movedim(-1, 1).float()
    weight = 1 - uncovered.to(colour)[None, None].clamp(0, 1)
    levels = [(colour, weight)]
    while max(colour.shape[-2:]) > 1:
        summed = _blocks(colour * weight)
        total = _blocks(weight)
        colour = torch.where(total > 0, summed / total.masked_fill(total == 0, 1.0), 0.0)
        weight = total / _blocks(torch.ones_like(weight))
        levels.append((colour, weight))
    below = levels[-1][0]
    for colour, weight in reversed(levels[:-1]):
        height, width = colour.shape[-2:]
        below = interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
        below = colour * weight + below * (1 - weight)
    return below.movedim(1, -1).to(picture)


def _blocks(x: Tensor) -> Tensor:
    """Sums over blocks of 2 x 2 of (..., H, W), sizes halved and rounded up."""
    x = pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
    return x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]
