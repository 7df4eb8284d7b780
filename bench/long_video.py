"""How an edit decays over the clips of a long video, with and without what is done against it, in miniature.

    <ComfyUI's python> bench/long_video.py --host COMFYUI [--only NAME ...] [--write]

The example video (16 frames in five clips of four, a disc whose colours were exchanged in the first frame) goes through Propagate
Edit on the small base model; every clip is compared with the true recoloured video: squared error, as a share of that of
doing nothing. --write puts the table into docs/long_videos.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import pack as tools_pack  # noqa: E402

MARKS = "<!-- table: bench/long_video.py -->", "<!-- end of table -->"
BASE: dict[str, Any] = {"lora": "one for all clips", "skip_interval": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "colours not matched, else as the example": {},
    "without skip-interval": {"skip_interval": False},
    "without motion LoRA": {"lora": "none"},
    "without both": {"lora": "none", "skip_interval": False},
    "a LoRA for each clip": {"lora": "one a clip"},
    "without matched attention": {"matching": False},
    "pixels carried": {"carry": "pixels"},
    "colour match 1": {"colour_match": 1.0},
    "anchor 0.5": {"anchor": 0.5},
}
STEPS, LORA_STEPS, RANK, RATE = 20, 60, 8, 1e-3


def read(path: Path) -> Any:
    """(T, H, W, 3) in [0, 1]."""
    import av
    import torch

    with av.open(str(path)) as file:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]).float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--folder", type=Path, default=Path("long_video"), help="for the stages; delete it to begin anew")
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    load = tools_pack.open_pack(options.host.resolve())
    import numpy as np
    import torch
    from PIL import Image

    inputs = ROOT / "workflows" / "inputs"
    clip = read(inputs / "long_clip.mp4")
    truth = torch.from_numpy(np.asarray(Image.open(inputs / "long_clip_truth.png").convert("RGB"))).float() / 255
    truth = torch.stack(truth.split(96, 1))
    edited = torch.from_numpy(np.asarray(Image.open(inputs / "long_clip_edited.png").convert("RGB"))).float()[None] / 255
    propagate, clips, presets = load("host.propagate"), load("core.video.clips"), load("core.training.motion_presets")
    matching, drift = load("host.attention_matching"), load("core.video.drift")
    with torch.inference_mode():
        loaded = load("host.loading").load(ROOT / "models" / "framepainter_small_base.safetensors", None, None, torch.float32)
    models = propagate.Models(loaded.model, loaded.clip_vision, loaded.vae)
    plan = clips.plan(len(clip), 7.0, 4)
    lines = ["| variant | " + " | ".join(f"clip {i + 1}" for i in range(len(plan.clips))) + " | colour | sharpness |",
             "| --- |" + " --- |" * (len(plan.clips) + 2)]
    for name, changes in VARIANTS.items():
        if options.only and name not in options.only:
            continue
        settings = propagate.Settings(**{
            "height": 96, "width": 96, "steps": STEPS, "guidance": 1.2, "motion_bucket": 30,
            "match": matching.Settings(thresholds=(0.7, 0.7), betas=(0.8, 0.9)),
            "motion": presets.MotionSettings(steps=LORA_STEPS, rank=RANK, learning_rate=RATE, precision="fp32"),
            **BASE, **changes})
        with torch.inference_mode():
            result = propagate.Job(models, clip, edited, plan, settings, options.folder).run()
        values = []
        for begin, end in plan.clips:
            span = slice(begin + 1, end)  # the first frame is the clip before's, or was given
            error, nothing = ((x[span] - truth[span]).pow(2).mean() for x in (result.frames, clip))
            values.append(float(error / nothing))
        measured = [drift.drift(c, truth[slice(*plan.clips[i])]) for i, c in enumerate(result.clips)]
        lines.append(f"| {name} | " + " | ".join(f"{v:.2f}" for v in values)
                     + f" | {measured[-1].colour:.3f} | {measured[-1].sharpness:.2f} |")
        print(lines[-1], flush=True)
        shown = torch.cat([torch.cat(list(x[::3]), 1) for x in (clip, result.frames, truth)], 0)
        options.folder.mkdir(exist_ok=True)
        Image.fromarray((shown * 255).round().byte().numpy()).resize((shown.shape[1] * 2, shown.shape[0] * 2)).save(
            options.folder / f"{name.replace(' ', '_')}.png")
    if options.write:
        path = ROOT / "docs" / "long_videos.md"
        text = path.read_text(encoding="utf-8")
        before, rest = text.split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        path.write_text(f"{before}{MARKS[0]}\n\n" + "\n".join(lines) + f"\n\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
