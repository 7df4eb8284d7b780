"""An SVD network as torch sees it for training: one module, plain tensors, one forward call.

Weights that the host loads are inference tensors, moved and cast behind the scenes; training needs a copy that nobody
else touches. Legend: B videos, T frames, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import comfy.model_management as mm
import torch
from comfy.ldm.modules import attention as host_attention
from comfy.ldm.modules.attention import SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import VideoResBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...core.attention.drag import copy_tokens, token_drags
from ...core.images import resize_control
from ...core.models.control_encoder import DOWNSCALE, sinusoidal_embedding
from ...core.models.control_injection import inject
from ...core.training.in_parts import Parts
from ...core.training.network import AttentionQK, NetworkInput, Prediction
from ...core.weights import diffusers_svd, framepainter
from .. import keys
from ..attention.blocks import NormedInput, _Marked
from ..attention.matching import MatchingPatch
from ..models import savings
from ..models.network import token_size

MICRO_CONDS = (6.0, 128.0, 0.02)  # fps - 1, motion bucket, augmentation of FramePainter Conditioning's defaults
PEAK = 143  # values a channel of a token at the first level, counted by bench/motion_lora.py --cost ("whole transformers")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# The host's attention functions that can be differentiated; its others (sage, flash, int8) drop gradients in silence.
WITH_GRADIENTS = {"attention_basic", "attention_pytorch", "attention_split", "attention_sub_quad", "attention_xformers"}


def autocast(device: torch.device, precision: str) -> torch.amp.autocast:
    """Arithmetic in a precision: "bf16", "fp16", or "fp32" for what the tensors have."""
    return torch.amp.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def _with_gradients(_: Callable, *args: Any, **kwargs: Any) -> Tensor:
    """An override in the host's form: torch's own attention in place of the one given."""
    return host_attention.attention_pytorch(*args, **kwargs)


_with_gradients.plain = True  # softmax attention, see host/models/savings.py


class TrainingNetwork(nn.Module):
    """UNet, matching attention and control encoder behind the call of `core.training.network`.

    Args:
        unet: the host's UNet, plain tensors; its blocks' forwards are replaced, so it must be this module's own.
        matching: a MatchingBranch, or None to train without one.
        encoder: a ControlEncoder, or None.
        semantics: "release" all frames are matched with frame 0, and frame 0 gets an all-black control frame; "paper"
            later frames only.
        checkpointing: compute the blocks again in the backward pass instead of keeping what is inside them: spatial and
            temporal ones alike.
        micro_conds: fps - 1, motion bucket and augmentation level, for examples that bring none.
        precision: of the arithmetic: "fp32", or "bf16" and "fp16" under autocast.
    """

    def __init__(self, unet: nn.Module, matching: nn.Module | None = None, encoder: nn.Module | None = None,
                 semantics: str = "release", checkpointing: bool = False, micro_conds: tuple[float, ...] = MICRO_CONDS,
                 precision: str = "fp32"):
        super().__init__()
        self.unet, self.matching, self.encoder = unet, matching, encoder
        self.targets_only, self.precision = semantics == "paper", precision
        names = {name: tuple(p.shape) for name, p in unet.state_dict().items()}
        self.injection_block = diffusers_svd.layout_from_comfy(names).injection_block
        for site in framepainter.spatial_sites(names):
            block = unet.get_submodule(site)
            block.forward = _Marked(block.forward, site, block)
        if checkpointing:
            for module in unet.modules():
                if isinstance(module, SpatialVideoTransformer | VideoResBlock):
                    module.forward = _Checkpointed(module.forward)
        savings.save_in(unet)
        self.parts: Parts | None = None  # of feed-forward layers, which are computed once more than needed while memory is short
        self.memory: Any = None  # see host/attention/skip_interval.py; adds keys and values to temporal self-attention
        self.register_buffer("micro_conds", torch.tensor([micro_conds]), persistent=False)  # (1, 3)

    def forward(self, given: NetworkInput) -> Prediction:
        """The network's answer. Timesteps may differ from video to video."""
        if self.parts is not None and torch.is_grad_enabled():
            self.parts.again = mm.get_free_memory(given.x.device) < self._inside(given.x)
        with autocast(given.x.device, self.precision):
            out = self._predict(given)
        return Prediction(out.v.float(), out.attention)

    def _inside(self, x: Tensor) -> float:
        """Bytes that a step takes at its peak if feed-forward layers keep what is inside them, and a fifth more."""
        tokens, size = x.numel() // x.shape[2], 4 if self.precision == "fp32" else 2
        return 1.2 * PEAK * size * tokens * self.unet.model_channels

    def _predict(self, given: NetworkInput) -> Prediction:
        videos, frames = given.x.shape[:2]
        recorded: list[AttentionQK] = []
        options = self._options(given, recorded)
        image = given.image if given.image.ndim == 5 else given.image[:, None]
        embedding = given.embedding
        embedding = embedding.flatten(0, 1) if embedding.ndim == 4 else embedding.repeat_interleave(frames, 0)
        micro_conds = self.micro_conds if given.micro_conds is None else given.micro_conds
        y = torch.cat([sinusoidal_embedding(n, 256) for n in micro_conds.T], 1)
        v = self.unet(
            torch.cat([given.x, image.expand(-1, frames, -1, -1, -1)], 2).flatten(0, 1),
            timesteps=given.t.repeat_interleave(frames), context=embedding,
            y=y.expand(videos, -1).repeat_interleave(frames, 0), transformer_options=options, num_video_frames=frames,
            image_only_indicator=torch.zeros(videos, frames, device=given.x.device))
        found = list(recorded)
        options.pop(keys.RECORD, None)  # blocks that run again in the backward pass must not add to what is returned
        recorded.clear()
        return Prediction(v.unflatten(0, (videos, frames)), found)

    def _options(self, given: NetworkInput, recorded: list[AttentionQK]) -> dict[str, Any]:
        """The host's transformer options of a call: matching attention, control and drags as patches."""
        patches: dict[str, list] = {}
        options: dict[str, Any] = {"patches": patches, "cond_or_uncond": [0] * len(given.x)}  # so that T is told from B*T rows
        if host_attention.optimized_attention.__name__ not in WITH_GRADIENTS:
            options["optimized_attention_override"] = _with_gradients
        if self.memory is not None:
            options[keys.MEMORY] = self.memory
        if self.matching is not None:
            patches["attn1_patch"] = [NormedInput()]
            patches["attn1_output_patch"] = [MatchingPatch(SimpleNamespace(model=self.matching), 1.0, self.targets_only)]
            if given.record:
                options[keys.RECORD] = lambda site, q, k, heads, _: recorded.append(AttentionQK(site, q, k, heads))
        if given.control is not None and self.encoder is not None:
            patches["input_block_patch_after_skip"] = [self._control_patch(given)]
        if given.drag is not None:
            patches[keys.BLOCK_OUTPUT] = [_drag_patch(given)]
        return options

    def _control_patch(self, given: NetworkInput) -> Callable[[Tensor, dict], Tensor]:
        control, (videos, frames) = given.control, given.x.shape[:2]
        features = self._features(control, given.t, given.x)
        present = (control.flatten(1).amax(1) > 0)[:, None, None, None, None]  # as sampling: no signal, no injection

        def add_control(h: Tensor, options: dict) -> Tensor:
            if options.get("block") != ("input", self.injection_block):
                return h
            first = 1 if self.targets_only else 0
            rows = h.unflatten(0, (videos, frames))
            changed = inject(rows[:, first:].flatten(0, 1), features[:, first:].flatten(0, 1), 1.0)
            changed = torch.cat([rows[:, :first], changed.unflatten(0, (videos, -1))], 1)
            return torch.where(present, changed, rows).flatten(0, 1)

        return add_control

    def _features(self, control: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """(B, T, C, h, w) control features: black for the source frame, the drawing for all later ones."""
        control = resize_control(control, *(DOWNSCALE * side for side in x.shape[-2:]))
        target = self.encoder(control.to(x), t)
        if self.targets_only:
            source = torch.zeros_like(target)
        else:
            source = self.encoder(torch.zeros_like(control).to(x), t)
        return torch.stack([source] + [target] * (x.shape[1] - 1), 1)


def _drag_patch(given: NetworkInput) -> Callable[[Tensor, dict], Tensor]:
    def add_drags(tokens: Tensor, options: dict) -> Tensor:
        drags = token_drags(given.drag, *token_size(tokens.shape[1], options["original_shape"]))
        return copy_tokens(tokens.unflatten(0, given.x.shape[:2]), drags).flatten(0, 1)

    return add_drags


class _Checkpointed:
    """A forward whose inside is computed again in the backward pass."""

    def __init__(self, forward: Callable):
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)
