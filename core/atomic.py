"""Files and folders that appear only when they are complete.

A file or folder that is being written has the name `.<name>.<machine>-<process>-<number>.partial`, beside its target, and replaces
the target when it is complete. The process number in the name distinguishes a file that a killed process left behind from one that
another process is still writing.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .names import printable

PARTIAL = ".partial"
ROOM = "Make room, or choose a folder that may be written to."
UNKNOWN_FOR = 86400.0  # seconds without a change after which another machine's partial file counts as left behind
NAMED = 40             # characters of the target's name in the partial one, so that a long name does not become too long

_MACHINE = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_NAME = re.compile(r"\.(?:([0-9a-f]{8})-(\d+)-\d+|(\d+))\.partial$")  # the second form: of earlier versions
_numbers = itertools.count()
_writing: set[str] = set()  # names, of this process: a process number is used again, in a container after every start


class WriteError(OSError, ValueError):
    """A file or folder could not be written. The text names it, the reason and the remedy."""


@contextmanager
def write_errors(path: Path, remedy: str = ROOM) -> Iterator[None]:
    """Turn a full disk, a missing permission and similar errors into a readable message.

    Args:
        path: named in the sentence.
        remedy: what to do about it; a sentence.

    Raises:
        WriteError: in place of an OSError, or of safetensors' own error for one.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        if isinstance(error, ValueError):
            remedy = "Choose a name of ordinary letters."
        elif getattr(error, "errno", None) == errno.ENAMETOOLONG:
            remedy = "Choose a shorter name."
        raise WriteError(f"'{printable(path)}' could not be written: {reason}. {remedy}") from error


def _reason(error: Exception) -> str | None:
    """The reason why writing failed, or None if the error is of another kind."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, UnicodeEncodeError):
        return "its name has letters that no file can have"
    if isinstance(error, ValueError) and str(error).startswith("embedded null"):  # how Python refuses a path
        return "its name has a NUL character in it"
    if type(error).__name__ == "SafetensorError":  # by name: the tools run where safetensors is not installed
        found = re.search(r'message: "([^"]*)"', str(error))
        return found[1] if found else str(error).rstrip(".")
    return None


@contextmanager
def scratch(path: Path, remedy: str = ROOM) -> Iterator[Path]:
    """A path beside a file for temporary data while the file is written; removed at the end of the block.

    Raises:
        WriteError: see `write_errors`.
    """
    partial = _beside(path)
    _writing.add(partial.name)
    try:
        with write_errors(path, remedy):
            yield partial
    finally:
        remove(partial)
        _writing.discard(partial.name)


@contextmanager
def replacing(path: Path, *, sync: bool = False, remedy: str = ROOM) -> Iterator[Path]:
    """Write a file, or a folder, under another name; it takes the target's place when the block ends without an error.

    The target's folder is made if needed. After an error nothing is left behind, and an existing target is unchanged.

    Args:
        sync: wait until the file's bytes are on the disk before it takes the target's place.
        remedy: see `write_errors`.

    Returns:
        The path to write to. Nothing is there yet.

    Raises:
        WriteError: see `write_errors`.
    """
    with scratch(path, remedy) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if sync:
            with partial.open("r+b") as file:
                os.fsync(file.fileno())
        _replace(partial, path)


def _replace(partial: Path, path: Path) -> None:
    if not (partial.is_dir() and path.is_dir()):
        os.replace(partial, path)
        return
    old = _beside(path)  # a folder cannot replace one with files in it
    os.replace(path, old)
    try:
        os.replace(partial, path)
    except OSError:
        os.replace(old, path)
        raise
    remove(old)


def write_bytes(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write a file.

    Raises:
        WriteError: see `write_errors`.
    """
    with replacing(path, sync=sync) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Write a text file, UTF-8 with line feeds.

    Raises:
        WriteError: see `write_errors`.
    """
    write_bytes(path, text.encode(), sync=sync)


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there and may be deleted."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except (OSError, ValueError):  # ValueError: a path that no file can have
        pass


def sweep(folder: Path) -> int:
    """Remove what killed processes left half written in a folder. Returns the number of removed files and folders.

    What this or another process is still writing stays. Processes on other machines cannot be checked, so their files stay until
    they have not changed for a day.
    """
    left = [p for p in folder.glob(f".*{PARTIAL}") if _left_behind(p)] if folder.is_dir() else []
    for path in left:
        remove(path)
    return len(left)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:NAMED]}.{_MACHINE}-{os.getpid()}-{next(_numbers)}{PARTIAL}")


def _left_behind(path: Path) -> bool:
    found = _NAME.search(path.name)
    if found is None or found[1] not in (None, _MACHINE):
        try:
            return time.time() - path.stat().st_mtime > UNKNOWN_FOR
        except OSError:
            return False
    process = int(found[2] or found[3])
    return path.name not in _writing if process == os.getpid() else not _alive(process)


def _alive(process: int) -> bool:
    import psutil  # the tools write files too, in a Python without it

    try:
        return psutil.pid_exists(process)
    except OverflowError:  # no system has such a number
        return False
