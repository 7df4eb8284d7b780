"""Rewrite the templates workflows/*.json from the API forms workflows/api/*.json.

    <python with playwright> tools/making/canvas_export.py http://127.0.0.1:8188 --chrome /usr/bin/chromium [NAME ...]

The page of a running server lays every node out and serialises it, so the file is what that ComfyUI itself would save; then
parts are folded into subgraphs (`layouts.py`). Use the oldest supported one (the pinned host, `python dev.py serve`): newer
ones read its files, not the other way round. Afterwards run `blueprints.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent))
from folding import fold, stable_id  # noqa: E402
from layouts import LAYOUTS, Layout  # noqa: E402
from notes import NOTES  # noqa: E402

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
# What panels leave of a page of 1280 x 720, and of 1920 x 1000 in the newer renderer, which makes all a fifth larger.
SMALL_SCREEN, LARGE_SCREEN, CORNER = (1185, 540), (1530, 700), (75, 135)
TITLE = 30  # above a node's place
READABLE = 0.6  # what is smaller is fitted into the large screen
# Files that full-size templates need and the page can offer to download: file name -> folder under models, address.
HUGGING_FACE = "https://huggingface.co/"
DOWNLOADS = {
    "unet_diffusion_pytorch_model.safetensors": ("framepainter", "Yabo/FramePainter"),
    "encoder_diffusion_pytorch_model.safetensors": ("framepainter", "Yabo/FramePainter"),
    "svd_xt_1_1.safetensors": ("checkpoints", "stabilityai/stable-video-diffusion-img2vid-xt-1-1"),
}


def view_of(layout: Layout) -> dict[str, Any]:
    """The saved view that shows all of it: on 1280 x 720 if it is readable there, else on 1920 x 1000."""
    boxes = layout.outside.values()
    left, top = (min(box[axis] for box in boxes) for axis in (0, 1))
    width, height = (max(box[axis] + box[axis + 2] for box in boxes) - first for axis, first in ((0, left), (1, top - TITLE)))
    small, large = (min(screen[0] / width, screen[1] / height, 1.0) for screen in (SMALL_SCREEN, LARGE_SCREEN))
    scale = small if small >= READABLE else large
    return {"scale": round(scale, 3), "offset": [round(CORNER[0] / scale - left), round(CORNER[1] / scale - top + TITLE)]}


def with_downloads(workflow: dict[str, Any]) -> dict[str, Any]:
    """The files of DOWNLOADS noted on the nodes that name them, as the page reads them."""
    for node in workflow["nodes"]:
        files = [v for v in node.get("widgets_values") or [] if isinstance(v, str) and v in DOWNLOADS]
        if files:
            node["properties"]["models"] = [{"name": f, "url": f"{HUGGING_FACE}{DOWNLOADS[f][1]}/resolve/main/{f}",
                                             "directory": DOWNLOADS[f][0]} for f in files]
    return workflow


BUILD = """([api, name, nodes, note, view]) => {
  app.loadApiJson(api, name)
  const place = (node, box) => { node.pos = box.slice(0, 2); node.setSize(box.slice(2)) }
  const text = LiteGraph.createNode('MarkdownNote')
  text.title = 'Read me'
  text.widgets[0].value = note
  app.graph.add(text)
  for (const node of app.graph.nodes) place(node, nodes[node === text ? 'note' : node.id])
  const sampler = app.graph.nodes.find(n => n.type === 'KSampler')
  const control = sampler?.widgets.find(w => w.name === 'control_after_generate')
  if (control) control.value = 'fixed'
  const workflow = app.graph.serialize()
  // Without a view the page fits one after loading, and frontend 1.32.9 in Vue mode then tears the nodes apart.
  workflow.extra.ds = view
  return JSON.stringify(workflow)
}"""


def export(page: Page, name: str) -> dict[str, Any]:
    """The template of an API prompt, laid out and folded as LAYOUTS says."""
    api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    layout = LAYOUTS[name]
    page.wait_for_function("window.app?.extensionManager && window.app.graph && window.LiteGraph")
    page.wait_for_timeout(5000)  # its own first workflow would otherwise replace ours
    inside = {n: layout.inside[n] for part in layout.parts for n in part.nodes}
    places = {str(k): v for k, v in {**layout.outside, **inside}.items()}
    workflow = json.loads(page.evaluate(BUILD, [api, f"{name}.json", places, NOTES[name], view_of(layout)]))
    for node in workflow["nodes"]:
        if not node.get("widgets_values"):  # the page writes an empty list or nothing, by chance
            node.pop("widgets_values", None)
    workflow = {**with_downloads(workflow), "id": stable_id(name)}
    for part in reversed(layout.parts):  # what a later one gets from an earlier one still has its own ids
        workflow = fold(workflow, part, layout.outside[part.name])
    return workflow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", help="address of a running server that has this pack")
    parser.add_argument("--chrome", required=True, help="a Chromium-like browser")
    parser.add_argument("names", nargs="*", help="workflows; all if none is named")
    options = parser.parse_intermixed_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chrome, args=["--headless", "--no-sandbox"])
        for name in options.names or LAYOUTS:
            page = browser.new_page()
            page.goto(options.server)
            text = json.dumps(export(page, name), indent=1, ensure_ascii=False) + "\n"
            (WORKFLOWS / f"{name}.json").write_text(text, encoding="utf-8")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
