"""All metrics of edited pictures against true ones, a number for each pair.

Legend: B pairs, H W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .metrics import RADIUS, Areas, area_mean, areas_from_flow, inner, object_position, psnr, ssim_map

Values = dict[str, list[float | None]]  # metric -> a value for each pair; None where it has no meaning

AREAS = Areas._fields


def evaluate_pairs(edited: Tensor, truth: Tensor, flow: Tensor | None = None, visible: Tensor | None = None,
                   source: Tensor | None = None, *, areas: Areas | None = None,
                   background: Tensor | None = None) -> Values:
    """Compare edited pictures with the truth.

    Args:
        edited, truth: (B, 3, H, W) in [0, 1], of one size.
        flow, visible: (B, 2, H, W), (B, H, W) true motion from each true pixel to the source, and whether the source
            shows it there; both or none.
        source: (B, 3, H, W) the unedited picture. Its errors are added under names that begin with "source_": the score of the
            unedited picture.
        areas: parts of the picture, instead of flow and visible.
        background: (B, 3, H, W) the scene without its object, for the object's position.

    Returns:
        mse, psnr (dB), ssim; for each known area <area>_mse, <area>_ssim and <area>_share (of the picture);
        position_error (pixels) with a background. None where a value has no meaning: an empty area, a picture smaller
        than SSIM's window or with values that are not finite, no object found.

    Raises:
        ValueError: shapes that do not fit, or flow without visible.
    """
    shapes = {"edited": edited, "truth": truth, "source": source, "background": background}
    for name, images in shapes.items():
        if images is not None and (images.ndim != 4 or images.shape != truth.shape):
            raise ValueError(f"{name} has shape {tuple(images.shape)}, truth {tuple(truth.shape)}; expected (B, 3, H, W) of "
                             "one size")
    if (flow is None) != (visible is None):
        raise ValueError("give flow and visible together: the one has no meaning without the other")
    if flow is not None:
        if areas is not None:
            raise ValueError("give either areas or flow and visible")
        areas = areas_from_flow(flow, visible)
    areas = areas or Areas(None, None, None)
    for name, area in zip(AREAS, areas, strict=True):
        if area is not None and area.shape != (len(truth), *truth.shape[-2:]):
            raise ValueError(f"the {name} area has shape {tuple(area.shape)}, the pictures {tuple(truth.shape)}")
    values: Values = {}
    for i in range(len(truth)):  # one at a time: float64 copies of a batch would be large
        part = Areas(*(None if area is None else area[i:i + 1].cpu() for area in areas))
        row = _one(edited[i:i + 1], truth[i:i + 1], part, None if background is None else background[i:i + 1])
        if source is not None:
            alone = _one(source[i:i + 1], truth[i:i + 1], part, None if background is None else background[i:i + 1])
            row |= {f"source_{name}": value for name, value in alone.items() if not name.endswith("_share")}
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return values


def usable(*images: Tensor | None) -> bool:
    """Whether all values are finite. A VAE that overflowed in fp16 gives pictures that are not."""
    return all(image is None or bool(image.isfinite().all()) for image in images)


def _one(edited: Tensor, truth: Tensor, areas: Areas, background: Tensor | None) -> dict[str, float | None]:
    """Metrics of one pair, (1, 3, H, W) each."""
    fine = usable(edited, truth)
    similarity = ssim_map(edited, truth) if fine and min(truth.shape[-2:]) > 2 * RADIUS else None
    error = (edited.detach().cpu().double() - truth.detach().cpu().double()).square().mean(1)  # (1, H, W)
    row: dict[str, float | None] = {
        "mse": float(error.mean()) if fine else None,
        "psnr": float(psnr(edited, truth)) if fine else None,
        "ssim": None if similarity is None else float(inner(similarity).mean()),
    }
    for name, area in zip(AREAS, areas, strict=True):
        if area is not None:
            row[f"{name}_mse"] = area_mean(error, area)[0] if fine else None
            row[f"{name}_ssim"] = None if similarity is None else area_mean(similarity, area)[0]
            row[f"{name}_share"] = float(area.double().mean())
    if background is not None:
        here, there = (object_position(image, background)[0] if fine and usable(background) else None
                       for image in (edited, truth))
        row["position_error"] = None if here is None or there is None else math.dist(here, there)
    return row


def error_image(edited: Tensor, truth: Tensor) -> Tensor:
    """Absolute error, mean over channels: (3, H, W) twice -> (H, W). Not finite counts as 1."""
    return torch.nan_to_num((edited.float() - truth.float()).abs().mean(0), nan=1.0, posinf=1.0)
