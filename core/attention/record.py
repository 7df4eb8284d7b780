"""A record of a source clip's attention, in memory or on disk, within a memory budget.

For every step it keeps queries and keys of the spatial and probabilities of the temporal self-attention layers, under the names
"q|<block>", "k|<block>" and "p|<block>". At 1024 x 576 and 14 frames a step is 3.2 GB in fp32, 1.6 GB in 16 bit.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, dtype

from .. import atomic

Features = Mapping[str, Tensor]


class RecordError(RuntimeError):
    """Recorded attention that cannot be written or read."""


class _OnDisk(Mapping):
    """One step's file, read a tensor at a time."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(str(path), framework="pt") as file:
                self.names = list(file.keys())
        except (OSError, SafetensorError) as error:
            raise RecordError(f"recorded attention cannot be read from '{path}': {error}. Record it again.") from error

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        try:
            with safe_open(str(self.path), framework="pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise RecordError(f"recorded attention cannot be read from '{self.path}': {error}. Record it again.") from error

    def __iter__(self):
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class AttentionRecord:
    """A store of steps.

    Args:
        folder: where to write one file a step; None keeps tensors in memory.
        kind: floating type to keep them in.
        budget: bytes; a step that does not fit is not kept, and the source runs again for it.
        source: identity of the trajectory that it belongs to.
    """

    def __init__(self, folder: Path | None, kind: dtype, budget: int, source: str):
        self.folder, self.kind, self.budget, self.source = folder, kind, budget, source
        self.bytes = 0
        self.steps: dict[int, Features] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=False)
            except OSError as error:
                raise RecordError(f"the folder '{folder}' for recorded attention cannot be made: {error}. Choose 'RAM', or "
                                  "replay without a record.") from error
            # The files live as long as the record does.
            weakref.finalize(self, shutil.rmtree, folder, True)

    def put(self, step: int, features: Features) -> bool:
        """Keep a step if the budget allows. Returns whether it was kept.

        Raises:
            RecordError: the disk is full or cannot be written to; everything written is deleted.
        """
        need = sum(t.numel() for t in features.values()) * self.kind.itemsize
        if self.bytes + need > self.budget:
            return False
        kept = {name: t.detach().to(device="cpu", dtype=self.kind).contiguous() for name, t in features.items()}
        if self.folder is None:
            self.steps[step] = {name: t.clone() for name, t in kept.items()}
        else:
            path = self.folder / f"step_{step:04}.safetensors"
            remedy = f"A step takes {need / 1e9:.2f} GB; make room, lower the budget, or replay without a record."
            try:
                with atomic.replacing(path, remedy=remedy) as partial:
                    save_file(kept, str(partial))
            except atomic.WriteError as error:
                self.close()
                raise RecordError(f"recorded attention cannot be kept. {error}") from error
            self.steps[step] = _OnDisk(path)
        self.bytes += need
        return True

    def get(self, step: int) -> Features | None:
        """A step's features, or None if they were not kept."""
        return self.steps.get(step)

    def close(self) -> None:
        """Discard all steps and delete the files."""
        self.steps.clear()
        self.bytes = 0
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
