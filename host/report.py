"""What a node reports while it runs: warnings and errors under its name, progress with a place to cancel, events for its page."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import comfy.model_management as mm
import comfy.utils
from comfy_execution.utils import get_executing_context

from ..core.names import printable

log = logging.getLogger(__name__)

_name: ContextVar[str] = ContextVar("framepainter_node", default="")


# ---- names -----------------------------------------------------------------------------------------------------------


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put a node's display name in front of the errors and warnings of the work inside.

    What carries the name already stays as it is: a node's patch names its node, as it may run inside another one. Errors keep
    their type where it lets the text be changed; the others become a ValueError.
    """
    token = _name.set(name)
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        if type(error).__name__ == "OutOfMemoryError":  # the host says more about it
            raise
        text = with_name(printable(_sentence(error)))
        error.args = (text,)
        if str(error) != text:
            raise ValueError(text) from error
        raise
    finally:
        _name.reset(token)


def with_name(text: str) -> str:
    """A text with the name of the running node in front."""
    name = _name.get()
    return text if not name or text.startswith(f"{name}: ") else f"{name}: {text}"


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return f"'{error.filename}': {error.strerror}." if error.filename is not None else f"{error.strerror}."
    return str(error)


def node_id() -> str | None:
    """The id of the running node in its workflow; None outside a server."""
    context = get_executing_context()
    return None if context is None else context.node_id


def warn(text: str, node: str | None = None) -> None:
    """Log a warning, and show it on a node if the server can.

    Args:
        node: its id; None for the node at work.
    """
    text, node = with_name(printable(text)), node_id() if node is None else node
    log.warning("FramePainter: %s", text)
    host = server()
    if node is not None and hasattr(host, "send_progress_text"):
        host.send_progress_text(text, node)


# ---- progress --------------------------------------------------------------------------------------------------------


class Steps:
    """A node's progress bar; every step is also a place to stop at when the user cancels."""

    def __init__(self, total: int):
        self.bar = comfy.utils.ProgressBar(max(1, total))

    def step(self) -> None:
        mm.throw_exception_if_processing_interrupted()
        self.bar.update(1)

    def reach(self, done: int, total: int | None = None) -> None:
        """Show the number of finished steps.

        Args:
            total: of all steps, if it is another one than was said.
        """
        mm.throw_exception_if_processing_interrupted()
        self.show(done, total)

    def show(self, done: int, total: int | None = None, picture: tuple | None = None) -> None:
        """`reach` without a check for cancelling, for work that checks for itself.

        Args:
            picture: a preview as the host's progress bar takes it: format, PIL image, size.
        """
        self.bar.update_absolute(done, None if total is None else max(1, total), picture)


# ---- the page --------------------------------------------------------------------------------------------------------


def send(event: str, data: dict[str, Any]) -> None:
    """Tell the page that queued the run; nothing happens without one, as in runs through the API."""
    host = server()
    if host is not None and page_waits():
        host.send_sync(event, data, host.client_id)


def page_waits() -> bool:
    """Whether a page gets the messages of this run."""
    return getattr(server(), "client_id", None) is not None


def server() -> Any:
    """The host's server; None outside one, as in unit tests."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
