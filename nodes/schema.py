"""What the nodes' schemas share."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from ..host import report

CATEGORY = "FramePainter"
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
    return io.Schema(category=CATEGORY, **{k: v for k, v in settings.items() if k in _KNOWN})


def named(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """A node whose errors and warnings begin with its display name, wherever below it they arise."""
    execute = node.execute.__func__
    name = functools.cache(lambda: node.define_schema().display_name)  # not before it is needed: a schema lists folders

    @functools.wraps(execute)
    def under_its_name(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
        with report.named(name()):
            return execute(cls, *args, **kwargs)

    node.execute = classmethod(under_its_name)
    return node


def advanced(widget: Any) -> Any:
    """Fold an input away where the frontend can; older hosts take this only after construction."""
    widget.extra_dict = {**(getattr(widget, "extra_dict", None) or {}), "advanced": True}
    return widget


def drawn_by(widget: Any, name: str) -> Any:
    """Let an editor of js/ write a STRING input: widget type `name`, no socket."""
    widget.extra_dict = {**(getattr(widget, "extra_dict", None) or {}), "widgetType": name}
    return widget


def check_choice(name: str, value: Any, options: Iterable[str]) -> None:
    """Refuse a value that a list does not offer. The browser cannot send one, a prompt through the API can, and older
    hosts let it pass.

    Raises:
        ValueError: naming the node, the input, the value and the choices.
    """
    if value not in options:
        raise ValueError(f"{name} is '{value}'; choose one of {', '.join(options)}.")


def one_of(images: Any, index: int) -> Any:
    """Item `index` of a batch as a batch of one; a batch of one serves every index."""
    return images[index:index + 1] if len(images) > 1 else images


def batch_size(**batches: Any) -> int:
    """Common length of the given batches, ones and Nones aside.

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
