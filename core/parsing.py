"""Reading JSON from any source: every fault in it raises a ValueError."""

from __future__ import annotations

import json
from typing import Any


def json_value(data: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON, or nested more deeply than Python can follow.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_object(data: str | bytes) -> dict[str, Any]:
    """The value of a JSON text that is an object.

    Raises:
        ValueError: no JSON, nested too deeply, or another value.
    """
    found = json_value(data)
    if not isinstance(found, dict):
        raise ValueError(f"it is a {type(found).__name__} where an object should be")
    return found
