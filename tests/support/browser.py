"""A real ComfyUI page in a headless browser, and what a test asks of it."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
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
# Of whatever a page waits for: much longer than it takes, since other programs may keep the machine busy.
TIMEOUT_MS = 120_000
# Resolves when nodes and view have been the same for some frames: nodes grow when pictures and texts arrive in them.
STILL = """frames => new Promise((done, failed) => {
  const begun = performance.now()
  let before, same = 0
  const look = () => {
    const { scale, offset } = app.canvas.ds, now = JSON.stringify([BOXES(), scale, ...offset])
    same = now === before ? same + 1 : 0
    before = now
    if (same >= frames) done()
    else if (performance.now() - begun > LIMIT) failed(new Error('the nodes do not stand still'))
    else requestAnimationFrame(look)
  }
  look()
})"""
STILL_FRAMES = 45  # longer than any widget of ours takes to look at its surroundings again
DIALOGS = "[role=dialog]:visible, .p-dialog:visible"
CLASSIC_BOXES = """() => app.graph.nodes.map(n => {
  const [x, y, w, h] = n.boundingRect ?? n.getBounding()
  return [`${n.id} ${n.type}`, x, y, w, h]
})"""
# Every graph of the page: the outer one, then what lies in subgraphs.
GRAPHS = "const outer = app.graph.rootGraph ?? app.graph, graphs = [outer, ...(outer.subgraphs?.values?.() ?? [])]"
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
        self.loading: set[Any] = set()  # requests to the server that are not answered yet
        page.set_default_timeout(TIMEOUT_MS)
        page.on("request", lambda r: self.loading.add(r) if r.url.startswith(url) and r.resource_type != "media" else None)
        for end in ("requestfinished", "requestfailed"):
            page.on(end, lambda request: self.loading.discard(request))  # Playwright takes no built-in function
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    def open(self) -> None:
        """Load the page and wait until it would take a user's workflow without replacing it by its own."""
        self.page.goto(self.url)
        self.page.wait_for_function(
            "window.app?.extensionManager?.workflow?.activeWorkflow?.changeTracker && app.canvas && app.graph",
            timeout=TIMEOUT_MS)
        self.page.wait_for_function("'FramePainterLoad' in LiteGraph.registered_node_types", timeout=TIMEOUT_MS)

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
        self.settle()
        return content

    def settle(self) -> None:
        """Wait until the page has all that it asked the server for, and its nodes stand still."""
        still = STILL.replace("BOXES", f"({VUE_BOXES if self.vue else CLASSIC_BOXES})").replace("LIMIT", str(TIMEOUT_MS))
        deadline = time.monotonic() + TIMEOUT_MS / 1000
        self.page.evaluate(still, STILL_FRAMES)
        while self.loading:
            assert time.monotonic() < deadline, [request.url for request in self.loading]
            self.page.evaluate(still, STILL_FRAMES)

    def frames(self, count: int = 3) -> None:
        """Wait until the page has drawn so many times: what it puts off until it draws next is done then."""
        self.page.evaluate("""count => new Promise(done => {
            const next = () => count-- > 0 ? requestAnimationFrame(next) : done()
            next()
        })""", count)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """What the graph and its subgraphs hold: node id -> type, known or not, visible widgets with their values."""
        return self.page.evaluate(f"""() => {{
            {GRAPHS}
            return Object.fromEntries(graphs.flatMap(graph => graph.nodes).map(n => [String(n.id), {{
                type: n.type,
                known: n.type in LiteGraph.registered_node_types || Boolean(n.subgraph),
                widgets: Object.fromEntries((n.widgets ?? []).filter(w => w.serialize !== false).map(w => [w.name, w.value])),
            }}]))
        }}""")

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
        self.page.evaluate(f"""([type, values]) => {{
            {GRAPHS}
            for (const node of graphs.flatMap(graph => graph.nodes).filter(n => n.type === type))
                for (const [name, value] of Object.entries(values)) {{
                    const widget = node.widgets.find(w => w.name === name)
                    widget.value = value
                    widget.callback?.(value, app.canvas, node)
                    // newer frontends link the inside of a subgraph to its face, which then holds the value
                    if (node.inputs?.find(input => input.name === name)?.link == null) continue
                    const face = graphs.flatMap(graph => graph.nodes).find(n => n.subgraph && n.subgraph.id === node.graph.id)
                    const held = face?.widgets?.find(w => w.name === name)
                    if (held) held.value = value
                }}
        }}""", [node_type, values])

    def run(self, title: str, timeout_s: float, press: Callable[[], None] | None = None) -> list[dict[str, str]]:
        """Queue what is on the canvas; the image references that the page holds for an output node when it is done.

        Args:
            title: of the output node, which may be in a subgraph.
            timeout_s: how long that may take.
            press: what queues it, in place of the page's own function.
        """
        if press is None:
            self.page.evaluate("() => app.queuePrompt(0, 1)")
        else:
            press()
        script = f"""title => {{
            {GRAPHS}
            const graph = graphs.find(g => g.nodes.some(n => n.title === title)), node = graph.nodes.find(n => n.title === title)
            const key = graph === outer ? String(node.id) : `${{graph.id}}:${{node.id}}`
            return (app.nodeOutputs ?? {{}})[key]?.images ?? null
        }}"""
        deadline = time.monotonic() + timeout_s
        while (found := self.page.evaluate(script, title)) is None:
            assert time.monotonic() < deadline, f"no result on the page after {timeout_s} s; {self.complaints}"
            self.page.wait_for_timeout(250)
        return found

    def shown_errors(self) -> list[str]:
        """Texts of open dialogs and error messages."""
        selector = "[role=dialog], .p-dialog, .comfy-missing-nodes, .p-toast-message-error"
        return [e.inner_text().strip() for e in self.page.query_selector_all(selector) if e.is_visible()]

    def wait_for_dialog(self) -> None:
        self.page.locator(DIALOGS).first.wait_for()

    def close_dialog(self) -> None:
        self.page.keyboard.press("Escape")
        self.page.locator(DIALOGS).first.wait_for(state="detached")

    def fit(self) -> None:
        """Show the whole workflow, once nodes stopped growing: frontend 1.32.9 misplaces those that do while the view moves."""
        self.settle()
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.settle()


def _cross(a: list[float], b: list[float]) -> bool:
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    return ax < bx + bw and bx < ax + aw and ay < by + bh and by < ay + ah


@contextmanager
def open_browser() -> Iterator[Any]:
    """A headless browser."""
    path = chrome()
    try:
        import playwright.sync_api as playwright
    except ImportError:
        missing("playwright is missing: run `python dev.py test`")
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def canvas_page(browser: Any, url: str, vue: bool = False) -> Iterator[CanvasPage]:
    """Open a server's page with the classic renderer or the newer one; it shares nothing with other pages of the browser.

    Args:
        browser: of `open_browser`.
        url: the server.
        vue: draw nodes with Vue ("Nodes 2.0").
    """
    for name, value in {**SETTINGS, "Comfy.VueNodes.Enabled": vue}.items():
        _post(f"{url}/settings/{name}", value)
    with browser.new_context(viewport={"width": 1920, "height": 1000}) as context:
        opened = CanvasPage(context.new_page(), url, vue)
        opened.open()
        yield opened


def _post(address: str, value: Any) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would not reach this machine
    body = json.dumps(value).encode()
    opener.open(urllib.request.Request(address, data=body, headers={"Content-Type": "application/json"}), timeout=30)


def artefact(name: str) -> Path:
    """Where to leave a picture for the reader of a failed run."""
    path = Path(__file__).resolve().parents[1] / "_artefacts" / name
    path.parent.mkdir(exist_ok=True)
    return path
