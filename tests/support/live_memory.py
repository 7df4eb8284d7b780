"""How many bytes of tensors are alive at once, told from the operations that make them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts storages made while it is active. `peak`: of all of them; `peak_inside`: of those made within `inside()`.

    What a kernel allocates for itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.peak_inside = 0
        self._alive: dict[int, list] = {}  # storage -> [bytes, tensors, made inside]
        self._depth = 0
        self._now = [0, 0]

    @contextmanager
    def inside(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._seen(tensor)
        return out

    def _seen(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = [storage.nbytes(), 0, self._depth > 0]
            self._add(self._alive[key], 1)
        self._alive[key][1] += 1
        weakref.finalize(tensor, self._gone, key)

    def _add(self, entry: list, sign: int) -> None:
        self._now[0] += sign * entry[0]
        self._now[1] += sign * entry[0] * entry[2]
        self.peak, self.peak_inside = max(self.peak, self._now[0]), max(self.peak_inside, self._now[1])

    def _gone(self, key: int) -> None:
        entry = self._alive.get(key)
        if entry is not None:
            entry[1] -= 1
            if entry[1] == 0:
                self._add(self._alive.pop(key), -1)
