"""Telling the user something without stopping the run."""

from __future__ import annotations

import logging

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
