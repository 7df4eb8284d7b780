"""Building datasets as nodes show it: progress, cancel, a report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as mm

from ...core.callbacks import Callbacks
from ...core.data.shard_writer import ShardWriter, report
from ..report import Steps


def callbacks() -> Callbacks:
    """Progress bar and cancel button."""
    return Callbacks(mm.throw_exception_if_processing_interrupted, Steps(1).show)


def build(folder: Path, settings: dict[str, Any], run: Callable[[ShardWriter], None]) -> str:
    """Open a new or unfinished dataset, run what fills it, and report.

    Raises:
        DatasetError: the folder holds another set.
    """
    writer = ShardWriter(folder, settings)
    before = writer.samples
    try:
        run(writer)
    finally:
        writer.close()
    return report(folder, before)
