"""A contact sheet of a dataset's pairs: one row for each pair, one column for each kind of picture.

Legend: H W pixels, K drags.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..sheet import contact_sheet
from ..signals.drag import draw_drag
from .sample import Sample

COLUMNS = ("source", "target", "flow (hue: direction)", "visible", "sketch", "drags, red to green", "coarse edit")


def colour_wheel(flow: Tensor, longest: float | None = None) -> Tensor:
    """Flow as colour (after Baker and others 2011): hue its direction, from white at rest to full colour at `longest`.

    Args:
        flow: (2, H, W) pixels.  longest: pixels; None takes the field's 99th percentile, at least one pixel.

    Returns:
        (3, H, W) in [0, 1].
    """
    length = flow.norm(dim=0)
    if longest is None:
        flat = length.flatten()
        longest = max(1.0, float(flat.kthvalue(max(1, math.ceil(0.99 * flat.numel()))).values))
    depth = (length / longest).clamp(0, 1)
    hue = torch.atan2(flow[1], flow[0]) / (2 * math.pi) % 1 * 6
    # Hue to red, green and blue by the three ramps of the colour circle.
    pure = torch.stack([((hue + shift) % 6 - 3).abs() - 1 for shift in (0, 4, 2)]).clamp(0, 1)
    return 1 - depth * (1 - pure)


def drags_on(picture: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The picture, dimmed, with its drags: (3, H, W), (K, 2) twice -> (3, H, W)."""
    drawn = draw_drag(source, target, *picture.shape[-2:]).to(picture)
    return torch.where(drawn.amax(0, keepdim=True) > 0.5, drawn, 0.5 * picture)


def sheet(samples: Sequence[Sample]) -> Tensor:
    """A contact sheet of one sample or more: (1, height, width, 3) in [0, 1]."""
    rows = []
    for s in samples:
        pictures = [s.source, s.target, colour_wheel(s.flow), s.visible[None].float().expand(3, -1, -1), s.sketch,
                    drags_on(s.source, s.drag_source, s.drag_target), s.coarse]
        rows.append((caption(s), [p.movedim(0, -1) for p in pictures]))
    return contact_sheet(COLUMNS, rows)


def caption(sample: Sample) -> str:
    """One line about a pair."""
    info, found = sample.info, sample.info.get("measures", {})
    parts = [sample.key]
    if info.get("seconds") is not None:
        first, last = info.get("frames", ("?", "?"))
        parts.append(f"{info.get('video')}, frames {first} and {last}, {info['seconds']:.2f} s apart")
    if found:
        parts.append(f"motion {100 * found['motion']:.1f} % of the diagonal, moving {100 * found['moving']:.0f} %, visible "
                     f"{100 * found['visible']:.0f} %")
    parts.append(f"flow: {info.get('flow_source', '?')}")
    return "; ".join(parts)


def counts(samples: int, skipped: Sequence[str], shown: tuple[int, int]) -> str:
    """The text of a preview. shown: numbers of the first and last row."""
    lines = [f"{samples} pairs; shown {shown[0]} to {shown[1]}; damaged and skipped: {len(skipped)}"]
    return "\n".join(lines + [f"skipped: {s}" for s in skipped[:20]])
