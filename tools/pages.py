"""Measured tables in the pages of docs/: each stands between a mark that names its script and an end."""

from __future__ import annotations

from pathlib import Path

END = "<!-- end of table -->"


def write_table(page: Path, mark: str, text: str) -> None:
    """Replace the table behind a mark; all else of the page stays.

    Raises:
        ValueError: the page has the mark not once, or no end behind it.
    """
    parts = page.read_text(encoding="utf-8").split(mark)
    if len(parts) != 2 or END not in parts[1]:
        raise ValueError(f"{page} needs the line '{mark}' once, and '{END}' behind it")
    page.write_text(f"{parts[0]}{mark}\n\n{text}\n\n{END}{parts[1].split(END, 1)[1]}", encoding="utf-8")
