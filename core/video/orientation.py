"""How a frame is to be turned and mirrored: the display matrix of its file (ISO 14496-12, 8.3.2; H.264's SEI says the same)."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np


class Orientation(NamedTuple):
    """turns: by 90 degrees counter-clockwise, after mirroring left and right.  notes: what is not done."""

    turns: int
    mirrored: bool
    notes: list[str]

    @property
    def sideways(self) -> bool:
        return self.turns % 2 == 1

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """(h, w, 3) as stored -> as shown."""
        if self.mirrored:
            picture = picture[:, ::-1]
        return np.rot90(picture, self.turns) if self.turns else picture


def orientation_of(frame: Any) -> Orientation:
    """The nearest turn by 90 degrees, mirrored or not."""
    for data in frame.side_data:
        if getattr(data.type, "name", "") == "DISPLAYMATRIX" and len(bytes(data)) >= 36:
            return from_matrix(struct.unpack("=9i", bytes(data)[:36]))
    return Orientation(0, False, [])


def from_matrix(values: tuple[int, ...]) -> Orientation:
    """Of the nine numbers: a point stored at (x, y) is shown at (a x + c y, b x + d y), y downwards; a, b, c, d are 0, 1, 3, 4."""
    a, b, c, d = (values[i] / 65536 for i in (0, 1, 3, 4))
    if a * d - b * c == 0:  # no picture is shown like that
        return Orientation(0, False, [])
    mirrored = a * d - b * c < 0
    if mirrored:  # the same after the picture was mirrored: x is -x
        a, b = -a, -b
    angle = float(np.degrees(np.arctan2(-b, a)))  # counter-clockwise as seen, y is down
    turns = round(angle / 90) % 4
    off = abs(angle - 90 * round(angle / 90))
    notes = [f"the file asks for a rotation by {-angle:.0f} degrees; the nearest multiple of 90 degrees is used"] if off > 1 else []
    return Orientation(turns, mirrored, notes)
