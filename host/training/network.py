"""An SVD network as torch sees it for training: one module, plain tensors, one forward call.

Weights that the host loads are inference tensors, moved and cast behind the scenes; training needs a copy that nobody
else touches. Legend: B videos, T frames, h w latent size.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

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
from ...core.training.framepainter.objective import Asked
from ...core.weights import diffusers_svd, framepainter
from .. import keys
from ..attention.blocks import NormedInput, _Marked
from ..attention.matching import MatchingPatch
from ..network import token_size

NUMBERS = (6.0, 128.0, 0.02)  # what the network sees for FramePainter Conditioning's defaults
# The host's attention functions that can be differentiated; its others (sage, flash, int8) drop gradients in silence.
WITH_GRADIENTS = {"attention_basic", "attention_pytorch", "attention_split", "attention_sub_quad", "attention_xformers"}


def _with_gradients(_: Callable, *args: Any, **kwargs: Any) -> Tensor:
    """An override in the host's form: torch's own attention in place of the one given."""
    return host_attention.attention_pytorch(*args, **kwargs)


class TrainingNetwork(nn.Module):
    """UNet, matching attention and control encoder behind the call that `core.training.objective` makes.

    Args:
        unet: the host's UNet, plain tensors; its blocks' forwards are replaced, so it must be this module's own.
        matching: a MatchingBranch, or None to train without one.
        encoder: a ControlEncoder, or None.
        semantics: "release" all frames are matched with frame 0, and frame 0 gets an all-black control frame; "paper"
            later frames only.
        checkpointing: compute the blocks again in the backward pass instead of keeping what is inside them: spatial and
            temporal ones alike.
        numbers: fps - 1, motion bucket and augmentation level, for examples that bring none.
    """

    def __init__(self, unet: nn.Module, matching: nn.Module | None = None, encoder: nn.Module | None = None,
                 semantics: str = "release", checkpointing: bool = False, numbers: tuple[float, ...] = NUMBERS):
        super().__init__()
        self.unet, self.matching, self.encoder = unet, matching, encoder
        self.targets_only = semantics == "paper"
        names = {name: tuple(p.shape) for name, p in unet.state_dict().items()}
        self.injection_block = diffusers_svd.layout_from_comfy(names).injection_block
        for site in framepainter.spatial_sites(names):
            block = unet.get_submodule(site)
            block.forward = _Marked(block.forward, site, block)
        if checkpointing:
            for module in unet.modules():
                if isinstance(module, SpatialVideoTransformer | VideoResBlock):
                    module.forward = _Checkpointed(module.forward)
        self.memory: Any = None  # see host/attention/skip_interval.py; adds keys and values to temporal self-attention
        self.register_buffer("numbers", torch.tensor([numbers]), persistent=False)  # (1, 3)

    def forward(self, x: Tensor, t: Tensor, image: Tensor, embedding: Tensor, control: Tensor | None = None,
                record: bool = False, drag: Tensor | None = None,
                numbers: Tensor | None = None) -> tuple[Tensor, list[Asked]]:
        """See `core.training.objective.Network`. Timesteps may differ from video to video."""
        videos, frames = x.shape[:2]
        asked: list[Asked] = []
        options: dict[str, Any] = {"patches": {}, "cond_or_uncond": [0] * videos}  # so that T is told from B*T rows
        if host_attention.optimized_attention.__name__ not in WITH_GRADIENTS:
            options["optimized_attention_override"] = _with_gradients
        if self.memory is not None:
            options[keys.MEMORY] = self.memory
        patches = options["patches"]
        if self.matching is not None:
            patches["attn1_patch"] = [NormedInput()]
            patches["attn1_output_patch"] = [MatchingPatch(SimpleNamespace(model=self.matching), 1.0, self.targets_only)]
            if record:
                options[keys.RECORD] = lambda site, q, k, heads, _: asked.append(Asked(site, q, k, heads))
        if control is not None and self.encoder is not None:
            features = self._features(control, t, x)
            present = (control.flatten(1).amax(1) > 0)[:, None, None, None, None]  # as sampling: no signal, no injection

            def add_control(h: Tensor, options: dict) -> Tensor:
                if options.get("block") != ("input", self.injection_block):
                    return h
                first = 1 if self.targets_only else 0
                rows = h.unflatten(0, (videos, frames))
                changed = inject(rows[:, first:].flatten(0, 1), features[:, first:].flatten(0, 1), 1.0)
                changed = torch.cat([rows[:, :first], changed.unflatten(0, (videos, -1))], 1)
                return torch.where(present, changed, rows).flatten(0, 1)

            patches["input_block_patch_after_skip"] = [add_control]
        if drag is not None:
            def add_drags(tokens: Tensor, options: dict) -> Tensor:
                drags = token_drags(drag, *token_size(tokens.shape[1], options["original_shape"]))
                return copy_tokens(tokens.unflatten(0, (videos, frames)), drags).flatten(0, 1)

            patches[keys.BLOCK_OUTPUT] = [add_drags]
        rows = torch.cat([x, image[:, None].expand(-1, frames, -1, -1, -1)], 2).flatten(0, 1)
        y = torch.cat([sinusoidal_embedding(n, 256) for n in (self.numbers if numbers is None else numbers).T], 1)
        v = self.unet(
            rows, timesteps=t.repeat_interleave(frames), context=embedding.repeat_interleave(frames, 0),
            y=y.expand(videos, -1).repeat_interleave(frames, 0), transformer_options=options, num_video_frames=frames,
            image_only_indicator=torch.zeros(videos, frames, device=x.device))
        done, asked = list(asked), []  # blocks that run again in the backward pass must not add to what is returned
        options.pop(keys.RECORD, None)
        return v.unflatten(0, (videos, frames)), done

    def _features(self, control: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """(B, T, C, h, w) control features: black for the source frame, the drawing for all later ones."""
        control = resize_control(control, *(DOWNSCALE * side for side in x.shape[-2:]))
        target = self.encoder(control.to(x), t)
        if self.targets_only:
            source = torch.zeros_like(target)
        else:
            source = self.encoder(torch.zeros_like(control).to(x), t)
        return torch.stack([source] + [target] * (x.shape[1] - 1), 1)


class _Checkpointed:
    """A forward whose inside is computed again in the backward pass."""

    def __init__(self, forward: Callable):
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)
