"""The commands of `dev.py`."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tools import demo
from tools.hosting import browser
from tools.hosting.hosts import Host
from tools.hosting.problem import Problem
from tools.hosting.provision import Setup, overlay_command
from tools.hosting.server import Server, ServerProblem

REPO = Path(__file__).resolve().parent.parent
PYTEST_NO_TESTS = 5
EXIT_INTERRUPTED = 130
WORKERS = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")  # in the order of tests/conftest.py: slow files first
# glibc gives the memory of every larger tensor back to the system and fetches it again for the next one. On small networks that
# takes up to a third of the time, so processes of the suite keep up to 1 GB; other systems ignore these names.
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_TOP_PAD_": str(64 << 20)}
# Commands that are scripts of the repository, run in the host's Python; further arguments go to them.
_SCRIPTS = {
    "bench": "bench/run.py",
    "ablation": "bench/ablation.py",
    "models": "tools/making/small_model.py",
    "text-model": "tools/making/small_text_model.py",
    "fuzz": "tools/attack/fuzz.py",
    "kill": "tools/attack/kill.py",
}


def main(arguments: Sequence[str], repo: Path = REPO) -> int:
    """Run one command; the process exit code. Errors that a user can act on are printed, not raised."""
    options, rest = _parse(list(arguments))
    _make_sigterm_unwind()
    setup = Setup(repo, os.environ, say=_say)
    try:
        return _COMMANDS[options.command](setup, options, rest)
    except (Problem, ServerProblem) as problem:
        print(f"dev.py: {problem}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"dev.py: {error}. Check that this folder is writable and the disk not full.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndev.py: stopped. Running it again continues where it was.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dev.py",
        description="Developer commands of ComfyUI-FramePainter.",
        epilog="Environment: COMFYUI_DIR and COMFYUI_PYTHON name a ComfyUI of yours to use instead of the "
        "pinned one (it is never changed); FRAMEPAINTER_TORCH_INDEX names another package index for the "
        "pinned one's torch; CHROME_PATH names the browser for the tests.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("demo", help="run the sketch-edit example and show where the pictures are")
    commands.add_parser("test", help="run the test-suite; further arguments go to pytest")
    serve = commands.add_parser("serve", help="start ComfyUI with this pack, until Ctrl-C")
    serve.add_argument("--port", type=int, default=None, help="default: 8188, or a free one if that is taken")
    commands.add_parser("bench", help="run the benchmark; further arguments go to it")
    commands.add_parser("ablation", help="the paper's ablations in miniature")
    commands.add_parser("models", help="train the small models of the pack, stage by stage")
    commands.add_parser("text-model", help="train the small text-to-image model, stage by stage")
    commands.add_parser("fuzz", help="hand every node and every file format made-up inputs; --help tells its options")
    commands.add_parser("kill", help="kill a real server at work again and again and compare the results")
    commands.add_parser("setup", help="only set up what the other commands need")
    commands.add_parser("where", help="say which ComfyUI would be used, and why")
    return parser


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    # What follows these commands is another program's business, `--help` included, so it is not parsed here.
    if arguments and arguments[0] in ("test", *_SCRIPTS):
        return argparse.Namespace(command=arguments[0]), arguments[1:]
    return _parser().parse_args(arguments), []


def _say(text: str) -> None:
    print(text, flush=True)


def _make_sigterm_unwind() -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    # So that a server or an installer is ended too when dev.py is told to end.
    signal.signal(signal.SIGTERM, stop)


def _where(setup: Setup, options: argparse.Namespace, rest: list[str]) -> int:
    choice = setup.choose()
    ready = "ready" if choice.origin != "pinned" or setup.pinned_ready(choice.python) else "not set up yet"
    host = Host(choice.directory, choice.python, "", choice.origin)
    _say(f"ComfyUI: {host.directory} ({ready})\nPython:  {host.python}\nOrigin:  {host.origin}: {choice.why}")
    return 0


def _setup(setup: Setup, options: argparse.Namespace, rest: list[str]) -> int:
    host = setup.host()
    setup.tools_bin()
    setup.overlay(host)
    device = "CPU" if setup.needs_cpu(host) else "GPU"
    _say(f"Ready: ComfyUI {host.version} in {host.directory}, on the {device}.")
    return 0


def _test(setup: Setup, options: argparse.Namespace, rest: list[str]) -> int:
    host = setup.host()
    tools_bin, overlay = setup.tools_bin(), setup.overlay(host)
    chrome = browser.ensure_chrome(os.environ, _say)
    environ = {
        "OMP_WAIT_POLICY": "PASSIVE",  # the suite and its servers share few cores; see Server
        **KEPT_MEMORY,
        **os.environ,
        "FRAMEPAINTER_HOST": str(host.directory),
        "FRAMEPAINTER_CPU": "1" if setup.needs_cpu(host) else "0",
        "FRAMEPAINTER_TOOLS_BIN": str(tools_bin),
        "FRAMEPAINTER_CHROME": str(chrome or ""),
    }
    # Without --confcutdir pytest would import the checkout as a package under its folder's name.
    # Half of the suite waits for a browser, a disk or a single core: two files at a time. Files given by name run in this
    # process, where a debugger works.
    single = any((setup.repo / argument.split("::")[0]).exists() for argument in rest)
    arguments = ["--import-mode=importlib", f"--confcutdir={setup.repo / 'tests'}", *([] if single else WORKERS), *rest]
    command = overlay_command(host, overlay, arguments)
    code = _run(command, setup.repo, environ)
    if code == PYTEST_NO_TESTS:
        _say("No test was run: that counts as a failure.")
    return code


def _script(setup: Setup, options: argparse.Namespace, rest: list[str]) -> int:
    path = setup.repo / _SCRIPTS[options.command]
    if not path.is_file():
        raise Problem(f"{path} is missing. Restore it from the repository.")
    host = setup.host()
    environ = {
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "FRAMEPAINTER_HOST": str(host.directory),
        "FRAMEPAINTER_CPU": "1" if setup.needs_cpu(host) else "0",
    }
    return _run([str(host.python), str(path), *rest], setup.repo, environ)


def _run(command: list[str], cwd: Path, environ: dict[str, str]) -> int:
    """Run a program in the foreground; its exit code, also when Ctrl-C ends it."""
    child = subprocess.Popen(command, cwd=cwd, env=environ)
    try:
        return child.wait()
    except KeyboardInterrupt:
        # At a terminal it got the Ctrl-C too and is about to end: let it finish its own clean-up.
        _end(child)
        raise


def _end(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        # Python's own way to be interrupted; on Windows there is only the hard way.
        child.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _demo(setup: Setup, options: argparse.Namespace, rest: list[str]) -> int:
    host = setup.host()
    demo.run(setup.repo, host, cpu=setup.needs_cpu(host), models=setup.layout.models, say=_say)
    return 0


def _serve(setup: Setup, options: argparse.Namespace, rest: list[str]) -> int:
    host = setup.host()
    port = options.port or demo.usual_port()
    server = Server(
        host,
        setup.repo,
        setup.layout.root / "serve",
        cpu=setup.needs_cpu(host),
        port=port,
        model_dirs=demo.models_dirs(host, setup.layout.models, setup.repo),
    )
    _say(f"Starting ComfyUI {host.version} ...")
    with server:
        _say(f"ComfyUI with this pack: {server.url}\nLog: {server.log_path}\nCtrl-C stops it.")
        try:
            code = server.wait_until_stopped()
        except KeyboardInterrupt:
            _say("\nStopped.")
            return 0
        raise Problem(f"ComfyUI ended by itself (exit code {code}). Its log is {server.log_path}.")


_COMMANDS: dict[str, Callable[[Setup, argparse.Namespace, list[str]], int]] = {
    "demo": _demo,
    "test": _test,
    "serve": _serve,
    **dict.fromkeys(_SCRIPTS, _script),
    "setup": _setup,
    "where": _where,
}
