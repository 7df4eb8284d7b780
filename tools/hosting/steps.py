"""Steps that may be interrupted: stamps, a lock between processes, and logged child processes.

A step is "done" only when its stamp says so, and the stamp is written after everything else. What an interrupted run left behind is
therefore either invisible (a temporary name) or removed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

# By its path: the folder above must not come on sys.path, where `nodes` and others would hide modules of the host.
_CORE = Path(__file__).resolve().parents[2] / "core"
_spec = importlib.util.spec_from_file_location("framepainter_core", _CORE / "__init__.py", submodule_search_locations=[str(_CORE)])
sys.modules["framepainter_core"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["framepainter_core"])
atomic = importlib.import_module("framepainter_core.atomic")

Say = Callable[[str], None]

# Windows locks a byte range and makes that range unreadable to others, so lock a byte beyond the text.
_WINDOWS_LOCK_OFFSET = 1 << 20


def digest(inputs: Mapping[str, str]) -> str:
    """A hash of what a step was made from."""
    return hashlib.sha256(json.dumps(dict(inputs), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Stamps:
    """One small file per finished step."""

    directory: Path

    def path(self, name: str) -> Path:
        """Where the stamp of the step `name` lies."""
        return self.directory / f"{name}.json"

    def fresh(self, name: str, inputs: Mapping[str, str]) -> bool:
        """True when the step finished with exactly these inputs."""
        stamp = self.read(name)
        return stamp is not None and stamp.get("digest") == digest(inputs)

    def read(self, name: str) -> dict[str, object] | None:
        """The content of a stamp, or None when it is missing or damaged."""
        try:
            content = json.loads(self.path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def write(self, name: str, inputs: Mapping[str, str], **facts: object) -> None:
        """Record that the step is finished; the file appears complete or not at all."""
        content = {"digest": digest(inputs), "inputs": dict(inputs), **facts}
        atomic.write_bytes(self.path(name), json.dumps(content, indent=2).encode())

    def clear(self, name: str) -> None:
        """Forget the step: called before its result is touched."""
        self.path(name).unlink(missing_ok=True)


def run_step(
    stamps: Stamps, name: str, inputs: Mapping[str, str], result: Path, work: Callable[[], None]
) -> bool:
    """Do `work` unless it already finished with these inputs and its result is there; say whether it ran."""
    if stamps.fresh(name, inputs) and result.exists():
        return False
    stamps.clear(name)
    work()
    stamps.write(name, inputs)
    return True


def remove_tree(path: Path) -> None:
    """Delete a folder tree if it is there, also the read-only files in it (Windows refuses those).

    A link is only unlinked: what it points to is not ours.
    """
    if path.is_symlink() or path.is_file():
        path.unlink()
        return

    def make_writable(function: Callable[[str], object], name: str, _: object) -> None:
        if not os.path.lexists(name):
            return
        os.chmod(name, stat.S_IWRITE | stat.S_IREAD | stat.S_IEXEC)
        function(name)

    if path.exists():
        shutil.rmtree(path, onerror=make_writable)


class Lock:
    """A lock between processes that cannot go stale: the operating system drops it when its holder dies."""

    def __init__(self, path: Path, *, say: Say = print, poll_s: float = 0.3) -> None:
        self.path = path
        self._say = say
        self._poll_s = poll_s
        self._file: IO[str] | None = None

    def __enter__(self) -> Lock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+", encoding="utf-8")
        told = False
        try:
            while not _try_lock(self._file):
                if not told:
                    self._say(f"Waiting: another set-up is running here ({self._holder()}).")
                    told = True
                time.sleep(self._poll_s)
        except BaseException:
            self._file.close()
            raise
        self._note_holder()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            _unlock(self._file)
            self._file.close()
            self._file = None

    def inheritable_fds(self) -> tuple[int, ...]:
        """The descriptors to hand to children, so that the lock outlives a killed parent (POSIX).

        Without it an orphaned pip could still be writing while the next run deletes under it.
        """
        if self._file is None or os.name == "nt":
            return ()
        return (self._file.fileno(),)

    def _holder(self) -> str:
        try:
            return f"process {int(self.path.read_text(encoding='utf-8'))}"
        except (OSError, ValueError):
            return "another process"

    def _note_holder(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()


if os.name == "nt":
    import msvcrt

    def _try_lock(file: IO[str]) -> bool:
        file.seek(_WINDOWS_LOCK_OFFSET)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: IO[str]) -> None:
        file.seek(_WINDOWS_LOCK_OFFSET)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(file: IO[str]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _unlock(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


class CommandFailed(Exception):
    """A child process ended with an error; carries the end of what it printed."""

    def __init__(self, argv: Sequence[str], code: int, tail: Sequence[str]) -> None:
        super().__init__(f"{Path(argv[0]).name} ended with exit code {code}")
        self.argv = list(argv)
        self.code = code
        self.tail = list(tail)


def run_logged(
    argv: Sequence[str],
    log: Path,
    *,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: tuple[int, ...] = (),
    line: Say | None = None,
) -> None:
    """Run a command; its output goes to `log`, its lines to `line`, its failure is CommandFailed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=15)
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n$ {' '.join(argv)}\n")
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=None if environ is None else dict(environ),
            cwd=cwd,
            pass_fds=pass_fds,
        )
        try:
            assert child.stdout is not None
            for text in child.stdout:
                file.write(text)
                tail.append(text.rstrip())
                if line is not None:
                    line(text.rstrip())
            code = child.wait()
        except BaseException:
            end_process(child)
            raise
    if code != 0:
        raise CommandFailed(argv, code, [text for text in tail if text])


def end_process(child: subprocess.Popen[str], grace_s: float = 5.0) -> None:
    """End a child: ask first, then insist."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
