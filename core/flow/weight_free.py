"""Optical flow without trained weights: patch matching from coarse to fine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .warp import warp

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
            flow = enlarged(flow, level)
            flow = _refine(_resized(a, level), _resized(b, level), flow)
        flows.append(enlarged(flow, (height, width)))
    return torch.cat(flows).to(target)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size, mode="bilinear", antialias=True)


def enlarged(flow: Tensor, size: tuple[int, int]) -> Tensor:
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
    """The best match of each pixel by its window, anywhere in the source, in whole pixels. (1, 3, h, w) -> (1, 2, h, w)."""
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
    """Weighted median over windows, each component separately. (1, 2, H, W)."""
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
