"""Progress and cancelling of work that is no sampling."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.utils


class Steps:
    """A node's progress bar; every step is also a place to stop at when the user cancels."""

    def __init__(self, total: int):
        self.bar = comfy.utils.ProgressBar(max(1, total))

    def step(self) -> None:
        mm.throw_exception_if_processing_interrupted()
        self.bar.update(1)
