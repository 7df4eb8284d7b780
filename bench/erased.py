"""What a motion LoRA learns of a thing that is erased, with and without a mask, and the video's own pixels kept, in miniature.

    <ComfyUI's python> bench/erased.py --host COMFYUI [--seeds 3] [--only NAME ...] [--write]

The video of the example paint_and_propagate (seven frames in two clips of four, two discs that move) with one disc erased from its
first frame; small base model, 20 steps, 60 steps of motion LoRA. Squared error of frames 2 to 7 against the scene rendered without
the disc: where the disc was or the other one has moved, and everywhere else. Masks: the erased disc in each frame; a box
around it in each frame, four pixels larger on every side; one such box around all frames' pixels. --write puts the table into
docs/paint_and_propagate.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402

PAGE, MARK = ROOT / "docs" / "paint_and_propagate.md", "<!-- table: bench/erased.py -->"
INPUTS = ROOT / "workflows" / "inputs"
STEPS, LORA_STEPS, RANK, RATE = 20, 60, 8, 1e-3
CHANGED, MARGIN = 25 / 255, 4
ROWS: dict[str, dict[str, Any]] = {
    "no motion LoRA": {},
    "no motion LoRA, keep_untouched": {"keep": True},
    "no motion LoRA, keep_untouched, boxes": {"keep": True, "mask": "boxes"},
    "motion LoRA": {"lora": True},
    "motion LoRA outside the disc": {"lora": True, "mask": "disc", "train_outside": True},
    "motion LoRA outside boxes": {"lora": True, "mask": "boxes", "train_outside": True},
    "motion LoRA outside one box": {"lora": True, "mask": "box", "train_outside": True},
}


class Bench:
    """The small base model and the example's video."""

    def __init__(self, load: Callable[[str], Any], folder: Path):
        import numpy as np
        import torch
        from PIL import Image

        self.load, self.folder = load, folder
        truth = torch.from_numpy(np.array(Image.open(INPUTS / "paint_clip_truth.png").convert("RGB"))).float() / 255
        self.take(load("core.video.reading").read(INPUTS / "paint_clip.mp4").frames, torch.stack(truth.split(96, 1)))
        with torch.inference_mode():
            small = load("host.weights.loading").load(ROOT / "models" / "framepainter_small_base.safetensors", None, None,
                                                      torch.float32)
        propagate = load("host.video.propagate")
        self.models = propagate.Models(small.model, small.clip_vision, small.vae)
        self.plan = load("core.video.clips").plan(len(self.clip), 7.0, 4)

    def take(self, clip: Any, truth: Any) -> None:
        """Work on a video: (T, H, W, 3) twice, as it is and as its edit should be."""
        import torch

        self.clip, self.truth = clip, truth
        self.area = ((truth - clip).abs().amax(-1) > CHANGED) | ((truth - truth[:1]).abs().amax(-1) > CHANGED)
        disc = self.load("core.signals.area").difference_area(truth, clip, CHANGED) > 0  # without specks of the video's coding
        self.masks = {"disc": disc.float(), "boxes": torch.stack([boxed(d) for d in disc]), "box": boxed(disc.any(0))[None]}

    def run(self, seed: int, lora: bool = False, mask: str = "", keep: bool = False, train_outside: bool = False,
            first: Any = None) -> Any:
        """Frames of a job. first: the edited first frame (1, H, W, 3); None: the true one."""
        import torch

        propagate, presets = self.load("host.video.propagate"), self.load("core.training.motion_lora.presets")
        settings = propagate.Settings(
            96, 96, steps=STEPS, guidance=1.2, motion_bucket=60, seed=seed, lora="one for all clips" if lora else "none",
            match=self.load("host.attention.injection_run").Settings(thresholds=(0.7, 0.7), betas=(0.8, 0.9)),
            motion=presets.MotionSettings(steps=LORA_STEPS, rank=RANK, learning_rate=RATE, precision="fp32", seed=seed))
        change = propagate.Change(self.masks.get(mask), keep, train_outside)
        with torch.inference_mode():
            start = self.truth[:1] if first is None else first
            return propagate.Job(self.models, self.clip, start, self.plan, settings, self.folder, change=change).run().frames

    def row(self, found: list[Any]) -> list[str]:
        """Squared error in the area and outside, mean over seeds and largest; the share of pixels with the video's bits."""
        import torch

        later = slice(1, None)
        errors = [(f - self.truth)[later].pow(2).mean(-1) for f in found]
        inside, outside = ([float(e[part[later]].mean()) for e in errors] for part in (self.area, ~self.area))
        same = torch.stack([(f == self.clip).all(-1)[later].float().mean() for f in found]).mean()
        cells = [f"{sum(v) / len(v):.4f}" + (f" ({max(v):.4f})" if len(v) > 1 else "") for v in (inside, outside)]
        return [*cells, f"{100 * float(same):.0f} %"]


def boxed(area: Any) -> Any:
    """(H, W) bool -> the area's bounding box, larger by MARGIN, as a mask; empty for none."""
    import torch

    out = torch.zeros(area.shape)
    if bool(area.any()):
        rows, columns = (area.any(axis).nonzero().flatten() for axis in (1, 0))
        out[max(0, int(rows[0]) - MARGIN):int(rows[-1]) + MARGIN + 1,
            max(0, int(columns[0]) - MARGIN):int(columns[-1]) + MARGIN + 1] = 1
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--folder", type=Path, default=Path("erased"), help="for the stages; delete it to start over")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=ROWS, help="rows")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    bench = Bench(tools_pack.open_pack(options.host.resolve()), options.folder)
    title = f"mean of {options.seeds} seeds (largest)" if options.seeds > 1 else "one seed"
    lines = [f"| {title} | where the disc was or the other moves | elsewhere | pixels with the video's bits |",
             "| --- | --- | --- | --- |", "| the video, unedited | " + " | ".join(bench.row([bench.clip])) + " |"]
    for name, how in ROWS.items():
        if not options.only or name in options.only:
            lines.append(f"| {name} | " + " | ".join(bench.row([bench.run(seed, **how) for seed in range(options.seeds)])) + " |")
            print(lines[-1], flush=True)
    print("\n".join(lines))
    if options.write:
        pages.write_table(PAGE, MARK, "\n".join(lines))


if __name__ == "__main__":
    main()
