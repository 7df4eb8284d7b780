"""Make the example clips of a moving shape, and what true edits of them look like: the same motion, other words.

    <host's python> tools/making/shape_clip.py --host COMFYUI_DIR [--folder workflows/inputs]

Writes shape_clip.mp4 and long_shape_clip.mp4, and beside each a picture of its true edits: a row for each caption, a column
for each frame. See workflows/inputs/README.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pack as tools_pack  # noqa: E402

SIDE, FPS, RADIUS = 192, 8, 0.42
SOURCE = "a red disc on a green ground"
EDITS = ("a blue disc on a green ground", "a red square on a green ground", "a red disc on a yellow ground",
         "a blue square on a green ground")
CLIPS = {"shape_clip": (8, EDITS), "long_shape_clip": (24, EDITS[-1:])}  # name -> frames, captions of its edits
FROM, TO = (-0.36, 0.28), (0.36, -0.20)  # centre in the first and the last frame


def clip(captions: Any, text: str, frames: int) -> Any:
    """The clip that a caption describes, (T, 3, SIDE, SIDE) in [0, 1]: always the same motion, size and light."""
    import torch

    path = torch.lerp(torch.tensor(FROM), torch.tensor(TO), torch.linspace(0, 1, frames)[:, None])
    none = torch.zeros(1, 3)
    scenes = captions.Scenes(captions.subject_of(text), none, none, torch.tensor([[0.02, -0.03]]), path[None],
                             torch.full((1, frames), RADIUS))
    return captions.render(scenes, SIDE)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parents[2] / "workflows" / "inputs")
    options = parser.parse_args()
    load = tools_pack.open_pack(options.host.resolve())
    import torch
    from comfy_api.latest import InputImpl, Types
    from PIL import Image

    captions = load("core.data.captions")
    for name, (frames, edits) in CLIPS.items():
        images = clip(captions, SOURCE, frames).movedim(1, -1)
        video = Types.VideoComponents(images=images, audio=None, frame_rate=Fraction(FPS))
        InputImpl.VideoFromComponents(video).save_to(str(options.folder / f"{name}.mp4"))
        rows = [torch.cat(list(clip(captions, text, frames)), -1) for text in edits]
        sheet = (torch.cat(rows, -2).movedim(0, -1) * 255).round().to(torch.uint8)
        Image.fromarray(sheet.numpy()).save(options.folder / f"{name}_truth.png", optimize=True)


if __name__ == "__main__":
    main()
