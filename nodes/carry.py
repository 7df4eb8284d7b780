"""Carry Edit."""

from __future__ import annotations

import re

import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn.functional import interpolate

from ..core.carry.run import Carry, Edit
from ..host.report import Steps
from ..host.video.carry import FLOWS, BatchFrames, flow_between
from .schema import check_choice, schema

OpticalFlowType = io.Custom("OPTICAL_FLOW")


class CarryEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterCarryEdit",
            display_name="Carry Edit",
            description="Carries the edit of one or several frames to all frames of a video, at the video's own size. Needs no "
                        "model. Pixels that are not edited stay the same, bit for bit.",
            search_aliases=["propagate without a model", "ebsynth", "edit keyframe", "recolour video", "optical flow"],
            inputs=[
                io.Image.Input("frames", tooltip="All frames of the video, from Read Video."),
                io.Image.Input("edited", tooltip="The edited keyframes at the video's size, one for each number in 'keyframes'."),
                io.String.Input("keyframes", default="0",
                                tooltip="Numbers of the edited frames, counted from 0 and separated by commas: 0, 24. Each edit "
                                        "is carried forward and backward; between two keyframes, the more reliable and nearer one "
                                        "counts more."),
                io.Combo.Input("flow", options=list(FLOWS), default="automatic",
                               tooltip="What estimates the motion. DIS: OpenCV's method, if OpenCV is installed. own: the pack's, "
                                       "which needs nothing. automatic: DIS if available. Not used if optical_flow is connected."),
                io.Mask.Input("mask", optional=True,
                              tooltip="Where the keyframes are edited: one mask for all, or one for each. Changes outside the "
                                      "mask are not carried. Without it: wherever 'edited' differs from the frame."),
                io.Mask.Input("keep", optional=True,
                              tooltip="White: stays as it is in every frame. One mask for all frames, or one for each, such as a "
                                      "tracked mask."),
                OpticalFlowType.Input("optical_flow", optional=True,
                                      tooltip="RAFT from Load Optical Flow Model, used instead of 'flow'. Better for large "
                                              "motion; slow without a graphics card."),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="The edited video; for Create Video."),
                io.Mask.Output(display_name="change", tooltip="1 where a frame was changed; elsewhere its pixels are exactly the "
                                                              "video's."),
                io.Mask.Output(display_name="confidence", tooltip="How certain each pixel is; 1 is certain. Low where things came "
                                                                  "into view or changed shape: edit another keyframe there."),
            ],
        )

    @classmethod
    def execute(cls, frames: Tensor, edited: Tensor, keyframes: str, flow: str, mask: Tensor | None = None,
                keep: Tensor | None = None, optical_flow=None) -> io.NodeOutput:
        check_choice("flow", flow, FLOWS)
        edits = _edits(edited, keyframes, mask)
        count, height, width = frames.shape[:3]
        if keep is not None and len(keep) not in (1, count):
            raise ValueError(f"'keep' has {len(keep)} masks, 'frames' {count} frames. Give one mask, or one a frame.")

        def kept(number: int) -> Tensor | None:
            return None if keep is None else _sized(keep[number if len(keep) > 1 else 0], height, width)

        images = torch.empty_like(frames)
        change, confidence = torch.empty(2, count, height, width)
        steps = Steps(1)
        run = Carry(BatchFrames(frames), [e._replace(mask=_sized(e.mask, height, width)) for e in edits],
                    flow_between(flow, optical_flow), keep=kept, watch=lambda done, total: steps.reach(done, total))
        for done in run.run():
            images[done.number], change[done.number], confidence[done.number] = done.image, done.change, done.confidence
        return io.NodeOutput(images, change, confidence)


def _edits(edited: Tensor, keyframes: str, mask: Tensor | None) -> list[Edit]:
    """Keyframes and masks, paired."""
    parts = [p for p in re.split(r"[,;\s]+", keyframes.strip()) if p]
    if not parts or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts):
        raise ValueError(f"keyframes is '{keyframes[:60]}'. Give frame numbers, counted from 0 and separated by commas: 0, 24.")
    if len(edited) != len(parts):
        raise ValueError(f"'edited' has {len(edited)} pictures, keyframes {len(parts)} numbers ({', '.join(parts[:8])}). Give one "
                         "number for each picture.")
    if mask is not None and len(mask) not in (1, len(parts)):
        raise ValueError(f"'mask' has {len(mask)} masks for {len(parts)} keyframes. Give one mask, or one for each.")
    masks = [None if mask is None else mask[i if len(mask) > 1 else 0] for i in range(len(parts))]
    return [Edit(int(p), picture.cpu(), m) for p, picture, m in zip(parts, edited, masks, strict=True)]


def _sized(mask: Tensor | None, height: int, width: int) -> Tensor | None:
    if mask is None or mask.shape == (height, width):
        return mask if mask is None else mask.cpu()
    return interpolate(mask[None, None].cpu().float(), size=(height, width), mode="bilinear")[0, 0]


NODES = [CarryEdit]
