"""Golden cases: inputs and outputs of the published reference code on small random networks (see golden/README)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .by_path import module

SYSTEMS = ("framepainter", "i2vedit", "videop2p")
OWN = Path(__file__).resolve().parents[1] / "golden"
WEIGHTS = module("framepainter_golden_weights", OWN / "weights.py")


def system_folder(system: str) -> Path:
    """Where a system's cases are: in the folder that GOLDEN_CASES names if that has the system, else in the repo."""
    given = os.environ.get("GOLDEN_CASES")
    if given:
        if not Path(given).is_dir():
            raise FileNotFoundError(f"GOLDEN_CASES names {given}, which is no folder")
        if not any((Path(given) / known).is_dir() for known in SYSTEMS):
            raise FileNotFoundError(f"GOLDEN_CASES names {given}, which holds no cases: none of {', '.join(SYSTEMS)} in it")
        if (Path(given) / system).is_dir():
            return Path(given) / system
    return OWN / system


class Case:
    """One case folder: `info` is case.json, `tensors` the data."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.info: dict[str, Any] = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        self.kind: str = self.info["kind"]
        self.tensors: dict[str, Tensor] = load_file(str(folder / "tensors.safetensors"))

    def __repr__(self) -> str:
        return self.folder.name

    def network(self, name: str) -> dict[str, Tensor]:
        """The parameters of one of the case's networks, under the released names."""
        given = self.info["networks"][name]["manifest"]  # from the case's folder, or from the one of all cases
        path = next(p for p in (self.folder / given, self.folder.parent / given) if p.is_file())
        manifest = WEIGHTS.load_manifest(path)
        values = WEIGHTS.state_dict(manifest, self.info["salt"])
        return {key: torch.from_numpy(value.copy()) for key, value in values.items()}

    def of_run(self, run: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors of one of the case's runs, without its suffix."""
        suffix = run["tensors_suffix"]
        return {name.removesuffix(suffix): t for name, t in self.tensors.items() if name.endswith(suffix)}

    def config(self, name: str) -> dict[str, Any]:
        return self.info["networks"][name]["config"]


def cases(system: str) -> list[Case]:
    """All cases of a system.

    Raises:
        FileNotFoundError: none there.
    """
    folder = system_folder(system)
    found = [Case(p.parent) for p in sorted(folder.glob("*/case.json"))]
    if not found:
        raise FileNotFoundError(f"no golden cases in {folder}")
    return found


def of_kind(system: str, kind: str) -> list[Case]:
    """A system's cases of one kind, for `parametrize`; a folder of other cases (GOLDEN_CASES) may have none, or several."""
    return [c for c in cases(system) if c.kind == kind]


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 error ||a - b|| / ||b|| of a against the expected b."""
    assert a.shape == b.shape, f"{tuple(a.shape)} against expected {tuple(b.shape)}"
    return float((a.double() - b.double()).norm() / b.double().norm())
