"""Optical flow between two pictures: RAFT if its weights are there, a weight-free estimator if not, or what others give.

One interface: `(target, source) -> flow`, (B, 3, H, W) in [0, 1] twice -> (B, 2, H, W), the displacement (dx, dy) in pixels
from each target pixel to its place in the source.

Legend: B pairs, H W pixels, T frames, N tracks, D width of a descriptor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..signals.splat import softmax_splat
from .procedural import warp

FlowFunction = Callable[[Tensor, Tensor], Tensor]


class FlowError(ValueError):
    """A weights file, a flow or tracks that cannot be used; the text says why."""


# ---- consistency -----------------------------------------------------------------------------------------------------


def inside(flow: Tensor) -> Tensor:
    """Whether each pixel's place lies inside the picture: (B, 2, H, W) -> (B, H, W)."""
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij")
    to_x, to_y = x + flow[:, 0], y + flow[:, 1]
    return (to_x >= -0.5) & (to_x <= width - 0.5) & (to_y >= -0.5) & (to_y <= height - 0.5)


def consistent(flow: Tensor, back: Tensor, relative: float = 0.01, absolute: float = 0.5) -> Tensor:
    """Whether going along a flow and back ends where it began (Sundaram and others 2010, equation 5).

    Args:
        flow: (B, 2, H, W) target to source.  back: (B, 2, H, W) source to target.
        relative, absolute: squared error allowed, in parts of the squared lengths and in square pixels.

    Returns:
        (B, H, W), False where the place lies outside the picture.
    """
    there = warp(back, flow)
    error = (flow + there).square().sum(1)
    allowed = relative * (flow.square().sum(1) + there.square().sum(1)) + absolute
    return (error < allowed) & inside(flow)


def inverse(flow: Tensor, importance: Tensor | None = None) -> Tensor:
    """The flow the other way: each vector splatted to where it points. (B, 2, H, W) -> the same.

    Where nothing lands the vectors around go on inwards; going there and back shows that they are no correspondence.

    Args:
        importance: (B, 1, H, W), see softmax_splat.
    """
    out = softmax_splat(-flow, flow, importance)
    return filled(out.image, out.cover.clamp_max(1))


def filled(values: Tensor, known: Tensor) -> Tensor:
    """Holes take the weighted mean of what is around them, from size to size (Gortler and others 1996, push-pull).

    Args:
        values: (B, C, H, W).  known: (B, 1, H, W) in [0, 1].
    """
    if min(known.shape[-2:]) <= 1 or float(known.min()) >= 1:
        return values
    size = known.shape[-2:]
    weight = F.adaptive_avg_pool2d(known, tuple((s + 1) // 2 for s in size))
    mean = F.adaptive_avg_pool2d(values * known, weight.shape[-2:]) / weight.clamp_min(1e-6)
    coarse = filled(mean, (4 * weight).clamp_max(1))
    return torch.lerp(F.interpolate(coarse, size, mode="bilinear"), values, known.expand_as(values))


# ---- the weight-free estimator ---------------------------------------------------------------------------------------

# Constants were chosen on procedural scenes with textured and with smooth background; see docs/training_data.md.
COARSE_SIDE = 64        # longer side of the size at which every place is compared with every other, pixels
WORK_SIDE = 512         # pictures are reduced to this side; the flow is enlarged again
PATCH = 7               # of descriptors and of cost windows, pixels
COLOUR_SIGMA = 0.08     # windows follow colour: weight exp(-|difference| / sigma), colours in [0, 1]
REACH_COST = 2e-4       # of a displacement as long as the picture, at the coarse size: untextured places stay where they are
STILL_MARGIN = 1.15     # a place stays where it is unless that costs this much more than to move: noise moves nothing
STILL_FLOOR = 1e-4
COST_TOP = 0.25         # a pixel's cost saturates here: occlusion must not outweigh its window


def weight_free_flow(target: Tensor, source: Tensor) -> Tensor:
    """Flow without a trained network: exhaustive matching at a small size, then refinement from size to size.

    Each refinement lets neighbours' vectors and small changes compete (as in PatchMatch, Barnes and others 2009), windows
    being weighted by colour (Yoon and Kweon 2006), then solves for the rest of a pixel (Lucas and Kanade 1981), and takes
    the weighted median. Untextured places keep the vector nearest to zero, which fits a static camera.

    Args, returns: see the head of this module.
    """
    height, width = target.shape[-2:]
    scale = min(1.0, WORK_SIDE / max(height, width))
    size = (max(8, round(height * scale)), max(8, round(width * scale)))
    sizes = [size]
    while max(sizes[-1]) > COARSE_SIDE:
        sizes.append(tuple(max(8, (s + 1) // 2) for s in sizes[-1]))
    flows = []
    for i in range(len(target)):  # one pair at a time: the windows of several would take memory, and gain nothing on a CPU
        a, b = target[i:i + 1].float(), source[i:i + 1].float()
        flow = _match_everywhere(_resized(a, sizes[-1]), _resized(b, sizes[-1]))
        for level in reversed(sizes):
            flow = _enlarged(flow, level)
            flow = _refine(_resized(a, level), _resized(b, level), flow)
        flows.append(_enlarged(flow, (height, width)))
    return torch.cat(flows).to(target)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size, mode="bilinear", antialias=True)


def _enlarged(flow: Tensor, size: tuple[int, int]) -> Tensor:
    h, w = flow.shape[-2:]
    if (h, w) == size:
        return flow
    scale = torch.tensor([size[1] / w, size[0] / h], device=flow.device)[:, None, None]
    return F.interpolate(flow, size, mode="bilinear") * scale


def _unfolded(x: Tensor, side: int = PATCH) -> Tensor:
    """Windows around each pixel, borders repeated: (1, C, H, W) -> (C, side * side, H * W)."""
    half = side // 2
    padded = F.pad(x, (half,) * 4, mode="replicate")
    return F.unfold(padded, side).reshape(x.shape[1], side * side, -1)


def _features(image: Tensor) -> Tensor:
    """Colours and their gradients, gradients stronger: light changes, edges stay. (1, 3, H, W) -> (1, 9, H, W)."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return torch.cat([image, 2 * dx, 2 * dy], 1)


def _grey_features(image: Tensor) -> Tensor:
    """Colours and the gradient of their mean: (1, 3, H, W) -> (1, 5, H, W)."""
    features = _features(image)
    return torch.cat([image, features[:, 3:6].mean(1, keepdim=True), features[:, 6:].mean(1, keepdim=True)], 1)


def _match_everywhere(target: Tensor, source: Tensor) -> Tensor:
    """The best place of each pixel by its window, anywhere in the source, whole pixels. (1, 3, h, w) -> (1, 2, h, w)."""
    height, width = target.shape[-2:]
    across = torch.arange(PATCH, device=target.device) - PATCH // 2
    near = torch.exp(-(across[:, None] ** 2 + across**2).flatten() / (2 * (PATCH / 3) ** 2)).sqrt()[None, :, None]
    a, b = ((_unfolded(_grey_features(x)) * near).flatten(0, 1).T for x in (target, source))  # (L, D)
    y, x = torch.meshgrid(torch.arange(height, device=target.device), torch.arange(width, device=target.device),
                          indexing="ij")
    places = torch.stack([x, y], -1).reshape(-1, 2).float()
    unit = near.square().sum() * a.shape[1] / near.numel()
    squares, nearness = b.square().sum(1) / unit, REACH_COST / max(height, width)
    best = []
    for begin in range(0, len(a), 4096):
        part, here = a[begin:begin + 4096], places[begin:begin + 4096]
        cost = torch.addmm(squares[None], part, b.T, alpha=-2 / float(unit))  # up to a constant for each pixel
        best.append(cost.add_(torch.cdist(here, places), alpha=nearness).argmin(1))
    flow = places[torch.cat(best)] - places
    flow = flow.T.reshape(1, 2, height, width)
    return _median(flow, _window_weights(target, 5), 5)


def _window_weights(image: Tensor, side: int = PATCH) -> Tensor:
    """(side * side, H * W) weights of a window's pixels, by colour, adding up to 1."""
    difference = (_unfolded(image, side) - image.flatten(2).movedim(1, 0)).abs().sum(0)
    weights = torch.exp(-difference / (3 * COLOUR_SIGMA))
    return weights / weights.sum(0, keepdim=True)


def _window_mean(x: Tensor, weights: Tensor, side: int = PATCH) -> Tensor:
    """Weighted mean over windows: (1, C, H, W) -> the same."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (side // 2,) * 4, mode="replicate")
    out = torch.zeros_like(x)
    for i, weight in enumerate(weights.reshape(-1, height, width)):  # a tap at a time: windows of all would be 49 pictures
        top, left = divmod(i, side)
        out.addcmul_(padded[..., top:top + height, left:left + width], weight)
    return out


def _median(flow: Tensor, weights: Tensor, side: int) -> Tensor:
    """Weighted median over windows, each component alone. (1, 2, H, W)."""
    values, order = _unfolded(flow, side).sort(1)
    reached = weights.expand(2, -1, -1).gather(1, order).cumsum(1) >= 0.5 * weights.sum(0)
    first = reached.to(torch.uint8).argmax(1, keepdim=True)
    return values.gather(1, first).reshape(flow.shape)


def _refine(target: Tensor, source: Tensor, flow: Tensor) -> Tensor:
    """Improve (1, 2, h, w) by competition of candidates, then by Lucas-Kanade steps."""
    a, b = _features(target), _features(source)
    weights, narrow = _window_weights(target), _window_weights(target, 5)
    pull = REACH_COST / max(flow.shape[-2:])

    def cost(candidate: Tensor) -> Tensor:
        difference = (warp(b, candidate) - a).square().mean(1, keepdim=True).clamp_max(COST_TOP)
        return _window_mean(difference, weights) + pull * candidate.square().sum(1, keepdim=True).sqrt()

    best = cost(flow)

    def compete(candidate: Tensor) -> None:
        nonlocal flow, best
        price = cost(candidate)
        flow = torch.where(price < best, candidate, flow)
        best = torch.minimum(price, best)

    compete(torch.zeros_like(flow))
    for distance in (8, 3, 1):
        for dx, dy in ((distance, 0), (-distance, 0), (0, distance), (0, -distance)):
            padded = F.pad(flow, (distance,) * 4, mode="replicate")
            h, w = flow.shape[-2:]
            compete(padded[..., distance + dy:distance + dy + h, distance + dx:distance + dx + w].contiguous())
    for step in (1.0, 0.5):
        for dx, dy in ((step, 0), (-step, 0), (0, step), (0, -step)):
            compete(flow + flow.new_tensor([dx, dy])[:, None, None])
    flow = _median(flow, narrow, 5)
    best = cost(flow)
    gradient = b[:, 3:] / 2  # of the source's colours, per pixel
    for _ in range(3):
        moved = warp(torch.cat([b[:, :3], gradient], 1), flow)
        error, gx, gy = moved[:, :3] - a[:, :3], moved[:, 3:6], moved[:, 6:]
        products = torch.cat([(p * q).sum(1, keepdim=True) for p, q in
                              ((gx, gx), (gx, gy), (gy, gy), (gx, error), (gy, error))], 1)
        xx, xy, yy, xe, ye = _window_mean(products, weights).unbind(1)
        xx, yy = xx + 1e-4, yy + 1e-4  # without texture there is nothing to solve for: no step
        scale = xx * yy - xy * xy
        step = torch.stack([(xy * ye - yy * xe) / scale, (xy * xe - xx * ye) / scale], 1)
        compete(flow + step.clamp(-1, 1))
    rest = torch.zeros_like(flow)
    flow = torch.where(cost(rest) <= STILL_MARGIN * best + STILL_FLOOR, rest, flow)
    return _median(flow, narrow, 5)


# ---- RAFT ------------------------------------------------------------------------------------------------------------

RAFT_STRIDE, RAFT_LEAST = 8, 128  # RAFT's own: sides are multiples of 8, correlation pyramids need 16 cells


def load_raft(path: Path) -> torch.nn.Module:
    """torchvision's RAFT, small or large as the file's shapes say. Nothing is downloaded and no code is unpickled.

    Raises:
        FlowError: the file is not readable, or is not a state dict of either.
    """
    from torchvision.models import optical_flow

    try:
        if path.suffix.lower() in (".safetensors", ".sft"):
            from safetensors.torch import load_file

            tensors = load_file(str(path))
        else:
            tensors = torch.load(str(path), map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and safetensors errors have no common base
        text = " ".join(str(error).split())[:200]
        raise FlowError(f"'{path.name}' cannot be read as weights ({type(error).__name__}: {text}). Download it "
                        "again.") from None
    found = tensors.get("feature_encoder.convnormrelu.0.weight") if isinstance(tensors, Mapping) else None
    make = {32: optical_flow.raft_small, 64: optical_flow.raft_large}.get(0 if found is None else len(found))
    if make is None:
        raise FlowError(f"'{path.name}' is not one of torchvision's RAFT state dicts (no feature_encoder of width 32 or 64). "
                        "Use raft_small or raft_large of torchvision.")
    model = make(weights=None, progress=False)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        text = " ".join(str(error).split())[:300]
        raise FlowError(f"'{path.name}' does not fit torchvision's {make.__name__}: {text}") from None
    return model.eval().float()


def raft_flow(model: Callable[[Tensor, Tensor], Sequence[Tensor]], target: Tensor, source: Tensor) -> Tensor:
    """RAFT (Teed and Deng 2020) at the pictures' own size; small ones are enlarged to the 128 pixels that it needs.

    Args, returns: see the head of this module; `model` is on the pictures' device.
    """
    height, width = target.shape[-2:]
    scale = max(1.0, RAFT_LEAST / min(height, width))
    size = tuple(-(-round(s * scale) // RAFT_STRIDE) * RAFT_STRIDE for s in (height, width))
    pair = [F.interpolate(x.float(), size, mode="bilinear", antialias=True) * 2 - 1 for x in (target, source)]
    return _enlarged(model(*pair)[-1], (height, width)).to(target)


# ---- what other nodes give -------------------------------------------------------------------------------------------


class Tracks(NamedTuple):
    """path: (T, N, 2) as (x, y) in pixels of the frames; visible: (T, N) bool."""

    path: Tensor
    visible: Tensor


def parse_tracks(value: Any) -> Tracks:
    """Tracks as ComfyUI's nodes pass them.

    Takes: ComfyUI's TRACKS, a dict of track_path (T, N, 2) and track_visibility (T, N); JSON of one track a point, a list of
    {"x", "y"} or [x, y] for each frame, as one string or as a list of strings, which CoTracker nodes put out; or a tensor
    (T, N, 2). A point that is null, or has a coordinate that is null or not finite, is hidden in that frame.

    Raises:
        FlowError: none of these; the text says what came.
    """
    seen = None
    if isinstance(value, Mapping):
        if "track_path" not in value:
            raise FlowError(f"tracks is a dict with {', '.join(map(str, value)) or 'nothing in it'}; expected track_path and "
                            "track_visibility")
        path, seen = torch.as_tensor(value["track_path"]), value.get("track_visibility")
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
        read = json.loads(value) if isinstance(value, str) else value
        tracks = [json.loads(t) if isinstance(t, str) else t for t in read]
        if tracks and isinstance(tracks[0], Mapping):  # one track alone
            tracks = [tracks]
        rows = [[(float("nan"),) * 2 if p is None else (p["x"], p["y"]) if isinstance(p, Mapping) else (p[0], p[1])
                 for p in track] for track in tracks]
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise FlowError(f"tracks cannot be read ({type(error).__name__}: {error}); expected one list of points a track, each "
                        '{"x": .., "y": ..}') from None
    if not rows or len({len(row) for row in rows}) != 1:
        raise FlowError(f"tracks have {', '.join(sorted({str(len(row)) for row in rows})) or 'no'} frames; expected the same "
                        "number for each")
    return torch.from_numpy(np.array([[[np.nan if c is None else c for c in p] for p in row] for row in rows],
                                     dtype=np.float32)).movedim(0, 1)


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


def chain(flows: Tensor) -> Tensor:
    """Follow (S, 2, H, W) consecutive flows, the first one's pixels through all of them -> (1, 2, H, W)."""
    total = flows[:1].clone()
    for step in flows[1:]:
        total = total + warp(step[None], total)
    return total
