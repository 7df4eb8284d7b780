"""Measured tables: one is rewritten, all else of its page stays, and every script that a page names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"<!-- table: (\S+?)[,\s][^>]*-->")


def tables() -> list[tuple[Path, str, str]]:
    return [(page, found[0], found[1]) for page in sorted((ROOT / "docs").glob("*.md"))
            for found in MARK.finditer(page.read_text(encoding="utf-8"))]


def test_one_table_of_several_is_replaced(tool, tmp_path):
    """Whatever stands behind it, other tables included, is as before."""
    pages = tool("pages")
    page = tmp_path / "page.md"
    for wanted, mark, _ in tables():
        page.write_bytes(wanted.read_bytes())
        before, after = wanted.read_text(encoding="utf-8").split(mark)
        pages.write_table(page, mark, "| new |")
        assert page.read_text(encoding="utf-8") == f"{before}{mark}\n\n| new |\n\n{pages.END}{after.split(pages.END, 1)[1]}"
    with pytest.raises(ValueError, match="needs the line '<!-- none -->' once"):
        pages.write_table(page, "<!-- none -->", "")


def test_the_scripts_are_there():
    assert len(tables()) > 8
    for page, mark, script in tables():
        assert (ROOT / script).is_file(), f"{page.name}: {mark}"
        assert "pages.write_table(" in (ROOT / script).read_text(encoding="utf-8"), f"{script} does not write {mark}"
