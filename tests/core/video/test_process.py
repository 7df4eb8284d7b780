"""The process that decodes: what it does to the server when it crashes, hangs, grows, is cancelled or is left alone."""

from __future__ import annotations

import ast
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from framepainter_tests import wild_videos as wild

ROOT = Path(__file__).resolve().parents[3]
# A decoder that reads what it is told and then does something.
PROGRAM = """import os, signal, sys, time
requests = os.fdopen(0, "rb", 0)
requests.readline()
requests.read(4)
{what}
"""


def never() -> None:
    """Nobody cancels."""


@pytest.fixture
def process(pack):
    return pack("core.video.process")


@pytest.fixture
def decoder(process, tmp_path, monkeypatch):
    def decoder(what: str):
        program = tmp_path / "program.py"
        program.write_text(PROGRAM.format(what=what))
        monkeypatch.setattr(process, "PROGRAM", program)
        return process.Decoder(tmp_path / "clip.mkv")

    return decoder


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to die of")
@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_a_sentence(process, decoder, how):
    with pytest.raises(process.VideoError, match=f"crashes the decoder \\({how.name}\\)"):
        list(decoder(f"os.kill(os.getpid(), {int(how)})").ask("describe", never))


def test_an_exit_is_a_sentence(process, decoder):
    with pytest.raises(process.VideoError, match=r"crashes the decoder \(exit code 3\)"):
        list(decoder("os._exit(3)").ask("describe", never))


def test_silence_is_a_sentence(process, decoder, monkeypatch):
    monkeypatch.setattr(process, "SILENCE", 0.5)
    child = decoder("time.sleep(600)")
    with pytest.raises(process.VideoError, match="hangs the decoder"):
        list(child.ask("describe", never))
    assert child._process.poll() is not None


def test_too_much_memory_is_a_sentence(process, decoder, monkeypatch):
    monkeypatch.setattr(process, "MEMORY", 64 << 20)
    child = decoder("hoard = [bytes([7]) * (1 << 20) for _ in range(200)]; time.sleep(600)")
    with pytest.raises(process.VideoError, match="GB of memory to decode"):
        list(child.ask("describe", never))
    assert child._process.poll() is not None


def test_what_is_no_message_is_a_crash(process, decoder):
    with pytest.raises(process.VideoError, match="crashes the decoder"):
        list(decoder("os.write(1, b'\\xff' * 100)").ask("describe", never))


def test_cancel_ends_the_process_within_moments(decoder):
    class Stop(Exception):
        pass

    begun = time.monotonic()

    def stop():
        if time.monotonic() - begun > 0.5:
            raise Stop

    child = decoder("time.sleep(600)")
    with pytest.raises(Stop):
        list(child.ask("describe", stop))
    assert not psutil.pid_exists(child._process.pid)


def test_the_process_ends_with_the_server(process, tmp_path):
    """A killed server closes the pipe, and nothing else."""
    child = process.Decoder(tmp_path / "clip.mkv")
    child._process.stdin.close()
    assert child._process.wait(30) == 0


def test_the_process_ends_with_the_reading(pack, tmp_path):
    source = pack("core.video.source")
    file = source.VideoFile(wild.write(tmp_path / "clip.mp4", wild.pictures(8, 64, 96)), "clip")
    file.times(never)
    first = file._decoder._process
    assert len(file.read([1, 5], 64, 96, never)) == 2 and file._decoder._process is first, "one process for a file"
    file.close()
    assert first.poll() is not None
    assert len(file.read([1], 64, 96, never)) == 1, "and another one if it is read again"
    second = file._decoder._process
    del file
    assert second.wait(30) is not None


def test_a_crash_is_told_with_the_file_and_does_not_end_the_reading_of_others(pack, process, tmp_path, monkeypatch):
    """Read Video names the file; a dataset skips it with the reason."""
    video, source = pack("nodes.video"), pack("core.video.source")
    path = wild.write(tmp_path / "clip.mp4", wild.pictures(8, 64, 96))
    program, real = tmp_path / "program.py", process.PROGRAM
    program.write_text(PROGRAM.format(what="os._exit(9)"))
    monkeypatch.setattr(process, "PROGRAM", program)
    from comfy_api.latest import InputImpl

    with pytest.raises(ValueError, match=r"Read Video: 'clip.mp4' crashes the decoder .*copy it again"):
        video.ReadVideo.execute(InputImpl.VideoFromFile(str(path)), -1.0, 0.0, -1.0, True)
    file = source.VideoFile(path, "clip")
    with pytest.raises(source.VideoError, match="crashes the decoder"):
        file.times(never)
    monkeypatch.setattr(process, "PROGRAM", real)
    assert len(file.times(never)) == 8


def test_one_file_starts_processes_and_says_why():
    starters = []
    for file in (f for tier in ("core", "host", "nodes") for f in (ROOT / tier).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            starters += [file for n in names if n.split(".")[0] in ("subprocess", "multiprocessing", "pty")]
    assert [f.relative_to(ROOT).as_posix() for f in starters] == ["core/video/process.py"]
    assert "Why one is started" in ast.get_docstring(ast.parse(starters[0].read_text(encoding="utf-8")))


def test_the_process_imports_pyav_and_numpy_alone():
    """Neither torch nor the host, which would take seconds: what child.py reaches, by imports within its folder."""
    folder, seen, foreign = ROOT / "core" / "video", set(), set()
    todo = ["child", "wire", "container", "frames", "sound"]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, f"{name}: its package is this folder alone"
                todo.append(node.module)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                foreign |= {a.name for a in node.names} if isinstance(node, ast.Import) else {node.module}
    assert {n.split(".")[0] for n in foreign} - set(sys.stdlib_module_names) == {"av", "numpy"}


@pytest.mark.parametrize("name", ["a%03d.mp4", "http:clip.mp4", "concat:a|b.mp4", "ünï 空.mp4", "-i.mp4"])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_a_name_is_a_name(pack, tmp_path, name):
    path = tmp_path / "plain.mp4"
    wild.write(path, wild.pictures(8, 64, 96)).rename(tmp_path / name)
    file = pack("core.video.source").VideoFile(tmp_path / name, "clip")
    assert len(file.times(never)) == 8


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{other}\n#EXT-X-ENDLIST\n",
                                  "ffconcat version 1.0\nfile '{other}'\n"])
def test_a_list_of_files_is_not_followed(pack, process, tmp_path, text):
    other = wild.write(tmp_path / "other.ts", wild.pictures(8, 64, 96))
    path = tmp_path / "list.mp4"
    path.write_text(text.format(other=other.name))
    with pytest.raises(process.VideoError, match="cannot be opened|is a list of other files"):
        pack("core.video.source").VideoFile(path, "clip").times(never)


def test_frames_of_absurd_size_are_refused(pack, tmp_path, monkeypatch):
    container = pack("core.video.container")
    monkeypatch.setattr(container, "MOST_PIXELS", 64 * 90)
    path = wild.write(tmp_path / "clip.mp4", wild.pictures(4, 64, 96))
    with pytest.raises(container.Problem, match="has frames of 96 x 64 pixels"):
        container.describe({"path": str(path)}, None, None)
    monkeypatch.undo()
    monkeypatch.setattr(container, "MOST_FRAMES", 3)

    class Answers:
        def beat(self):
            pass

    with pytest.raises(container.Problem, match="has more than 3 frames"):
        container.describe({"path": str(path)}, None, Answers())
