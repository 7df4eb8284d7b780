"""Flow that the user gives: dense arrays, or point tracks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..parsing import json_value
from .consistency import FlowError, inside

# ---- what other nodes give -------------------------------------------------------------------------------------------


class Tracks(NamedTuple):
    """path: (T, N, 2) as (x, y) in pixels of the frames; visible: (T, N) bool."""

    path: Tensor
    visible: Tensor


def parse_tracks(value: Any) -> Tracks:
    """Tracks as ComfyUI's nodes pass them.

    Takes: ComfyUI's TRACKS, a dict of track_path (T, N, 2) and track_visibility (T, N); JSON of one track a point, a list of
    {"x", "y"} or [x, y] for each frame, as one string or as a list of strings, as CoTracker nodes give them; or a tensor
    (T, N, 2). A point that is null, or has a coordinate that is null or not finite, is hidden in that frame.

    Raises:
        FlowError: none of these; the text says what came.
    """
    seen = None
    if isinstance(value, Mapping):
        if "track_path" not in value:
            raise FlowError(f"tracks is a dict with {', '.join(map(str, value)) or 'nothing in it'}; expected track_path and "
                            "track_visibility")
        path, seen = _tensor(value["track_path"], "track_path"), value.get("track_visibility")
    elif isinstance(value, Tensor):
        path = value
    else:
        path = _points(value)
    if path.ndim == 4 and len(path) == 1:
        path = path[0]
    if path.ndim != 3 or path.shape[-1] != 2 or not path.numel():
        raise FlowError(f"tracks have shape {tuple(path.shape)}; expected (frames, points, 2)")
    path = path.detach().cpu().float()
    visible = torch.isfinite(path).all(-1)
    if seen is not None:
        seen = torch.as_tensor(seen).detach().cpu()
        seen = seen[0] if seen.ndim == 3 and len(seen) == 1 else seen.squeeze(-1) if seen.ndim == 3 else seen
        try:
            seen = seen.expand(path.shape[:2])
        except RuntimeError:
            raise FlowError(f"track_visibility has shape {tuple(seen.shape)}, track_path {tuple(path.shape)}") from None
        visible &= seen > 0.5
    return Tracks(torch.nan_to_num(path), visible)


def _points(value: Any) -> Tensor:
    """JSON tracks -> (T, N, 2), NaN where hidden."""
    try:
        read = json_value(value) if isinstance(value, str) else value
        tracks = [json_value(t) if isinstance(t, str) else t for t in read]
        if tracks and isinstance(tracks[0], Mapping):  # one track alone
            tracks = [tracks]
        rows = [[(float("nan"),) * 2 if p is None else (p["x"], p["y"]) if isinstance(p, Mapping) else (p[0], p[1])
                 for p in track] for track in tracks]
        rows = [[[float("nan") if c is None else float(c) for c in p] for p in row] for row in rows]
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise FlowError(f"tracks cannot be read ({type(error).__name__}: {error}); expected one list of points for each track, "
                        "each {\"x\": .., \"y\": ..}") from None
    if not rows or len({len(row) for row in rows}) != 1:
        raise FlowError(f"tracks have {', '.join(sorted({str(len(row)) for row in rows})) or 'no'} frames; expected the same "
                        "number for each")
    return torch.tensor(rows, dtype=torch.float64).float().movedim(0, 1)


def _tensor(value: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise FlowError(f"{name} cannot be read as numbers ({type(error).__name__}: {error})") from None


def flow_from_points(target: Tensor, source: Tensor, height: int, width: int, radius: float) -> tuple[Tensor, Tensor]:
    """Flow around tracked points: each pixel takes the nearest point's motion, if one lies within the radius.

    Args:
        target, source: (N, 2) pixels.  radius: pixels.

    Returns:
        flow (1, 2, H, W), zero elsewhere, and visible (1, H, W), False elsewhere and where the place lies outside.
    """
    flow, near = torch.zeros(1, 2, height, width), torch.zeros(1, height, width, dtype=torch.bool)
    if not len(target):
        return flow, near
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(-1, 2).float()
    distance, index = zip(*(torch.cdist(part, target.float()).min(1) for part in pixels.split(65536)), strict=True)
    near = (torch.cat(distance) <= radius).reshape(1, height, width)
    flow = (source - target).float()[torch.cat(index)].T.reshape(1, 2, height, width) * near[:, None]
    return flow, near & inside(flow)


def parse_flow(value: Any, frames: int) -> Tensor:
    """Flow between consecutive frames, as flow nodes pass it -> (T - 1, 2, h, w).

    Takes a tensor (T - 1, h, w, 2) or (T - 1, 2, h, w), or a list of single ones: displacement in pixels of its own size from
    each pixel of a frame to its place in the next.

    Raises:
        FlowError: another shape, or another number of frames.
    """
    if isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
        value = torch.cat([v if v.ndim == 4 else v[None] for v in value])
    if not isinstance(value, Tensor) or value.ndim != 4 or 2 not in (value.shape[1], value.shape[-1]):
        shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        raise FlowError(f"flow has {shape}; expected a tensor (frames - 1, height, width, 2)")
    flow = value if value.shape[-1] != 2 else value.movedim(-1, 1)
    if len(flow) != frames - 1:
        raise FlowError(f"flow has {len(flow)} fields for {frames} frames; expected {frames - 1}, one from each frame to the "
                        "next")
    return torch.nan_to_num(flow.detach().cpu().float())
