"""The text that goes to the registry with a version, and refusals before anything is published."""

from __future__ import annotations

import pytest

from tools.release_notes import main, notes, version

CHANGELOG = """# Changelog

## [0.10.0] - unreleased

### Added

- Not yet.

## [0.2.0] - 2026-02-03

### Fixed

- One thing.

## [0.1.0] - 2026-01-31

## [0.0.1] - 2025-12-24

- The first.
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG, encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "framepainter"\nversion = "0.2.0"\n', encoding="utf-8")
    return tmp_path


def test_one_section_alone():
    assert notes(CHANGELOG, "0.2.0") == "### Fixed\n\n- One thing."
    assert notes(CHANGELOG, "0.0.1") == "- The first."


@pytest.mark.parametrize("release, said", [("0.10.0", "dates 0.10.0 'unreleased'"), ("0.1.0", "says nothing about 0.1.0"),
                                           ("0.3.0", "has no section"), ("0.2", "has no section"), ("0.2.", "has no section")])
def test_what_is_not_ready(release, said):
    with pytest.raises(ValueError, match=said):
        notes(CHANGELOG, release)


def test_the_tag_must_be_the_version_s(root, capsys):
    assert main(["--tag", "v0.2.0"], root) == 0
    assert capsys.readouterr().out == "### Fixed\n\n- One thing.\n"
    assert main(["--tag", "v0.2.1"], root) == 1
    assert "whose tag would be v0.2.0" in capsys.readouterr().err


def test_this_changelog_has_a_section_for_this_version(repo):
    text = (repo / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{version((repo / 'pyproject.toml').read_text(encoding='utf-8'))}] - " in text
