"""A digest of values and tensors: the key under which a result is kept on the disk."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
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


# ---- large tensors ---------------------------------------------------------------------------------------------------

_ROW = 4096         # words a sum: large enough for few sums, small enough that the factors stay in the cache
_PART = 1 << 18     # values at a time


@functools.cache
def _factors(device: torch.device) -> Tensor:
    """_ROW odd 64 bit numbers, the same everywhere."""
    drawn = np.frombuffer(hashlib.shake_256(b"framepainter").digest(8 * _ROW), "<i8").copy()
    return torch.from_numpy(drawn | 1).to(device)


def checksum(values: Tensor) -> bytes:
    """A digest of every value of a tensor, faster than hashing as many bytes, where it lies.

    Floats count as float32 (float64 as it is), so that equal values of any width give the same. Their bits are taken as 32 bit
    words, each times an odd 64 bit number of its own; the products are summed modulo 2^64 in rows, and count and sums are hashed.
    One word that changes always changes its row's sum, as an odd number has an inverse modulo 2^64. Several do so but for odds of
    2^-32 at worst, where the signs of values change and nothing else, and of about 2^-60 in general. It protects against mistakes,
    not against somebody who makes two models with one checksum on purpose.
    """
    if not values.is_floating_point():
        values = values.detach().cpu().contiguous()
        return hashlib.sha256(values.reshape(-1).view(torch.uint8).numpy()).digest()
    flat = values.detach().reshape(-1)
    if flat.device.type not in ("cpu", "cuda"):  # whose 64 bit arithmetic is complete
        flat = flat.cpu()
    state, factors = hashlib.sha256(f"{len(flat)} values".encode()), _factors(flat.device)
    for part in flat.split(_PART):
        part = part if part.dtype == torch.float64 else part.float()
        words = part.contiguous().view(torch.int32).long()
        full = len(words) // _ROW * _ROW
        rows, rest = words[:full].unflatten(0, (-1, _ROW)), words[full:]
        rows *= factors
        sums = torch.cat([rows.sum(1), (rest * factors[:len(rest)]).sum(0, True)])
        state.update(sums.cpu().numpy().tobytes())
    return state.digest()
