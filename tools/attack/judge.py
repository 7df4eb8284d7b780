"""What counts as a fault of the pack: an error that was not written for users, an invalid result, an unwanted change."""

from __future__ import annotations

import ast
import functools
import hashlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(str(ROOT / tier) for tier in ("core", "host", "nodes"))
SHORTEST = 25  # characters of a message that can name an input, a value and a remedy


@functools.cache
def _raised_in(file: str) -> frozenset[int]:
    """The lines of a file that belong to a `raise` with an error in it."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return frozenset(n for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None
                     for n in range(node.lineno, node.end_lineno + 1))


def _innermost(trace: TracebackType | None) -> tuple[str, int] | None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)


def is_written(error: BaseException) -> bool:
    """Whether the pack itself raised an error: its innermost line is one of our `raise` statements. What torch, numpy or Python
    say about a value is no sentence for a user, whatever name is put in front of it."""
    place = _innermost(error.__traceback__)
    if place is None or not place[0].startswith(OURS) or place[1] not in _raised_in(place[0]):
        return False
    if place[0].endswith("report.py") and error.__cause__ is not None:  # another text for an error from elsewhere
        return is_written(error.__cause__)
    return True


def error_fault(error: BaseException, name: str) -> str | None:
    """What is wrong with an error of a node, None if it is as it should be.

    Args:
        name: with which its text has to begin.
    """
    text = str(error)
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return f"asks for too much memory: {text[:200]}"
    if not isinstance(error, ValueError | RuntimeError | OSError):
        return f"raw error {type(error).__name__}: {text[:200]}"
    if not is_written(error):
        return f"raw error {type(error).__name__}, not written by the pack: {text[:200]}"
    if not text.startswith(name):
        return f"the error does not name its node: {text[:200]}"
    if len(text) < len(name) + SHORTEST or any(mark in text for mark in (" object at 0x", "Traceback", "<class '", "tensor([")):
        return f"the error says nothing to a user: {text[:200]}"
    return None


def result_fault(kinds: list[tuple[str, str]], results: tuple, within: bool) -> str | None:
    """What is wrong with a node's results, None if they are as they should be.

    Args:
        kinds: (name, ComfyUI's type) of each output.
        within: the pictures that came in were in [0, 1], so those that come out have to be.
    """
    if len(results) != len(kinds):
        return f"{len(results)} results for {len(kinds)} outputs"
    for (name, kind), value in zip(kinds, results, strict=True):
        for item in value if isinstance(value, list) else [value]:
            fault = _fault(kind, item, within)
            if fault:
                return f"result '{name}' {fault}"
    return None


def _fault(kind: str, value: Any, within: bool) -> str | None:
    import torch

    if kind in ("IMAGE", "MASK"):
        dims = 4 if kind == "IMAGE" else 3
        if not isinstance(value, torch.Tensor) or value.ndim != dims or value.dtype != torch.float32:
            return f"is no {kind}: {getattr(value, 'dtype', type(value))} {list(getattr(value, 'shape', []))}"
        if kind == "IMAGE" and value.shape[-1] not in (3, 4):
            return f"has {value.shape[-1]} channels"
        if 0 in value.shape:
            return f"is empty: {list(value.shape)}"
        if not value.isfinite().all():
            return "is not finite"
        if within and (value.min() < -1e-3 or value.max() > 1 + 1e-3):
            return f"lies outside of [0, 1]: {float(value.min()):g} to {float(value.max()):g}"
    if kind == "STRING":
        if not isinstance(value, str):
            return f"is a {type(value).__name__}"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "cannot be sent to the page: it has halves of characters in it"
    if kind == "FLOAT" and not (isinstance(value, float | int) and value == value):
        return f"is {value}"
    return None


# ---- what a call may not change --------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """A digest over all tensors in a value, to tell whether a call changed its inputs."""
    out = hashlib.sha256()
    for tensor in _tensors(value):
        data = tensor.detach().cpu().contiguous()
        out.update(f"{tuple(data.shape)}{data.dtype}".encode())
        out.update(data.reshape(-1).view(_bytes()).numpy().tobytes() if data.numel() else b"")
    return out.hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8


def _tensors(value: Any) -> Iterator[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _tensors(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def global_state() -> dict[str, str]:
    """What of the process belongs to the user: generators of random numbers, torch's types and switches."""
    import numpy
    import torch

    return {
        "random": hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
        "numpy.random": hashlib.sha256(repr(numpy.random.get_state()).encode()).hexdigest(),
        "torch's generator": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "default type": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "gradients": f"{torch.is_grad_enabled()} {torch.is_inference_mode_enabled()}",
        "threads": str(torch.get_num_threads()),
        "deterministic": f"{torch.are_deterministic_algorithms_enabled()} {torch.backends.cudnn.benchmark} "
                         f"{torch.backends.cudnn.deterministic}",
        "matrix products": f"{torch.get_float32_matmul_precision()} {torch.backends.cuda.matmul.allow_tf32} "
                           f"{torch.backends.cudnn.allow_tf32}",
        "attention": f"{torch.backends.cuda.flash_sdp_enabled()} {torch.backends.cuda.math_sdp_enabled()}",
        "recursion": str(sys.getrecursionlimit()),
        "numpy errors": str(numpy.geterr()),
        "print options": str(numpy.get_printoptions()["precision"]),
    }
