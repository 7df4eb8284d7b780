"""OpenCV's DIS flow (Kroeger and others 2016), where `cv2` can be imported; it is never required."""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor

from .consistency import FlowError

LEAST = 24  # pixels of the shorter side; below, its patches do not fit


def have_dis() -> bool:
    """Whether OpenCV is installed."""
    return importlib.util.find_spec("cv2") is not None


def dis_flow(target: Tensor, source: Tensor, start: Tensor | None = None) -> Tensor:
    """Dense inverse search, preset "medium", on brightness.

    Args:
        target, source: (1, 3, H, W) in [0, 1].
        start: (1, 2, H, W) to begin the search at.

    Returns:
        (1, 2, H, W): displacement in pixels from each target pixel to its place in the source.

    Raises:
        FlowError: cv2 cannot be imported.
    """
    try:
        import cv2
    except ImportError as error:
        raise FlowError(f"OpenCV cannot be imported ({error}). Install opencv-python-headless, or choose another flow.") from None
    height, width = target.shape[-2:]
    if min(height, width) < LEAST:
        return torch.zeros(1, 2, height, width) if start is None else start
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [_grey(x) for x in (target, source)]
    begin = None if start is None else np.ascontiguousarray(start[0].movedim(0, -1).float().cpu().numpy())
    flow = search.calc(*grey, begin)
    return torch.from_numpy(np.nan_to_num(flow)).movedim(-1, 0)[None].to(target)


def _grey(picture: Tensor) -> np.ndarray:
    weights = picture.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return (picture[0] * weights).sum(0).clamp(0, 1).mul(255).round().byte().cpu().numpy()
