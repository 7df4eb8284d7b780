"""Edits of procedural scenes as a user would make them in the editors: the same texts, written from the true motion.

For measuring (bench/signals.py), for tests, and for the example workflows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

MARGIN = 1.06  # a lasso is drawn a little outside its object
CORNERS = 28


class Edit(NamedTuple):
    """One scene of one moving sprite.

    source, target: (1, H, W, 3) pictures; background: (1, H, W, 3) without the sprite; moved: (H, W) bool, where the sprite
    is or was; still: (H, W) bool, the rest without a margin of two pixels.
    strokes, points, pieces: the editors' texts, pieces with a black background; filled: the same, filled.
    """

    source: Any
    target: Any
    background: Any
    moved: Any
    still: Any
    strokes: str
    points: str
    pieces: str
    filled: str


def edits(load: Callable[[str], Any], settings: dict, count: int, seed: int) -> list[Edit]:
    """The first `count` scenes of a seed whose sprite stands out and is never cut off by the border.

    Args:
        load: modules of the pack by path.  settings: of core/data/procedural.py's SceneSettings.
    """
    import torch

    procedural = load("core.data.procedural")
    generator = torch.Generator().manual_seed(seed)
    scenes = procedural.draw_scenes(12 * count, 2, procedural.SceneSettings(**{**settings, "sprites": (1, 1)}), generator)
    clips = procedural.render(scenes).movedim(2, -1)
    there = [procedural.correspondence(scenes, 0, frame).owner > 0 for frame in (0, 1)]
    found = []
    for i in range(len(clips)):
        background = scenes.background[i].movedim(0, -1)
        inside = [o[i] for o in there]
        cut = any(bool(o[[0, -1]].any() or o[:, [0, -1]].any()) for o in inside)
        contrast = (clips[i, 0] - background).abs().amax(-1)[inside[0]].mean() if inside[0].any() else 0
        if cut or contrast < 0.25 or not inside[1].any():
            continue
        found.append(_edit(load, scenes, clips, background, inside, i))
        if len(found) == count:
            break
    return found


def _edit(load: Callable[[str], Any], scenes: Any, clips: Any, background: Any, inside: list, i: int) -> Edit:
    height, width = background.shape[:2]
    distance = load("core.keeping.distance")
    moved = inside[0] | inside[1]
    texts = editor_texts(scenes, i, height, width)
    return Edit(clips[i, :1], clips[i, 1:2], background[None], moved, ~distance.grown(moved, 2), *texts)


def editor_texts(scenes: Any, i: int, height: int, width: int, sprite: int = 0) -> tuple[str, str, str, str]:
    """strokes, points, pieces, filled of one sprite's motion from the first to the last frame."""
    half = min(height, width) / 2
    corners = [_on_edge(2 * math.pi * k / CORNERS, float(scenes.exponent[i, sprite])) for k in range(CORNERS)]

    def place(x: float, y: float, frame: int) -> tuple[float, float]:
        """A point in the sprite's own coordinates, in pixels."""
        angle, size = float(scenes.angle[i, sprite, frame]), float(scenes.scale[i, sprite, frame] * scenes.radius[i, sprite])
        cx, cy = scenes.centre[i, sprite, frame].tolist()
        return (round(width / 2 + half * (cx + size * (x * math.cos(angle) - y * math.sin(angle))), 1),
                round(height / 2 + half * (cy + size * (x * math.sin(angle) + y * math.cos(angle))), 1))

    def outline(frame: int, factor: float) -> list[float]:
        return [v for x, y in corners for v in place(x * factor, y * factor, frame)]

    sizes = {"version": 1, "width": width, "height": height}
    target = outline(-1, 1.0)
    stroke = {"tool": "brush", "size": 2, "points": [*target, *target[:2]]}
    inner = [(0.0, 0.0), (0.5, 0.5), (-0.5, 0.5), (0.5, -0.5), (-0.5, -0.5)]
    lasso = outline(0, MARGIN)
    start = [(min(lasso[k::2]) + max(lasso[k::2])) / 2 for k in (0, 1)]
    end = place(0, 0, -1)
    growth = round(float(scenes.scale[i, sprite, -1] / scenes.scale[i, sprite, 0]), 4)
    piece = {"outline": lasso, "move": [round(b - a, 1) for a, b in zip(start, end, strict=True)], "scale": [growth, growth],
             "rotate": round(math.degrees(float(scenes.angle[i, sprite, -1] - scenes.angle[i, sprite, 0])), 1)}
    return (json.dumps({**sizes, "strokes": [stroke]}),
            json.dumps({**sizes, "drags": [[*place(x, y, 0), *place(x, y, -1)] for x, y in inner]}),
            json.dumps({**sizes, "background": "black", "pieces": [piece]}),
            json.dumps({**sizes, "background": "fill", "pieces": [piece]}))


def _on_edge(turn: float, exponent: float) -> tuple[float, float]:
    """A point at distance 1 in the superellipse's own measure."""
    x, y = math.cos(turn), math.sin(turn)
    size = (abs(x) ** exponent + abs(y) ** exponent) ** (1 / exponent)
    return x / size, y / size
