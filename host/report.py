"""Progress and cancelling of work that is no sampling."""

from __future__ import annotations

import logging
import sys
from typing import Any

import comfy.model_management as mm
import comfy.utils


class Steps:
    """A node's progress bar; every step is also a place to stop at when the user cancels."""

    def __init__(self, total: int):
        self.bar = comfy.utils.ProgressBar(max(1, total))

    def step(self) -> None:
        mm.throw_exception_if_processing_interrupted()
        self.bar.update(1)


log = logging.getLogger(__name__)


def warn(text: str, node_id: str | None = None) -> None:
    """Log a warning, and show it on the node that raised it if the server can."""
    log.warning("FramePainter: %s", text)
    if node_id is None:
        return
    from server import PromptServer  # absent when nodes run outside a server, as in unit tests

    server = getattr(PromptServer, "instance", None)
    if server is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node_id)


def send(event: str, data: dict[str, Any]) -> None:
    """Tell the page that queued the run; nothing happens without one, as in runs through the API."""
    server = _server()
    if server is not None and page_waits():
        server.send_sync(event, data, server.client_id)


def page_waits() -> bool:
    """Whether a page gets the messages of this run."""
    return getattr(_server(), "client_id", None) is not None


def _server() -> Any:
    server = sys.modules.get("server")  # absent when nodes run outside a server, as in unit tests
    return getattr(getattr(server, "PromptServer", None), "instance", None)
