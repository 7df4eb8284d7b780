"""The experts that carry a keyframe's edit to a frame, and each expert's estimate of its own error.

    difference   the change is added where the flow leads
    pixels       the edited pixels are moved there
    colour       the change as an affine function of the colour, fitted in 5 x 5 windows of the keyframe, is moved there and applied
    lookup       the change of the keyframe's pixels of this colour at about this place

None of them knows the true result. The first three estimate their error on the keyframe, as if the flow were a few pixels off; the
last one by how well the keyframe's pixels predict one another.

Legend: h w pixels at the working size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow.warp import warp
from .affine import affine_models, box, unpacked
from .lookup import Lookup
from .tracking import Track

NAMES = ("difference", "pixels", "colour", "lookup")
RADII = (1.0, 3.0, 9.0, 27.0)  # pixels at which the keyframe is asked
FLOOR = 4e-6                   # squared error, three channels, below which experts are equal: a third of a grey level each
CAUTION = 6.0                  # a flow errs by more than it shows: measured on real clips, by so much in squares
LOST = 8.0                     # pixels of doubt at which a flow is as likely wrong as right
SURE = 4.0                     # pixels of doubt up to which a flow is sure
STEADY, LEAST_SURE = 0.03, 0.1  # a smaller change of light is none; share of the picture that must be sure to tell
SHARPNESS = 2.0                # weights are error ** -this
PRIOR = (16.0, 16.0, 16.0, 1.0)  # by so much the experts err more than they say: a flow's errors are shared by its neighbours


class Verdicts(NamedTuple):
    """changes: (E, 3, h, w) of each expert.  errors: (E, 1, h, w), expected squares, summed over colours.  light: (1, 3, 1, 1), how
    much brighter the frame is than the keyframe."""

    changes: Tensor
    errors: Tensor
    light: Tensor


class Keyframe:
    """A keyframe and its edit at the working size, with what the experts need of it.

    Args:
        picture: (1, 3, h, w) in [0, 1].
        change: (1, 3, h, w), exactly 0 outside the edit.
    """

    def __init__(self, picture: Tensor, change: Tensor):
        self.picture, self.change = picture, change
        self.models = affine_models(picture, change)
        self.area = (change.abs().amax(1, keepdim=True) > 0).float()
        self.lookup = Lookup(*(x[0].movedim(0, -1).contiguous().cpu().numpy() for x in (picture, change)))
        self.doubts = self._doubts()
        # All that is looked up along the flow, in one piece.
        self.payload = torch.cat([picture, change, self.models.packed(), self.doubts, self.area], 1)

    @property
    def scale(self) -> float:
        """Root mean square of the change where there is one."""
        return self.lookup.scale

    def _doubts(self) -> Tensor:
        """(1, 3 * R, h, w): squared errors of difference, pixels and colour, were the flow so many pixels off."""
        edited, own = self.picture + self.change, self.models
        out: list[list[Tensor]] = [[], [], []]
        for radius in RADII:
            sums = [torch.zeros_like(self.area) for _ in range(3)]
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                picture, change, other = shifted(torch.cat([self.picture, self.change, edited], 1), radius * dx,
                                                 radius * dy).chunk(3, 1)
                for total, wrong in zip(sums, (change - self.change, other - edited, own.apply(picture) - change), strict=True):
                    total += wrong.square().sum(1, keepdim=True) / 4
            for row, total in zip(out, sums, strict=True):
                row.append(total)
        return torch.cat([x for row in out for x in row], 1)

    def verdicts(self, frame: Tensor, track: Track) -> Verdicts:
        """What each expert makes of a frame (1, 3, h, w)."""
        there = warp(self.payload, track.flow)
        picture, change, models, doubts, area = there.split([3, 3, 12, 3 * len(RADII), 1], 1)
        models = unpacked(models)
        light = relit(frame, picture, track.doubt)
        frame = frame / light  # as the keyframe's light would show it
        missed = frame - picture
        errors = by_radius(doubts.unflatten(1, (3, len(RADII))), track.doubt)  # (1, 3, h, w)
        by_colour = (models.gain * missed[:, None]).sum(2)
        instead = [by_colour, by_colour + missed * area, torch.zeros_like(missed)]  # by how much a colour model would differ
        errors = errors + torch.cat([x.square().sum(1, keepdim=True) for x in instead], 1)
        colour = models.apply(frame)
        lookup, foretold, by_place = self._looked_up(frame, track)
        changes = torch.cat([change, area * (picture + change - frame), colour])
        # The last expert's error is measured on the keyframe, the others' supposed: where they differ from it by more, they err.
        apart = box((changes - lookup).square().sum(1, keepdim=True), 2)
        errors = errors.movedim(1, 0)
        lost = track.doubt.square() / (track.doubt.square() + LOST**2)
        by_place = box(by_place, 2)
        errors = torch.lerp(torch.tensor(CAUTION), torch.tensor(CAUTION / 4), by_place) * errors + 0.25 * self.scale**2 * lost
        errors = errors * _misjudged(errors, apart, foretold)
        errors = torch.maximum(errors, (apart - 2 * box(foretold, 2)) * (1 - by_place))
        # Where places decide, the lookup depends on the flow as well, and sees an edge less sharply: a sure flow is right.
        foretold = foretold + by_place * apart.amin(0, keepdim=True) / (1 + (track.doubt / SURE).square())
        return Verdicts(torch.cat([changes, lookup]) * light, torch.cat([errors, foretold]), light)

    def _looked_up(self, frame: Tensor, track: Track) -> tuple[Tensor, Tensor, Tensor]:
        height, width = frame.shape[-2:]
        picture = frame[0].movedim(0, -1).cpu().numpy()
        asked = self.lookup.candidates(picture)
        y, x = asked.nonzero()
        flow = track.flow[0].cpu().numpy()
        change, error, by_place = torch.zeros(height, width, 3), torch.zeros(height, width), torch.zeros(height, width)
        if len(y):
            places = (flow[:, y, x].T + np.stack([x, y], -1)).astype(np.float32)
            change[y, x], error[y, x], by_place[y, x] = (torch.from_numpy(found).float()
                                                         for found in self.lookup.find(picture[y, x], places))
        # A colour that never changed in the keyframe: unchanged, unless the flow knows a change there.
        error[torch.from_numpy(~asked)] = float(self.lookup.errors[0].mean()) * 0.1
        return change.movedim(-1, 0)[None].to(frame), error[None, None].to(frame), by_place[None, None].to(frame)


def _misjudged(errors: Tensor, apart: Tensor, foretold: Tensor) -> Tensor:
    """The factor (E, 1, 1, 1) by which experts underestimate their error: their distance to the lookup where it is most certain."""
    active = apart.amax(0, keepdim=True) > 0
    if not bool(active.any()):
        return errors.new_ones(len(errors), 1, 1, 1)
    sure = active & (foretold <= foretold[active].median())
    found = torch.stack([(a - foretold[0])[sure[0]].sum() / e[sure[0]].sum().clamp_min(1e-9)
                         for a, e in zip(apart, errors, strict=True)])
    return found.clamp(1, 100)[:, None, None, None]


def relit(frame: Tensor, picture: Tensor, doubt: Tensor) -> Tensor:
    """How much brighter a frame is than its keyframe, colour by colour, where the flow is sure: (1, 3, 1, 1), mostly 1."""
    frame, picture = box(frame, 2)[0], box(picture, 2)[0]  # without grain
    sure = (doubt[0, 0] < SURE) & (picture.amin(0) > 0.05) & (picture.amax(0) < 0.95) & (frame.amax(0) < 0.98)
    if float(sure.float().mean()) < LEAST_SURE:
        return frame.new_ones(1, 3, 1, 1)
    low, ratio, high = (frame[:, sure] / picture[:, sure])[:, ::7].quantile(frame.new_tensor([0.25, 0.5, 0.75]), 1)
    # Light changes everywhere alike; anything else is colours that move.
    alike = ((ratio - 1).abs() > STEADY) & (high - low < 0.5 * (ratio - 1).abs())
    return torch.where(alike.all(), ratio.clamp(0.7, 1.4), 1.0)[None, :, None, None]


def shifted(x: Tensor, dx: float, dy: float) -> Tensor:
    """What lies so many whole pixels further, borders repeated."""
    h, w = x.shape[-2:]
    rows = (torch.arange(h, device=x.device) + int(dy)).clamp(0, h - 1)
    columns = (torch.arange(w, device=x.device) + int(dx)).clamp(0, w - 1)
    return x[..., rows, :][..., columns]


def by_radius(values: Tensor, radius: Tensor) -> Tensor:
    """Values known at RADII, at any radius: linear between its logarithms. (1, E, R, h, w), (1, 1, h, w) -> (1, E, h, w)."""
    place = (radius.clamp(RADII[0], RADII[-1]).log() / torch.tensor(3.0).log())[:, 0]  # RADII are powers of 3
    below = place.floor().clamp_max(len(RADII) - 2)
    index = below.long()[:, None, None].expand(-1, values.shape[1], 1, -1, -1)
    low, high = values.gather(2, index)[:, :, 0], values.gather(2, index + 1)[:, :, 0]
    small = radius.clamp_max(RADII[0]).square()  # below the first radius the error falls with the square
    return torch.lerp(low, high, (place - below)[:, None]) * small


def mixed(verdicts: Verdicts, before: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """One change out of all, weighted by confidence.

    Args:
        before: (E, 1, h, w) weights of the frame before, moved here; they keep the mix from flickering.

    Returns:
        change (1, 3, h, w), expected squared error (1, 1, h, w), weights (E, 1, h, w).
    """
    prior = verdicts.errors.new_tensor(PRIOR)[:, None, None, None]
    errors = F.avg_pool2d(verdicts.errors * prior, 3, 1, 1, count_include_pad=False) + FLOOR
    weights = errors ** -SHARPNESS
    weights = weights / weights.sum(0)
    if before is not None:
        weights = (weights + before) / 2
        weights = weights / weights.sum(0)
    change = (weights * verdicts.changes).sum(0, keepdim=True)
    spread = (weights * (verdicts.changes - change).square().sum(1, keepdim=True)).sum(0, keepdim=True)
    return change, (weights * verdicts.errors).sum(0, keepdim=True) + spread, weights
