"""Reading what torch.save wrote, tensors only: no pickled code runs, and no small file becomes a large one."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SLACK = 1 << 20  # bytes that an archive may unpack to beyond its own size


def load_tensors(path: Path) -> Any:
    """The value in a file of torch.save: tensors, and lists and dictionaries of them.

    Raises:
        ValueError: it cannot be read, holds other things, or would take more memory than the file has bytes; the text says why.
    """
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > size + SLACK:
                raise ValueError(f"it would unpack from {size} to {unpacked} bytes")
        found = torch.load(path, map_location="cpu", weights_only=True)
        large = sum(t.numel() * t.element_size() for t in _tensors(found))
        if large > size + SLACK:
            raise ValueError(f"its tensors claim {large} bytes, the file has {size}")
        return found
    except Exception as error:  # torch, zip and pickle raise several kinds, all of which mean: not such a file
        lines = str(error).strip().splitlines()
        raise ValueError(lines[0][:160] if lines else type(error).__name__) from None


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
