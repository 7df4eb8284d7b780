"""FramePainter Dual Clock, Edit Mask, Keep Untouched, Keep Untouched in Latents."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn.functional import interpolate

from ..core.images import one_of
from ..core.keeping.distance import feathered, grown
from ..core.keeping.dual_clock import STRONG, WEAK
from ..core.keeping.paste import blend_weights, keep_untouched
from ..core.placement import off_canvas
from ..core.signals.area import difference_area, signal_area
from ..core.signals.edit_signal import EditSignal
from ..host.keeping import attach_dual_clock, dual_clock_start, keep_latent
from ..host.report import Steps
from .schema import EditSignalType, batch_size, check_choice, schema

# Pictures of one scene that other tools have scaled differ by so much; both show all of it.
ASPECT_TOLERANCE = 0.1
MISMATCHES = ["error", "stretch"]
SIDES = ["inside", "outside"]
MATCHES = ["off", "mean", "mean and deviation"]


class DualClock(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterDualClock",
            display_name="FramePainter Dual Clock",
            description="Starts an edit from a roughly edited picture. The moved part gets less noise than the rest, so that it "
                        "stays where it was put and its surroundings adapt (Time-to-Move). Needs no trained weights.",
            search_aliases=["time to move", "ttm", "cut and drag", "sdedit"],
            inputs=[
                io.Model.Input("model", tooltip="Any Stable Video Diffusion model, FramePainter or not."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Latent.Input("latent", tooltip="The empty latent of FramePainter Conditioning or of SVD_img2vid_Conditioning; "
                                                  "only its size and number of frames are used."),
                io.Image.Input("clip", tooltip="The rough edit, one picture for each frame, from Coarse Edit Signal. With a "
                                               "single picture, 'picture' is frame 0 and this one is used for all others."),
                io.Mask.Input("mask", tooltip="Where the rough edit is followed: what was moved, not what it uncovered. One mask "
                                              "for each frame, or one for all frames after the first."),
                io.Float.Input("weak", default=WEAK, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="Share of the steps to skip; the rest starts from the rough edit with noise. Lower: more "
                                       "changes outside the mask. The authors use 0.32 with this kind of model."),
                io.Float.Input("strong", default=STRONG, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="Share of the steps until which the rough edit is held inside the mask. Higher: it stays "
                                       "closer to the rough edit, flaws included. The authors use 0.42."),
                io.Image.Input("picture", optional=True, tooltip="The source picture, used as frame 0 if clip is a single "
                                                                 "picture."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A copy of the model that samples with two clocks."),
                io.Latent.Output(display_name="latent", tooltip="The latent to start from. Leave denoise at 1."),
            ],
        )

    @classmethod
    def execute(cls, model, vae, latent, clip: Tensor, mask: Tensor, weak: float, strong: float,
                picture: Tensor | None = None) -> io.NodeOutput:
        if weak > strong:
            raise ValueError(f"weak {weak:g} is above strong {strong:g}; the moved part would start with more noise than the "
                             "rest. Lower weak or raise strong.")
        count = len(latent["samples"])
        if count < 2:
            raise ValueError(f"'latent' has {count} frame. Connect the latent of FramePainter Conditioning, which has two.")
        if len(clip) == 1:
            if picture is None:
                raise ValueError("'clip' is a single picture, and no source is connected. Connect the source to "
                                 "'picture', or clip of Coarse Edit Signal to 'clip'.")
            first = picture[:1, ..., :3]
            if first.shape[1:3] != clip.shape[1:3]:
                first = interpolate(first.movedim(-1, 1), size=clip.shape[1:3], mode="bilinear",
                                    antialias=True).movedim(1, -1)
            clip = torch.cat([first, clip[..., :3].expand(count - 1, -1, -1, -1)])
        if len(clip) != count:
            raise ValueError(f"'clip' has {len(clip)} pictures, 'latent' {count} frames. Set frames of Coarse Edit Signal "
                             f"to {count}.")
        if len(mask) == 1:
            mask = torch.cat([torch.ones_like(mask), mask.expand(count - 1, -1, -1)])
        if len(mask) != count:
            raise ValueError(f"'mask' has {len(mask)} masks, 'latent' {count} frames. Connect clip_mask of Coarse Edit "
                             "Signal, or a single mask.")
        start, region = dual_clock_start(vae, latent, clip, mask)
        return io.NodeOutput(attach_dual_clock(model, region, weak, strong), start)


class EditMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterEditMask",
            display_name="Edit Mask",
            description="Where an edit is: from its signals, from the difference it made, from the correspondence, or from your "
                        "own mask. Everything that is connected is combined.",
            inputs=[
                io.Image.Input("picture", tooltip="The source picture; the mask has its size."),
                EditSignalType.Input("signal", optional=True,
                                     tooltip="Adds the area of a sketch, of drags or of a coarse edit. A sketch does not tell "
                                             "where things were before."),
                io.Image.Input("edited", optional=True,
                               tooltip="The edited picture, at the model's size. Where it differs from 'compare', or else from "
                                       "the picture, counts as edited."),
                io.Image.Input("compare", optional=True,
                               tooltip="reconstruction from Pick Edited Frame: the model's own copy of the source, so that the "
                                       "small errors of the model do not count as edits."),
                io.Mask.Input("mask", optional=True, tooltip="Another area to add, such as moved from Correspondence Map, or your "
                                                             "own."),
                io.Float.Input("threshold", default=0.12, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="Smallest difference of a colour channel, 0 to 1, that counts as edited. Lower: more area."),
                io.Float.Input("drag_radius", default=0.1, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="Half the width of the area around a drag, as a share of the picture's shorter side."),
                io.Int.Input("grow", default=8, min=-1024, max=1024,
                             tooltip="Pixels of the picture by which the area grows; negative numbers shrink it."),
                io.Int.Input("feather", default=0, min=0, max=1024,
                             tooltip="Pixels of the picture over which the mask fades outside its edge. Keep Untouched has a "
                                     "feather of its own."),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="1 where the edit is.")],
        )

    @classmethod
    def execute(cls, picture: Tensor, threshold: float, drag_radius: float, grow: int, feather: int,
                signal: EditSignal | None = None, edited: Tensor | None = None, compare: Tensor | None = None,
                mask: Tensor | None = None) -> io.NodeOutput:
        if signal is None and edited is None and mask is None:
            raise ValueError("nothing tells where the edit is. Connect 'signal', 'edited' or 'mask'.")
        height, width = picture.shape[1:3]
        count = batch_size(picture=picture, edited=edited, compare=compare, mask=mask)
        out, steps = [], Steps(count)
        for i in range(count):
            area = torch.zeros(1, height, width)
            if signal is not None:
                area = torch.maximum(area, signal_area(signal, height, width, drag_radius * min(height, width)))
            if edited is not None:
                before = one_of(picture if compare is None else compare, i)[..., :3]
                after = off_canvas(one_of(edited, i)[..., :3], height, width)
                if compare is not None:
                    before = off_canvas(before, height, width)
                if before.shape != after.shape:
                    before = interpolate(before.movedim(-1, 1).float(), size=after.shape[1:3], mode="bilinear",
                                         antialias=True).movedim(1, -1)
                area = torch.maximum(area, _to_size(difference_area(after, before, threshold), height, width))
            if mask is not None:
                own = one_of(mask, i).float()
                if edited is not None and mask.shape[1:3] == edited.shape[1:3]:
                    own = off_canvas(own, height, width)
                area = torch.maximum(area, _to_size(own, height, width))
            # A mask that nobody enlarges or feathers stays as soft as it is.
            out.append(area if not grow and not feather else
                       feathered(grown(area[0] > 0.5, grow), feather, outside=True)[None])
            steps.step()
        return io.NodeOutput(torch.cat(out))


def _to_size(mask: Tensor, height: int, width: int) -> Tensor:
    return interpolate(mask[:, None], size=(height, width), mode="bilinear")[:, 0]


class KeepUntouched(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterKeepUntouched",
            display_name="Keep Untouched",
            description="Puts the edit back into the original picture at the original's size. Pixels outside the mask stay the "
                        "same, bit for bit.",
            search_aliases=["composite", "paste back", "uncrop", "keep background", "inpaint"],
            inputs=[
                io.Image.Input("original", tooltip="The picture before the edit, at full size."),
                io.Image.Input("edited", tooltip="The edited picture at any size of the same aspect ratio, such as the model's."),
                io.Mask.Input("mask", tooltip="Where the edit is, at any size."),
                io.Int.Input("feather", default=16, min=0, max=1024,
                             tooltip="Width of the soft edge in pixels of the original. 0: the mask is used as it is."),
                io.Combo.Input("feather_side", options=SIDES, default=SIDES[1],
                               tooltip="outside: the whole mask shows the edit, which fades into the original beyond it. inside: "
                                       "nothing outside the mask changes; the edit fades before the mask's edge."),
                io.Combo.Input("colour_match", options=MATCHES, default=MATCHES[1],
                               tooltip="Correct the edit's colours by comparing what is untouched in both pictures: mean shifts "
                                       "them, mean and deviation also scales them. off: no correction."),
                io.Combo.Input("size_mismatch", options=MISMATCHES, default="error",
                               tooltip="If the aspect ratio of the edit or the mask is not the original's: stop with an error, or "
                                       "stretch it. Stretching is right if the whole picture was squeezed for the model."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The original with the edit in it, at the original's size."),
                io.Mask.Output(display_name="weight", tooltip="Weight of the edit at each pixel; where it is 0, the pixel is "
                                                              "exactly the original's."),
            ],
        )

    @classmethod
    def execute(cls, original: Tensor, edited: Tensor, mask: Tensor, feather: int, feather_side: str,
                colour_match: str, size_mismatch: str) -> io.NodeOutput:
        check_choice("size_mismatch", size_mismatch, MISMATCHES)
        check_choice("feather_side", feather_side, SIDES)
        check_choice("colour_match", colour_match, MATCHES)
        count = batch_size(original=original, edited=edited, mask=mask)
        height, width = original.shape[1:3]
        if mask.shape[1:3] == edited.shape[1:3]:
            mask = off_canvas(mask, height, width)
        edited = off_canvas(edited, height, width)
        for name, (h, w), counts in (("edited", edited.shape[1:3], True), ("mask", mask.shape[1:3], float(mask.max()) > 0)):
            if size_mismatch == "error" and counts and abs((w / h) / (width / height) - 1) > ASPECT_TOLERANCE:
                raise ValueError(f"'{name}' is {w} x {h}, 'original' is {width} x {height}; the aspect ratios differ. "
                                 "Connect pictures of the same edit. If the whole picture was squeezed for the model, set "
                                 "size_mismatch to 'stretch'.")
        # Into the results frame by frame: beside them and the inputs there is never more than one frame.
        images, weights = original.new_empty((count, *original.shape[1:])), torch.empty((count, height, width))
        steps = Steps(count * 3)
        for i in range(count):
            if i < len(mask):  # one mask for all frames is weighed once
                weight = blend_weights(mask[i], height, width, feather, feather_side == "outside")
            weights[i] = weight
            images[i] = keep_untouched(one_of(original, i)[0], one_of(edited, i)[0], weight, colour_match, steps.step)
        return io.NodeOutput(images, weights)


class KeepLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterKeepLatent",
            display_name="Keep Untouched in Latents",
            description="Keeps the source picture outside a mask while the edit is sampled, through the sampler's own noise mask.",
            inputs=[
                io.Latent.Input("latent", tooltip="The empty latent of FramePainter Conditioning."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("picture", tooltip="The source picture."),
                io.Mask.Input("mask", tooltip="Where the edit may change the picture. Every latent cell of 8 x 8 pixels that the "
                                              "mask touches may change."),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The source in both frames, with a noise mask. Put it "
                                                                     "before FramePainter Dual Clock if both are used.")],
        )

    @classmethod
    def execute(cls, latent, vae, picture: Tensor, mask: Tensor) -> io.NodeOutput:
        if float(mask.max()) == 0:
            raise ValueError("'mask' is empty, so nothing could be edited. If nothing is drawn yet, open the editor of the "
                             "signal's node, draw and run again. Else connect the mask of Edit Mask, or draw one.")
        return io.NodeOutput(keep_latent(vae, latent, picture, mask))


NODES = [DualClock, EditMask, KeepUntouched, KeepLatent]
