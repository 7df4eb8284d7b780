"""Rewrite the canvas forms workflows/*.json from the API forms workflows/api/*.json.

    <python with playwright> tools/making/canvas_export.py http://127.0.0.1:8188 --chrome /usr/bin/chromium [NAME ...]

The page of a running server lays it out and serialises it, so the file is what that ComfyUI itself would save. Use the
oldest supported one (the pinned host, `python dev.py serve`): newer ones read its files, not the other way round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import Page, sync_playwright

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"


class Layout(NamedTuple):
    """note: text of the Markdown note.  groups: title -> (x, y, width, height).  nodes: node id in the API file, or
    "note" -> the same. Room is left below every node: nodes are taller in the newer renderer, and nodes
    that show pictures grow: nothing stands below them."""

    note: str
    groups: dict[str, tuple[int, int, int, int]]
    nodes: dict[int | str, tuple[int, int, int, int]]


SKETCH_NOTE = """\
### Weight files

| widget | file | folder |
| --- | --- | --- |
| model_file | unet_diffusion_pytorch_model.safetensors | models/framepainter |
| encoder_file | encoder_diffusion_pytorch_model.safetensors | models/framepainter |
| clip_and_vae | an SVD checkpoint, such as svd_xt_1_1.safetensors | models/checkpoints |

The first two: Hugging Face, **Yabo/FramePainter**. The third: **stabilityai/stable-video-diffusion-img2vid-xt-1-1**.
A new file shows in the lists after pressing R.

**Your own edit:** choose or upload a picture, bypass the Sketch node (Ctrl+B), and press **Draw** on Sketch Signal. Or load a
drawing of the same aspect ratio, as here: any colour on any plain ground.

**Values:** cfg 3, 25 steps and strength 0.8 are the FramePainter authors'.
"""
SMALL_NOTE = """\
### Runs as it is

The small model comes with the pack: coloured shapes on smooth grounds, 96 x 96 pixels, trained from scratch on made-up
scenes. It shows what the nodes do, but knows nothing of photographs. For those see *framepainter_sketch*.

**Picture** and **Sketch** are examples that come with the pack; choose or upload your own there.

**Your own edit:** on white, draw the outline of the shape in its new place, about as large as it is now.
"""
EVALUATE_NOTE = """\
### How far is an edit from the true picture?

Runs as it is, on the small model of the pack. **Picture**, **Sketch** and **Truth** are examples that come with it.

**Evaluate Edits** writes a table with the errors of the edit, and for comparison those of the unedited picture. Connect
batches to measure sets, masks to measure areas, and a CLIP vision model for CLIP-FID.
"""
TRAIN_NOTE = """\
### Training on a small scale

Makes pairs of moving shapes, shows them, and trains a sketch model from the small base model that comes with the pack: a
minute or two on a CPU. Cancel at any time and queue again to resume; raise `steps` to train longer.

**From your own videos:** replace *Procedural Dataset* with *Build Dataset*, and *Load FramePainter* with *Image Only Checkpoint
Loader* and an SVD checkpoint, disconnect `framepainter`, and choose a preset that fits your card.

Everything is saved under `output/framepainter_datasets` and `output/framepainter_training`.
"""
DRAG_NOTE = """\
### Drag

Runs as it is, on the small model that comes with the pack. In **Picture** choose or upload your own: any size, any shape.

In **Drag Signal**: press on something, pull it to its new place, release. Several points move it more reliably than one.

**Edit Mask** finds what changed, **Keep Untouched** takes everything else from the picture itself, bit for bit, at its own size.
"""
COARSE_NOTE = """\
### Coarse edit

Runs as it is, on the small model that comes with the pack. In **Picture** choose or upload your own: any size, any shape.

In **Coarse Edit Signal**: lasso something, then move, turn, scale, flip, copy or delete it. Leave the background black,
as in the model's training.

**Edit Mask** finds what changed, **Keep Untouched** takes everything else from the picture itself, bit for bit, at its own size.
"""
COMBINED_NOTE = """\
### All three signals at once

Runs as it is, on the small sketch model that comes with the pack. In **Picture** choose or upload your own: any size, any shape.

The sketch says where the outline will be (strength 0.8, the whole run), the drags where the inside comes from (0.5, the
first half). The run starts from the coarse edit (**FramePainter Dual Clock**), which needs no training.
"""
EDIT_GROUPS = {
    "1 Picture and sketch": (0, 0, 360, 930),
    "2 Model": (380, 0, 560, 930),
    "3 Edit": (960, 0, 1280, 930),
    "4 Result": (2260, 0, 1840, 930),
}
EDIT_NODES: dict[int | str, tuple[int, int, int, int]] = {
    1: (20, 80, 320, 360), 2: (20, 530, 320, 360),
    3: (400, 80, 520, 190), "note": (400, 390, 520, 500),
    5: (980, 80, 280, 480), 4: (980, 650, 280, 250),
    6: (1300, 80, 280, 180), 7: (1620, 80, 280, 70), 8: (1940, 80, 280, 270),
    9: (2280, 80, 280, 60), 10: (2600, 80, 280, 60), 11: (2920, 80, 560, 460),
    12: (2280, 530, 280, 160), 13: (2600, 530, 280, 160), 14: (3520, 80, 560, 460),
}
CLIP_NOTE = """\
### Edit the first frame, the clip follows

Runs as it is, on the small base model of the pack. **Clip** is an example that comes with it; choose or upload your own there.

**Smooth Area Perturbation** adds invisible noise to areas without detail, **Invert EDM** finds the noise that the clip could have
been made from, **Match Attention** makes the edit follow the source. **Difference Mask** shows where it did not.

**Your own clip:** an SVD checkpoint in *Load FramePainter* (or *Image Only Checkpoint Loader*), 14 frames at 1024 x 576, motion
bucket 127, preset *local edit*, guidance 2, and a motion LoRA from *Train Motion LoRA* between model and *Match Attention*.
"""
LONG_NOTE = """\
### A video of any length

Runs as it is, on the small base model of the pack. **Video** is an example that comes with it; choose or upload your own there.

**Plan Clips** says how the video is split, **Propagate Edit** does everything: motion LoRA, inversion and sampling,
clip after clip. Cancel at any time and queue again to resume. Another edited frame for the same video reuses LoRA and inversion.

**Your own video:** an SVD checkpoint, length 14 (SVD) or 25 (SVD-XT), about 7 sampled frames per second, 1024 x 576, 250 LoRA steps
at 0.0005 and rank 32, preset *local edit*, threshold 0.35, motion bucket 127, guidance 2, precision bf16.
"""
PAINT_NOTE = """\
### Paint on the first frame, the whole video follows

Runs as it is, on the small models of the pack. **Video** is an example that comes with it; choose or upload your own there.

In **Coarse Edit Signal** open the editor: it shows the first frame after one run. Lasso something, move, turn, scale, copy or
delete it. **Painted first frame** is the edit, **Propagate Edit** carries it through the video. Cancel at any time and
queue again to resume.

**Another signal:** use *Sketch Signal* or *Drag Signal* and its model instead of the coarse edit.
"""
LORA_NOTE = """\
### A motion LoRA for one clip

Runs as it is, on the small base model of the pack. **Clip** is an example that comes with it; choose or upload your own there.

**Train Motion LoRA** learns how the clip moves; both samplers then make a clip from its first frame, with the same noise. The
saved file is an ordinary LoRA for ComfyUI's LoRA loaders, and for **Match Attention** and **Propagate Edit**.

**Your own clip:** an SVD checkpoint, 14 frames, preset *8 GB* or *12 GB*, 250 steps at 0.0005 and rank 32.
"""
P2P_NOTE = """\
### Change a video by changing words

Runs as it is, on the small text-to-image model of the pack. **Video** is an example that comes with it; choose or upload
your own there. It takes about a minute on a CPU.

**Prompt Edit** compares the two prompts: words that differ are swapped. `@disc` and `@square` restrict the edit to where these
words look. **Word Map** shows where the changed words looked.

**Your own video:** a Stable Diffusion 1.x checkpoint in *Load Checkpoint*, 8 frames of 512 x 512, 50 steps, cfg 7.5,
cross_steps 0.2, map_scale 4. That has not been measured here; the small model knows coloured shapes only.
"""
P2P_WORDS_NOTE = """\
### Choices for single words

Runs as it is, on the small text-to-image model of the pack. **Video** is an example that comes with it; choose or upload
your own there.

The words of **Prompt Edit** are chips: click one for where the edit may act, with Shift for where it may not, drag it sideways
for a weight. *As text* shows the same: `red > blue` swaps, `blue *2` gives a word twice its attention, `@disc` restricts the edit
to where the disc is, `-@ground` would keep it away from the ground. **Words** shows how the prompts were understood.
"""
P2P_TUNE_NOTE = """\
### Tune on a video, then edit it

Runs as it is, on the small text-to-image model of the pack. **Video** is an example that comes with it; choose or upload
your own there.

**Tune on Video** trains on this one video: 40 steps here, 300 to 500 as published. It shows the loss and, below, a preview while it
trains. Cancel at any time and queue again to resume. The file that *Save Tuned Video* writes is read by *Load Tuned Video*.
"""
P2P_LONG_NOTE = """\
### More than eight frames

Runs as it is, on the small text-to-image model of the pack. **Video** is an example that comes with it; choose or upload
your own there. It takes a few
minutes on a CPU.

All 24 frames are one video for the model. If they do not fit on a card, switch on **streamed** of *Video Text Model*: the
result is the same, but it takes longer.
"""
CARRY_NOTE = """\
### Runs as it is

No model, no download, no graphics card. **Edited frame 8** is frame 8 of the video, edited in any program: the grass is
red. **Carry Edit** carries this to the frames before and after. All other pixels stay the same, bit for bit.

**Your own:** choose a video, save one of its frames, edit it, choose it in *Edited frame*, and write its number in *keyframes*,
counted from 0. For several keyframes use Batch Images, and separate the numbers by commas.

**Confidence** is dark where the result is a guess: edit another keyframe there.

The clip is from *Big Buck Bunny*, (c) 2008 Blender Foundation, CC BY 3.0, www.bigbuckbunny.org.
"""
P2P_GROUPS = {
    "1 Video and model": (0, 0, 700, 1000), "2 Words": (720, 0, 400, 1000), "3 Invert": (1140, 0, 720, 1000),
    "4 Edit": (1880, 0, 740, 1000), "5 Result": (2640, 0, 2360, 1000),
}
P2P_NODES: dict[int | str, tuple[int, int, int, int]] = {
    1: (20, 80, 320, 300), 2: (20, 520, 320, 100), 3: (360, 80, 320, 130), "note": (-520, 80, 480, 520),
    4: (740, 80, 360, 480), 5: (740, 720, 360, 140), 6: (1160, 80, 320, 80), 7: (1160, 320, 320, 120), 8: (1520, 80, 320, 160),
    9: (1900, 80, 340, 560), 10: (1900, 820, 340, 80), 11: (2280, 80, 320, 300), 12: (2280, 640, 320, 80),
    13: (2660, 80, 320, 300), 14: (2660, 640, 320, 120), 15: (3020, 80, 360, 380), 16: (3420, 80, 560, 400),
    17: (4620, 80, 360, 320), 18: (4020, 80, 560, 400),
}
LAYOUTS = {
    "paint_and_propagate": Layout(
        PAINT_NOTE,
        {"1 Video": (-360, 0, 1120, 930), "2 Paint on its first frame": (780, 0, 1020, 930),
         "3 Edit of the frame": (1820, 0, 1320, 930),
         "4 The video follows": (3160, 0, 980, 1060), "5 Result": (4160, 0, 2020, 930)},
        {1: (-340, 80, 320, 300), 2: (20, 80, 320, 200), 3: (20, 400, 320, 400), 4: (380, 80, 360, 460),
         6: (800, 80, 420, 700), 5: (1260, 80, 520, 190), "note": (1260, 390, 520, 500),
         7: (1840, 80, 280, 250), 8: (2160, 80, 280, 180), 9: (2160, 400, 280, 70), 10: (1840, 500, 280, 240),
         11: (2160, 600, 280, 100), 12: (2480, 80, 280, 270), 13: (2480, 480, 280, 60), 14: (2480, 660, 280, 60),
         15: (2820, 80, 300, 240), 17: (3180, 80, 520, 190), 18: (3740, 80, 360, 840), 16: (3180, 390, 520, 460),
         19: (4180, 80, 280, 130), 20: (4500, 80, 460, 560), 21: (5000, 80, 560, 560), 22: (5600, 80, 560, 460)}),
    "carry_real_clip": Layout(
        CARRY_NOTE,
        {"1 Video and edited frame": (0, 0, 700, 930), "2 Carry": (720, 0, 720, 930), "3 Result": (1460, 0, 2000, 930)},
        {1: (20, 80, 320, 300), 3: (360, 80, 320, 360), "note": (-520, 80, 480, 560), 2: (740, 80, 320, 200),
         4: (1100, 80, 320, 260), 5: (1480, 80, 280, 130), 8: (1480, 390, 280, 80), 6: (1800, 80, 460, 560),
         7: (2300, 80, 560, 560), 9: (2900, 80, 540, 560)}),
    "i2vedit_motion_lora": Layout(
        LORA_NOTE,
        {"1 Clip": (-360, 0, 720, 930), "2 Model": (380, 0, 560, 930), "3 Train": (960, 0, 720, 930),
         "4 The same noise with and without": (1700, 0, 1320, 930), "5 Result": (3040, 0, 2000, 930)},
        {1: (-340, 80, 320, 300), 2: (20, 80, 320, 100), 6: (20, 300, 320, 130), 7: (20, 530, 320, 160), 3: (400, 80, 520, 190),
         "note": (400, 390, 520, 500),
         4: (980, 80, 340, 760), 5: (1360, 80, 300, 100), 8: (1720, 80, 300, 300), 9: (2060, 80, 300, 270),
         12: (2060, 520, 300, 270), 10: (2400, 80, 280, 60), 13: (2400, 520, 280, 60), 16: (2720, 80, 280, 130),
         11: (3060, 80, 460, 460), 14: (3560, 80, 460, 460), 15: (4060, 80, 460, 460), 17: (4560, 80, 460, 560)}),
    "i2vedit_small": Layout(
        CLIP_NOTE,
        {"1 Clip and edited frame": (-360, 0, 720, 930), "2 Model": (380, 0, 560, 930), "3 Invert the source": (960, 0, 1320, 930),
         "4 Edit": (2300, 0, 980, 930), "5 Result": (3300, 0, 2240, 930)},
        {1: (20, 80, 320, 300), 3: (-340, 80, 320, 360), 4: (400, 80, 520, 190), "note": (400, 390, 520, 500),
         2: (980, 80, 280, 100), 5: (980, 300, 280, 300), 6: (1300, 80, 280, 340), 7: (1620, 80, 300, 240), 8: (1960, 80, 300, 420),
         9: (2320, 80, 280, 300), 12: (2320, 560, 280, 90), 10: (2640, 80, 300, 560), 11: (2980, 80, 280, 90),
         13: (2980, 300, 280, 460), 14: (3320, 80, 280, 70), 15: (3320, 290, 280, 130), 17: (3320, 560, 280, 240),
         16: (3640, 80, 420, 500), 18: (4100, 80, 420, 500), 19: (4560, 80, 960, 500)}),
    "i2vedit_long": Layout(
        LONG_NOTE,
        {"1 Video and edited frame": (-360, 0, 720, 930), "2 Model": (380, 0, 560, 930), "3 Propagate": (960, 0, 720, 930),
         "4 Result": (1700, 0, 2020, 930)},
        {1: (20, 80, 320, 300), 3: (-340, 80, 320, 360), 4: (400, 80, 520, 190), "note": (400, 390, 520, 500),
         2: (980, 80, 300, 200), 5: (980, 400, 300, 400), 6: (1320, 80, 340, 840), 7: (1720, 80, 280, 130),
         8: (2040, 80, 460, 560), 9: (2540, 80, 560, 560), 10: (3140, 80, 560, 460)}),
    "framepainter_sketch": Layout(SKETCH_NOTE, EDIT_GROUPS, EDIT_NODES),
    "framepainter_small": Layout(SMALL_NOTE, EDIT_GROUPS, {**EDIT_NODES, 15: (2600, 790, 280, 80)}),
    "framepainter_evaluate": Layout(EVALUATE_NOTE, EDIT_GROUPS, {
        **{k: v for k, v in EDIT_NODES.items() if k != 12}, 12: (2280, 480, 280, 380), 13: (2600, 480, 280, 200)}),
    "framepainter_train": Layout(
        TRAIN_NOTE,
        {"1 Model and pairs": (0, 0, 560, 930), "2 Look at the pairs": (580, 0, 1160, 930), "3 Train": (1760, 0, 440, 930),
         "4 Result": (2220, 0, 1740, 930)},
        {"note": (-520, 80, 480, 420), 1: (20, 80, 520, 190), 2: (20, 390, 520, 420), 3: (600, 80, 540, 130),
         4: (1180, 80, 540, 260), 5: (1780, 80, 400, 700), 6: (2240, 80, 540, 420), 7: (2820, 80, 540, 420),
         8: (3400, 80, 540, 190)}),
}
KEEP_GROUPS = {
    "1 Picture and signal": (0, 0, 800, 930),
    "2 Model": (820, 0, 560, 930),
    "3 Edit": (1400, 0, 1280, 930),
    "4 Keep the rest": (2700, 0, 680, 930),
    "5 Result": (3400, 0, 1840, 930),
}
KEEP_NODES: dict[int | str, tuple[int, int, int, int]] = {
    1: (20, 80, 320, 360), 5: (360, 80, 420, 700),
    3: (840, 80, 520, 190), "note": (840, 390, 520, 500),
    4: (1420, 80, 280, 250), 6: (1740, 80, 280, 180), 7: (2060, 80, 280, 70), 8: (2380, 80, 280, 270),
    9: (2060, 480, 280, 60), 10: (2380, 480, 280, 60),
    16: (2720, 80, 300, 240), 17: (3060, 80, 300, 240),
    12: (3420, 80, 280, 160), 13: (3740, 80, 280, 160), 15: (3740, 390, 280, 80),
    11: (4060, 80, 560, 460), 14: (4660, 80, 560, 460),
}
COMBINED_GROUPS = {
    "1 Picture": (0, 0, 360, 930), "2 Signals": (380, 0, 1360, 930), "3 Model": (1760, 0, 560, 930),
    "4 Edit": (2340, 0, 1280, 930), "5 Keep the rest": (3640, 0, 680, 930), "6 Result": (4340, 0, 1840, 930),
}
COMBINED_NODES: dict[int | str, tuple[int, int, int, int]] = {
    1: (20, 80, 320, 360), 5: (400, 80, 420, 700), 18: (840, 80, 420, 700), 21: (1280, 80, 420, 700),
    3: (1780, 80, 520, 190), "note": (1780, 390, 520, 500),
    4: (2360, 80, 280, 250), 6: (2680, 80, 280, 180), 20: (2680, 480, 280, 180), 22: (3000, 80, 280, 180),
    7: (3000, 480, 280, 70), 8: (3320, 80, 280, 270), 9: (3320, 570, 280, 60), 10: (3320, 750, 280, 60),
    16: (3660, 80, 300, 240), 17: (4000, 80, 300, 240),
    12: (4360, 80, 280, 160), 13: (4680, 80, 280, 160), 15: (4680, 390, 280, 80),
    11: (5000, 80, 560, 460), 14: (5600, 80, 560, 460),
}
LAYOUTS |= {
    "framepainter_drag": Layout(DRAG_NOTE, KEEP_GROUPS, KEEP_NODES),
    "framepainter_coarse": Layout(COARSE_NOTE, KEEP_GROUPS, {**KEEP_NODES, 18: (3420, 390, 280, 160)}),
    "framepainter_combined": Layout(COMBINED_NOTE, COMBINED_GROUPS, COMBINED_NODES),
}
LAYOUTS |= {
    "video_p2p_edit": Layout(P2P_NOTE, P2P_GROUPS, P2P_NODES),
    "video_p2p_words": Layout(P2P_WORDS_NOTE, P2P_GROUPS, P2P_NODES),
    "video_p2p_long": Layout(P2P_LONG_NOTE, P2P_GROUPS, P2P_NODES),
    "video_p2p_tune": Layout(P2P_TUNE_NOTE, {**P2P_GROUPS, "5 Result": (2640, 0, 2960, 1000)}, {
        **P2P_NODES, 7: (1160, 320, 320, 420), 19: (1520, 560, 320, 240), 20: (5020, 80, 560, 320)}),
}
# Of a page of 1920 x 1000: what panels leave, and room for the newer renderer's wider nodes.
SCREEN, CORNER = (1560, 730), (120, 110)
GAP = 60  # between two rows of groups
# Files that full-size templates need and the page can offer to download: file name -> folder under models, address.
HUGGING_FACE = "https://huggingface.co/"
DOWNLOADS = {
    "unet_diffusion_pytorch_model.safetensors": ("framepainter", "Yabo/FramePainter"),
    "encoder_diffusion_pytorch_model.safetensors": ("framepainter", "Yabo/FramePainter"),
    "svd_xt_1_1.safetensors": ("checkpoints", "stabilityai/stable-video-diffusion-img2vid-xt-1-1"),
}


def in_rows(layout: Layout) -> Layout:
    """The same with its groups in as many rows as show it largest; what lies outside of groups goes with the nearest."""
    groups = list(layout.groups.items())

    def owner(x: float) -> int:
        return min(range(len(groups)), key=lambda i: max(groups[i][1][0] - x, x - groups[i][1][0] - groups[i][1][2], 0))

    def place(cuts: tuple[int, ...]) -> Layout:
        shifts, top = {}, 0
        for first, last in zip((0, *cuts), (*cuts, len(groups)), strict=True):
            left = min([groups[first][1][0]] + [x for x, *_ in layout.nodes.values() if first <= owner(x) < last])
            shifts |= {i: (-left, top) for i in range(first, last)}
            top += max(groups[i][1][3] for i in range(first, last)) + GAP
        moved = {title: (x + shifts[i][0], y + shifts[i][1], w, h) for i, (title, (x, y, w, h)) in enumerate(groups)}
        nodes = {n: (x + shifts[owner(x)][0], y + shifts[owner(x)][1], w, h) for n, (x, y, w, h) in layout.nodes.items()}
        return Layout(layout.note, moved, nodes)

    cuts = (c for rows in range(4) for c in itertools.combinations(range(1, len(groups)), rows))
    return max(map(place, cuts), key=lambda rows: (view_of(rows)["scale"], -max(x + w for x, _, w, _ in rows.groups.values())))


def view_of(layout: Layout) -> dict[str, Any]:
    """The saved view that shows all of it."""
    boxes = [*layout.groups.values(), *layout.nodes.values()]
    left, top = (min(box[axis] for box in boxes) for axis in (0, 1))
    width, height = (max(box[axis] + box[axis + 2] for box in boxes) - first for axis, first in ((0, left), (1, top)))
    scale = min(SCREEN[0] / width, SCREEN[1] / height, 1.0)
    return {"scale": round(scale, 3), "offset": [round(CORNER[i] / scale - first) for i, first in enumerate((left, top))]}


def with_downloads(workflow: dict[str, Any]) -> dict[str, Any]:
    """The files of DOWNLOADS noted on the nodes that name them, as the page reads them."""
    for node in workflow["nodes"]:
        files = [v for v in node.get("widgets_values") or [] if isinstance(v, str) and v in DOWNLOADS]
        if files:
            node["properties"]["models"] = [{"name": f, "url": f"{HUGGING_FACE}{DOWNLOADS[f][1]}/resolve/main/{f}",
                                             "directory": DOWNLOADS[f][0]} for f in files]
    return workflow


BUILD = """([api, name, nodes, groups, note, view]) => {
  app.loadApiJson(api, name)
  const place = (node, box) => { node.pos = box.slice(0, 2); node.setSize(box.slice(2)) }
  const text = LiteGraph.createNode('MarkdownNote')
  text.title = 'Read me'
  text.widgets[0].value = note
  app.graph.add(text)
  for (const node of app.graph.nodes) place(node, nodes[node === text ? 'note' : node.id])
  const sampler = app.graph.nodes.find(n => n.type === 'KSampler')
  const control = sampler?.widgets.find(w => w.name === 'control_after_generate')
  if (control) control.value = 'fixed'
  for (const [title, box] of Object.entries(groups)) {
    const group = new LiteGraph.LGraphGroup(title)
    group.pos = box.slice(0, 2)
    group.size = box.slice(2)
    app.graph.add(group)
  }
  const workflow = app.graph.serialize()
  // Without a view the page fits one after loading, and frontend 1.32.9 in Vue mode then tears the nodes apart.
  workflow.extra.ds = view
  return JSON.stringify(workflow)
}"""


def export(page: Page, name: str) -> dict[str, Any]:
    """The canvas form of an API prompt, laid out as LAYOUTS says."""
    api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    layout = in_rows(LAYOUTS[name])
    note, groups, nodes = layout
    page.wait_for_function("window.app?.extensionManager && window.app.graph && window.LiteGraph")
    page.wait_for_timeout(5000)  # its own first workflow would otherwise replace ours
    places = {str(k): v for k, v in nodes.items()}
    workflow = json.loads(page.evaluate(BUILD, [api, f"{name}.json", places, groups, note, view_of(layout)]))
    for node in workflow["nodes"]:
        if not node.get("widgets_values"):  # the page writes an empty list or nothing, by chance
            node.pop("widgets_values", None)
    return {**with_downloads(workflow), "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", help="address of a running server that has this pack")
    parser.add_argument("--chrome", required=True, help="a Chromium-like browser")
    parser.add_argument("names", nargs="*", help="workflows; all if none is named")
    options = parser.parse_intermixed_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chrome, args=["--headless", "--no-sandbox"])
        for name in options.names or LAYOUTS:
            page = browser.new_page()
            page.goto(options.server)
            text = json.dumps(export(page, name), indent=1, ensure_ascii=False) + "\n"
            (WORKFLOWS / f"{name}.json").write_text(text, encoding="utf-8")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
