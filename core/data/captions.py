"""Captioned procedural scenes: one plain shape on a plain ground, and the sentence that describes it.

The small text-to-image model is trained on them, and edits of a clip can be measured against the same clip rendered with
another colour, shape or ground. `core/data/procedural.py` makes the scenes without words.

Legend: B scenes, T frames, H = W = side pixels. Scene coordinates are (x, y), 0 in the picture's middle, 1 at its borders,
y downwards. The four shapes have the same area at the same radius (that of the disc).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

COLOURS = {"red": (0.86, 0.12, 0.12), "green": (0.10, 0.60, 0.20), "blue": (0.12, 0.25, 0.85), "yellow": (0.95, 0.85, 0.10),
           "purple": (0.52, 0.15, 0.68), "pink": (0.98, 0.58, 0.76), "white": (0.94, 0.94, 0.94), "black": (0.07, 0.07, 0.07),
           "grey": (0.50, 0.50, 0.50)}
SUBJECTS = ("red", "green", "blue", "yellow", "purple", "pink", "white", "black")  # colours of shapes
GROUNDS = ("white", "grey", "black", "green", "blue", "yellow")                    # colours of grounds
SHAPES = ("disc", "square", "triangle", "cross")
SIZES = {"small": (0.24, 0.31), "large": (0.42, 0.50)}  # radii
JITTER = 0.02   # standard deviation of a scene's colours around those above
SHADING = 0.04  # largest change of a ground's brightness from the middle to a border
GAP = 0.04      # least distance of a shape from the borders

_SQUARE = math.sqrt(math.pi) / 2                     # half a side
_TRIANGLE = math.sqrt(math.pi / (3 * math.sqrt(3)))  # radius of the inscribed circle
_ARM = 0.36                                          # half the width of a cross's arm, in half its length
_CROSS = math.sqrt(math.pi / (8 * _ARM - 4 * _ARM**2))
# How far each shape reaches from its centre at radius 1: left and right, up, down.
_REACH = torch.tensor([[1.0, 1.0, 1.0], [_SQUARE] * 3, [math.sqrt(3) * _TRIANGLE, 2 * _TRIANGLE, _TRIANGLE], [_CROSS] * 3])


class Subjects(NamedTuple):
    """What captions tell of B scenes: indices into SHAPES, SUBJECTS, GROUNDS and SIZES, each (B,)."""

    shape: Tensor
    colour: Tensor
    ground: Tensor
    size: Tensor


class Scenes(NamedTuple):
    """Everything that makes B pictures or clips."""

    subjects: Subjects
    shade: Tensor         # (B, 3) deviation of the shape's colour from its name's
    ground_shade: Tensor  # (B, 3)
    slope: Tensor         # (B, 2) brightness of the ground along x and y
    centre: Tensor        # (B, T, 2)
    radius: Tensor        # (B, T)


def held_out(subjects: Subjects) -> Tensor:
    """(B,) bool: combinations of shape, colour and ground that no scene for training shows; a seventh of them."""
    return (subjects.shape + 2 * subjects.colour + 3 * subjects.ground) % 7 == 0


def colours_agree(subjects: Subjects) -> Tensor:
    """(B,) bool: shape and ground have the same colour, so that nothing can be seen."""
    words = torch.tensor([[a == b for b in GROUNDS] for a in SUBJECTS])
    return words[subjects.colour, subjects.ground]


def all_subjects() -> Subjects:
    """Every combination in which the shape can be seen, both sizes."""
    ranges = [torch.arange(len(names)) for names in (SHAPES, SUBJECTS, GROUNDS, SIZES)]
    every = Subjects(*torch.cartesian_prod(*ranges).unbind(1))
    kept = ~colours_agree(every)
    return Subjects(*(part[kept] for part in every))


def draw_subjects(count: int, generator: torch.Generator, held: bool = False) -> Subjects:
    """Draw B = count subjects among those for training, or among the held-out ones."""
    every = all_subjects()
    chosen = (held_out(every) == held).nonzero()[:, 0]
    chosen = chosen[torch.randint(len(chosen), (count,), generator=generator)]
    return Subjects(*(part[chosen] for part in every))


def draw_scenes(subjects: Subjects, frames: int, generator: torch.Generator, shift: float = 0.0) -> Scenes:
    """Place subjects, T = frames: every shape whole inside the picture, in all frames.

    Args:
        shift: longest path over the clip, as a share of the room that there is.
    """
    count = len(subjects.shape)
    ranges = torch.tensor(list(SIZES.values()))[subjects.size]  # (B, 2)
    radius = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * torch.rand(count, generator=generator)
    side, up, down = (_REACH[subjects.shape] * radius[:, None]).unbind(1)
    low = torch.stack([side, up], 1) - 1 + GAP
    high = 1 - GAP - torch.stack([side, down], 1)
    place = torch.rand(count, 1, 2, generator=generator)
    step = (torch.rand(count, 1, 2, generator=generator) * 2 - 1) * shift
    time = torch.linspace(-0.5, 0.5, frames)[:, None] if frames > 1 else torch.zeros(1, 1)
    share = (place + step * time).clamp(0, 1)  # (B, T, 2)
    slope = torch.rand(count, 2, generator=generator) * 2 - 1
    return Scenes(subjects, JITTER * torch.randn(count, 3, generator=generator),
                  JITTER * torch.randn(count, 3, generator=generator), SHADING * slope,
                  low[:, None] + (high - low)[:, None] * share, radius[:, None].expand(-1, frames))


def coverage(shape: Tensor, centre: Tensor, radius: Tensor, side: int) -> Tensor:
    """How much of each pixel shapes cover, edges one pixel soft.

    Args:
        shape: (B,) indices into SHAPES.  centre: (B, 2).  radius: (B,).

    Returns:
        (B, side, side) in [0, 1].
    """
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    x = (line[None, None] - centre[:, 0, None, None]) / radius[:, None, None]
    y = (line[None, :, None] - centre[:, 1, None, None]) / radius[:, None, None]
    ax, ay = x.abs().expand(-1, side, -1), y.abs().expand(-1, -1, side)
    inside = torch.stack([  # distance to the edge, positive inside
        1 - (x * x + y * y).sqrt(),
        _SQUARE - torch.maximum(ax, ay),
        _TRIANGLE - torch.maximum(y.expand_as(ax), math.sqrt(3) / 2 * ax - y / 2),
        torch.maximum(torch.minimum(_ARM * _CROSS - ax, _CROSS - ay), torch.minimum(_ARM * _CROSS - ay, _CROSS - ax)),
    ])[shape, torch.arange(len(shape))]
    return (inside * radius[:, None, None] * side / 2 + 0.5).clamp(0, 1)


def render(scenes: Scenes, side: int) -> Tensor:
    """Pictures of all frames: (B, T, 3, side, side) in [0, 1]."""
    table = torch.tensor([COLOURS[name] for name in SUBJECTS])
    grounds = torch.tensor([COLOURS[name] for name in GROUNDS])
    count, frames = scenes.radius.shape
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    light = scenes.slope[:, 0, None, None] * line + scenes.slope[:, 1, None, None] * line[:, None]
    ground = (grounds[scenes.subjects.ground] + scenes.ground_shade)[:, :, None, None] + light[:, None]
    colour = (table[scenes.subjects.colour] + scenes.shade)[:, :, None, None]
    cover = coverage(scenes.subjects.shape.repeat_interleave(frames), scenes.centre.flatten(0, 1),
                     scenes.radius.flatten(0, 1), side).reshape(count, frames, 1, side, side)
    return torch.lerp(ground[:, None], colour[:, None], cover).clamp(0, 1)


def words(subjects: Subjects, index: int, size: bool = True, ground: bool = True) -> list[str]:
    """The words of one scene's caption; the size and the ground may be left unsaid."""
    shape, colour, under, large = (int(part[index]) for part in subjects)
    out = ["a", *([list(SIZES)[large]] if size else []), SUBJECTS[colour], SHAPES[shape]]
    return out + (["on", "a", GROUNDS[under], "ground"] if ground else [])


def caption(subjects: Subjects, index: int, size: bool = True, ground: bool = True) -> str:
    """One scene's caption: "a small red disc on a green ground"."""
    return " ".join(words(subjects, index, size, ground))


def subject_of(text: str) -> Subjects:
    """The subject that a caption describes, B = 1; large where it does not say the size, on grey where not the ground.

    Raises:
        ValueError: the text names no shape or no colour for it.
    """
    said = text.split()
    under = said.index("on") if "on" in said else len(said)

    def first(names: tuple[str, ...], among: list[str], otherwise: str | None = None) -> Tensor:
        found = next((word for word in among if word in names), otherwise)
        if found is None:
            raise ValueError(f"'{text}' holds none of {', '.join(names)}")
        return torch.tensor([names.index(found)])

    return Subjects(first(SHAPES, said[:under]), first(SUBJECTS, said[:under]), first(GROUNDS, said[under:], "grey"),
                    first(tuple(SIZES), said[:under], "large"))
