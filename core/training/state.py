"""A training run's state on disk: complete or absent, and without pickles.

    <folder>/state-000250/        parameters, optimiser moments and averages as safetensors, and state.json
    <folder>/stats.jsonl          one line a step that was logged

A state is written under another name and renamed when it is complete, so a killed run leaves the last complete one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import atomic
from ..parsing import json_object

_NAME = re.compile(r"state-([0-9]{1,18})$")
FORMAT = 1
LARGEST_STEP, LARGEST_LOSS = 10**12, 1e100  # what a log may say beyond is damage, and could not be drawn


class StateError(ValueError):
    """A saved state cannot be resumed. The text names it, and what differs."""


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any], keep: int = 2) -> Path:
    """Write a state, and keep only the newest `keep` ones.

    Args:
        tensors: everything that a continued run needs, by name.
        info: what must agree to continue (settings), and what is good to know; JSON.

    Raises:
        WriteError: it cannot be written (full disk, read-only folder); the states before it stay.
    """
    final = folder / f"state-{step:06d}"
    size = sum(t.nbytes for t in tensors.values())
    with atomic.replacing(final, remedy=f"A state takes {size / 1e6:.0f} MB; make room, or train into another folder. The states "
                                        "before this one are kept, and the run continues from them.") as partial:
        partial.mkdir()
        save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()},
                  str(partial / "tensors.safetensors"))
        text = json.dumps({"format": FORMAT, "step": step, **info}, indent=1)
        (partial / "state.json").write_text(text, encoding="utf-8")
    for old in states(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def states(folder: Path) -> list[Path]:
    """The whole states in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if _NAME.search(p.name) and (p / "state.json").is_file()]
    return sorted(found, key=lambda p: int(_NAME.search(p.name)[1]))


def load_state(path: Path, expected: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state.

    Args:
        expected: settings that must equal those it was saved with; a setting that an older state does not contain is not compared.

    Raises:
        StateError: it is damaged, of another format, or was made with other settings; the text gives both values.
    """
    try:
        info = json_object((path / "state.json").read_bytes())
        tensors = load_file(str(path / "tensors.safetensors"))
    except Exception as error:  # safetensors raises its own type, JSON and the disk theirs
        raise StateError(f"'{path}' cannot be read ({error}). Delete this folder to continue from the state before it."
                         ) from None
    if info.get("format") != FORMAT:
        raise StateError(f"'{path}' has format {info.get('format')}, this version reads {FORMAT}.")
    for name, value in expected.items():
        if name in info and info[name] != value:
            raise StateError(f"'{path}' was made with {name} = {info[name]}, now it is {value}. "
                             "Set it back, or train into another folder.")
    return tensors, info


def read_log(path: Path) -> list[dict[str, Any]]:
    """The steps in a log: each with `step` and `losses` by name. Lines that cannot be read are passed over."""
    return [entry for _, entry in _lines(path)]


def trim_log(path: Path, step: int) -> None:
    """Drop the lines of a log beyond a step, as a continued run will write them again; damaged lines too."""
    if path.is_file():
        atomic.write_text(path, "".join(line + "\n" for line, entry in _lines(path) if entry["step"] <= step))


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A log's sound lines and what they say. A killed run or a full disk may leave a torn one."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json_object(line)
            step, losses = entry["step"], entry["losses"].values()
            sound = isinstance(step, int) and 0 <= step < LARGEST_STEP and all(_is_loss(v) for v in losses)
        except (ValueError, LookupError, TypeError, AttributeError):
            continue
        if sound:
            yield line, entry


def _is_loss(value: Any) -> bool:
    """A number; NaN and infinities too, as a step may have given them."""
    return isinstance(value, float) and not LARGEST_LOSS < abs(value) < float("inf") or (
        isinstance(value, int) and abs(value) <= LARGEST_LOSS)
