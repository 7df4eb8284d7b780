"""FramePainter Guidance, Pick Edited Frame."""

from __future__ import annotations

import comfy.utils
from comfy_api.latest import io
from torch import Tensor

from ..core.placement import off_canvas
from ..host.models.network import svd_layout
from ..host.sampling.guidance import set_guidance
from .schema import check_choice, schema

SCHEDULES = ["inverse square", "constant"]


class FramePainterGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterGuidance",
            display_name="FramePainter Guidance",
            description="FramePainter's guidance schedule: the sampler's cfg at the first step, falling towards 1 with the square "
                        "of the remaining steps. The authors' demo uses cfg 3.",
            inputs=[
                io.Model.Input("model", tooltip="A Stable Video Diffusion model."),
                io.Combo.Input("schedule", options=SCHEDULES, default="inverse square",
                               tooltip="inverse square: 1 + (cfg - 1)(1 - step/steps)^2, as released. constant: cfg at every "
                                       "step."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="A copy of the model with this guidance schedule.")],
        )

    @classmethod
    def execute(cls, model, schedule: str) -> io.NodeOutput:
        check_choice("schedule", schedule, SCHEDULES)
        svd_layout(model)
        return io.NodeOutput(set_guidance(model, schedule))


class PickEditedFrame(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterPickEditedFrame",
            display_name="Pick Edited Frame",
            description="Takes the edited picture out of the decoded two-frame video.",
            inputs=[
                io.Image.Input("images", tooltip="All decoded frames of one edit, from VAE Decode."),
                io.Image.Input("original", optional=True,
                               tooltip="If connected, the results are resized to this picture's size (Lanczos). The rim of less "
                                       "than 8 pixels, which an uneven aspect ratio adds at the model's size, is cut off."),
            ],
            outputs=[
                io.Image.Output(display_name="edited", tooltip="The last frame."),
                io.Image.Output(display_name="reconstruction",
                                tooltip="Frame 0: the source as the model reproduces it. Its difference from the original tells "
                                        "how far the rest of the edit can be trusted."),
            ],
        )

    @classmethod
    def execute(cls, images: Tensor, original: Tensor | None = None) -> io.NodeOutput:
        if len(images) < 2:
            raise ValueError(f"got {len(images)} frame, an edit has two. Decode the whole LATENT of "
                             "KSampler with VAE Decode and connect that.")
        frames = [images[-1:], images[:1]]
        if original is not None and original.shape[1:3] != images.shape[1:3]:
            height, width = original.shape[1:3]
            frames = [comfy.utils.common_upscale(off_canvas(f, height, width).movedim(-1, 1), width, height, "lanczos",
                                                 "disabled").movedim(1, -1) for f in frames]
        return io.NodeOutput(*frames)


NODES = [FramePainterGuidance, PickEditedFrame]
