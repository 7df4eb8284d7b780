"""Sketch and coarse edit: control features injected into the UNet."""

from __future__ import annotations

from typing import Literal, NamedTuple

import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ...core.edm import network_timestep
from ...core.images import resize_control
from ...core.models.control_encoder import DOWNSCALE
from ...core.models.control_injection import inject
from ...core.placement import on_canvas, placed_size
from .. import keys
from ..attention.blocks import WeightsPatch
from ..models.network import WrongModel, frames_in, svd_layout, unet_shapes
from ..models.savings import save, switched_on

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
        self._begun: _Begun | None = None  # a memo of one sampling run

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
        features = self._features(h, frames, sigma, options)
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
        """(T, C, h, w) of all frames, or (T-1, C, h, w) of the later ones where only they are controlled."""
        height, width = (DOWNSCALE * side for side in options["original_shape"][-2:])
        if self._resized.shape[-2:] != (height, width):
            placed = placed_size(*self.control.shape[-2:], height, width)
            self._resized = on_canvas(resize_control(self.control, *placed), height, width)
        target = self._resized.to(h)  # (1 or T-1, 3, H, W)
        source = target[:0] if self.targets_only else torch.zeros_like(target[:1])
        features = self._encoded(torch.cat([source, target]), sigma, options)
        if len(features) == len(source) + frames - 1:
            return features
        # One drawing controls every later frame of a longer clip.
        drawn = features[len(source):len(source) + 1].expand(frames - 1, *features.shape[1:])
        return torch.cat([features[:len(source)], drawn])

    def _encoded(self, images: Tensor, sigma: Tensor, options: dict) -> Tensor:
        """Features at a noise level. What does not depend on it is computed once in a sampling run and kept, memory permitting."""
        encoder, t = self.weights.model, network_timestep(sigma.to(images.device)).expand(len(images))
        run = options.get("sample_sigmas")  # the host's: one tensor for all of a run
        if run is None or not switched_on():
            return encoder(images, t)
        kept, key = self._begun, (images.shape, images.dtype, images.device)
        if kept is None or kept.run is not run or kept.key != key:
            kept, self._begun = _Begun(run, key, encoder.begin(images)), None
            size = sum(x.nbytes for x in kept.features)
            if mm.is_device_cpu(images.device) or mm.get_free_memory(images.device) > 4 * size:
                self._begun = kept
        return encoder(images, t, kept.features)

    def forget(self) -> None:
        """A sampling run has ended."""
        self._begun = None


class _Begun(NamedTuple):
    """The encoding up to the layer where the noise level is added, and what it belongs to."""

    run: Tensor
    key: tuple
    features: tuple[Tensor, Tensor]


def _forget(model: ModelPatcher) -> None:
    """ON_CLEANUP callback: the host calls it at the end of a sampling run, whatever ended it."""
    for patch in model.model_options["transformer_options"].get("patches", {}).get("input_block_patch_after_skip", ()):
        if isinstance(patch, ControlPatch):
            patch.forget()


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
    save(clone)
    clone.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, keys.SAVINGS)
    clone.add_callback_with_key(CallbacksMP.ON_CLEANUP, keys.SAVINGS, _forget)
    return clone
