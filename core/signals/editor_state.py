"""What the editors write (docs/editor_state.md): reading the JSON text, checking it, fitting it to a picture."""

from __future__ import annotations

import json
import math
from typing import Any

VERSION = 1
ASPECT_TOLERANCE = 0.02
# A side of the largest picture that the host makes. Guards the server against a state that asks for a huge canvas.
MAX_SIDE = 16384
# Keeps sums and products of coordinates finite; no picture is a millionth as large.
MAX_COORDINATE = 1e9


def load_json(text: str | None, name: str, example: str) -> Any:
    """The JSON value in an editor's text; None for an empty one.

    Args:
        node, name: display name of the node and id of its input, for messages.  example: ends a message.

    Raises:
        ValueError: no JSON.
    """
    if text is None or (isinstance(text, str) and not text.strip()):
        return None
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error) or "it is nested too deeply"
        raise ValueError(f"{name} is {shown(text)}, which cannot be read as JSON ({reason}). {example}") from None


def check_state(value: Any, name: str, example: str) -> dict:
    """A state, or {} for None. Unknown keys are left alone.

    Raises:
        ValueError: no object, or written by a newer version.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {shown(value)}, not a JSON object. {example}")
    version = value.get("version", VERSION)
    if not _is_whole(version) or version < 1:
        raise ValueError(f"the version of {name} is {shown(version)}; it must be {VERSION}.")
    if version > VERSION:
        raise ValueError(f"{name} was written by a newer editor (version {version}; this one reads {VERSION}). "
                         "Update ComfyUI-FramePainter, or draw again.")
    return value


def drawn_size(state: dict, name: str) -> tuple[int, int] | None:
    """(height, width) of the picture that a state was drawn on, None if it does not say.

    Raises:
        ValueError: sizes that no picture has.
    """
    if "width" not in state and "height" not in state:
        return None
    for key in ("width", "height"):
        side = state.get(key)
        if not _is_whole(side) or not 1 <= side <= MAX_SIDE:
            raise ValueError(f"the {key} in {name} is {shown(side)}; it must be a whole number of pixels from 1 to {MAX_SIDE}, "
                             "the size of the picture drawn on.")
    return int(state["height"]), int(state["width"])


def size_ratios(state: dict, height: int, width: int, stretch: bool, name: str) -> tuple[float, float]:
    """Factors (x, y) from the picture drawn on to one of height x width.

    Raises:
        ValueError: the aspect ratios differ by more than 2 %, unless `stretch`.
    """
    size = drawn_size(state, name)
    if size is None:
        return 1.0, 1.0
    h, w = size
    if not stretch and abs((w / h) / (width / height) - 1) > ASPECT_TOLERANCE:
        raise ValueError(f"the drawing in {name} was drawn on a picture of {w} x {h}, the connected one is {width} x {height}; the "
                         "aspect ratios differ, so it would land elsewhere. Connect the picture that was drawn on, draw "
                         "again, or set size_mismatch to 'stretch'.")
    return width / w, height / h


def stretch_notes(state: dict, height: int, width: int, name: str) -> list[str]:
    """A note if a drawing that may be stretched to a picture of height x width is: it may be that of an example."""
    h, w = drawn_size(state, name) or (height, width)
    if abs((w / h) / (width / height) - 1) <= ASPECT_TOLERANCE:
        return []
    return [f"the drawing in {name} was drawn on a picture of {w} x {h} and is stretched to {width} x {height}. Open the node's "
            "editor and choose Start over to draw on this picture"]


def items(state: dict, key: str, limit: int, name: str) -> list:
    """The list under a key of a state; a missing one is empty.

    Raises:
        ValueError: no list, or one with more than `limit` entries.
    """
    found = state.get(key)
    if found is None:
        return []
    if not isinstance(found, list):
        raise ValueError(f"'{key}' in {name} is {shown(found)}; it must be a list.")
    if len(found) > limit:
        raise ValueError(f"{name} has {len(found)} {key}; at most {limit} are read. Delete some.")
    return found


def is_number(value: Any) -> bool:
    """A finite JSON number that coordinates can be; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_COORDINATE


def shown(value: Any, length: int = 60) -> str:
    """A value as a message shows it."""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    text = text if len(text) <= length else text[:length - 3] + "..."
    return f"'{text}'" if isinstance(value, str) else text


def _is_whole(value: Any) -> bool:
    return is_number(value) and math.floor(value) == value
