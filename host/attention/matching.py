"""Attaching FramePainter to an SVD model: on a clone, with the host's setters, so that it is removed with the clone.

Patch objects are shared by clones of a model, so they keep no state between calls; what belongs to one pass is kept in the host's
`transformer_options`. Their `models()` gives the extra weights to the host, which loads, offloads, casts and unloads them with the
model; `to()` therefore moves nothing.

Legend: B conditioning groups in one pass, T frames, L tokens, C channels; rows are folded as (B*T, ...).
"""

from __future__ import annotations

from typing import Literal

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.weights import framepainter
from .. import keys
from ..models import savings
from ..models.network import WrongModel, frames_in, svd_layout, unet_shapes
from .blocks import NormedInput, WeightsPatch, drop, mark_spatial_blocks

Semantics = Literal["release", "paper", "cross-frame", "off"]


class MatchingPatch(WeightsPatch):
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


class CrossFramePatch(WeightsPatch):
    """attn1_output_patch without weights of its own: later frames' self-attention also sees frame 0.

    The inflated attention that the paper compares with (section 3.2, Table 3), usable on stock SVD: keys and values
    of [frame 0, own frame] through the block's own projections. strength moves from self-attention to that.
    """

    def __init__(self, strength: float):
        super().__init__(None)
        self.strength = strength

    @property
    def keeps_first_frame_alone(self) -> bool:
        """Whether nothing of the later frames' self-attention is left in the result."""
        return self.strength == 1.0

    def __call__(self, out: Tensor, options: dict) -> Tensor:
        site = options.get(keys.SITE)
        if site is None:
            return out
        normed = options.pop(keys.NORMED)
        frames = frames_in(len(normed), options)
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
        if options.pop(keys.ALONE, False):
            return torch.cat([out[:, None], wide], 1).reshape(normed.shape)
        result = out.reshape(video.shape).clone()
        result[:, 1:] += self.strength * (wide - result[:, 1:])
        return result.reshape(out.shape)


def attach_matching(model: ModelPatcher, weights: ModelPatcher | None, semantics: Semantics,
                    strength: float) -> ModelPatcher:
    """A clone with the given matching attention; one that was already there is replaced, not doubled.

    Args:
        model: any SVD model.
        weights: the trained branch (a patched MatchingBranch); not needed for "cross-frame" and "off".
        semantics: "release" all frames ask frame 0; "paper" later frames only; "cross-frame" the model's own
            self-attention widened to frame 0; "off" none.
        strength: 0 is exactly "off".

    Raises:
        WrongModel: not an SVD model, no trained branch, or one of another width.
    """
    svd_layout(model)
    clone = model.clone()
    drop(clone, "attn1_patch", NormedInput)
    drop(clone, "attn1_output_patch", MatchingPatch, CrossFramePatch)
    if semantics == "off" or strength == 0.0:
        savings.drop(clone)
        return clone
    sites = framepainter.spatial_sites(unet_shapes(model))
    if semantics == "cross-frame":
        patch: WeightsPatch = CrossFramePatch(strength)
    elif weights is None:
        raise WrongModel(
            f"'{semantics}' needs the trained matching weights. Connect FRAMEPAINTER from Load FramePainter, "
            "or choose 'cross-frame', which works with any SVD model."
        )
    else:
        trained = {site: weights.model.at(site).to_q.weight.shape[0] for site in weights.model.sites}
        if trained != sites:
            raise WrongModel(
                f"the matching weights belong to another network ({len(trained)} blocks, widths "
                f"{sorted(set(trained.values()))}; this model has {len(sites)} blocks, widths "
                f"{sorted(set(sites.values()))}). Take MODEL and FRAMEPAINTER from the same Load FramePainter node."
            )
        patch = MatchingPatch(weights, strength, targets_only=semantics == "paper")
    mark_spatial_blocks(clone)
    savings.save(clone)
    clone.set_model_attn1_patch(NormedInput())
    clone.set_model_attn1_output_patch(patch)
    return clone
