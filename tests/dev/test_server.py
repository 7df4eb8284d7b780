"""The server's client side against a fake HTTP server, and its process side against a fake ComfyUI."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tools.hosting import server as module
from tools.hosting.server import PlainHost, PromptRefused, RunFailed, RunInterrupted, RunTimedOut, Server, StartFailed

OK = {"status": {"status_str": "success", "completed": True, "messages": []}, "outputs": {}}


def ended_badly(name: str, **details: Any) -> dict[str, Any]:
    messages = [["execution_start", {}], [name, details]]
    return {"status": {"status_str": "error", "completed": False, "messages": messages}, "outputs": {}}


class Fake:
    """A ComfyUI's HTTP side: answers are queued per path, the last one stays; requests are recorded."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.requests: list[tuple[str, str, bytes, str]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fake.requests.append((self.command, self.path, body, self.headers.get("Content-Type", "")))
                queued = fake.answers.get(self.path.split("?")[0], [(404, {})])
                status, content = queued.pop(0) if len(queued) > 1 else queued[0]
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _answer

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, path: str, *contents: Any, status: int = 200) -> None:
        self.answers.setdefault(path, []).extend((status, content) for content in contents)


@pytest.fixture
def fake() -> Iterator[Fake]:
    running = Fake()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def client(fake: Fake, tmp_path: Path) -> Server:
    server = Server(PlainHost(tmp_path, Path(sys.executable)), tmp_path, tmp_path / "base", cpu=True)
    server.port = fake.http.server_address[1]
    return server


# Client ---------------------------------------------------------------------------------------------------


def test_queue_sends_the_prompt_and_returns_its_id(client: Server, fake: Fake) -> None:
    fake.answer("/prompt", {"prompt_id": "p1", "number": 1, "node_errors": {}})
    assert client.queue({"1": {"class_type": "X"}}) == "p1"
    assert json.loads(fake.requests[0][2]) == {"prompt": {"1": {"class_type": "X"}}}


NODE_ERRORS = {
    "7": {
        "class_type": "SaveImage",
        "errors": [
            {"type": "required_input_missing", "message": "Required input is missing", "details": "images"}
        ],
    }
}


def test_a_refused_prompt_names_node_and_reason(client: Server, fake: Fake) -> None:
    error = {
        "type": "prompt_outputs_failed_validation",
        "message": "Prompt outputs failed validation",
        "details": "",
    }
    fake.answer("/prompt", {"error": error, "node_errors": NODE_ERRORS}, status=400)
    with pytest.raises(PromptRefused) as caught:
        client.queue({})
    expected = "Prompt outputs failed validation\nSaveImage (node 7): Required input is missing: images"
    assert str(caught.value) == expected
    assert caught.value.node_errors == NODE_ERRORS


def test_a_half_accepted_prompt_is_refused_too_and_taken_off_the_queue(client: Server, fake: Fake) -> None:
    fake.answer("/prompt", {"prompt_id": "p1", "number": 1, "node_errors": NODE_ERRORS})
    fake.answer("/queue", b"")
    fake.answer("/interrupt", b"")
    with pytest.raises(PromptRefused, match="SaveImage"):
        client.queue({})
    bodies = {path: json.loads(body) for _, path, body, _ in fake.requests[1:]}
    assert bodies == {"/queue": {"delete": ["p1"]}, "/interrupt": {"prompt_id": "p1"}}


@pytest.mark.parametrize("body", [b"plain text", [], {"error": "No prompt provided", "node_errors": {}}])
def test_a_refusal_in_any_form_is_readable(client: Server, fake: Fake, body: Any) -> None:
    fake.answer("/prompt", body, status=400)
    with pytest.raises(PromptRefused) as caught:
        client.queue({})
    assert str(caught.value).strip()


def test_wait_polls_until_the_entry_is_there_and_complete(client: Server, fake: Fake) -> None:
    started = {"status": {"status_str": "success", "completed": False, "messages": []}, "outputs": {}}
    fake.answer("/history/p1", {}, {}, {"p1": started}, {"p1": OK})
    assert client.wait("p1", 10) == OK
    assert len(fake.requests) == 4


def test_an_entry_of_an_old_server_without_status_is_complete(client: Server, fake: Fake) -> None:
    fake.answer("/history/p1", {"p1": {"outputs": {"2": {}}}})
    assert client.wait("p1", 1)["outputs"] == {"2": {}}


def test_a_failed_run_names_node_type_and_message(client: Server, fake: Fake) -> None:
    entry = ended_badly(
        "execution_error", node_type="VAELoader", exception_message="no such file\n", traceback=["t"]
    )
    fake.answer("/history/p1", {"p1": entry})
    with pytest.raises(RunFailed) as caught:
        client.wait("p1", 1)
    assert str(caught.value) == "VAELoader: no such file"
    assert caught.value.details["traceback"] == ["t"]


def test_a_failure_without_a_message_shows_the_exception_type(client: Server, fake: Fake) -> None:
    entry = ended_badly(
        "execution_error", node_type="N", exception_message="", exception_type="AssertionError"
    )
    fake.answer("/history/p1", {"p1": entry})
    with pytest.raises(RunFailed, match="^N: AssertionError$"):
        client.wait("p1", 1)


def test_an_interrupted_run_is_no_failure(client: Server, fake: Fake) -> None:
    fake.answer("/history/p1", {"p1": ended_badly("execution_interrupted", node_type="KSampler")})
    with pytest.raises(RunInterrupted) as caught:
        client.wait("p1", 1)
    assert not isinstance(caught.value, RunFailed)
    assert caught.value.node_type == "KSampler"


def test_waiting_has_an_end(client: Server, fake: Fake) -> None:
    fake.answer("/history/p1", {})
    with pytest.raises(RunTimedOut, match="within 0 s"):
        client.wait("p1", 0.1)


def test_upload_sends_the_bytes_as_they_are(client: Server, fake: Fake, tmp_path: Path) -> None:
    picture = tmp_path / "a b.png"
    picture.write_bytes(b"\x89PNG\r\n--\r\n\x00")
    fake.answer("/upload/image", {"name": "a b.png", "subfolder": "s", "type": "input"})
    assert client.upload(picture, "s")["name"] == "a b.png"
    _, _, body, content_type = fake.requests[0]
    from email.parser import BytesParser

    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    parts = {
        part.get_param("name", header="content-disposition"): part
        for part in BytesParser().parsebytes(head + body).get_payload()
    }
    assert body.count(picture.read_bytes()) == 1
    assert parts["image"].get_filename() == "a b.png"
    assert parts["subfolder"].get_payload() == "s"
    assert parts["overwrite"].get_payload() == "true"


def test_fetch_and_output_path_agree_on_the_reference(client: Server, fake: Fake) -> None:
    image = {"filename": "x y.png", "subfolder": "sub", "type": "temp"}
    fake.answer("/view", b"bytes")
    assert client.fetch(image) == b"bytes"
    assert fake.requests[0][1] == "/view?filename=x+y.png&subfolder=sub&type=temp"
    assert client.output_path(image) == client.base / "temp" / "sub" / "x y.png"


def test_images_of_all_nodes_and_of_one() -> None:
    one, two = {"filename": "1.png"}, {"filename": "2.png"}
    entry = {"outputs": {"a": {"images": [one]}, "b": {"images": [two]}, "c": {"text": ["t"]}}}
    assert module.images(entry) == [one, two]
    assert module.images(entry, "b") == [two]
    assert module.images(entry, "c") == module.images(entry, "none") == []


def test_a_proxy_in_the_environment_is_not_asked(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = Server(PlainHost(tmp_path, Path(sys.executable)), tmp_path, tmp_path / "base", cpu=True)
    server.port = fake.http.server_address[1]
    fake.answer("/object_info", {"Node": {}})
    assert server.object_info() == {"Node": {}}


# Process --------------------------------------------------------------------------------------------------

FAKE_MAIN = """
import http.server, os, sys, time
arguments = sys.argv[1:]
value = lambda flag: arguments[arguments.index(flag) + 1]
print("arguments:", arguments, flush=True)
if os.environ.get("FAKE_FAIL"):
    for number in range(60):
        print("log line", number)
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(value("--port"))), Handler).serve_forever()
"""


@pytest.fixture
def host(comfyui: Path) -> PlainHost:
    (comfyui / "main.py").write_text(FAKE_MAIN, encoding="utf-8")
    (comfyui / "comfy" / "cli_args.py").write_text(
        'parser.add_argument("--disable-api-nodes")\nparser.add_argument("--database-url")\n',
        encoding="utf-8",
    )
    return PlainHost(comfyui, Path(sys.executable))


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    directory = tmp_path / "the pack"
    directory.mkdir()
    (directory / "__init__.py").write_text("MARK = 1\n", encoding="utf-8")
    return directory


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not runs(pid):
            return True
        time.sleep(0.05)
    return False


posix_only = pytest.mark.skipif(os.name == "nt", reason="looks at processes the POSIX way")


@posix_only
def test_a_server_starts_serves_and_leaves_no_process(host: PlainHost, pack: Path, tmp_path: Path) -> None:
    with Server(host, pack, tmp_path / "base", cpu=True, extra_args=["--extra"]) as server:
        pid = server.pid
        assert pid is not None and runs(pid) and server.alive()
        assert server.system_stats() == {}
        log = server.log_text()
        linked = server.base / "custom_nodes" / "ComfyUI-FramePainter"
        assert (linked / "__init__.py").read_text(encoding="utf-8") == "MARK = 1\n"
    assert gone(pid) and not server.alive()
    for flag in (
        "'--cpu'",
        "'--disable-api-nodes'",
        "'--database-url'",
        "'--extra'",
        "'--disable-auto-launch'",
    ):
        assert flag in log
    server.stop()


@posix_only
def test_an_error_in_the_block_stops_the_server(host: PlainHost, pack: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Server(host, pack, tmp_path / "base", cpu=False) as server:
        pid = server.pid
        assert "--cpu" not in server.command()
        raise ZeroDivisionError
    assert pid is not None and gone(pid)


@posix_only
@pytest.mark.parametrize("how", ["killed", "forgotten"])
def test_a_dying_parent_leaves_no_server(
    host: PlainHost, pack: Path, tmp_path: Path, repo: Path, how: str
) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(repo)!r})\n"
        "from pathlib import Path; from tools.hosting.server import Server, PlainHost; import time\n"
        f"host = PlainHost(Path({str(host.directory)!r}), Path(sys.executable))\n"
        f"server = Server(host, Path({str(pack)!r}), Path({str(tmp_path / 'base')!r}), cpu=True).start()\n"
        "print(server.pid, flush=True)\n"
    )
    script += "time.sleep(60)\n" if how == "killed" else ""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    if how == "killed":
        parent.send_signal(signal.SIGKILL)
    parent.wait(30)
    parent.stdout.close()
    assert gone(pid)


def test_a_server_that_dies_while_starting_shows_the_end_of_its_log(
    host: PlainHost, pack: Path, tmp_path: Path
) -> None:
    server = Server(host, pack, tmp_path / "base", cpu=True, environ={"FAKE_FAIL": "1"})
    with pytest.raises(StartFailed) as caught:
        server.start()
    text = str(caught.value)
    assert "exit code 3" in text
    assert "log line 59" in text and "log line 20" in text and "log line 19\n" not in text
    assert not server.alive()


@posix_only
def test_a_server_that_never_answers_is_given_up_and_ended(
    host: PlainHost, pack: Path, tmp_path: Path
) -> None:
    (host.directory / "main.py").write_text(
        "import time\nprint('stuck', flush=True)\ntime.sleep(60)", encoding="utf-8"
    )
    server = Server(host, pack, tmp_path / "base", cpu=True, start_timeout=1.5)
    with pytest.raises(StartFailed, match=r"(?s)within 2 s.*stuck"):
        server.start()
    pid = server.pid
    assert pid is not None and gone(pid)


def test_a_port_in_use_is_refused_before_anything_starts(host: PlainHost, pack: Path, tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert not module.port_is_free(port)
        with pytest.raises(StartFailed, match=f"Port {port} is in use"):
            Server(host, pack, tmp_path / "base", cpu=True, port=port).start()


@posix_only
def test_a_port_lost_to_another_process_is_replaced(
    host: PlainHost, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken, free = busy.getsockname()[1], module.free_port()
        ports = iter([taken, free])
        monkeypatch.setattr(module, "free_port", lambda: next(ports))
        # What listens on the taken port is no ComfyUI: it accepts and stays silent until it is closed.
        with Server(host, pack, tmp_path / "base", cpu=True) as server:
            assert server.port == free


def test_free_ports_can_be_bound() -> None:
    ports = {module.free_port() for _ in range(5)}
    assert all(module.port_is_free(port) for port in ports)


def test_flags_the_host_does_not_know_are_left_out(host: PlainHost, pack: Path, tmp_path: Path) -> None:
    (host.directory / "comfy" / "cli_args.py").unlink()
    command = Server(host, pack, tmp_path / "base", cpu=True).command()
    assert "--disable-api-nodes" not in command and "--database-url" not in command
    assert command[0] == sys.executable and command[1] == "main.py"


@posix_only
def test_further_models_folders_are_handed_over(host: PlainHost, pack: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "vae").mkdir(parents=True)
    with Server(host, pack, tmp_path / "base", cpu=True, model_dirs=[models, tmp_path / "missing"]) as server:
        assert "'--extra-model-paths-config'" in server.log_text()
        config = json.loads((server.base / "model_paths.yaml").read_text(encoding="utf-8"))
    assert config == {"folder_0": {"vae": str(models / "vae")}, "folder_1": {}}


def test_a_stale_link_to_another_pack_is_replaced_and_the_other_kept(pack: Path, tmp_path: Path) -> None:
    other, target = tmp_path / "other", tmp_path / "link"
    other.mkdir()
    (other / "keep").touch()
    module.link_pack(other, target)
    module.link_pack(pack, target)
    module.link_pack(pack, target)
    assert os.path.realpath(target) == os.path.realpath(pack)
    assert (other / "keep").exists()


def test_a_real_folder_in_the_packs_place_is_never_deleted(pack: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").touch()
    with pytest.raises(OSError):
        module.link_pack(pack, target)
    assert (target / "mine").exists()


def test_where_links_are_refused_the_pack_is_copied_without_hidden_folders(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pack / ".host").mkdir()
    (pack / ".host" / "huge").touch()

    def refuse(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(
        module.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, b"", b"")
    )
    target = tmp_path / "copy"
    module.link_pack(pack, target)
    (pack / "__init__.py").write_text("MARK = 2\n", encoding="utf-8")
    (pack / "new.py").touch()
    module.link_pack(pack, target)
    assert (target / "__init__.py").read_text(encoding="utf-8") == "MARK = 2\n"
    assert (target / "new.py").exists() and not (target / ".host").exists()


def test_the_environment_describes_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRAMEPAINTER_HOST", raising=False)
    with pytest.raises(module.ServerProblem, match="dev.py test"):
        Server.from_environment(tmp_path, tmp_path / "base")
    monkeypatch.setenv("FRAMEPAINTER_HOST", str(tmp_path))
    monkeypatch.setenv("FRAMEPAINTER_CPU", "0")
    server = Server.from_environment(tmp_path, tmp_path / "base", extra_args=["--x"])
    assert (server.host.directory, server.host.python) == (tmp_path, Path(sys.executable))
    assert server.cpu is False and server.extra_args == ["--x"]


def test_the_module_needs_nothing_but_the_standard_library(repo: Path) -> None:
    """It is loaded from its path, without the `tools` package, and run by bare interpreters."""
    script = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('alone', {str(repo / 'tools' / 'hosting' / 'server.py')!r})\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['alone'] = module\n"
        "spec.loader.exec_module(module); assert 'tools' not in sys.modules; print(module.Server.__name__)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True)
    assert done.stdout == "Server\n", done.stderr
