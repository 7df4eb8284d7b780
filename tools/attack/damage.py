"""Damaging valid bytes and texts: cut, flipped, nested, overwritten. Everything follows from the random generator."""

from __future__ import annotations

import io
import json
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

FOREIGN = (b"", b"\0" * 64, b"<!doctype html><html>Access to this file is restricted.</html>\n" * 20, b"{}", b"[]",
           b"\x89PNG\r\n\x1a\n", b"PK\x03\x04" + b"\0" * 40, b"\x80\x02cos\nsystem\nq\x00.", b"\xff" * 4096, "\ufeffnull".encode())
LEAVES = (None, True, "", "x" * 3000, "\ud800", "\0", 0, -1, 1.5, 1e308, float("nan"), float("inf"), 10**400, -(2**63), 2**31, [],
          {}, [[]], {"a": None}, "../../x", "NaN", [0] * 500)
DEEP = 20_000
# A number from this range as a length, shape or offset asks for more than there is.
LENGTHS = (0, 1, -1, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**64, -(2**63))


def damaged(data: bytes, dice: random.Random) -> bytes:
    """The bytes with one to three faults, most of them of their own format's kind where that is known."""
    own = _format(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        do = own if own is not None and dice.random() < 0.5 else dice.choice(PLAIN)
        try:
            data = do(data, dice)
        except Exception:  # what was damaged before is of no known format any more, and what reads it raises kinds of its own
            data = flipped(data, dice)
    return data


# ---- of any bytes ----------------------------------------------------------------------------------------------------


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[:dice.randrange(len(data) + 1)]


def flipped(data: bytes, dice: random.Random) -> bytes:
    out = bytearray(data)
    near = dice.choice((64, 4096, len(out)))  # headers matter most
    for _ in range(dice.choice((1, 1, 3, 20))):
        if out:
            out[dice.randrange(min(near, len(out)))] ^= 1 << dice.randrange(8)
    return bytes(out)


def refilled(data: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(data) + 1)
    count = min(dice.choice((1, 4, 8, 512, 5000)), len(data) - start)
    return data[:start] + (bytes(count) if dice.random() < 0.5 else dice.randbytes(count)) + data[start + count:]


def inserted(data: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(data) + 1)
    return data[:place] + dice.randbytes(dice.choice((1, 3, 8, 700))) + data[place:]


def repeated(data: bytes, dice: random.Random) -> bytes:
    start, end = sorted(dice.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end][:100_000] + data[end:]


def moved(data: bytes, dice: random.Random) -> bytes:
    a, b, c = sorted(dice.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def foreign(data: bytes, dice: random.Random) -> bytes:
    return dice.choice(FOREIGN)


PLAIN: tuple[Callable[[bytes, random.Random], bytes], ...] = (cut, flipped, refilled, inserted, repeated, moved, foreign)


# ---- of one format ---------------------------------------------------------------------------------------------------


def _format(data: bytes) -> Callable[[bytes, random.Random], bytes] | None:
    if data[:2] == b"PK":
        return _zip
    if data[257:262] == b"ustar":
        return _tar
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return _safetensors
    if data.lstrip()[:1] in (b"{", b"["):
        return _json_lines
    return None


def _zip(data: bytes, dice: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    chosen = dice.choice(sorted(parts))
    parts[chosen] = _pickle(parts[chosen], dice) if chosen.endswith(".pkl") else damaged(parts[chosen], dice)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


class _Command:
    """What a hostile pickle does when it is read by something that runs it: it leaves a file."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, ("a_pickle_ran",)


def _pickle(data: bytes, dice: random.Random) -> bytes:
    if dice.random() < 0.3:
        return pickle.dumps(dice.choice((_Command(), [1, 2], {"a": _Command()}, "text", None)), protocol=2)
    return damaged(data, dice)


def _tar(data: bytes, dice: random.Random) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        parts = [(m, archive.extractfile(m).read()) for m in archive.getmembers() if m.isfile()]
    number = dice.randrange(len(parts))
    kind = dice.choice(("content", "content", "name", "drop", "twice", "type"))
    member, content = parts[number]
    if kind == "content":
        parts[number] = member, damaged(content, dice)
    elif kind == "name":
        member.name = dice.choice(("", "/etc/x", "../../x.json", "a", "x" * 90, "\u2028.json", "..", member.name + ".x"))
    elif kind == "type":
        member.type = dice.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, b"9"))
        member.linkname = "../../../x"
    parts = [p for i, p in enumerate(parts) if kind != "drop" or i != number] + parts[:kind == "twice"]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member, content in parts:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return out.getvalue()


def _safetensors(data: bytes, dice: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    text = json.dumps(mutated(header, dice), default=str).encode(errors="replace")
    stated = len(text) if dice.random() < 0.9 else dice.choice(LENGTHS) % 2**64
    return stated.to_bytes(8, "little") + text + data[8 + size:]


def _json_lines(data: bytes, dice: random.Random) -> bytes:
    lines = data.decode().splitlines()
    try:
        return mutated_json(data.decode(), dice).encode(errors="surrogatepass")
    except ValueError:  # several values, one a line
        number = dice.randrange(len(lines))
        lines[number] = mutated_json(lines[number], dice)
        if dice.random() < 0.3:
            dice.shuffle(lines)
        return "\n".join(lines).encode(errors="surrogatepass")


# ---- of JSON ---------------------------------------------------------------------------------------------------------


def mutated_json(text: str, dice: random.Random) -> str:
    """A JSON text with other values in it, or nested deeper than Python follows. Raises ValueError for what is no JSON."""
    value = json.loads(text)
    if dice.random() < 0.03:
        return "[" * DEEP + "]" * DEEP
    for _ in range(dice.choice((1, 1, 2, 4))):
        value = mutated(value, dice)
    out = json.dumps(value)
    return out.replace("Infinity", "1e999") if dice.random() < 0.2 else out


def mutated(value: Any, dice: random.Random) -> Any:
    """A JSON value with one of its parts exchanged, left out or doubled."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(sorted(value))
        out = dict(value)
        kind = dice.random()
        if kind < 0.1:
            del out[key]
        elif kind < 0.2:
            out[dice.choice(("", "__proto__", "x" * 200, key.upper(), "version"))] = out[key]
        else:
            out[key] = mutated(out[key], dice)
        return out
    if isinstance(value, list) and value and dice.random() < 0.9:
        place = dice.randrange(len(value))
        kind = dice.random()
        if kind < 0.15:
            return value[:place] + value[place + 1:]
        if kind < 0.3:
            return value[:place] + [value[place]] * dice.choice((2, 30)) + value[place:]
        return value[:place] + [mutated(value[place], dice)] + value[place + 1:]
    if isinstance(value, bool | None | str | list | dict) or abs(value) > 2**64 or dice.random() < 0.4:
        return dice.choice(LEAVES)
    return dice.choice((-value, value * 1e6, value + 0.5, dice.uniform(-100, 100), dice.choice(LENGTHS), 0))
