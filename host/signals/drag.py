"""Drag points: the source frame's tokens copied to their targets."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.attention.drag import copy_tokens, token_drags
from ...core.placement import CELL, placed_size
from .. import keys
from ..attention.blocks import WeightsPatch, mark_spatial_blocks
from ..models.network import frames_in, svd_layout, token_size
from ..models.savings import save
from .control import check_schedule

# ---- dragging --------------------------------------------------------------------------------------------------------


class DragPatch(WeightsPatch):
    """On every spatial block's output: the source frame's tokens at the source points, added to the later frames' tokens
    at the target points. Only conditional rows get it, as with control."""

    def __init__(self, points: Tensor, strength: float, sigma_range: tuple[float, float],
                 size: tuple[int, int] | None = None):
        super().__init__(None)
        self.points, self.strength, self.sigma_range, self.size = points, strength, sigma_range, size

    def __call__(self, tokens: Tensor, options: dict) -> Tensor:
        sigma = float(options["sigmas"].flatten()[0])
        high, low = self.sigma_range
        groups = options.get("cond_or_uncond", (0,))
        frames = frames_in(tokens.shape[0], options)
        if not low <= sigma <= high or frames < 2:
            return tokens
        rows = tokens.unflatten(0, (len(groups), frames))
        points = self._on_canvas(*(CELL * side for side in options["original_shape"][-2:])).to(tokens.device)
        drags = token_drags(points, *token_size(tokens.shape[1], options["original_shape"]))
        parts = [rows[i:i + 1] if unconditional else copy_tokens(rows[i:i + 1], drags, self.strength)
                 for i, unconditional in enumerate(groups)]
        return torch.cat(parts).flatten(0, 1)

    def _on_canvas(self, height: int, width: int) -> Tensor:
        """The points as shares of the canvas, height x width pixels."""
        if self.size is None:
            return self.points
        h, w = placed_size(*self.size, height, width)
        return self.points * self.points.new_tensor([w / width, h / height] * 2)


def apply_drag(model: ModelPatcher, points: Tensor, strength: float, start_percent: float, end_percent: float,
               size: tuple[int, int] | None = None) -> ModelPatcher:
    """A clone whose later frames take up the source frame's tokens at the targets. Strength 0 is an untouched clone.

    Args:
        points: (1, K, 4) source x, y, target x, y as shares of the picture's width and height.
        strength: factor on the copied tokens.
        start_percent, end_percent: share of the noise range in which it acts, 0 the noisy end.
        size: (height, width) of the picture in pixels, for its place on the canvas; None if it fills the canvas.

    Raises:
        WrongModel: not an SVD model.
        ValueError: an empty schedule.
    """
    svd_layout(model)
    check_schedule(start_percent, end_percent)
    clone = model.clone()
    if strength == 0.0:
        return clone
    sampling = model.get_model_object("model_sampling")
    sigma_range = tuple(sampling.percent_to_sigma(p) for p in (start_percent, end_percent))
    mark_spatial_blocks(clone)
    save(clone)
    clone.set_model_patch(DragPatch(points, strength, sigma_range, size), keys.BLOCK_OUTPUT)
    return clone
