"""Attaching FramePainter to an SVD model, as a guest: clone, host setters, and it comes off with the clone.

Patch objects are shared by clones of a model, so nothing that they answer depends on earlier calls; what belongs to one
pass travels in the host's `transformer_options`. Their `models()` hands the extra weights to the host, which loads,
offloads, casts and unloads them with the model; `to()` therefore moves nothing.

Legend: B conditioning groups in one pass, T frames, L tokens, C channels; rows are folded as (B*T, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ..core.attention.drag import copy_tokens, token_drags
from ..core.edm import inverse_square_guidance, network_timestep, step_position
from ..core.images import resize_control
from ..core.models.control_encoder import DOWNSCALE
from ..core.models.injection import inject
from ..core.weights import diffusers_svd, framepainter
from . import keys

Semantics = Literal["release", "paper", "cross-frame", "off"]
ControlSemantics = Literal["release", "paper"]


class WrongModel(ValueError):
    """The MODEL socket holds something that this node cannot work on."""


def unet_shapes(model: ModelPatcher) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape of a model's UNet, ComfyUI naming."""
    return {name: tuple(p.shape) for name, p in model.model.diffusion_model.state_dict().items()}


def svd_layout(model: ModelPatcher, node: str) -> diffusers_svd.Layout:
    """The layout of an SVD model's UNet.

    Raises:
        WrongModel: the model is of another family; the text names the node, what came and what to connect.
    """
    names = unet_shapes(model)
    try:
        layout = diffusers_svd.layout_from_comfy(names)
    except ValueError:
        layout = None
    if layout is None or not any(layout.down_attention):
        found = type(model.model).__name__
        raise WrongModel(
            f"{node}: the 'model' input is a {found} model, but this works on Stable Video Diffusion networks only. "
            "Connect MODEL from Load FramePainter, or from Image Only Checkpoint Loader with an SVD checkpoint."
        )
    return layout


def frames_in(rows: int, options: dict) -> int:
    """T, from the rows of a pass and the conditioning groups that share it (together or split, as memory allows)."""
    return rows // max(len(options.get("cond_or_uncond", (0,))), 1)


def _drop(model: ModelPatcher, kind: str, *owners: type) -> None:
    """Take our patches of one kind off a clone; everyone else's stay, in their order."""
    patches = model.model_options["transformer_options"].get("patches", {})
    if kind in patches:
        patches[kind] = [p for p in patches[kind] if not isinstance(p, owners)]


class _WeightsPatch:
    """A patch that owns weights. `weights` is their ModelPatcher, or None."""

    def __init__(self, weights: ModelPatcher | None):
        self.weights = weights

    def models(self) -> list[ModelPatcher]:
        return [] if self.weights is None else [self.weights]

    def to(self, device_or_dtype: Any) -> _WeightsPatch:
        return self

    def __deepcopy__(self, memo: dict) -> _WeightsPatch:
        # ComfyUI 0.3.75 deep-copies a model's options with every clone; without this each node would duplicate the
        # weights. Sharing is safe, as no answer depends on earlier calls.
        return self


# ---- matching attention ----------------------------------------------------------------------------------------------


class _Marked:
    """A spatial transformer block's forward that says which block it is.

    The temporal block runs under the same patch key as the spatial one, and shapes tell them apart only while
    h*w differs from T, so the place is written into the options that this one call sees.
    """

    def __init__(self, forward: Callable, site: str, block: torch.nn.Module):
        self.forward, self.site, self.block = forward, site, block

    def __call__(self, *args: Any, transformer_options: dict | None = None, **kwargs: Any) -> Tensor:
        marked = {**(transformer_options or {}), keys.SITE: self.site, keys.BLOCK: self.block}
        out = self.forward(*args, transformer_options=marked, **kwargs)
        for patch in marked.get("patches", {}).get(keys.BLOCK_OUTPUT, ()):
            out = patch(out, marked)
        return out


def mark_spatial_blocks(model: ModelPatcher) -> None:
    """Make every spatial transformer block of a clone announce itself. Chains, and is idempotent."""
    for site in framepainter.spatial_sites(unet_shapes(model)):
        name = f"diffusion_model.{site}.forward"
        forward = model.get_model_object(name)
        if not isinstance(forward, _Marked):
            model.add_object_patch(name, _Marked(forward, site, model.get_model_object(f"diffusion_model.{site}")))
    model.remove_callbacks_with_key(CallbacksMP.ON_CLONE, keys.PREFIX)
    model.add_callback_with_key(CallbacksMP.ON_CLONE, keys.PREFIX, _mark_copied_blocks)


def _mark_copied_blocks(model: ModelPatcher, clone: ModelPatcher) -> None:
    """A clone with a network of its own (newer hosts: compiling, training, several GPUs) must run its own blocks."""
    if clone.model is model.model:
        return
    for name, patch in list(clone.object_patches.items()):
        if isinstance(patch, _Marked):
            block = clone.model.get_submodule(f"diffusion_model.{patch.site}")
            own = getattr(patch.forward, "__self__", None) is patch.block
            clone.object_patches[name] = _Marked(block.forward if own else patch.forward, patch.site, block)


class NormedInput(_WeightsPatch):
    """attn1_patch: leaves the block's normalised input for the output patch of the same block, and changes nothing."""

    def __init__(self) -> None:
        super().__init__(None)

    def __call__(self, normed: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
        if keys.SITE in options:
            options[keys.NORMED] = normed
        return normed, context, value


class MatchingPatch(_WeightsPatch):
    """attn1_output_patch: self_attention + strength * matching, in the spatial blocks (section 3.2, equation 4)."""

    def __init__(self, weights: ModelPatcher, strength: float, targets_only: bool):
        super().__init__(weights)
        self.strength, self.targets_only = strength, targets_only

    def __call__(self, out: Tensor, options: dict) -> Tensor:
        site = options.get(keys.SITE)
        if site is None:
            return out
        normed = options.pop(keys.NORMED)
        record = options.get(keys.RECORD)

        def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            precision = options.get("attn_precision")
            return optimized_attention(q, k, v, heads, attn_precision=precision, transformer_options=options)

        branch = self.weights.model.at(site)(
            normed, frames_in(out.shape[0], options), attention, self.targets_only,
            None if record is None else lambda q, k, heads: record(site, q, k, heads, options),
        )
        return out + branch * self.strength if self.strength != 1.0 else out + branch


class CrossFramePatch(_WeightsPatch):
    """attn1_output_patch without weights of its own: later frames' self-attention also sees frame 0.

    The inflated attention that the paper compares with (section 3.2, Table 3), usable on stock SVD: keys and values
    of [frame 0, own frame] through the block's own projections. strength moves from self-attention to that.
    """

    def __init__(self, strength: float):
        super().__init__(None)
        self.strength = strength

    def __call__(self, out: Tensor, options: dict) -> Tensor:
        site = options.get(keys.SITE)
        if site is None:
            return out
        normed = options.pop(keys.NORMED)
        frames = frames_in(out.shape[0], options)
        if frames < 2:
            return out
        video = normed.reshape(-1, frames, *normed.shape[1:])  # (B, T, L, C)
        own = video[:, 1:]
        source = video[:, :1].expand_as(own)
        attention = options[keys.BLOCK].attn1
        record = options.get(keys.RECORD)
        if record is not None:
            record(site, attention.to_q(own), attention.to_k(video[:, 0]), attention.heads, options)
        wide = attention(own.flatten(0, 1), context=torch.cat([source, own], dim=2).flatten(0, 1),
                         transformer_options=options).reshape(own.shape)
        result = out.reshape(video.shape).clone()
        result[:, 1:] += self.strength * (wide - result[:, 1:])
        return result.reshape(out.shape)


def attach_matching(model: ModelPatcher, weights: ModelPatcher | None, semantics: Semantics,
                    strength: float) -> ModelPatcher:
    """A clone with matching attention as asked; a branch that was already there is replaced, not doubled.

    Args:
        model: any SVD model.
        weights: the trained branch (a patched MatchingBranch); not needed for "cross-frame" and "off".
        semantics: "release" all frames ask frame 0; "paper" later frames only; "cross-frame" the model's own
            self-attention widened to frame 0; "off" none.
        strength: 0 is exactly "off".

    Raises:
        WrongModel: not an SVD model, no trained branch, or one of another width.
    """
    node = "Matching Attention"
    svd_layout(model, node)
    clone = model.clone()
    _drop(clone, "attn1_patch", NormedInput)
    _drop(clone, "attn1_output_patch", MatchingPatch, CrossFramePatch)
    if semantics == "off" or strength == 0.0:
        return clone
    sites = framepainter.spatial_sites(unet_shapes(model))
    if semantics == "cross-frame":
        patch: _WeightsPatch = CrossFramePatch(strength)
    elif weights is None:
        raise WrongModel(
            f"{node}: '{semantics}' needs the trained matching weights. Connect FRAMEPAINTER from Load FramePainter, "
            "or choose 'cross-frame', which works with any SVD model."
        )
    else:
        trained = {site: weights.model.at(site).to_q.weight.shape[0] for site in weights.model.sites}
        if trained != sites:
            raise WrongModel(
                f"{node}: the matching weights belong to another network ({len(trained)} blocks, widths "
                f"{sorted(set(trained.values()))}; this model has {len(sites)} blocks, widths "
                f"{sorted(set(sites.values()))}). Take MODEL and FRAMEPAINTER from the same Load FramePainter node."
            )
        patch = MatchingPatch(weights, strength, targets_only=semantics == "paper")
    mark_spatial_blocks(clone)
    clone.set_model_attn1_patch(NormedInput())
    clone.set_model_attn1_output_patch(patch)
    return clone


# ---- dragging --------------------------------------------------------------------------------------------------------


class DragPatch(_WeightsPatch):
    """On every spatial block's output: the source frame's tokens at the source points, added to the later frames' tokens
    at the target points. Only conditional rows get it, as with control."""

    def __init__(self, points: Tensor, strength: float, sigma_range: tuple[float, float]):
        super().__init__(None)
        self.points, self.strength, self.sigma_range = points, strength, sigma_range

    def __call__(self, tokens: Tensor, options: dict) -> Tensor:
        sigma = float(options["sigmas"].flatten()[0])
        high, low = self.sigma_range
        groups = options.get("cond_or_uncond", (0,))
        frames = frames_in(tokens.shape[0], options)
        if not low <= sigma <= high or frames < 2:
            return tokens
        rows = tokens.unflatten(0, (len(groups), frames))
        drags = token_drags(self.points.to(tokens.device), *token_size(tokens.shape[1], options["original_shape"]))
        parts = [rows[i:i + 1] if unconditional else copy_tokens(rows[i:i + 1], drags, self.strength)
                 for i, unconditional in enumerate(groups)]
        return torch.cat(parts).flatten(0, 1)


def token_size(length: int, latent_shape: list[int]) -> tuple[int, int]:
    """(h, w) of an attention's L tokens in a UNet working on (..., H, W) latents; each level halves, rounding up."""
    height, width = latent_shape[-2:]
    while height * width > length:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def apply_drag(model: ModelPatcher, points: Tensor, strength: float, start_percent: float,
               end_percent: float) -> ModelPatcher:
    """A clone whose later frames take up the source frame's tokens at the targets. Strength 0 is an untouched clone.

    Args:
        points: (1, K, 4) source x, y, target x, y as shares of the picture's width and height.
        strength: factor on the copied tokens.
        start_percent, end_percent: share of the noise range in which it acts, 0 the noisy end.

    Raises:
        WrongModel: not an SVD model.
        ValueError: an empty schedule.
    """
    svd_layout(model, "Apply Edit Signal")
    _check_schedule(start_percent, end_percent)
    clone = model.clone()
    if strength == 0.0:
        return clone
    sampling = model.get_model_object("model_sampling")
    sigma_range = tuple(sampling.percent_to_sigma(p) for p in (start_percent, end_percent))
    mark_spatial_blocks(clone)
    clone.set_model_patch(DragPatch(points, strength, sigma_range), keys.BLOCK_OUTPUT)
    return clone


def _check_schedule(start_percent: float, end_percent: float) -> None:
    if start_percent >= end_percent:
        raise ValueError(f"Apply Edit Signal: start_percent {start_percent} is not before end_percent {end_percent}; "
                         "the signal would never act. Lower start_percent or raise end_percent.")


# ---- control ---------------------------------------------------------------------------------------------------------


class ControlPatch(_WeightsPatch):
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
            self._resized = resize_control(self.control, height, width)
        target = self._resized.to(h)  # (1 or T-1, 3, H, W)
        pair = torch.cat([torch.zeros_like(target[:1]), target])
        t = network_timestep(sigma.to(h.device)).expand(len(pair))
        features = self.weights.model(pair, t)
        # One drawing controls every later frame of a longer clip.
        return features if len(features) == frames else torch.cat(
            [features[:1], features[1:2].expand(frames - 1, *features.shape[1:])])


def apply_control(model: ModelPatcher, encoder: ModelPatcher, control: Tensor, strength: float, start_percent: float,
                  end_percent: float, semantics: ControlSemantics) -> ModelPatcher:
    """A clone that follows a control frame. Strength 0 is an untouched clone; several may be chained.

    Args:
        control: (1, H, W, 3) light strokes on black; resized to the latents' picture size.
        strength: the released control scale (0.8 in the authors' demo).
        start_percent, end_percent: share of the noise range in which it acts, 0 the noisy end.
        semantics: "release" or "paper", see ControlPatch.

    Raises:
        WrongModel: not an SVD model, or the encoder's width is not the UNet's.
        ValueError: an empty schedule.
    """
    node = "Apply Edit Signal"
    layout = svd_layout(model, node)
    _check_schedule(start_percent, end_percent)
    clone = model.clone()
    if strength == 0.0:
        return clone
    block = layout.injection_block
    width = unet_shapes(model)[f"input_blocks.{block}.0.op.weight"][0]
    if encoder.model.widths.out != width:
        raise WrongModel(f"{node}: the control encoder gives {encoder.model.widths.out} channels, the model's first "
                         f"level has {width}. Take MODEL and FRAMEPAINTER from the same Load FramePainter node.")
    sampling = model.get_model_object("model_sampling")
    sigma_range = tuple(sampling.percent_to_sigma(p) for p in (start_percent, end_percent))
    clone.set_model_input_block_patch_after_skip(ControlPatch(
        encoder, control.movedim(-1, 1).clone(), block, strength, sigma_range, semantics == "paper"))
    return clone


# ---- guidance --------------------------------------------------------------------------------------------------------


def set_guidance(model: ModelPatcher, schedule: Literal["inverse square", "constant"]) -> ModelPatcher:
    """A clone whose guidance scale follows FramePainter's schedule, starting from the sampler's own cfg.

    A cfg function that is already there (a rescale, say) keeps its work; it is given this schedule's scale. A schedule of
    ours that is already there is replaced.
    """
    clone = model.clone()
    before = clone.model_options.pop("sampler_cfg_function", None)
    before = getattr(before, "framepainter_before", before)
    if schedule == "constant":
        if before is not None:
            clone.set_model_sampler_cfg_function(before)
        return clone

    def scheduled_cfg(args: dict) -> Tensor:
        sigmas = [float(s) for s in args["model_options"]["transformer_options"].get("sample_sigmas", ())]
        position = step_position(float(args["sigma"].flatten()[0]), sigmas)
        scale = inverse_square_guidance(args["cond_scale"], position, len(sigmas) - 1)
        if before is not None:
            return before({**args, "cond_scale": scale})
        return args["uncond"] + scale * (args["cond"] - args["uncond"])

    scheduled_cfg.framepainter_before = before
    clone.set_model_sampler_cfg_function(scheduled_cfg)
    return clone
