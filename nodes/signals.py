"""Sketch Signal, Coarse Edit Signal, Drag Signal, Apply Edit Signal."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io, ui
from torch import Tensor
from torch.nn.functional import interpolate

from ..core.images import one_of
from ..core.signals import coarse
from ..core.signals.edit_signal import EditSignal
from ..core.signals.editor_state import stretch_notes
from ..core.signals.pieces import read_pieces
from ..core.signals.points import read_drags
from ..core.signals.sketch import make_sketch
from ..core.signals.strokes import draw_strokes, read_strokes
from ..host.models.network import trained
from ..host.report import Steps, node_id, page_waits, send, warn
from ..host.signals.control import apply_control, is_controlled
from ..host.signals.drag import apply_drag
from .schema import EditSignalType, FramePainterType, advanced, batch_size, check_choice, drawn_by, schema

ASPECT_TOLERANCE = 0.02
BACKGROUNDS = ["auto", "plain", "picture"]
MISMATCHES = ["error", "stretch"]
SEMANTICS = ["release", "paper"]
SHOWN_NOTES = 5


class SketchSignal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterSketchSignal",
            display_name="Sketch Signal",
            description="Turns a drawing into FramePainter's editing signal. The drawing has strokes of any colour, on a plain "
                        "ground, over the picture, or as a mask.",
            search_aliases=["scribble", "draw", "sketch control", "image edit"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("sketch", optional=True,
                               tooltip="A drawing: on a plain ground of any colour, over the picture itself, or with "
                                       "transparency."),
                io.Mask.Input("mask", optional=True,
                              tooltip="Strokes as a mask, for instance drawn in the mask editor. Added to the sketch if "
                                      "both are connected."),
                io.Image.Input("picture", optional=True,
                               tooltip="The source picture. The drawing is resized to it, and strokes drawn over it are found by "
                                       "their difference."),
                io.Combo.Input("background", options=BACKGROUNDS, default="auto",
                               tooltip="What counts as not drawn. plain: the most frequent colour. picture: whatever equals the "
                                       "picture. auto: decided from the drawing."),
                io.Combo.Input("size_mismatch", options=MISMATCHES, default="error",
                               tooltip="If the drawing's aspect ratio is not the picture's: stop with an error, or stretch the "
                                       "drawing."),
                drawn_by(io.String.Input("strokes", default="", optional=True, socketless=True,
                                         tooltip="What is drawn in the editor, as JSON. Added to the other drawings; the same "
                                                 "for all pictures of a batch."), "FRAMEPAINTER_SKETCH"),
            ],
            outputs=[
                EditSignalType.Output(display_name="signal", is_output_list=True,
                                      tooltip="One signal for each picture, for Apply Edit Signal."),
                io.Image.Output(display_name="control", is_output_list=True,
                                tooltip="What the network sees: white strokes on black."),
            ],
        )

    @classmethod
    def execute(cls, sketch: Tensor | None = None, mask: Tensor | None = None, picture: Tensor | None = None,
                background: str = "auto", size_mismatch: str = "error", strokes: str = "") -> io.NodeOutput:
        seen = _show(picture)
        check_choice("background", background, BACKGROUNDS)
        check_choice("size_mismatch", size_mismatch, MISMATCHES)
        drawn = read_strokes(strokes)
        if sketch is None and mask is None and not drawn.strokes:
            raise ValueError("nothing is drawn. Draw in the node's editor (press Draw). Or: Connect a drawing to 'sketch', "
                             "or strokes to 'mask' (for instance the MASK of Load Image after drawing in its mask editor).")
        if background == "picture" and picture is None:
            raise ValueError("background is 'picture', but no picture is connected. Connect the source "
                             "picture to 'picture', or choose 'auto'.")
        if mask is not None:
            # Load Image gives a small black mask for a picture without transparency: no drawing, so any size will do.
            if float(mask.max()) == 0 and (sketch is not None or picture is not None or drawn.strokes):
                mask = None
        count = batch_size(sketch=sketch, mask=mask, picture=picture) if any(
            part is not None for part in (sketch, mask, picture)) else 1
        height, width = _sketch_size(picture, sketch, mask, drawn.size)
        if sketch is not None:
            sketch = _fit("sketch", sketch.movedim(-1, 1), height, width, size_mismatch).movedim(1, -1)
        if mask is not None:
            mask = _fit("mask", mask[:, None], height, width, size_mismatch)[:, 0]
        coverage = draw_strokes(drawn, height, width, size_mismatch == "stretch")[None]
        sketches = [make_sketch(*(None if part is None else one_of(part, i) for part in (sketch, mask, picture)),
                                background, coverage) for i in range(count)]
        empty = [i for i, s in enumerate(sketches) if s.empty[0]]
        notes = [*drawn.notes, *stretch_notes(drawn.state, height, width, "strokes")]
        if empty:
            which = "the drawing" if count == 1 else f"drawing {', '.join(map(str, empty))} of {count}"
            notes.append(f"{which} is empty, so the edit has nothing to follow. Draw strokes that stand out from the ground, "
                         "or set 'background'")
        _warn(notes)
        return io.NodeOutput([EditSignal("sketch", s.control) for s in sketches], [s.control for s in sketches],
                             ui=seen)


def _sketch_size(picture: Tensor | None, sketch: Tensor | None, mask: Tensor | None,
                 drawn: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of the control picture: of whatever comes first."""
    for images in (picture, sketch, mask):
        if images is not None:
            return images.shape[1:3]
    if drawn is None:
        raise ValueError("strokes does not say the width and height of the picture that it was drawn on, and no picture is "
                         "connected. Connect the source picture to 'picture', or add both to strokes.")
    return drawn


def _show(picture: Tensor | None) -> dict | None:
    """Let the node's editor open over a picture that other nodes have made.

    Sent before anything can fail: the first run often stops because nothing is drawn yet. What is returned reaches the page
    again when the result comes from the cache.
    """
    node = node_id()
    if picture is None or node is None or not page_waits():
        return None
    shown = {"framepainter_picture": ui.PreviewImage(picture[:1, ..., :3]).as_dict()["images"]}
    send("framepainter.picture", {"node": node, **shown})
    return shown


def _warn(notes: Sequence[str]) -> None:
    """One warning on the node for all notes."""
    if notes:
        shown = notes[:SHOWN_NOTES]
        more = len(notes) - len(shown)
        text = "; ".join(shown) + (f"; and {more} more" if more else "")
        warn(f"{text}.")


def _fit(name: str, image: Tensor, height: int, width: int, mismatch: str) -> Tensor:
    """Resize (B, C, h, w) to the picture's size; refuse another aspect ratio unless told to stretch."""
    h, w = image.shape[-2:]
    if (h, w) == (height, width):
        return image
    if mismatch == "error" and abs((w / h) / (width / height) - 1) > ASPECT_TOLERANCE:
        raise ValueError(f"'{name}' is {w} x {h}, its picture is {width} x {height}; the aspect ratios differ, so "
                         "it would land elsewhere. Draw over the picture itself, or set size_mismatch to 'stretch'.")
    return interpolate(image.float(), size=(height, width), mode="bilinear", antialias=True).clamp(0, 1)


class CoarseEditSignal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterCoarseSignal",
            display_name="Coarse Edit Signal",
            description="Takes a roughly edited picture as the editing signal: parts are moved, scaled, turned, copied or "
                        "removed, here or with another tool. For models trained on coarse edits.",
            search_aliases=["collage", "cut and paste", "cut and drag", "magic fixup", "erase", "remove object",
                            "move object", "lasso"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("edited", optional=True,
                               tooltip="A picture edited roughly with another tool. What a moved part uncovered is left black. "
                                       "Cannot be combined with pieces of the editor."),
                io.Image.Input("picture", optional=True,
                               tooltip="The source picture. The editor's pieces are taken from it, and an edited picture is "
                                       "resized to it."),
                io.Mask.Input("uncovered", optional=True,
                              tooltip="Area that moved parts have left; it is painted black, as in training."),
                io.Combo.Input("size_mismatch", options=MISMATCHES, default="error",
                               tooltip="If the edited picture's aspect ratio is not the source's: stop with an error, or stretch "
                                       "it."),
                advanced(io.Int.Input("frames", default=2, min=2, max=64, optional=True,
                                      tooltip="Number of pictures in clip. 2 for FramePainter; for Stable Video Diffusion itself "
                                              "as many as the video has.")),
                drawn_by(io.String.Input("pieces", default="", optional=True, socketless=True,
                                         tooltip="What is moved in the editor, as JSON; the same for all pictures of a "
                                                 "batch."), "FRAMEPAINTER_COARSE"),
            ],
            outputs=[
                EditSignalType.Output(display_name="signal", is_output_list=True,
                                      tooltip="One signal for each picture, for Apply Edit Signal."),
                io.Image.Output(display_name="control", is_output_list=True, tooltip="What the network sees."),
                io.Mask.Output(display_name="uncovered", is_output_list=True,
                               tooltip="What the moved parts uncovered and no other part covers."),
                io.Mask.Output(display_name="changed", is_output_list=True,
                               tooltip="Everything that the edit touched: what was left, removed or covered."),
                io.Image.Output(display_name="clip", is_output_list=True,
                                tooltip="The edit as a movement, for FramePainter Dual Clock: the source picture first, the edit "
                                        "last."),
                io.Mask.Output(display_name="clip_mask", is_output_list=True,
                               tooltip="Where each picture of clip should be followed: all of the first, and in the others what "
                                       "was moved."),
            ],
        )

    @classmethod
    def execute(cls, edited: Tensor | None = None, picture: Tensor | None = None, uncovered: Tensor | None = None,
                size_mismatch: str = "error", frames: int = 2, pieces: str = "") -> io.NodeOutput:
        seen = _show(picture)
        check_choice("size_mismatch", size_mismatch, MISMATCHES)
        moved = read_pieces(pieces)
        if edited is not None and moved.pieces:
            raise ValueError(f"both 'edited' and {len(moved.pieces)} pieces of the editor are given, and each is a "
                             "whole edit. Disconnect 'edited', or clear the editor.")
        if edited is None and picture is None:
            raise ValueError("no picture is connected. Connect the source picture to 'picture' and move parts of it "
                             "in the editor, or connect a roughly edited picture to 'edited'.")
        count = batch_size(edited=edited, picture=picture, uncovered=uncovered)
        height, width = (edited if picture is None else picture).shape[1:3]
        picture = None if picture is None else picture[..., :3]
        notes, stretch = list(moved.notes), size_mismatch == "stretch"
        steps = Steps(len(moved.pieces) * (1 + count * (frames - 1)))
        if edited is None:
            notes += stretch_notes(moved.state, height, width, "pieces") if moved.pieces else []
            edit = coarse.of_pieces(moved, picture, stretch, steps.step)
            if not moved.pieces and (uncovered is None or float(uncovered.max()) == 0):
                notes.append("nothing is moved, so the edit is the picture itself. Open the editor (press Move parts), or connect "
                             "'edited'")
        else:
            edit = coarse.of_edited(
                _fit("edited", edited[..., :3].movedim(-1, 1), height, width, size_mismatch).movedim(1, -1), picture)
        if uncovered is not None:
            mode = size_mismatch if float(uncovered.max()) > 0 else "stretch"
            edit = coarse.with_uncovered(edit, _fit("uncovered", uncovered[:, None], height, width, mode)[:, 0])
        _warn(notes)
        controls, holes, areas = ([one_of(part, i) for i in range(count)] for part in edit[:3])
        clips = [coarse.clip_of(edit, moved if edited is None else None, picture, i, frames, stretch,
                                steps.step) for i in range(count)]
        return io.NodeOutput([edit.signal(i) for i in range(count)], controls, holes, areas, [c[0] for c in clips],
                             [c[1] for c in clips], ui=seen)


class DragSignal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterDragSignal",
            display_name="Drag Signal",
            description="Points of the picture and the places they move to, as an editing signal.",
            search_aliases=["drag points", "dragdiffusion", "move object", "drag edit"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("picture", tooltip="The source picture; the points are given in its pixels."),
                drawn_by(io.String.Input("points", default="[]", multiline=True, socketless=True,
                                         tooltip="The editor's drags as JSON, or a list of drags, each [source x, source y, "
                                                 "target x, target y] in pixels of the picture, such as [[40, 30, 80, 30]]."),
                         "FRAMEPAINTER_DRAG"),
                io.Combo.Input("size_mismatch", options=MISMATCHES, default="error", optional=True,
                               tooltip="If the drags were drawn on a picture of another aspect ratio: stop with an error, or "
                                       "stretch them."),
            ],
            outputs=[EditSignalType.Output(display_name="signal", is_output_list=True,
                                           tooltip="One signal for each picture, with the same drags for all, for Apply Edit "
                                                   "Signal.")],
        )

    @classmethod
    def execute(cls, picture: Tensor, points: str, size_mismatch: str = "error") -> io.NodeOutput:
        seen = _show(picture)
        check_choice("size_mismatch", size_mismatch, MISMATCHES)
        drags = read_drags(points, *picture.shape[1:3], size_mismatch == "stretch")
        _warn(drags.notes)
        return io.NodeOutput([EditSignal("drag", points=drags.points, size=tuple(picture.shape[1:3]))] * len(picture), ui=seen)


class ApplyEditSignal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterApplyEditSignal",
            display_name="Apply Edit Signal",
            description="Makes a model follow an editing signal. Several of these nodes can be chained.",
            inputs=[
                io.Model.Input("model", tooltip="A FramePainter model, or another SVD model with the same channels."),
                FramePainterType.Input("framepainter", optional=True,
                                       tooltip="Holds the control encoder. Drags do not need it."),
                EditSignalType.Input("signal", tooltip="What to follow: a sketch, a coarse edit or drags."),
                io.Float.Input("strength", default=0.8, min=0.0, max=2.0, step=0.05, round=0.001,
                               tooltip="How strongly the edit follows the signal. The authors' demo uses 0.8, in a range from 0 "
                                       "to 1; 0 is off."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="Where in the noise schedule the signal starts, as in ControlNet nodes; 0 is the noisy "
                                       "end."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="Where in the noise schedule the signal ends; 1 is the clean end. At 0.5 most of the "
                                       "Karras steps are done."),
                advanced(io.Combo.Input("semantics", options=SEMANTICS, default="release", optional=True,
                                        tooltip="release: the source frame is controlled too, by a black frame, as in the "
                                                "released code. paper: the edited frame only.")),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="A copy of the model that follows the signal.")],
        )

    @classmethod
    def execute(cls, model, signal: EditSignal, strength: float, start_percent: float, end_percent: float,
                semantics: str = "release", framepainter=None) -> io.NodeOutput:
        check_choice("semantics", semantics, SEMANTICS)
        known = trained(getattr(model, "model", None))
        mismatch = None if known is None else known.mismatch(signal.kind)
        if mismatch is not None and not (signal.kind == "drag" and is_controlled(model)):
            warn(mismatch)
        if signal.kind == "drag":
            return io.NodeOutput(apply_drag(model, signal.points, strength, start_percent, end_percent, signal.size))
        if framepainter is None:
            raise ValueError(f"'framepainter' is not connected, and a {signal.kind} signal needs its control "
                             "encoder. Connect FRAMEPAINTER from Load FramePainter. Without trained weights, drags work, and "
                             "FramePainter Dual Clock for coarse edits.")
        return io.NodeOutput(apply_control(model, framepainter.encoder, signal.control, strength, start_percent,
                                           end_percent, semantics))


NODES = [SketchSignal, CoarseEditSignal, DragSignal, ApplyEditSignal]
