"""Which decoded frames are whole.

A decoder marks a frame as broken, or raises an error, if something is missing. The frames after it depend on what is missing and
are not always marked: if a film whose parameter sets change on the way is decoded from its second keyframe on, every frame is wrong
and a tenth is unmarked. So after a mark no frame counts as whole up to the next keyframe; after a jump, that keyframe counts only
if the frames after it stay unmarked.
"""

from __future__ import annotations

from typing import Any

LOOKAHEAD = 4  # frames after a keyframe that stay unmarked before it counts as whole
REORDERED = 16  # B frames in a row that are held back at most
I_TYPES, B_TYPES = (0, 1, 5), (3, 7)  # FFmpeg's numbers: none, I, SI; B, BI

WAITING, TRIAL, WHOLE = range(3)


class Gate:
    """Holds frames back until it is known whether they are whole.

    Args:
        intra: every frame stands for itself.
        jumped: decoding begins after a jump, so that a keyframe has to prove itself.

    `damage`: marks between which frames are missing, (last whole one before, first whole one after), None where there is none.
    """

    def __init__(self, intra: bool, jumped: bool = False):
        self.intra, self.state, self.lookahead = intra, WAITING, LOOKAHEAD if jumped else 0
        self.damage: list[tuple[int | None, int | None]] = []
        self._held: list[tuple[int, Any]] = []
        self._refreshes = 0  # recovery points since the wait began
        self._last: int | None = None
        self._hurt = False  # whether something broken came since the last whole frame

    def frame(self, mark: int, frame: Any, key: bool, broken: bool) -> list[tuple[int, Any]]:
        """Take the next frame as it is shown; gives those that are known to be whole now."""
        if broken:
            self.error()
            return []
        kind = int(frame.pict_type)
        if self.intra:
            return self._release([(mark, frame)])
        if self.state == WAITING:
            if not key:
                return []
            # A recovery point that is no I frame begins to refresh the picture; at the next one all of it has been.
            self._refreshes += 1
            if kind not in I_TYPES and self._refreshes < 2:
                return []
            self.state, self._held = TRIAL, []
        self._held.append((mark, frame))
        if self.state == TRIAL:
            if len(self._held) <= self.lookahead:
                return []
            self.state = WHOLE
        # A B frame builds on one that is shown after it.
        keep = 0
        if kind in B_TYPES:
            while keep < len(self._held) and int(self._held[-1 - keep][1].pict_type) in B_TYPES:
                keep += 1
            keep = min(keep, REORDERED)
        out, self._held = self._held[:len(self._held) - keep], self._held[len(self._held) - keep:]
        return self._release(out)

    def hidden_keyframe(self) -> None:
        """A keyframe was decoded that the file does not show; what comes next builds on it."""
        if self.state == WAITING:
            self.state, self._held = TRIAL, []

    def error(self) -> None:
        """Note that something is missing here."""
        self.state, self._held, self._refreshes, self._hurt = WAITING, [], 0, True

    def end(self) -> list[tuple[int, Any]]:
        """No more frames come; returns what is left."""
        out = self._release(self._held)
        self._held = []
        if self._hurt:
            self.damage.append((self._last, None))
        return out

    def _release(self, out: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        if out:
            if self._hurt:
                self.damage.append((self._last, out[0][0]))
                self._hurt = False
            self._last = out[-1][0]
        return out
