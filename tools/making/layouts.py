"""Where the nodes of the templates stand, and which of them are folded into one.

Room is left below every node: nodes are taller in the newer renderer, and nodes that show pictures grow.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
from folding import Part  # noqa: E402

Box = tuple[int, int, int, int]  # x, y, width, height


class Layout(NamedTuple):
    """outside: node id of the API form, "note", or a part's name -> its place.  inside: node id -> its place in its part.
    parts: what is folded into one node each."""

    outside: dict[int | str, Box]
    inside: dict[int, Box] = {}
    parts: tuple[Part, ...] = ()


# Edits of a picture ------------------------------------------------------------------------------------

SETTINGS = ((3, "model_file"), (4, "width"), (4, "height"), (6, "strength"), (8, "steps"), (8, "cfg"), (8, "seed"))
WEIGHTS = {(3, 0): "model", (3, 1): "framepainter", (3, 2): "clip_vision", (3, 3): "vae"}
SKETCH_INSIDE = {
    3: (0, 0, 340, 190), 4: (400, 0, 280, 250), 5: (0, 320, 280, 480), 6: (740, 0, 280, 180), 7: (1080, 0, 280, 70),
    8: (1420, 0, 280, 270), 9: (1760, 0, 280, 60), 10: (2100, 0, 280, 60), 12: (1420, 420, 280, 160), 13: (1760, 420, 280, 160),
    15: (2100, 420, 280, 80)}
KEEP_INSIDE = {
    **SKETCH_INSIDE, 16: (2100, 220, 300, 240), 17: (2460, 0, 300, 240), 12: (1420, 560, 280, 160), 13: (1760, 560, 280, 160),
    15: (2100, 620, 280, 80), 18: (1080, 560, 280, 160)}
# What begins, and the first column of most.
FIRST_COLUMN: dict[int | str, Box] = {1: (0, 0, 320, 330), "note": (0, 400, 320, 340)}


def edit(name: str, nodes: tuple[int, ...], sockets: dict[tuple[int, int], str], result: int, sheet: int) -> Layout:
    """A picture, an editor, the edit, its picture and the contact sheet."""
    part = Part(name, nodes, {(1, 0): "picture", **sockets}, {(result, 0): "edited", (sheet, 0): "contact_sheet"}, SETTINGS)
    inside = {n: (KEEP_INSIDE if 17 in nodes else SKETCH_INSIDE)[n] for n in nodes}
    places = {5: (380, 0, 380, 740), name: (820, 0, 360, 320), 14: (820, 400, 360, 340), 11: (1240, 0, 440, 740)}
    return Layout({**FIRST_COLUMN, **places}, inside, (part,))


COMBINED = Part(
    "Combined Edit", (3, 4, 6, 7, 8, 9, 10, 12, 13, 15, 16, 17, 20, 22),
    {(1, 0): "picture", (5, 0): "sketch", (18, 0): "drags", (21, 0): "coarse", (21, 4): "composite", (21, 5): "moved"},
    {(17, 0): "edited", (15, 0): "contact_sheet"},
    ((3, "model_file"), (4, "width"), (4, "height"), (6, "strength"), (20, "strength"), (8, "steps"), (8, "cfg"), (8, "seed")))
FULL = Part(
    "Sketch Edit", (4, 6, 7, 8, 9, 10, 12, 13), {**WEIGHTS, (1, 0): "picture", (5, 0): "signal", (5, 1): "control"},
    {(10, 0): "edited", (13, 0): "contact_sheet"}, SETTINGS[1:])
EVALUATED = Part(
    "Sketch Edit", (3, 4, 5, 6, 7, 8, 9, 10), {(1, 0): "picture", (1, 1): "mask", (2, 0): "sketch"}, {(10, 0): "edited"}, SETTINGS)

# Edits of a video --------------------------------------------------------------------------------------

READ = Part("Read and Plan", (2, 3), {(1, 0): "video"},
            {(2, 0): "frames", (3, 1): "first_frame", (3, 0): "plan", (3, 4): "audio", (3, 2): "fps"},
            ((2, "end"), (2, "longer_side"), (3, "length")))
PAINT = Part(
    "Paint and Propagate", (5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 21, 22),
    {(3, 1): "first_frame", (6, 0): "signal", (2, 0): "frames", (3, 0): "plan", (3, 4): "audio", (3, 2): "fps"},
    {(15, 0): "painted_first_frame", (19, 0): "video"},
    ((5, "model_file"), (17, "model_file"), (18, "width"), (18, "height"), (12, "seed"), (18, "lora"), (18, "steps")))
FIRST = Part(
    "Edit Video by First Frame", (2, 4, 5, 6, 7), {(1, 0): "video", (3, 0): "edited_first_frame"},
    {(7, 0): "video", (6, 0): "frames", (6, 1): "drift"},
    ((4, "model_file"), (5, "length"), (6, "width"), (6, "height"), (6, "lora"), (6, "lora_steps"), (6, "matching"), (6, "steps"),
     (6, "seed")))
STATE = {(4, 0): "model", (4, 2): "clip_vision", (4, 3): "vae", (7, 1): "trajectory", (7, 0): "noise", (7, 2): "sigmas",
         (6, 1): "latent", (2, 1): "audio", (2, 2): "fps"}
INVERT = Part("Invert the Clip", (2, 4, 5, 6, 7, 8), {(1, 0): "video"}, STATE, ((4, "model_file"), (7, "steps")))
REPLAY = Part("Edit the Clip", (9, 10, 11, 12, 13, 14, 15, 17, 19), {(3, 0): "edited_first_frame", **STATE},
              {(15, 0): "video", (17, 1): "what_changed"}, ((10, "preset"), (11, "min_cfg"), (13, "cfg")))
TWICE = Part(
    "Sample Twice", (6, 7, 8, 9, 10, 12, 13, 16),
    {(2, 0): "frames", (2, 2): "fps", (3, 0): "model", (4, 0): "model_with_lora", (3, 2): "clip_vision", (3, 3): "vae"},
    {(10, 0): "without_lora", (13, 0): "with_lora", (16, 0): "video"}, ((7, "width"), (7, "height"), (7, "batch_size")))

# Edits by words ----------------------------------------------------------------------------------------

WORDS_FACE = ((8, "steps"), (9, "cross_steps"), (9, "temporal_steps"), (11, "cfg"))
PROMPTS = {(3, 1): "clip", (3, 2): "vae", (4, 0): "source", (4, 1): "edited", (4, 2): "plan"}
SOUND = {(2, 0): "frames", (2, 1): "audio", (2, 2): "fps"}
WORDS = Part(
    "Edit Video by Words", (2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16), {(1, 0): "video", (3, 0): "model", **PROMPTS},
    {(14, 0): "video", (13, 2): "where_words_look"}, ((7, "streamed"), *WORDS_FACE))
LATENTS = Part("Read and Encode", (2, 6), {(1, 0): "video", (3, 2): "vae"}, {(6, 0): "latent", **SOUND}, ())
TUNED = Part(
    "Edit Video by Words", (5, 8, 9, 10, 11, 12, 13, 14, 16), {(7, 0): "model", **PROMPTS, (6, 0): "latent", **SOUND},
    {(14, 0): "video", (13, 2): "where_words_look"}, WORDS_FACE)
WORDS_INSIDE = {
    2: (0, 0, 320, 100), 5: (0, 220, 320, 140), 6: (400, 0, 320, 80), 7: (400, 220, 320, 120), 8: (800, 0, 320, 160),
    10: (800, 280, 320, 80), 9: (1200, 0, 340, 560), 11: (1620, 0, 320, 300), 12: (2020, 0, 320, 80), 13: (2020, 220, 320, 300),
    14: (2420, 0, 320, 120), 16: (2420, 240, 560, 400)}
BY_WORDS = Layout(
    {**FIRST_COLUMN, 3: (380, 0, 340, 130), 4: (380, 230, 340, 510), WORDS.name: (780, 0, 360, 360), 18: (780, 430, 360, 310),
     15: (1200, 0, 400, 460), 17: (1200, 580, 400, 160)}, WORDS_INSIDE, (WORDS,))

LAYOUTS = {
    "framepainter_small": edit("Sketch Edit", (3, 4, 6, 7, 8, 9, 10, 12, 13, 15), {(5, 0): "signal", (5, 1): "control"}, 10, 15),
    "framepainter_drag": edit("Drag Edit", (3, 4, 6, 7, 8, 9, 10, 12, 13, 15, 16, 17), {(5, 0): "signal"}, 17, 15),
    "framepainter_coarse": edit(
        "Coarse Edit", (3, 4, 6, 7, 8, 9, 10, 12, 13, 15, 16, 17, 18), {(5, 0): "signal", (5, 1): "control"}, 17, 15),
    "framepainter_combined": Layout(
        {**FIRST_COLUMN, 5: (380, 0, 340, 400), 18: (380, 470, 340, 400), COMBINED.name: (780, 0, 340, 390),
         21: (780, 470, 340, 400), 11: (1180, 0, 440, 520), 14: (1180, 620, 440, 250)},
        {**KEEP_INSIDE, 20: (740, 300, 280, 180), 22: (1080, 200, 280, 180)}, (COMBINED,)),
    "framepainter_sketch": Layout(
        {1: (0, 0, 320, 330), 2: (0, 400, 320, 340), 3: (380, 0, 360, 190), "note": (380, 270, 360, 470), 5: (800, 0, 340, 400),
         FULL.name: (800, 470, 340, 270), 11: (1200, 0, 440, 410), 14: (1200, 500, 440, 240)}, SKETCH_INSIDE, (FULL,)),
    "framepainter_evaluate": Layout(
        {1: (0, 0, 320, 330), 2: (0, 400, 320, 340), EVALUATED.name: (380, 0, 360, 320), "note": (380, 400, 360, 340),
         13: (800, 0, 340, 320), 12: (800, 400, 340, 340), 11: (1200, 0, 360, 440), 14: (1200, 540, 440, 200)},
        SKETCH_INSIDE, (EVALUATED,)),
    "framepainter_train": Layout(
        {1: (0, 0, 400, 190), 2: (0, 300, 400, 500), "note": (-460, 0, 400, 420), 5: (460, 0, 400, 1080), 3: (920, 0, 440, 180),
         4: (920, 640, 440, 440), 8: (1420, 0, 500, 190), 6: (1420, 300, 500, 330), 7: (1420, 740, 500, 340)}),
    "paint_and_propagate": Layout(
        {1: (0, 0, 320, 330), READ.name: (0, 400, 320, 200), 6: (380, 0, 360, 740), PAINT.name: (800, 0, 360, 330),
         16: (800, 400, 360, 340), 20: (1220, 0, 400, 460), "note": (1220, 560, 400, 180)},
        {2: (0, 0, 320, 200), 3: (400, 0, 320, 400), 5: (0, 0, 420, 190), 7: (500, 0, 280, 250), 10: (500, 380, 280, 240),
         8: (860, 0, 280, 180), 9: (860, 260, 280, 70), 11: (860, 440, 280, 100), 12: (1220, 0, 280, 270), 13: (1580, 0, 280, 60),
         14: (1580, 160, 280, 60), 15: (1940, 0, 300, 240), 17: (1940, 360, 420, 190), 18: (2440, 0, 360, 840),
         19: (2880, 0, 280, 130), 21: (2880, 240, 560, 460), 22: (3520, 240, 560, 460)}, (READ, PAINT)),
    "i2vedit_long": Layout(
        {1: (0, 0, 320, 330), 3: (0, 400, 320, 340), FIRST.name: (380, 0, 380, 360), "note": (380, 430, 380, 310),
         8: (820, 0, 400, 460), 10: (820, 540, 400, 200), 9: (1280, 0, 400, 740)},
        {4: (0, 0, 420, 190), 2: (0, 320, 300, 200), 5: (500, 0, 300, 400), 6: (880, 0, 340, 840), 7: (1300, 0, 280, 130)},
        (FIRST,)),
    "i2vedit_small": Layout(
        {1: (0, 0, 320, 330), 3: (0, 400, 320, 340), INVERT.name: (380, 0, 360, 300), "note": (380, 380, 360, 360),
         REPLAY.name: (800, 0, 360, 340), 18: (800, 420, 360, 320), 16: (1220, 0, 440, 740)},
        {4: (0, 0, 420, 190), 2: (0, 320, 280, 100), 5: (500, 0, 280, 300), 6: (860, 0, 280, 340), 7: (1220, 0, 300, 240),
         8: (1600, 0, 300, 420), 9: (0, 0, 280, 300), 12: (0, 460, 280, 90), 10: (360, 0, 300, 560), 11: (740, 0, 280, 90),
         13: (740, 220, 280, 460), 14: (1100, 0, 280, 70), 15: (1460, 0, 280, 130), 17: (1100, 220, 280, 240),
         19: (1460, 260, 560, 500)}, (INVERT, REPLAY)),
    "i2vedit_motion_lora": Layout(
        {1: (0, 0, 320, 330), 2: (0, 400, 320, 100), "note": (0, 600, 320, 400), 3: (380, 0, 380, 190), 4: (380, 280, 380, 720),
         5: (820, 0, 360, 100), TWICE.name: (820, 250, 360, 280), 15: (820, 660, 360, 340), 11: (1240, 0, 420, 480),
         14: (1720, 0, 420, 480), 17: (1240, 600, 420, 400)},
        {6: (0, 0, 320, 130), 7: (0, 260, 320, 160), 8: (400, 0, 300, 300), 9: (780, 0, 300, 270), 12: (780, 460, 300, 270),
         10: (1160, 0, 280, 60), 13: (1160, 460, 280, 60), 16: (1520, 460, 280, 130)}, (TWICE,)),
    "video_p2p_edit": BY_WORDS,
    "video_p2p_words": BY_WORDS,
    "video_p2p_long": BY_WORDS,
    "video_p2p_tune": Layout(
        {"note": (-380, 0, 320, 400), 1: (0, 0, 320, 330), LATENTS.name: (0, 400, 320, 140), 20: (0, 680, 320, 300),
         3: (380, 0, 340, 130),
         4: (380, 230, 340, 750), 7: (780, 0, 340, 760), 19: (780, 850, 340, 130), TUNED.name: (1180, 0, 360, 340),
         18: (1180, 440, 360, 540), 15: (1600, 0, 440, 480), 17: (1600, 600, 440, 380)},
        WORDS_INSIDE, (LATENTS, TUNED)),
    "carry_real_clip": Layout(
        {1: (0, 0, 320, 330), 3: (0, 400, 320, 340), 2: (380, 0, 320, 200), 4: (380, 280, 320, 260), 5: (380, 620, 320, 120),
         6: (760, 0, 420, 360), "note": (760, 430, 420, 310), 8: (1240, 0, 420, 60),
         9: (1240, 140, 420, 260), 7: (1240, 560, 420, 180)}),
}
