"""The word chips of Prompt Edit in the real page: worked with mouse and keys in both renderers, and what a run makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from framepainter_tests import examples
from framepainter_tests.browser import artefact, canvas_page

NODE = "FramePainterPromptEdit"
PATH = "**/framepainter/words"
STEPS = examples.SMALL["FramePainterInvertDDIM"]
PIXELS = 80  # of a drag: 1 more in weight
VALUE = "([type, name]) => app.graph.nodes.find(n => n.type === type).widgets.find(w => w.name === name).value"
CHANGED = """([type, name, seen]) => {
  const value = app.graph.nodes.find(n => n.type === type)?.widgets.find(w => w.name === name)?.value
  return value !== undefined && value !== seen
}"""
LOOK_AT = """type => {
  const node = app.graph.nodes.find(n => n.type === type), view = app.canvas.ds
  view.scale = 1.2
  view.offset[0] = 300 - node.pos[0]
  view.offset[1] = 90 - node.pos[1]
  app.canvas.setDirty(true, true)
}"""
LINK = """type => {
  const node = app.graph.nodes.find(n => n.type === type), text = LiteGraph.createNode('PrimitiveStringMultiline')
  app.graph.add(text)
  text.connect(0, node, node.inputs.findIndex(i => i.name === 'edited_text'))
  window.__linked = text.id
}"""

ADD = """types => types.forEach((type, i) => {
  const node = LiteGraph.createNode(type), view = app.canvas.ds
  node.pos = [200 - view.offset[0] + 500 * i, 100 - view.offset[1]]
  app.graph.add(node)
})"""
BLUEPRINT = "FramePainter Edit Video by Words"
ASKED = """async type => {
  const { output } = await app.graphToPrompt()
  return Object.values(output).find(node => node.class_type === type).inputs
}"""
ADD_BLUEPRINT = """async name => {
  const listed = await (await fetch('/global_subgraphs')).json(), id = Object.keys(listed).find(key => listed[key].name === name)
  const content = JSON.parse((await (await fetch(`/global_subgraphs/${id}`)).json()).data), view = app.canvas.ds
  app.graph.clear()
  app.canvas._deserializeItems({ nodes: content.nodes, subgraphs: content.definitions.subgraphs }, { position: [0, 0] })
  Object.assign(view, { scale: 1, offset: [300, 100] })
  app.canvas.setDirty(true, true)
}"""
# The newer renderer of frontend 1.32.9 does not hand on what is typed on the face of a subgraph, of any node's text.
ON_FACE = """([name, text]) => {
  (app.rootGraph ?? app.graph).nodes.find(n => n.subgraph).widgets.find(w => w.name.endsWith(name)).value = text
}"""
ENTER = "() => { const node = app.graph.nodes.find(n => n.subgraph); app.canvas.openSubgraph(node.subgraph, node) }"
SHOW_INSIDE = """type => {
  const node = app.canvas.graph.nodes.find(n => n.type === type), view = app.canvas.ds
  if (!node) return false
  view.scale = 1
  view.offset[0] = 300 - node.pos[0]
  view.offset[1] = 100 - node.pos[1]
  app.canvas.setDirty(true, true)
  return Boolean(document.querySelector('.framepainter-words .framepainter-chip')?.offsetParent)
}"""
ANSWERS = "texts => Promise.all(texts.map(async t => (await fetch('/framepainter/words', {method: 'POST', body: t})).status))"


class Chips:
    def __init__(self, canvas):
        self.page = canvas.page
        self.root = self.page.locator(".framepainter-words")

    def chip(self, side: str, word: str):
        return self.root.locator(f".framepainter-chip[data-list={side}]", has_text=word).first

    def text(self) -> str:
        return self.page.evaluate(VALUE, [NODE, "words"])

    def said(self, text: str | None = None) -> dict[str, dict]:
        """Entries by side and word, without numbers and words.

        Args:
            text: that says them; None is the node's own.
        """
        state = json.loads((self.text() if text is None else text) or "{}")
        return {side: {e["word"]: {k: v for k, v in e.items() if k not in ("at", "word")} for e in state.get(side, [])}
                for side in ("source", "edited")}

    def wait(self, side: str, label: str, kind: str) -> None:
        """Wait until the server's reading shows a word so."""
        self.root.locator(f'.framepainter-chip[data-list={side}][data-kind={kind}][aria-label="{label}"]').first.wait_for()

    def drag_while_the_server_answers(self, side: str, word: str, pixels: float, change: Callable[[], None]) -> None:
        """Drag a word; the answer to a change that was made just before arrives in the middle of it."""
        chip, held = self.chip(side, word), []
        self.page.route(PATH, lambda route: held.append(route))
        with self.page.expect_request(PATH):
            change()
        element = chip.element_handle()
        chip.hover()
        self.page.mouse.down()
        box = chip.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x + pixels / 2, y, steps=2)
        with self.page.expect_response(PATH) as answer:
            held.pop().continue_()
        answer.value.finished()
        self.page.unroute(PATH)
        self.page.mouse.move(x + pixels, y, steps=2)
        self.page.mouse.up()
        assert element.evaluate("chip => chip.isConnected && chip === document.activeElement"), "the pressed chip was replaced"


def use_in_a_subgraph(canvas, chips: Chips) -> None:
    """The blueprint: chips inside it read the prompts on its face, and a run gets what they say."""
    page = canvas.page
    page.evaluate(ADD_BLUEPRINT, BLUEPRINT)
    page.evaluate(ENTER)
    page.wait_for_function(SHOW_INSIDE, arg=NODE, polling=200)
    chips.wait("edited", "blue, takes the place of red", "swapped")
    page.evaluate(ON_FACE, ["edited_text", "a blue square on a white ground"])
    chips.wait("edited", "white, takes the place of green", "swapped")
    chips.root.locator("[data-action=reset]").click()
    chips.chip("edited", "white").click()
    chips.chip("edited", "blue").focus()
    page.keyboard.press("Shift+ArrowUp")
    chips.wait("edited", "blue, takes the place of red, weight 2", "swapped")
    assert chips.root.count() == 1
    asked = page.evaluate(ASKED, NODE)
    assert asked["edited_text"] == "a blue square on a white ground"
    assert chips.said(asked["words"]) == {"source": {"green": {"blend": True}},
                                          "edited": {"white": {"blend": True}, "blue": {"weight": 2}}}


@pytest.fixture(scope="module")
def by_text(lab) -> torch.Tensor:
    """The template's edited frames as its text form gives them, which the words by hand have changed."""
    prompt = examples.small(examples.prompt("video_p2p_words"))
    frames, automatic = (torch.stack(lab.run(examples.small(prompt, **{NODE: words}), 120)["Edited frames"])
                         for words in ({}, {"words": ""}))
    assert not torch.equal(frames, automatic)
    return frames


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_words_are_chosen_with_mouse_and_keys_and_run_as_the_text_does(browser, lab, by_text, vue):
    with canvas_page(browser, lab.server.url, vue=vue) as canvas:
        content = canvas.load_template("/api/workflow_templates/ComfyUI-FramePainter/video_p2p_words.json")
        canvas.set_widget("FramePainterInvertDDIM", **STEPS)
        canvas.page.evaluate(LOOK_AT, NODE)
        chips = Chips(canvas)
        chips.chip("edited", "blue").wait_for()
        typed = chips.text()
        assert chips.chip("edited", "blue").inner_text().split() == ["blue", "×2"], "the text form shows as chips"
        assert chips.chip("source", "disc").get_attribute("data-area") == "blend"
        chips.root.locator("[data-action=reset]").click()
        assert chips.text() == ""
        for told in (("source", "red, becomes blue", "swapped"), ("source", "disc, kept", "kept"),
                     ("edited", "blue, takes the place of red", "swapped")):
            chips.wait(*told)

        chips.drag_while_the_server_answers("edited", "blue", PIXELS, lambda: chips.chip("edited", "disc").click())
        assert chips.said() == {"source": {"disc": {"blend": True}}, "edited": {"blue": {"weight": 2}, "disc": {"blend": True}}}
        wanted = chips.text()
        # By the keys: from one chip to the next, a weight, not here, and all taken back.
        chips.chip("edited", "blue").focus()
        for key in ("End", "ArrowLeft", "ArrowUp", "Shift+ArrowUp", "Shift+Enter"):
            canvas.page.keyboard.press(key)
        assert [chips.said()[side]["green"] for side in ("source", "edited")] == [{"away": True}, {"weight": 2.1, "away": True}]
        canvas.page.screenshot(path=artefact(f"words_{'vue' if vue else 'classic'}.png"))
        canvas.page.keyboard.press("Delete")
        assert chips.text() == wanted and len(canvas.nodes()) == len(examples.every_node(content))
        # What a word is, by the list below.
        chips.chip("edited", "blue").focus()
        chips.root.locator("select").select_option("added")
        chips.wait("edited", "blue, added, weight 2", "added")
        chips.root.locator("select").select_option("automatic")
        chips.wait("edited", "blue, takes the place of red, weight 2", "swapped")
        assert chips.text() == wanted
        # By double click, and back by the page's own undo, which makes the node again. The first click of the two may be a step.
        chips.chip("edited", "blue").dblclick()
        assert set(chips.said()["edited"]) == {"disc"}
        for _ in range(2):
            if (seen := chips.text()) != wanted:
                canvas.page.keyboard.press("Control+z")
                canvas.page.wait_for_function(CHANGED, arg=[NODE, "words", seen])
        assert chips.text() == wanted
        chips.wait("edited", "blue, takes the place of red, weight 2", "swapped")
        assert chips.root.count() == 1

        shown = canvas.run("Edited frames", 120)
        by_chips = torch.stack([examples.pixels(lab.server.fetch(image)) for image in shown])
        assert examples.inputs(examples.prompt("video_p2p_words"), NODE)["words"] == typed
        assert torch.equal(by_chips, by_text)

        assert canvas.page.evaluate(ANSWERS, ["{", "3", '{"source": 3}', "[" * 100_000, "{}"]) == [400, 400, 400, 400, 200]
        # Prompts that change under the chips, and prompts that the page cannot know.
        canvas.set_widget(NODE, edited_text="a blue square on a green ground")
        chips.root.locator(".framepainter-status", has_text="'disc' was chosen").wait_for()
        chips.root.locator("[data-action=drop]").click()
        assert chips.said()["edited"] == {"blue": {"weight": 2}}
        canvas.set_widget(NODE, edited_text="a blue cat " * 30)
        chips.root.locator(".framepainter-status", has_text="at most 75").wait_for()
        canvas.page.evaluate(LINK, NODE)
        chips.root.locator(".framepainter-status", has_text="edited_text comes from").wait_for()
        assert chips.root.locator("textarea").is_visible()
        canvas.page.evaluate("type => app.graph.remove(app.graph.nodes.find(n => n.type === type))", NODE)
        chips.root.wait_for(state="detached")
        canvas.page.evaluate(ADD, [NODE, "FramePainterPromptAttention"])  # not from a file
        chips.root.wait_for(state="visible")
        use_in_a_subgraph(canvas, chips)
        assert "Render Error" not in canvas.page.inner_text("body")
        assert [c for c in canvas.complaints if "framepainter" in c.lower() and "api.comfy.org" not in c] == []
