"""A real ComfyUI server as a context manager, with a small HTTP client.

One self-contained, standard-library-only file: `dev.py` imports it as `tools.hosting.server`, tests may also load
it from its path. It never imports anything of ComfyUI; the host runs in a process of its own.

    with Server(host, pack=repo, base=folder, cpu=True) as server:
        entry = server.run(prompt, timeout=120)
        for image in images(entry):
            data = server.fetch(image)
"""

from __future__ import annotations

import atexit
import contextlib
import json
import mimetypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

PACK_NAME = "ComfyUI-FramePainter"
LOG_TAIL_LINES = 40
_COPY_MARK = ".framepainter-copy"
_ADDRESS_IN_USE = re.compile(
    r"address already in use|only one usage of each socket|Errno (98|48|10048)\b", re.I
)


class HostLike(Protocol):
    """What a server needs to know about a ComfyUI."""

    @property
    def directory(self) -> Path:
        """The folder with main.py."""

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""


@dataclass(frozen=True)
class PlainHost:
    """The least that describes a ComfyUI, for callers that have no `tools.hosting.hosts.Host`."""

    directory: Path
    python: Path


class ServerProblem(Exception):
    """Anything that a server or a run did not do as asked; the text is readable as it is."""


class StartFailed(ServerProblem):
    """The server did not come up; the text ends with the last lines of its log."""


class PromptRefused(ServerProblem):
    """ComfyUI did not accept the prompt, or accepted only part of it."""

    def __init__(self, message: str, node_errors: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.node_errors = dict(node_errors or {})


class RunFailed(ServerProblem):
    """A node raised an error while the prompt ran."""

    def __init__(self, node_type: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{node_type}: {message}")
        self.node_type = node_type
        self.message = message
        self.details = dict(details or {})


class RunInterrupted(ServerProblem):
    """The run was stopped by an interrupt."""

    def __init__(self, details: Mapping[str, Any] | None = None) -> None:
        self.details = dict(details or {})
        self.node_type = str(self.details.get("node_type", ""))
        super().__init__(f"The run was interrupted{' in ' + self.node_type if self.node_type else ''}.")


class RunTimedOut(ServerProblem):
    """The run did not end within the time given; it may still be going on."""


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name != "nt":
            # As servers do: a connection that has just been closed does not block the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def known_flags(host_directory: Path) -> set[str]:
    """The command-line flags that this ComfyUI understands, read from its source."""
    try:
        source = (host_directory / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    except OSError:
        return set()
    return set(re.findall(r"[\"'](--[a-z0-9][a-z0-9-]*)[\"']", source))


def images(entry: Mapping[str, Any], node_id: str | None = None) -> list[dict[str, str]]:
    """The image references in a history entry, of all nodes or of one."""
    outputs = entry.get("outputs", {})
    wanted = outputs if node_id is None else {node_id: outputs.get(node_id, {})}
    return [image for output in wanted.values() for image in output.get("images", [])]


class Server:
    """A ComfyUI with this pack as its only custom node pack, on folders of its own under `base`.

    The host's own folders (input, output, user, database) are not touched. `model_dirs` are further
    folders laid out like ComfyUI's `models`, made visible to the server.
    """

    def __init__(
        self,
        host: HostLike,
        pack: Path,
        base: Path,
        *,
        cpu: bool,
        port: int | None = None,
        extra_args: Sequence[str] = (),
        model_dirs: Sequence[Path] = (),
        environ: Mapping[str, str] | None = None,
        start_timeout: float = 300.0,
    ) -> None:
        self.host = host
        self.pack = Path(pack).resolve()
        # Resolved, because ComfyUI compares upload paths with this one literally.
        self.base = Path(base).resolve()
        self.cpu = cpu
        self.port = port or 0
        self.extra_args = list(extra_args)
        self.model_dirs = [Path(directory).resolve() for directory in model_dirs]
        self.environ = dict(environ or {})
        self.start_timeout = start_timeout
        self._fixed_port = port
        self._process: subprocess.Popen[bytes] | None = None
        # A proxy set in the environment must not see requests to this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @classmethod
    def from_environment(cls, pack: Path, base: Path, **options: Any) -> Server:
        """The server for a test-suite started by `dev.py test`, which names the host in the environment."""
        directory = os.environ.get("FRAMEPAINTER_HOST", "")
        if not directory:
            raise ServerProblem("FRAMEPAINTER_HOST is not set: run the tests with `python dev.py test`.")
        options.setdefault("cpu", os.environ.get("FRAMEPAINTER_CPU", "1") == "1")
        return cls(PlainHost(Path(directory), Path(sys.executable)), pack, base, **options)

    # Life --------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where the server answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_path(self) -> Path:
        """The file with what the server prints."""
        return self.base / "server.log"

    @property
    def pid(self) -> int | None:
        """The process id of ComfyUI itself, or None when it has not started."""
        try:
            return int((self.base / "server.pid").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Server:
        """Start ComfyUI and wait until it answers."""
        if self.alive():
            return self
        self._make_folders()
        if self._fixed_port and not port_is_free(self._fixed_port):
            raise StartFailed(f"Port {self._fixed_port} is in use by another program. Choose another one.")
        for attempt in range(3):
            self.port = self._fixed_port or free_port()
            try:
                self._launch()
                self._wait_until_up()
                return self
            except StartFailed:
                self.stop()
                # Another process can take the free port before ComfyUI does.
                if self._fixed_port or attempt == 2 or not _ADDRESS_IN_USE.search(self.log_text()):
                    raise
            except BaseException:
                self.stop()
                raise
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """End ComfyUI: ask first, then insist. Harmless when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
        # The supervisor ends ComfyUI when its standard input closes, and then ends itself.
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            if os.name != "nt":
                # Whatever nodes started; the supervisor leads this process group.
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)

    def alive(self) -> bool:
        """Whether the server process is running."""
        return self._process is not None and self._process.poll() is None

    def wait_until_stopped(self) -> int:
        """Wait until the server ends by itself; its exit code."""
        # In short waits: on Windows a long one would not notice Ctrl-C.
        while self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(0.5)
        return 0

    def command(self) -> list[str]:
        """The command line that starts ComfyUI."""
        flags = known_flags(self.host.directory)
        python = [str(self.host.python)]
        if self.host.python.parent.name == "python_embeded":
            # As the Windows portable's own start script does: keep the user's site-packages out.
            python.append("-s")
        arguments = ["--base-directory", str(self.base), "--listen", "127.0.0.1", "--port", str(self.port)]
        arguments.append("--disable-auto-launch")
        if self.cpu:
            arguments.append("--cpu")
        if "--disable-api-nodes" in flags:
            # Paid cloud nodes: of no use here, slow to import, and they make the page call the internet.
            arguments.append("--disable-api-nodes")
        if "--database-url" in flags:
            # The default lies in the host's folder, is shared by all its servers, and newer hosts lock it.
            arguments += ["--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"]
        if self.model_dirs:
            arguments += ["--extra-model-paths-config", str(self.base / "model_paths.yaml")]
        return [*python, "main.py", *arguments, *self.extra_args]

    def log_text(self) -> str:
        """Everything the server has printed since it started."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _log_tail(self) -> str:
        lines = [
            line for line in self.log_text().splitlines() if not line.startswith("Adding extra search path")
        ]
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def _make_folders(self) -> None:
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for name in ("checkpoints", "diffusion_models", "vae", "clip_vision"):
            (self.base / "models" / name).mkdir(exist_ok=True)
        link_pack(self.pack, self.base / "custom_nodes" / PACK_NAME)
        if self.model_dirs:
            # JSON is YAML too, and needs no thought about quoting paths.
            config = {
                f"folder_{number}": paths for number, paths in enumerate(map(_model_paths, self.model_dirs))
            }
            (self.base / "model_paths.yaml").write_text(json.dumps(config, indent=2), encoding="utf-8")

    def _launch(self) -> None:
        (self.base / "server.pid").unlink(missing_ok=True)
        # OpenMP threads that spin while they wait make two busy processes on a small machine some 20 times slower.
        environ = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8",
                   **self.environ}
        # A terminal's Ctrl-C reaches only us, and we end the server in our own order.
        apart: dict[str, Any] = {"start_new_session": True}
        if os.name == "nt":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(self.base / "server.pid"), *self.command()],
                cwd=self.host.directory,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                **apart,
            )
        atexit.register(self.stop)

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if not self.alive():
                code = self._process.returncode if self._process else None
                raise StartFailed(
                    f"ComfyUI ended while starting (exit code {code}). The end of "
                    f"{self.log_path}:\n{self._log_tail()}"
                )
            with contextlib.suppress(OSError, ServerProblem, ValueError):
                self._json("/system_stats", timeout=2)
                return
            time.sleep(0.1)
        raise StartFailed(
            f"ComfyUI did not answer within {self.start_timeout:.0f} s. The end of "
            f"{self.log_path}:\n{self._log_tail()}"
        )

    # Requests ----------------------------------------------------------------------------------------

    def object_info(self) -> dict[str, Any]:
        """The definitions of all nodes."""
        return self._json("/object_info", timeout=120)

    def system_stats(self) -> dict[str, Any]:
        """Versions and devices, as ComfyUI states them."""
        return self._json("/system_stats")

    def queue(self, prompt: Mapping[str, Any], extra_data: Mapping[str, Any] | None = None) -> str:
        """Put a prompt (API format) in the queue and return its id."""
        body = {"prompt": prompt, **({"extra_data": dict(extra_data)} if extra_data else {})}
        try:
            answer = self._json("/prompt", body)
        except _HttpError as error:
            if error.status != 400:
                raise
            refusal = error.json()
            raise PromptRefused(refusal_text(refusal), refusal.get("node_errors")) from None
        if answer.get("node_errors"):
            # Accepted, but only the outputs that are valid would run.
            self._delete_queued(str(answer.get("prompt_id", "")))
            raise PromptRefused(refusal_text(answer), answer["node_errors"])
        return str(answer["prompt_id"])

    def wait(self, prompt_id: str, timeout: float = 300.0) -> dict[str, Any]:
        """Wait until the run has ended; its history entry.

        Polls the history: the success message on the web socket can come before the entry is there.
        """
        deadline = time.monotonic() + timeout
        pause = 0.05
        while True:
            entry = self._json(f"/history/{urllib.parse.quote(prompt_id)}").get(prompt_id)
            if entry is not None and _is_finished(entry):
                _raise_for_status(entry)
                return entry
            if self._process is not None and not self.alive():
                raise ServerProblem(f"ComfyUI ended during the run. The end of its log:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise RunTimedOut(
                    f"The run did not end within {timeout:.0f} s. The end of the log:\n{self._log_tail()}"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def run(self, prompt: Mapping[str, Any], timeout: float = 300.0) -> dict[str, Any]:
        """Queue a prompt and wait for it; its history entry."""
        return self.wait(self.queue(prompt), timeout)

    def interrupt(self) -> None:
        """Stop the run that is going on."""
        self._request("/interrupt", {})

    def free(self) -> None:
        """Unload models and free memory (the server does so when it is next idle)."""
        self._request("/free", {"unload_models": True, "free_memory": True})

    def upload(self, path: Path, subfolder: str = "", name: str | None = None) -> dict[str, str]:
        """Put an image into the input folder; its reference (name, subfolder, type)."""
        path = Path(path)
        body, content_type = _multipart(
            {"subfolder": subfolder, "overwrite": "true", "type": "input"},
            "image",
            name or path.name,
            path.read_bytes(),
        )
        return json.loads(self._request("/upload/image", body, content_type))

    def fetch(self, image: Mapping[str, str]) -> bytes:
        """The bytes of an image, given its reference in a history entry."""
        names = ("filename", "subfolder", "type")
        query = urllib.parse.urlencode({name: image[name] for name in names if name in image})
        return self._request(f"/view?{query}")

    def output_path(self, image: Mapping[str, str]) -> Path:
        """Where the file of an image reference lies on this machine."""
        return self.base / image.get("type", "output") / image.get("subfolder", "") / image["filename"]

    def _delete_queued(self, prompt_id: str) -> None:
        with contextlib.suppress(ServerProblem, OSError):
            self._request("/queue", {"delete": [prompt_id]})
            self._request("/interrupt", {"prompt_id": prompt_id})

    def _json(
        self, path: str, body: Mapping[str, Any] | None = None, timeout: float = 60.0
    ) -> dict[str, Any]:
        answer = json.loads(self._request(path, body, timeout=timeout))
        if not isinstance(answer, dict):
            raise ServerProblem(f"{path} answered something unexpected: {answer!r:.200}")
        return answer

    def _request(
        self,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        content_type: str = "application/json",
        timeout: float = 60.0,
    ) -> bytes:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": content_type}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise _HttpError(path, error.code, error.read()) from None
        except urllib.error.URLError as error:
            raise ServerProblem(f"ComfyUI does not answer at {self.url}{path}: {error.reason}") from None


class _HttpError(ServerProblem):
    def __init__(self, path: str, status: int, body: bytes) -> None:
        super().__init__(f"{path} answered HTTP {status}: {body[:500].decode(errors='replace')}")
        self.status = status
        self.body = body

    def json(self) -> dict[str, Any]:
        try:
            content = json.loads(self.body)
        except ValueError:
            content = None
        return content if isinstance(content, dict) else {"error": str(self)}


def refusal_text(answer: Mapping[str, Any]) -> str:
    """What ComfyUI has against a prompt, one line per complaint."""
    lines = []
    error = answer.get("error")
    if isinstance(error, Mapping):
        lines.append(_joined(error))
    elif error:
        lines.append(str(error))
    for node_id, node in (answer.get("node_errors") or {}).items():
        for complaint in node.get("errors", []):
            lines.append(f"{node.get('class_type', 'node')} (node {node_id}): {_joined(complaint)}")
    return "\n".join(line for line in lines if line) or "ComfyUI refused the prompt without saying why."


def _joined(complaint: Mapping[str, Any]) -> str:
    parts = [str(complaint.get(name, "")).strip() for name in ("message", "details")]
    return ": ".join(dict.fromkeys(part.rstrip(".:") for part in parts if part))


def _is_finished(entry: Mapping[str, Any]) -> bool:
    status = entry.get("status")
    # Old servers record no status; their entries appear only at the end.
    return not status or bool(status.get("completed")) or status.get("status_str") == "error"


def _raise_for_status(entry: Mapping[str, Any]) -> None:
    status = entry.get("status") or {}
    messages = {name: details for name, details in status.get("messages", [])}
    if "execution_interrupted" in messages:
        raise RunInterrupted(messages["execution_interrupted"])
    if status.get("status_str") == "error":
        details = messages.get("execution_error", {})
        kind, text = details.get("exception_type", ""), str(details.get("exception_message", "")).strip()
        message = text or kind or "the run failed without a message"
        raise RunFailed(str(details.get("node_type", "unknown node")), message, details)


def _multipart(fields: Mapping[str, str], name: str, filename: str, content: bytes) -> tuple[bytes, str]:
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'.encode()
        for field, value in fields.items()
    ]
    kind = mimetypes.guess_type(filename)[0] or "application/octet-stream"
    quoted = filename.replace("\\", "_").replace('"', "%22")
    head = f'Content-Disposition: form-data; name="{name}"; filename="{quoted}"\r\nContent-Type: {kind}'
    parts += [f"--{boundary}\r\n{head}\r\n\r\n".encode(), content, f"\r\n--{boundary}--\r\n".encode()]
    return b"".join(parts), f"multipart/form-data; boundary={boundary}"


def _model_paths(directory: Path) -> dict[str, str]:
    # ComfyUI expands variables and ~ in base_path only, so absolute paths go in one by one.
    found = sorted(child for child in directory.iterdir() if child.is_dir()) if directory.is_dir() else []
    return {child.name: str(child) for child in found if child.name != "configs"}


# The pack in custom_nodes ------------------------------------------------------------------------------


def link_pack(pack: Path, target: Path) -> None:
    """Make the pack appear as `target`: a link where the system allows one, else a copy."""
    if os.path.lexists(target) and not (target / _COPY_MARK).exists():
        if os.path.realpath(target) == os.path.realpath(pack):
            return
        _unlink(target)
    elif target.exists():
        shutil.rmtree(target)
    if os.name == "nt":
        # A junction needs no administrator rights, unlike a symbolic link.
        done = subprocess.run(["cmd", "/c", "mklink", "/J", str(target), str(pack)], capture_output=True)
        if done.returncode == 0:
            return
    else:
        with contextlib.suppress(OSError):
            target.symlink_to(pack, target_is_directory=True)
            return
    _copy_pack(pack, target)


def _unlink(target: Path) -> None:
    try:
        target.unlink()
    except OSError:
        # A Windows junction goes with rmdir; a real folder that holds something is refused, as it should be.
        target.rmdir()


def _copy_pack(pack: Path, target: Path) -> None:
    for relative in _tracked_files(pack):
        if (pack / relative).is_file():
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(pack / relative, target / relative)
    (target / _COPY_MARK).write_text("", encoding="utf-8")


def _tracked_files(pack: Path) -> Iterator[str]:
    listed = None
    with contextlib.suppress(OSError):
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=pack,
            capture_output=True,
        )
    if listed is not None and listed.returncode == 0:
        yield from (name for name in listed.stdout.decode().split("\0") if name)
        return
    for folder, folders, files in os.walk(pack):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        yield from (os.path.relpath(os.path.join(folder, name), pack) for name in files)


# The supervisor: this file run as a program ------------------------------------------------------------


def _supervise(pid_file: str, command: list[str]) -> int:
    """Run ComfyUI until it ends or standard input closes.

    The pipe closes also when our parent is killed outright, so no server is ever left behind.
    """
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    temporary = f"{pid_file}.part"
    Path(temporary).write_text(str(child.pid), encoding="utf-8")
    os.replace(temporary, pid_file)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _end_with_input(child: subprocess.Popen[bytes]) -> None:
    # The bare descriptor: a thread inside sys.stdin's buffer would make Python abort when it exits.
    while os.read(0, 4096):
        pass
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    sys.exit(_supervise(sys.argv[1], sys.argv[2:]))
