"""Edit Mask, Keep Untouched, Keep Untouched in Latents and FramePainter Dual Clock at the edges of their inputs."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests.live_memory import LiveMemory


@pytest.fixture(scope="module")
def nodes(pack):
    return {node.define_schema().node_id: node for node in pack("nodes").NODES}


def keep(nodes, original, edited, mask, feather=8, feather_side="outside", colour_match="off", size_mismatch="error"):
    return nodes["FramePainterKeepUntouched"].execute(original, edited, mask, feather, feather_side, colour_match,
                                                      size_mismatch).args


def edit_mask(nodes, picture, threshold=0.12, drag_radius=0.1, grow=0, feather=0, **inputs):
    return nodes["FramePainterEditMask"].execute(picture, threshold, drag_radius, grow, feather, **inputs).args[0]


def test_a_large_photo_keeps_its_bits_and_its_opacity(nodes):
    original = torch.rand(1, 1500, 2000, 4)
    mask = torch.zeros(1, 96, 128)
    mask[:, 40:60, 50:80] = 1
    image, weight = keep(nodes, original, torch.rand(1, 96, 128, 3), mask, 20, colour_match="mean")
    assert image.shape == original.shape and weight.shape == (1, 1500, 2000)
    assert torch.equal(image[weight == 0], original[weight == 0]) and torch.equal(image[..., 3], original[..., 3])
    assert weight[0, :600].max() == 0 and weight[0, 781, 1000] == 1 and (image != original).any()


def test_batches(nodes):
    originals, edits, mask = torch.rand(3, 40, 60, 3), torch.rand(3, 40, 60, 3), torch.zeros(40, 60)
    mask[10:20, 10:20] = 1
    images, weights = keep(nodes, originals, edits, mask, 0)
    assert torch.equal(images[:, 10:20, 10:20], edits[:, 10:20, 10:20])
    assert torch.equal(images[:, 20:], originals[:, 20:]) and len(weights) == 3
    with pytest.raises(ValueError, match="original has 3, edited has 2, mask has 1"):
        keep(nodes, originals, edits[:2], mask)


@pytest.mark.parametrize("masks", [1, 6])
def test_a_video_keeps_its_bits_frame_by_frame(nodes, masks):
    """One still mask or one a frame, an edit of another size; beside the results never more than a few frames exist."""
    originals, edits, mask = torch.rand(6, 90, 160, 3), torch.rand(6, 45, 80, 3), torch.zeros(masks, 45, 80)
    for i in range(masks):
        mask[i, 10:20, 5 * i:5 * i + 10] = 1
    with LiveMemory() as memory:
        images, weights = keep(nodes, originals, edits, mask, 4)
    assert torch.equal(images[weights == 0], originals[weights == 0]) and (images != originals).flatten(1).any(1).all()
    for i in range(6):
        assert all(torch.equal(a[i], b[0]) for a, b in zip((images, weights), keep(
            nodes, originals[i:i + 1], edits[i:i + 1], mask[min(i, masks - 1)][None], 4), strict=True))
    inputs = originals.nbytes + edits.nbytes + mask.nbytes
    assert memory.peak < inputs + images.nbytes + weights.nbytes + 3 * originals[0].nbytes


def test_another_shape(nodes):
    original, edited, mask = torch.rand(1, 40, 60, 3), torch.rand(1, 40, 40, 3), torch.ones(1, 40, 60)
    with pytest.raises(ValueError, match="Keep Untouched: 'edited' is 40 x 40, 'original' is 60 x 40.*size_mismatch"):
        keep(nodes, original, edited, mask)
    assert keep(nodes, original, edited, mask, size_mismatch="stretch")[0].shape == (1, 40, 60, 3)
    # Load Image's small black mask is no mask.
    assert torch.equal(keep(nodes, original, edited[:, :27], torch.zeros(1, 64, 64))[0], original)


@pytest.mark.parametrize("name", ["feather_side", "colour_match", "size_mismatch"])
def test_choices_are_checked(nodes, name):
    with pytest.raises(ValueError, match=f"Keep Untouched: {name} is 'sideways'; choose one of"):
        keep(nodes, torch.rand(1, 8, 8, 3), torch.rand(1, 8, 8, 3), torch.ones(1, 8, 8), **{name: "sideways"})


def test_edit_mask_unites_what_is_connected(nodes, pack):
    picture = torch.rand(1, 80, 120, 3)
    edited = torch.nn.functional.interpolate(picture.movedim(-1, 1), size=(40, 60), mode="bilinear",
                                             antialias=True).movedim(1, -1)
    edited[:, 20:30, 40:50] = 1 - edited[:, 20:30, 40:50].round()
    own = torch.zeros(1, 20, 30)
    own[:, :3, :3] = 1
    signal = pack("core.signals.edit_signal").EditSignal("drag", points=torch.tensor([[[0.1, 0.9, 0.3, 0.9]]]))
    both = edit_mask(nodes, picture, signal=signal, edited=edited, mask=own)
    assert both.shape == (1, 80, 120)
    assert both[0, 50, 90] > 0.9 and both[0, 3, 3] == 1 and both[0, 72, 24] == 1 and both[0, 40, 20] == 0
    assert edit_mask(nodes, picture, edited=edited)[0, 3, 3] == 0
    larger = edit_mask(nodes, picture, grow=10, edited=edited)
    assert larger[0, 32, 90] == 1 and edit_mask(nodes, picture, edited=edited)[0, 32, 90] == 0


def test_edit_mask_compares_with_the_reconstruction(nodes):
    """What the model changes everywhere is no edit if it is in both frames."""
    picture = torch.rand(1, 40, 60, 3)
    frame = torch.rand(1, 40, 60, 3)
    assert edit_mask(nodes, picture, edited=frame).mean() > 0.5
    assert edit_mask(nodes, picture, edited=frame, compare=frame).max() == 0


def test_edit_mask_needs_something(nodes):
    with pytest.raises(ValueError, match="Edit Mask: nothing tells where the edit is. Connect 'signal', 'edited' or 'mask'"):
        edit_mask(nodes, torch.rand(1, 8, 8, 3))


@pytest.mark.parametrize("changes, message", [
    ({"weak": 0.6}, "weak 0.6 is above strong 0.42"),
    ({"latent": {"samples": torch.zeros(1, 4, 8, 8)}}, "'latent' has 1 frame. Connect the latent of FramePainter Conditioning"),
    ({"clip": torch.rand(1, 64, 64, 3)}, "'clip' is a single picture, and no source is connected"),
    ({"clip": torch.rand(5, 64, 64, 3)}, "'clip' has 5 pictures, 'latent' 2 frames. Set frames of Coarse Edit Signal to 2"),
    ({"mask": torch.rand(5, 64, 64)}, "'mask' has 5 masks, 'latent' 2 frames"),
])
def test_clocks_that_cannot_run(nodes, changes, message):
    inputs = {"model": None, "vae": None, "latent": {"samples": torch.zeros(2, 4, 8, 8)}, "clip": torch.rand(2, 64, 64, 3),
              "mask": torch.ones(2, 64, 64), "weak": 0.32, "strong": 0.42, **changes}
    with pytest.raises(ValueError, match=f"FramePainter Dual Clock: {message}"):
        nodes["FramePainterDualClock"].execute(**inputs)


def test_an_empty_mask_for_the_latents(nodes):
    with pytest.raises(ValueError, match="Keep Untouched in Latents: 'mask' is empty"):
        nodes["FramePainterKeepLatent"].execute({"samples": torch.zeros(2, 4, 8, 8)}, None, torch.rand(1, 64, 64, 3),
                                                torch.zeros(64, 64))


def test_every_step_finds_the_picture_where_conditioning_put_it(nodes, pack):
    """A network that returns what it sees: whatever aspect ratio, nothing moved. Ramps of place show a shift of a pixel."""
    placement, (height, width) = pack("core.placement"), (300, 400)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    picture = torch.stack([x, y, x * y], -1)[None]
    canvas = placement.canvas_size(height, width, 96 * 96)
    placed = placement.placed_size(height, width, *canvas)
    assert placed != canvas
    small = torch.nn.functional.interpolate(picture.movedim(-1, 1), size=placed, mode="bilinear", antialias=True)
    seen = placement.on_canvas(small, *canvas).movedim(1, -1)

    limit = 1.5 / placed[1]  # resizing goes through 8 bits
    assert (keep(nodes, picture, seen, torch.ones(1, height, width), 0)[0] - picture).abs().max() < limit
    picked = nodes["FramePainterPickEditedFrame"].execute(torch.cat([seen, seen]), picture).args[0]
    assert (picked - picture).abs().max() < limit
    assert edit_mask(nodes, picture, 0.02, edited=seen).max() == 0
    cells = pack("core.keeping.paste").latent_cells((x > 0.5)[None], canvas[0] // 8, canvas[1] // 8, 0.5, placed)[0, 0]
    assert [bool(c) for c in cells[0]] == [8 * i + 4 > placed[1] / 2 for i in range(canvas[1] // 8)]


def test_drags_and_controls_act_where_the_picture_is(pack):
    placement, drag = pack("core.placement"), pack("core.attention.drag")
    canvas, size = placement.canvas_size(300, 400, 96 * 96), (300, 400)
    placed = placement.placed_size(*size, *canvas)
    points = torch.tensor([[[0.94, 0.5, 0.94, 0.1]]])
    patch = pack("host.signals.drag").DragPatch(points, 1.0, (1000.0, 0.0), size)
    h, w = (side // 8 for side in canvas)
    tokens = torch.zeros(2, h * w, 1)
    tokens[0] = torch.arange(h * w)[:, None] + 1.0
    out = patch(tokens, {"sigmas": torch.tensor([5.0]), "cond_or_uncond": [0], "original_shape": [2, 8, h, w]})
    column = int(0.94 * placed[1] / 8)
    assert column != int(0.94 * w)
    target = int(0.1 * placed[0] / 8) * w + column
    assert out[1].nonzero()[:, 0].tolist() == [target]
    assert float(out[1, target]) == int(0.5 * placed[0] / 8) * w + column + 1
    assert drag.token_drags(points, h, w).target[0, 0] == int(0.1 * h) * w + int(0.94 * w)
