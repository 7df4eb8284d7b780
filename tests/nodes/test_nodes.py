"""The nodes as the host sees them, and what they do at the edges of their inputs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("schema.json")


@pytest.fixture(scope="module")
def nodes(pack):
    return {node.define_schema().node_id: node for node in pack("nodes").NODES}


def described(node) -> dict:
    schema = node.define_schema()
    inputs = [{"id": i.id, "type": i.io_type, "optional": i.optional, "default": getattr(i, "default", None)}
              for i in schema.inputs]
    return {"inputs": inputs, "outputs": [[o.io_type, o.display_name, o.is_output_list] for o in schema.outputs]}


def test_ids_inputs_and_defaults_are_frozen(nodes):
    """Users' workflows depend on these. New inputs go to the end, optional, with a default; nothing is renamed."""
    found = {name: described(node) for name, node in nodes.items()}
    assert found == json.loads(SNAPSHOT.read_text())


def test_everything_is_explained(nodes):
    for name, node in nodes.items():
        schema = node.define_schema()
        assert schema.description, name
        assert all(output.tooltip for output in schema.outputs), name
        page = ROOT / "js" / "docs" / f"{name}.md"
        assert page.is_file(), f"no help page for {name}"
        text = page.read_text(encoding="utf-8")
        assert re.search(r"^## (What goes wrong|Common errors)$", text, re.MULTILINE), f"{page.name} does not say what goes wrong"
        for widget in schema.inputs:
            assert widget.tooltip, f"{name}.{widget.id} has no tooltip"
            assert f"`{widget.id}`" in text, f"{page.name} does not explain {widget.id}"


def test_the_page_can_show_what_explains_a_node(nodes):
    """The page takes these texts for translations, in which some characters have a meaning: it then cannot draw the node."""
    for name, node in nodes.items():
        schema = node.define_schema()
        texts = [schema.display_name, schema.description, *(i.tooltip for i in schema.inputs),
                 *(t for o in schema.outputs for t in (o.display_name, o.tooltip))]
        assert [t for t in texts if t and set(t) & set("@{}|")] == [], name


def test_help_pages_state_the_defaults(nodes):
    """A row for each input that has one, with it in the column before the last: what a reader looks up first."""
    wrong = []
    for name, node in nodes.items():
        rows = {}
        for line in (ROOT / "js" / "docs" / f"{name}.md").read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if len(cells) == 4:
                rows |= {found: cells[2].replace("*", "").replace("`", "").lower() for found in re.findall(r"`(\w+)`", cells[0])}
        for widget in node.define_schema().inputs:
            default = getattr(widget, "default", None)
            if default in (None, ""):
                continue
            said = {"true", "on", "yes"} if default is True else {"false", "off", "no"} if default is False else {
                f"{default:g}" if isinstance(default, float) else str(default).lower(), str(default).lower()}
            if not any(re.search(rf"(?<![\w.-]){re.escape(text)}(?![\w.]*\d)", rows.get(widget.id, "")) for text in said):
                wrong.append(f"{name}.{widget.id}: default {default!r}, the page says {rows.get(widget.id)!r}")
    assert not wrong, "\n".join(wrong)


def test_readme_lists_every_node(nodes):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name, node in nodes.items()
            if f"{node.define_schema().display_name.removesuffix(' Motion LoRA').removesuffix(' Tuned Video')}" not in text
            or f"(js/docs/{name}.md)" not in text] == []


def call(nodes, name: str, **inputs):
    return nodes[name].execute(**inputs).args


def sketch(nodes, **inputs):
    class Hidden:
        unique_id = None

    node = nodes["FramePainterSketchSignal"]
    node.hidden = Hidden()
    return node.execute(**inputs).args


def stroke(height: int, width: int, count: int = 1) -> torch.Tensor:
    image = torch.ones(count, height, width, 3)
    image[:, height // 4:height // 2, width // 4:width // 2] = 0
    return image


def test_sketch_is_resized_with_its_picture(nodes):
    signals, controls = sketch(nodes, sketch=stroke(100, 150), picture=torch.rand(1, 200, 300, 3))
    assert signals[0].control.shape == controls[0].shape == (1, 200, 300, 3)
    inside = controls[0][0, 60:90, 80:140]
    assert inside.min() > 0.95 and controls[0][0, 120:].max() == 0


def test_sketch_of_another_shape(nodes):
    with pytest.raises(ValueError, match="'sketch' is 100 x 100, its picture is 300 x 200.*size_mismatch to 'stretch'"):
        sketch(nodes, sketch=stroke(100, 100), picture=torch.rand(1, 200, 300, 3))
    _, (control,) = sketch(nodes, sketch=stroke(100, 100), picture=torch.rand(1, 200, 300, 3), size_mismatch="stretch")
    assert control.shape == (1, 200, 300, 3) and control[0, 60:90, 80:140].min() > 0.95


def test_load_images_black_mask_is_no_drawing(nodes, caplog):
    """Load Image gives a 64 x 64 black mask for an opaque picture: neither an error nor a stroke."""
    _, (control,) = sketch(nodes, sketch=stroke(200, 300), mask=torch.zeros(1, 64, 64), picture=torch.rand(1, 200, 300, 3))
    assert control.mean() > 0 and "empty" not in caplog.text
    sketch(nodes, mask=torch.zeros(1, 64, 64), picture=torch.rand(1, 200, 300, 3))
    assert "Sketch Signal: the drawing is empty" in caplog.text


def test_batches_pair_up(nodes, caplog):
    pictures = torch.rand(3, 20, 30, 3)
    drawings = stroke(20, 30, 3)
    drawings[1] = 1
    signals, _ = sketch(nodes, sketch=drawings, picture=pictures)
    assert len(signals) == 3 and "drawing 1 of 3 is empty" in caplog.text
    assert len(sketch(nodes, sketch=stroke(20, 30), picture=pictures)[0]) == 3
    with pytest.raises(ValueError, match="sketch has 2, picture has 3"):
        sketch(nodes, sketch=stroke(20, 30, 2), picture=pictures)


def test_sketch_needs_something(nodes):
    with pytest.raises(ValueError, match="nothing is drawn.*Connect a drawing"):
        sketch(nodes, picture=torch.rand(1, 20, 30, 3))
    with pytest.raises(ValueError, match="background is 'picture', but no picture"):
        sketch(nodes, sketch=stroke(20, 30), background="picture")


@pytest.mark.parametrize("picture, size, mode, expected", [
    ((1080, 1920), (1024, 576), "keep aspect", (576, 1024)),
    ((1920, 1080), (1024, 576), "keep aspect", (1024, 576)),
    ((1, 1), (1024, 576), "keep aspect", (768, 768)),
    ((50, 70), (120, 72), "exact", (72, 120)),
    ((4096, 4096), (64, 64), "exact", (64, 64)),
    ((100, 1), (1024, 576), "keep aspect", (7680, 80)),
    ((1, 4096), (1024, 576), "keep aspect", (64, 9216)),
])
def test_target_size(pack, picture, size, mode, expected):
    assert pack("nodes.conditioning").target_size(*picture, *size, mode) == expected


@pytest.mark.parametrize("picture, size, mode, message", [
    ((50, 70), (100, 64), "exact", "width is 100, not a multiple of 8. Set it to 96"),
    ((50, 70), (64, 3), "exact", "height is 3, not a multiple of 8. Set it to 8"),
])
def test_impossible_sizes(pack, picture, size, mode, message):
    with pytest.raises(ValueError, match=message):
        pack("nodes.conditioning").target_size(*picture, *size, mode)


@pytest.mark.parametrize("name, widget", [
    ("FramePainterLoad", "weight_dtype"), ("FramePainterSaveCheckpoint", "form"), ("FramePainterConditioning", "size_mode"),
    ("FramePainterSketchSignal", "background"), ("FramePainterSketchSignal", "size_mismatch"),
    ("FramePainterApplyEditSignal", "semantics"), ("FramePainterMatchingAttention", "semantics"),
    ("FramePainterGuidance", "schedule"), ("FramePainterCorrespondenceMap", "level")])
def test_a_choice_that_is_not_offered(nodes, name, widget):
    """Older hosts let a prompt through the API name any value for a list."""
    node = nodes[name]
    inputs = {i.id: None for i in node.define_schema().inputs}
    choices = next(i for i in node.define_schema().inputs if i.id == widget)
    defaults = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "options", None)}
    with pytest.raises(ValueError, match=f"{widget} is 'sideways'; choose one of {choices.options[0]}".replace("(", r"\(")
                       .replace(")", r"\)")):
        node.execute(**{**inputs, **defaults, widget: "sideways"})


def test_pick_edited_frame(nodes):
    frames = torch.stack([torch.full((8, 12, 3), v) for v in (0.25, 0.75)])
    edited, source = call(nodes, "FramePainterPickEditedFrame", images=frames)
    assert torch.equal(edited, frames[1:]) and torch.equal(source, frames[:1])
    edited, source = call(nodes, "FramePainterPickEditedFrame", images=frames, original=torch.zeros(1, 50, 70, 3))
    assert edited.shape == source.shape == (1, 50, 70, 3)
    assert (edited - 0.75).abs().max() < 0.01 and (source - 0.25).abs().max() < 0.01
    with pytest.raises(ValueError, match="got 1 frame, an edit has two.*VAE Decode"):
        call(nodes, "FramePainterPickEditedFrame", images=frames[:1])
