"""Results of a long job's stages on the disk, under the digest of all that went into them.

A stage that is there is not computed again; what a killed process left half written is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import atomic


class Store:
    """A folder of stage results.

    Args:
        folder: made when first written to.
        warn: told of files that cannot be read; they count as missing.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] | None = None):
        self.folder, self.warn = folder, warn

    def path(self, stage: str, key: str) -> Path:
        return self.folder / f"{stage}-{key}.safetensors"

    def get(self, stage: str, key: str) -> dict[str, Tensor] | None:
        """A stage's tensors, or None."""
        path = self.path(stage, key)
        if not path.is_file():
            return None
        try:
            return load_file(str(path))
        except Exception as error:  # safetensors and the disk raise kinds of their own
            if self.warn is not None:
                self.warn(f"'{path}' cannot be read ({error}); this stage is computed again.")
            return None

    def put(self, stage: str, key: str, tensors: Mapping[str, Tensor], info: Mapping[str, str] | None = None) -> Path:
        """Write a stage's tensors; the file appears whole.

        Raises:
            WriteError: disk full, folder read-only and the like. Nothing half written stays.
        """
        path = self.path(stage, key)
        with atomic.replacing(path, remedy="Make room, or choose another output folder, and queue again: finished stages are kept."
                              ) as partial:
            save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, str(partial), metadata=dict(info or {}))
        return path

    def sweep(self) -> int:
        """Remove what killed processes left half written; how many files."""
        return atomic.sweep(self.folder)
