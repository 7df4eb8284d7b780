"""Look into a safetensors file without reading its tensors, and say exactly what is wrong with a broken one.

Format: 8 bytes little-endian header length, a JSON object name -> {dtype, shape, data_offsets}, then the data.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from ..parsing import json_object

_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
          "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}
_LARGEST_HEADER = 24 << 20
_MOST_TENSORS = 100_000  # no model of any kind has as many; reading the names of millions would take minutes


class Entry(NamedTuple):
    """dtype as safetensors spells it (F32, F16, BF16, ...); shape; size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class Header(NamedTuple):
    """tensors: name -> Entry, in file order; metadata: the free text fields of the file."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


class BrokenFile(ValueError):
    """The file is not a complete safetensors file. The text says what was expected and what was found."""


def read_header(path: str | Path) -> Header:
    """Read names, shapes and dtypes of a safetensors file.

    Raises:
        FileNotFoundError: no such file.
        BrokenFile: not safetensors, truncated, or a header that contradicts itself.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        if start[8:] == b"{" and length > _LARGEST_HEADER and length < size:
            raise BrokenFile(f"its header has {length / 1e6:.0f} MB, at most {_LARGEST_HEADER / 1e6:.0f} are read")
        if start[8:] != b"{" or not 2 <= length <= _LARGEST_HEADER:
            kind = _guess(start)
            raise BrokenFile(f"expected a safetensors file, found {kind} ({size} bytes)")
        if size < 8 + length:
            raise BrokenFile(f"the file ends inside its header: {8 + length} bytes expected there, {size} found")
        raw = start[8:] + file.read(length - 1)
    count = raw.count(b'"data_offsets"')
    if count > _MOST_TENSORS:
        raise BrokenFile(f"its header names {count} tensors, at most {_MOST_TENSORS} are read")
    try:
        table = json_object(raw)
        metadata = table.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata values are not text")
        tensors = {name: _entry(name, entry) for name, entry in table.items()}
        end = max((entry["data_offsets"][1] for entry in table.values()), default=0)
    except BrokenFile:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BrokenFile(f"the safetensors header cannot be read ({type(error).__name__}: {error})") from None
    if size != 8 + length + end:
        what = "cut off (an interrupted download?)" if size < 8 + length + end else "longer than its header says"
        raise BrokenFile(f"the file is {what}: {8 + length + end} bytes expected, {size} found")
    return Header(tensors, metadata)


def _entry(name: str, entry: dict[str, Any]) -> Entry:
    """A tensor as the header's object for it says."""
    (first, last), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
    if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in (first, last, *shape)):
        raise ValueError(f"'{name}' has no valid type, shape or offsets")
    if dtype in _BYTES and last - first != math.prod(shape) * _BYTES[dtype] or last < first:
        raise BrokenFile(f"the header gives '{name}' {last - first} bytes for shape {list(shape)}")
    return Entry(dtype, shape, last - first)


def _guess(start: bytes) -> str:
    if not start:
        return "an empty file"
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return "a PyTorch pickle (.pt, .bin, .ckpt), which this pack does not open"
    if start[:1] in (b"<", b"v"):
        return "text, such as a web page or a Git LFS pointer"
    return "something else"
