"""Stage results on the disk: damage is noticed, what is not finite is not kept, two jobs take turns."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

TENSORS = {"a": torch.arange(600.0), "b": torch.arange(9, dtype=torch.uint8)}


@pytest.fixture
def lines():
    return []


@pytest.fixture
def store(pack, tmp_path, lines):
    return pack("core.video.store").Store(tmp_path, lines.append)


def same(found) -> bool:
    return found is not None and found.keys() == TENSORS.keys() and all(torch.equal(found[n], t) for n, t in TENSORS.items())


def test_what_was_kept_comes_back(store, lines):
    store.put("edit", "key", TENSORS, {"clip": "1"})
    assert same(store.get("edit", "key")) and store.get("edit", "other") is None and store.get("lora", "key") is None
    assert lines == []


@pytest.mark.parametrize("zeros", [1, 400])
def test_damage_anywhere_is_noticed(store, lines, zeros):
    path = store.put("edit", "key", TENSORS)
    data = path.read_bytes()
    for at in range(0, len(data) - zeros, 97):
        damaged = data[:at] + bytes(zeros) + data[at + zeros:]
        path.write_bytes(damaged)
        found = store.get("edit", "key")
        assert same(found) if damaged == data else found is None, at
    for short in (b"", data[:100], data[:-1]):
        path.write_bytes(short)
        assert store.get("edit", "key") is None
    assert "is damaged: its values" in "".join(lines) and "cannot be read" in "".join(lines)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_neither_kept_nor_taken(store, lines, value):
    with pytest.raises(ValueError, match="the result of the stage 'edit' cannot be used: inf or NaN in its a"):
        store.put("edit", "key", {**TENSORS, "a": torch.tensor([1.0, value])})
    assert list(store.folder.iterdir()) == []
    save_file({"a": torch.tensor([value])}, str(store.path("edit", "earlier")))  # as an earlier version kept it
    assert store.adopt("edit", "earlier", "key") is None and "holds inf or NaN in 'a'" in lines[0]


def test_a_file_of_an_earlier_version_is_written_again(store):
    save_file(TENSORS, str(store.path("lora", "earlier")), metadata={"clip": "1"})
    assert store.get("lora", "earlier") is None, "without a digest"
    assert same(store.adopt("lora", "earlier", "key")) and same(store.get("lora", "key"))
    assert [p.name for p in store.folder.iterdir()] == ["lora-key.safetensors"]


def test_two_jobs_take_turns(pack, store):
    """The second waits, may be cancelled while it does, and is told that the stage may be there now."""
    held, let_go, waits = threading.Event(), threading.Event(), []

    def first():
        with store.claimed("edit", "key", lambda: None):
            held.set()
            let_go.wait(20)
            store.put("edit", "key", TENSORS)

    job = threading.Thread(target=first)
    job.start()
    assert held.wait(20)

    def cancelled():
        raise InterruptedError

    with pytest.raises(InterruptedError), store.claimed("edit", "key", cancelled):
        pytest.fail("two jobs hold one stage")
    with store.claimed("edit", "another", cancelled):
        assert store.written("edit", "key") is None

    def waiting():
        waits.append(1)
        let_go.set()

    with store.claimed("edit", "key", waiting):
        assert same(store.get("edit", "key")) and waits and store.written("edit", "key")
    job.join()
    assert [p.name for p in store.folder.iterdir()] == ["edit-key.safetensors"]


def test_a_killed_holder_lets_go(store, tmp_path):
    script = textwrap.dedent(f"""
        import os, filelock
        filelock.FileLock({str(tmp_path / '.edit-key.lock')!r}).acquire()
        os.kill(os.getpid(), 9)
    """)
    assert subprocess.run([sys.executable, "-c", script]).returncode != 0
    assert Path(tmp_path, ".edit-key.lock").exists()
    with store.claimed("edit", "key", lambda: pytest.fail("waits for the dead")):
        pass


def test_a_failed_stage_lets_go(store):
    with pytest.raises(ZeroDivisionError), store.claimed("edit", "key", lambda: None):
        raise ZeroDivisionError
    with store.claimed("edit", "key", lambda: pytest.fail("still held")):
        pass
