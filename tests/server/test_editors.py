"""The editors in the real page: drawn in with the mouse, undone, saved, copied, run; both renderers, and what goes wrong."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from framepainter_tests import examples
from framepainter_tests.browser import canvas_page
from framepainter_tests.editors import KINDS, Editors, thumbnail
from PIL import Image

CASES = json.loads((Path(__file__).parents[1] / "golden" / "editors" / "cases.json").read_text(encoding="utf-8"))
WIDTH, HEIGHT = 300, 200
UNDO = "Control+z"
CLASSIC = pytest.mark.parametrize("rig", [False], indirect=True, ids=["classic"])
# Runs the pack's own geometry on the cases, as the editors do: fit to the picture, then draw.
DRAW_CASES = """async cases => {
  const base = '/extensions/ComfyUI-FramePainter/'
  const { drawStrokes, placePieces } = await import(base + 'geometry.js')
  const { fitItems, readState } = await import(base + 'state.js')
  const ground = ({ width, height }) => {
    const data = new Uint8ClampedArray(width * height * 4)
    for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i += 4) {
      data.set([(7 * x + 3 * y) % 256, (2 * x + 11 * y) % 256, (5 * x * y) % 256, 255], i)
    }
    return { width, height, data }
  }
  const items = (kind, c) => {
    const { items, size, problem } = readState(kind, JSON.stringify(c.state))
    if (problem) throw new Error(c.name + ': ' + problem)
    return fitItems(kind, items, size, c)
  }
  return {
    sketch: cases.sketch.map(c => Array.from(drawStrokes(items('sketch', c), c.width, c.height))),
    coarse: cases.coarse.map(c => {
      const { window, ...rest } = placePieces(ground(c), items('coarse', c), c.state.background ?? 'black')
      return { window, ...Object.fromEntries(Object.entries(rest).map(([k, v]) => [k, Array.from(v)])) }
    }),
  }
}"""
OPEN_THINGS = """() => [document.querySelectorAll('.framepainter-widget').length, document.querySelectorAll('dialog').length]"""


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "vue"])
def rig(browser, server, request):
    with canvas_page(browser, server.url, vue=request.param) as page:
        yield Editors(page)


@pytest.fixture(scope="module")
def picture(lab, tmp_path_factory) -> str:
    """A picture without loss in its file, every place of another colour: its name for Load Image."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).integers(0, 40, (HEIGHT, WIDTH))
    pixels = np.stack([x * 200 / WIDTH + noise, y * 200 / HEIGHT + noise, 120 + 100 * np.sin(x / 9) * np.sin(y / 7)], -1)
    return lab.upload(tmp_path_factory.mktemp("editors"), "editors.png", torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)))


def result(rig: Editors, lab, kind: str) -> np.ndarray:
    """Queue, and the picture that arrives behind our node."""
    (image,) = rig.canvas.run(f"Behind {KINDS[kind][0]}", 60)
    return examples.pixels(lab.server.fetch(image)).numpy()


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference in grey levels."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@CLASSIC
def test_the_browser_draws_every_case_as_python_does(rig, pack):
    drawn = rig.page.evaluate(DRAW_CASES, CASES)
    strokes, pieces = pack("core.signals.strokes"), pack("core.signals.pieces")
    assert len(CASES["sketch"]) >= 20 and len(CASES["coarse"]) >= 20
    for case, found in zip(CASES["sketch"], drawn["sketch"], strict=True):
        read = strokes.read_strokes(json.dumps(case["state"]))
        expected = strokes.draw_strokes(read, case["height"], case["width"], case.get("stretch", False))
        assert float((torch.tensor(found).reshape(expected.shape) - expected * 255).abs().max()) < 1, case["name"]
    for case, found in zip(CASES["coarse"], drawn["coarse"], strict=True):
        height, width = case["height"], case["width"]
        y, x = np.mgrid[:height, :width]
        ground = np.stack([(7 * x + 3 * y) % 256, (2 * x + 11 * y) % 256, (5 * x * y) % 256], -1)
        expected = pieces.place_pieces(pieces.read_pieces(json.dumps(case["state"])),
                                       torch.from_numpy(ground)[None].float() / 255, case.get("stretch", False))
        colour, masks = ground.astype(float), np.zeros((2, height, width))
        if window := found["window"]:
            inside = np.s_[window["top"]:window["bottom"], window["left"]:window["right"]]
            shape = colour[inside].shape[:2]
            colour[inside] = np.reshape(found["colour"], (*shape, 3))
            masks[0][inside], masks[1][inside] = (np.reshape(found[k], shape) for k in ("uncovered", "placed"))
        assert np.abs(colour - expected.picture[0].numpy() * 255).max() < 1, case["name"]
        for mask, wanted in zip(masks, (expected.uncovered, expected.placed), strict=True):
            assert np.abs(mask - wanted.numpy()).max() * 255 < 1, case["name"]


def test_a_sketch_is_drawn_undone_and_run(rig, lab, picture):
    rig.build("sketch", picture=picture)
    rig.widget("sketch").locator("canvas").dblclick()
    rig.dialog.wait_for(state="visible")
    rig.drag((30, 40), (90, 120), (150, 60))
    rig.press("l", "]", "]")
    rig.drag((200, 20), (280, 150))
    after_two = rig.text("sketch")
    first, second = json.loads(after_two)["strokes"]
    assert first["points"] == pytest.approx([30, 40, 90, 120, 150, 60], abs=0.6)
    assert second["points"] == pytest.approx([200, 20, 280, 150], abs=0.6) and second["size"] > first["size"]
    rig.press("e", "f")
    rig.drag((60, 20), (60, 160))
    assert [s["tool"] for s in rig.state("sketch")["strokes"]] == ["brush", "brush", "eraser"]
    rig.screenshot("sketch")
    # The page's own undo must not see these keys, wherever the focus is: the node would be made again under the editor.
    rig.press(UNDO)
    assert rig.text("sketch") == after_two
    rig.dialog.locator("[data-action=fit]").focus()
    rig.press(UNDO, UNDO)
    rig.page.wait_for_timeout(300)
    assert rig.text("sketch") == "" and rig.dialog.count() == 1
    rig.press("Control+Shift+z", "Control+y", "Control+y")
    assert len(rig.state("sketch")["strokes"]) == 3
    rig.press("p")  # without the picture beneath the stage shows what the network gets
    seen = rig.shown(WIDTH, HEIGHT)
    rig.close()
    made = result(rig, lab, "sketch")
    assert made.max() == 255 and 0.005 < (made > 128).mean() < 0.2
    assert levels(seen, made) <= 1
    rig.screenshot("sketch_run")


def test_drags_are_drawn_moved_and_deleted(rig, picture, pack):
    rig.build("drag", picture=picture)
    rig.open("drag")
    rig.drag((40, 50), (100, 50))
    rig.drag((200, 150), (240, 20))
    rig.drag((150, 100), (400, 100))
    drags = rig.state("drag")["drags"]
    assert drags[0] == pytest.approx([40, 50, 100, 50], abs=0.3) and drags[1] == pytest.approx([200, 150, 240, 20], abs=0.3)
    assert drags[2][2] == WIDTH, "a target stops at the border"
    rig.drag((100, 50), (110, 90))  # a handle
    assert rig.state("drag")["drags"][0] == pytest.approx([40, 50, 110, 90], abs=0.3)
    before = rig.text("drag")
    rig.page.mouse.click(*rig.at(20, 180))
    assert "Nothing added" in rig.said() and rig.text("drag") == before
    rig.screenshot("drag")
    rig.page.mouse.click(*rig.at(200, 150))
    rig.press("Delete")
    assert len(rig.state("drag")["drags"]) == 2 and rig.count("drag") == 1
    rig.press("n", "Shift+ArrowDown")
    moved = rig.state("drag")["drags"]
    assert sorted(m[3] - d[3] for m, d in zip(moved, [json.loads(before)["drags"][i] for i in (0, 2)], strict=True)) == [0, 10]
    rig.press(UNDO, UNDO)
    assert rig.text("drag") == before
    rig.close()
    points = pack("core.signals.points").read_drags(rig.text("drag"), HEIGHT, WIDTH).points
    assert points.shape == (1, 3, 4) and float(points[0, 2, 2]) == 1.0


def test_parts_are_moved_scaled_copied_erased_and_run(rig, lab, picture):
    rig.build("coarse", picture=picture)
    rig.open("coarse")
    rig.drag((40, 40), (90, 30), (100, 90), (50, 100), (40, 42))
    (piece,) = rig.state("coarse")["pieces"]
    assert len(piece["outline"]) >= 8
    rig.drag((70, 65), (190, 85))
    assert rig.state("coarse")["pieces"][0]["move"] == pytest.approx([120, 20], abs=0.3)
    # The lower right corner of the frame, from its middle outwards by half: one and a half times as large.
    box = np.reshape(piece["outline"], (-1, 2))
    low, high = box.min(0), box.max(0)
    corner, move = high + [120, 20], (high - low) / 2
    rig.drag(tuple(corner), tuple(corner + move))
    assert rig.state("coarse")["pieces"][0]["scale"] == pytest.approx([1.5, 1.5], abs=0.02)
    rig.press("c", "h")
    rig.page.locator("[data-number=r]").fill("30")
    rig.press("Enter")
    first = rig.state("coarse")["pieces"][0]
    assert first["copy"] and first["rotate"] == 30 and first["scale"][0] < 0
    rig.press("m")
    rig.drag((20, 130), (90, 180))
    rig.press("x", "g")
    rig.press("m")
    rig.drag((230, 10), (280, 50))
    rig.press("v")
    rig.drag((255, 30), (250, 120))
    state = rig.state("coarse")
    assert state["background"] == "fill" and [p["delete"] for p in state["pieces"]] == [False, True, False]
    rig.screenshot("coarse")
    rig.dialog.locator("[data-action=down]").first.click()
    assert [p["delete"] for p in rig.state("coarse")["pieces"]] == [False, False, True]
    seen = rig.shown(WIDTH, HEIGHT)
    # Discarding is not deleting the node; Escape lets go of the piece first.
    rig.press("Delete")
    assert len(rig.state("coarse")["pieces"]) == 2 and rig.count("coarse") == 1
    rig.press(UNDO)
    rig.close()
    assert levels(seen, result(rig, lab, "coarse")) <= 1
    rig.screenshot("coarse_run")


def test_drawings_survive_saving_loading_copying_and_resizing(rig, picture):
    rig.build(*KINDS, picture=picture)
    texts = {
        "sketch": '{"version":1,"width":300,"height":200,"strokes":[{"tool":"brush","size":9,"points":[10,10,290,190]}]}',
        "drag": '{"version":1,"width":300,"height":200,"drags":[[20,30,200,150]]}',
        "coarse": '{"version":1,"width":300,"height":200,"pieces":[{"outline":[10,10,90,10,90,90,10,90],"delete":true}],"mine":7}',
    }
    bare = {kind: thumbnail(rig, kind) for kind in KINDS}
    for kind, text in texts.items():
        rig.set_text(kind, text)
    for kind in KINDS:
        assert levels(thumbnail(rig, kind), bare[kind]) > 100, "the drawing shows on the node"
    rig.screenshot("nodes")
    # Saved and loaded, as a file would be.
    rig.page.evaluate("""async () => {
        const saved = JSON.parse(JSON.stringify(app.graph.serialize()))
        await app.loadGraphData(saved, true, true)
    }""")
    assert {kind: rig.text(kind) for kind in KINDS} == texts
    for kind in KINDS:
        rig.wait_status(kind, "300 × 200")
    # A copy has the same drawing, and one does not change with the other.
    rig.page.evaluate("type => app.canvas.selectNode(app.graph.nodes.find(n => n.type === type))", KINDS["sketch"][0])
    rig.press("Control+c")
    rig.page.mouse.move(1400, 760)
    rig.press("Control+v")
    rig.page.wait_for_function("type => app.graph.nodes.filter(n => n.type === type).length === 2", arg=KINDS["sketch"][0])
    copies = "type => app.graph.nodes.filter(n => n.type === type).map(n => n.widgets.find(w => w.name === 'strokes').value)"
    assert rig.page.evaluate(copies, KINDS["sketch"][0]) == [texts["sketch"]] * 2
    rig.widget("sketch").locator("[data-action=clear]").click()
    assert sorted(rig.page.evaluate(copies, KINDS["sketch"][0])) == ["", texts["sketch"]]
    # Collapsed and back, and larger: the thumbnail comes back and the node keeps its size.
    rig.page.evaluate("""async type => {
        const node = app.graph.nodes.find(n => n.type === type)
        node.collapse()
        await new Promise(done => setTimeout(done, 300))
        node.collapse()
        node.setSize([420, 560])
        app.canvas.setDirty(true, true)
    }""", KINDS["drag"][0])
    rig.canvas.settle()
    size = "type => Array.from(app.graph.nodes.find(n => n.type === type).size)"
    before = rig.page.evaluate(size, KINDS["drag"][0])
    rig.page.wait_for_timeout(700)
    assert rig.page.evaluate(size, KINDS["drag"][0]) == before
    assert thumbnail(rig, "drag").std() > 10
    assert rig.text("drag") == texts["drag"]


def test_undo_of_the_graph_steps_back_through_gestures(rig, picture):
    rig.build("sketch", picture=picture)
    rig.open("sketch")
    texts = [""]
    for x in (40, 120):
        rig.drag((x, 40), (x + 50, 150))
        texts.append(rig.text("sketch"))
    rig.close()
    for wanted in reversed(texts[:-1]):
        rig.press(UNDO)
        rig.page.wait_for_function("""([type, wanted]) => app.graph.nodes.find(n => n.type === type)
            ?.widgets.find(w => w.name === 'strokes').value === wanted""", arg=[KINDS["sketch"][0], wanted])
    # The page has made the node again: its editor must still be the one on the screen.
    rig.page.wait_for_function("""([type, name]) => app.graph.nodes.find(n => n.type === type)
        .widgets.find(w => w.name === name).element.isConnected""", arg=list(KINDS["sketch"]))
    rig.wait_status("sketch", "Nothing drawn")
    rig.open("sketch")
    rig.drag((20, 20), (60, 60))
    rig.close()
    assert len(rig.state("sketch")["strokes"]) == 1
    rig.wait_status("sketch", "1 stroke")
    assert rig.page.evaluate(OPEN_THINGS) == [1, 0]


@CLASSIC
def test_zoom_and_pan_keep_the_pointer_on_its_pixel(rig, picture):
    rig.build("sketch", picture=picture)
    rig.open("sketch")
    x, y = rig.at(220, 60)
    rig.page.mouse.move(x, y)
    rig.page.mouse.wheel(0, -500)
    assert rig.position(x, y) == pytest.approx((220, 60), abs=0.11), "the wheel zooms around the pointer"
    zoom, left, top = rig.mapping()
    rig.page.keyboard.down(" ")
    rig.page.mouse.move(x, y)
    rig.page.mouse.down()
    rig.page.mouse.move(x + 60, y + 33, steps=3)
    rig.page.mouse.up()
    rig.page.keyboard.up(" ")
    rig.page.mouse.down(button="middle")
    rig.page.mouse.move(x + 50, y + 40, steps=3)
    rig.page.mouse.up(button="middle")
    assert rig.text("sketch") == ""
    assert rig.mapping() == pytest.approx((zoom, left + 50, top + 40), abs=0.7)
    rig.press("p")
    for place in ((200, 50), (231.5, 70.5)):
        rig.page.mouse.click(*rig.at(*place))
    dots = rig.state("sketch")["strokes"]
    assert [d["points"] for d in dots] == [pytest.approx(p, abs=0.11) for p in ((200, 50), (231.5, 70.5))]
    # And where the user sees it: the dot's middle is where the mouse was.
    px, py = rig.at(231.5, 70.5)
    rig.page.mouse.move(5, 5)
    seen = rig.page.evaluate("""([x, y]) => {
        const canvas = document.querySelector('.framepainter-picture'), box = canvas.getBoundingClientRect(), side = 60
        const data = canvas.getContext('2d').getImageData(x - box.left - side / 2, y - box.top - side / 2, side, side).data
        let sum = 0, sx = 0, sy = 0
        for (let i = 0; i < side * side; i++) {
            sum += data[i * 4]; sx += data[i * 4] * (i % side + 0.5); sy += data[i * 4] * (Math.floor(i / side) + 0.5)
        }
        return [sx / sum - side / 2, sy / sum - side / 2]
    }""", [round(px), round(py)])
    assert seen == pytest.approx([px - round(px), py - round(py)], abs=1.0)
    rig.close()


@CLASSIC
def test_two_fingers_zoom_and_one_draws(rig, picture):
    rig.build("sketch", picture=picture)
    rig.open("sketch")
    (x0, y0), (x1, y1) = rig.at(50, 50), rig.at(120, 50)
    zoom, _, _ = rig.mapping()
    session = rig.page.context.new_cdp_session(rig.page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [
            {"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]})

    touch("touchStart", (x0, y0))
    touch("touchMove", ((x0 + x1) / 2, y0))
    touch("touchMove", (x1, y1))
    touch("touchEnd")
    drawn = rig.text("sketch")
    assert json.loads(drawn)["strokes"][0]["points"] == pytest.approx([50, 50, 120, 50], abs=0.3)
    touch("touchStart", (x0, y0))
    touch("touchStart", (x0, y0), (x1, y1))
    touch("touchMove", (x0 - 60, y0), (x1 + 60, y1))
    touch("touchEnd")
    assert rig.text("sketch") == drawn, "a finger that is joined by another draws nothing"
    assert rig.mapping()[0] / zoom == pytest.approx((x1 - x0 + 120) / (x1 - x0), rel=0.01)
    # A palm rests on the screen: the pen draws all the same, and the palm draws nothing.
    palm, (x, y) = rig.at(250, 150), rig.at(60, 90)
    touch("touchStart", palm)
    for kind, to, pressed in (("mousePressed", x, 1), ("mouseMoved", x + 60, 1), ("mouseReleased", x + 60, 0)):
        session.send("Input.dispatchMouseEvent", {"type": kind, "x": to, "y": y, "button": "left", "buttons": pressed,
                                                  "clickCount": 1, "pointerType": "pen"})
    touch("touchMove", (x0, y0))
    touch("touchEnd")
    strokes = rig.state("sketch")["strokes"]
    assert len(strokes) == 2 and strokes[1]["points"][:2] == pytest.approx([60, 90], abs=0.3)
    rig.close()


@CLASSIC
def test_a_long_scribble_stays_small(rig, picture):
    rig.build("sketch", picture=picture)
    rig.open("sketch")
    way = [(150 + 80 * np.cos(t * 1.1) * np.sin(t / 7), 100 + 70 * np.sin(t * 1.3)) for t in np.arange(0, 15, 0.08)]
    zoom, left, top = rig.mapping()
    rig.page.mouse.move(left + way[0][0] * zoom, top + way[0][1] * zoom)
    rig.page.mouse.down()
    for x, y in way:
        rig.page.mouse.move(left + x * zoom, top + y * zoom)
    rig.page.mouse.up()
    rig.close()
    text = rig.text("sketch")
    points = np.reshape(rig.state("sketch")["strokes"][0]["points"], (-1, 2))
    assert 30 < len(points) < len(way) * 0.7
    assert len(text) < 2500
    # Left out is only what the line through the others passes within the tolerance, and a tenth for rounding.
    a, b = points[:-1], points[1:]
    for place in np.array(way[::7]):
        share = np.clip(((place - a) * (b - a)).sum(1) / ((b - a) ** 2).sum(1).clip(1e-9), 0, 1)[:, None]
        assert np.linalg.norm(a + share * (b - a) - place, axis=1).min() < 0.35 + 0.5 / zoom + 0.1


@CLASSIC
def test_a_broken_text_is_kept_until_something_is_drawn(rig, picture):
    rig.build(*KINDS, picture=picture)
    broken = {"sketch": '{"version":1,"strokes":[{"points":[1,2,3]}', "drag": '{"version":1,"drags":[[1,2,3]]}',
              "coarse": '{"version":2,"pieces":[]}'}
    words = {"sketch": "not valid JSON", "drag": "drag 1 is not four numbers", "coarse": "newer"}
    for kind, text in broken.items():
        rig.set_text(kind, text)
        rig.wait_status(kind, words[kind])
        rig.open(kind)
        assert words[kind] in rig.banner()
        assert rig.dialog.locator("[data-action=copy-text]").is_visible()
        if kind == "sketch":
            rig.screenshot("broken")
        rig.press("+", "0")
        rig.close()
        assert rig.text(kind) == text
    rig.open("drag")
    rig.drag((20, 20), (90, 90))
    assert len(rig.state("drag")["drags"]) == 1 and rig.banner() == ""
    rig.press(UNDO)
    assert rig.text("drag") == broken["drag"], "undo brings even that text back"
    rig.close()
    rig.widget("sketch").locator("[data-action=clear]").click()
    assert rig.text("sketch") == ""


@CLASSIC
def test_a_drawing_of_another_picture_is_scaled_or_asked_about(rig, lab, picture):
    rig.build("sketch", picture=picture)
    double = '{"version":1,"width":600,"height":400,"strokes":[{"tool":"brush","size":8,"points":[100,100,500,300]}]}'
    rig.set_text("sketch", double)
    rig.open("sketch")
    assert rig.banner() == ""
    rig.press("p")
    seen = rig.shown(WIDTH, HEIGHT)
    rig.close()
    assert rig.text("sketch") == double, "looking changes nothing"
    assert levels(seen, result(rig, lab, "sketch")) <= 1
    square = '{"version":1,"width":400,"height":400,"strokes":[{"tool":"brush","size":4,"points":[100,100,300,300]}]}'
    rig.set_text("sketch", square)
    rig.wait_status("sketch", "400 × 400")
    rig.open("sketch")
    assert "400 × 400" in rig.banner() and "300 × 200" in rig.banner()
    rig.drag((20, 20), (90, 90))
    assert rig.text("sketch") == square and "stretch" in rig.said()
    rig.screenshot("other_size")
    rig.click("stretch")
    state = rig.state("sketch")
    assert (state["width"], state["height"], state["strokes"][0]["points"]) == (WIDTH, HEIGHT, [75, 50, 225, 150])
    rig.press(UNDO)
    rig.click("start-over")
    assert rig.text("sketch") == "" and rig.banner() == ""
    rig.press(UNDO)
    assert rig.text("sketch") == square
    rig.close()


@CLASSIC
def test_without_a_picture_there_is_a_blank_ground_and_one_can_be_chosen(rig, lab, tmp_path):
    rig.build("drag", picture=None)
    rig.open("drag")
    assert "No picture is connected" in rig.banner() and "512 × 512" in rig.banner()
    rig.drag((100, 100), (300, 200))
    assert rig.state("drag")["width"] == 512
    rig.screenshot("blank")
    chosen = examples.save(tmp_path / "chosen.png", torch.full((256, 256, 3), 90, dtype=torch.uint8))
    with rig.page.expect_file_chooser() as chooser:
        rig.click("choose")
    chooser.value.set_files(chosen)
    rig.dialog.locator(".framepainter-about", has_text="256 × 256").wait_for()
    assert rig.banner() == "" and "drawn on 512 × 512" in rig.dialog.locator(".framepainter-about").inner_text()
    rig.close()
    load = rig.page.evaluate("""type => {
        const node = app.graph.nodes.find(n => n.type === type)
        const origin = node.getInputNode(node.inputs.findIndex(i => i.name === 'picture'))
        return [origin.type, origin.widgets.find(w => w.name === 'image').value]
    }""", KINDS["drag"][0])
    assert load == ["LoadImage", "chosen.png"]


LOOKS = """async names => {
  const { sourceOf, fetchPicture } = await import('/extensions/ComfyUI-FramePainter/picture.js')
  const node = app.graph.nodes.find(n => n.type === 'FramePainterSketchSignal')
  const load = app.graph.nodes.find(n => n.type === 'LoadImage')
  const out = []
  for (const name of names) {
    load.widgets.find(w => w.name === 'image').value = name
    const bitmap = await fetchPicture(sourceOf(node, 'picture'))
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), pen = canvas.getContext('2d')
    pen.drawImage(bitmap, 0, 0)
    out.push([bitmap.height, bitmap.width, Array.from(pen.getImageData(0, 0, bitmap.width, bitmap.height).data)])
  }
  return out
}"""


@CLASSIC
def test_every_picture_file_lies_in_the_editor_as_load_image_gives_it(rig, lab, picture):
    """Case exif_in_editor: all eight EXIF orientations in each format, and pictures that browsers show otherwise or not at all."""
    folder, made = lab.server.base / "input", {}
    y, x = np.mgrid[:40, :60]
    ground = np.stack([4 * x, 6 * y, 255 - 4 * x], -1).astype(np.uint8)
    for ending, options in (("png", {}), ("webp", {"lossless": True}), ("jpg", {"quality": 95}), ("tif", {})):
        for tag in range(1, 9):
            exif = Image.Exif()
            exif[0x112] = tag
            made[f"turn{tag}.{ending}"] = (Image.fromarray(ground), {"exif": exif, **options})
    clear = np.concatenate([ground, np.full((40, 60, 1), 90, np.uint8)], -1)
    made |= {"clear.png": (Image.fromarray(clear), {}), "deep.png": (Image.fromarray((257 * 6 * y).astype(np.uint16)), {}),
             "palette.gif": (Image.fromarray(ground).quantize(32), {}), "grey.bmp": (Image.fromarray(ground[..., 0]), {})}
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    rig.build("sketch", picture="editors.png")
    seen = rig.page.evaluate(LOOKS, list(made))
    prompt = {}
    for i, name in enumerate(made):
        prompt[f"l{i}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        prompt[f"s{i}"] = {"class_type": "SaveImage", "inputs": {"images": [f"l{i}", 0], "filename_prefix": f"looks/{i}"}}
    entry = lab.server.run(prompt, 60)
    for i, (name, (height, width, pixels)) in enumerate(zip(made, seen, strict=True)):
        given = examples.pixels(lab.server.fetch(lab.tools.images(entry, f"s{i}")[0])).numpy()
        shown = np.array(pixels, np.uint8).reshape(height, width, 4)[..., :3]
        # Save Image cuts off what Load Image has beyond whole levels; of JPEG there are two decoders, of colours at half size.
        assert levels(shown, given) <= (12 if name.endswith("jpg") else 1), name
    for name in ("../editors.png", "/etc/hostname", "nothing.png", "a\0.png", "editors.txt"):
        query = urllib.parse.urlencode({"filename": name, "type": "input"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{lab.server.url}/framepainter/picture?{query}")
        assert refused.value.code == 404


def test_the_picture_is_found_through_reroutes_and_subgraphs(rig, picture):
    rig.build("sketch", picture=None)
    rig.page.evaluate("""([type, picture]) => {
        const node = app.graph.nodes.find(n => n.type === type)
        const load = LiteGraph.createNode('LoadImage'), reroute = LiteGraph.createNode('Reroute')
        app.graph.add(load)
        app.graph.add(reroute)
        load.pos = [20, 60]
        reroute.pos = [290, 600]
        const widget = load.widgets.find(w => w.name === 'image')
        widget.value = picture
        widget.callback?.(picture)
        load.connect(0, reroute, 0)
        reroute.connect(0, node, node.inputs.findIndex(i => i.name === 'picture'))
    }""", [KINDS["sketch"][0], picture])
    rig.wait_status("sketch", "300 × 200")
    rig.open("sketch")
    rig.drag((30, 40), (90, 120))
    rig.close()
    text = rig.text("sketch")
    # Into a subgraph with the picture outside.
    rig.page.evaluate("""async type => {
        const node = app.graph.nodes.find(n => n.type === type)
        const { subgraph, node: outer } = app.graph.convertToSubgraph(new Set([node]))
        app.canvas.setGraph ? app.canvas.setGraph(subgraph) : app.canvas.openSubgraph(subgraph, outer)
    }""", KINDS["sketch"][0])
    rig.page.wait_for_timeout(800)
    inner = """type => {
        for (const graph of app.graph.subgraphs.values())
            for (const node of graph.nodes) if (node.type === type) return node.widgets.find(w => w.name === 'strokes').value
    }"""
    assert rig.page.evaluate(inner, KINDS["sketch"][0]) == text
    rig.wait_status("sketch", "1 stroke · 300 × 200")
    rig.open("sketch")
    rig.drag((130, 40), (190, 120))
    rig.screenshot("subgraph")
    rig.close()
    assert len(json.loads(rig.page.evaluate(inner, KINDS["sketch"][0]))["strokes"]) == 2


# A video's frame by way of the nodes that read it and pick it; then a node between that only a run can tell about.
FOOTAGE = """reader => {
  const add = type => { const node = LiteGraph.createNode(type); app.graph.add(node); return node }
  const editor = app.graph.nodes.find(n => n.type === 'FramePainterSketchSignal')
  const load = add('FramePainterVideo'), read = add(reader), pick = add('ImageFromBatch')
  load.widgets.find(w => w.name === 'file').value = 'carry_clip.mp4 [example]'
  pick.widgets.find(w => w.name === 'batch_index').value = 7
  load.connect(0, read, 0)
  read.connect(0, pick, 0)
  pick.connect(0, editor, editor.inputs.findIndex(i => i.name === 'picture'))
}"""
BETWEEN = """() => {
  const editor = app.graph.nodes.find(n => n.type === 'FramePainterSketchSignal')
  const slot = editor.inputs.findIndex(i => i.name === 'picture'), flip = LiteGraph.createNode('ImageInvert')
  app.graph.add(flip)
  editor.getInputNode(slot).connect(0, flip, 0)
  flip.connect(0, editor, slot)
}"""
SEEN = """async () => {
  const { sourceOf, fetchPicture } = await import('/extensions/ComfyUI-FramePainter/picture.js')
  const bitmap = await fetchPicture(sourceOf(app.graph.nodes.find(n => n.type === 'FramePainterSketchSignal'), 'picture'))
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), pen = canvas.getContext('2d')
  pen.drawImage(bitmap, 0, 0)
  return Array.from(pen.getImageData(0, 0, bitmap.width, bitmap.height).data)
}"""


@CLASSIC
@pytest.mark.parametrize("reader", ["FramePainterReadVideo", "GetVideoComponents"])
def test_the_frame_of_a_video_shows_before_any_run(rig, pack, reader):
    rig.build("sketch", picture=None)
    rig.page.evaluate(FOOTAGE, reader)
    rig.wait_status("sketch", "320 × 180")
    frames = pack("core.video.reading").read(Path(__file__).parents[2] / "workflows" / "inputs" / "carry_clip.mp4").frames
    seen = np.array(rig.page.evaluate(SEEN), np.uint8).reshape(180, 320, 4)[..., :3]
    assert np.array_equal(seen, (frames[7] * 255).round().byte().numpy())
    # Another frame from the strip: the node that picks one gets its number, and so does Carry Edit.
    rig.page.evaluate("""reader => {
        const carry = LiteGraph.createNode('FramePainterCarryEdit')
        app.graph.add(carry)
        app.graph.nodes.find(n => n.type === reader).connect(0, carry, carry.inputs.findIndex(i => i.name === 'frames'))
    }""", reader)
    rig.open("sketch")
    cells = rig.dialog.locator(".framepainter-cell")
    cells.nth(3).click()
    rig.press(".")
    rig.page.wait_for_function("""() => app.graph.nodes.find(n => n.type === 'ImageFromBatch').widgets[0].value === 4
        && app.graph.nodes.find(n => n.type === 'FramePainterCarryEdit').widgets.find(w => w.name === 'keyframes').value === '4'""")
    assert cells.count() == len(frames) and rig.dialog.locator(".framepainter-cell[aria-pressed=true]").inner_text() == "4"
    rig.screenshot("strip")
    rig.close()


def test_frames_are_read_from_videos_of_the_folders_alone(lab, tmp_path):
    folder, examples_folder = lab.server.base / "input", Path(__file__).parents[2] / "workflows" / "inputs"
    whole = (examples_folder / "carry_clip.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[:len(whole) // 3])
    (tmp_path / "outside.mp4").write_bytes(whole)
    (folder / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    wanted = {"../input/../outside.mp4": 404, str(tmp_path / "outside.mp4"): 404, "link.mp4": 404, "nothing.mp4": 404,
              "a\0.mp4": 404, "cut.mp4": 415, "framepainter_picture.jpg": 415}
    for route in ("frame", "strip"):
        for name, code in wanted.items():
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{lab.server.url}/framepainter/{route}?{urllib.parse.urlencode({'file': name})}")
            assert refused.value.code == code, name


@CLASSIC
def test_a_picture_made_by_other_nodes_is_got_without_running_the_rest(rig, picture):
    rig.build("sketch", picture=picture)
    rig.page.evaluate(BETWEEN)
    rig.widget("sketch").locator("[data-action=get]").wait_for()
    rig.open("sketch")
    assert "Invert Image" in rig.banner() and "512 × 512" in rig.banner()
    rig.drag((20, 20), (90, 90))
    assert rig.text("sketch") == "" and "no picture yet" in rig.said()
    rig.screenshot("no_picture_yet")
    rig.click("get")
    rig.dialog.locator(".framepainter-about", has_text="300 × 200").wait_for()
    assert rig.banner() == ""
    rig.drag((20, 20), (90, 90))
    rig.close()
    assert (rig.state("sketch")["width"], rig.state("sketch")["height"]) == (WIDTH, HEIGHT)
    assert rig.page.evaluate("id => (app.nodeOutputs ?? {})[id] ?? null", rig.preview_of("sketch")) is None, "nothing else ran"
    # Another picture in its place, but only if that is wanted.
    for answer, origin in (("no", "ImageInvert"), ("yes", "LoadImage")):
        with rig.page.expect_file_chooser() as chooser:
            rig.widget("sketch").locator("[data-action=choose]").click()
        chooser.value.set_files(examples.INPUTS["framepainter_picture.jpg"])
        rig.page.locator(f".framepainter-ask [data-action={answer}]").click()
        rig.page.wait_for_function("""([type, origin]) => {
            const node = app.graph.nodes.find(n => n.type === type)
            return node.getInputNode(node.inputs.findIndex(i => i.name === 'picture')).type === origin
        }""", arg=[KINDS["sketch"][0], origin])


@CLASSIC
def test_keys_and_the_list_of_them(rig, picture):
    rig.build("sketch", picture=picture)
    rig.open("sketch")
    assert rig.dialog.get_attribute("role") == "dialog" and rig.dialog.get_attribute("aria-label") == "Sketch"
    unnamed = rig.dialog.evaluate("""dialog => [...dialog.querySelectorAll('button, input')]
        .filter(e => !(e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.outerHTML)""")
    assert unnamed == []
    rig.press("?")
    listed = rig.dialog.locator(".framepainter-help").inner_text()
    assert "Undo" in listed and "Eraser" in listed.title()
    rig.screenshot("help")
    rig.press("Escape")
    assert rig.dialog.count() == 1 and not rig.dialog.locator(".framepainter-help").is_visible()
    size = rig.dialog.locator("input[type=number][aria-label='Size in px']")
    size.fill("12")
    rig.press("Enter", "e")
    rig.drag((30, 40), (90, 40))
    stroke = rig.state("sketch")["strokes"][0]
    assert (stroke["tool"], stroke["size"]) == ("eraser", 12)
    # Escape gives up a stroke that is being drawn, and closes only after that.
    rig.page.mouse.move(*rig.at(50, 100))
    rig.page.mouse.down()
    rig.page.mouse.move(*[v + 40 for v in rig.at(50, 100)])
    rig.press("Escape")
    rig.page.mouse.up()
    assert rig.dialog.count() == 1 and len(rig.state("sketch")["strokes"]) == 1
    rig.press("Delete", "Control+a", "Escape")
    assert rig.dialog.count() == 0 and rig.count("sketch") == 1


@CLASSIC
def test_nothing_is_left_when_an_editor_or_a_node_goes(rig, picture):
    session = rig.page.context.new_cdp_session(rig.page)
    ours = set()
    session.on("Debugger.scriptParsed", lambda s: ours.add(s["scriptId"]) if "FramePainter" in s["url"] else None)
    session.send("Debugger.enable")

    def listeners() -> int:
        """Of the pack's scripts, on what outlives a node."""
        count = 0
        for name in ("window", "document", "document.body", "app.canvas.canvas"):
            target = session.send("Runtime.evaluate", {"expression": name})["result"]["objectId"]
            found = session.send("DOMDebugger.getEventListeners", {"objectId": target})["listeners"]
            count += sum(listener["scriptId"] in ours for listener in found)
        return count

    rig.page.evaluate("""() => {
        window.__timers = new Set()
        const [start, stop] = [window.setInterval, window.clearInterval]
        window.setInterval = (...all) => { const id = start(...all); window.__timers.add(id); return id }
        window.clearInterval = id => { window.__timers.delete(id); stop(id) }
    }""")
    timers = "() => window.__timers.size"
    rig.build()
    ticking = rig.page.evaluate(timers)
    standing = listeners()  # one, for nodes that are put into subgraphs
    assert len(ours) > 5 and standing == 1
    rig.build(*KINDS, picture=picture)
    assert rig.page.evaluate(timers) == ticking + 3
    for kind in KINDS:
        rig.open(kind)
        assert listeners() > standing
        rig.close()
        assert listeners() == standing
    # Copying makes a node that never gets into the graph.
    rig.page.evaluate("type => app.canvas.selectNode(app.graph.nodes.find(n => n.type === type))", KINDS["sketch"][0])
    rig.press("Control+c")
    rig.page.wait_for_timeout(200)
    assert rig.page.evaluate(timers) == ticking + 3
    rig.open("coarse")
    rig.page.evaluate("type => app.graph.remove(app.graph.nodes.find(n => n.type === type))", KINDS["coarse"][0])
    rig.dialog.wait_for(state="detached")
    rig.build()
    rig.page.wait_for_function(f"() => ({OPEN_THINGS})().every(count => count === 0)")
    assert listeners() == standing
    assert rig.page.evaluate(timers) == ticking


@CLASSIC
def test_arrows_drawn_with_the_mouse_move_the_object(rig, lab):
    """The shipped example from the template browser, its arrows deleted and drawn by hand, run through the small model."""
    rig.canvas.load_template("/api/workflow_templates/ComfyUI-FramePainter/framepainter_drag.json")
    source, truth = (examples.pixels(examples.INPUTS[f"framepainter_{name}.png"]).float() for name in ("scene", "scene_truth"))
    rig.wait_status("drag", "×")
    arrows = rig.state("drag")["drags"]
    rig.open("drag")
    rig.click("clear")
    assert rig.state("drag") == []
    for x, y, to_x, to_y in arrows:
        rig.drag((x, y), (to_x, to_y))
    assert np.allclose(rig.state("drag")["drags"], arrows, atol=0.5)
    rig.screenshot("drag_example")
    rig.close()
    (image,) = rig.canvas.run("Edited picture", 120)
    edited = examples.pixels(lab.server.fetch(image)).float()
    rig.canvas.fit()
    rig.screenshot("drag_example_run")
    changed = (truth - source).abs().amax(-1) > 25
    assert (edited - truth)[changed].pow(2).mean() < 0.6 * (source - truth)[changed].pow(2).mean()


def test_the_page_has_no_complaint_about_the_editors(rig):
    assert [c for c in rig.canvas.complaints if "framepainter" in c.lower() and "api.comfy.org" not in c] == []
