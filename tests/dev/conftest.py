"""Makes the repository's `tools` package importable without putting the repository root on `sys.path`.

The root also holds a `nodes` package, which would hide ComfyUI's `nodes.py` from the rest of the suite.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def _register_tools() -> None:
    if "tools" in sys.modules:
        return
    folder = REPO / "tools"
    spec = importlib.util.spec_from_file_location(
        "tools", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tools"] = module
    spec.loader.exec_module(module)


_register_tools()


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """A folder that looks like a ComfyUI."""
    return make_comfyui(tmp_path / "ComfyUI")


def make_comfyui(directory: Path) -> Path:
    (directory / "comfy").mkdir(parents=True)
    (directory / "main.py").write_text("", encoding="utf-8")
    (directory / "nodes.py").write_text("", encoding="utf-8")
    (directory / "comfyui_version.py").write_text('__version__ = "9.8.7"\n', encoding="utf-8")
    return directory
