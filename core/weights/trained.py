"""How a weight file was trained, from the text fields of its header.

    framepainter.signal   sketch, coarse, drag; mixed for all three; none for a base without a signal
    framepainter.size     "width x height" of the training pictures in pixels, such as 96x96
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

SIGNAL, SIZE = "framepainter.signal", "framepainter.size"
PLURAL = {"sketch": "sketches", "coarse": "coarse edits", "drag": "drags"}
FAR = 4.0  # an edit of so many times more or fewer pixels than in training is worth a warning


class Trained(NamedTuple):
    """name: of the file, for messages.  signal: what it follows, None if unknown.  size: (height, width), None if unknown."""

    name: str
    signal: str | None = None
    size: tuple[int, int] | None = None

    def metadata(self) -> dict[str, str]:
        """The header's text fields for it."""
        size = None if self.size is None else f"{self.size[1]}x{self.size[0]}"
        return {field: value for field, value in ((SIGNAL, self.signal), (SIZE, size)) if value is not None}

    def mismatch(self, kind: str) -> str | None:
        """A sentence if a signal is not what it was trained on; None if it is, or if that is unknown."""
        if self.signal in (None, "mixed", kind):
            return None
        what = PLURAL.get(self.signal, "no signal at all")
        choose = f"Choose a model for {PLURAL[kind]} in Load FramePainter, such as framepainter_small_{kind}."
        if kind == "drag":
            return f"'{self.name}' was trained on {what}; drags then act only weakly, as without training. {choose}"
        return f"'{self.name}' was trained on {what}, so it will hardly follow {PLURAL[kind]}. {choose}"

    def far_from(self, height: int, width: int) -> str | None:
        """A sentence if an edit's size is far from that of training."""
        if self.size is None:
            return None
        times = height * width / (self.size[0] * self.size[1])
        if 1 / FAR < times < FAR:
            return None
        at = f"{self.size[1]} x {self.size[0]}"
        return (f"'{self.name}' was trained at {at} pixels, this edit has {width} x {height}; expect vague results. Set width and "
                f"height to {at}, or to 0 for the size of training.")


def trained_as(metadata: Mapping[str, str], name: str) -> Trained:
    """What a header says; fields that cannot be read count as unknown."""
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", metadata.get(SIZE, ""))
    signal = metadata.get(SIGNAL)
    known = signal if signal in (*PLURAL, "mixed", "none") else None
    return Trained(name, known, (int(size[2]), int(size[1])) if size and int(size[1]) and int(size[2]) else None)
