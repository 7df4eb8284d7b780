"""Opens the pack for pytest in the host that FRAMEPAINTER_HOST names; `python dev.py test` sets it."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _tool(name: str):
    """A module of tools/, imported without putting the repository's root on sys.path."""
    full = f"framepainter_tools_{name.replace('.', '_')}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, ROOT.joinpath("tools", *name.split(".")).with_suffix(".py"))
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


if "FRAMEPAINTER_HOST" not in os.environ:
    raise pytest.UsageError("no ComfyUI to test on: run the suite with `python dev.py test`")
# The suite compares bits and 1e-5: that is the CPU's business, in this process and in the servers it starts.
os.environ["FRAMEPAINTER_CPU"] = "1"
# On a busy machine MKL picks other numbers of threads, and rounds otherwise: two equal runs would differ in bits.
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
_load = _tool("pack").open_pack(Path(os.environ["FRAMEPAINTER_HOST"]), cpu=True)
_tool("pack").package("framepainter_tests", ROOT / "tests" / "support")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs):
    """Workers begin with pytest where it is here; this process' sys.path reaches them later."""
    own, here = os.environ.get("PYTHONPATH"), str(Path(pytest.__file__).parents[1])
    for spec in specs:
        spec.env["PYTHONPATH"] = f"{own}{os.pathsep}{here}" if own else here


if "PYTEST_XDIST_WORKER" in os.environ:  # begun: what it starts has no business there
    os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"].rpartition(os.pathsep)[0]


# Two processes share the files: those of slow folders come first, so that both end on short ones and neither waits for the other.
SLOW_FIRST = ("server", "golden", "commands", "nodes", "host")


def pytest_collection_modifyitems(items):
    def place(item) -> int:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        return SLOW_FIRST.index(folder) if folder in SLOW_FIRST else len(SLOW_FIRST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def pack():
    """Import a module of the pack by its path: pack("host.weights.loading")."""
    return _load


@pytest.fixture(scope="session")
def tool():
    """Import a module of tools/ by name: tool("hosting.server")."""
    return _tool


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, pack):
    """A small single-file checkpoint with random weights, all parts inside."""
    return _tool("making.random_model").write(tmp_path_factory.mktemp("models") / "random.safetensors", pack)
