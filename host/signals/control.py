"""Sketch and coarse edit: control features injected into the UNet."""

from __future__ import annotations

from typing import Literal

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.edm import network_timestep
from ...core.images import resize_control
from ...core.models.control_encoder import DOWNSCALE
from ...core.models.control_injection import inject
from ...core.placement import on_canvas, placed_size
from .. import keys
from ..attention.blocks import WeightsPatch
from ..network import WrongModel, frames_in, svd_layout, unet_shapes

ControlSemantics = Literal["release", "paper"]


def check_schedule(start_percent: float, end_percent: float) -> None:
    if start_percent >= end_percent:
        raise ValueError(f"start_percent {start_percent} is not before end_percent {end_percent}; "
                         "the signal would never act. Lower start_percent or raise end_percent.")


# ---- control ---------------------------------------------------------------------------------------------------------


class ControlPatch(WeightsPatch):
    """input_block_patch_after_skip: encode the control frames at this step's noise level and inject them once.

    Only conditional rows get it. As released, frame 0 is controlled too, by an all-black frame; as in the paper, the
    later frames only.
    """

    def __init__(self, weights: ModelPatcher, control: Tensor, block: int, strength: float,
                 sigma_range: tuple[float, float], targets_only: bool):
        super().__init__(weights)
        self.control = control  # (1 or T-1, 3, H, W) target control frames
        self.block, self.strength, self.sigma_range, self.targets_only = block, strength, sigma_range, targets_only
        self._resized = control  # a memo: the control frame at the size last asked for

    def __call__(self, h: Tensor, options: dict) -> Tensor:
        if options.get("block") != ("input", self.block):
            return h
        sigma = options["sigmas"].flatten()[:1]
        high, low = self.sigma_range
        groups = options.get("cond_or_uncond", (0,))
        if not low <= float(sigma) <= high or 0 not in groups:
            return h
        frames = frames_in(h.shape[0], options)
        first = 1 if self.targets_only else 0
        features = self._features(h, frames, sigma, options)[first:]
        rows = h.reshape(len(groups), frames, *h.shape[1:])
        # Several signals in a chain are all measured against the same features, so that their order does not matter.
        so_far, reference = options.get(keys.CONTROLLED, (None, None))
        reference = reference if so_far is h else rows
        # A new tensor: the UNet keeps `h` itself as its skip connection.
        out = rows.clone()
        for group, unconditional in enumerate(groups):
            if not unconditional:
                out[group, first:] = inject(rows[group, first:], features, self.strength, reference[group, first:])
        out = out.reshape(h.shape)
        options[keys.CONTROLLED] = out, reference
        return out

    def _features(self, h: Tensor, frames: int, sigma: Tensor, options: dict) -> Tensor:
        height, width = (DOWNSCALE * side for side in options["original_shape"][-2:])
        if self._resized.shape[-2:] != (height, width):
            placed = placed_size(*self.control.shape[-2:], height, width)
            self._resized = on_canvas(resize_control(self.control, *placed), height, width)
        target = self._resized.to(h)  # (1 or T-1, 3, H, W)
        pair = torch.cat([torch.zeros_like(target[:1]), target])
        t = network_timestep(sigma.to(h.device)).expand(len(pair))
        features = self.weights.model(pair, t)
        # One drawing controls every later frame of a longer clip.
        return features if len(features) == frames else torch.cat(
            [features[:1], features[1:2].expand(frames - 1, *features.shape[1:])])


def is_controlled(model: ModelPatcher) -> bool:
    """Whether a control picture acts on a model already."""
    patches = model.model_options["transformer_options"].get("patches", {}).get("input_block_patch_after_skip", [])
    return any(isinstance(patch, ControlPatch) for patch in patches)


def apply_control(model: ModelPatcher, encoder: ModelPatcher, control: Tensor, strength: float, start_percent: float,
                  end_percent: float, semantics: ControlSemantics) -> ModelPatcher:
    """A clone that follows a control frame. Strength 0 is an untouched clone; several may be chained.

    Args:
        control: (1, H, W, 3) light strokes on black; resized to the picture's place on the latents' canvas.
        strength: the released control scale (0.8 in the authors' demo).
        start_percent, end_percent: share of the noise range in which it acts, 0 the noisy end.
        semantics: "release" or "paper", see ControlPatch.

    Raises:
        WrongModel: not an SVD model, or the encoder's width is not the UNet's.
        ValueError: an empty schedule.
    """
    layout = svd_layout(model)
    check_schedule(start_percent, end_percent)
    clone = model.clone()
    if strength == 0.0:
        return clone
    block = layout.injection_block
    width = unet_shapes(model)[f"input_blocks.{block}.0.op.weight"][0]
    if encoder.model.widths.out != width:
        raise WrongModel(f"the control encoder gives {encoder.model.widths.out} channels, the model's first "
                         f"level has {width}. Take MODEL and FRAMEPAINTER from the same Load FramePainter node.")
    sampling = model.get_model_object("model_sampling")
    sigma_range = tuple(sampling.percent_to_sigma(p) for p in (start_percent, end_percent))
    clone.set_model_input_block_patch_after_skip(ControlPatch(
        encoder, control.movedim(-1, 1).clone(), block, strength, sigma_range, semantics == "paper"))
    return clone
