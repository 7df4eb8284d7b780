"""The pack in the real page: its workflows open in both renderers and run in the newer one; its help pages are there.

What the page sends to the server does not depend on the renderer; test_workflows.py runs both forms of every example.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from framepainter_tests import examples
from framepainter_tests.browser import artefact, canvas_page

RUN_TIMEOUT_S = 120.0
ALSO_CLASSIC = ("framepainter_sketch", "paint_and_propagate", "video_p2p_words")  # run in the older renderer, too


@pytest.fixture(params=[False, True], ids=["classic", "vue"])
def canvas(browser, server, request):
    with canvas_page(browser, server.url, vue=request.param) as page:
        yield page


def ours(canvas) -> list[str]:
    """Complaints of the page about this pack. The page also asks the registry about every node, and for sizes of downloads,
    in vain offline."""
    return [c for c in canvas.complaints if "framepainter" in c.lower() and "api.comfy.org" not in c
            and "huggingface.co" not in c]


@pytest.mark.parametrize("name", examples.NAMES)
def test_a_template_opens_and_runs(canvas, lab, good, name: str):
    content = canvas.load_template(f"/api/workflow_templates/ComfyUI-FramePainter/{name}.json")
    renderer = "vue" if canvas.vue else "classic"
    canvas.page.screenshot(path=artefact(f"{name}_{renderer}_opened.png"))
    if name == "framepainter_sketch":  # its files are not there: the page offers to download them
        canvas.wait_for_dialog()
        (offer,) = canvas.shown_errors()
        assert all(file in offer for file in ("framepainter / unet_diffusion_pytorch_model.safetensors", "Download",
                                              "framepainter / encoder_diffusion", "checkpoints / svd_xt_1_1")), offer
        canvas.close_dialog()
    assert canvas.shown_errors() == []
    assert canvas.outside() == [], "the saved view does not show them"
    definitions = lab.server.object_info()
    nodes, every = canvas.nodes(), examples.every_node(content)
    assert sorted(nodes) == sorted(str(n["id"]) for n in every)
    assert all(n["known"] for n in nodes.values()), nodes
    for saved in every:
        if saved["type"].startswith("FramePainter"):
            widgets = examples.widget_names(definitions[saved["type"]])
            expected = dict(zip(widgets, saved.get("widgets_values") or [], strict=True))
            assert nodes[str(saved["id"])]["widgets"] == expected
    assert canvas.overlaps() == []
    if not canvas.vue and name not in ALSO_CLASSIC:
        assert ours(canvas) == []
        return

    for node_type, values in examples.SMALL.items():
        if any(n["type"] == node_type for n in every):
            canvas.set_widget(node_type, **values)
    if name == "framepainter_sketch":
        canvas.set_widget("FramePainterLoad", **examples.RANDOM)
    results = ("Edited picture", "Previews", "Edited frames", "With LoRA")
    edited = next(n["title"] for n in every if n.get("title") in results)
    lab.forget()
    shown = canvas.run(edited, RUN_TIMEOUT_S)
    picture = examples.pixels(lab.server.fetch(shown[0]))
    if name == "framepainter_sketch":
        assert torch.equal(picture, good[1])
    canvas.fit()
    canvas.page.screenshot(path=artefact(f"{name}_{renderer}_run.png"))
    assert canvas.overlaps() == []
    assert ours(canvas) == []


def test_every_node_has_a_help_page(server, server_tools):
    types = [t for t, node in server.object_info().items()
             if t.startswith("FramePainter") and "test" not in node["category"]]
    assert len(types) >= 8
    lengths = {}
    for node_type in types:
        with contextlib.suppress(server_tools.ServerProblem):
            page = server._request(f"/extensions/ComfyUI-FramePainter/docs/{node_type}.md").decode()
            lengths[node_type] = len(page)
    assert [t for t in types if lengths.get(t, 0) < 200] == [], "no help page, or hardly any"
