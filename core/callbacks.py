"""Callbacks of long-running work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Callbacks:
    """Callbacks of long-running work.

    check_stop: called often; an exception that it raises ends the work, and what was finished before is kept.
    progress: (done, all) pieces of work.
    """

    check_stop: Callable[[], None] = lambda: None
    progress: Callable[[int, int], None] = lambda done, count: None


SILENT = Callbacks()
