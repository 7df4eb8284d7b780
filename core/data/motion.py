"""Motion between two frames of a training pair: sources (estimated, given as flow or tracks), checks, and measures of it."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow.consistency import FlowError, FlowFunction, chain, consistent, inverse
from ..flow.given import Tracks, flow_from_points

BORDER = 0.1       # of each side: the band in which the camera shows
STILL = 0.002      # of the diagonal, at least half a pixel: shorter flow counts as still
AGREE = 0.0015     # of the diagonal, at least 0.7 pixels: flow and flow back may miss each other by this


class Motion(NamedTuple):
    """flow: (1, 2, H, W) target to source.  back: (1, 2, H, W) source to target.  visible: (1, H, W), where flow holds."""

    flow: Tensor
    back: Tensor
    visible: Tensor


class MotionSource(Protocol):
    """Tells the motion between two frames of a clip. `name` goes into the dataset's settings."""

    name: str
    sparse: bool  # known at some points only

    def __call__(self, target: Tensor, source: Tensor, numbers: tuple[int, int]) -> Motion:
        """(1, 3, H, W) in [0, 1] each, and their numbers in the clip."""
        ...


def agree(flow: Tensor, back: Tensor) -> Tensor:
    """Where two flows agree, at any size of picture. (1, 2, H, W) twice -> (1, H, W)."""
    return consistent(flow, back, absolute=max(0.5, (AGREE * math.hypot(*flow.shape[-2:])) ** 2))


class Estimated:
    """Motion estimated from the pictures in both directions; visible is where the two agree."""

    sparse = False

    def __init__(self, name: str, flow: FlowFunction, device: torch.device | str = "cpu"):
        self.name, self.flow, self.device = name, flow, device

    def __call__(self, target: Tensor, source: Tensor, numbers: tuple[int, int]) -> Motion:
        both = torch.cat([target, source]).to(self.device), torch.cat([source, target]).to(self.device)
        flow, back = self.flow(*both).float().cpu().split(1)
        if not (flow.isfinite().all() and back.isfinite().all()):
            raise FlowError(f"{self.name} gave flow that is not finite")
        return Motion(flow, back, agree(flow, back))


class GivenFlow:
    """Motion from flow between consecutive frames, (T - 1, 2, h, w), followed from frame to frame."""

    sparse = False

    def __init__(self, fields: Tensor, picture: tuple[int, int]):
        self.name, self.fields, self.picture = "given flow", fields, picture

    def __call__(self, target: Tensor, source: Tensor, numbers: tuple[int, int]) -> Motion:
        last, first = numbers  # the target comes later in the clip
        size = target.shape[-2:]
        steps = torch.cat([crop_flow(f[None], self.picture, size) for f in self.fields[first:last]])
        back = chain(steps)
        flow = chain(torch.cat([inverse(steps[i:i + 1]) for i in reversed(range(len(steps)))]))
        return Motion(flow, back, agree(flow, back))


class GivenTracks:
    """Motion of tracked points, (T, N, 2); it is known within `radius` of each point, as a share of the diagonal."""

    sparse = True

    def __init__(self, tracks: Tracks, picture: tuple[int, int], radius: float = 0.02):
        self.name, self.tracks, self.picture, self.radius = "given tracks", tracks, picture, radius

    def __call__(self, target: Tensor, source: Tensor, numbers: tuple[int, int]) -> Motion:
        height, width = target.shape[-2:]
        scale, left, top = crop_geometry(self.picture, (height, width))
        shown = self.tracks.visible[numbers[0]] & self.tracks.visible[numbers[1]]
        ends = [(self.tracks.path[n][shown] + 0.5) * torch.tensor(scale) - 0.5 - torch.tensor([left, top]) for n in numbers]
        radius = self.radius * math.hypot(height, width)
        flow, visible = flow_from_points(*ends, height, width, radius)
        back, _ = flow_from_points(ends[1], ends[0], height, width, radius)
        return Motion(flow, back, visible)


def crop_geometry(picture: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[float, float], int, int]:
    """What crop_to does to (h, w) pictures: scales of x and y, then pixels cut off left and above."""
    (h, w), (height, width) = picture, size
    scale = max(height / h, width / w)
    full = max(height, round(h * scale)), max(width, round(w * scale))
    return (full[1] / w, full[0] / h), (full[1] - width) // 2, (full[0] - height) // 2


def crop_flow(flow: Tensor, picture: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Flow (1, 2, h, w) at any size, of frames of size `picture`, as that of the cropped frames: (1, 2, H, W)."""
    (sx, sy), left, top = crop_geometry(picture, size)
    full = round(picture[0] * sy), round(picture[1] * sx)
    unit = flow.new_tensor([full[1] / flow.shape[-1], full[0] / flow.shape[-2]])[:, None, None]
    if flow.shape[-2:] != full:
        flow = F.interpolate(flow, full, mode="bilinear")
    return (flow * unit)[..., top:top + size[0], left:left + size[1]]


# ---- measures and signals --------------------------------------------------------------------------------------------


class Measures(NamedTuple):
    """Of one pair's motion.

    motion: mean length over what moves, as a share of the diagonal.  moving: the moving share of the picture.
    static: share of the border band that stands still.  visible: share of the picture with consistent flow.
    """

    motion: float
    moving: float
    static: float
    visible: float


def still_length(height: int, width: int) -> float:
    """Pixels up to which flow counts as still."""
    return max(0.5, STILL * math.hypot(height, width))


def measure(flow: Tensor, visible: Tensor) -> Measures:
    """Measures of (1, 2, H, W) and (1, H, W). Only visible pixels are looked at."""
    height, width = flow.shape[-2:]
    length, still = flow[0].norm(dim=0), still_length(height, width)
    seen = visible[0]
    moving = seen & (length > still)
    band = torch.ones_like(seen)
    rows, columns = max(1, round(BORDER * height)), max(1, round(BORDER * width))
    band[rows:-rows, columns:-columns] = False
    band &= seen
    return Measures(
        motion=float(length[moving].mean()) / math.hypot(height, width) if moving.any() else 0.0,
        moving=float(moving.float().mean()),
        static=float((length <= still)[band].float().mean()) if band.any() else 1.0,
        visible=float(seen.float().mean()))
