"""A digest of values and tensors: the key under which a result is kept on the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .names import as_bytes


def digest(*parts: Any) -> str:
    """16 hex digits of anything: tensors by content, mappings by their items, files by their bytes, the rest by its text."""
    state = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            flat = part.detach().cpu().contiguous()
            state.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
            state.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        elif isinstance(part, Mapping):
            for name in sorted(part):
                state.update(f"/{name}=".encode())
                add(part[name])
        else:
            state.update(as_bytes(f"{part}\0"))

    for part in parts:
        add(part)
    return state.hexdigest()[:16]
