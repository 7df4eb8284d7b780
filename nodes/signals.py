"""Sketch Signal, Coarse Edit Signal, Drag Signal, Apply Edit Signal."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor
from torch.nn.functional import interpolate

from ..core.signals.edit_signal import EditSignal
from ..core.signals.points import parse_drags
from ..core.signals.sketch import make_sketch
from ..host.patches import apply_control, apply_drag
from ..host.report import warn
from .schema import EditSignalType, FramePainterType, advanced, batch_size, check_choice, one_of, schema

ASPECT_TOLERANCE = 0.02
BACKGROUNDS = ["auto", "plain", "picture"]
MISMATCHES = ["error", "stretch"]
SEMANTICS = ["release", "paper"]


class SketchSignal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterSketchSignal",
            display_name="Sketch Signal",
            description="Turns a drawing into FramePainter's editing signal: strokes of any colour, on any ground, over "
                        "the picture, or as a mask.",
            search_aliases=["scribble", "draw", "sketch control"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("sketch", optional=True,
                               tooltip="A drawing: on a plain ground of any colour, over the picture itself, or with "
                                       "transparency."),
                io.Mask.Input("mask", optional=True,
                              tooltip="Strokes as a mask, for instance drawn in the mask editor. Added to the sketch if "
                                      "both are connected."),
                io.Image.Input("picture", optional=True,
                               tooltip="The source picture. The drawing is resized to it, and strokes drawn over it are "
                                       "found by the difference."),
                io.Combo.Input("background", options=BACKGROUNDS, default="auto",
                               tooltip="What counts as not drawn. plain: the most frequent colour. picture: whatever equals "
                                       "the picture. auto: decides from the drawing."),
                io.Combo.Input("size_mismatch", options=MISMATCHES, default="error",
                               tooltip="For a drawing whose aspect ratio is not its picture's: stop and say so, or stretch "
                                       "the drawing."),
            ],
            outputs=[
                EditSignalType.Output(display_name="signal", is_output_list=True,
                                      tooltip="One signal a picture, for Apply Edit Signal."),
                io.Image.Output(display_name="control", is_output_list=True,
                                tooltip="What the network is shown: white strokes on black."),
            ],
        )

    @classmethod
    def execute(cls, sketch: Tensor | None = None, mask: Tensor | None = None, picture: Tensor | None = None,
                background: str = "auto", size_mismatch: str = "error") -> io.NodeOutput:
        check_choice("Sketch Signal", "background", background, BACKGROUNDS)
        check_choice("Sketch Signal", "size_mismatch", size_mismatch, MISMATCHES)
        if sketch is None and mask is None:
            raise ValueError("Sketch Signal: nothing is drawn. Connect a drawing to 'sketch', or strokes to 'mask' (for "
                             "instance the MASK of Load Image after drawing in its mask editor).")
        if background == "picture" and picture is None:
            raise ValueError("Sketch Signal: background is 'picture', but no picture is connected. Connect the source "
                             "picture to 'picture', or choose 'auto'.")
        if mask is not None and mask.ndim == 2:
            mask = mask[None]
        count = batch_size("Sketch Signal", sketch=sketch, mask=mask, picture=picture)
        reference = picture if picture is not None else sketch if sketch is not None else mask
        height, width = reference.shape[1:3]
        if sketch is not None:
            sketch = _fit("Sketch Signal", "sketch", sketch.movedim(-1, 1), height, width, size_mismatch).movedim(1, -1)
        if mask is not None:
            # Load Image gives a small black mask for a picture without transparency: no drawing, so any size will do.
            mode = size_mismatch if float(mask.max()) > 0 else "stretch"
            mask = _fit("Sketch Signal", "mask", mask[:, None], height, width, mode)[:, 0]
        sketches = [make_sketch(*(None if part is None else one_of(part, i) for part in (sketch, mask, picture)),
                                background) for i in range(count)]
        empty = [i for i, s in enumerate(sketches) if s.empty[0]]
        if empty:
            which = "the drawing" if count == 1 else f"drawing {', '.join(map(str, empty))} of {count}"
            warn(f"Sketch Signal: {which} is empty, so the edit has nothing to follow. Draw strokes that stand out from "
                 "the ground, or set 'background'.", cls.hidden.unique_id)
        return io.NodeOutput([EditSignal("sketch", s.control) for s in sketches], [s.control for s in sketches])


def _fit(node: str, name: str, image: Tensor, height: int, width: int, mismatch: str) -> Tensor:
    """Resize (B, C, h, w) to the picture's size; refuse another aspect ratio unless told to stretch."""
    h, w = image.shape[-2:]
    if (h, w) == (height, width):
        return image
    if mismatch == "error" and abs((w / h) / (width / height) - 1) > ASPECT_TOLERANCE:
        raise ValueError(f"{node}: '{name}' is {w} x {h}, its picture is {width} x {height}; the aspect ratios differ, so "
                         "it would land elsewhere. Draw over the picture itself, or set size_mismatch to 'stretch'.")
    return interpolate(image.float(), size=(height, width), mode="bilinear", antialias=True).clamp(0, 1)


class CoarseEditSignal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterCoarseSignal",
            display_name="Coarse Edit Signal",
            description="Takes a roughly edited picture, parts moved, scaled or copied by any tool, as editing signal. For "
                        "models trained on coarse edits.",
            search_aliases=["collage", "cut and paste", "magic fixup"],
            inputs=[
                io.Image.Input("edited", tooltip="The roughly edited picture. What a moved part uncovered is left black."),
                io.Image.Input("picture", optional=True,
                               tooltip="The source picture; the edited one is resized to it."),
                io.Mask.Input("uncovered", optional=True,
                              tooltip="Area that moved parts have left; it is painted black, as in training."),
                io.Combo.Input("size_mismatch", options=MISMATCHES, default="error",
                               tooltip="For an edited picture whose aspect ratio is not the source's: stop and say so, or "
                                       "stretch it."),
            ],
            outputs=[
                EditSignalType.Output(display_name="signal", is_output_list=True,
                                      tooltip="One signal a picture, for Apply Edit Signal."),
                io.Image.Output(display_name="control", is_output_list=True, tooltip="What the network is shown."),
            ],
        )

    @classmethod
    def execute(cls, edited: Tensor, picture: Tensor | None = None, uncovered: Tensor | None = None,
                size_mismatch: str = "error") -> io.NodeOutput:
        node = "Coarse Edit Signal"
        check_choice(node, "size_mismatch", size_mismatch, MISMATCHES)
        if uncovered is not None and uncovered.ndim == 2:
            uncovered = uncovered[None]
        count = batch_size(node, edited=edited, picture=picture, uncovered=uncovered)
        height, width = (edited if picture is None else picture).shape[1:3]
        control = _fit(node, "edited", edited[..., :3].movedim(-1, 1), height, width, size_mismatch).movedim(1, -1)
        if uncovered is not None:
            mode = size_mismatch if float(uncovered.max()) > 0 else "stretch"
            control = control * (1 - _fit(node, "uncovered", uncovered[:, None], height, width, mode).movedim(1, -1))
        controls = [one_of(control, i) for i in range(count)]
        return io.NodeOutput([EditSignal("coarse", c) for c in controls], controls)


class DragSignal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterDragSignal",
            display_name="Drag Signal",
            description="Points of the picture and where they shall go, as editing signal.",
            search_aliases=["drag points", "dragdiffusion"],
            inputs=[
                io.Image.Input("picture", tooltip="The source picture; the points are pixels of it."),
                io.String.Input("points", default="[]", multiline=True,
                                tooltip="A list of drags, each [source x, source y, target x, target y] in pixels of the "
                                        "picture, such as [[40, 30, 80, 30]]."),
            ],
            outputs=[EditSignalType.Output(display_name="signal", is_output_list=True,
                                           tooltip="One signal a picture, the same drags for all, for Apply Edit Signal.")],
        )

    @classmethod
    def execute(cls, picture: Tensor, points: str) -> io.NodeOutput:
        height, width = picture.shape[1:3]
        return io.NodeOutput([EditSignal("drag", points=parse_drags(points, height, width))] * len(picture))


class ApplyEditSignal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterApplyEditSignal",
            display_name="Apply Edit Signal",
            description="Makes a model follow an editing signal. Several can be chained.",
            inputs=[
                io.Model.Input("model", tooltip="A FramePainter model, or another SVD model of the same width."),
                FramePainterType.Input("framepainter", tooltip="Holds the control encoder."),
                EditSignalType.Input("signal", tooltip="What to follow: a sketch, a coarse edit or drags."),
                io.Float.Input("strength", default=0.8, min=0.0, max=2.0, step=0.05, round=0.001,
                               tooltip="How strongly the edit follows the signal. The authors' demo uses 0.8, range 0 to 1; "
                                       "0 is off."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="Share of the noise range, as in ControlNet nodes, from which the signal acts; 0 is "
                                       "the noisy end."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="Share of the noise range up to which it acts; 1 is the clean end. At 0.5 most of the "
                                       "Karras steps are done."),
                advanced(io.Combo.Input("semantics", options=SEMANTICS, default="release", optional=True,
                                        tooltip="release: the source frame is controlled too, by a black frame, as the "
                                                "published weights were used. paper: the edited frame only.")),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="A copy that follows the signal.")],
        )

    @classmethod
    def execute(cls, model, framepainter, signal: EditSignal, strength: float, start_percent: float,
                end_percent: float, semantics: str = "release") -> io.NodeOutput:
        check_choice("Apply Edit Signal", "semantics", semantics, SEMANTICS)
        if signal.kind == "drag":
            return io.NodeOutput(apply_drag(model, signal.points, strength, start_percent, end_percent))
        return io.NodeOutput(apply_control(model, framepainter.encoder, signal.control, strength, start_percent,
                                           end_percent, semantics))


NODES = [SketchSignal, CoarseEditSignal, DragSignal, ApplyEditSignal]
