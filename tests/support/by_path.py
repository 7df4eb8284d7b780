"""Import files of the repository by their path: for scripts that run in a plain Python process, and for files outside packages."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def module(name: str, path: Path) -> ModuleType:
    """Import a file as a module of the given name, once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def tool(name: str) -> ModuleType:
    """A module of tools/ by its name, such as "making.random_model"."""
    return module(f"framepainter_tools_{name.replace('.', '_')}", ROOT.joinpath("tools", *name.split(".")).with_suffix(".py"))


def open_pack() -> Callable[[str], Any]:
    """The pack in the host that FRAMEPAINTER_HOST names, on the CPU, and `framepainter_tests` beside it; see tools/pack.py."""
    load = tool("pack").open_pack(Path(os.environ["FRAMEPAINTER_HOST"]), cpu=True)
    tool("pack").package("framepainter_tests", ROOT / "tests" / "support")
    return load
