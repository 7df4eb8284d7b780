"""Results of a long job's stages on the disk, under the digest of all that went into them.

A stage that is there is not computed again; what a killed process left half written is not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor


class StoreError(RuntimeError):
    """A stage's result could not be written. The text names the file and the reason."""


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
            StoreError: disk full, folder read-only and the like. Nothing half written stays.
        """
        path = self.path(stage, key)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, str(partial), metadata=dict(info or {}))
            os.replace(partial, path)
        except Exception as error:
            partial.unlink(missing_ok=True)
            raise StoreError(f"'{path}' could not be written ({error}). Free some space or choose another folder, and queue "
                             "again: finished stages are kept.") from None
        return path

    def info(self, stage: str, key: str) -> dict[str, str]:
        """What was noted beside a stage's tensors; empty if it is not there."""
        try:
            with safe_open(str(self.path(stage, key)), "pt") as file:
                return file.metadata() or {}
        except Exception:
            return {}

    def sweep(self) -> int:
        """Remove what killed processes left half written; how many files."""
        left = list(self.folder.glob(".*.partial")) if self.folder.is_dir() else []
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)
