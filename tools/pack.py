"""Open the pack in a plain Python process, as ComfyUI would: the host on sys.path, the pack as a package of its own.

For tests, benches and tools that run in the host's Python. The repository's root must stay off sys.path: its `nodes/`
would shadow ComfyUI's `nodes.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
NAME = "framepainter_pack"


def package(name: str, folder: Path) -> ModuleType:
    """Import a folder as a package of the given name."""
    if name not in sys.modules:
        path = str(folder / "__init__.py")
        spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(folder)])
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def find_host(given: Path | None) -> Path:
    """ComfyUI's folder: the one given, the one that COMFYUI_DIR names, or the one in whose custom_nodes the pack lies.

    Raises:
        ValueError: none of them, or the first of them is no ComfyUI; the text says which and what to do.
    """
    home = Path(os.path.abspath(__file__)).parents[1]  # not resolved: the pack may be linked into custom_nodes
    around = home.parents[1] if home.parent.name == "custom_nodes" else None
    named = given or os.environ.get("COMFYUI_DIR") or around
    if not named:
        raise ValueError("no ComfyUI: give its folder as --host, set COMFYUI_DIR, or put the pack into its custom_nodes folder")
    if not (Path(named) / "comfy").is_dir():
        raise ValueError(f"--host: {named} is not ComfyUI's folder, it has no 'comfy' in it. Give its folder, or set COMFYUI_DIR.")
    return Path(named).resolve()


def open_pack(host: Path, cpu: bool = False):
    """Make ComfyUI and the pack importable.

    Args:
        host: ComfyUI's folder.
        cpu: keep everything on the CPU though there may be a GPU.

    Returns:
        A function that imports a module of the pack by its path, such as "host.weights.loading".
    """
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
    if str(host) not in sys.path:
        sys.path.insert(0, str(host))
    import torch
    from comfy.cli_args import args  # does not read the command line unless ComfyUI's own main asked for it

    if cpu or not torch.cuda.is_available():
        args.cpu = True
    torch.set_grad_enabled(False)
    package(NAME, ROOT)
    return lambda module: importlib.import_module(f"{NAME}.{module}")
