"""Files appear whole or not at all, and nobody deletes what another process is still writing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import pytest


@pytest.fixture
def atomic(pack):
    return pack("core.atomic")


def names(folder) -> set[str]:
    return {p.name for p in folder.iterdir()}


def process(code: str = "") -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code or "pass"], stdin=subprocess.PIPE)


def partial_of(atomic, number: int, name: str = "x.safetensors") -> str:
    """What a process of that number writes under."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic.os, "getpid", lambda: number)
        return atomic._beside(__import__("pathlib").Path(name)).name


def test_a_file_appears_whole(atomic, tmp_path):
    target = tmp_path / "deep" / "er" / "file"
    with atomic.replacing(target, sync=True) as partial:
        partial.write_bytes(b"one")
        assert not target.exists() and partial.parent == target.parent
    assert target.read_bytes() == b"one" and names(target.parent) == {"file"}
    atomic.write_text(target, "two\nö")
    assert target.read_bytes() == "two\nö".encode() and names(target.parent) == {"file"}


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_error_leaves_the_old_file(atomic, tmp_path, error):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(BaseException) as raised, atomic.replacing(target) as partial:  # noqa: B017, PT012
        partial.write_bytes(b"half")
        raise error
    assert (raised.value is error) == (not isinstance(error, OSError))
    assert target.read_bytes() == b"old" and names(tmp_path) == {"file"}


def test_a_folder_appears_whole(atomic, tmp_path, monkeypatch):
    target = tmp_path / "state"
    for text in ("one", "two"):
        with atomic.replacing(target) as partial:
            partial.mkdir()
            (partial / text).write_text(text)
        assert names(target) == {text} and names(tmp_path) == {"state"}
    real = os.replace

    def fails(source, aim):
        if str(aim) == str(target) and (source / "three").exists():
            raise PermissionError(errno.EACCES, "Permission denied")
        real(source, aim)

    monkeypatch.setattr(atomic.os, "replace", fails)
    with pytest.raises(atomic.WriteError, match="Permission denied"), atomic.replacing(target) as partial:  # noqa: PT012
        partial.mkdir()
        (partial / "three").touch()
    assert names(target) == {"two"} and names(tmp_path) == {"state"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_a_sentence(atomic, tmp_path):
    """A disk that is really full: /dev/full takes no byte, and says so as a full disk does."""
    import torch
    from safetensors.torch import save_file

    target = tmp_path / "file.safetensors"
    for write in (lambda p: p.write_bytes(b"x"), lambda p: save_file({"a": torch.zeros(1 << 16)}, str(p))):
        with pytest.raises(atomic.WriteError) as raised, atomic.replacing(target, remedy="Do this.") as partial:  # noqa: PT012
            partial.symlink_to("/dev/full")
            write(partial)
        assert "No space left on device" in str(raised.value)
        assert str(raised.value).startswith(f"'{target}' could not be written: ") and str(raised.value).endswith("Do this.")
        assert not names(tmp_path)


def test_what_a_path_does_not_allow_is_a_sentence(atomic, tmp_path):
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path / "file" / "under", "(Not a directory|File exists|cannot find)"),
                         (tmp_path / ("x" * 300), "name.*Choose a shorter name"),
                         (tmp_path / "a\0b", "NUL"), (tmp_path / "a\ud800b", "letters|surrogate")):
        with pytest.raises(atomic.WriteError, match=reason) as raised:
            atomic.write_text(path, "x")
        str(raised.value).encode()  # it can be shown and logged
    assert names(tmp_path) == {"file"}


def test_a_long_name_that_the_disk_takes(atomic, tmp_path):
    """The partial name has its own additions, and may not be the one that is too long."""
    atomic.write_text(tmp_path / ("é" * 120 + ".safetensors"), "x")
    assert len(names(tmp_path)) == 1


def test_sweep_removes_what_dead_processes_left_and_nothing_else(atomic, tmp_path):
    ended = process()
    ended.wait()
    living = process("input()")
    try:
        stays = {partial_of(atomic, living.pid), f".x.safetensors.{living.pid}.partial", "mine.partial", "shard-000000.tar.partial",
                 ".hidden", "x.safetensors", ".new-of-another-machine.00000000-5-0.partial"}
        goes = {partial_of(atomic, ended.pid), f".x.safetensors.{ended.pid}.partial", partial_of(atomic, 10**12),
                ".old-of-another-machine.00000000-5-0.partial", ".state-000021.partial",
                partial_of(atomic, os.getpid(), "before")}  # a number that was another process's before
        for name in stays | goes:
            (tmp_path / name).write_bytes(b"x")
        (tmp_path / ".state-000021.partial").unlink()
        (tmp_path / ".state-000021.partial").mkdir()
        (tmp_path / ".state-000021.partial" / "half").touch()
        for name in (".old-of-another-machine.00000000-5-0.partial", ".state-000021.partial"):
            os.utime(tmp_path / name, (time.time() - 2 * atomic.UNKNOWN_FOR,) * 2)
        with atomic.replacing(tmp_path / "whole") as partial:
            partial.write_bytes(b"x")
            assert atomic.sweep(tmp_path) == len(goes)
        assert names(tmp_path) == stays | {"whole"}
    finally:
        living.communicate(b"\n")
    assert atomic.sweep(tmp_path) == 2 and atomic.sweep(tmp_path / "none") == 0


def test_two_processes_write_one_file(atomic, tmp_path):
    """Each has its own partial file: one that starts over does not take the other's away."""
    target = tmp_path / "file"
    with atomic.replacing(target) as first, atomic.replacing(target) as second:
        assert first != second
        first.write_bytes(b"one")
        second.write_bytes(b"two")
    assert target.read_bytes() == b"one" and names(tmp_path) == {"file"}
