"""Write subgraphs/*.json, one node for a whole edit each, from the canvas forms of the example workflows.

    python tools/making/blueprints.py

ComfyUI serves them as blueprints; their names are the nodes' names. Inside lies what the example has, with its settings; what
leads in or out becomes a socket, and the few widgets that matter are shown on the node's face.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "subgraphs"
INPUT, OUTPUT = -10, -20  # the page's own ids of a subgraph's two sides


class Blueprint(NamedTuple):
    """workflow: the example.  nodes: ids of what lies inside.  sockets: name of an input -> (node, input) pairs that it feeds.
    outputs: name -> (node, slot).  face: (node, widget) shown on the node."""

    workflow: str
    nodes: tuple[int, ...]
    sockets: dict[str, tuple[tuple[int, str], ...]]
    outputs: dict[str, tuple[int, int]]
    face: tuple[tuple[int, str], ...]


KEPT = (3, 4, 5, 6, 7, 8, 9, 10, 16, 17)
KEPT_SOCKETS = {"picture": ((4, "image"), (5, "picture"), (16, "picture"), (17, "original"))}
SETTINGS = ((3, "model_file"), (4, "width"), (4, "height"), (6, "strength"), (8, "steps"), (8, "cfg"), (8, "seed"))
WORDS = ("source_text", "edited_text", "words")
BLUEPRINTS = {
    "FramePainter Sketch Edit": Blueprint(
        "framepainter_small", (3, 4, 5, 6, 7, 8, 9, 10), {"picture": ((4, "image"), (5, "picture"), (10, "original"))},
        {"edited": (10, 0), "control": (5, 1)}, ((5, "strokes"), *SETTINGS)),
    "FramePainter Drag Edit": Blueprint(
        "framepainter_drag", KEPT, KEPT_SOCKETS, {"edited": (17, 0), "mask": (16, 0)}, ((5, "points"), *SETTINGS)),
    "FramePainter Coarse Edit": Blueprint(
        "framepainter_coarse", KEPT, KEPT_SOCKETS, {"edited": (17, 0), "mask": (16, 0)}, ((5, "pieces"), *SETTINGS)),
    "FramePainter Paint and Propagate": Blueprint(
        "paint_and_propagate", (2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19), {"video": ((2, "video"),)},
        {"video": (19, 0), "frames": (18, 0), "first_frame": (15, 0)},
        ((6, "pieces"), (5, "model_file"), (17, "model_file"), (3, "length"), (18, "width"), (18, "height"), (18, "steps"),
         (18, "seed"))),
    "FramePainter Edit Video by First Frame": Blueprint(
        "i2vedit_long", (2, 4, 5, 6, 7), {"video": ((2, "video"),), "edited": ((6, "edited"),)},
        {"video": (7, 0), "frames": (6, 0)},
        ((4, "model_file"), (5, "length"), (6, "width"), (6, "height"), (6, "lora_steps"), (6, "matching"), (6, "steps"),
         (6, "seed"))),
    "FramePainter Edit Video by Words": Blueprint(
        "video_p2p_edit", (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14), {"video": ((2, "video"),)},
        {"video": (14, 0), "frames": (12, 0)},
        (*((4, word) for word in WORDS), (3, "model_file"), (8, "steps"), (9, "cross_steps"), (11, "cfg"))),
}


def build(name: str) -> dict[str, Any]:
    """The file of a blueprint."""
    plan = BLUEPRINTS[name]
    workflow = json.loads((ROOT / "workflows" / f"{plan.workflow}.json").read_text(encoding="utf-8"))
    nodes = {n["id"]: n for n in workflow["nodes"] if n["id"] in plan.nodes}
    links = [dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
             for link in workflow["links"]]
    links = [link for link in links if link["origin_id"] in nodes and link["target_id"] in nodes]
    inside = {link["id"] for link in links}
    for node in nodes.values():
        for socket in node["inputs"]:
            socket["link"] = socket["link"] if socket["link"] in inside else None
        for socket in node["outputs"]:
            socket["links"] = [i for i in socket["links"] or [] if i in inside]
    last = workflow["last_link_id"]
    inputs, outputs = [], []
    for slot, (socket, targets) in enumerate(plan.sockets.items()):
        ids = []
        for target, field in targets:
            place = next(i for i, s in enumerate(nodes[target]["inputs"]) if s["name"] == field)
            kind, last = nodes[target]["inputs"][place]["type"], last + 1
            nodes[target]["inputs"][place]["link"] = last
            ids.append(last)
            links.append({"id": last, "origin_id": INPUT, "origin_slot": slot, "target_id": target, "target_slot": place,
                          "type": kind})
        inputs.append({"id": _id(name, "in", socket), "name": socket, "type": kind, "linkIds": ids})
    for slot, (socket, (origin, place)) in enumerate(plan.outputs.items()):
        output, last = nodes[origin]["outputs"][place], last + 1
        output["links"].append(last)
        links.append({"id": last, "origin_id": origin, "origin_slot": place, "target_id": OUTPUT, "target_slot": slot,
                      "type": output["type"]})
        outputs.append({"id": _id(name, "out", socket), "name": socket, "type": output["type"], "linkIds": [last]})
    return _file(name, plan, list(nodes.values()), links, inputs, outputs)


def _file(name: str, plan: Blueprint, nodes: list, links: list, inputs: list, outputs: list) -> dict[str, Any]:
    """A workflow that holds one subgraph node, as the page saves it."""
    left = min(n["pos"][0] for n in nodes) - 260
    right, top = max(n["pos"][0] + n["size"][0] for n in nodes) + 140, min(n["pos"][1] for n in nodes)
    inner = {
        "id": _id(name), "version": 1, "revision": 0, "config": {}, "name": name,
        "state": {"lastGroupId": 0, "lastNodeId": max(n["id"] for n in nodes), "lastLinkId": max(k["id"] for k in links),
                  "lastRerouteId": 0},
        "inputNode": {"id": INPUT, "bounding": [left, top, 120, 60 + 20 * len(inputs)]},
        "outputNode": {"id": OUTPUT, "bounding": [right, top, 120, 60 + 20 * len(outputs)]},
        "inputs": [{**s, "pos": [left + 100, top + 20 * i + 20]} for i, s in enumerate(inputs)],
        "outputs": [{**s, "pos": [right + 20, top + 20 * i + 20]} for i, s in enumerate(outputs)],
        "widgets": [], "nodes": nodes, "groups": [], "links": links, "extra": {}}
    outer = {
        "id": 1, "type": inner["id"], "title": name, "pos": [0, 0], "size": [420, 620], "flags": {}, "order": 0, "mode": 0,
        "inputs": [{"name": s["name"], "type": s["type"], "link": None} for s in inputs],
        "outputs": [{"name": s["name"], "type": s["type"], "links": None} for s in outputs],
        "properties": {"proxyWidgets": [[str(node), widget] for node, widget in plan.face]}, "widgets_values": []}
    return {"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [outer], "links": [], "version": 0.4,
            "definitions": {"subgraphs": [inner]}, "extra": {}}


def _id(*parts: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(parts)))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in BLUEPRINTS:
        (FOLDER / f"{name}.json").write_text(json.dumps(build(name), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
