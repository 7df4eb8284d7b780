"""Write locales/<language>/nodeDefs.json, which ComfyUI's page reads names and explanations of nodes from.

    <ComfyUI's python> tools/making/locales.py COMFYUI_FOLDER

English comes from the nodes themselves. The other languages have names of nodes, inputs and outputs, from words/<language>.json;
where a language has no text of its own, as for the explanations, the page shows the English one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORDS = Path(__file__).with_name("words")
LANGUAGES = ("en", *sorted(p.stem for p in WORDS.glob("*.json")))


def build(nodes: list[Any], language: str) -> dict[str, Any]:
    """The file's content: node id -> names and, in English, explanations.

    Args:
        nodes: the pack's node classes.

    Raises:
        KeyError: a language lacks words, or has words that no node uses; the argument names them.
    """
    if language == "en":
        return {schema.node_id: _english(schema) for schema in (node.define_schema() for node in nodes)}
    words = json.loads((WORDS / f"{language}.json").read_text(encoding="utf-8"))
    schemas = [node.define_schema() for node in nodes]
    wanted = {i.id for s in schemas for i in s.inputs} | {o.display_name for s in schemas for o in s.outputs}
    lacking = sorted({s.node_id for s in schemas} - words["nodes"].keys()) + sorted(wanted - words["names"].keys())
    if lacking:
        raise KeyError(f"words/{language}.json lacks {', '.join(lacking)}")
    out = {schema.node_id: _translated(schema, words) for schema in schemas}
    extra = (words["nodes"].keys() - out.keys()) | (words["names"].keys() - wanted)
    if extra:
        raise KeyError(f"left over in {language}: {', '.join(sorted(extra))}")
    return out


def _english(schema: Any) -> dict[str, Any]:
    return {"display_name": schema.display_name, "description": schema.description,
            "inputs": {i.id: {"name": i.id, "tooltip": i.tooltip} for i in schema.inputs},
            "outputs": {str(n): {"name": o.display_name, "tooltip": o.tooltip} for n, o in enumerate(schema.outputs)}}


def _translated(schema: Any, words: dict[str, dict[str, str]]) -> dict[str, Any]:
    return {"display_name": words["nodes"][schema.node_id],
            "inputs": {i.id: {"name": words["names"][i.id]} for i in schema.inputs},
            "outputs": {str(n): {"name": words["names"][o.display_name]} for n, o in enumerate(schema.outputs)}}


def text(content: dict[str, Any]) -> str:
    """As the files hold it."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tools.pack import open_pack

    nodes = open_pack(Path(sys.argv[1]), cpu=True)("nodes").NODES
    for language in LANGUAGES:
        folder = ROOT / "locales" / language
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "nodeDefs.json").write_text(text(build(nodes, language)), encoding="utf-8")


if __name__ == "__main__":
    main()
