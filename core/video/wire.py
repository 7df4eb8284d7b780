"""Messages between the server and the process that decodes: four bytes of length, a JSON header of that length, and after it as
many bytes as the header's `bytes` says."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

import numpy as np

LONGEST_HEADER = 1 << 26


def send(stream: BinaryIO, header: dict[str, Any], payload: Any = b"") -> None:
    """Write one message.

    Args:
        payload: bytes, or anything contiguous with a buffer.
    """
    data = memoryview(payload).cast("B")
    text = json.dumps({**header, "bytes": len(data)}).encode()
    _write(stream, memoryview(struct.pack("<I", len(text)) + text))
    _write(stream, data)


def receive(stream: BinaryIO) -> tuple[dict[str, Any], np.ndarray] | None:
    """The next message, its payload as uint8; None where the stream ends, be it within one.

    Raises:
        ValueError: what comes is no message.
    """
    start = _read(stream, 4)
    if start is None:
        return None
    length = struct.unpack("<I", start)[0]
    if length > LONGEST_HEADER:
        raise ValueError("the header of a message is too long")
    text = _read(stream, length)
    if text is None:
        return None
    header = json.loads(text.tobytes())
    payload = _read(stream, int(header.pop("bytes")))
    return None if payload is None else (header, payload)


def _write(stream: BinaryIO, data: memoryview) -> None:
    while data:  # an unbuffered stream may take a part only
        data = data[stream.write(data):]


def _read(stream: BinaryIO, count: int) -> np.ndarray | None:
    data = np.empty(count, np.uint8)  # not filled with zeros first, as a bytearray is
    rest = memoryview(data)
    while rest:
        got = stream.readinto(rest)
        if not got:
            return None
        rest = rest[got:]
    return data
