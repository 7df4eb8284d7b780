"""Names that users give: how to show them in messages, and which of them can be file names."""

from __future__ import annotations

import re
from pathlib import Path

_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and halves of characters
# A folder's name that every system can write.
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,79}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # names that Windows keeps for itself


def printable(text: Path | str) -> str:
    """A text for a message, with characters that cannot be shown or logged written as escapes."""
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def as_bytes(text: str) -> bytes:
    """A text's bytes for a digest. A file name may be invalid text, with lone surrogates in it."""
    return text.encode("utf-8", "surrogatepass")


def is_folder_name(name: str) -> bool:
    """Whether every system can write a folder of that name: up to 80 letters, digits, _, -, dots and spaces inside."""
    return bool(_FOLDER.fullmatch(name)) and not name.endswith((".", " ")) and ".." not in name and not _DEVICES.fullmatch(name)
