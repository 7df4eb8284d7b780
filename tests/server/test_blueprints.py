"""What the pack serves beside its nodes: blueprints, each the same edit as its example, and names in other languages."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from framepainter_tests import examples
from framepainter_tests.browser import canvas_page

FOLDER = examples.ROOT / "subgraphs"
NAMES = sorted(p.stem for p in FOLDER.glob("*.json"))
each = pytest.mark.parametrize("name", NAMES)


def content(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def api_form(blueprint: dict[str, Any], definitions: dict[str, Any]) -> tuple[examples.Prompt, dict[str, list], dict[str, list]]:
    """What the page would queue for a blueprint's inner nodes: the prompt, its open inputs (node, field) and its outputs."""
    (inner,) = blueprint["definitions"]["subgraphs"]
    links = {link["id"]: link for link in inner["links"]}
    request: examples.Prompt = {}
    for node in inner["nodes"]:
        # ComfyUI's own nodes gain widgets; ours are what the file has.
        inputs = dict(zip(examples.widget_names(definitions[node["type"]]), node.get("widgets_values") or [],
                          strict=node["type"].startswith("FramePainter")))
        inputs.pop("control_after_generate", None)
        for socket in node["inputs"]:
            link = links.get(socket["link"])
            if link is not None and link["origin_id"] != -10:
                inputs[socket["name"]] = [str(link["origin_id"]), link["origin_slot"]]
        request[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node.get("title", "")}}
    fields = {n["id"]: [s["name"] for s in n["inputs"]] for n in inner["nodes"]}
    feeds = {socket["name"]: [(str(links[i]["target_id"]), fields[links[i]["target_id"]][links[i]["target_slot"]])
                              for i in socket["linkIds"]] for socket in inner["inputs"]}
    gives = {socket["name"]: [str(links[i]["origin_id"]), links[i]["origin_slot"]]
             for socket in inner["outputs"] for i in socket["linkIds"]}
    return request, feeds, gives


@each
def test_is_what_the_tool_writes(tool, name: str):
    """An example that changes changes its blueprint: run tools/making/blueprints.py."""
    assert content(name) == tool("making.blueprints").build(name)


@each
def test_is_served_and_runs_what_its_example_runs(server, tool, name: str):
    listed = json.loads(server._request("/global_subgraphs"))
    (key,) = [key for key, entry in listed.items() if entry["name"] == name]
    assert json.loads(json.loads(server._request(f"/global_subgraphs/{key}"))["data"]) == content(name)

    definitions = server.object_info()
    request, feeds, gives = api_form(content(name), definitions)
    example = examples.prompt(tool("making.blueprints").BLUEPRINTS[name][0])
    for targets in feeds.values():
        for node, field in targets:
            request[node]["inputs"][field] = example[node]["inputs"][field]
    for key, node in request.items():
        if not node["class_type"].startswith("FramePainter"):  # of nodes that may gain widgets, the links
            for form in (node, example[key]):
                form["inputs"] = {k: v for k, v in form["inputs"].items() if isinstance(v, list)}
        same = {k: v for k, v in example[key]["inputs"].items() if k in node["inputs"]}
        assert node["class_type"] == example[key]["class_type"] and node["inputs"] == same, key
        lacking = example[key]["inputs"].keys() - same.keys()
        assert not lacking, "a link is lost on the way"
    assert gives and all(source in request for source, _ in gives.values())
    face = content(name)["nodes"][0]["properties"]["proxyWidgets"]
    assert all(widget in examples.widget_names(definitions[request[node]["class_type"]]) for node, widget in face)


def test_templates_are_read_at_a_glance():
    """At most eight nodes; training, whose curves one watches, and the carry without a model show a few more."""
    more = {"framepainter_train": 9, "carry_real_clip": 10, "i2vedit_motion_lora": 11, "video_p2p_tune": 12}
    files = {name: json.loads((examples.WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")) for name in examples.NAMES}
    assert [name for name, file in files.items() if len(file["nodes"]) > more.get(name, 8)] == []


def test_names_in_other_languages_are_served(server):
    served = json.loads(server._request("/i18n"))
    for language in ("en", "zh", "ja", "de"):
        file = examples.ROOT / "locales" / language / "nodeDefs.json"
        assert served[language]["nodeDefs"] == json.loads(file.read_text(encoding="utf-8"))


def test_all_run(lab, tool):
    """Each on the files of its template, all in one prompt; Drag Edit gives what its template gives."""
    definitions, prompt = lab.server.object_info(), {}
    for number, name in enumerate(NAMES):
        request, feeds, gives = api_form(content(name), definitions)
        template = examples.prompt(tool("making.blueprints").BLUEPRINTS[name][0])
        for node, field in (target for targets in feeds.values() for target in targets):
            request[node]["inputs"][field] = template[node]["inputs"][field]
            file = template[node]["inputs"][field][0]
            request[file] = {**template[file], "_meta": {"title": ""}}
        shown = gives["edited" if "edited" in gives else "frames"]
        request["save"] = {"class_type": "SaveImage", "_meta": {"title": name},
                           "inputs": {"images": shown, "filename_prefix": "blueprint"}}
        for key, node in request.items():
            linked = {f: [f"{number}.{v[0]}", v[1]] if isinstance(v, list) else v for f, v in node["inputs"].items()}
            prompt[f"{number}.{key}"] = {**node, "inputs": linked}
    results = lab.run(examples.small(prompt), 300)
    assert [name for name in NAMES if results[name][0].float().std() < 5] == []
    drag = lab.edited(examples.only_edited(examples.small(examples.prompt("framepainter_drag"))))
    assert torch.equal(results["FramePainter Drag Edit"][0], drag)


def test_all_open_on_the_canvas_with_their_face(browser, server):
    with canvas_page(browser, server.url) as canvas:
        for name in NAMES:
            canvas.page.evaluate("async file => app.loadGraphData(file, true, true)", content(name))
            face = content(name)["nodes"][0]["properties"]["proxyWidgets"]
            shown = canvas.page.evaluate("() => app.graph.nodes[0].widgets.map(w => w.name)")
            assert [w.rpartition(": ")[2] for w in shown] == [widget for _, widget in face], name
            if face[0][1] in ("strokes", "points", "pieces"):
                canvas.page.locator(".framepainter-widget [data-action=open]").first.wait_for()
        assert canvas.shown_errors() == []
        assert [c for c in canvas.complaints if "framepainter" in c.lower() and "api.comfy.org" not in c] == []
