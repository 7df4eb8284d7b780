"""FramePainter's guidance schedule on the host's classifier-free guidance."""

from __future__ import annotations

from typing import Literal

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...core.edm import inverse_square_guidance, step_position

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
