"""The pack's editors in a real page, worked with the mouse and the keys."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from .browser import CanvasPage, artefact

KINDS = {"sketch": ("FramePainterSketchSignal", "strokes"), "drag": ("FramePainterDragSignal", "points"),
         "coarse": ("FramePainterCoarseSignal", "pieces")}
# One Load Image, our nodes beside it, and a Preview Image for each that has a picture to show. Ids are never used twice: the
# page keeps results and, in the newer renderer, places by id. A graph that is loaded has its own view; without one the page
# fits one, and frontend 1.32.9 then tears the nodes apart.
BUILD = """async ([types, picture, first]) => {
  const root = app.rootGraph ?? app.graph
  if (app.canvas.graph !== root) {
    app.canvas.setGraph(root)
    await new Promise(done => setTimeout(done, 700))  // newer pages note in the address which graph is shown, a little later
  }
  root.clear()
  root.last_node_id = first
  const boxes = new Map()
  const add = (type, ...box) => {
    const node = LiteGraph.createNode(type)
    root.add(node)
    boxes.set(String(node.id), box)
    return node
  }
  const load = picture && add('LoadImage', 60, 60, 270, 320)
  if (load) load.widgets.find(w => w.name === 'image').value = picture
  types.forEach((type, i) => {
    const node = add(type, 380 + i * 380, 60, 330, 440)
    load?.connect(0, node, node.inputs.findIndex(input => input.name === 'picture'))
    const slot = node.outputs.findIndex(output => output.name === 'control')
    if (slot < 0) return
    const preview = add('PreviewImage', 380 + i * 380, 640, 330, 260)
    preview.title = `Behind ${type}`
    node.connect(slot, preview, 0)
  })
  const saved = JSON.parse(JSON.stringify(root.serialize()))
  for (const node of saved.nodes) {
    const [x, y, w, h] = boxes.get(String(node.id))
    Object.assign(node, { pos: [x, y], size: [w, h] })
  }
  saved.extra = { ...saved.extra, ds: { scale: 1, offset: [20, 40] } }
  await app.loadGraphData(saved, true, true)
}"""
# Pixels of the stage where the picture lies; exact at 100 %, where one pixel of the picture is one of the stage.
ON_STAGE = """([width, height]) => {
  const canvas = document.querySelector('.framepainter-dialog .framepainter-picture')
  const left = Math.round((canvas.clientWidth - width) / 2), top = Math.round((canvas.clientHeight - height) / 2)
  return Array.from(canvas.getContext('2d').getImageData(left, top, width, height).data)
}"""


class Editors:
    """A page with our nodes on it. `kind`: sketch, drag or coarse."""

    def __init__(self, canvas: CanvasPage):
        self.canvas, self.page = canvas, canvas.page
        self.built = 0

    # The graph ---------------------------------------------------------------------------------------

    def build(self, *kinds: str, picture: str | None = "framepainter_picture.jpg") -> None:
        """A new graph with these nodes, all connected to one picture."""
        self.built += 1
        self.page.evaluate(BUILD, [[KINDS[k][0] for k in kinds], picture, 100 * self.built])
        for kind in kinds:
            self.widget(kind).wait_for(state="visible")
            if picture:
                self.wait_status(kind, "×")

    def widget(self, kind: str) -> Any:
        return self.page.locator(f".framepainter-widget[data-kind={kind}]").first

    def status(self, kind: str) -> str:
        return self.widget(kind).locator(".framepainter-status").inner_text()

    def wait_status(self, kind: str, text: str) -> None:
        """Wait until the node says something below its thumbnail."""
        self.widget(kind).locator(".framepainter-status", has_text=text).wait_for()

    def text(self, kind: str) -> str:
        """The widget's value, of the first such node."""
        return self.page.evaluate("""([type, name]) => app.graph.nodes.find(n => n.type === type)
            .widgets.find(w => w.name === name).value""", list(KINDS[kind]))

    def set_text(self, kind: str, text: str) -> None:
        self.page.evaluate("""([type, name, text]) => {
            app.graph.nodes.find(n => n.type === type).widgets.find(w => w.name === name).value = text
        }""", [*KINDS[kind], text])

    def state(self, kind: str) -> dict[str, Any]:
        text = self.text(kind)
        return json.loads(text) if text else {}

    def count(self, kind: str) -> int:
        """How many such nodes there are."""
        return self.page.evaluate("type => app.graph.nodes.filter(n => n.type === type).length", KINDS[kind][0])

    def preview_of(self, kind: str) -> str:
        """Id of the Preview Image behind a node."""
        return self.page.evaluate("""type => {
            const node = app.graph.nodes.find(n => n.type === type)
            const slot = node.outputs.findIndex(output => output.name === 'control')
            return String(node.getOutputNodes(slot)[0].id)
        }""", KINDS[kind][0])

    # The editor --------------------------------------------------------------------------------------

    @property
    def dialog(self) -> Any:
        return self.page.locator("dialog.framepainter-dialog")

    def open(self, kind: str) -> None:
        self.widget(kind).locator("[data-action=open]").click()
        self.dialog.wait_for(state="visible")
        self.canvas.frames()

    def close(self) -> None:
        self.page.keyboard.press("Control+Enter")
        self.dialog.wait_for(state="detached")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def click(self, action: str) -> None:
        """A button of the editor."""
        self.dialog.locator(f"[data-action={action}]").first.click()

    def said(self) -> str:
        """What the editor's message says; waits for one."""
        said = "() => document.querySelector('.framepainter-dialog .framepainter-toast:not([hidden])')?.textContent"
        return self.page.wait_for_function(said).json_value()

    def banner(self) -> str:
        found = self.dialog.locator(".framepainter-banner:not([hidden]) p")
        return found.inner_text() if found.count() else ""

    def position(self, x: float, y: float) -> tuple[float, float]:
        """What the editor shows as pixel of the picture for a place of the page."""
        self.page.mouse.move(x, y)
        self.canvas.frames(2)
        shown = self.dialog.locator("output[aria-label='Pointer position']").inner_text()
        px, py = shown.split(", ")
        return float(px), float(py)

    def mapping(self) -> tuple[float, float, float]:
        """Zoom and place of the picture's upper left corner on the page, from the position that the editor shows."""
        box = self.dialog.locator(".framepainter-stage").bounding_box()
        x0, y0, x1 = box["x"] + 10, box["y"] + 10, box["x"] + box["width"] - 10
        (left, top), (right, _) = self.position(x0, y0), self.position(x1, y0)
        zoom = (x1 - x0) / (right - left)
        return zoom, x0 - left * zoom, y0 - top * zoom

    def drag(self, *points: Sequence[float], steps: int = 5, button: str = "left") -> None:
        """Press at the first point, in pixels of the picture, move along the others and release."""
        zoom, left, top = self.mapping()
        places = [(left + x * zoom, top + y * zoom) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down(button=button)
        for place in places[1:]:
            self.page.mouse.move(*place, steps=steps)
        self.page.mouse.up(button=button)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A pixel of the picture as a place of the page."""
        zoom, left, top = self.mapping()
        return left + x * zoom, top + y * zoom

    def shown(self, width: int, height: int) -> np.ndarray:
        """(H, W, 3) what the stage shows of the picture at 100 %."""
        self.press("1")
        self.canvas.frames()
        pixels = self.page.evaluate(ON_STAGE, [width, height])
        return np.array(pixels, np.uint8).reshape(height, width, 4)[..., :3]

    def screenshot(self, name: str) -> None:
        """A picture of the page among the test's artefacts."""
        renderer = "vue" if self.canvas.vue else "classic"
        self.page.screenshot(path=artefact(f"editor_{name}_{renderer}.png"))


def thumbnail(rig: Editors, kind: str) -> np.ndarray:
    """(H, W, 3) what the node's thumbnail shows."""
    rig.canvas.frames()
    data = rig.widget(kind).locator("canvas").screenshot()
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
