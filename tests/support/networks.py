"""Small networks that exist only in memory, and how the tests run them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Edit(NamedTuple):
    """A loaded model with the conditioning of one small edit."""

    loaded: Any
    positive: list
    negative: list
    latent: Tensor  # (2, 4, h, w) zeros


def sample(model: Any, edit: Edit, steps: int = 2, cfg: float = 3.0, seed: int = 5, sampler: str = "euler",
           scheduler: str = "karras", frames: int = 2) -> Tensor:
    """Run the host's sampler; (T, 4, h, w). Gradients off and inference mode on, as in a server."""
    import comfy.sample

    latent = edit.latent[:1].expand(frames, -1, -1, -1).clone()
    with torch.inference_mode():
        noise = comfy.sample.prepare_noise(latent, seed)
        return comfy.sample.sample(model, noise, steps, cfg, sampler, scheduler, edit.positive, edit.negative, latent,
                                   disable_pbar=True, seed=seed).clone()


def image_model(family: str) -> Any:
    """A small random model of another family ("SD15" or "SDXL"), as a core loader would hand it out."""
    import comfy.model_patcher
    import comfy.supported_models

    config = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1],
              "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_middle": 1,
              "transformer_depth_output": [1, 1, 1, 1], "num_head_channels": 64, "num_heads": -1, "context_dim": 64,
              "use_spatial_transformer": True, "legacy": False, "use_temporal_attention": False,
              "use_temporal_resblock": False, "num_classes": None}
    if family == "SDXL":
        config |= {"num_classes": "sequential", "adm_in_channels": 2816, "use_linear_in_transformer": True}
    settings = getattr(comfy.supported_models, family)(config)
    settings.unet_config |= {"num_head_channels": 64, "num_heads": -1}
    settings.set_inference_dtype(torch.float32, None)
    model = settings.get_model({}, "")
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)
