"""Pictures and masks in every form that other nodes give them: the right result, or one sentence."""

from __future__ import annotations

import math

import pytest
import torch

PICTURE, EDITED = torch.rand(2, 1, 64, 96, 3, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(1, 64, 96)
MASK[:, 20:40, 20:40] = 1


def rgba(x):
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


PICTURES = {"rgba": rgba, "without a batch": lambda x: x[0], "five dimensions": lambda x: x[None]}
MASKS = {"(B,1,H,W)": lambda m: m[:, None], "(B,H,W,1)": lambda m: m[..., None], "(H,W)": lambda m: m[0],
         "half": lambda m: m.half(), "bytes": lambda m: (m * 255).byte(), "bool": lambda m: m.bool()}


@pytest.fixture
def nodes(pack):
    return {node.define_schema().node_id.removeprefix("FramePainter"): node for node in pack("nodes").NODES}


@pytest.fixture
def runs(nodes):
    """What some nodes make of pictures and a mask."""
    return {
        "sketch": lambda p, q, m: nodes["SketchSignal"].execute(mask=m, picture=p).result[1][0],
        "coarse": lambda p, q, m: nodes["CoarseSignal"].execute(edited=q, picture=p, uncovered=m).result[1][0],
        "mask": lambda p, q, m: nodes["EditMask"].execute(p, 0.12, 0.1, 8, 0, mask=m).result[0],
        "keep": lambda p, q, m: nodes["KeepUntouched"].execute(p, q, m, 16, "outside", "off", "error").result[0],
    }


@pytest.mark.parametrize("form", MASKS)
def test_masks_of_four_dimensions_and_other_forms(runs, form):
    for name, run in runs.items():
        assert torch.equal(run(PICTURE, EDITED, MASKS[form](MASK)), run(PICTURE, EDITED, MASK)), name


@pytest.mark.parametrize("form", PICTURES)
def test_pictures_of_other_forms(runs, form):
    for name, run in runs.items():
        found = run(PICTURES[form](PICTURE), PICTURES[form](EDITED), MASK)
        assert torch.equal(found[..., :3] if name == "keep" else found, run(PICTURE, EDITED, MASK)), name


def test_sketch_rgba(nodes):
    drawn = PICTURE.clone()
    drawn[:, 20:30, 20:60] = torch.tensor([1.0, 0, 0])
    run = nodes["SketchSignal"].execute
    right = run(sketch=drawn, picture=PICTURE).result[1][0]
    for sketch, picture in ((drawn, rgba(PICTURE)), (rgba(drawn), rgba(PICTURE))):
        assert torch.equal(run(sketch=sketch, picture=picture).result[1][0], right)
    clear = rgba(torch.zeros_like(PICTURE))
    clear[..., 3] = 0
    clear[:, 20:30, 20:60, 3] = 1
    assert torch.equal(run(sketch=clear).result[1][0][..., 0] > 0.5, clear[..., 3] > 0.5)  # a fourth channel is still opacity


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8])
def test_other_types_of_numbers(pack, dtype):
    given = (PICTURE * 255).to(dtype) if dtype == torch.uint8 else PICTURE.to(dtype)
    found, bad = pack("core.images").as_pictures(given, "picture")
    assert found.dtype == torch.float32 and bad == 0
    assert (found - PICTURE).abs().max() < (1 / 250 if dtype != torch.float16 else 1e-3)


def test_what_is_in_form_is_not_copied(pack):
    images = pack("core.images")
    assert images.as_pictures(PICTURE, "picture")[0].data_ptr() == PICTURE.data_ptr()
    assert images.as_masks(MASK, "mask")[0] is MASK


def test_grey_pictures(pack):
    found, _ = pack("core.images").as_pictures(PICTURE[..., :1], "picture")
    assert torch.equal(found, PICTURE[..., :1].expand(1, 64, 96, 3))


def test_grey_pictures_with_opacity(pack):
    grey, alpha = PICTURE[..., :1], PICTURE[..., 1:2]
    for keep, wanted in ((False, grey.expand(-1, -1, -1, 3)), (True, torch.cat([grey, grey, grey, alpha], -1))):
        found, _ = pack("core.images").as_pictures(torch.cat([grey, alpha], -1), "picture", alpha=keep)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("bad, text", [
    (torch.zeros(2, 3, 64, 96, 3), r"'picture' is a tensor of shape \[2, 3, 64, 96, 3\]"), (torch.zeros(1, 3, 64, 96), "shape"),
    (torch.zeros(0, 64, 96, 3), r"'picture' holds no picture \(shape \[0, 64, 96, 3\]\)"), (torch.zeros(5), "shape")])
def test_pictures_that_are_none(nodes, bad, text):
    with pytest.raises(ValueError, match=f"Sketch Signal: .*{text}|{text}"):
        nodes["SketchSignal"].execute(mask=MASK, picture=bad)


def test_masks_that_are_none(nodes):
    with pytest.raises(ValueError, match=r"Keep Untouched: 'mask' is a tensor of shape \[1, 3, 64, 96\]; masks are"):
        nodes["KeepUntouched"].execute(PICTURE, EDITED, torch.zeros(1, 3, 64, 96), 16, "outside", "off", "error")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_pixel_is_named_and_does_not_spread(nodes, caplog, value):
    broken = EDITED.clone()
    broken[0, 30, 30, 1] = value
    found = nodes["KeepUntouched"].execute(PICTURE, broken, MASK, 16, "outside", "off", "error").result[0]
    right = nodes["KeepUntouched"].execute(PICTURE, EDITED, MASK, 16, "outside", "off", "error").result[0]
    assert torch.isfinite(found).all() and int((found != right).any(-1).sum()) == 1
    assert "Keep Untouched: 'edited' has 1 values that are not finite" in caplog.text


@pytest.mark.parametrize("node, name", [("Picture", "image"), ("Video", "file")])
def test_file_loaders(nodes, node, name):
    """A file is checked before a run; one that another node names is not known before it, and read again in every run."""
    known, missing = nodes[node].define_schema().inputs[0].options[0], "nothing.png"
    assert nodes[node].validate_inputs(**{name: known}) is True and nodes[node].validate_inputs() is True
    assert nodes[node].validate_inputs(**{name: missing}).startswith("'nothing.png' is neither in the input folder")
    assert nodes[node].fingerprint_inputs(**{name: known})[0] == known
    assert nodes[node].fingerprint_inputs(**{name: missing}) == [missing, None] and math.isnan(nodes[node].fingerprint_inputs())
