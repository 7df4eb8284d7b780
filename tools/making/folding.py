"""Nodes of a canvas file folded into one node, a subgraph, and back; as the page itself saves them.

A file of the page has links (id, origin id, origin slot, target id, target slot, type); inside of a subgraph they are
dictionaries, and INPUT and OUTPUT stand for its two sides. Node and link ids stay, so that a run's ids of the inner nodes are
those of the flat file behind the subgraph's own.
"""

from __future__ import annotations

import copy
import uuid
from typing import Any, NamedTuple

INPUT, OUTPUT = -10, -20  # the page's own ids of a subgraph's two sides
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
SIDE = 140  # width of a side, with the gap to the nodes


class Part(NamedTuple):
    """name: of the subgraph.  nodes: ids of what lies inside.  sockets: (node, slot) outside that leads in -> name of the input;
    other links from outside are cut.  outputs: (node, slot) inside -> name of the output.  face: (node, widget) shown on it."""

    name: str
    nodes: tuple[int, ...]
    sockets: dict[tuple[int, int], str]
    outputs: dict[tuple[int, int], str]
    face: tuple[tuple[int, str], ...]


def stable_id(*parts: str) -> str:
    """A UUID that is the same every time."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(parts)))


def subgraph(flat: dict[str, Any], part: Part, owner: str = "") -> dict[str, Any]:
    """The definition of a part of a flat canvas file. `owner`: what tells it from others of its name."""
    nodes = {n["id"]: copy.deepcopy(n) for n in flat["nodes"] if n["id"] in part.nodes}
    if missing := set(part.nodes) - nodes.keys():
        raise ValueError(f"{part.name}: the canvas has no nodes {sorted(missing)}")
    crossing = [dict(zip(LINK, link, strict=True)) for link in flat["links"]]
    links = [link for link in crossing if link["origin_id"] in nodes and link["target_id"] in nodes]
    inside = {link["id"] for link in links}
    last = flat["last_link_id"]
    inputs, outputs = [], []
    for slot, (origin, name) in enumerate(part.sockets.items()):
        fed = [k for k in crossing if (k["origin_id"], k["origin_slot"]) == origin and k["target_id"] in nodes]
        if not fed:
            raise ValueError(f"{part.name}: nothing leads in from output {origin[1]} of node {origin[0]}")
        ids = list(range(last + 1, last + 1 + len(fed)))
        last += len(fed)
        for new, link in zip(ids, fed, strict=True):
            nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] = new
            links.append({**link, "id": new, "origin_id": INPUT, "origin_slot": slot})
        inputs.append({"id": stable_id(owner, part.name, "in", name), "name": name, "type": fed[0]["type"], "linkIds": ids})
    for slot, ((origin, place), name) in enumerate(part.outputs.items()):
        last += 1
        kind = nodes[origin]["outputs"][place]["type"]
        nodes[origin]["outputs"][place]["links"] = [*(nodes[origin]["outputs"][place]["links"] or []), last]
        links.append(dict(zip(LINK, (last, origin, place, OUTPUT, slot, kind), strict=True)))
        outputs.append({"id": stable_id(owner, part.name, "out", name), "name": name, "type": kind, "linkIds": [last]})
    here = {link["id"] for link in links}
    for node in nodes.values():
        for socket in node["inputs"]:
            socket["link"] = socket["link"] if socket["link"] in here else None
        for socket in node["outputs"]:
            socket["links"] = [i for i in socket["links"] or [] if i in inside or i > flat["last_link_id"]]
    return _definition(part, owner, list(nodes.values()), links, inputs, outputs)


def _definition(part: Part, owner: str, nodes: list, links: list, inputs: list, outputs: list) -> dict[str, Any]:
    left, top = min(n["pos"][0] for n in nodes) - 2 * SIDE, min(n["pos"][1] for n in nodes)
    right = max(n["pos"][0] + n["size"][0] for n in nodes) + SIDE
    return {
        "id": stable_id(owner, part.name), "version": 1, "revision": 0, "config": {}, "name": part.name,
        "state": {"lastGroupId": 0, "lastNodeId": max(n["id"] for n in nodes), "lastLinkId": max(k["id"] for k in links),
                  "lastRerouteId": 0},
        "inputNode": {"id": INPUT, "bounding": [left, top, 120, 60 + 20 * len(inputs)]},
        "outputNode": {"id": OUTPUT, "bounding": [right, top, 120, 60 + 20 * len(outputs)]},
        "inputs": [{**s, "pos": [left + 100, top + 20 * i + 20]} for i, s in enumerate(inputs)],
        "outputs": [{**s, "pos": [right + 20, top + 20 * i + 20]} for i, s in enumerate(outputs)],
        "widgets": [], "nodes": nodes, "groups": [], "links": links, "extra": {}}


def node_of(definition: dict[str, Any], part: Part, number: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
    """The node that stands for a subgraph, without links. `box`: x, y, width, height."""
    return {
        "id": number, "type": definition["id"], "title": part.name, "pos": list(box[:2]), "size": list(box[2:]), "flags": {},
        "order": 0, "mode": 0,
        "inputs": [{"name": s["name"], "type": s["type"], "link": None} for s in definition["inputs"]],
        "outputs": [{"name": s["name"], "type": s["type"], "links": None} for s in definition["outputs"]],
        "properties": {"proxyWidgets": [[str(node), widget] for node, widget in part.face]}, "widgets_values": []}


def fold(flat: dict[str, Any], part: Part, box: tuple[int, int, int, int]) -> dict[str, Any]:
    """A canvas file with a part of it in one node, at a place. Its id is one above the last.

    Raises:
        ValueError: a node of the part does not exist, a socket has no link, or a link no socket or name.
    """
    out, number = copy.deepcopy(flat), flat["last_node_id"] + 1
    definition = subgraph(flat, part, flat["id"])
    node = node_of(definition, part, number, box)
    slots_in, slots_out = list(part.sockets), list(part.outputs)
    kept, fed = [], set()
    for link in flat["links"]:
        number_of, origin, place, target, field, kind = link
        if origin in part.nodes and target in part.nodes:
            continue
        if target in part.nodes:
            if (origin, place) not in slots_in:
                raise ValueError(f"{part.name}: no socket for output {place} of node {origin}")
            slot = slots_in.index((origin, place))
            if slot not in fed:
                fed.add(slot)
                node["inputs"][slot]["link"] = number_of
                kept.append([number_of, origin, place, number, slot, kind])
        elif origin in part.nodes:
            if (origin, place) not in slots_out:
                raise ValueError(f"{part.name}: no name for output {place} of node {origin}")
            slot = slots_out.index((origin, place))
            node["outputs"][slot]["links"] = [*(node["outputs"][slot]["links"] or []), number_of]
            kept.append([number_of, number, slot, target, field, kind])
        else:
            kept.append(link)
    numbers = {link[0] for link in kept}
    out["nodes"] = [n for n in out["nodes"] if n["id"] not in part.nodes] + [node]
    for other in out["nodes"]:
        for socket in other["outputs"]:
            if socket["links"]:
                socket["links"] = [i for i in socket["links"] if i in numbers]
    subgraphs = [*flat.get("definitions", {}).get("subgraphs", []), definition]
    return {**out, "links": kept, "last_node_id": number, "definitions": {"subgraphs": subgraphs},
            "last_link_id": max(flat["last_link_id"], definition["state"]["lastLinkId"])}


def unfold(workflow: dict[str, Any]) -> dict[str, Any]:
    """The flat canvas file: every node, and between them the links that the subgraphs' sides stand for."""
    out = copy.deepcopy(workflow)
    for definition in reversed(out.pop("definitions", {}).get("subgraphs", [])):
        (node,) = [n for n in out["nodes"] if n["type"] == definition["id"]]
        feeds = {k[4]: k for k in out["links"] if k[3] == node["id"]}
        gives = {k["target_slot"]: k for k in definition["links"] if k["target_id"] == OUTPUT}
        links = [k for k in out["links"] if node["id"] not in (k[1], k[3])]
        links += [[k[0], gives[k[2]]["origin_id"], gives[k[2]]["origin_slot"], *k[3:]] for k in out["links"] if k[1] == node["id"]]
        for link in definition["links"]:
            if link["origin_id"] != INPUT and link["target_id"] != OUTPUT:
                links.append([link[field] for field in LINK])
            elif link["target_id"] != OUTPUT and link["origin_slot"] in feeds:
                links.append([link["id"], *feeds[link["origin_slot"]][1:3], *(link[field] for field in LINK[3:])])
        out["nodes"] = [n for n in out["nodes"] if n is not node] + definition["nodes"]
        out["links"] = links
    for node in out["nodes"]:
        for slot, socket in enumerate(node["inputs"]):
            socket["link"] = next((k[0] for k in out["links"] if k[3:5] == [node["id"], slot]), None)
        for slot, socket in enumerate(node["outputs"]):
            socket["links"] = [k[0] for k in out["links"] if k[1:3] == [node["id"], slot]]
    return out
