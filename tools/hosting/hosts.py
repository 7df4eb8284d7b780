"""Which ComfyUI to use, and which Python runs it. Only looks; installs and changes nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools.hosting.problem import Problem

Origin = Literal["environment", "installed", "pinned"]


@dataclass(frozen=True)
class Host:
    """A ComfyUI that can be started."""

    directory: Path
    python: Path
    version: str
    origin: Origin


@dataclass(frozen=True)
class PythonFacts:
    """What a Python interpreter says about itself. Empty versions mean: not installed in it."""

    version: str
    torch: str
    aiohttp: str
    pip: str

    @property
    def minor(self) -> str:
        """Its version without the patch level, for example 3.11."""
        return ".".join(self.version.split(".")[:2])

    def runs_comfyui(self) -> bool:
        """Whether the two packages without which no ComfyUI starts are there."""
        return bool(self.torch and self.aiohttp)


@dataclass(frozen=True)
class Choice:
    """Where the host comes from. A pinned one may still have to be set up."""

    origin: Origin
    directory: Path
    python: Path
    why: str


Inspect = Callable[[Path], "PythonFacts | None"]

# Reads package metadata only: importing torch would take seconds.
_FACTS_SCRIPT = """
import importlib.metadata, importlib.util, json, sys
def version(name):
    try:
        if importlib.util.find_spec(name) is None:
            return ""
        return importlib.metadata.version(name)
    except Exception:
        return "unknown" if importlib.util.find_spec(name) else ""
print(json.dumps({
    "version": "%d.%d.%d" % sys.version_info[:3],
    "torch": version("torch"), "aiohttp": version("aiohttp"), "pip": version("pip"),
}))
"""


def inspect_python(python: Path) -> PythonFacts | None:
    """Ask an interpreter what it is; None when it is missing or does not run."""
    try:
        answer = subprocess.run(
            [str(python), "-c", _FACTS_SCRIPT],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=python.parent,
            stdin=subprocess.DEVNULL,
        )
        return PythonFacts(**json.loads(answer.stdout.strip().splitlines()[-1]))
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError, TypeError):
        return None


def is_comfyui(directory: Path) -> bool:
    """Whether a folder is a ComfyUI."""
    return not missing_parts(directory)


def missing_parts(directory: Path) -> list[str]:
    """Which of the files that every ComfyUI has are not there."""
    wanted = {"main.py": Path.is_file, "nodes.py": Path.is_file, "comfy": Path.is_dir}
    return [name for name, there in wanted.items() if not there(directory / name)]


def comfyui_version(directory: Path) -> str:
    """The version a ComfyUI folder states, or "unknown" (very old ones state none)."""
    for name, pattern in (
        ("comfyui_version.py", r'__version__\s*=\s*"([^"]+)"'),
        ("pyproject.toml", r'(?m)^version\s*=\s*"([^"]+)"'),
    ):
        try:
            found = re.search(pattern, (directory / name).read_text(encoding="utf-8"))
        except OSError:
            continue
        if found:
            return found.group(1)
    return "unknown"


def venv_python(directory: Path) -> Path:
    """The interpreter of a virtual environment (or conda environment) folder."""
    if os.name == "nt":
        scripts = directory / "Scripts" / "python.exe"
        # Conda keeps python.exe at the top of the environment.
        return (
            scripts
            if scripts.exists() or not (directory / "python.exe").exists()
            else directory / "python.exe"
        )
    return directory / "bin" / "python"


def choose(
    repo: Path, environ: Mapping[str, str], pinned: Path, *, inspect: Inspect = inspect_python
) -> Choice:
    """Pick the host: COMFYUI_DIR, else the ComfyUI this pack is installed in, else the pinned one.

    `pinned` is the folder for the pinned host; its python is decided by who sets it up.
    """
    named = environ.get("COMFYUI_DIR", "").strip()
    if named:
        directory = _named_directory(named)
        python, why = _find_python(directory, environ, inspect)
        return Choice("environment", directory, python, f"COMFYUI_DIR is set; its Python: {why}")
    around = surrounding_comfyui(repo)
    if around is not None:
        python, why = _find_python(around, environ, inspect)
        return Choice(
            "installed", around, python, f"this pack lies in its custom_nodes folder; its Python: {why}"
        )
    return Choice(
        "pinned",
        pinned,
        Path(),
        "COMFYUI_DIR is not set and this pack is not inside a ComfyUI, so dev.py keeps a pinned one",
    )


def surrounding_comfyui(repo: Path) -> Path | None:
    """The ComfyUI in whose custom_nodes folder this repository lies, if any."""
    if repo.parent.name == "custom_nodes" and is_comfyui(repo.parent.parent):
        return repo.parent.parent
    return None


def _named_directory(named: str) -> Path:
    directory = Path(named).expanduser().absolute()
    if not directory.is_dir():
        raise Problem(f"COMFYUI_DIR names {directory}, which is not a folder. Correct it, or unset it.")
    missing = missing_parts(directory)
    if missing:
        raise Problem(
            f"COMFYUI_DIR names {directory}, which is not a ComfyUI folder: it has no {', '.join(missing)}. "
            "Name the folder that holds ComfyUI's main.py, or unset COMFYUI_DIR."
        )
    return directory


def _find_python(directory: Path, environ: Mapping[str, str], inspect: Inspect) -> tuple[Path, str]:
    named = environ.get("COMFYUI_PYTHON", "").strip()
    if named:
        return _named_python(named, inspect), "COMFYUI_PYTHON is set"
    tried = []
    for python, why in _python_candidates(directory, environ):
        if not python.exists():
            continue
        facts = inspect(python)
        if facts is not None and facts.runs_comfyui():
            return python, why
        tried.append(f"{python} ({'does not run' if facts is None else 'has no torch or no aiohttp'})")
    raise Problem(
        f"No Python was found that can run the ComfyUI in {directory}. Tried: "
        f"{'; '.join(tried) or 'nothing'}. "
        "Set COMFYUI_PYTHON to the interpreter with which you start this ComfyUI."
    )


def _named_python(named: str, inspect: Inspect) -> Path:
    # Not resolved: a virtual environment's python is a link, and following it would leave the environment.
    python = Path(named).expanduser().absolute()
    facts = inspect(python)
    if facts is None:
        raise Problem(
            f"COMFYUI_PYTHON names {python}, which does not run as Python. Correct it, or unset it."
        )
    if not facts.runs_comfyui():
        raise Problem(
            f"COMFYUI_PYTHON names {python}, which has no torch or no aiohttp, so it cannot run "
            "ComfyUI. Name the "
            "interpreter with which you start ComfyUI, or install ComfyUI's requirements.txt into it."
        )
    return python


def _python_candidates(directory: Path, environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    yield venv_python(directory / ".venv"), "the .venv folder in it"
    yield venv_python(directory / "venv"), "the venv folder in it"
    yield directory.parent / "python_embeded" / "python.exe", "the python_embeded folder beside it"
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if environ.get(name):
            yield venv_python(Path(environ[name])), f"the active environment ({name})"
    yield Path(sys.executable), "the Python that runs dev.py"
