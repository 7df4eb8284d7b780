"""A real ComfyUI page in a headless browser, and what a test asks of it."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .missing import missing

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
# First-run dialogs, banners and surveys would cover the canvas.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.32.9", "Comfy.Minimap.Visible": False,
            "Comfy.Release.Status": "skipped", "Comfy.Workflow.ShowMissingNodesWarning": True,
            "Comfy.Workflow.ShowMissingModelsWarning": True}
READY_TIMEOUT_MS = 60_000
CLASSIC_BOXES = """() => app.graph.nodes.map(n => {
  const [x, y, w, h] = n.boundingRect ?? n.getBounding()
  return [`${n.id} ${n.type}`, x, y, w, h]
})"""
# In canvas units, so that a zoomed-out page does not hide an overlap in its rounding.
VUE_BOXES = """() => [...document.querySelectorAll('[data-node-id]')].map(e => {
  const box = e.getBoundingClientRect(), zoom = app.canvas.ds.scale
  const type = app.graph.getNodeById(e.dataset.nodeId)?.type
  return [`${e.dataset.nodeId} ${type}`, box.x / zoom, box.y / zoom, box.width / zoom, box.height / zoom]
})"""


def chrome() -> str:
    """The browser that `python dev.py test` found; without one see `missing`."""
    path = os.environ.get("FRAMEPAINTER_CHROME", "")
    if not path:
        missing("no Chromium-like browser found: install one or set CHROME_PATH, then run `python dev.py test`")
    return path


class CanvasPage:
    """One open ComfyUI page. `complaints` holds its console errors and warnings, and uncaught exceptions."""

    def __init__(self, page: Any, url: str, vue: bool):
        self.page, self.url, self.vue = page, url, vue
        self.complaints: list[str] = []
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    def open(self) -> None:
        """Load the page and wait until it would take a user's workflow without replacing it by its own."""
        self.page.goto(self.url)
        self.page.wait_for_function(
            "window.app?.extensionManager?.workflow?.activeWorkflow?.changeTracker && app.canvas && app.graph",
            timeout=READY_TIMEOUT_MS)
        self.page.wait_for_function("'FramePainterLoad' in LiteGraph.registered_node_types", timeout=READY_TIMEOUT_MS)

    def load_template(self, path: str) -> dict[str, Any]:
        """Open a served template as the template browser does; the file's content."""
        content = self.page.evaluate("""async path => {
            const content = await (await fetch(path)).json()
            await app.loadGraphData(structuredClone(content), true, true, 'template')
            return content
        }""", path)
        self.page.wait_for_function("count => app.graph.nodes.length === count", arg=len(content["nodes"]))
        if self.vue:
            self.page.wait_for_function("count => document.querySelectorAll('[data-node-id]').length >= count",
                                        arg=len(content["nodes"]))
        self.page.wait_for_timeout(1000)  # pictures of Load Image and the final sizes come after the nodes
        return content

    def nodes(self) -> dict[str, dict[str, Any]]:
        """What the graph holds: node id -> type, known or not, visible widgets with their values."""
        return self.page.evaluate("""() => Object.fromEntries(app.graph.nodes.map(n => [String(n.id), {
            type: n.type,
            known: n.type in LiteGraph.registered_node_types,
            widgets: Object.fromEntries((n.widgets ?? []).filter(w => w.serialize !== false).map(w => [w.name, w.value])),
        }]))""")

    def overlaps(self) -> list[str]:
        """Pairs of nodes that cover each other, as the renderer in use draws them."""
        boxes = self.page.evaluate(VUE_BOXES if self.vue else CLASSIC_BOXES)
        return [f"{a[0]} and {b[0]}" for i, a in enumerate(boxes) for b in boxes[i + 1:] if _cross(a[1:], b[1:])]

    def outside(self) -> list[str]:
        """Nodes that the page's view does not show whole."""
        return self.page.evaluate("""() => {
            const { scale, offset } = app.canvas.ds, { clientWidth, clientHeight } = app.canvas.canvas
            const seen = ([x, y]) => x >= 0 && y >= 0 && x <= clientWidth && y <= clientHeight
            const at = (x, y) => [(x + offset[0]) * scale, (y + offset[1]) * scale]
            return app.graph.nodes.filter(n => !seen(at(...n.pos)) || !seen(at(n.pos[0] + n.size[0], n.pos[1] + n.size[1])))
                .map(n => n.title)
        }""")

    def set_widget(self, node_type: str, **values: Any) -> None:
        """Set widgets of all nodes of a type, as a user's choice would."""
        self.page.evaluate("""([type, values]) => {
            for (const node of app.graph.nodes.filter(n => n.type === type))
                for (const [name, value] of Object.entries(values)) {
                    const widget = node.widgets.find(w => w.name === name)
                    widget.value = value
                    widget.callback?.(value, app.canvas, node)
                }
        }""", [node_type, values])

    def run(self, output: str, timeout_s: float) -> list[dict[str, str]]:
        """Queue what is on the canvas; the image references that the page holds for an output node when it is done."""
        self.page.evaluate("() => app.queuePrompt(0, 1)")
        script = "id => (app.nodeOutputs ?? {})[id]?.images ?? null"
        deadline = time.monotonic() + timeout_s
        while (found := self.page.evaluate(script, output)) is None:
            assert time.monotonic() < deadline, f"no result on the page after {timeout_s} s; {self.complaints}"
            self.page.wait_for_timeout(250)
        return found

    def shown_errors(self) -> list[str]:
        """Texts of open dialogs and error messages."""
        selector = "[role=dialog], .p-dialog, .comfy-missing-nodes, .p-toast-message-error"
        return [e.inner_text().strip() for e in self.page.query_selector_all(selector) if e.is_visible()]

    def fit(self) -> None:
        """Show the whole workflow, once nodes stopped growing: frontend 1.32.9 misplaces those that do while the view moves."""
        before = None
        while (boxes := self.page.evaluate(VUE_BOXES if self.vue else CLASSIC_BOXES)) != before:
            before = boxes
            self.page.wait_for_timeout(700)
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(1500)


def _cross(a: list[float], b: list[float]) -> bool:
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    return ax < bx + bw and bx < ax + aw and ay < by + bh and by < ay + ah


@contextmanager
def canvas_page(url: str, vue: bool = False) -> Iterator[CanvasPage]:
    """Open a server's page with the classic renderer or the newer one.

    Args:
        url: the server.
        vue: draw nodes with Vue ("Nodes 2.0").
    """
    try:
        import playwright.sync_api as playwright
    except ImportError:
        missing("playwright is missing: run `python dev.py test`")
    for name, value in {**SETTINGS, "Comfy.VueNodes.Enabled": vue}.items():
        _post(f"{url}/settings/{name}", value)
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=chrome(), args=FLAGS)
        try:
            opened = CanvasPage(browser.new_page(viewport={"width": 1920, "height": 1000}), url, vue)
            opened.open()
            yield opened
        finally:
            browser.close()


def _post(address: str, value: Any) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would not reach this machine
    body = json.dumps(value).encode()
    opener.open(urllib.request.Request(address, data=body, headers={"Content-Type": "application/json"}), timeout=30)


def artefact(name: str) -> Path:
    """Where to leave a picture for the reader of a failed run."""
    path = Path(__file__).resolve().parents[1] / "_artefacts" / name
    path.parent.mkdir(exist_ok=True)
    return path
