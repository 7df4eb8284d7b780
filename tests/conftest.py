"""Loads the pack into pytest as ComfyUI would: the host on sys.path, the pack as a package of its own.

The repository's root must not be on sys.path: its `nodes/` would shadow ComfyUI's `nodes.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOST = Path(os.environ["FRAMEPAINTER_HOST"]) if "FRAMEPAINTER_HOST" in os.environ else None
PACK = "framepainter_pack"


def _package(name: str, folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _prepare() -> None:
    if HOST is None:
        raise pytest.UsageError("no ComfyUI to test on: run the suite with `python dev.py test`")
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
    sys.path.insert(0, str(HOST))
    import torch

    import comfy.options  # noqa: F401  before cli_args: keeps the host from reading pytest's command line
    from comfy.cli_args import args

    if not torch.cuda.is_available():
        args.cpu = True
    torch.set_grad_enabled(False)
    _package(PACK, ROOT)
    _package("framepainter_tests", ROOT / "tests" / "support")


_prepare()


@pytest.fixture(scope="session")
def pack():
    """Import a module of the pack by its path: pack("host.loading")."""
    return lambda name: importlib.import_module(f"{PACK}.{name}")
