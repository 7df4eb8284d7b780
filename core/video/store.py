"""Results of a long job's stages on the disk, under the digest of their inputs.

A stage that is there is not computed again; a file that a killed process left half written does not count. A file has a digest of
its values, so that damage is noticed; values that are not finite count as damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import atomic
from ..digest import digest
from ..finite import check_finite, not_finite

VALUES = "values"  # metadata: digest of the tensors
LOOK_EVERY = 0.5   # seconds between two looks at a stage that another job holds
REMEDY = "Make room, or choose another output folder, and queue again: finished stages are kept."


class Store:
    """A folder of stage results.

    Args:
        folder: made when first written to.
        tell: told of files that cannot be used; they count as missing.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] | None = None):
        self.folder, self.tell = folder, tell

    def path(self, stage: str, key: str) -> Path:
        return self.folder / f"{stage}-{key}.safetensors"

    def written(self, stage: str, key: str) -> tuple[int, int] | None:
        """A value that changes when a stage's file is written; None if there is no file."""
        try:
            found = self.path(stage, key).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino

    def get(self, stage: str, key: str) -> dict[str, Tensor] | None:
        """A stage's tensors, or None."""
        return self._read(self.path(stage, key), checked=True)

    def _read(self, path: Path, checked: bool) -> dict[str, Tensor] | None:
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                stated = (file.metadata() or {}).get(VALUES)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors and the disk raise kinds of their own
            self._tell(f"'{path}' cannot be read ({error}); this stage is computed again.")
            return None
        if checked and stated != digest(tensors):
            self._tell(f"'{path}' is damaged: its values are not the ones that were written; this stage is computed again.")
            return None
        if wrong := not_finite(tensors):
            self._tell(f"'{path}' holds inf or NaN in '{wrong[0]}'; this stage is computed again.")
            return None
        return tensors

    def put(self, stage: str, key: str, tensors: Mapping[str, Tensor], info: Mapping[str, str] | None = None) -> Path:
        """Write a stage's tensors; the file appears only when it is complete.

        Raises:
            NotFinite: there is inf or NaN among them.
            WriteError: disk full, folder read-only and the like. Nothing half written stays.
        """
        check_finite(f"the result of the stage '{stage}'", tensors, "It is not kept.")
        path = self.path(stage, key)
        kept = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
        with atomic.replacing(path, remedy=REMEDY) as partial:
            save_file(kept, str(partial), metadata={**(info or {}), VALUES: digest(kept)})
        return path

    def adopt(self, stage: str, earlier: str, key: str) -> dict[str, Tensor] | None:
        """A stage that an earlier version kept under another key and without a digest: it is written again under this one."""
        path = self.path(stage, earlier)
        found = self._read(path, checked=False)
        if found is None:
            return None
        self.put(stage, key, found)
        atomic.remove(path)
        return found

    @contextmanager
    def claimed(self, stage: str, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Lock a stage while it is computed, so that two jobs on one folder do not compute it at the same time. The lock ends with
        its process.

        Args:
            waiting: called again and again while another job holds it; what it raises ends the wait.
        """
        lock = FileLock(self.folder / f".{stage}-{key}.lock")
        while not self._held(lock):
            waiting()
        try:
            yield
            atomic.remove(Path(lock.lock_file))  # while it is held: who opens it from now on finds the stage
        finally:
            lock.release()

    def _held(self, lock: FileLock) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=LOOK_EVERY)
        except Timeout:
            return False
        except (OSError, NotImplementedError):  # a disk without locks, or where nothing may be written
            pass
        return True

    def sweep(self) -> int:
        """Remove what killed processes left half written. Returns the number of files."""
        return atomic.sweep(self.folder)

    def _tell(self, line: str) -> None:
        if self.tell is not None:
            self.tell(line)

