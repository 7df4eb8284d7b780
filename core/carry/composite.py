"""The carried change at the video's own size.

The experts work on small frames. What depends on the colour is brought to the full size as an affine function of the colour (as
in the guided filter), so that it follows the full frame's edges and grain; replaced content is moved at full size.

Legend: H W pixels of the video, h w of the working size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow.warp import warp
from ..flow.weight_free import enlarged
from .affine import affine_models, unpacked
from .layers import Layer, Layers

WORK_SIDE = 512   # longer side of the frames that the experts see
LEAST = 0.5 / 255  # a smaller change is none


def work_size(height: int, width: int) -> tuple[int, int]:
    """Size at which the experts work: the video's own, if it is small."""
    scale = min(1.0, WORK_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def small(picture: Tensor) -> Tensor:
    """A frame (H, W, 3), bytes or floats in [0, 1], at the working size: (1, 3, h, w) float32."""
    x = picture.movedim(-1, 0)[None]
    size = work_size(*picture.shape[:2])
    if x.dtype == torch.uint8:
        x = x.float() / 255
    return x.float() if x.shape[-2:] == size else F.interpolate(x.float(), size, mode="bilinear", antialias=True)


class FullKey:
    """A keyframe at full size.

    Args:
        picture, change: (1, 3, H, W).
        layers: its regions of replaced content; the experts carry the rest.
    """

    def __init__(self, picture: Tensor, change: Tensor, layers: Layers):
        size = change.shape[-2:]
        self.change, self.edited = change, picture + change
        self.rest = change * (1 - enlarged_map(layers.share(), size)) if layers.regions else change
        self.area = (self.rest.abs().amax(1, keepdim=True) > 0).float()
        self.payload = torch.cat([self.rest, self.area, picture + self.rest], 1)
        edge = (change.abs().amax(1, keepdim=True) > 0).float()
        self.masks = [self._mask(r.filled if r.uncovers else r.changed, edge) for r in layers.regions]

    @staticmethod
    def _mask(low: Tensor, edge: Tensor) -> Tensor:
        """A region's mask with the border that the full size shows: (1, 1, H, W)."""
        if low.shape == edge.shape:
            return low
        near = enlarged_map(F.max_pool2d(low, 3, 1, 1), edge.shape[-2:]) > 0
        sure = enlarged_map(-F.max_pool2d(-low, 5, 1, 2), edge.shape[-2:]) > 0.5
        return torch.maximum(edge * near, sure.float())


def enlarged_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (1, C, h, w) at another size."""
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear")


def full_change(key: FullKey, frame: Tensor, low: Tensor, flow: Tensor, changes: Tensor, weights: Tensor) -> Tensor:
    """The experts' mixed change (1, 3, H, W) of a full frame (1, 3, H, W).

    Args:
        low: (1, 3, h, w) the frame at the working size.  flow: (1, 2, h, w) to the keyframe.
        changes, weights: of difference, pixels, colour and lookup, (4, 3, h, w) and (4, 1, h, w).
    """
    height, width = frame.shape[-2:]
    by_flow, by_colour = weights[:2], weights[2:]
    share = by_colour.sum(0, keepdim=True)
    if (height, width) == tuple(low.shape[-2:]):
        return (weights * changes).sum(0, keepdim=True)
    smooth = (by_colour * changes[2:]).sum(0, keepdim=True) / share.clamp_min(1e-6)
    models = affine_models(low, smooth, 1).packed()
    packed = torch.cat([models, by_flow[0:1], by_flow[1:2], (smooth.abs().amax(1, keepdim=True) > 0).float()], 1)
    grown = F.interpolate(packed, (height, width), mode="bilinear")
    change = unpacked(grown[:, :12]).apply(frame).mul_((1 - grown[:, 12:13] - grown[:, 13:14]) * (grown[:, 14:15] > 0))
    moved = warp(key.payload, enlarged(flow, (height, width)))
    change.addcmul_(grown[:, 12:13], moved[:, :3])
    return change.addcmul_(grown[:, 13:14] * moved[:, 3:4], moved[:, 4:].sub_(frame))


def layered(key: FullKey, frame: Tensor, layer: Layer, light: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """A change (1, 3, H, W) of a full frame with one layer put over it, and how much of each pixel is the layer's (1, 1, H, W).

    Args:
        light: (1, 3, 1, 1), how much brighter the frame is than the keyframe.
    """
    size = frame.shape[-2:]
    outline = enlarged(layer.outline, size)
    cover = warp(key.masks[layer.number], outline) * enlarged_map(layer.seen, size)
    shown = warp(key.edited, outline if layer.flow is layer.outline else enlarged(layer.flow, size)).mul_(light)
    return torch.lerp(change, shown.sub_(frame), cover), cover
