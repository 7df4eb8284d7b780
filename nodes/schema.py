"""What the nodes' schemas share."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..core.images import as_masks, as_pictures
from ..core.randomness import unmoved
from ..host import report
from ..host.outputs import shown

CATEGORY = "FramePainter"
# Menus by job; what is not named here edits pictures. Ids without the pack's prefix.
JOBS = {
    "training": ("BuildDataset", "ProceduralDataset", "DatasetPreview", "Train", "TrainMotionLora"),
    "tools": ("Evaluate", "CorrespondenceMap", "Normality", "DifferenceMask", "WordMap", "SaveCheckpoint"),
    "video": ("Video", "ReadVideo", "PlanClips", "PropagateEdit", "SaveVideo", "CarryEdit"),
    "video/by first frame": ("SARP", "SourceConditioning", "InvertEDM", "SaveTrajectory", "LoadTrajectory", "EditedConditioning",
                             "MatchAttention", "RecordAttention", "LoadMotionLora", "SaveMotionLora"),
    "video/by words": ("LoadTextToImage", "VideoTextModel", "TuneOnVideo", "SaveTunedVideo", "LoadTunedVideo", "InvertDDIM",
                       "NullText", "PromptEdit", "PromptAttention"),
}
EditSignalType = io.Custom("EDIT_SIGNAL")
FramePainterType = io.Custom("FRAMEPAINTER")
TrajectoryType = io.Custom("TRAJECTORY")
AttentionRecordType = io.Custom("ATTENTION_RECORD")
EditPlanType = io.Custom("EDIT_PLAN")
NullTextType = io.Custom("NULL_TEXT")
TunedVideoType = io.Custom("TUNED_VIDEO")

_KNOWN = {f.name for f in fields(io.Schema)}


def schema(**settings: Any) -> io.Schema:
    """io.Schema without the fields that an older host does not have (search_aliases, for one)."""
    node = settings["node_id"].removeprefix(CATEGORY)
    job = next((job for job, ids in JOBS.items() if node in ids), "edit")
    return io.Schema(category=f"{CATEGORY}/{job}", **{k: v for k, v in settings.items() if k in _KNOWN})


# Inputs that make use of a fourth channel.
ALPHA_COUNTS = {("FramePainterSketchSignal", "sketch"), ("FramePainterKeepUntouched", "original")}
JUDGES = {"FramePainterEvaluate"}  # nodes that say themselves which pictures are empty or not finite


def guarded(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Wrap a node's execute with the checks that all nodes share.

    Errors and warnings begin with the node's display name. Pictures and masks are converted to the form that the pack computes
    with, whatever shape and type other nodes give them. Numbers must be within their bounds. torch's global generator is restored
    afterwards."""
    execute = node.execute.__func__
    given = inspect.signature(execute)

    @functools.cache
    def described() -> io.Schema:  # not before it is needed: a schema lists folders
        return node.define_schema()

    @functools.wraps(execute)
    def under_its_name(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
        with report.named(described().display_name), unmoved():
            bound = given.bind(cls, *args, **kwargs)
            for socket in described().inputs:
                if socket.id not in bound.arguments:
                    continue
                if isinstance(socket, (io.Image.Input, io.Mask.Input)):
                    bound.arguments[socket.id] = _in_form(described().node_id, socket, bound.arguments[socket.id])
                elif isinstance(socket, (io.Int.Input, io.Float.Input)):
                    _check_number(socket, bound.arguments[socket.id])
            return execute(*bound.args, **bound.kwargs)

    node.execute = classmethod(under_its_name)
    return node


def _check_number(socket: Any, value: Any) -> None:
    """Refuse a number, or one of a list, outside its bounds. The host checks widgets only: NaN passes its comparison, and values
    from other nodes are not checked.

    Raises:
        ValueError: naming the input, the value and the bounds.
    """
    if isinstance(value, list):
        for item in value:
            _check_number(socket, item)
    elif isinstance(value, (int, float)) and not (math.isfinite(value) and socket.min <= value <= socket.max):
        raise ValueError(f"{socket.id} is {value}; give a number from {socket.min} to {socket.max}.")


def _in_form(node_id: str, socket: Any, value: Any) -> Any:
    """A picture, a mask, or a list of them, in the pack's form. None, and anything that is not a tensor, is returned unchanged."""
    if isinstance(value, list):
        return [_in_form(node_id, socket, v) for v in value]
    if not isinstance(value, Tensor):
        return value
    mend = node_id not in JUDGES
    if isinstance(socket, io.Mask.Input):
        return warned(socket.id, *as_masks(value, socket.id, mend))
    return warned(socket.id, *as_pictures(value, socket.id, (node_id, socket.id) in ALPHA_COUNTS, mend))


def warned(name: str, value: Tensor, lost: int) -> Tensor:
    """Pictures or masks in form; says how many of their values were lost."""
    if lost:
        report.warn(f"'{name}' has {lost} values that are not finite (NaN or infinite); they count as 0. The node that made it "
                    "has failed: look at its result with Preview Image.")
    return value


def advanced(widget: Any) -> Any:
    """Fold an input away where the frontend can; older hosts take this only after construction."""
    widget.extra_dict = {**(getattr(widget, "extra_dict", None) or {}), "advanced": True}
    return widget


def drawn_by(widget: Any, name: str) -> Any:
    """Let an editor of js/ write a STRING input, by its widget type."""
    widget.extra_dict = {**(getattr(widget, "extra_dict", None) or {}), "widgetType": name}
    return widget


def written(*paths: Path, note: str = "") -> io.NodeOutput:
    """What a node that saves shows: the files and their sizes.

    Args:
        note: what else is to be said of the last one.
    """
    text = "\n".join(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in paths)
    return io.NodeOutput(ui=ui.PreviewText(text.removesuffix(")") + f"{note})"))


def check_choice(name: str, value: Any, options: Iterable[str]) -> None:
    """Refuse a value that a list does not offer. The browser cannot send one, a prompt through the API can, and older
    hosts let it pass.

    Raises:
        ValueError: naming the node, the input, the value and the choices.
    """
    if value not in options:
        raise ValueError(f"{name} is {shown(str(value))}; choose one of {', '.join(options)}.")


def batch_size(**batches: Any) -> int:
    """Common length of the given batches; batches of one and None are ignored.

    Raises:
        ValueError: two batches of different length; the text names them.
    """
    lengths = {name: len(b) for name, b in batches.items() if b is not None}
    size = max(lengths.values())
    if any(n not in (1, size) for n in lengths.values()):
        listed = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise ValueError(f"the batches do not fit together ({listed}). Give one picture for all, or as many as "
                         "there are.")
    return size
