"""Optical flow for videos without trained weights or another library, in some tens of milliseconds per pair.

Like `weight_free_flow`, it matches exhaustively at a small size and refines from size to size, by competition of neighbours'
vectors and by Lucas-Kanade steps. Windows are plain squares, and the finest size is small.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .warp import warp
from .weight_free import _grey_features, _match_everywhere, _resized, enlarged

FINE_SIDE = 192    # longer side of the finest size, pixels
COARSE_SIDE = 32   # of the size at which every place is compared with every other
COST_TOP = 0.04    # a pixel's cost saturates here: what is covered must not outweigh its window
PULL = 2e-5        # cost of a pixel's difference from the vectors around: without texture the flow is smooth
STEPS = 3


def quick_flow(target: Tensor, source: Tensor, start: Tensor | None = None) -> Tensor:
    """Flow of a pair.

    Args:
        target, source: (1, 3, H, W) in [0, 1].
        start: (1, 2, H, W) to begin at, in place of matching everywhere.

    Returns:
        (1, 2, H, W): displacement in pixels from each target pixel to its place in the source.
    """
    height, width = target.shape[-2:]
    scale = min(1.0, FINE_SIDE / max(height, width))
    sizes = [(max(8, round(height * scale)), max(8, round(width * scale)))]
    while max(sizes[-1]) > COARSE_SIDE:
        sizes.append(tuple(max(8, (s + 1) // 2) for s in sizes[-1]))
    a, b = [target.float()], [source.float()]
    for size in sizes:  # each from the one before
        a.append(_resized(a[-1], size))
        b.append(_resized(b[-1], size))
    flow = _match_everywhere(a[-1], b[-1]) if start is None else _shrunk(start, sizes[-1])
    for here, there, size in zip(reversed(a[1:]), reversed(b[1:]), reversed(sizes), strict=True):
        others = [] if start is None else [_shrunk(start, size)]
        flow = _refined(_grey_features(here), _grey_features(there), enlarged(flow, size), others)
    return enlarged(flow, (height, width)).to(target)


def _shrunk(flow: Tensor, size: tuple[int, int]) -> Tensor:
    h, w = flow.shape[-2:]
    scale = torch.tensor([size[1] / w, size[0] / h], device=flow.device)[:, None, None]
    return F.interpolate(flow.float(), size, mode="area") * scale


def _mean(x: Tensor, side: int) -> Tensor:
    """Mean over a square window, of what is inside the picture."""
    half = side // 2
    across = F.avg_pool2d(x, (1, side), 1, (0, half), count_include_pad=False)
    return F.avg_pool2d(across, (side, 1), 1, (half, 0), count_include_pad=False)


def _moved(x: Tensor, dx: int, dy: int) -> Tensor:
    """The value so many pixels further, borders repeated."""
    reach = max(abs(dx), abs(dy))
    h, w = x.shape[-2:]
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    return padded[..., reach + dy:reach + dy + h, reach + dx:reach + dx + w]


def _refined(a: Tensor, b: Tensor, flow: Tensor, others: list[Tensor]) -> Tensor:
    """Improve a flow (1, 2, h, w) between features (1, 5, h, w): three colours and two slopes of brightness."""
    smooth = _mean(flow, 5)

    def cost(candidates: Tensor) -> Tensor:
        shown = warp(b.expand(len(candidates), -1, -1, -1), candidates)
        difference = (shown - a).square().mean(1, keepdim=True).clamp_max(COST_TOP)
        return _mean(difference, 5) + PULL * (candidates - smooth).square().sum(1, keepdim=True).clamp_max(100.0)

    best = cost(flow)

    def compete(candidates: Tensor) -> None:
        nonlocal flow, best
        price, first = cost(candidates).min(0, keepdim=True)
        chosen = candidates.gather(0, first.expand(-1, 2, -1, -1))
        better = price < best
        flow, best = torch.where(better, chosen, flow), torch.where(better, price, best)

    compete(torch.cat([torch.zeros_like(flow), *others]))
    for distance in (5, 2):
        compete(torch.cat([_moved(flow, dx * distance, dy * distance) for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))]))
    colours = b[:, :3]
    slopes = [(_moved(colours, dx, dy) - _moved(colours, -dx, -dy)) / 2 for dx, dy in ((1, 0), (0, 1))]
    payload = torch.cat([colours, *slopes], 1)
    for _ in range(STEPS):
        shown = warp(payload, flow)
        error, gx, gy = shown[:, :3] - a[:, :3], shown[:, 3:6], shown[:, 6:]
        trust = 1 / (error.square().mean(1, keepdim=True) + 1e-3)  # robust: what is covered counts less
        products = torch.stack([(trust * p * q).sum(1) for p, q in ((gx, gx), (gx, gy), (gy, gy), (gx, error), (gy, error))], 1)
        xx, xy, yy, xe, ye = _mean(products, 7).unbind(1)
        ridge = 0.02 * (xx + yy) + 0.05
        xx, yy = xx + ridge, yy + ridge
        scale = xx * yy - xy * xy
        step = torch.stack([(xy * ye - yy * xe) / scale, (xy * xe - xx * ye) / scale], 1)
        compete(flow + step.clamp(-1, 1))
    return _median(flow)


def _median(flow: Tensor) -> Tensor:
    """Median of 3 x 3, each component separately."""
    near = torch.stack([_moved(flow, dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    return near.median(0).values
