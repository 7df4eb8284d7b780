"""The page docs/reliability.md: each command writes its own part between two marks."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def stamp(host: Path) -> str:
    """Date and versions, for the line above a table."""
    project = re.search(r'^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    found = re.search(r'__version__ = "([^"]+)"', (host / "comfyui_version.py").read_text(encoding="utf-8"))
    comfyui = found[1] if found else "of an unknown version"
    return f"{datetime.date.today().isoformat()}, version {project}, ComfyUI {comfyui}, on the CPU"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; every column but the first is of numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write(command: str, text: str, page: Path = PAGE) -> None:
    """Put a command's part in its place. Raises ValueError if the page has no place for it."""
    begin, end = f"<!-- begin: {command} -->", f"<!-- end: {command} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no part between '{begin}' and '{end}'. Restore it from the repository.")
    page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")
