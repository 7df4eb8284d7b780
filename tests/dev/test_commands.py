"""The command line: exit codes, messages, and what reaches the programs behind it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import commands
from tools.hosting import browser
from tools.hosting.hosts import Choice, Host
from tools.hosting.problem import Problem
from tools.hosting.provision import Setup


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose set-up is done, on the Python that runs this test."""
    host = Host(tmp_path / "ComfyUI", Path(sys.executable), "9.8.7", "environment")
    monkeypatch.setattr(Setup, "host", lambda self: host)
    monkeypatch.setattr(Setup, "tools_bin", lambda self: tmp_path / "bin")
    monkeypatch.setattr(Setup, "overlay", lambda self, host: tmp_path / "overlay")
    monkeypatch.setattr(Setup, "needs_cpu", lambda self, host: True)
    monkeypatch.setattr(commands.browser, "ensure_chrome", lambda environ, say: Path("/opt/chrome"))
    monkeypatch.setattr(commands, "_make_sigterm_unwind", lambda: None)
    (tmp_path / "overlay").mkdir()
    return tmp_path


def recording(monkeypatch: pytest.MonkeyPatch, code: int) -> list[tuple[list[str], dict[str, str]]]:
    calls: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], cwd: Path, environ: dict[str, str]) -> int:
        calls.append((command, environ))
        return code

    monkeypatch.setattr(commands, "_run", run)
    return calls


@pytest.mark.parametrize(("pytest_code", "code"), [(0, 0), (1, 1), (2, 2), (5, 5)])
def test_the_exit_code_is_pytests(
    ready: Path, monkeypatch: pytest.MonkeyPatch, pytest_code: int, code: int
) -> None:
    recording(monkeypatch, pytest_code)
    assert commands.main(["test"], ready) == code


def test_arguments_reach_pytest_as_typed_and_the_environment_names_the_host(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recording(monkeypatch, 0)
    arguments = ["tests/dev", "-k", "a or b", "--help", "-x", "--", "--port"]
    commands.main(["test", *arguments], ready)
    command, environ = calls[0]
    assert command[-len(arguments) :] == arguments
    assert environ["FRAMEPAINTER_HOST"] == str(ready / "ComfyUI")
    assert environ["FRAMEPAINTER_TOOLS_BIN"] == str(ready / "bin")
    assert environ["FRAMEPAINTER_CHROME"] == str(Path("/opt/chrome"))
    assert environ["FRAMEPAINTER_CPU"] == "1"
    assert environ.items() >= commands.KEPT_MEMORY.items()


def test_the_benchmark_gets_its_arguments_and_the_hosts_python(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = recording(monkeypatch, 4)
    assert commands.main(["bench", "--size", "64"], ready) == 1
    assert "run.py is missing" in capsys.readouterr().err
    (ready / "bench").mkdir()
    (ready / "bench" / "run.py").touch()
    assert commands.main(["bench", "--size", "64"], ready) == 4
    assert calls[0][0] == [sys.executable, str(ready / "bench" / "run.py"), "--size", "64"]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Problem("say this"), 1, "dev.py: say this"),
        (PermissionError(13, "Permission denied", "x"), 1, "writable"),
        (KeyboardInterrupt(), 130, "continues where it was"),
    ],
)
def test_what_goes_wrong_is_said_in_one_paragraph(
    ready: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(self: Setup) -> Host:
        raise error

    monkeypatch.setattr(Setup, "host", fail)
    assert commands.main(["setup"], ready) == code
    text = capsys.readouterr().err
    assert words in text and "Traceback" not in text


def test_where_says_which_and_why_and_sets_nothing_up(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = Choice("pinned", ready / "none", ready / "python", "because")
    monkeypatch.setattr(Setup, "choose", lambda self: choice)
    assert commands.main(["where"], ready) == 0
    text = capsys.readouterr().out
    assert "not set up yet" in text and "pinned: because" in text and str(ready / "none") in text
    assert not (ready / ".host").exists()


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["serve", "--port", "x"], ["demo", "--fast"]])
def test_wrong_usage_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        commands.main(arguments)
    assert caught.value.code == 2


def test_dev_py_runs_from_anywhere_and_lists_its_commands(repo: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(repo / "dev.py"), "-h"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for command in ("demo", "test", "serve", "bench", "ablation", "models", "text-model", "setup", "where"):
        assert re.search(rf"^    {command}\b", done.stdout, re.M)


def test_ci_runs_exactly_the_developers_command(repo: Path, tmp_path: Path) -> None:
    if os.name == "nt" or shutil.which("bash") is None:
        pytest.skip("needs bash")
    script = repo / ".ci" / "run"
    assert os.access(script, os.X_OK)
    bash, programs = shutil.which("bash"), tmp_path / "bin"
    programs.mkdir()
    (programs / "dirname").symlink_to(shutil.which("dirname"))

    def outcome() -> tuple[int, str]:
        environ = {"PATH": str(programs)}
        done = subprocess.run([bash, str(script)], cwd=tmp_path, env=environ, capture_output=True, text=True)
        return done.returncode, done.stdout.strip()

    def program(name: str) -> None:
        (programs / name).write_text(f'#!{bash}\necho {name} "$@" in "$PWD"\nexit 6\n', encoding="utf-8")
        (programs / name).chmod(0o755)

    program("python3")
    assert outcome() == (6, f"python3 dev.py test in {repo}")
    program("python")
    assert outcome() == (6, f"python dev.py test in {repo}")


# The browser ----------------------------------------------------------------------------------------------


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="the paths of Linux")
def test_the_browser_is_looked_for_in_order(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path / "bin"), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path / "pw")}
    assert browser.find_chrome(environ) is None
    own = executable(tmp_path / "pw" / "chromium-1187" / "chrome-linux" / "chrome")
    assert browser.find_chrome(environ) == own
    chrome = executable(tmp_path / "bin" / "google-chrome")
    assert browser.find_chrome(environ) == chrome
    chromium = executable(tmp_path / "bin" / "chromium")
    assert browser.find_chrome(environ) == chromium
    assert browser.find_chrome({**environ, "CHROME_PATH": "/opt/mine"}) == Path("/opt/mine")


def test_nothing_is_installed_for_an_ordinary_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[Callable[..., object]] = []
    monkeypatch.setattr(browser, "find_chrome", lambda environ: None)
    monkeypatch.setattr(browser.sys, "platform", "linux")
    monkeypatch.setattr(browser.os, "geteuid", lambda: 1000, raising=False)
    monkeypatch.setattr(browser.subprocess, "run", lambda *_, **__: ran.append(1))
    assert browser.ensure_chrome({}, lambda text: None) is None
    assert ran == []
