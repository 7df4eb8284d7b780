"""Stamps, the lock, and child processes: what makes the set-up safe to interrupt."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tools.hosting import steps
from tools.hosting.steps import CommandFailed, Lock, Stamps, run_step


def test_a_step_runs_once_and_again_when_its_inputs_change(tmp_path: Path) -> None:
    stamps, result, runs = Stamps(tmp_path / "stamps"), tmp_path / "result", []

    def work() -> None:
        runs.append(1)
        result.write_text("made", encoding="utf-8")

    assert run_step(stamps, "s", {"v": "1"}, result, work) is True
    assert run_step(stamps, "s", {"v": "1"}, result, work) is False
    assert run_step(stamps, "s", {"v": "2"}, result, work) is True
    result.unlink()
    assert run_step(stamps, "s", {"v": "2"}, result, work) is True
    assert len(runs) == 3


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_step_is_not_stamped_even_if_it_once_was(
    tmp_path: Path, error: type[BaseException]
) -> None:
    stamps, result = Stamps(tmp_path / "stamps"), tmp_path / "result"
    result.touch()
    run_step(stamps, "s", {"v": "1"}, result, lambda: None)

    def fail() -> None:
        raise error

    with pytest.raises(error):
        run_step(stamps, "s", {"v": "2"}, result, fail)
    assert not stamps.fresh("s", {"v": "2"})
    # Its old result may be half overwritten, so the old stamp must be gone as well.
    assert not stamps.fresh("s", {"v": "1"})


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"digest": 3}'])
def test_a_damaged_stamp_counts_as_none(tmp_path: Path, content: str) -> None:
    stamps = Stamps(tmp_path)
    stamps.write("s", {"v": "1"})
    assert stamps.fresh("s", {"v": "1"})
    stamps.path("s").write_text(content, encoding="utf-8")
    assert not stamps.fresh("s", {"v": "1"})


def test_atomic_write_leaves_no_other_file(tmp_path: Path) -> None:
    steps.atomic.write_bytes(tmp_path / "deep" / "file", b"one")
    steps.atomic.write_bytes(tmp_path / "deep" / "file", b"two")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "deep").iterdir()] == [("file", b"two")]


def test_the_lock_makes_a_second_run_wait(tmp_path: Path) -> None:
    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with Lock(tmp_path / "lock", say=said.append, poll_s=0.01):
            order.append("second")

    with Lock(tmp_path / "lock", say=said.append):
        thread = threading.Thread(target=second)
        thread.start()
        limit = time.monotonic() + 60
        while not said and time.monotonic() < limit:
            time.sleep(0.01)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert len(said) == 1 and "Waiting" in said[0]


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path, repo: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(repo)!r})\n"
        "from pathlib import Path; from tools.hosting.steps import Lock; import time\n"
        f"with Lock(Path({str(tmp_path / 'lock')!r})):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait()
        started = time.monotonic()
        with Lock(tmp_path / "lock", poll_s=0.05):
            assert time.monotonic() - started < 30  # the killed one would have held it for 60
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_leftover_lock_file_of_nobody_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("999999999", encoding="utf-8")
    with Lock(tmp_path / "lock", say=pytest.fail):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are handed to children on POSIX only")
def test_an_orphaned_child_keeps_the_lock(tmp_path: Path) -> None:
    said: list[str] = []
    with Lock(tmp_path / "lock") as lock:
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=lock.inheritable_fds()
        )
        # As if this process had died: its own descriptor is closed without unlocking.
        assert lock._file is not None
        lock._file.close()
        lock._file = None
    try:
        thread = threading.Thread(
            target=lambda: Lock(tmp_path / "lock", say=said.append, poll_s=0.02).__enter__()
        )
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and said
    finally:
        child.kill()
        child.wait()
    thread.join(10)
    assert not thread.is_alive()


def test_output_is_logged_and_a_failure_carries_its_end(tmp_path: Path) -> None:
    log, seen = tmp_path / "log", []
    script = "import sys\nfor i in range(40): print('line', i)\nsys.exit(7)"
    with pytest.raises(CommandFailed) as caught:
        steps.run_logged([sys.executable, "-c", script], log, line=seen.append)
    assert caught.value.code == 7
    assert caught.value.tail[-1] == "line 39" and len(caught.value.tail) == 15
    assert len(seen) == 40
    assert "line 0\n" in log.read_text(encoding="utf-8")


def test_an_interrupt_ends_the_child(tmp_path: Path) -> None:
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        steps.run_logged([sys.executable, "-c", script], tmp_path / "log", line=interrupt)
    assert time.monotonic() - started < 50


def test_removing_a_tree_with_read_only_files_and_a_link(tmp_path: Path) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    outside.mkdir()
    (outside / "keep").touch()
    tree.mkdir()
    (tree / "file").touch()
    (tree / "file").chmod(0o400)
    try:
        (tree / "link").symlink_to(outside, target_is_directory=True)
    except OSError:
        pytest.skip("no symbolic links here")
    steps.remove_tree(tree)
    assert not tree.exists()
    assert (outside / "keep").exists()
    steps.remove_tree(tree)
