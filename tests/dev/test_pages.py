"""Measured tables: one is rewritten, all else of its page stays, and the scripts are there. Links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"<!-- table: (\S+?)[,\s][^>]*-->")


def tables() -> list[tuple[Path, str, str]]:
    pages = (ROOT / "README.md", ROOT / "models" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    return [(page, found[0], found[1]) for page in pages for found in MARK.finditer(page.read_text(encoding="utf-8"))]


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


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings: lower case, spaces as hyphens, other signs dropped, equal ones numbered."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        number = 1
        unique = name
        while unique in found:
            unique, number = f"{name}-{number}", number + 1
        found.add(unique)
    return found


def test_links_inside_the_repository_lead_somewhere():
    pages = [p for p in ROOT.rglob("*.md") if not {".host", "_artefacts", "node_modules"} & set(p.relative_to(ROOT).parts)]
    assert len(pages) > 60
    broken = []
    for page in pages:
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^()\s]+)\)", text):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken
