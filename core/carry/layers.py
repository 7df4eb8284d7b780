"""Edits that replace content are moved as layers: inserted content moves with what it lies on, uncovered background moves with its
surroundings.

A flow is known only for what both frames show. An enlarged thing covers ground which the flow says stays behind; where a thing was
erased, the flow is the vanished thing's. So the motions inside an edited region and around it are fitted and extended over all of
it (`extension.py`), and the edited pixels follow one of them. Whether a region was replaced, and whether something was uncovered
there, is seen in the keyframe.

Legend: h w pixels at the working size. Flows are (1, 2, h, w) from the frame to the keyframe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from ..flow.warp import warp
from .affine import affine_models, box
from .extension import extended
from .tracking import Track, gradient

MOST_REGIONS, LEAST_PIXELS = 6, 24  # of a keyframe; smaller ones are left to the experts
MERGED = 3                     # pixels: nearer parts are one region
KEPT, REPLACED = 0.4, 0.5      # share of the source's structure that the edit does not show: recoloured; replaced
GRAIN = 3e-4                   # squared colours that are no structure
WINDOW = 3                     # radius of the windows in which structure is compared, pixels
GONE = 0.5                     # share of the border's contrast that is left where something was erased
MIDDLE = 0.6                   # of a region's depth, from where on it is its middle
UNLIKE = 0.006                 # squared difference of colours at which a pixel is as likely another thing's
TOGETHER, ONE = 3.0, 0.7       # pixels between two motions, below which nothing comes into view; below which they are the same
LOST = 8.0                     # pixels of doubt at which a motion is as likely wrong as right
NAMES = ("placed", "uncovered")


class Region(NamedTuple):
    """A connected region of a keyframe whose content was replaced.

    changed: (1, 1, h, w), small holes closed.  filled: the same without holes.  core: 0 outside, larger further inside.
    replaced: in [0, 1].  uncovers: what is there now goes on from its surroundings, as where a thing was erased.
    """

    changed: Tensor
    filled: Tensor
    core: Tensor
    replaced: float
    uncovers: bool


class Layer(NamedTuple):
    """A region's edited pixels in a frame.

    number: of the region.  flow: where the pixels are in the keyframe.  outline: flow to where the region's mask decides whether
    they are shown.  seen: (1, 1, h, w), from 0, where something passes in front.  error: (1, 1, h, w) in [0, 1], share of the edit
    that may be wrong.
    """

    number: int
    flow: Tensor
    outline: Tensor
    seen: Tensor
    error: Tensor


class Layers:
    """A keyframe's regions of replaced content.

    Args:
        picture, change: (1, 3, h, w).
    """

    def __init__(self, picture: Tensor, change: Tensor):
        self.picture, self.edited, self.slope = picture, picture + change, gradient(picture).square()
        self.regions = regions_of(picture, change)

    def share(self) -> Tensor:
        """(1, 1, h, w): how much of each pixel's change is replaced content, a little beyond it."""
        out = torch.zeros_like(self.picture[:, :1])
        for region in self.regions:
            out = torch.maximum(out, F.max_pool2d(region.changed, 5, 1, 2) * region.replaced)
        return out

    def of(self, frame: Tensor, track: Track) -> Iterator[Layer]:
        """What is put into a frame (1, 3, h, w) that is in the keyframe's light."""
        return (self._of(number, region, frame, track) for number, region in enumerate(self.regions))

    def _of(self, number: int, region: Region, frame: Tensor, track: Track) -> Layer:
        inside, core = warp(torch.cat([region.filled, region.core], 1), track.flow).split(1, 1)
        own, own_doubt = extended(*track, core)
        cover = torch.maximum(warp(region.filled, own), inside)
        other, other_doubt = extended(*track, ring(cover))
        fits = [self._unlike(frame, x, f) for x, f in ((self.picture, own), (self.picture, other), (self.edited, other))]
        unknown = certain(torch.stack(fits).amin(0))
        # Came into view, or passes in front: then the flow knows it from elsewhere, or nothing can have come into view.
        elsewhere = (1 - inside) * (1 - certain(self._unlike(frame, self.picture, track.flow))) / (1 + (track.doubt / 4).square())
        apart = (own - other).square().sum(1, keepdim=True)
        seen = region.replaced * (1 - unknown * torch.maximum(elsewhere, 1 - certain(apart / TOGETHER**2)))
        flow, doubt = own, own_doubt
        if region.uncovers:  # where the motions differ
            differ = certain(apart / ONE**2)
            flow, doubt = torch.lerp(own, other, differ), torch.lerp(own_doubt, other_doubt, differ)
        return Layer(number, flow, own, seen, 1 - 1 / ((1 + (doubt / LOST).square()) * (1 + unknown)))

    def _unlike(self, frame: Tensor, shown: Tensor, flow: Tensor) -> Tensor:
        """Above 1 where the frame does not show this; a pixel off does not count."""
        there = warp(torch.cat([shown, self.slope], 1), flow)
        return box((frame - there[:, :3]).square().mean(1, keepdim=True), 2) / (UNLIKE + 2 * there[:, 3:])


def regions_of(picture: Tensor, change: Tensor) -> list[Region]:
    """The regions of a keyframe (1, 3, h, w) whose content was replaced; near ones are joined if there are many."""
    area = (change.abs().amax(1)[0] > 0).cpu().numpy()
    replaced = replaced_share(picture, picture + change)
    labels, count = ndimage.label(_closed(area, MERGED))
    numbers = np.arange(1, count + 1)
    lost, total = (ndimage.sum_labels(x[0, 0].cpu().numpy() * area, labels, numbers) for x in replaced)
    sizes = ndimage.sum_labels(area, labels, numbers)
    share = lost / np.maximum(total, 1e-9)
    content = np.where(sizes >= LEAST_PIXELS, np.clip((share - KEPT) / (REPLACED - KEPT), 0, 1), 0)
    values = np.concatenate([[0], content])[labels] * area
    merged = MERGED
    while True:
        labels, count = ndimage.label(_closed(values > 0, merged))
        if count <= MOST_REGIONS:
            break
        merged *= 2
    inside = (labels == n for n in range(1, count + 1))
    return [_region(picture, change, x, values, area) for x in inside if (values[x] > 0).any()]  # closing can leave bits between


def _region(picture: Tensor, change: Tensor, inside: np.ndarray, values: np.ndarray, area: np.ndarray) -> Region:
    filled = ndimage.binary_fill_holes(inside)
    depth = ndimage.distance_transform_edt(np.pad(filled, 1))[1:-1, 1:-1]
    changed = inside & _closed(area, MERGED)
    masks = [torch.from_numpy(x.astype(np.float32))[None, None].to(picture) for x in (changed, filled, depth / depth.max())]
    return Region(*masks, float(values[inside & (values > 0)].mean()), uncovers(picture, picture + change, *masks[1:]))


def _closed(area: np.ndarray, radius: int) -> np.ndarray:
    padded = np.pad(area, radius + 1)
    return ndimage.binary_closing(padded, iterations=radius)[radius + 1:-radius - 1, radius + 1:-radius - 1] | area


def replaced_share(picture: Tensor, edited: Tensor) -> tuple[Tensor, Tensor]:
    """What of the picture's structure the edited one does not show, as a function of its colours in windows; and all of it.

    A recolour keeps the shapes that were to be seen, so the old colours follow from the new ones; what was painted over is lost.
    """
    models = affine_models(edited, picture, WINDOW, ridge=1e-3)
    lost = (models.apply(edited) - picture).square().sum(1, keepdim=True)
    return lost, (picture - box(picture, WINDOW)).square().sum(1, keepdim=True) + GRAIN


def uncovers(picture: Tensor, edited: Tensor, mask: Tensor, core: Tensor) -> bool:
    """Whether a thing is gone: the edit took an edge away along the border of a mask, the contrast across it before and after, and
    the middle is no longer the thing's, as it would be of one that was made smaller."""
    thin, wide = -F.max_pool2d(-mask, 3, 1, 1), F.max_pool2d(mask, 3, 1, 1)  # the border's own pixels are mixed
    sides = thin + F.max_pool2d(-mask, 9, 1, 4), F.max_pool2d(mask, 9, 1, 4) - wide
    weights = [box(side, 4) for side in sides]
    border = (mask > thin) & (weights[0] > 0.02) & (weights[1] > 0.02)
    if not bool(border.any()):
        return False
    contrast = []
    for shown in (picture, edited):
        inner, outer = (box(shown * side, 4) / weight.clamp_min(1e-4) for side, weight in zip(sides, weights, strict=True))
        contrast.append(float((inner - outer).square().sum(1, keepdim=True)[border].mean()) + 1e-5)
    middle = core > MIDDLE
    left = box(edited - picture, 2).square().sum(1, keepdim=True)[middle].mean()
    return contrast[1] < GONE * contrast[0] and float(left) > GONE / 2 * contrast[0]


def ring(cover: Tensor) -> Tensor:
    """The pixels around a region, of a width that grows with it."""
    near = F.max_pool2d(cover, 7, 1, 3) > 0.02
    reach = int(min(40, max(10, 0.25 * float(cover.sum()) ** 0.5)))
    wide = F.max_pool2d(F.max_pool2d(near.float(), (2 * reach + 1, 1), 1, (reach, 0)), (1, 2 * reach + 1), 1, (0, reach))
    return wide * ~near


def certain(ratio: Tensor) -> Tensor:
    """0 for a ratio well below 1, 1 for one well above."""
    return ratio.square() / (1 + ratio.square())
