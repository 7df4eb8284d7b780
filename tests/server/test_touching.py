"""The three signals on a real server, without a browser: edits land where they were told, and broken texts stop one run only."""

from __future__ import annotations

import json

import pytest
import torch
from framepainter_tests import examples
from framepainter_tests.examples import inputs, only_edited, pixels, prompt

WORKFLOWS = ["framepainter_drag", "framepainter_coarse", "framepainter_combined"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_object_moves_and_the_rest_keeps_its_bits(lab, name: str):
    """The shipped examples as they are, against the true picture."""
    source, truth = (pixels(examples.INPUTS[f"framepainter_{n}.png"]) for n in ("scene", "scene_truth"))
    edited = lab.edited(only_edited(prompt(name)))
    difference = (truth.float() - source.float()).abs().amax(-1)
    changed = difference > 25
    assert (edited.float() - truth.float())[changed].abs().mean() < 0.5 * (source.float() - truth.float())[changed].abs().mean()
    untouched = (edited == source).all(-1)
    assert untouched.float().mean() > 0.4 and untouched[difference > 60].float().mean() < 0.1


def test_a_large_photo_comes_back_as_large(lab, tmp_path):
    """4000 pixels wide: drawn on, edited at the model's size, put back; the rest bit for bit."""
    generator = torch.Generator().manual_seed(0)
    photo = torch.nn.functional.interpolate(torch.rand(1, 3, 10, 40, generator=generator), size=(1000, 4000), mode="bilinear")
    photo = (photo[0].movedim(0, -1) * 255 + torch.rand(1000, 4000, 3, generator=generator) * 8).clamp(0, 255).byte()
    request = prompt("framepainter_drag")
    inputs(request, "FramePainterPicture", "Picture")["image"] = lab.upload(tmp_path, "photo.png", photo)
    inputs(request, "FramePainterDragSignal")["points"] = json.dumps(
        {"version": 1, "width": 4000, "height": 1000, "drags": [[1000, 500, 1600, 500]]})
    inputs(request, "FramePainterConditioning").update(width=256, height=64)
    inputs(request, "KSampler")["steps"] = 2
    inputs(request, "FramePainterEditMask").update(grow=40)
    inputs(request, "FramePainterEditMask").pop("edited")
    inputs(request, "FramePainterKeepUntouched").update(feather=60)
    edited = lab.edited(only_edited(request))
    assert edited.shape == photo.shape
    same = (edited == photo).all(-1)
    radius = 100 + 40 + 60 + 2  # of the drag, grown, feathered
    assert same[:500 - radius].all() and same[500 + radius:].all() and same[:, 1600 + radius:].all()
    assert not same[450:550, 1000:1600].any()


BROKEN = {
    "framepainter_drag": ("FramePainterDragSignal", "points", [
        ("[[1, 2", "cannot be read as JSON"), ('{"drags": [[10, 10, 200, 10]], "width": 96, "height": 96}', "leaves the picture"),
        ('{"drags": [[9, 9, 9, 9]]}', "no drag that goes anywhere"),
        ('{"drags": [[1, 1, 9, 9]], "width": 40, "height": 96}', "was drawn on a picture of 40 x 96")]),
    "framepainter_coarse": ("FramePainterCoarseSignal", "pieces", [
        ('{"pieces": [{"outline": []}]}', "an outline of 0 corners"), ("{pieces}", "cannot be read as JSON"),
        ('{"version": 9}', "written by a newer editor")]),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_broken_texts_stop_one_run_only(lab, name: str):
    node, widget, texts = BROKEN[name]
    for text, message in texts:
        request = only_edited(prompt(name))
        inputs(request, node).update({widget: text, "size_mismatch": "error"})
        with pytest.raises(lab.tools.RunFailed) as caught:
            lab.server.run(request, 60.0)
        assert caught.value.node_type == node and message in caught.value.message
        assert f"{widget} " in caught.value.message or f" {widget}" in caught.value.message
    assert lab.server.alive()


def test_a_missing_picture(lab):
    request = only_edited(prompt("framepainter_coarse"))
    inputs(request, "FramePainterCoarseSignal").pop("picture")
    with pytest.raises(lab.tools.RunFailed) as caught:
        lab.server.run(request, 60.0)
    assert "no picture is connected. Connect the source picture to 'picture'" in caught.value.message


def test_500_drags_and_points_that_go_nowhere(lab):
    request = only_edited(prompt("framepainter_drag"))
    generator = torch.Generator().manual_seed(0)
    drags = (torch.rand(500, 4, generator=generator) * 96).tolist() + [[5, 5, 5, 5]]
    inputs(request, "FramePainterDragSignal")["points"] = json.dumps({"version": 1, "width": 96, "height": 96, "drags": drags})
    inputs(request, "KSampler")["steps"] = 2
    assert lab.edited(request).shape == (96, 96, 3)
