"""Small random models of families that the pack does not work on. As a custom node of its own, a server can have them too."""

from __future__ import annotations

from typing import Any

import torch


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


class RandomImageModel:
    """Gives such a model to a workflow."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "make", "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"family": (["SD15", "SDXL"],)}}

    def make(self, family: str) -> tuple:
        return (image_model(family),)


NODE_CLASS_MAPPINGS = {"FramePainterTestImageModel": RandomImageModel}
