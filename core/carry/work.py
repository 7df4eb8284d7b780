"""What a run keeps on the disk: the flows to the keyframes, and, if it may be resumed, how far it came.

Bits do not depend on where a run was stopped: flows of a keyframe and direction are taken over once all are there, and the experts'
weights, which the next frame continues, are kept exactly.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..atomic import replacing
from .tracking import Track

MARK = "inputs.txt"  # holds the digest of the inputs


class Work:
    """A folder for one run.

    Args:
        folder: kept until `finish`, so that the same run may be resumed; a temporary one if None.
        inputs: digest of all that the result depends on. What another run left in the folder is removed.
    """

    def __init__(self, folder: Path | None = None, inputs: str = ""):
        self.kept = folder is not None
        self.folder = folder if folder is not None else Path(tempfile.mkdtemp(prefix="carry-"))
        mark = self.folder / MARK
        if self.kept and not (mark.is_file() and mark.read_text(encoding="ascii", errors="replace") == inputs):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            mark.write_text(inputs, encoding="ascii")

    def _flow(self, key: int, number: int) -> Path:
        return self.folder / f"{key}-{number}.npy"

    def keep(self, key: int, number: int, track: Track) -> None:
        """A frame's track to a keyframe, as half floats."""
        np.save(self._flow(key, number), torch.cat(list(track), 1)[0].half().cpu().numpy())

    def track(self, key: int, number: int) -> Track:
        stored = torch.from_numpy(np.load(self._flow(key, number))).float()[None]
        return Track(stored[:, :2], stored[:, 2:])

    def followed(self, key: int, direction: int, now: bool = False) -> bool:
        """Whether all frames of this direction have their track; `now`: from now on."""
        mark = self.folder / f"{key}{direction:+d}.done"
        if now:
            mark.touch()
        return mark.is_file()

    def reached(self) -> tuple[int, dict[int, Tensor]]:
        """The first frame that is not given out, and the weights of each keyframe's experts in the one before."""
        try:
            with np.load(self.folder / "weights.npz") as kept:
                return int(kept["next"]), {int(k): torch.from_numpy(kept[k]) for k in kept.files if k != "next"}
        except FileNotFoundError:
            return 0, {}

    def reach(self, number: int, weights: Mapping[int, Tensor]) -> None:
        """Frames up to `number` were given out, and are where they are to be."""
        if self.kept:
            with replacing(self.folder / "weights.npz") as partial, open(partial, "wb") as file:
                np.savez(file, next=number + 1, **{str(k): w.cpu().numpy() for k, w in weights.items()})
        for path in self.folder.glob(f"*-{number}.npy"):
            path.unlink()

    def finish(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
