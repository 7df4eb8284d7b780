"""The signal nodes with what the editors write: results, warnings, and every kind of bad input."""

from __future__ import annotations

import json

import pytest
import torch


@pytest.fixture
def nodes(pack):
    class Hidden:
        unique_id = None

    found = {node.define_schema().node_id: node for node in pack("nodes").NODES}
    for name in ("FramePainterSketchSignal", "FramePainterCoarseSignal", "FramePainterDragSignal"):
        found[name].hidden = Hidden()
    return found


def sketch(nodes, **inputs):
    return nodes["FramePainterSketchSignal"].execute(**inputs).args


def coarse(nodes, **inputs):
    return nodes["FramePainterCoarseSignal"].execute(**inputs).args


def drag(nodes, picture, points, **inputs):
    return nodes["FramePainterDragSignal"].execute(picture=picture, points=points, **inputs).args


def state(kind: str, entries: list, width: int = 60, height: int = 40, **more) -> str:
    return json.dumps({"version": 1, "width": width, "height": height, kind: entries, **more})


LINE = [{"tool": "brush", "size": 4, "points": [10, 10, 50, 10]}]
BOX = [{"outline": [10, 10, 20, 10, 20, 20, 10, 20], "move": [30, 15]}]


def test_editors_write_the_widgets(nodes):
    """The frontend finds the editor by this name; the input has no socket and old workflows need not have it."""
    for node, name, editor in (("Sketch", "strokes", "SKETCH"), ("Coarse", "pieces", "COARSE"), ("Drag", "points", "DRAG")):
        inputs = nodes[f"FramePainter{node}Signal"].INPUT_TYPES()
        spec = {**inputs["required"], **inputs["optional"]}[name]
        assert spec[0] == "STRING" and spec[1]["widgetType"] == f"FRAMEPAINTER_{editor}" and spec[1]["socketless"]


# ---- sketch ----------------------------------------------------------------------------------------------------------


def test_strokes_alone(nodes):
    (signal,), (control,) = sketch(nodes, strokes=state("strokes", LINE))
    assert signal.control is control and control.shape == (1, 40, 60, 3)
    assert control[0, 9, 30, 0] == 1 and control[0, 20:].max() == 0


def test_strokes_over_a_batch_of_another_size(nodes):
    signals, controls = sketch(nodes, picture=torch.rand(3, 80, 120, 3), strokes=state("strokes", LINE))
    assert len(signals) == 3 and all(torch.equal(c, controls[0]) for c in controls)
    assert controls[0].shape == (1, 80, 120, 3) and controls[0][0, 19, 60, 0] == 1


def test_strokes_add_to_a_drawing_and_a_mask(nodes):
    drawing, mask = torch.ones(1, 40, 60, 3), torch.zeros(1, 40, 60)
    drawing[:, 20:23, 5:55], mask[:, 30:33, 5:55] = 0, 1
    _, (control,) = sketch(nodes, sketch=drawing, mask=mask, strokes=state("strokes", LINE))
    assert control[0, [10, 21, 31], 30, 0].min() == 1 and control[0, [15, 26, 37], 30, 0].max() == 0


def test_what_cores_painter_gives(nodes):
    """IMAGE: the picture with opaque strokes over it. MASK: the strokes' opacity, 1 on strokes."""
    picture, opacity = torch.rand(1, 40, 60, 3) * 0.5, torch.zeros(1, 40, 60)
    opacity[:, 20:24, 5:55] = 1
    painted = picture * (1 - opacity[..., None]) + opacity[..., None] * torch.tensor([1.0, 0.2, 0.9])
    for given in ({"sketch": painted, "picture": picture}, {"mask": opacity}, {"mask": opacity, "picture": picture}):
        _, (control,) = sketch(nodes, **given)
        assert torch.equal(control[..., 0] > 0.5, opacity > 0.5)


def test_load_images_black_mask_does_not_set_the_size(nodes):
    _, (control,) = sketch(nodes, mask=torch.zeros(1, 64, 64), strokes=state("strokes", LINE))
    assert control.shape == (1, 40, 60, 3)


@pytest.mark.parametrize("inputs, message", [
    ({"strokes": ""}, "Sketch Signal: nothing is drawn. Draw in the node's editor"),
    ({"strokes": state("strokes", [])}, "nothing is drawn"),
    ({"strokes": '{"version": 1, "wid'}, "Sketch Signal: strokes is .*cannot be read as JSON.*Draw in the node's editor"),
    ({"strokes": json.dumps({"strokes": LINE})}, "strokes does not say the width and height.*Connect the source picture"),
    ({"strokes": state("strokes", LINE), "picture": torch.rand(1, 50, 50, 3)},
     "strokes was drawn on a picture of 60 x 40, the connected one is 50 x 50.*size_mismatch to 'stretch'"),
])
def test_bad_sketches(nodes, inputs, message):
    with pytest.raises(ValueError, match=message):
        sketch(nodes, **inputs)


def test_a_sketch_outside_the_picture_is_empty(nodes, caplog):
    far = [{"tool": "brush", "size": 4, "points": [500, 500, 600, 500]}, {"points": []}]
    _, (control,) = sketch(nodes, strokes=state("strokes", far))
    assert control.max() == 0 and "stroke 2 has no points and was left out; the drawing is empty" in caplog.text


def test_an_erased_sketch_is_empty(nodes, caplog):
    sketch(nodes, strokes=state("strokes", [*LINE, {"tool": "eraser", "size": 40, "points": [0, 10, 60, 10]}]))
    assert "the drawing is empty" in caplog.text


# ---- drag ------------------------------------------------------------------------------------------------------------


def test_a_state_and_a_list_are_the_same(nodes):
    picture = torch.rand(2, 40, 60, 3)
    ((a, again),), ((b, _),) = drag(nodes, picture, state("drags", [[6, 10, 30, 20]])), drag(nodes, picture, "[[6, 10, 30, 20]]")
    assert torch.equal(a.points, b.points) and again is a
    assert torch.allclose(a.points, torch.tensor([[[0.1, 0.25, 0.5, 0.5]]]))
    ((doubled,),) = drag(nodes, torch.rand(1, 80, 120, 3), state("drags", [[6, 10, 30, 20]]))
    assert torch.equal(a.points, doubled.points)  # shares do not depend on the size


def test_drags_that_go_nowhere_are_left_out_and_told(nodes, caplog):
    entries = [[5, 5, 5, 5], [6, 10, 30, 20]] + [[9, 9, 9, 9]] * 8
    ((signal,),) = drag(nodes, torch.rand(1, 40, 60, 3), state("drags", entries))
    assert signal.points.shape == (1, 1, 4)
    assert "drag 1, [5, 5, 5, 5], goes nowhere and was left out" in caplog.text and "and 4 more" in caplog.text


def test_five_hundred_drags(nodes, pack):
    generator = torch.Generator().manual_seed(0)
    entries = (torch.rand(500, 4, generator=generator) * torch.tensor([60, 40, 60, 40])).tolist()
    ((signal,),) = drag(nodes, torch.rand(1, 40, 60, 3), state("drags", entries))
    assert signal.points.shape == (1, 500, 4)
    tokens = torch.rand(1, 2, 96, 8)
    found = pack("core.attention.drag")
    out = found.copy_tokens(tokens, found.token_drags(signal.points, 8, 12))
    assert torch.isfinite(out).all() and not torch.equal(out, tokens)


@pytest.mark.parametrize("points, message", [
    ("[]", "Drag Signal: points has no drags. Draw one"),
    ("", "points has no drags"),
    (state("drags", []), "points has no drags"),
    ("[[1, 2", "points is '..1, 2', which cannot be read as JSON.*Write each drag as"),
    ("[[1, 2, 3]]", r"drag 1 of points is \[1, 2, 3\]. Write each drag"),
    ("[[1, 2, 3, NaN]]", "drag 1 of points is"),
    (state("drags", [[1, 2, 3, 4], [1, 2, 61, 4]]), r"drag 2 of points, \[1, 2, 61, 4\], leaves the picture, which is 60 x 40"),
    ("[[-1, 2, 3, 4]]", r"drag 1 of points, \[-1, 2, 3, 4\], leaves the picture, which is 60 x 40. Move its points inside"),
    (state("drags", [[1, 2, 3, 4]], 50, 50), "points was drawn on a picture of 50 x 50, the connected one is 60 x 40"),
    (json.dumps([[1, 2, 3, 4]] * 2001), "points has 2001 drags; at most 2000"),
    ("[[7, 7, 7, 7]]", "no drag that goes anywhere; the 1 in it start and end at the same point"),
])
def test_bad_drags(nodes, points, message):
    with pytest.raises(ValueError, match=message):
        drag(nodes, torch.rand(1, 40, 60, 3), points)


def test_drags_of_another_shape_may_be_stretched(nodes):
    ((signal,),) = drag(nodes, torch.rand(1, 40, 60, 3), state("drags", [[10, 10, 25, 40]], 50, 50), size_mismatch="stretch")
    assert torch.allclose(signal.points, torch.tensor([[[0.2, 0.2, 0.5, 0.8]]]))


# ---- coarse edit -----------------------------------------------------------------------------------------------------


def test_pieces(nodes):
    picture = torch.rand(2, 40, 60, 3)
    signals, controls, holes, areas, clips, masks = coarse(nodes, picture=picture, pieces=state("pieces", BOX))
    assert len(signals) == 2
    for i in range(2):
        assert torch.equal(controls[i][0, 25:35, 40:50], picture[i, 10:20, 10:20]) and controls[i][0, 10:20, 10:20].max() == 0
        assert holes[i].shape == areas[i].shape == (1, 40, 60) and holes[i].sum() == 100 and areas[i].sum() == 200
        assert torch.equal(signals[i].control, controls[i]) and torch.equal(signals[i].area, areas[i])
        assert torch.equal(clips[i], torch.cat([picture[i:i + 1], controls[i]]))
        assert masks[i][0].min() == 1 and masks[i][1].sum() == 100


def test_frames_of_a_clip(nodes):
    *_, (clip,), (mask,) = coarse(nodes, picture=torch.rand(1, 40, 60, 3), pieces=state("pieces", BOX), frames=4)
    assert clip.shape == (4, 40, 60, 3) and mask.shape == (4, 40, 60)
    columns = [float((m * torch.arange(60)).sum() / m.sum()) for m in mask[1:]]
    assert columns == pytest.approx([24.5, 34.5, 44.5])


def test_an_edited_picture_as_before(nodes):
    """Inputs and first outputs of workflows made before there was an editor."""
    edited, picture, hole = torch.rand(1, 40, 60, 3), torch.rand(1, 40, 60, 3), torch.zeros(1, 40, 60)
    hole[:, :5] = 1
    (signal,), (control,), *_ = coarse(nodes, edited=edited, picture=picture, uncovered=hole, size_mismatch="error")
    assert control[:, :5].max() == 0 and torch.equal(control[:, 5:], edited[:, 5:]) and torch.equal(signal.control, control)
    (signal,), (control,), *_ = coarse(nodes, edited=edited, size_mismatch="error")
    assert torch.equal(control, edited) and signal.area is None


def test_area_of_an_edited_picture(nodes):
    picture = torch.rand(1, 40, 60, 3) * 0.5
    edited = picture.clone()
    edited[:, 10:20, 10:30] += 0.4
    (signal,), _, (hole,), (area,), *_ = coarse(nodes, edited=edited, picture=picture)
    assert area.sum() == 200 and hole.max() == 0 and torch.equal(signal.area, area)


@pytest.mark.parametrize("inputs, message", [
    ({}, "Coarse Edit Signal: no picture is connected. Connect the source picture to 'picture'"),
    ({"pieces": state("pieces", BOX)}, "no picture is connected"),
    ({"pieces": state("pieces", BOX), "edited": torch.rand(1, 40, 60, 3), "picture": torch.rand(1, 40, 60, 3)},
     "both 'edited' and 1 pieces of the editor are given.*Disconnect 'edited', or clear the editor"),
    ({"pieces": state("pieces", [{"outline": []}]), "picture": torch.rand(1, 40, 60, 3)}, "an outline of 0 corners"),
    ({"pieces": "{'version': 1}", "picture": torch.rand(1, 40, 60, 3)}, "cannot be read as JSON"),
    ({"pieces": state("pieces", BOX), "picture": torch.rand(1, 50, 50, 3)},
     "pieces was drawn on a picture of 60 x 40, the connected one is 50 x 50"),
])
def test_bad_pieces(nodes, inputs, message):
    with pytest.raises(ValueError, match=message):
        coarse(nodes, **inputs)


def test_nothing_moved_is_told(nodes, caplog):
    picture = torch.rand(1, 40, 60, 3)
    _, (control,), *_ = coarse(nodes, picture=picture, pieces=state("pieces", [{"outline": [1, 1, 2, 2, 3, 3]}]))
    _, (control,), *_ = coarse(nodes, picture=picture, pieces=state("pieces", [{"outline": [1, 1, 1, 2, 1, 3]}]))
    assert torch.equal(control, picture)
    assert "piece 1 has no area and was left out; nothing is moved, so the edit is the picture itself" in caplog.text


def test_control_without_an_encoder(nodes, pack):
    signal = pack("core.signals.edit_signal").EditSignal("sketch", torch.zeros(1, 8, 8, 3))
    with pytest.raises(ValueError, match="Apply Edit Signal: 'framepainter' is not connected, and a sketch signal needs"):
        nodes["FramePainterApplyEditSignal"].execute(None, signal, 1.0, 0.0, 1.0)


def test_a_model_of_another_signal_is_named(pack, caplog):
    """small_sketch in the place of small_drag succeeds, so it has to be said; drags beside its own sketch are no mistake."""
    folders, by_id = pack("host.weights.folders"), {n.define_schema().node_id: n for n in pack("nodes").NODES}
    kinds = pack("core.signals.edit_signal").EditSignal
    with torch.inference_mode():
        loaded = pack("host.weights.loading").load(folders.SHIPPED / "framepainter_small_sketch.safetensors", None, None, None)

        def apply(model, signal):
            caplog.clear()
            out = by_id["FramePainterApplyEditSignal"].execute(model, signal, 1.0, 0.0, 1.0, framepainter=loaded.weights).args[0]
            return out, [r.getMessage() for r in caplog.records]

        drag = kinds("drag", points=torch.tensor([[[0.1, 0.1, 0.5, 0.5]]]))
        model, said = apply(loaded.model, drag)
        assert len(said) == 1 and "Apply Edit Signal: 'framepainter_small_sketch' was trained on sketches" in said[0]
        model, said = apply(loaded.model, kinds("sketch", torch.zeros(1, 96, 96, 3)))
        assert said == [] and apply(model, drag)[1] == []
        assert "will hardly follow coarse edits" in apply(loaded.model, kinds("coarse", torch.zeros(1, 96, 96, 3)))[1][0]

        condition, picture = by_id["FramePainterConditioning"], torch.rand(1, 30, 40, 3)
        latent = condition.execute(loaded.clip_vision, loaded.vae, picture, 0, 0, "keep aspect", 6, 128, 0.02, 0).args[2][0]
        assert latent["samples"].shape[-2:] == (10, 14)  # 112 x 80
        with pytest.raises(ValueError, match="width is 0 and height is 64. Set both to 0"):
            condition.execute(loaded.clip_vision, loaded.vae, picture, 0, 64, "exact", 6, 128, 0.02, 0)
