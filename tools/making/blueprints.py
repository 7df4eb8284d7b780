"""Write subgraphs/*.json, one node for a whole edit each, from the templates in workflows/.

    python tools/making/blueprints.py

ComfyUI serves them as blueprints; their names are the nodes' names. Inside lies what the template has, its editor as well, with
its settings; what leads in or out becomes a socket, and the few widgets that matter are shown on the node's face.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from folding import Part, node_of, subgraph, unfold  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "subgraphs"
PICTURE, VIDEO = {(1, 0): "picture"}, {(1, 0): "video"}
KEPT = (3, 4, 5, 6, 7, 8, 9, 10, 16, 17)
SETTINGS = ((3, "model_file"), (4, "width"), (4, "height"), (6, "strength"), (8, "steps"), (8, "cfg"), (8, "seed"))
WORDS = ("source_text", "edited_text")  # not the chips: newer frontends then show them neither on the face nor inside
# Template -> its part that is a blueprint.
BLUEPRINTS = {part.name: (template, part) for template, part in (
    ("framepainter_small", Part(
        "FramePainter Sketch Edit", (3, 4, 5, 6, 7, 8, 9, 10), PICTURE, {(10, 0): "edited", (5, 1): "control"},
        ((5, "strokes"), *SETTINGS))),
    ("framepainter_drag", Part(
        "FramePainter Drag Edit", KEPT, PICTURE, {(17, 0): "edited", (16, 0): "mask"}, ((5, "points"), *SETTINGS))),
    ("framepainter_coarse", Part(
        "FramePainter Coarse Edit", KEPT, PICTURE, {(17, 0): "edited", (16, 0): "mask"}, ((5, "pieces"), *SETTINGS))),
    ("paint_and_propagate", Part(
        "FramePainter Paint and Propagate", (2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19), VIDEO,
        {(19, 0): "video", (18, 0): "frames", (15, 0): "first_frame"},
        ((6, "pieces"), (5, "model_file"), (17, "model_file"), (3, "length"), (18, "width"), (18, "height"), (18, "steps"),
         (18, "seed")))),
    ("i2vedit_long", Part(
        "FramePainter Edit Video by First Frame", (2, 4, 5, 6, 7), {**VIDEO, (3, 0): "edited"}, {(7, 0): "video", (6, 0): "frames"},
        ((4, "model_file"), (5, "length"), (6, "width"), (6, "height"), (6, "lora_steps"), (6, "matching"), (6, "steps"),
         (6, "seed")))),
    ("video_p2p_edit", Part(
        "FramePainter Edit Video by Words", (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14), VIDEO, {(14, 0): "video", (12, 0): "frames"},
        (*((4, word) for word in WORDS), (3, "model_file"), (8, "steps"), (9, "cross_steps"), (11, "cfg")))),
)}


def build(name: str) -> dict[str, Any]:
    """The file of a blueprint: a workflow that holds one subgraph node, as the page saves it."""
    template, part = BLUEPRINTS[name]
    flat = unfold(json.loads((ROOT / "workflows" / f"{template}.json").read_text(encoding="utf-8")))
    inner = subgraph(flat, part)
    return {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node_of(inner, part, 1, (0, 0, 420, 620))], "links": [],
            "version": 0.4, "definitions": {"subgraphs": [inner]}, "extra": {}}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in BLUEPRINTS:
        (FOLDER / f"{name}.json").write_text(json.dumps(build(name), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
