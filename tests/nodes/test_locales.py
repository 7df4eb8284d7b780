"""Names of nodes in other languages: none missing, none left over, nothing but what the tool writes."""

from __future__ import annotations

from pathlib import Path

import pytest

LOCALES = Path(__file__).parents[2] / "locales"


@pytest.mark.parametrize("language", ["en", "zh", "ja", "de"])
def test_files_are_what_the_tool_writes(pack, tool, language):
    """A new node or input needs its word in tools/making/words/<language>.json, then run tools/making/locales.py."""
    making = tool("making.locales")
    assert language in making.LANGUAGES
    found = (LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8")
    assert found == making.text(making.build(pack("nodes").NODES, language))


@pytest.mark.parametrize("language", ["zh", "ja", "de"])
def test_names_of_nodes_are_translated_and_differ(pack, tool, language):
    built = tool("making.locales").build(pack("nodes").NODES, language)
    names = [node["display_name"] for node in built.values()]
    assert len(set(names)) == len(names), "two nodes with one name"
    english = {n.define_schema().node_id: n.define_schema().display_name for n in pack("nodes").NODES}
    assert sum(built[node]["display_name"] == name for node, name in english.items()) <= 2
