"""Rewrite workflows/framepainter_sketch.json, the canvas form, from workflows/api/framepainter_sketch.json.

    <python with playwright> tools/canvas_export.py http://127.0.0.1:8188 --chrome /usr/bin/chromium

The page of a running server lays it out and serialises it, so the file is what that ComfyUI itself would save. Use the
oldest supported one (the pinned host, `python dev.py serve`): newer ones read its files, not the other way round.
"""

from __future__ import annotations

import argparse
import json
import uuid
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
NAME = "framepainter_sketch"
NOTE = """\
### Weight files

| widget | file | folder |
| --- | --- | --- |
| model_file | unet_diffusion_pytorch_model.safetensors | models/framepainter |
| encoder_file | encoder_diffusion_pytorch_model.safetensors | models/framepainter |
| clip_and_vae | an SVD checkpoint, such as svd_xt_1_1.safetensors | models/checkpoints |

The first two: Hugging Face, **Yabo/FramePainter**. The third: **stabilityai/stable-video-diffusion-img2vid-xt-1-1**.
A new file shows in the lists after pressing R.

**Your own edit:** load a picture, then draw over it: right click it > *Open in Mask Editor*, mask brush, and bypass
the Sketch node (Ctrl+B). Or load a drawing of the same shape, as here: any colour on any plain ground.

**Values:** cfg 3, 25 steps and strength 0.8 are the FramePainter authors'.
"""
# Group -> (x, y, width, height). Room is left below every node: nodes are taller in the newer renderer.
GROUPS = {
    "1 Picture and sketch": (0, 0, 360, 930),
    "2 Model": (380, 0, 560, 930),
    "3 Edit": (960, 0, 1280, 930),
    "4 Result": (2260, 0, 1240, 930),
}
# Node id in the API file -> (x, y, width, height).
NODES = {
    1: (20, 80, 320, 360), 2: (20, 530, 320, 360),
    3: (400, 80, 520, 190), "note": (400, 390, 520, 500),
    5: (980, 80, 280, 130), 4: (980, 390, 280, 250),
    6: (1300, 80, 280, 180), 7: (1620, 80, 280, 70), 8: (1940, 80, 280, 270),
    9: (2280, 80, 280, 60), 10: (2600, 80, 280, 60), 11: (2920, 80, 560, 460),
    12: (2280, 620, 280, 160), 13: (2600, 620, 280, 160), 14: (2920, 620, 560, 270),
}
VIEW = {"scale": 0.62, "offset": [130, 240]}
BUILD = """([api, name, nodes, groups, note, view]) => {
  app.loadApiJson(api, name)
  const place = (node, box) => { node.pos = box.slice(0, 2); node.setSize(box.slice(2)) }
  const text = LiteGraph.createNode('MarkdownNote')
  text.title = 'Read me'
  text.widgets[0].value = note
  app.graph.add(text)
  for (const node of app.graph.nodes) place(node, nodes[node === text ? 'note' : node.id])
  const sampler = app.graph.nodes.find(n => n.type === 'KSampler')
  sampler.widgets.find(w => w.name === 'control_after_generate').value = 'fixed'
  for (const [title, box] of Object.entries(groups)) {
    const group = new LiteGraph.LGraphGroup(title)
    group.pos = box.slice(0, 2)
    group.size = box.slice(2)
    app.graph.add(group)
  }
  const workflow = app.graph.serialize()
  // Without a view the page fits one after loading, and frontend 1.32.9 in Vue mode then tears the nodes apart.
  workflow.extra.ds = view
  return JSON.stringify(workflow)
}"""


def export(page: Page, api: dict[str, Any]) -> dict[str, Any]:
    """The canvas form of an API prompt, laid out as in NODES and GROUPS."""
    page.wait_for_function("window.app?.extensionManager && window.app.graph && window.LiteGraph")
    page.wait_for_timeout(5000)  # its own first workflow would otherwise replace ours
    nodes = {str(k): v for k, v in NODES.items()}
    workflow = json.loads(page.evaluate(BUILD, [api, f"{NAME}.json", nodes, GROUPS, NOTE, VIEW]))
    for node in workflow["nodes"]:
        if not node.get("widgets_values"):  # the page writes an empty list or nothing, by chance
            node.pop("widgets_values", None)
    return {**workflow, "id": str(uuid.uuid5(uuid.NAMESPACE_URL, NAME))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", help="address of a running server that has this pack")
    parser.add_argument("--chrome", required=True, help="a Chromium-like browser")
    options = parser.parse_args()
    api = json.loads((WORKFLOWS / "api" / f"{NAME}.json").read_text(encoding="utf-8"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chrome, args=["--headless", "--no-sandbox"])
        page = browser.new_page()
        page.goto(options.server)
        workflow = export(page, api)
        browser.close()
    text = json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"
    (WORKFLOWS / f"{NAME}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
