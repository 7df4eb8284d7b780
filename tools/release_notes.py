#!/usr/bin/env python3
"""Print what the changelog says about the version in pyproject.toml: the text that goes to the registry with it.

    python tools/release_notes.py --tag v0.1.0
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def version(project: str) -> str:
    """The version that a pyproject.toml states."""
    return re.search(r'^version = "([^"]+)"$', project, re.M)[1]


def notes(changelog: str, release: str) -> str:
    """The entries of a release, without its heading.

    Raises:
        ValueError: the changelog has no such release, it has no date yet, or nothing is said about it.
    """
    found = re.search(rf"^## \[{re.escape(release)}\] - (.*)\n([\s\S]*?)(?=^## \[|\Z)", changelog, re.M)
    if not found:
        raise ValueError(f"CHANGELOG.md has no section '## [{release}] - DATE'. Add it, or correct the version in pyproject.toml.")
    date, text = found[1].strip(), found[2].strip()
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
        raise ValueError(f"CHANGELOG.md dates {release} '{date}'. Write the day of the release, such as 2026-01-31.")
    if not text:
        raise ValueError(f"CHANGELOG.md says nothing about {release}. Write what has changed.")
    return text


def main(arguments: list[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tag", help="the tag that is released, which must be that of the version")
    tag = parser.parse_args(arguments).tag
    release = version((root / "pyproject.toml").read_text(encoding="utf-8"))
    try:
        if tag not in (None, f"v{release}"):
            raise ValueError(f"The tag is {tag}, but pyproject.toml has version {release}, whose tag would be v{release}.")
        print(notes((root / "CHANGELOG.md").read_text(encoding="utf-8"), release))
    except ValueError as error:
        print(f"release_notes.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
